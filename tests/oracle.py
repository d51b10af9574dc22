"""The gate's rules once more, by brute force over plain lists: what the core and the driver are compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

WAITING: Final = "waiting"
GRANTED: Final = "granted"
MEMORY: Final = 32


@attrs.define(eq=False)
class Call:
    """One call as the oracle sees it."""

    seq: int
    priority: int
    key: Hashable | None = None
    max_wait: float = math.inf
    arrived: float = 0.0
    granted: float = 0.0
    rank: tuple[float, int] = (0.0, 0)


class Oracle:
    """All that wait in one list, all that hold in another; each question is answered by looking at all of them."""

    def __init__(
        self,
        capacity: int,
        *,
        aging: float | None = None,
        reserved: Mapping[int, int] | None = None,
        max_waiting: int | Mapping[int, int] | None = None,
    ) -> None:
        self.capacity = capacity
        self.ended: str | None = None
        self.aging = aging
        self.reserved = reserved or {}
        self.limits: dict[float, int] = {}
        if isinstance(max_waiting, int):
            self.limits = {-math.inf: max_waiting}
        elif max_waiting is not None:
            self.limits = {float(key): limit for key, limit in max_waiting.items()}
        self.waiting: list[Call] = []
        self.held: list[Call] = []
        self.holds: list[tuple[int, float]] = []

    def eligible(self, priority: int) -> bool:
        """Whether one of this priority may have one more slot now, if nobody is before it."""
        if len(self.held) >= self.capacity:
            return False
        for key in self.reserved:
            if priority > key:
                worse = sum(call.priority > key for call in self.held)
                kept = sum(count for other, count in self.reserved.items() if other <= key)
                if worse >= max(1, self.capacity - kept):
                    return False
        return True

    def next_granted(self) -> Call | None:
        """The eligible waiter of the best rank."""
        return min((call for call in self.waiting if self.eligible(call.priority)), key=_rank, default=None)

    def arrive(self, call: Call, now: float) -> tuple[str, Call | None]:
        """What becomes of a call that comes now, and whom it supersedes."""
        call.arrived = now
        if self.ended is not None:
            return self.ended, None
        older = next((other for other in self.waiting if call.key is not None and other.key == call.key), None)
        if self.eligible(call.priority) and self.next_granted() is None:
            if older is not None:
                self.waiting.remove(older)
            self.hold(call, now)
            return GRANTED, older
        if call.max_wait <= 0:
            return "wait_too_long", None
        call.rank = (call.priority if self.aging is None else now + self.aging * call.priority / 100, call.seq)
        if older is not None and older.priority == call.priority:
            call.rank = older.rank
        elif self.is_full(call.priority, [other for other in self.waiting if other is not older]):
            return "queue_full", None
        if older is not None:
            self.waiting.remove(older)
        self.waiting.append(call)
        return WAITING, older

    def is_full(self, priority: int, waiting: list[Call]) -> bool:
        """Whether a call of this priority finds no place beside those."""
        return any(
            sum(call.priority >= key for call in waiting) >= limit
            for key, limit in self.limits.items()
            if priority >= key
        )

    def hold(self, call: Call, now: float) -> None:
        """The call has a slot from now on."""
        call.granted = now
        self.held.append(call)

    def settle(self, now: float) -> list[Call]:
        """Let in all that can be."""
        granted = []
        while (call := self.next_granted()) is not None:
            self.waiting.remove(call)
            self.hold(call, now)
            granted.append(call)
        return granted

    def release(self, call: Call, now: float) -> None:
        """The slot is given back."""
        self.held.remove(call)
        self.holds.append((call.priority, now - call.granted))

    def in_order(self) -> list[Call]:
        """Who waits, the best rank first."""
        return sorted(self.waiting, key=_rank)

    def mean_hold(self, priority: int) -> float | None:
        """Of the latest holds of a class; if it has none, of those of all classes."""
        classes = {other for other, _ in self.holds}
        latest = {other: [held for which, held in self.holds if which == other][-MEMORY:] for other in classes}
        counted = latest.get(priority) or [held for holds in latest.values() for held in holds]
        return sum(counted) / len(counted) if counted else None

    def estimated_wait(self, ahead: list[Call], now: float) -> float | None:
        """What one has before it, that these go before."""
        if not self.capacity or not self.holds:
            return None
        seconds = 0.0
        for call in self.held:
            seconds += max(0.0, (self.mean_hold(call.priority) or 0.0) - (now - call.granted))
        for call in ahead:
            seconds += self.mean_hold(call.priority) or 0.0
        return seconds / self.capacity


def _rank(call: Call) -> tuple[float, int]:
    return call.rank
