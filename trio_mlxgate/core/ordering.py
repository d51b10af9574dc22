"""Who goes first: strict priority, or priority that gives way to age; first come first served within a class.

An item stands at a *place*, which says where it goes within its class and stays what it is if another item takes
the place over. In a :class:`PriorityLine` a place is the number of an arrival; in an :class:`AgingLine` it is the
rank and that number, and orders the whole queue.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from trio_mlxgate.core.indexed_heap import IndexedHeap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

AgedPlace: TypeAlias = "tuple[float, int]"
Place: TypeAlias = "int | AgedPlace"


class PriorityLine(Generic[T]):
    """A queue in which the lower priority number goes first and equals go in the order of their places.

    Each priority is a class with a FIFO of its own; a heap holds the priorities of the classes in use.
    Adding, removing any item and taking the first are O(1) within a class and O(log c) when a class comes
    or goes, c being the number of classes in use. A removed item leaves nothing behind.
    """

    __slots__ = ("_best", "_classes", "_priorities", "length")

    def __init__(self) -> None:
        # OrderedDict, not dict: taking the first of a dict steps over every entry that was deleted there.
        self._classes: dict[int, OrderedDict[int, T]] = {}
        self._priorities: IndexedHeap[int, int] = IndexedHeap()
        # The class that goes first, or None: kept, since it changes only when a class comes or goes.
        self._best: OrderedDict[int, T] | None = None
        self.length = 0
        """How many items there are; as len(), for those who ask at every step. To be read only."""

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[T]:
        """All items in the order in which they would be taken."""
        for priority in sorted(self._classes):
            yield from self._classes[priority].values()

    def add(self, place: int, item: T, priority: int) -> None:
        """Put ``item`` behind all of its class; ``place`` is the number of its arrival."""
        line = self._classes.get(priority)
        if line is None:
            line = self._open(priority)
        line[place] = item
        self.length += 1

    def take_over(self, place: int, item: T, priority: int) -> None:
        """Let ``item`` stand where another one stood. Raises KeyError if nobody of that class stands there."""
        line = self._classes[priority]
        if place not in line:
            raise KeyError(place)
        line[place] = item

    def remove(self, place: int, priority: int) -> None:
        """Take out who stands at ``place``. Raises KeyError if nobody of that class does."""
        line = self._classes[priority]
        del line[place]
        self.length -= 1
        if not line:
            self._close(priority)

    def take_first(self) -> T:
        """Take out the item that goes first. Raises IndexError if the queue is empty."""
        line = self._best
        if line is None:
            raise IndexError("nobody is in the queue")
        _, item = line.popitem(last=False)
        self.length -= 1
        if not line:
            self._close(self._priorities.first())
        return item

    def take_first_up_to(self, worst: float) -> T | None:
        """Take out the item that goes first among those whose priority is ``worst`` or better; None: there is none."""
        # Who goes first has the best priority of all, so that nobody stands behind one who may not go and may.
        return self.take_first() if self._best is not None and self._priorities.first() <= worst else None

    def sizes(self) -> dict[int, int]:
        """How many wait in each class that is in use, best priority first."""
        return {priority: len(self._classes[priority]) for priority in sorted(self._classes)}

    def ahead_of(self, place: int, priority: int) -> dict[int, int]:
        """How many of each class go before ``place`` of this class, best priority first."""
        ahead = {other: len(self._classes[other]) for other in sorted(self._classes) if other <= priority}
        if priority in self._classes:
            ahead[priority] = _before(self._classes[priority], place)
        return ahead

    def _open(self, priority: int) -> OrderedDict[int, T]:
        line: OrderedDict[int, T] = OrderedDict()
        self._classes[priority] = line
        self._priorities.push(priority, priority)
        self._best = self._classes[self._priorities.first()]
        return line

    def _close(self, priority: int) -> None:
        del self._classes[priority]
        self._priorities.remove(priority)
        self._best = self._classes[self._priorities.first()] if self._classes else None


class AgingLine(Generic[T]):
    """A queue ordered by ``arrival + aging * priority / 100``, equal ranks by arrival.

    Who waits gains on those who come later: of priority 100 it is passed only by those of priority 0 that come less
    than ``aging`` seconds after it. A rank is fixed when the item comes, so that nothing is ever sorted again:
    the discipline of J. R. Jackson, *Some problems in queueing with dynamic priorities*, 1960, with
    ``aging * priority / 100`` as the urgency number.

    Within a class ranks grow with arrivals: each class is a FIFO of its own, and heaps hold their heads. ``cuts``
    are the priorities up to which :meth:`take_first_up_to` may be asked; they cut the heads into a heap for each
    range between two of them. Adding, removing and taking are O(log c + number of cuts), c being the number of
    classes in use.
    """

    __slots__ = ("_classes", "_cuts", "_heads", "length")

    def __init__(self, cuts: Sequence[int] = ()) -> None:
        self._cuts = sorted(cuts)
        self._classes: dict[int, OrderedDict[AgedPlace, T]] = {}
        self._heads: list[IndexedHeap[int, AgedPlace]] = [IndexedHeap() for _ in range(len(self._cuts) + 1)]
        self.length = 0
        """As of :class:`PriorityLine`."""

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[T]:
        """All items in the order in which they would be taken, if all may go."""
        # A place is never equal to another one, so that the items behind it are never compared.
        for _, item in heapq.merge(*(line.items() for line in self._classes.values()), key=_first_of):
            yield item

    def add(self, place: AgedPlace, item: T, priority: int) -> None:
        """Put ``item`` behind all of its class; ``place`` is what :func:`aged_place` says."""
        line = self._classes.get(priority)
        if line is None:
            line = self._classes[priority] = OrderedDict()
            self._range_of(priority).push(priority, place)
        line[place] = item
        self.length += 1

    def take_over(self, place: AgedPlace, item: T, priority: int) -> None:
        """As of :class:`PriorityLine`."""
        line = self._classes[priority]
        if place not in line:
            raise KeyError(place)
        line[place] = item

    def remove(self, place: AgedPlace, priority: int) -> None:
        """As of :class:`PriorityLine`."""
        line = self._classes[priority]
        was_first = next(iter(line)) == place
        del line[place]
        self.length -= 1
        if was_first:
            self._new_head(priority, line)

    def take_first(self) -> T:
        """Take out the item that goes first. Raises IndexError if the queue is empty."""
        item = self.take_first_up_to(inf)
        if item is None:
            raise IndexError("nobody is in the queue")
        return item

    def take_first_up_to(self, worst: float) -> T | None:
        """Take out the item that goes first among those whose priority is ``worst`` or better; None: there is none.

        ``worst`` is one of the cuts, or inf.
        """
        ranges = self._heads[: bisect_left(self._cuts, worst) + 1]
        heads = min((heads for heads in ranges if heads), key=lambda heads: heads.first_rank(), default=None)
        if heads is None:
            return None
        priority = heads.first()
        line = self._classes[priority]
        _, item = line.popitem(last=False)
        self.length -= 1
        self._new_head(priority, line)
        return item

    def sizes(self) -> dict[int, int]:
        """As of :class:`PriorityLine`."""
        return {priority: len(self._classes[priority]) for priority in sorted(self._classes)}

    def ahead_of(self, place: AgedPlace, priority: int) -> dict[int, int]:  # noqa: ARG002 - the place says it all
        """As of :class:`PriorityLine`."""
        return {other: _before(self._classes[other], place) for other in sorted(self._classes)}

    def _range_of(self, priority: int) -> IndexedHeap[int, AgedPlace]:
        return self._heads[bisect_left(self._cuts, priority)]

    def _new_head(self, priority: int, line: OrderedDict[AgedPlace, T]) -> None:
        if line:
            self._range_of(priority).move(priority, next(iter(line)))
        else:
            del self._classes[priority]
            self._range_of(priority).remove(priority)


def aged_place(aging: float, seq: int, now: float, priority: int) -> AgedPlace:
    """The place in an :class:`AgingLine` of one that arrives now as number ``seq``."""
    return (now + aging * priority / 100, seq)


P = TypeVar("P", int, AgedPlace)


def _before(line: OrderedDict[P, T], place: P) -> int:
    """How many of a class stand before ``place``, whether or not somebody stands there."""
    if place > next(reversed(line)):
        return len(line)
    count = 0
    for other in line:
        if other >= place:
            break
        count += 1
    return count


def _first_of(entry: tuple[AgedPlace, object]) -> AgedPlace:
    return entry[0]
