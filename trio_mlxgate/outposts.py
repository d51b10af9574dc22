"""A gate as the tasks of another run have it: one outpost of it for each run, and what they take there.

An outpost is a driver without a core: it knows the tasks of its own run and what they hold, and all that is to be
decided it sends to the owner, see ``crossings.py``. So what a slot does after its grant is the same here and there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeVar, cast

import outcome
from trio.lowlevel import Abort, current_trio_token, enable_ki_protection

from trio_mlxgate.call_sites import call_site
from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.crossings import Above, Crossing
from trio_mlxgate.detached_slots import DetachedSlot
from trio_mlxgate.dialects import ANYIO, TRIO
from trio_mlxgate.driver import Driver
from trio_mlxgate.parties import Lookout, Party
from trio_mlxgate.runs import runtime_of
from trio_mlxgate.slots import AsyncSlot, Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.core.admission import Admission
    from trio_mlxgate.dialects import Dialect
    from trio_mlxgate.instrumentation import CallDetails, Details
    from trio_mlxgate.parties import Owner
    from trio_mlxgate.runtime import SomeTask, Waiter

T = TypeVar("T")

_logger: Final = logging.getLogger(__name__)


class Outpost(Driver):
    """A gate in a run that is not its own."""

    _dialect: ClassVar[Dialect]

    def __init__(self, owner: Owner, token: object) -> None:
        gate = owner.gate
        super().__init__(
            gate.name,
            cast("Admission[Slot]", _Errands()),
            starvation_warning=math.inf,
            outer_deadline=gate._outer_deadlines._policy,
            strict=False,
            hooks=(),
        )
        self.owner = owner
        self._start_empty(runtime_of(token))
        self._runtime.watch(self)
        self.party = Party(self._runtime)
        self.waiting: set[Crossing | Question[Any]] = set()
        """Who waits for an answer of the owner's."""
        self._lookout = Lookout(self._runtime, self._look, f"owner of gate {gate.name!r}")

    def __repr__(self) -> str:
        return f"<Gate {self.name!r} as another run has it>"

    def watch(self) -> None:
        """Somebody waits for the owner."""
        self._lookout.watch()

    def _look(self) -> bool:
        if self.waiting and self.owner.is_gone():
            for waiting in list(self.waiting):
                waiting.see_owner_gone()
        return bool(self.waiting)

    def owner_gone(self) -> Exception:
        """What is raised when there is nobody any more who could grant a slot."""
        return self._dialect.has_finished(
            f"the run to which gate {self.name!r} belongs has ended, so that nobody can grant its slots; a new run has "
            "a portal of its own"
        )

    def warn_of_unkept_bound(self, task_name: str) -> None:
        """A slot was left after the end of the owner's run."""
        _logger.warning(
            "%s has left its slot of gate %r after the end of the run to which the gate belongs: since then nobody has "
            "kept the bound",
            task_name,
            self.name,
        )

    def crossing_for(self, slot: PortalSlot | PortalDetachedSlot, task: SomeTask) -> Crossing:
        """A call of the current task, with what it and those above it hold: the owner must know."""
        runtime = self._runtime
        own: list[Crossing] = []
        above = None
        if self._tied:
            own = _crossings_of(self._tied_to(task) + self._held_by_served_thread())
        if self._owners or self._tied:
            parent, held = self._ancestors.held_above(task)
            if parent is not None:
                above = Above(runtime.name_of(parent), _crossings_of(held), call_site(runtime))
        return Crossing(slot, runtime.name_of(task), own, above)

    # ---- what a driver does otherwise ----

    def _bind(self) -> None:
        if not self._is_at_home():
            raise RuntimeError("a slot is entered in the event loop, or the trio run, in which the portal was asked")

    def _released(self, ticket: Slot, granted: list[Slot]) -> None:
        """The owner tells of it."""

    def _take_back(self, slot: Slot, task_name: str) -> None:  # noqa: ARG002 - it knows the name
        slot._admission.take_back(slot, self._clock())

    def _tell(self, kind: type[CallDetails], ticket: Slot, **more: Any) -> None:
        call = _crossing_of(ticket)
        self.owner.tell(lambda: self.owner.gate._tell(kind, call.slot, **more))

    def _tell_of_gate(self, kind: type[Details], **more: Any) -> None:
        self.owner.tell(lambda: self.owner.gate._tell_of_gate(kind, **more))


class TrioOutpost(Outpost):
    """In a trio run."""

    _dialect = TRIO
    _current_run = staticmethod(current_trio_token)


class AsyncioOutpost(Outpost):
    """In an event loop of asyncio."""

    _dialect = ANYIO
    _current_run = staticmethod(asyncio.get_running_loop)


class _Errands:
    """In place of a core: what becomes of a slot after its grant is told to the owner."""

    in_flight = capacity = tasks_waiting = 0

    def release(self, ticket: Slot, now: float) -> list[Slot]:  # noqa: ARG002 - see Admission
        if ticket.state is not TicketState.GRANTED:
            raise RuntimeError(f"this slot is not held: {ticket!r}")
        ticket.state = TicketState.RELEASED
        _crossing_of(ticket).leave()
        return []

    def take_back(self, ticket: Slot, now: float) -> list[Slot]:  # noqa: ARG002 - see Admission
        ticket.state = TicketState.ORPHANED
        _crossing_of(ticket).lose()
        return []

    def set_deadline(self, ticket: Slot, deadline: float) -> None:
        ticket.hold_deadline = deadline
        _keep_until(ticket, deadline)

    def lend(self, ticket: Slot, deadline: float) -> None:
        ticket.detached = True
        _keep_until(ticket, deadline)

    def end_loan(self, ticket: Slot) -> None:
        ticket.detached = False
        _keep_until(ticket, ticket.hold_deadline)

    def next_alarm(self) -> float:
        return math.inf

    def outlook(self, ticket: Slot, now: float) -> None:
        """Nothing is known of the queue here."""


