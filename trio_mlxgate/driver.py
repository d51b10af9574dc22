"""What a gate does in its run: it wakes tasks as ``core/admission.py`` decides, tells of it, and decides nothing.

What it needs of the library that runs the tasks is in ``runtime.py``, the public face in ``base_gate.py``; slots, and
what else belongs to a gate, use what is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

import outcome

from trio_mlxgate.alarms import Alarms
from trio_mlxgate.ancestors import Ancestors
from trio_mlxgate.core.ticket import BROKEN, CLOSED, QUEUE_FULL, SUPERSEDED, TicketState
from trio_mlxgate.ends import Idleness
from trio_mlxgate.instrumentation import details
from trio_mlxgate.instrumentation.listeners import Listeners
from trio_mlxgate.loan import Loan
from trio_mlxgate.outer_deadline import OuterDeadlines
from trio_mlxgate.progress import ProgressBoard
from trio_mlxgate.refusals import refusal
from trio_mlxgate.runtime import NO_RUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trio_mlxgate.core.admission import Admission
    from trio_mlxgate.detached_slots import DetachedSlot
    from trio_mlxgate.dialects import Dialect
    from trio_mlxgate.instrumentation import CallDetails, Hook
    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.portal import Portal
    from trio_mlxgate.runtime import Runtime, SomeTask
    from trio_mlxgate.slots import Slot


class Driver:
    """The driver of one gate: its run, its sleeping tasks, its hooks. Everything here is for this package alone."""

    # What the gate of each library says for itself.
    _dialect: ClassVar[Dialect]
    _current_run: Callable[[], object]
    """The token of the current run; raises RuntimeError outside of one."""
    _runtime_of: Callable[[Any], Runtime]
    """What stands for the run of a token."""
    _limiter_statistics: Callable[..., Any]
    """Makes what the statistics of a limiter are."""
    _outside: ClassVar[str]
    """What is said of a use outside of any run."""

    def __init__(
        self,
        name: str,
        admission: Admission[Slot],
        *,
        starvation_warning: float,
        outer_deadline: OuterDeadline,
        strict: bool,
        hooks: Iterable[Hook],
    ) -> None:
        self.name = name
        self._admission = admission
        self._starvation_warning = starvation_warning
        self._outer_deadlines = OuterDeadlines(name, outer_deadline)
        self._ancestors = Ancestors(self)
        self._strict = strict
        self._listeners = Listeners(name)
        if not isinstance(hooks, Iterable):
            raise TypeError(f"hooks must be a list of hooks, such as [LoggingHook()], not {hooks!r}")
        for hook in hooks:
            self._listeners.add(hook)
        self._listen()
        self._start_empty(NO_RUNTIME)

    def _start_empty(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        # Which owned slot each task holds.
        self._owners: dict[SomeTask, Slot] = runtime.owners(self)
        # Detached slots and loans that only the task noted in them can give back, or a thread that it waits for.
        self._tied: set[DetachedSlot | Loan] = set()
        # Which slot each thread holds that asked for itself.
        self._threads: dict[int, DetachedSlot] = {}
        self._alarms = Alarms(self)
        self._board = ProgressBoard(self)
        self._idleness = Idleness(self)
        # How it was ended: "draining", "closed", or "broken".
        self._ended: str | None = None
        # The door for other runs.
        self._portal: Portal | None = None
        self._outer_deadlines.look_more_closely()

    # ---- the run ----

    def _bind(self) -> None:
        """Make sure that the gate belongs to the current run, starting empty if its last run is over."""
        try:
            token = self._current_run()
        except RuntimeError:
            raise RuntimeError(f"gate {self.name!r} {self._outside}") from None
        if token is self._runtime.token:
            return
        if not self._run_is_over():
            raise RuntimeError(
                f"{self!r} is in use by another run, which is alive. To share it, ask for gate.portal() over there and "
                "use that here"
            )
        if self._runtime is not NO_RUNTIME:
            # What the ended run left behind is gone with it; its slots still point to the old state.
            self._admission = self._admission.anew()
            self._board.detach()
            self._idleness.detach()
        self._start_empty(self._runtime_of(token))
        self._runtime.watch(self)

    def _check_run(self) -> None:
        """Raise RuntimeError if this is not called from the gate's run and that run is alive."""
        if not self._is_at_home() and not self._runtime.is_over():
            raise RuntimeError(f"{self!r} is used from outside its run; a thread goes through from_thread.run_sync()")

    def _is_at_home(self) -> bool:
        """Whether this is called in the run to which the gate is bound."""
        try:
            return self._current_run() is self._runtime.token
        except RuntimeError:
            return False

    def _is_in_a_run(self) -> bool:
        try:
            self._current_run()
        except RuntimeError:
            return False
        return True

    def _run_is_over(self) -> bool:
        admission, runtime = self._admission, self._runtime
        return runtime.is_over() or (not (admission.in_flight or admission.tasks_waiting) and runtime.is_idle())

    # ---- waking, and telling ----

    def _wake(self, granted: list[Slot]) -> None:
        """Let the tasks run to which the core has granted slots. Hooks are told when all are on their way."""
        for ticket in granted:
            if ticket.waiter is not None:
                self._runtime.wake(ticket.waiter)

    def _tell_granted(self, granted: list[Slot]) -> None:
        if granted and self._granted_wanted():
            for ticket in granted:
                self._tell(details.Granted, ticket)

    def _released(self, ticket: Slot, granted: list[Slot]) -> None:
        """A slot was given back, which let others in: let their tasks run, and only then tell anybody."""
        # As _wake, without the call: this is the path of every handover.
        for other in granted:
            if other.waiter is not None:
                self._runtime.wake(other.waiter)
        wanted = self._handover_wanted
        if wanted():
            self._tell(details.Released, ticket)
            for other in granted:
                self._tell(details.Granted, other)

    def _cancelled(self, ticket: Slot, granted: list[Slot]) -> None:
        """A waiter was cancelled, which let others in."""
        self._wake(granted)
        self._tell(details.Cancelled, ticket)
        self._tell_granted(granted)

    def _oust(self, older: Slot) -> None:
        """A call was superseded, and is out of the queue: its task gets the error."""
        if older.waiter is not None:
            self._runtime.wake(older.waiter, outcome.Error(self._refusal(older)))

    def _superseded(self, older: Slot, newer: Slot) -> None:
        self._tell(details.Superseded, older, by=newer.seq)

    def _refused(self, ticket: Slot) -> None:
        self._tell(details.Rejected, ticket, reason=ticket.refusal)

    def _refusal(self, ticket: Slot, known: dict[int, float | None] | None = None) -> Exception:
        """The error for a rejected call, with what the queue says of its chance if it comes again.

        ``known`` keeps the answers for each priority, for when many are refused at once.
        """
        if ticket.refusal in (SUPERSEDED, CLOSED, BROKEN):
            return refusal(self.name, ticket, waited=0.0, full=None, retry_after=None)
        expected: dict[int, float | None] = {} if known is None else known
        admission, now, priority = self._admission, self._clock(), ticket.priority
        if priority not in expected:
            expected[priority] = admission.expected_wait(priority, now)
        waited = now - ticket.arrived_at
        full = admission.fullness(priority) if ticket.refusal == QUEUE_FULL else None
        return refusal(self.name, ticket, waited=waited, full=full, retry_after=expected[priority])

    def _waits_for_itself(self, slot: Slot, task: SomeTask) -> bool:
        """Whether ``slot`` can't be had as long as ``task`` holds what is tied to it: it would wait for itself."""
        if not slot.max_wait or self._admission.ended is not None:
            return False  # it doesn't wait at all
        mine = self._tied_to(task) + self._held_by_served_thread()
        return bool(mine) and self._admission.blocked_by(mine, slot.priority)

    def _tied_to(self, task: SomeTask) -> list[Slot]:
        """The slots that can't be given back while this task waits for something else."""
        mine: list[Slot] = []
        for tied in self._tied:
            if isinstance(tied, Loan):
                if tied.holder is task:
                    mine.append(tied.slot)
            elif tied.holder is task and tied.mark is None:
                mine.append(tied)
        return mine

    def _held_by_served_thread(self) -> list[Slot]:
        """The slots of the worker thread for which the current task runs this: they go back when this has ended."""
        if not any(tied.mark is not None for tied in self._tied):
            return []
        return self._held_under(self._runtime.marks_of_served_thread())

    def _held_under(self, marks: Collection[object]) -> list[Slot]:
        """The slots of threads that are known by these marks."""
        return [
            tied
            for tied in self._tied
            if not isinstance(tied, Loan) and tied.mark is not None and any(tied.mark is mark for mark in marks)
        ]

    # ---- ends ----

    def _begin_to_drain(self) -> None:
        """Refuse all who come; or nothing, if that is so already."""
        if self._ended is None:
            self._ended = "draining"
            self._admission.refuse_newcomers()
            self._tell_of_gate(details.Ended, reason="draining")

    def _end(self, reason: str) -> None:
        """Refuse all who wait and all who come; or nothing, if that is so already."""
        if self._ended != reason:
            self._tell_of_end(reason, self._refuse_all(reason))

    def _refuse_all(self, reason: str) -> list[Slot]:
        self._ended = reason
        refused = self._admission.refuse_all(reason)
        for ticket in refused:
            if ticket.waiter is not None:
                self._runtime.wake(ticket.waiter, outcome.Error(self._refusal(ticket)))
        return refused

    def _tell_of_end(self, reason: str, refused: list[Slot]) -> None:
        self._tell_of_gate(details.Ended, reason=reason)
        for ticket in refused:
            self._refused(ticket)

    def _task_ended(self, task: SomeTask) -> None:
        """This task has ended and owns a slot still."""
        slot = self._owners.pop(task)
        slot.task = None
        if slot._scope is not None:
            slot._scope.deadline = math.inf  # nobody is left whom it could interrupt
        if slot._loan is not None:
            # Whoever has the response may be reading it: the bound counts what runs.
            slot._loan.orphaned_by = self._runtime.name_of(task)
            self._tied.add(slot._loan)
        else:
            self._take_back(slot, self._runtime.name_of(task))

    def _take_back(self, slot: Slot, task_name: str) -> None:
        """A slot has nobody any more who would give it back."""
        breaks = self._strict and self._ended not in (CLOSED, BROKEN)
        refused = self._refuse_all(BROKEN) if breaks else []
        granted = slot._admission.take_back(slot, self._clock())
        # Only now, since a hook may raise what is no Exception.
        self._wake(granted)
        self._tell(details.Orphaned, slot, task=task_name)
        if breaks:
            self._tell_of_end(BROKEN, refused)
        self._tell(details.Released, slot)
        self._tell_granted(granted)

    # ---- hooks ----

    def _listen(self) -> None:
        """Note who listens; to be called when that has changed."""
        listeners = self._listeners
        # The events of every call have a short way to hear that nobody listens.
        self._queued_wanted = listeners.wanted(details.Queued)
        self._granted_wanted = listeners.wanted(details.Granted)
        self._released_wanted = listeners.wanted(details.Released)
        self._handover_wanted = listeners.wanted(details.Released, details.Granted)

    def _tell(self, kind: type[CallDetails], ticket: Slot, **more: Any) -> None:
        """Tell the hooks what has happened to a call."""
        if self._listeners.tell(kind, lambda: self._describe(kind, ticket, more)):
            self._listen()

    def _tell_of_gate(self, kind: type[details.Details], **more: Any) -> None:
        if self._listeners.tell(kind, lambda: kind(**self._shape(), **more)):
            self._listen()

    def _describe(self, kind: type[CallDetails], ticket: Slot, more: dict[str, Any]) -> CallDetails:
        now = self._clock()
        granted = ticket.state in _GRANTED_ONCE
        arrived = ticket.seq > 0
        return kind(
            **self._shape(),
            priority=ticket.priority,
            seq=ticket.seq,
            queued=ticket.place is not None,
            waited=ticket.waited if granted else now - ticket.arrived_at if arrived else 0.0,
            held=now - ticket.granted_at if granted else 0.0,
            **more,
        )

    def _shape(self) -> dict[str, Any]:
        admission = self._admission
        return {
            "gate": self.name,
            "capacity": admission.capacity,
            "in_flight": admission.in_flight,
            "queue_length": admission.tasks_waiting,
        }


_GRANTED_ONCE: Final = (TicketState.GRANTED, TicketState.RELEASED, TicketState.ORPHANED)
