"""A slot that belongs to an object and no task."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from trio_mlxgate.slots import Slot

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.base_gate import BaseGate
    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.runtime import Runtime, SomeTask


class DetachedSlot(Slot):
    """A slot that belongs to an object: to be given back with :meth:`release`, by any task of the gate's run."""

    __slots__ = ("holder", "mark")

    def __init__(
        self,
        gate: BaseGate,
        priority: int,
        hold_timeout: float,
        max_wait: float,
        supersede: Hashable | None,
        outer_deadline: OuterDeadline | None,
        tied: bool,
    ) -> None:
        super().__init__(gate, priority, hold_timeout, max_wait, supersede, outer_deadline)
        self.detached = True
        self._tied = tied
        self.holder: SomeTask | None = None
        """Of a tied slot: the task that will give it back."""
        self.mark: object | None = None
        """Of a slot that a worker thread runs in, which gives it back: what the thread is known by."""

    def _hold_detached(self, task: SomeTask) -> None:
        self.task = None
        if self._tied:
            self.holder = task
            self.gate._tied.add(self)
            self.gate._runtime.holds(self)
        if self.hold_deadline < inf:
            self.gate._alarms.watch()

    def _undo(self) -> None:
        self.release()

    @property
    def runtime(self) -> Runtime:
        """The run that the slot belongs to."""
        return self.gate._runtime

    def adopt(self, task: SomeTask | None = None) -> None:
        """The current task, or this one, is the one that will give the slot back."""
        self.holder = task if task is not None else self.gate._runtime.current_task()

    @enable_ki_protection
    def release(self) -> None:
        """Give the slot back. Never a checkpoint.

        Raises:
          RuntimeError: it was given back before, or this is called from outside the gate's run while that is alive.
        """
        gate = self.gate
        gate._check_run()
        granted = self._admission.release(self, gate._clock())
        gate._tied.discard(self)
        gate._released(self, granted)
