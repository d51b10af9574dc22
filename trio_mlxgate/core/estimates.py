"""How long a wait will be: the mean holds of the past, and what they say of the queue."""

from __future__ import annotations

from collections import deque
from itertools import chain
from math import fsum
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MEMORY: Final = 32
"""A mean is that of so many holds, the latest of a class: when a faster model is loaded, estimates follow."""

MOST_CLASSES: Final = 128
"""Of so many classes holds are kept; when there is one more, the class that was measured first is forgotten."""


@attrs.frozen
class Outlook:
    """Where a waiter stands, and what is to be expected."""

    position: int
    """Its place in the order of ranks, 1 being the best; with ``reserved`` one that is held back may be passed over."""

    estimated_wait: float | None
    """In how many seconds from now it is expected to be let in; None at capacity 0 or while nothing is measured."""


class Holds:
    """The latest holds of each class, in seconds."""

    __slots__ = ("classes",)

    def __init__(self) -> None:
        self.classes: dict[int, deque[float]] = {}
        """For each class that was measured its latest holds: to be appended to, by those who release all the time."""

    def begin(self, priority: int, held: float) -> None:
        """The first hold of a class has ended."""
        if len(self.classes) >= MOST_CLASSES:
            del self.classes[next(iter(self.classes))]
        self.classes[priority] = deque([held], maxlen=MEMORY)

    def mean(self, priority: int) -> float | None:
        """The mean hold of a class; of one that was never measured that of all classes; None: nothing is measured."""
        latest = self.classes.get(priority)
        if latest is None:
            latest = deque(chain.from_iterable(self.classes.values()))
        return fsum(latest) / len(latest) if latest else None


class Forecast:
    """What the waiters of one moment have before them.

    Args:
      past: the holds that have ended.
      capacity: how many slots there are.
      holders: priority and seconds held so far of each slot that is out.
    """

    __slots__ = ("_capacity", "_means", "_past", "_running")

    def __init__(self, past: Holds, capacity: int, holders: Iterable[tuple[int, float]]) -> None:
        self._past = past
        self._capacity = capacity
        # Each mean that is needed is computed once.
        self._means: dict[int, float] = {}
        known = bool(capacity and past.classes)
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
        mean = self._means.get(priority)
        if mean is None:
            mean = self._past.mean(priority)
            assert mean is not None, "something is measured, so that there is a mean for every class"
            self._means[priority] = mean
        return mean
