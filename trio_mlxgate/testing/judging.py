"""What the player of events sees of a gate, and what the laws say of it: at every step, and when all has settled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from trio_mlxgate.testing.events import Arrive, LawBroken

if TYPE_CHECKING:
    import asyncio

    from trio_mlxgate.testing.events import GateLike, Options
    from trio_mlxgate.testing.harness import Harness


@attrs.define(eq=False)
class Call:
    """One call that is played: what was asked for, and what became of it so far."""

    number: int
    arrive: Arrive
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    task: asyncio.Task[object] | None = None  # where it is asyncio's
    cancelled_natively: bool = False
    end: anyio.Event = attrs.field(factory=anyio.Event)
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
    asked_when_ended: bool = False
    waiting_when_drained: bool = False  # as far as was seen
    # What it is ordered by, once it has been seen to wait: the rank, then when it was first seen. None: not known,
    # since it took the place of another one, and of which one is not to be seen from outside.
    rank: tuple[float, float] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether it has been cancelled, in whichever way."""
        return self.cancelled_natively or self.scope.cancel_called


class Judge:
    """Looks at the gate from outside, as its callers do, and raises LawBroken."""

    def __init__(self, gate: GateLike, options: Options, on: Harness) -> None:
        self.gate = gate
        self.on = on
        self.options = options
        self.superseded: list[Call] = []  # since all was settled last
        self.most = gate.capacity  # the largest capacity since all was settled last
        self.calls: list[Call] = []
        self.releasing: Call | None = None
        self.settles = 0
        self.passes = 0
        self.passed: list[tuple[int, Call, Call]] = []
        self.last = gate.statistics()
        # How the gate was ended: None, "drained", "closed" or "broken"; each may follow on those before it.
        self.ended: str | None = None
        self.forgotten = 0  # how many tasks have ended without giving their slots back

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
            # Under asyncio, who is cancelled as it is refused is refused, and hears of the cancellation.
            both = sum(call.fate == "cancelled" and call.cancelled_natively for call in self.calls)
            less, more = (both, 0) if fate == "cancelled" else (0, both) if fate == "rejected" else (0, 0)
            self.require(seen - less <= count <= seen + more, "4", f"{seen} calls were {fate}")
        fates = sum(call.fate is not None for call in self.calls)
        self.require(fates == now.admitted + now.cancelled + now.rejected, "4", f"{fates} calls have a fate")
        going_on = [call.arrive for call in self.calls if call.cancelled and not call.over]
        self.require(not going_on, "3", f"cancelled, and they go on as if nothing had been: {going_on}")
        closed = self.ended in ("closed", "broken")
        self.require(not (closed and waiting), "19", f"{len(waiting)} wait although the gate was {self.ended}")
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

    def judge_newcomers(self, inside: list[Call], waiting: list[Call]) -> None:
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

    def judge_takeover(self, call: Call) -> None:
        """The call waits, as is seen for the first time: say by what it is ordered."""
        key = call.arrive.supersede
        older = [other for other in self.superseded if other.arrive.supersede == key]
        newer = [other for other in self.calls if other.arrive.supersede == key and other.asked_in == call.asked_in]
        if not older:
            call.rank = (self.options.rank(call.arrive.priority, call.asked_at), call.waited_since)
        elif len(older) == len(newer) == 1 and older[0].arrive.priority == call.arrive.priority:
            call.rank = older[0].rank

    def entered(self, call: Call) -> None:
        call.inside = True
        call.entered_in = self.settles
        call.fate = "admitted"
        self.observe()
        self.require(not call.asked_when_ended, "19", f"{call.arrive} came in although the gate had been {self.ended}")
        mine = call.rank
        if call.waited_since < 0 and call.arrive.supersede not in [other.arrive.supersede for other in self.superseded]:
            mine = (self.options.rank(call.arrive.priority, call.asked_at), math.inf)
        if mine is None:
            return
        for other in self.calls:
            # Seen to wait when all was settled last: whoever enters now was granted its slot after that.
            if other.rank is None or mine <= other.rank or not waits(other):
                continue
            # Where slots are reserved a worse priority may be passed over; a better one is eligible whenever this is.
            if not self.options.reserved or other.arrive.priority <= call.arrive.priority:
                self.passed.append((self.passes, call, other))

    def end(self, how: str) -> None:
        """The gate is about to be ended in this way."""
        if how == "drained":
            for call in self.calls:
                call.waiting_when_drained |= call.waited_since >= 0 and waits(call)
        order = (None, "drained", "broken", "closed")
        self.ended = max(self.ended, how, key=order.index)

    def refused_by_the_end(self, call: Call, error: Exception) -> None:
        """The call was refused because the gate had ended: had it, and in a way that concerns this call?"""
        closed = isinstance(error, self.on.dialect.closed)
        self.require(
            self.ended is not None if closed else self.options.strict and self.forgotten > 0, "19", repr(error)
        )
        wrong = closed and self.ended == "drained" and call.waiting_when_drained
        self.require(not wrong, "19", f"{call.arrive} was waiting when the gate was drained: {error!r}")

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
            self.require(not waits(other), "11", f"{call.arrive} came in while {other.arrive} was waiting")
        self.passed = undecided


def waits(call: Call) -> bool:
    """Whether the call stands in the queue, as far as can be seen."""
    return call.asked and call.fate is None and not call.cancelled


def _known(rank: tuple[float, float] | None) -> tuple[float, float]:
    assert rank is not None
    return rank
