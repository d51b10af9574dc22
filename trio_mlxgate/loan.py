"""A slot on loan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

if TYPE_CHECKING:
    import anyio

    from trio_mlxgate.runtime import Runtime, SomeTask
    from trio_mlxgate.slots import Slot


class Loan:
    """An owned slot on loan to one thing that outlives a call; see :meth:`Slot.lend`."""

    def __init__(self, slot: Slot, purpose: str, deadline: float) -> None:
        self.slot = slot
        """The slot that is lent."""
        self.mark = None
        self.purpose = purpose
        """What it is lent to, for messages."""
        self.waited = 0.0
        """For how many seconds it was waited for: for the end of what was drained under the same slot."""
        self.holder: SomeTask | None = slot.gate._runtime.current_task()
        """The task that will release the loan."""
        self.drained: anyio.Event | None = None
        """Set when what it is lent to has ended; None while the task that lent the slot is still there for that."""
        self.orphaned_by: str | None = None
        """The name of the task that owned the slot and ended without giving it back."""
        self._deadline = deadline

    @property
    def deadline(self) -> float:
        """The time on the run's clock at which whoever works under the loan is to stop; inf for none."""
        return min(self._deadline, self.slot.deadline)

    @property
    def runtime(self) -> Runtime:
        """The run that the slot belongs to."""
        return self.slot.gate._runtime

    def adopt(self, task: SomeTask | None = None) -> None:
        """The current task, or this one, is the one that will release the loan."""
        self.holder = task if task is not None else self.slot.gate._runtime.current_task()

    @enable_ki_protection
    def release(self) -> None:
        """End the loan, and give the slot back if its block has ended. Never a checkpoint.

        Raises:
          RuntimeError: the second time, or as :meth:`DetachedSlot.release` does.
        """
        slot = self.slot
        slot.gate._check_run()
        if slot._loan is not self:
            raise RuntimeError(f"the loan to {self.purpose} was released before")
        slot._loan = None
        slot._admission.end_loan(slot)
        slot.gate._tied.discard(self)
        if self.orphaned_by is not None:
            slot.gate._take_back(slot, self.orphaned_by)
        elif slot.task is None:
            slot._give_back()
