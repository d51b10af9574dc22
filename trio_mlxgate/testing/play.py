"""Plays any sequence of events against a gate, and checks the laws of the gate at each of them.

The laws are those that any implementation must keep; what is played comes from elsewhere: from
:func:`trio_mlxgate.testing.check_gate`, or from a property-based test that draws it.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_mlxgate.errors import WaitTooLong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from trio_mlxgate.core.statistics import GateStatistics


class GateLike(Protocol):
    """What the laws ask of an implementation: the face of :class:`trio_mlxgate.Gate`."""

    @property
    def capacity(self) -> int:
        """As :attr:`trio_mlxgate.Gate.capacity`."""
        ...

    @capacity.setter
    def capacity(self, capacity: int) -> None: ...

    def slot(
        self, priority: int = ..., *, hold_timeout: float = ..., max_wait: float = ...
    ) -> AbstractAsyncContextManager[object]:
        """As :meth:`trio_mlxgate.Gate.slot`."""
        ...

    def slot_nowait(self, priority: int = ..., *, hold_timeout: float = ...) -> AbstractContextManager[object]:
        """As :meth:`trio_mlxgate.Gate.slot_nowait`."""
        ...

    def statistics(self) -> GateStatistics:
        """As :meth:`trio_mlxgate.Gate.statistics`."""
        ...


@attrs.frozen
class Arrive:
    """A task asks for a slot. It keeps it until it is told to end."""

    priority: int
    max_wait: float = math.inf
    hold_timeout: float = math.inf
    nowait: bool = False


@attrs.frozen
class End:
    """The ``index``-th call (modulo their number) that is inside leaves its body, by an exception if ``fail``."""

    index: int
    fail: bool = False


@attrs.frozen
class Cancel:
    """The ``index``-th call (modulo their number) that isn't over is cancelled, wherever it stands."""

    index: int


@attrs.frozen
class SetCapacity:
    """The capacity changes."""

    capacity: int


@attrs.frozen
class Tick:
    """One scheduler pass. Without it, events happen within one pass: that is where races live."""


@attrs.frozen
class Settle:
    """Everything that can run has run."""


@attrs.frozen
class Sleep:
    """Time passes on the virtual clock, in seconds."""

    seconds: float


Event = Arrive | End | Cancel | SetCapacity | Tick | Settle | Sleep


class LawBroken(AssertionError):
    """An implementation of the gate broke one of its laws; the message says which, and how."""


class _Boom(Exception):
    """What a body raises that is told to fail."""


@attrs.define(eq=False)
class _Call:
    number: int
    arrive: Arrive
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    end: trio.Event = attrs.field(factory=trio.Event)
    fail: bool = False
    asked: bool = False
    inside: bool = False
    fate: str | None = None
    over: bool = False
    waited_since: int = -1  # the number of the settle at which it was first seen to wait


