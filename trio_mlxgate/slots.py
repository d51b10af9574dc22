"""What a caller holds: a slot of its gate, as a context manager or as an object of its own."""

from __future__ import annotations

import math
from math import inf
from typing import TYPE_CHECKING, Final, NoReturn, Self

from trio.lowlevel import Abort, enable_ki_protection

from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.ticket import WOULD_BLOCK, SupersedeKey, Ticket, TicketState
from trio_mlxgate.instrumentation import Cancelled, Granted, Queued, Released
from trio_mlxgate.loan import Loan
from trio_mlxgate.outer_deadline import LOOKS_AT_EVERY, LOOKS_AT_FIRST, check_outer_deadline
from trio_mlxgate.priority import Priority, check_priority

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType

    from trio_mlxgate.base_gate import BaseGate
    from trio_mlxgate.core.admission import Admission
    from trio_mlxgate.core.estimates import Outlook
    from trio_mlxgate.dialects import Dialect
    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.runtime import Scope, SomeTask, Waiter

# Plain names for what the path of every call looks at.
_NEW: Final = TicketState.NEW
_ASKING: Final = TicketState.ASKING
_WAITING: Final = TicketState.WAITING
_GRANTED: Final = TicketState.GRANTED


def check_request(
    priority: int,
    hold_timeout: float,
    max_wait: float,
    supersede: Hashable | None,
    outer_deadline: OuterDeadline | None,
) -> None:
    """Check what a slot is asked for with, before there is one.

    Raises:
      TypeError, ValueError: something isn't as :meth:`Gate.slot` says.
    """
    check_priority(priority)
    check_seconds("hold_timeout", hold_timeout)
    check_seconds("max_wait", max_wait)
    SupersedeKey(supersede)
    if outer_deadline is not None:
        check_outer_deadline(outer_deadline)