def _keep_until(ticket: Slot, deadline: float) -> None:
    """Let the owner report the slot if it is held beyond this time on the clock of the caller."""
    crossing = _crossing_of(ticket)
    outpost = cast("Outpost", ticket.gate)
    # The clocks of two runs have nothing in common.
    at = deadline - outpost._clock() + time.monotonic()

    def keep() -> None:
        crossing.slot.keep_until(outpost.owner.runtime.clock() + at - time.monotonic())

    outpost.owner.tell(keep)


def _crossing_of(ticket: Slot) -> Crossing:
    crossing = cast("PortalSlot | PortalDetachedSlot", ticket).crossing
    assert crossing is not None
    return crossing


def _crossings_of(slots: list[Slot]) -> list[Crossing]:
    return [_crossing_of(slot) for slot in slots]


# ---- slots ----


async def _acquire(slot: PortalSlot | PortalDetachedSlot) -> None:
    """Wait for the slot. Always a checkpoint, unless it raises RuntimeError; cancelled, it holds nothing."""
    outpost = cast("Outpost", slot.gate)
    outpost._bind()
    runtime = outpost._runtime
    task = runtime.current_task()
    if slot.state is not TicketState.NEW or task in outpost._owners:
        slot._refuse()
    deadlines = outpost._outer_deadlines
    deadlines.due -= 1
    if deadlines.due <= 0 or slot.outer_deadline is not None:
        try:
            deadlines.look(slot.outer_deadline, runtime)
        except BaseException:
            slot._be_mistaken()
            raise
    slot.state = TicketState.ASKING
    slot._admission = outpost._admission
    slot.asker = task
    try:
        # Who is cancelled when it asks never enters.
        await runtime.checkpoint_if_cancelled()
        for _ in range(2 if outpost._tied_to(task) else 0):
            # As in Slot._acquire: a task that was just started to read a response hasn't come to say so.
            await runtime.checkpoint()
        slot.crossing = outpost.crossing_for(slot, task)
        slot.state = TicketState.WAITING
        grant = await slot.crossing.granted()
    except Exception:
        slot.state = TicketState.REJECTED
        slot.refusal = "refused"
        raise
    except BaseException:
        slot.state = TicketState.CANCELLED
        raise
    finally:
        slot.asker = None
    slot.state = TicketState.GRANTED
    slot.seq = grant.seq
    # The hold budget starts at the grant, which the owner has made a little earlier.
    slot.granted_at = runtime.clock() - max(0.0, time.monotonic() - grant.at)
    slot.arrived_at = slot.granted_at - grant.waited
    slot.hold_deadline = slot.granted_at + slot.hold_timeout
    slot._hold(task)


class PortalSlot(AsyncSlot):
    """What :meth:`Portal.slot` returns outside of the gate's own run: ``async with`` it once.

    It is an :class:`trio_mlxgate.slots.AsyncSlot`, with ``waited``, ``deadline`` (on the clock of this run) and
    ``lend()``. Its ``gate`` stands for the gate in this run, and has its ``name``. What isn't known here is the queue:
    ``position`` and ``estimated_wait`` are None.
    """

    __slots__ = ("crossing",)

    crossing: Crossing | None

    @enable_ki_protection
    async def _acquire(self) -> Self:
        """Wait for the slot. Always a checkpoint, unless it raises RuntimeError; cancelled, it holds nothing."""
        await _acquire(self)
        return self

    __aenter__ = _acquire


class PortalDetachedSlot(DetachedSlot):
    """What :meth:`Portal.acquire_detached` gives outside of the gate's run: to be released in the run that asked."""

    __slots__ = ("crossing",)

    crossing: Crossing | None

    @enable_ki_protection
    async def _acquire(self) -> Self:
        """Wait for the slot. Always a checkpoint, unless it raises RuntimeError; cancelled, it holds nothing."""
        await _acquire(self)
        return self


# ---- questions ----


class Question(Generic[T]):
    """Something that only the owner's run can tell."""

    def __init__(self, outpost: Outpost, tell: Callable[[], T]) -> None:
        self._outpost = outpost
        self._tell = tell
        self._waiter: Waiter | None = None

    @enable_ki_protection
    async def answer(self) -> T:
        """Ask, and wait for the answer. Always a checkpoint; it may be cancelled."""
        outpost = self._outpost
        runtime = outpost._runtime
        await runtime.checkpoint_if_cancelled()
        if not outpost.owner.tell(self._ask):
            await runtime.cancel_shielded_checkpoint()
            raise outpost.owner_gone()
        self._waiter = waiter = runtime.waiter(runtime.current_task(), self._abort)
        outpost.waiting.add(self)
        outpost.watch()
        try:
            answer: T = await runtime.sleep(waiter, self._abort)
        finally:
            self._waiter = None
            outpost.waiting.discard(self)
        return answer

    def see_owner_gone(self) -> None:
        """The owner's run has ended without a word."""
        self._hear(outcome.Error(self._outpost.owner_gone()))

    def _abort(self, _: object) -> Abort:
        self._waiter = None
        return Abort.SUCCEEDED

    @enable_ki_protection
    def _ask(self) -> None:
        self._outpost.party.tell(partial(self._hear, outcome.capture(self._tell)))

    @enable_ki_protection
    def _hear(self, result: outcome.Outcome[T]) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._outpost._runtime.wake(waiter, result)
