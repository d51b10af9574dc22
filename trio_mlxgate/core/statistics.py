"""What a gate tells of itself: frozen snapshots, exact at the moment at which they were asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class GateStatistics:
    """A snapshot of a gate. ``admitted + cancelled + rejected + tasks_waiting`` is the number of calls so far.

    A call that is a mistake of the program, and raises RuntimeError, is no call to the gate and counts nowhere.
    """

    capacity: int
    """How many slots there are."""

    in_flight: int
    """How many slots are granted and not given back. Above ``capacity`` only after the capacity was lowered."""

    tasks_waiting: int
    """How many calls stand in the queue."""

    waiting_by_priority: Mapping[int, int]
    """How many calls of each priority stand in the queue, best first; priorities without waiters are left out."""

    longest_wait: float
    """For how many seconds the call has waited that has waited longest; 0.0 if nobody waits."""

    admitted: int
    """How many calls have been granted a slot."""

    cancelled: int
    """How many calls were cancelled before they were granted a slot, in the queue or when they asked."""

    rejected: int
    """How many calls were refused, the sum of ``rejected_by_reason``."""

    rejected_by_reason: Mapping[str, int]
    """How many calls were refused for each reason: ``"wait_too_long"``, ``"queue_full"``, ``"superseded"``,
    ``"would_block"``, ``"closed"`` or ``"broken"``."""

    ended: str | None = None
    """Why every newcomer is refused: ``"closed"`` (also while the gate is drained) or ``"broken"``; None: it isn't."""