class _Player:
    def __init__(self, gate: GateLike) -> None:
        self.gate = gate
        self.calls: list[_Call] = []
        self.releasing: _Call | None = None
        self.settles = 0
        self.passes = 0
        self.passed: list[tuple[int, _Call, _Call]] = []
        self.last = gate.statistics()

    def require(self, holds: bool, law: str, what: str) -> None:
        if not holds:
            raise LawBroken(f"law {law}: {what}; {self.gate.statistics()}")

    def observe(self) -> None:
        """To be called at every step: what must hold at any moment."""
        now = self.gate.statistics()
        self.require(self.releasing is None, "5", "there is a checkpoint while a slot is given back")
        self.require(
            now.admitted == self.last.admitted or now.in_flight <= now.capacity,
            "1",
            "a slot was granted although none was free",
        )
        self.require(
            not (now.in_flight < now.capacity and now.tasks_waiting), "7", "a slot is free and somebody waits for it"
        )
        self.require(
            sum(now.waiting_by_priority.values()) == now.tasks_waiting, "16", "the waiters of the classes don't add up"
        )
        inside = sum(call.inside for call in self.calls)
        self.require(inside <= now.in_flight, "2", f"{inside} bodies are inside")
        self.last = now

    def observe_settled(self) -> None:
        """What must hold when everything that can run has run."""
        self.settles += 1
        self.observe()
        self.judge_order(settled=True)
        now = self.last
        inside = [call for call in self.calls if call.inside]
        waiting = [call for call in self.calls if call.asked and call.fate is None]
        self.require(len(inside) == now.in_flight, "2", f"{len(inside)} bodies are inside")
        self.require(len(waiting) == now.tasks_waiting, "16", f"{len(waiting)} calls are waiting")
        by_priority: dict[int, int] = {}
        for call in sorted(waiting, key=lambda call: call.arrive.priority):
            by_priority[call.arrive.priority] = by_priority.get(call.arrive.priority, 0) + 1
        self.require(dict(now.waiting_by_priority) == by_priority, "16", f"{by_priority} calls are waiting")
        for fate, count in (("admitted", now.admitted), ("cancelled", now.cancelled), ("rejected", now.rejected)):
            seen = sum(call.fate == fate for call in self.calls)
            self.require(seen == count, "4", f"{seen} calls were {fate}")
        for call in waiting:
            if call.waited_since < 0:
                call.waited_since = self.settles

    def entered(self, call: _Call) -> None:
        call.inside = True
        call.fate = "admitted"
        self.observe()
        mine = (call.arrive.priority, call.waited_since if call.waited_since >= 0 else math.inf)
        for other in self.calls:
            # Seen to wait when all was settled last: whoever enters now was granted its slot after that.
            if other.waited_since >= 0 and mine > (other.arrive.priority, other.waited_since) and _waits(other):
                self.passed.append((self.passes, call, other))

    def judge_order(self, *, settled: bool) -> None:
        """Who passed a better waiter? One that was granted in the same step enters a scheduler pass later at most."""
        undecided = []
        for since, call, other in self.passed:
            if not settled and self.passes < since + 2:
                undecided.append((since, call, other))
                continue
            self.require(not _waits(other), "11", f"{call.arrive} came in while {other.arrive} was waiting")
        self.passed = undecided

    async def call(self, call: _Call) -> None:
        """One call, from asking to its end; says of itself what became of it. A checkpoint if the call is one."""
        try:
            with call.scope:
                await self._call(call)
        finally:
            if self.releasing is call:
                self.releasing = None
            call.over = True

    async def _call(self, call: _Call) -> None:  # noqa: ASYNC910 - some kinds of call end at once
        arrive, gate = call.arrive, self.gate
        asked_at = trio.current_time()
        entered_at = math.nan
        slot: AbstractAsyncContextManager[object]
        if arrive.nowait:
            slot = nullcontext(None)
        else:
            slot = gate.slot(arrive.priority, hold_timeout=arrive.hold_timeout, max_wait=arrive.max_wait)
        cancelled_before = call.scope.cancel_called
        call.asked = True
        try:
            async with slot:
                with (
                    gate.slot_nowait(arrive.priority, hold_timeout=arrive.hold_timeout)
                    if arrive.nowait
                    else nullcontext(None)
                ):
                    self.require(
                        arrive.nowait or not cancelled_before, "15", f"call {call.number} entered although cancelled"
                    )
                    entered_at = trio.current_time()
                    self.entered(call)
                    try:
                        await call.end.wait()
                        if call.fail:
                            raise _Boom
                    finally:
                        call.inside = False
                        self.releasing = call
        except _Boom:
            pass
        except trio.WouldBlock:
            call.fate = "rejected"
        except WaitTooLong:
            call.fate = "rejected"
            waited = trio.current_time() - asked_at
            self.require(_close(waited, arrive.max_wait), "14", f"max_wait={arrive.max_wait} took {waited} s")
        except trio.TooSlowError:
            held = trio.current_time() - entered_at
            self.require(_close(held, arrive.hold_timeout), "14", f"hold_timeout={arrive.hold_timeout} took {held} s")
        except trio.Cancelled:
            if call.fate is None:
                call.fate = "cancelled"
            raise

    async def play(self, events: Iterable[Event]) -> None:
        """Play all events, then let everybody finish, and see that nothing was lost. Always a checkpoint."""
        async with trio.open_nursery() as nursery:
            for event in events:
                await self._play(event, nursery)
                self.observe()
            await self._finish(nursery)

    async def _play(self, event: Event, nursery: trio.Nursery) -> None:  # noqa: ASYNC910 - most events are no checkpoint
        match event:
            case Arrive():
                call = _Call(len(self.calls), event)
                self.calls.append(call)
                nursery.start_soon(self.call, call)
            case End(index, fail):
                inside = [call for call in self.calls if call.inside and not call.end.is_set()]
                if inside:
                    call = inside[index % len(inside)]
                    call.fail = fail
                    call.end.set()
            case Cancel(index):
                alive = [call for call in self.calls if not call.over and not call.scope.cancel_called]
                if alive:
                    alive[index % len(alive)].scope.cancel()
            case SetCapacity(capacity):
                self.gate.capacity = capacity
            case Tick():
                await trio.lowlevel.checkpoint()
                self.passes += 1
                self.judge_order(settled=False)
            case Settle():
                await wait_all_tasks_blocked()
                self.observe_settled()
            case Sleep(seconds):
                await trio.sleep(seconds)
                await wait_all_tasks_blocked()
                self.observe_settled()

    async def _finish(self, nursery: trio.Nursery) -> None:
        await wait_all_tasks_blocked()
        self.observe_settled()
        self.gate.capacity = max(1, self.gate.capacity)
        self.observe()
        while any(not call.over for call in self.calls):
            await wait_all_tasks_blocked()
            self.observe_settled()
            for call in self.calls:
                if call.inside:
                    call.end.set()
        capacity = self.gate.capacity
        last = [_Call(len(self.calls) + n, Arrive(0)) for n in range(capacity + 1)]
        self.calls += last
        for call in last:
            nursery.start_soon(self.call, call)
        await wait_all_tasks_blocked()
        self.observe_settled()
        inside = sum(call.inside for call in last)
        self.require(inside == capacity, "3", f"of {capacity} slots {inside} are left at the end")
        for call in last:
            call.end.set()
        await wait_all_tasks_blocked()
        self.observe_settled()
        now = self.last
        self.require(now.in_flight == now.tasks_waiting == 0, "3", "all calls have ended")
        self.require(now.longest_wait == 0.0, "16", "nobody waits")


def _waits(call: _Call) -> bool:
    return call.asked and call.fate is None and not call.scope.cancel_called


def _close(seconds: float, expected: float) -> bool:
    return math.isclose(seconds, expected, rel_tol=1e-9, abs_tol=1e-9)


def play(factory: Callable[[int], GateLike], capacity: int, events: Iterable[Event]) -> None:
    """Make a gate of that ``capacity`` in a trio run on a virtual clock, play ``events`` against it, check the laws.

    Raises:
      LawBroken: the gate broke a law.
    """

    async def main() -> None:  # a checkpoint, always
        await _Player(factory(capacity)).play(events)

    try:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        broken = _first_broken(group)
        if broken is None:
            raise
        raise broken from None


def _first_broken(error: BaseException) -> LawBroken | None:
    if isinstance(error, LawBroken):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            broken = _first_broken(inner)
            if broken is not None:
                return broken
    return None
