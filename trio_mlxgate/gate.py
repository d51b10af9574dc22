"""The gate on trio: it parks and reschedules tasks as ``core/admission.py`` decides, and decides nothing itself."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import outcome
import trio
from trio.lowlevel import current_task, current_trio_token, enable_ki_protection, reschedule

from trio_mlxgate.core.admission import Admission, TicketState
from trio_mlxgate.core.checks import check_capacity, check_seconds
from trio_mlxgate.errors import WaitTooLong
from trio_mlxgate.instrumentation import KINDS, Granted, LoggingHook, Overdue, Queued, Released, Starving
from trio_mlxgate.priority import DEFAULT_PRIORITY
from trio_mlxgate.slots import AsyncSlot, DetachedSlot, Loan, Slot, SyncSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio.lowlevel import Task, TrioToken

    from trio_mlxgate.core.admission import Passed
    from trio_mlxgate.core.statistics import GateStatistics
    from trio_mlxgate.instrumentation import Details, Hook

DEFAULT_HOOKS: Final[tuple[Hook, ...]] = (LoggingHook(),)
"""What a gate is given that names no hooks."""

_logger: Final = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Listener = tuple[Hook, Callable[[], bool]]


class Gate:
    """A capacity limiter with priorities: at most ``capacity`` bodies run, and the best waiter goes next.

    ::

        gate = Gate(1, name="macmini")
        async with gate.slot(Priority.FOREGROUND, hold_timeout=30) as slot:
            ...

    Strict priority: a waiter is passed by every later one of a better (lower) priority, and by nobody
    else; within a priority the order is first come, first served. What runs is never interrupted by who
    waits. Make one gate for each endpoint and send every call to that endpoint through it.

    A gate may be made anywhere, at module level too: it binds to the trio run that first uses it, and
    when that run has ended to the next, where it starts empty.

    Args:
      capacity: how many slots there are, an int >= 0; 0 lets nobody in until it is raised.
      name: what log lines and errors call this gate.
      starvation_warning: a waiter is reported when it has waited for so many seconds, while it waits.
      hooks: who is told of each step (see :mod:`trio_mlxgate.instrumentation`); default: logging.

    Raises:
      TypeError, ValueError: an argument isn't as described.
    """

    def __init__(
        self,
        capacity: int = 1,
        *,
        name: str = "mlx",
        starvation_warning: float = 300.0,
        hooks: Iterable[Hook] = DEFAULT_HOOKS,
    ) -> None:
        self.name = name
        self._starvation_warning = check_seconds("starvation_warning", starvation_warning)
        self._listeners: dict[type[Details], tuple[_Listener, ...]] = {}
        self._listen(tuple(hooks))
        self._admission: Admission[Slot] = Admission(
            check_capacity(capacity), starvation_warning=self._starvation_warning
        )
        self._token: TrioToken | None = None
        self._clock: Callable[[], float] = _no_clock
        # Which owned slot each task holds.
        self._owners: dict[Task, Slot] = {}
        # Detached slots and loans that only the task noted in them can give back.
        self._tied: set[DetachedSlot | Loan] = set()
        self._watch_scope: trio.CancelScope | None = None

    def __repr__(self) -> str:
        a = self._admission
        return f"<Gate {self.name!r}: {a.in_flight}/{a.capacity} in flight, {a.tasks_waiting} waiting>"

    # ---- asking ----

    def slot(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
    ) -> AsyncSlot:
        """A slot to be used once, with ``async with``: held while the body runs.

        Entering is always a checkpoint, leaving never is. If entering is cancelled nothing is held.
        Nothing can interrupt between the grant and the body: a cancellation that comes after the grant
        is seen at the body's first checkpoint.

        Args:
          priority: the lower goes first; :attr:`Priority.BACKGROUND` unless named.
          hold_timeout: how many seconds the body may take, from the grant on. When they are over the
            body is cancelled and leaving raises :class:`trio.TooSlowError`. Waiting uses none of it.
          max_wait: how many seconds the call may stand in the queue. 0: only if it need not wait.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          WaitTooLong: on entering, ``max_wait`` ended.
          RuntimeError: on entering, if this task already owns a slot of this gate, which would wait for
            itself, or if its own open responses hold all slots; if the slot was used before; or if the
            gate belongs to another run that is alive.
          trio.TooSlowError: on leaving, ``hold_timeout`` ended.
        """
        return AsyncSlot(self, priority, hold_timeout, max_wait)

    def slot_nowait(self, priority: int = DEFAULT_PRIORITY, *, hold_timeout: float = math.inf) -> SyncSlot:
        """A slot to be used once, with a plain ``with``: :meth:`slot` for those who will not wait.

        Neither entering nor leaving is a checkpoint. Entering raises :class:`trio.WouldBlock` if no slot is
        free, or if somebody waits for one.
        """
        return SyncSlot(self, priority, hold_timeout, 0.0)

    @enable_ki_protection
    async def acquire_detached(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        tied: bool = False,
    ) -> DetachedSlot:
        """Wait for a slot that belongs to no task: whoever has it gives it back with ``release()``.

        For things that outlive a block, such as an open response. Always a checkpoint; if it is cancelled
        nothing is held. ``hold_timeout`` interrupts nobody here: it sets :attr:`Slot.deadline`, for the
        holder to keep, and a slot kept beyond it is reported.

        Args:
          priority, hold_timeout, max_wait: as for :meth:`slot`.
          tied: only the asking task will give it back (or the one that last called ``adopt()``). If all slots
            of the gate are so tied to a task that asks for one more, in whichever way, it would wait for itself.

        Raises:
          WaitTooLong, TypeError, ValueError: as for :meth:`slot`.
          RuntimeError: as for :meth:`slot`.
        """
        slot = DetachedSlot(self, priority, hold_timeout, max_wait, tied)
        await slot._acquire()
        return slot

    if not TYPE_CHECKING:

        async def __aenter__(self):
            """Say how it is done. Never a checkpoint."""
            raise TypeError("a gate is entered slot by slot: 'async with gate.slot():'")

        async def __aexit__(self, *_):
            """Never called. Never a checkpoint."""

    def owned_slot(self) -> Slot | None:
        """The slot of this gate that the current task owns, or None. Must be called inside a trio run."""
        if not trio.lowlevel.in_trio_run():
            self._bind()  # says what is wrong
        return self._owners.get(current_task())

    # ---- looking and steering ----

    @property
    def capacity(self) -> int:
        """How many slots there are. Settable at any time from the gate's run, and when no run uses it.

        A raise lets waiters in at once, as many as fit; a fall lets the holders finish; 0 lets nobody in.
        Anything but an int >= 0 raises TypeError or ValueError and changes nothing.
        """
        return self._admission.capacity

    @capacity.setter
    @enable_ki_protection
    def capacity(self, capacity: int) -> None:
        check_capacity(capacity)
        if trio.lowlevel.in_trio_run():
            self._bind()
        else:
            self._check_run()
        self._wake(self._admission.set_capacity(capacity, self._clock()))

    @enable_ki_protection
    def statistics(self) -> GateStatistics:
        """A snapshot, exact in every scheduler step; never waits. To be asked in the gate's run, or outside any."""
        if trio.lowlevel.in_trio_run() and current_trio_token() is not self._token and self._run_is_over():
            self._bind()
        return self._admission.statistics(self._clock())

    # ---- for slots: the driver's side of the core ----

    def _bind(self) -> None:
        """Make sure that the gate belongs to the current run, starting empty if its last run is over."""
        if not trio.lowlevel.in_trio_run():
            raise RuntimeError(
                f"gate {self.name!r} works inside trio.run(); outside of it, and under asyncio, it can't"
            )
        token = current_trio_token()
        if token is self._token:
            return
        if not self._run_is_over():
            raise RuntimeError(f"{self!r} is in use by another trio run; each run needs a gate of its own")
        if self._token is not None:
            # What the ended run left behind is gone with it; its slots still point to the old state.
            self._admission = Admission(self._admission.capacity, starvation_warning=self._starvation_warning)
            self._owners = {}
            self._tied = set()
            self._watch_scope = None
        self._token = token
        self._clock = trio.lowlevel.current_clock().current_time

    def _check_run(self) -> None:
        """Raise RuntimeError if this is not called from the gate's run and that run is alive."""
        inside = trio.lowlevel.in_trio_run() and current_trio_token() is self._token
        if not inside and not self._run_is_over():
            raise RuntimeError(f"{self!r} is used from outside its run; go through trio.from_thread")

    def _run_is_over(self) -> bool:
        if self._token is None:
            return True
        try:
            self._token.run_sync_soon(_nothing, idempotent=True)
        except trio.RunFinishedError:
            return True
        return False

    def _wake(self, granted: list[Slot]) -> None:
        """Let the tasks run to which the core has granted slots."""
        for ticket in granted:
            if ticket.waiter is not None:
                reschedule(ticket.waiter)
        if granted and self._granted_wanted():
            for ticket in granted:
                self._tell(Granted, ticket)

    def _released(self, ticket: Slot, granted: list[Slot]) -> None:
        """A slot was given back, which let others in: let their tasks run, and only then tell anybody."""
        for other in granted:
            if other.waiter is not None:
                reschedule(other.waiter)
        wanted = self._handover_wanted
        if wanted():
            self._tell(Released, ticket)
            for other in granted:
                self._tell(Granted, other)

    def _waits_for_itself(self, task: Task) -> bool:
        """Whether every slot that is out is tied to ``task``, so that it would wait for itself."""
        return 0 < self._admission.in_flight == len(self._tied) and all(t.holder is task for t in self._tied)

    def _watch(self) -> None:
        """See to it that the next alarm of the core is heard, by a system task that lives while there are any.

        It sleeps until the earliest alarm that was ever set; if that one is gone when it wakes, it sleeps on
        or ends. So a queue that fills and empties all the time costs nothing here.
        """
        alarm = self._admission.next_alarm()
        if self._watch_scope is None:
            if alarm < math.inf:
                scope = trio.CancelScope(deadline=alarm)
                trio.lowlevel.spawn_system_task(self._keep_watch, scope, name=f"watch of gate {self.name!r}")
                self._watch_scope = scope
        elif alarm < self._watch_scope.deadline:
            self._watch_scope.deadline = alarm

    async def _keep_watch(self, scope: trio.CancelScope) -> None:
        admission = self._admission
        try:
            while True:
                with scope:
                    await trio.sleep_forever()
                self._act_on(admission.pass_time(self._clock()))
                alarm = admission.next_alarm()
                if alarm == math.inf:
                    return
                scope = self._watch_scope = trio.CancelScope(deadline=alarm)
        finally:
            if admission is self._admission:
                self._watch_scope = None

    def _act_on(self, passed: Passed[Slot]) -> None:
        for ticket in passed.expired:
            waited = self._clock() - ticket.arrived_at
            message = f"no slot of gate {self.name!r} within max_wait: waited {waited:.3g} s"
            assert ticket.waiter is not None
            reschedule(ticket.waiter, outcome.Error(WaitTooLong(message)))
        self._wake(passed.granted)
        for ticket in passed.starving:
            self._tell(Starving, ticket)
        for ticket in passed.overdue:
            self._tell(Overdue, ticket)

    def _listen(self, hooks: tuple[Hook, ...]) -> None:
        # The events of every call have a short way to hear that nobody listens.
        self._listeners = {kind: tuple((hook, hook.interest(kind)) for hook in hooks) for kind in KINDS}
        self._queued_wanted = _any_of(hooks, Queued)
        self._granted_wanted = _any_of(hooks, Granted)
        self._released_wanted = _any_of(hooks, Released)
        self._handover_wanted = _any_of(hooks, Released, Granted)

    def _tell(self, kind: type[Details], ticket: Slot) -> None:
        """Tell the hooks that want to know; one that raises is logged and taken out."""
        for hook, interested in self._listeners[kind]:
            try:
                if interested():
                    hook(self._describe(kind, ticket))
            except Exception:
                self._listeners = {
                    each: tuple(listener for listener in listeners if listener[0] is not hook)
                    for each, listeners in self._listeners.items()
                }
                _logger.exception("hook %r of gate %r failed and is not called any more", hook, self.name)

    def _describe(self, kind: type[Details], ticket: Slot) -> Details:
        now = self._clock()
        waiting = ticket.state is not TicketState.GRANTED and ticket.state is not TicketState.RELEASED
        return kind(
            gate=self.name,
            priority=ticket.priority,
            seq=ticket.seq,
            queue_length=self._admission.tasks_waiting,
            waited=now - ticket.arrived_at if waiting else ticket.waited,
            held=0.0 if waiting else now - ticket.granted_at,
        )


def _no_clock() -> float:
    """The time of a gate that no run has used: nothing has happened yet."""
    return 0.0


def _any_of(hooks: tuple[Hook, ...], *kinds: type[Details]) -> Callable[[], bool]:
    """A function that says whether any hook may want to be called for these kinds now. It never raises."""
    interests = tuple(hook.interest(*kinds) for hook in hooks)
    if not interests:
        return bool  # false without arguments, and the quickest callable there is
    if len(hooks) == 1 and type(hooks[0]) is LoggingHook:
        return interests[0]  # ours, which doesn't raise

    def wanted() -> bool:
        try:
            return any(interested() for interested in interests)
        except Exception:  # noqa: BLE001 - _tell will meet it again, and take the hook out
            return True

    return wanted


def _nothing() -> None:
    """Called in a run to see whether it is alive."""
