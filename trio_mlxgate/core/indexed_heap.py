"""A binary heap from which any key can be removed in O(log n), so that nothing dead is ever left in it."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
R = TypeVar("R", int, float, "tuple[float, int]")


class IndexedHeap(Generic[K, R]):
    """Keys, each with a rank; the smallest rank first, equal ranks in the order in which they came.

    ``push``, ``remove``, ``move`` and ``pop`` are O(log n), ``first`` and ``first_rank`` O(1). The index of each
    key is kept beside it (Sedgewick & Wayne, *Algorithms*, 4th ed., section 2.4, "index priority queue").
    """

    __slots__ = ("_arrivals", "_entries", "_index")

    def __init__(self) -> None:
        # (rank, arrival, key): the arrival makes the order total, so that keys are never compared.
        self._entries: list[tuple[R, int, K]] = []
        self._index: dict[K, int] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def push(self, key: K, rank: R) -> None:
        """Add ``key``. Raises ValueError if it is there already."""
        if key in self._index:
            raise ValueError(f"{key!r} is in the heap already")
        self._arrivals += 1
        self._entries.append((rank, self._arrivals, key))
        self._rise(len(self._entries) - 1)

    def first(self) -> K:
        """The key of the smallest rank, left in the heap. Raises IndexError if the heap is empty."""
        return self._entries[0][2]

    def first_rank(self) -> R:
        """The smallest rank. Raises IndexError if the heap is empty."""
        return self._entries[0][0]

    def pop(self) -> K:
        """Take out the key of the smallest rank. Raises IndexError if the heap is empty."""
        key = self._entries[0][2]
        self.remove(key)
        return key

    def remove(self, key: K) -> None:
        """Take out ``key``. Raises KeyError if it is not there."""
        position = self._index.pop(key)
        last = self._entries.pop()
        if position < len(self._entries):
            self._entries[position] = last
            self._index[last[2]] = position
            self._rise(position)
            self._sink(self._index[last[2]])

    def move(self, key: K, rank: R) -> None:
        """Give ``key`` another rank. Raises KeyError if it is not there."""
        position = self._index[key]
        self._entries[position] = (rank, self._entries[position][1], key)
        self._rise(position)
        self._sink(self._index[key])

    def _rise(self, position: int) -> None:
        entries, index = self._entries, self._index
        entry = entries[position]
        while position:
            parent = (position - 1) >> 1
            above = entries[parent]
            if above < entry:
                break
            entries[position] = above
            index[above[2]] = position
            position = parent
        entries[position] = entry
        index[entry[2]] = position

    def _sink(self, position: int) -> None:
        entries, index = self._entries, self._index
        size = len(entries)
        entry = entries[position]
        while (child := 2 * position + 1) < size:
            if child + 1 < size and entries[child + 1] < entries[child]:
                child += 1
            below = entries[child]
            if entry < below:
                break
            entries[position] = below
            index[below[2]] = position
            position = child
        entries[position] = entry
        index[entry[2]] = position
