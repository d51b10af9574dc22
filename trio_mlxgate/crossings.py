"""One call from another run to a gate: it sends the messages that ``core/crossing.py`` decides on, and acts on them.

What is done in the owner's run and what in the caller's stands apart, and neither touches what is the other's.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import attrs
import outcome
from trio.lowlevel import Abort, enable_ki_protection

from trio_mlxgate.core.crossing import (
    OPEN,
    CallerDoes,
    CallerEvent,
    CallerState,
    OwnerDoes,
    OwnerEvent,
    OwnerState,
    caller_step,
    owner_step,
)
from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.detached_slots import DetachedSlot
from trio_mlxgate.instrumentation import Granted, Queued

if TYPE_CHECKING:
    from trio_mlxgate.outposts import Outpost, PortalDetachedSlot, PortalSlot
    from trio_mlxgate.parties import Owner
    from trio_mlxgate.runtime import Waiter


@attrs.frozen
class Grant:
    """What the caller is told of a grant."""

    at: float
    """When it was granted, in seconds of ``time.monotonic()``: the clocks of two runs have nothing in common."""

    waited: float
    """For how many seconds the call stood in the queue."""

    seq: int
    """The number of the call."""


@attrs.frozen
class Above:
    """What the tasks above the one that asks hold: it may be waiting for itself."""

    parent: str
    """The name of the nearest of them."""

    held: list[Crossing]
    site: tuple[str, int]
    """File and line that asked."""


class Crossing:
    """A call of a task that doesn't live in the gate's run. Used once."""

    def __init__(
        self, asked: PortalSlot | PortalDetachedSlot, task_name: str, own: list[Crossing], above: Above | None
    ) -> None:
        outpost = asked.gate
        self._outpost: Outpost = outpost  # type: ignore[assignment] # of such a slot it is one
        self._owner: Owner = self._outpost.owner
        self._task_name = task_name
        # The caller's.
        self.caller_state = CallerState.ASKED
        self._asked = asked
        self._waiter: Waiter | None = None
        self._grant: Grant | None = None
        # The owner's.
        self.owner_state = OwnerState.WAITING
        self._own = own
        self._above = above
        self.slot = Arrival(self)

    # ---- in the caller's run ----

    async def granted(self) -> Grant:
        """Ask, and wait for the grant. Always a checkpoint; if it is cancelled, or raises, nothing is held."""
        outpost = self._outpost
        runtime = outpost._runtime
        if not self._owner.tell(self._arrive):
            await runtime.cancel_shielded_checkpoint()
            raise outpost.owner_gone()
        # The answer comes in a later pass, so that it can't be here before there is somebody to be woken.
        self._waiter = waiter = runtime.waiter(runtime.current_task(), self._abort)
        outpost.waiting.add(self)
        outpost.watch()
        try:
            await runtime.sleep(waiter, self._abort)
        except BaseException:  # refused, cancelled; or the coroutine is thrown away, which nobody else tells us
            self._on_caller(CallerEvent.CANCELS)
            if runtime.timed_out(waiter):
                outpost._outer_deadlines.has_cancelled(self._asked.outer_deadline, runtime)
            raise
        finally:
            outpost.waiting.discard(self)
            self._waiter = None
        self._on_caller(CallerEvent.TAKES)
        assert self._grant is not None
        return self._grant

    def leave(self) -> None:
        """The slot is given back."""
        self._on_caller(CallerEvent.LEAVES)

    def lose(self) -> None:
        """The task that owned the slot has ended."""
        self._on_caller(CallerEvent.IS_LOST)

    def see_owner_gone(self) -> None:
        """The owner's run has ended without a word."""
        self._hear(CallerEvent.HEARS_END, outcome.Error(self._outpost.owner_gone()))

    def _abort(self, _: object) -> Abort:
        self._on_caller(CallerEvent.CANCELS)
        self._outpost._outer_deadlines.look_more_closely()
        return Abort.SUCCEEDED

    def _on_caller(self, event: CallerEvent) -> CallerDoes:
        self.caller_state, does = caller_step(self.caller_state, event)
        if does is CallerDoes.SAY_GIVEN_UP:
            self._owner.tell(self._hear_given_up)
        elif does is CallerDoes.SAY_RETURNED:
            if not self._owner.tell(self._hear_returned):
                self._outpost.warn_of_unkept_bound(self._task_name)
        elif does is CallerDoes.SAY_LOST and not self._owner.tell(self._hear_lost):
            self._outpost.warn_of_unkept_bound(self._task_name)
        return does

    def _hear(self, event: CallerEvent, result: outcome.Outcome[None]) -> None:
        if self._on_caller(event) is CallerDoes.WAKE:
            self._outpost._runtime.wake(self._waiter, result)

    @enable_ki_protection
    def _hear_granted(self, grant: Grant) -> None:
        self._grant = grant
        self._hear(CallerEvent.HEARS_GRANT, outcome.Value(None))

    @enable_ki_protection
    def _hear_refused(self, error: Exception) -> None:
        self._hear(CallerEvent.HEARS_REFUSAL, outcome.Error(error))

    @enable_ki_protection
    def _hear_end(self) -> None:
        self.see_owner_gone()

    # ---- in the owner's run ----

    @enable_ki_protection
    def _arrive(self) -> None:
        """The call arrives, in the order in which the caller's run has asked."""
        owner = self._owner
        if not owner.has_gate():
            self._on_owner(OwnerEvent.RUN_ENDS)
            return
        owner.add(self)
        try:
            self.slot.arrive(self._own, self._above)
        except Exception as error:  # noqa: BLE001 - the caller's
            self._refuse(error)
            return
        except BaseException:
            self._on_owner(OwnerEvent.RUN_ENDS)
            raise
        if self.slot.state is not TicketState.WAITING:
            self._settle()
            return
        try:
            task = owner.runtime.spawn(self._wait, f"{self._task_name} of another run", owner.context())
        except RuntimeError:  # the run is at its very end
            self.slot.let_go()
            self._on_owner(OwnerEvent.RUN_ENDS)
        else:
            owner.runtime.when_over(task, self._see_task_over)

    @enable_ki_protection
    async def _wait(self) -> None:  # noqa: ASYNC910 - a task, which nobody awaits
        """A task: wait in the caller's name. A checkpoint, unless the wait has ended before it began."""
        try:
            await self.slot.wait()
        except Exception as error:  # noqa: BLE001 - the caller's
            self._refuse(error)
        except BaseException:
            if self.owner_state is OwnerState.WAITING:
                self._on_owner(OwnerEvent.RUN_ENDS)
            raise
        else:
            self._settle()

    def _see_task_over(self) -> None:
        """asyncio may cancel a task before it has begun."""
        if self.owner_state is OwnerState.WAITING:
            self.slot.let_go()
            self._on_owner(OwnerEvent.RUN_ENDS)

    def _settle(self) -> None:
        """The wait has ended: tell the caller how, unless it wants to know no more."""
        if self.owner_state is not OwnerState.WAITING:
            return
        if self.slot.state is TicketState.GRANTED:
            self._on_owner(OwnerEvent.CORE_GRANTS)
        else:
            self._refuse(self.slot.refused())

    def _refuse(self, error: Exception) -> None:
        if self.owner_state is OwnerState.WAITING:
            # Without the frames of this run, which are no news to the caller and would be kept.
            self._on_owner(OwnerEvent.CORE_REFUSES, error.with_traceback(None))

    def _on_owner(self, event: OwnerEvent, error: Exception | None = None) -> None:
        self.owner_state, does = owner_step(self.owner_state, event)
        if self.owner_state not in OPEN:
            self._owner.forget(self)
        tell = self._outpost.party.tell
        if does is OwnerDoes.SAY_GRANTED:
            if not tell(partial(self._hear_granted, self.slot.grant())):
                self._on_owner(OwnerEvent.SEES_CALLER_GONE)
        elif does is OwnerDoes.SAY_REFUSED:
            assert error is not None
            tell(partial(self._hear_refused, error))
        elif does is OwnerDoes.SAY_END:
            tell(self._hear_end)
        elif does is OwnerDoes.LET_GO:
            self.slot.let_go()
        elif does is OwnerDoes.TAKE_BACK:
            self.slot.be_taken_back(self._task_name)

    @enable_ki_protection
    def _hear_given_up(self) -> None:
        self._on_owner(OwnerEvent.HEARS_GIVEN_UP)

    @enable_ki_protection
    def _hear_returned(self) -> None:
        self._on_owner(OwnerEvent.HEARS_RETURNED)

    @enable_ki_protection
    def _hear_lost(self) -> None:
        self._on_owner(OwnerEvent.HEARS_LOST)

    def see_caller_gone(self) -> None:
        """The caller's run has ended without a word."""
        waited = self.owner_state is OwnerState.WAITING
        self._on_owner(OwnerEvent.SEES_CALLER_GONE)
        if waited:
            # A loop that stood still may go on in another thread after all.
            self._outpost.party.runtime.soon_from_anywhere(self._hear_end)


