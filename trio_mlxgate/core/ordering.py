"""Who goes first: strict priority between classes, first come first served within one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from trio_mlxgate.core.indexed_heap import IndexedHeap

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class PriorityLine(Generic[T]):
    """A queue in which the lower priority number goes first and equals go in the order of their arrival.

    Each priority is a class with a FIFO of its own; a heap holds the priorities of the classes in use.
    Adding, removing any item and taking the first are O(1) within a class and O(log c) when a class comes
    or goes, c being the number of classes in use. A removed item leaves nothing behind.
    """

    __slots__ = ("_best", "_classes", "_priorities", "length")

    def __init__(self) -> None:
        # OrderedDict, not dict: taking the first of a dict steps over every entry that was deleted there.
        self._classes: dict[int, OrderedDict[T, None]] = {}
        self._priorities: IndexedHeap[int] = IndexedHeap()
        # The class that goes first, or None: kept, since it changes only when a class comes or goes.
        self._best: OrderedDict[T, None] | None = None
        self.length = 0
        """How many items there are; as len(), for those who ask at every step. To be read only."""

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[T]:
        """All items in the order in which they would be taken."""
        for priority in sorted(self._classes):
            yield from self._classes[priority]

    def add(self, item: T, priority: int) -> None:
        """Put ``item`` behind all of its class. It must not be in the queue already."""
        line = self._classes.get(priority)
        if line is None:
            line = self._open(priority)
        line[item] = None
        self.length += 1

    def remove(self, item: T, priority: int) -> None:
        """Take ``item`` out, wherever it stands. Raises KeyError if it is not in that class."""
        line = self._classes[priority]
        del line[item]
        self.length -= 1
        if not line:
            self._close(priority)

    def take_first(self) -> T:
        """Take out the item that goes first. Raises IndexError if the queue is empty."""
        line = self._best
        if line is None:
            raise IndexError("nobody is in the queue")
        item, _ = line.popitem(last=False)
        self.length -= 1
        if not line:
            self._close(self._priorities.first())
        return item

    def sizes(self) -> dict[int, int]:
        """How many wait in each class that is in use, best priority first."""
        return {priority: len(self._classes[priority]) for priority in sorted(self._classes)}

    def heads(self) -> list[T]:
        """The first of each class, in no particular order."""
        return [next(iter(line)) for line in self._classes.values()]

    def _open(self, priority: int) -> OrderedDict[T, None]:
        line: OrderedDict[T, None] = OrderedDict()
        self._classes[priority] = line
        self._priorities.push(priority, priority)
        self._best = self._classes[self._priorities.first()]
        return line

    def _close(self, priority: int) -> None:
        del self._classes[priority]
        self._priorities.remove(priority)
        self._best = self._classes[self._priorities.first()] if self._classes else None
