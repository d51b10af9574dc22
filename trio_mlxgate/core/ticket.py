"""One call to a gate, as the core knows it."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.core.ordering import Place


class TicketState(enum.Enum):
    """Where a call stands: NEW and ASKING before it arrives; RELEASED, ORPHANED, CANCELLED and REJECTED are ends.

    ORPHANED: whoever held the slot is gone without giving it back, and it was taken back.
    """

    NEW = "new"
    ASKING = "asking"
    WAITING = "waiting"
    GRANTED = "granted"
    RELEASED = "released"
    ORPHANED = "orphaned"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


WAITING: Final = TicketState.WAITING
GRANTED: Final = TicketState.GRANTED

WAIT_TOO_LONG: Final = "wait_too_long"
QUEUE_FULL: Final = "queue_full"
WOULD_BLOCK: Final = "would_block"
SUPERSEDED: Final = "superseded"
CLOSED: Final = "closed"
BROKEN: Final = "broken"


class SupersedeKey:
    """A caller's ``supersede`` key, safe to be kept: its hash is asked for once, and it is always equal to itself.

    Raises:
      TypeError: the key can't be hashed.
    """

    __slots__ = ("_hash", "key")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        try:
            self._hash = hash(key)
        except TypeError as error:
            raise TypeError(f"supersede must be hashable, such as a string or a tuple of them: {error}") from None

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, SupersedeKey) and self._hash == other._hash and bool(self.key == other.key)
        )

    def __repr__(self) -> str:
        return repr(self.key)


class Ticket:
    """One call to a gate. Its maker says what is asked for; from its arrival on :class:`Admission` alone changes it.

    A driver makes a subclass of it that keeps what the driver needs, such as the task to be woken.
    """

    # Slots, and no defaults in the class: both make a ticket cheaper, which is made for every call.
    __slots__ = (
        "arrived_at",
        "detached",
        "granted_at",
        "held_at",
        "hold_deadline",
        "hold_timeout",
        "max_wait",
        "place",
        "priority",
        "refusal",
        "seq",
        "state",
        "supersede",
    )

    place: Place | None
    """Where it stands, or stood, in the queue; None if it never stood there."""

    held_at: int
    """Its index among the holders, while it is one."""

    refusal: str
    """Of a rejected call: why."""

    def __init__(
        self,
        priority: int,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
    ) -> None:
        self.priority = priority
        self.hold_timeout = hold_timeout
        self.max_wait = max_wait
        self.supersede = None if supersede is None else SupersedeKey(supersede)
        self.state = TicketState.NEW
        self.seq = 0
        self.place = None
        self.arrived_at = 0.0
        self.granted_at = 0.0
        self.hold_deadline = math.inf
        self.detached = False

    @property
    def waited(self) -> float:
        """For how many seconds the call stood in the queue; 0.0 before the grant."""
        return self.granted_at - self.arrived_at

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.seq} priority={self.priority} {self.state.value}>"