class Arrival(DetachedSlot):
    """What stands in the queue of the gate for a call from another run. All of it is the owner's."""

    __slots__ = ()

    def __init__(self, crossing: Crossing) -> None:
        asked = crossing._asked
        supersede = None if asked.supersede is None else asked.supersede.key
        owner = crossing._owner
        # Whether a deadline runs around the wait is looked at where the caller is.
        super().__init__(
            owner.gate,
            asked.priority,
            asked.hold_timeout,
            asked.max_wait,
            supersede,
            outer_deadline="allow",
            tied=False,
        )
        self.dialect = asked.dialect
        self._admission = owner.admission

    def arrive(self, own: list[Crossing], above: Above | None) -> None:
        """Ask the core: :meth:`Slot._acquire` without a task, and so without its checkpoints.

        Raises:
          RuntimeError: it would wait for the slots in ``own``, which the caller itself holds.
        """
        gate, admission = self.gate, self._admission
        held = _still_held(own)
        if held and not admission.admits(self.priority) and admission.blocked_by(held, self.priority):
            self._be_mistaken()
            raise RuntimeError(
                f"all slots of gate {gate.name!r} are held by open responses of this task, so that it would wait for "
                "itself: read responses to their end or close them first, or read them in a task of their own"
            )
        older = admission.request(self, gate._clock())
        if older is not None:
            gate._oust(older)
        try:
            if self.state is TicketState.GRANTED:
                gate._tell(Granted, self)
            elif self.state is TicketState.WAITING:
                gate._tell(Queued, self)
            else:
                gate._refused(self)
            if older is not None:
                gate._superseded(older, self)
            if self.state is TicketState.WAITING and above is not None:
                holders = _still_held(above.held)
                if holders and admission.blocked_by(holders, self.priority):
                    gate._ancestors.report(self, above.parent, above.site)
            gate._alarms.watch()
        except BaseException:  # not an Exception of a hook, but SystemExit and its kind
            self.let_go()
            raise

    async def wait(self) -> None:
        """Sleep until the wait ends, however it does. A checkpoint, unless it has ended before."""
        if self.state is not TicketState.WAITING:
            return  # noqa: ASYNC910 - the task that waits for this is nobody's
        runtime = self.gate._runtime
        self.asker = task = runtime.current_task()
        self.waiter = waiter = runtime.waiter(task, self._abort)
        try:
            await runtime.sleep(waiter, self._abort)
        finally:
            self.waiter = self.asker = None

    def refused(self) -> Exception:
        """What says why it was refused."""
        return self.gate._refusal(self)

    def grant(self) -> Grant:
        """What the caller is told."""
        since = self.gate._clock() - self.granted_at
        return Grant(time.monotonic() - since, self.waited, self.seq)

    def let_go(self) -> None:
        """Leave the queue, or give back what was granted, if it isn't done yet."""
        if not self._is_the_gates():
            return
        gate = self.gate
        if self.state is TicketState.WAITING:
            granted = self._admission.cancel(self, gate._clock())
            if self.waiter is not None:
                gate._runtime.wake(self.waiter, outcome.Value(None))
            gate._cancelled(self, granted)
        elif self.state is TicketState.GRANTED:
            self.release()

    def be_taken_back(self, task_name: str) -> None:
        """Nobody is left who would give it back."""
        if self._is_the_gates():
            self.gate._take_back(self, task_name)

    def keep_until(self, deadline: float) -> None:
        """Report the slot if it is held beyond this time on the owner's clock."""
        if self._is_the_gates() and self.state is TicketState.GRANTED:
            self._admission.set_deadline(self, deadline)
            self.gate._alarms.watch()

    def _is_the_gates(self) -> bool:
        # Else the gate serves another run by now.
        return self._admission is self.gate._admission


def _still_held(crossings: list[Crossing]) -> list[Arrival]:
    return [crossing.slot for crossing in crossings if crossing.slot.state is TicketState.GRANTED]
