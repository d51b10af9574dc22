"""Plays any sequence of events against a gate, and checks the laws of the gate at each of them.

The laws are those that any implementation must keep; what is played comes from elsewhere: from
:func:`trio_mlxgate.testing.check_gate`, or from a property-based test that draws it.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_mlxgate.errors import QueueFull, Superseded, WaitTooLong
from trio_mlxgate.testing.events import (
    Arrive,
    Cancel,
    End,
    Event,
    GateLike,
    LawBroken,
    Options,
    SetCapacity,
    Settle,
    Sleep,
    Tick,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractAsyncContextManager


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
    asked_at: float = math.nan
    asked_in: int = -1  # the number of the settle before that
    entered_in: int = -1  # the number of the settle before it came in
    inside: bool = False
    fate: str | None = None
    over: bool = False
    waited_since: int = -1  # the number of the settle at which it was first seen to wait
    slot: Any = None
    # What it is ordered by, once it has been seen to wait: the rank, then when it was first seen. None: not known,
    # since it took the place of another one, and of which one is not to be seen from outside.
    rank: tuple[float, float] | None = None


class _Player:
    def __init__(self, gate: GateLike, options: Options) -> None:
        self.gate = gate
        self.options = options
        self.superseded: list[_Call] = []  # since all was settled last
        self.most = gate.capacity  # the largest capacity since all was settled last
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
            bool(self.options.reserved) or not (now.in_flight < now.capacity and now.tasks_waiting),
            "7",
            "a slot is free and somebody waits for it",
        )
        for key, limit in self.options.limits().items():
            waiting = sum(count for priority, count in now.waiting_by_priority.items() if priority >= key)
            self.require(waiting <= limit, "4", f"{waiting} wait although max_waiting is {limit} from {key} on")
        if self.options.positions:
            positions = sorted(
                call.slot.position for call in self.calls if call.slot is not None and call.slot.position
            )
            expected = list(range(1, now.tasks_waiting + 1))
            self.require(positions == expected, "16", f"the positions are {positions}")
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
            held = [other.arrive.priority for other in inside]
            free = self.options.eligible(call.arrive.priority, held, now.capacity)
            self.require(not free, "7", f"a slot is free for {call.arrive}, which waits for it")
            if call.waited_since < 0:
                call.waited_since = self.settles
                self.judge_takeover(call)
        self.judge_newcomers(inside, waiting)
        keys = [call.arrive.supersede for call in waiting if call.arrive.supersede is not None]
        self.require(len(keys) == len(set(keys)), "4", f"two wait with the same key: {keys}")
        self.superseded = []
        if self.options.positions:
            known = [call for call in waiting if call.rank is not None]
            in_order = [call.rank for call in sorted(known, key=lambda call: call.slot.position)]
            self.require(in_order == sorted(in_order, key=_known), "16", f"positions are not in rank order: {in_order}")

    def judge_newcomers(self, inside: list[_Call], waiting: list[_Call]) -> None:
        """Those that came in since all was settled last: was there room, and have they superseded whom they must?"""
        came_in = [call for call in self.calls if call.entered_in == self.settles - 1]
        reserved = self.options.reserved or {}
        for key in reserved:
            worse = [call for call in inside if call.arrive.priority > key]
            share = max(1, self.most - sum(count for other, count in reserved.items() if other <= key))
            granted = any(call.arrive.priority > key for call in came_in)
            what = f"{len(worse)} slots are held by worse priorities than {key}, whose share is {share}"
            self.require(not granted or len(worse) <= share, "11", what)
        for call in came_in:
            older = [
                other.arrive
                for other in waiting
                if other.arrive.supersede == call.arrive.supersede is not None
                and 0 <= other.waited_since < self.settles <= call.asked_in + 1
            ]
            self.require(not older, "4", f"{call.arrive} came in, and did not supersede {older}")
        self.most = self.gate.capacity

    def judge_takeover(self, call: _Call) -> None:
        """The call waits, as is seen for the first time: say by what it is ordered."""
        key = call.arrive.supersede
        older = [other for other in self.superseded if other.arrive.supersede == key]
        newer = [other for other in self.calls if other.arrive.supersede == key and other.asked_in == call.asked_in]
        if not older:
            call.rank = (self.options.rank(call.arrive.priority, call.asked_at), call.waited_since)
        elif len(older) == len(newer) == 1 and older[0].arrive.priority == call.arrive.priority:
            call.rank = older[0].rank

    def entered(self, call: _Call) -> None:
        call.inside = True
        call.entered_in = self.settles
        call.fate = "admitted"
        self.observe()
        mine = call.rank
        if call.waited_since < 0 and call.arrive.supersede not in [other.arrive.supersede for other in self.superseded]:
            mine = (self.options.rank(call.arrive.priority, call.asked_at), math.inf)
        if mine is None:
            return
        for other in self.calls:
            # Seen to wait when all was settled last: whoever enters now was granted its slot after that.
            if other.rank is None or mine <= other.rank or not _waits(other):
                continue
            # Where slots are reserved a worse priority may be passed over; a better one is eligible whenever this is.
            if not self.options.reserved or other.arrive.priority <= call.arrive.priority:
                self.passed.append((self.passes, call, other))

    def judge_order(self, *, settled: bool) -> None:
        """Who passed a better waiter? One that was granted in the same step enters in the next pass,
        which the player may have counted, and itself gone through, before that: so the third count decides."""
        undecided = []
        for since, call, other in self.passed:
            if not settled and self.passes < since + 3:
                undecided.append((since, call, other))
                continue
            if call.waited_since < 0 and call.arrive.supersede in [older.arrive.supersede for older in self.superseded]:
                continue  # it may have stood in the place of one that it superseded in the same pass
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
        arrive = call.arrive
        gate: Any = self.gate
        asked_at = call.asked_at = trio.current_time()
        entered_at = math.nan
        # A gate without this option is not asked for it.
        more = {} if arrive.supersede is None else {"supersede": arrive.supersede}
        slot: AbstractAsyncContextManager[object]
        if arrive.nowait:
            slot = nullcontext(None)
        else:
            slot = gate.slot(arrive.priority, hold_timeout=arrive.hold_timeout, max_wait=arrive.max_wait, **more)
            call.slot = slot
        cancelled_before = call.scope.cancel_called
        call.asked = True
        call.asked_in = self.settles
        try:
            async with slot:
                with (
                    gate.slot_nowait(arrive.priority, hold_timeout=arrive.hold_timeout, **more)
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
        except QueueFull as full:
            call.fate = "rejected"
            self.require(self.options.max_waiting is not None, "4", f"the queue has no limit: {full!r}")
            places = [
                other.arrive
                for other in self.calls
                if other.arrive.supersede == arrive.supersede is not None
                and other.arrive.priority == arrive.priority
                and other.waited_since == call.asked_in
                and _waits(other)
            ]
            self.require(not places, "4", f"{arrive} was refused, and had the place of {places}: {full!r}")
            self.require(trio.current_time() == asked_at, "14", "it took time to say that the queue is full")
        except Superseded as superseded:
            call.fate = "rejected"
            self.superseded.append(call)
            newer = [
                other
                for other in self.calls
                if other is not call and other.asked and other.arrive.supersede == arrive.supersede
            ]
            self.require(arrive.supersede is not None and bool(newer), "4", f"by whom? {superseded!r}")
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
                self.most = max(self.most, capacity)
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
        self.gate.capacity = self.most = max(1, self.gate.capacity)
        self.observe()
        while any(not call.over for call in self.calls):
            await wait_all_tasks_blocked()
            self.observe_settled()
            for call in self.calls:
                if call.inside:
                    call.end.set()
        capacity = self.gate.capacity
        # Nothing is reserved from the best priority of all.
        best = min(self.options.reserved or [0])
        last = [_Call(len(self.calls) + n, Arrive(best)) for n in range(capacity + 1)]
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


def _known(rank: tuple[float, float] | None) -> tuple[float, float]:
    assert rank is not None
    return rank


def _close(seconds: float, expected: float) -> bool:
    return math.isclose(seconds, expected, rel_tol=1e-9, abs_tol=1e-9)


def play(
    factory: Callable[..., GateLike], capacity: int, events: Iterable[Event], options: Options | None = None
) -> None:
    """Make a gate of that ``capacity`` in a trio run on a virtual clock, play ``events`` against it, check the laws.

    ``factory`` gets the capacity, and those of the ``options`` that are on as keyword arguments.

    Raises:
      LawBroken: the gate broke a law.
    """

    with_options = options or Options()

    async def main() -> None:  # a checkpoint, always
        await _Player(factory(capacity, **with_options.for_the_gate()), with_options).play(events)

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