class Slot(Ticket):
    """A slot of a gate, from asking for it to giving it back. Made by the gate's methods; used once."""

    __slots__ = (
        *("_admission", "_loan", "_scope", "_tied", "asker", "dialect", "gate", "outer_deadline", "task", "waiter"),
    )

    _admission: Admission[Slot]
    waiter: Waiter | None
    """What is to be woken when the wait ends; None while nobody sleeps."""
    asker: SomeTask | None
    """The task that waits; None before and after."""
    dialect: Dialect
    """In whose words the call is refused."""

    def __init__(
        self,
        gate: BaseGate,
        priority: int,
        hold_timeout: float,
        max_wait: float,
        supersede: Hashable | None,
        outer_deadline: OuterDeadline | None,
    ) -> None:
        # As check_request. What nearly every call has is known to be good; to look at it costs as much as the rest.
        if type(priority) is not Priority:
            check_priority(priority)
        if hold_timeout is not inf:
            check_seconds("hold_timeout", hold_timeout)
        if max_wait is not inf:
            check_seconds("max_wait", max_wait)
        if outer_deadline is not None:
            check_outer_deadline(outer_deadline)
        self.gate = gate
        """The gate that the slot belongs to."""
        # What Ticket.__init__ does; to call it would cost more than all these.
        self.priority = priority
        """The priority that was asked for."""
        self.hold_timeout = hold_timeout
        self.max_wait = max_wait
        self.supersede = None if supersede is None else SupersedeKey(supersede)
        self.outer_deadline: OuterDeadline | None = outer_deadline
        self.state = _NEW
        self.seq = 0
        self.place = None
        self.arrived_at = self.granted_at = 0.0
        self.hold_deadline = inf
        self.detached = False
        self.task: SomeTask | None = None
        """The task that owns the slot; None before it does and after, and of a slot that an object holds."""
        self._scope: Scope | None = None
        self._loan: Loan | None = None
        self._tied = False
        self.waiter = self.asker = None
        self.dialect = gate._dialect

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of gate {self.gate.name!r}, priority {self.priority}, {self.state.value}>"

    @property
    def deadline(self) -> float:
        """The time on the run's clock at which ``hold_timeout`` ends; inf without one.

        Settable while the slot is held. A slot of a task that was asked for without ``hold_timeout`` has no
        cancel scope that could be moved: setting its deadline raises RuntimeError.
        """
        return self.hold_deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        # Callers without a type checker may give anything.
        given: object = deadline
        if isinstance(given, bool) or not isinstance(given, int | float) or math.isnan(given):
            raise ValueError(
                f"a deadline must be a time on the clock of the run, such as current_time() + 30, not {deadline!r}"
            )
        if self.state is not _GRANTED:
            raise RuntimeError(f"{self!r} is not held, so it has no deadline")
        if self._scope is None and not self.detached:
            raise RuntimeError(f"{self!r} was asked for without hold_timeout; give it one to move its deadline")
        self._admission.set_deadline(self, deadline)
        if self._scope is not None:
            self._scope.deadline = deadline
        if self._loan is not None:
            self._admission.lend(self, self._loan.deadline)
        if self.detached:
            self.gate._alarms.watch()

    @property
    def position(self) -> int | None:
        """Where the call stands in the order of ranks, from 1 on; None: it doesn't wait.

        1 is the next to be let in, unless ``reserved`` holds it back and one behind it passes it over.

        It looks through the waiters that go first: to follow many, use :meth:`Gate.progress`.
        """
        outlook = self._outlook()
        return None if outlook is None else outlook.position

    @property
    def estimated_wait(self) -> float | None:
        """In how many seconds from now the call is expected to be let in, by the mean holds of the past.

        What the holders have left of their classes' mean holds, and the mean holds of the waiters that go first, by
        the capacity. None if it doesn't wait, at capacity 0, and while no hold has ended yet.
        """
        outlook = self._outlook()
        return None if outlook is None else outlook.estimated_wait

    def _outlook(self) -> Outlook | None:
        return self._admission.outlook(self, self.gate._clock()) if self.state is _WAITING else None

    def lend(self, purpose: str, *, hold_timeout: float = inf) -> Loan:
        """Let one thing that outlives a call, such as an open response, run under this owned slot.

        While it is on loan no second loan is given, and if the slot's block ends first, the slot goes on being
        held until the loan is released: the bound counts what runs.

        Args:
          purpose: what it is lent to, for messages.
          hold_timeout: how many seconds from now the loan may take; the slot's own deadline holds all the same.

        Raises:
          RuntimeError: the slot is on loan already (the message names ``purpose``), or isn't held.
        """
        if self.state is not _GRANTED or self.task is None:
            raise RuntimeError(f"{self!r} is not held by a task, so it cannot be lent")
        if self._loan is not None:
            raise RuntimeError(
                f"this task's slot of gate {self.gate.name!r} serves one open response at a time, and "
                f"{self._loan.purpose} is still open: read it to its end or close it first"
            )
        check_seconds("hold_timeout", hold_timeout)
        loan = self._loan = Loan(self, purpose, self.gate._clock() + hold_timeout)
        self._admission.lend(self, loan.deadline)
        if loan.deadline < inf:
            self.gate._alarms.watch()
        return loan

    # ---- what the kinds of slot share ----

    def _refuse(self) -> NoReturn:
        """Say why this slot may not be asked for now, by this task."""
        name = self.gate.name
        if self.state is not _NEW:
            raise RuntimeError(f"{self!r} can be used only once; ask the gate for another")
        raise RuntimeError(
            f"this task owns a slot of gate {name!r} already; to wait for another would be to wait for itself. "
            "Do the work inside the slot that it has, or start a child task for it"
        )

    @enable_ki_protection
    async def _acquire(self) -> Self:
        """Wait for the slot. Always a checkpoint, unless it raises RuntimeError; cancelled, it holds nothing."""
        # Everything below stands in one function, although it has parts, since this is the path that all calls take.
        gate = self.gate
        # What _bind does first, without the call: nearly always the gate is at home in this run.
        runtime = gate._runtime
        try:
            at_home = gate._current_run() is runtime.token
        except RuntimeError:
            at_home = False
        if not at_home:
            gate._bind()
            runtime = gate._runtime
        task = runtime.current_task()
        if self.state is not _NEW or task in gate._owners:
            self._refuse()
        deadlines = gate._outer_deadlines
        deadlines.due -= 1
        if deadlines.due <= 0 or self.outer_deadline is not None:
            try:
                deadlines.look(self.outer_deadline, runtime)
            except BaseException:
                self._be_mistaken()
                raise
        self.state = _ASKING
        self._admission = admission = gate._admission
        try:
            # A look without a call, since it says only which checkpoint is due; who may go is the core's to say, below.
            if admission.in_flight < admission.capacity or not self.max_wait:
                await runtime.checkpoint()
            else:
                await runtime.checkpoint_if_cancelled()
            if gate._tied:
                # A task that was just started to read one of the responses hasn't come to say so. trio runs the tasks
                # of one pass in random order, so that two passes are needed to be sure of it.
                for _ in range(2):
                    if not admission.admits(self.priority) and gate._waits_for_itself(self, task):
                        await runtime.checkpoint()
        except BaseException:
            admission.turn_away(self)
            gate._tell(Cancelled, self)
            raise
        if admission is not gate._admission:
            # A loop of asyncio can stand still meanwhile, while another one takes over the gate.
            try:
                gate._bind()
            except BaseException:
                self._be_mistaken()
                raise
            self._admission = admission = gate._admission
            runtime = gate._runtime
        if gate._tied and not admission.admits(self.priority) and gate._waits_for_itself(self, task):
            self._be_mistaken()
            raise RuntimeError(
                f"all slots of gate {gate.name!r} are held by open responses of this task, or by its worker thread, so "
                "that it would wait for itself: read responses to their end or close them first, or read them in a "
                "task of their own; and let a thread that holds a slot not ask for another"
            )
        # Here and below: a function that an attribute holds is called faster by way of a local name.
        clock = gate._clock
        try:
            older = admission.request(self, clock())
        except BaseException:  # a supersede key that can't be compared
            self._be_mistaken()
            raise
        if older is not None:
            gate._oust(older)
        if self.state is _GRANTED:
            wanted = gate._granted_wanted
            try:
                if wanted():
                    gate._tell(Granted, self)
                if older is not None:
                    gate._superseded(older, self)
            except BaseException:  # not an Exception of a hook, but SystemExit and its kind
                gate._wake(admission.release(self, clock()))
                raise
        else:
            if self.state is not _WAITING:
                await self._be_refused()
            try:
                wanted = gate._queued_wanted
                if wanted():
                    gate._tell(Queued, self)
                if older is not None:
                    gate._superseded(older, self)
                # To walk through the tasks above costs a tenth of a handover.
                seq = self.seq
                if seq <= LOOKS_AT_FIRST or admission.tasks_waiting == 1 or not seq % LOOKS_AT_EVERY:
                    gate._ancestors.look(self, task)
                if self.max_wait < inf or gate._alarms.until > self.arrived_at + gate._starvation_warning:
                    gate._alarms.watch()
            except BaseException:
                if self.state is _WAITING:
                    gate._cancelled(self, admission.cancel(self, gate._clock()))
                elif self.state is _GRANTED:  # type: ignore[unreachable] # mypy takes the state for settled
                    gate._wake(admission.release(self, gate._clock()))
                raise
            if self.state is _WAITING:
                abort = self._abort
                self.asker = task
                self.waiter = waiter = runtime.waiter(task, abort, put_off=not self.detached)
                try:
                    # The giver records the grant, so once this returns there is nothing left that could fail.
                    await runtime.sleep(waiter, abort)
                except BaseException:
                    if runtime.timed_out(waiter):
                        gate._outer_deadlines.has_cancelled(self.outer_deadline, runtime)
                    # asyncio throws coroutines away, and cancels what was granted.
                    if self.state is _GRANTED:  # type: ignore[comparison-overlap] # as below
                        gate._released(self, admission.release(self, clock()))  # type: ignore[unreachable]
                    raise
                self.waiter = self.asker = None
            elif self.state is _GRANTED:  # type: ignore[unreachable] # mypy takes the state for settled
                # A hook that was told of the wait has raised the capacity: the slot is here before the task slept.
                try:
                    await runtime.late_checkpoint()
                except BaseException:
                    gate._released(self, admission.release(self, clock()))
                    raise
            else:
                # A hook that was told of the wait has asked with the same key, or has closed the gate.
                await self._be_refused()
        # As _hold, without the call.
        if self.detached:
            self._hold_detached(task)
        else:
            self.task = task
            gate._owners[task] = self
            if self.hold_deadline < inf:
                self._scope = runtime.scope(deadline=self.hold_deadline)
                self._scope.__enter__()
        return self

    def _acquire_nowait(self) -> Self:
        """Take the slot if it can be had at once. Never a checkpoint."""
        gate = self.gate
        gate._bind()
        task = gate._runtime.current_task()
        if self.state is not _NEW or task in gate._owners:
            self._refuse()
        self._admission = gate._admission
        entered, older = self._admission.request_nowait(self, gate._clock())
        if older is not None:
            gate._oust(older)
        if not entered:
            gate._refused(self)
            if self.refusal == WOULD_BLOCK:
                raise self.dialect.would_block
            raise gate._refusal(self)
        self._hold(task)
        try:
            gate._tell(Granted, self)
            if older is not None:
                gate._superseded(older, self)
        except BaseException:  # as in _acquire
            self._undo()
            raise
        return self

    def _hold(self, task: SomeTask) -> None:
        """The slot was granted, and ``task`` owns it, or an object that the task has."""
        if self.detached:
            self._hold_detached(task)
            return
        self.task = task
        self.gate._owners[task] = self
        if self.hold_deadline < inf:
            self._scope = self.gate._runtime.scope(deadline=self.hold_deadline)
            self._scope.__enter__()

    def _abort(self, _: object) -> Abort:
        """The wait is cancelled: leave the queue, and settle, in this step."""
        gate = self.gate
        gate._outer_deadlines.look_more_closely()
        gate._cancelled(self, self._admission.cancel(self, gate._clock()))
        return Abort.SUCCEEDED

    def _be_mistaken(self) -> None:
        """This call is a mistake of the program: it counts in no fate, and who follows it must not go on."""
        self.state = TicketState.REJECTED
        self.refusal = "mistake"
        self.gate._board.changed()

    async def _be_refused(self) -> NoReturn:
        """The core has refused this call: raise what says so. Always a checkpoint."""
        gate = self.gate
        error = gate._refusal(self)
        if self.place is None:  # else it was told by whoever sent it away from the queue
            gate._refused(self)
        await gate._runtime.late_checkpoint()
        raise error

    def _hold_detached(self, task: SomeTask) -> None:
        raise NotImplementedError

    def _undo(self) -> None:
        """Give back what was just granted by :meth:`_acquire_nowait`."""
        raise NotImplementedError

    def _leave(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        """Leave a block: close its scope, if there is a hold budget, and give the slot back whatever happens."""
        scope = self._scope
        if scope is None:
            self._give_back()
            return None
        try:
            # May raise: a generator that was abandoned inside the block is closed from another task.
            suppress = scope.__exit__(exc_type, exc, tb)
        except BaseException:
            scope.deadline = inf  # nobody is there any more whom it could interrupt
            raise
        finally:
            self._give_back()
        if scope.cancelled_caught:
            name, limit = self.gate.name, self.hold_timeout
            raise self.dialect.too_slow(
                f"slot of gate {name!r} was held for longer than its hold_timeout of {limit:g} s"
            )
        return suppress

    def _give_back(self) -> None:
        """The block of an owned slot has ended."""
        gate = self.gate
        if self.state is TicketState.ORPHANED:
            return  # its task had ended before; it was reported then
        # Not the current task: a generator that was abandoned inside the block is closed from another one.
        if self.task is not None:
            gate._owners.pop(self.task, None)  # not there if its run has ended and the gate serves another
            self.task = None
        if self._loan is not None:
            gate._tied.add(self._loan)
            return
        gate._released(self, self._admission.release(self, gate._clock()))


class AsyncSlot(Slot):
    """What :meth:`Gate.slot` returns: ``async with`` it once; entering gives the slot itself."""

    __slots__ = ()

    __aenter__ = Slot._acquire

    # The three ways to forget "async with"; for type checkers they are as missing as they look.
    if not TYPE_CHECKING:

        def __enter__(self):
            """Say how it is done."""
            raise TypeError("a slot of Gate.slot() is entered with 'async with gate.slot():', not with 'with'")

        def __exit__(self, *_):
            """Never called."""

        def __await__(self):
            """Say how it is done."""
            raise TypeError("a slot of Gate.slot() is entered with 'async with gate.slot():', not with 'await'")

    @enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        """Give the slot back. Never a checkpoint. TooSlowError (TimeoutError): ``hold_timeout`` ended the body.

        Under asyncio, a cancellation that came after the grant is seen here if the body had no await.
        """
        if self._scope is not None or self._loan is not None or self.task is None:
            result = self._leave(exc_type, exc, tb)
            if self.gate._runtime.late and not isinstance(exc, GeneratorExit):
                await self.gate._runtime.deliver_late()  # noqa: ASYNC102
            return result  # noqa: ASYNC910
        # As _give_back, without the call: this is the path that nearly all calls take.
        gate = self.gate
        gate._owners.pop(self.task, None)
        self.task = None
        admission = self._admission
        clock = gate._clock
        granted = admission.release(self, clock())
        if granted:
            gate._released(self, granted)
        else:
            wanted = gate._released_wanted
            if wanted():
                gate._tell(Released, self)
        if gate._runtime.late and not isinstance(exc, GeneratorExit):
            await gate._runtime.deliver_late()  # noqa: ASYNC102
        return None  # noqa: ASYNC910


class SyncSlot(Slot):
    """What :meth:`Gate.slot_nowait` returns: ``with`` it once; entering gives the slot itself, or WouldBlock."""

    __slots__ = ()

    @enable_ki_protection
    def __enter__(self) -> Self:
        return self._acquire_nowait()

    if not TYPE_CHECKING:

        async def __aenter__(self):
            """Say how it is done. Never a checkpoint."""
            raise TypeError("a slot of Gate.slot_nowait() is entered with a plain 'with'")

        async def __aexit__(self, *_):
            """Never called. Never a checkpoint."""

    def _undo(self) -> None:
        self._leave(None, None, None)

    @enable_ki_protection
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        """Give the slot back. TooSlowError (TimeoutError): ``hold_timeout`` ended the body."""
        if self._scope is not None:
            return self._leave(exc_type, exc, tb)
        self._give_back()
        return None
