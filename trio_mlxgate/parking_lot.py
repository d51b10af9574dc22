"""A parking lot with priorities: trio's own :class:`trio.lowlevel.ParkingLot`, the best priority unparked first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import outcome
import trio
from trio.lowlevel import Abort, current_task, enable_ki_protection, reschedule, wait_task_rescheduled

from trio_mlxgate.core.ordering import PriorityLine
from trio_mlxgate.priority import DEFAULT_PRIORITY, check_priority

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio.lowlevel import Task


@attrs.frozen
class PriorityParkingLotStatistics:
    """A snapshot of a :class:`PriorityParkingLot`."""

    tasks_waiting: int
    """How many tasks are parked."""

    waiting_by_priority: Mapping[int, int]
    """How many are parked in each priority, best first; priorities without tasks are left out."""


class PriorityParkingLot:
    """A wait queue in which the lower priority number is unparked first, and equals in the order in which they came.

    It is to :class:`trio.lowlevel.ParkingLot` what a priority queue is to a queue, and for the same use:
    building other primitives. ``len(lot)`` is the number of parked tasks. A cancelled task leaves the
    lot in the same step.
    """

    def __init__(self) -> None:
        self._line: PriorityLine[Task] = PriorityLine()
        # Of each task its priority and its place in the line.
        self._places: dict[Task, tuple[int, int]] = {}
        self._arrivals = 0
        self.broken_by: list[Task] = []
        """The tasks that broke this lot; empty while it is whole."""

    def __len__(self) -> int:
        return len(self._line)

    def __bool__(self) -> bool:
        return bool(self._places)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self)} parked{', broken' if self.broken_by else ''}>"

    @enable_ki_protection
    async def park(self, priority: int = DEFAULT_PRIORITY) -> None:
        """Wait until :meth:`unpark` or :meth:`unpark_all` wakes this task.

        Always a checkpoint, unless it raises for a bad argument or a broken lot. If it is cancelled the
        task has left the lot.

        Raises:
          TypeError, ValueError: ``priority`` isn't one (see :func:`check_priority`).
          trio.BrokenResourceError: the lot is broken, or is broken while the task waits.
        """
        check_priority(priority)
        if self.broken_by:
            raise trio.BrokenResourceError(f"this parking lot was broken by {self.broken_by}")
        task = current_task()
        self._arrivals += 1
        self._places[task] = priority, self._arrivals
        self._line.add(self._arrivals, task, priority)

        def abort(_: trio.lowlevel.RaiseCancelT) -> Abort:
            priority, place = self._places.pop(task)
            self._line.remove(place, priority)
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    @enable_ki_protection
    def unpark(self, *, count: float = 1) -> list[Task]:
        """Wake the ``count`` tasks that go first (fewer if fewer are parked; ``math.inf`` for all) and return them.

        Raises:
          ValueError: ``count`` is a float other than inf.
        """
        if not isinstance(count, int) and count != math.inf:
            raise ValueError("count must be an int or math.inf")
        woken: list[Task] = []
        while self._line and len(woken) < count:
            task = self._line.take_first()
            del self._places[task]
            reschedule(task)
            woken.append(task)
        return woken

    def unpark_all(self) -> list[Task]:
        """Wake every parked task, best priority first, and return them in that order."""
        return self.unpark(count=math.inf)

    @enable_ki_protection
    def break_lot(self, task: Task | None = None) -> None:
        """Break the lot in the name of ``task`` (default: the current one), for good.

        Parked tasks and all that park later get :class:`trio.BrokenResourceError`. Breaking a broken lot
        only notes one more task in :attr:`broken_by`.
        """
        if task is None:
            task = current_task()
        self.broken_by.append(task)
        while self._line:
            parked = self._line.take_first()
            del self._places[parked]
            error = trio.BrokenResourceError(f"this parking lot was broken by {task}")
            reschedule(parked, outcome.Error(error))

    def statistics(self) -> PriorityParkingLotStatistics:
        """A snapshot; never waits."""
        return PriorityParkingLotStatistics(len(self._line), self._line.sizes())
