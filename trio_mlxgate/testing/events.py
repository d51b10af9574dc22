"""What can happen to a gate, in words that a test can draw and print; and the face of a gate that it happens to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from trio_mlxgate.core.statistics import GateStatistics


class GateLike(Protocol):
    """What the laws ask of an implementation: the face of :class:`trio_mlxgate.Gate`, without its options.

    An implementation that has options takes them as keyword arguments, here and where it is made, under the same names.
    """

    @property
    def capacity(self) -> int:
        """As :attr:`trio_mlxgate.Gate.capacity`."""
        ...

    @capacity.setter
    def capacity(self, capacity: int) -> None: ...

    def slot(
        self, priority: int = ..., *, hold_timeout: float = ..., max_wait: float = ...
    ) -> AbstractAsyncContextManager[object]:
        """As :meth:`trio_mlxgate.Gate.slot`."""
        ...

    def slot_nowait(self, priority: int = ..., *, hold_timeout: float = ...) -> AbstractContextManager[object]:
        """As :meth:`trio_mlxgate.Gate.slot_nowait`."""
        ...

    def statistics(self) -> GateStatistics:
        """As :meth:`trio_mlxgate.Gate.statistics`."""
        ...


@attrs.frozen
class Arrive:
    """A task asks for a slot. It keeps it until it is told to end."""

    priority: int
    max_wait: float = math.inf
    hold_timeout: float = math.inf
    nowait: bool = False
    supersede: Hashable | None = None
    forgets: bool = False
    """Whether the task, once told to end, does so without giving its slot back."""


@attrs.frozen
class End:
    """The ``index``-th call (modulo their number) that is inside leaves its body, by an exception if ``fail``."""

    index: int
    fail: bool = False


@attrs.frozen
class Cancel:
    """The ``index``-th call (modulo their number) that isn't over is cancelled, wherever it stands."""

    index: int
    native: bool = False
    """Whether by ``Task.cancel()``, under asyncio; else by its cancel scope."""


@attrs.frozen
class SetCapacity:
    """The capacity changes."""

    capacity: int


@attrs.frozen
class Close:
    """The gate is closed: who waits is sent away, too."""


@attrs.frozen
class Drain:
    """The gate is drained: newcomers are sent away; somebody waits for it to be idle."""


@attrs.frozen
class Tick:
    """One scheduler pass. Without it, events happen within one pass: that is where races live."""


@attrs.frozen
class Settle:
    """Everything that can run has run."""


@attrs.frozen
class Sleep:
    """Time passes on the virtual clock, in seconds."""

    seconds: float


Event: TypeAlias = Arrive | End | Cancel | SetCapacity | Close | Drain | Tick | Settle | Sleep


@attrs.frozen(kw_only=True)
class Options:
    """The options of the gate that is played against, as :class:`trio_mlxgate.Gate` has them."""

    aging: float | None = None
    reserved: Mapping[int, int] | None = None
    max_waiting: int | Mapping[int, int] | None = None
    positions: bool = False
    """Whether the objects that ``slot()`` returns have a ``position``."""
    strict: bool = False
    """Whether the gate breaks when a task ends without giving its slot back."""

    def for_the_gate(self) -> dict[str, Any]:
        """What the gate is made with; nothing for what is off, so that a gate need not know it."""
        options: dict[str, Any] = {"aging": self.aging, "reserved": self.reserved, "max_waiting": self.max_waiting}
        options["strict"] = self.strict or None
        return {name: value for name, value in options.items() if value is not None}

    def limits(self) -> dict[float, int]:
        """How many may wait of each priority and worse ones."""
        if self.max_waiting is None:
            return {}
        if isinstance(self.max_waiting, int):
            return {-math.inf: self.max_waiting}
        return {float(key): limit for key, limit in self.max_waiting.items()}

    def rank(self, priority: int, asked_at: float) -> float:
        """What the queue is ordered by, before the order of arrival."""
        return priority if self.aging is None else asked_at + self.aging * priority / 100

    def eligible(self, priority: int, held: list[int], capacity: int) -> bool:
        """Whether this priority may have one more slot while slots of the priorities ``held`` are out."""
        reserved = self.reserved or {}
        return len(held) < capacity and all(
            sum(other > key for other in held)
            < max(1, capacity - sum(count for other, count in reserved.items() if other <= key))
            for key in reserved
            if key < priority
        )


class LawBroken(AssertionError):
    """An implementation of the gate broke one of its laws; the message says which, and how."""
