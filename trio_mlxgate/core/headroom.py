"""Slots that are kept free for better priorities: who is eligible while some are free."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Headroom:
    """Counts the holders of worse priorities, and says who may have one more slot.

    For each reserved priority ``q``, the holders of a priority worse than ``q`` together must use fewer than
    ``max(1, capacity - sum of reserved[r] for r <= q)`` slots before one more of them is granted. So the best
    priorities are bound by nothing, and whoever is eligible, all of a better priority are too.
    """

    __slots__ = ("_held", "_keys", "_reserved")

    def __init__(self, reserved: Mapping[int, int]) -> None:
        self._keys = sorted(reserved)
        # For each key: how many slots it and the better keys reserve together.
        self._reserved = list(accumulate(reserved[key] for key in self._keys))
        # For each key: how many slots are held by worse priorities.
        self._held = [0] * len(self._keys)

    def granted(self, priority: int) -> None:
        """One more slot is held by ``priority``."""
        for index in range(bisect_left(self._keys, priority)):
            self._held[index] += 1

    def released(self, priority: int) -> None:
        """One slot fewer is held by ``priority``."""
        for index in range(bisect_left(self._keys, priority)):
            self._held[index] -= 1

    def worst_eligible(self, capacity: int) -> float:
        """The worst priority that may have one more slot, if one is free: one of the reserved keys, or inf."""
        for key, reserved, held in zip(self._keys, self._reserved, self._held, strict=True):
            if held >= max(1, capacity - reserved):
                return key
        return inf

    def closed_by(self, held: Iterable[int], priority: int, capacity: int) -> bool:
        """Whether ``priority`` would not be eligible if slots of the priorities ``held`` were all that is out."""
        alone = list(held)
        return any(
            key < priority and sum(other > key for other in alone) >= max(1, capacity - reserved)
            for key, reserved in zip(self._keys, self._reserved, strict=True)
        )
