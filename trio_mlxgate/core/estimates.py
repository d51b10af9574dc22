"""How long a wait will be: the mean holds of the past, and what they say of the queue."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MEMORY: Final = 32
"""Up to so many holds of a class a mean is the plain one; from then on each new hold weighs one part in so many."""

MOST_CLASSES: Final = 128
"""Of so many classes the mean hold is kept; of further ones the class that was measured first is forgotten."""


@attrs.frozen
class Outlook:
    """Where a waiter stands, and what is to be expected."""

    position: int
    """Its place in the order in which waiters would be let in, 1 being the next."""

    estimated_wait: float | None
    """In how many seconds from now it is expected to be let in; None at capacity 0 or while nothing is measured."""


class HoldMeans:
    """The mean hold of each class: exact for the first :data:`MEMORY`, then an exponentially weighted one.

    So it forgets: when another model is loaded that answers in half of the time, estimates follow.
    """

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        # [mean, count]; lists, since this is written to at each release.
        self._classes: dict[int, list[float]] = {}

    def record(self, priority: int, held: float) -> None:
        """A slot of this priority was held for ``held`` seconds."""
        entry = self._classes.get(priority)
        if entry is None:
            if len(self._classes) >= MOST_CLASSES:
                del self._classes[next(iter(self._classes))]
            self._classes[priority] = [held, 1.0]
        else:
            count = entry[1] = entry[1] + 1.0
            entry[0] += (held - entry[0]) / (min(MEMORY, count))

    def mean(self, priority: int) -> float | None:
        """The mean hold of a class; of one that was never measured that of all classes; None: nothing is measured."""
        entry = self._classes.get(priority)
        if entry is not None:
            return entry[0]
        if not self._classes:
            return None
        entries = self._classes.values()
        return fsum(mean * count for mean, count in entries) / fsum(count for _, count in entries)

    def __bool__(self) -> bool:
        """Whether anything is measured."""
        return bool(self._classes)


class Forecast:
    """What the waiters of one moment have before them.

    Args:
      means: the means of the past.
      capacity: how many slots there are.
      holders: priority and seconds held so far of each slot that is out.
    """

    __slots__ = ("_capacity", "_means", "_running", "_used")

    def __init__(self, means: HoldMeans, capacity: int, holders: Iterable[tuple[int, float]]) -> None:
        self._means = means
        self._capacity = capacity
        # Each mean is looked up once: to find that of a class that was never measured takes longer.
        self._used: dict[int, float] = {}
        known = bool(capacity and means)
        self._running = fsum(max(0.0, self._mean(priority) - held) for priority, held in holders) if known else None

    def wait(self, ahead: Mapping[int, int]) -> float | None:
        """In how many seconds one is expected to be let in that has ``ahead[priority]`` waiters of each class ahead.

        None: nothing is measured, or the capacity is 0.
        """
        if self._running is None:
            return None
        return (
            self._running + fsum(count * self._mean(priority) for priority, count in ahead.items())
        ) / self._capacity

    def _mean(self, priority: int) -> float:
        mean = self._used.get(priority)
        if mean is None:
            mean = self._means.mean(priority)
            assert mean is not None, "something is measured, so that there is a mean for every class"
            self._used[priority] = mean
        return mean
