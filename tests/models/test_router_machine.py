"""Whatever happens to a router, in whatever order: who is inside, which servers are there, and what becomes of all."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import trio
from hypothesis import HealthCheck, given, settings, strategies as st
from trio.testing import MockClock

from tests.models.played import Servers, model, router
from trio_mlxgate import GateRefused
from trio_mlxgate.models import LeaseProgress, LeaseStage, ModelError, ModelState, SwapOptions

if TYPE_CHECKING:
    from collections.abc import Collection

    from trio_mlxgate.models import ModelRouter

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "200"))

SETS: dict[str, dict[str, str] | None] = {
    "one place": None,
    "a pair": {"pair": "a & b"},
    "two places": {"s": "(a & b) | (a & c) | (b & c)"},
}


def permits(kind: str, there: Collection[str]) -> bool:
    return (
        len(there) < 2 or (kind == "a pair" and set(there) == {"a", "b"}) or (kind == "two places" and len(there) < 3)
    )


@attrs.frozen
class Ask:
    model: str
    priority: int | None
    hold: float
    leaves_after: float
    max_wait: float
    nowait: bool
    watched: bool


@attrs.frozen
class Other:
    what: str
    model: str
    seconds: float


NAMES = st.sampled_from("abc")
ASKS = st.builds(
    Ask,
    model=NAMES,
    priority=st.sampled_from([None, 0, 100]),
    hold=st.sampled_from([0.0, 0.0, 1.0, 3.0]),
    leaves_after=st.sampled_from([math.inf, math.inf, 0.0, 1.0, 2.0, 4.0]),
    max_wait=st.sampled_from([math.inf, math.inf, 0.0, 2.0]),
    nowait=st.sampled_from([False, False, False, True]),
    watched=st.booleans(),
)
OTHERS = st.builds(
    Other,
    what=st.sampled_from(["tick", "tick", "wait", "wait", "kill", "unload", "unload now", "break", "mend"]),
    model=NAMES,
    seconds=st.sampled_from([0.5, 1.0, 2.0, 30.0]),
)


class Complaints(logging.Handler):
    """What a process, or who watches, was told that it should not have raised: that is logged and goes on."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Play:
    """Does what was drawn, and checks."""

    def __init__(self, kind: str, limit: int, max_waiting: int | None, load: float, stop: float) -> None:
        self.kind = kind
        self.limit = limit
        self.servers = Servers(lambda there: permits(kind, there), load=load, stop=stop, clearing=stop)
        self.servers.stops = self.stops
        self.inside: Counter[str] = Counter()
        self.fates: Counter[tuple[str, str]] = Counter()
        self.may_cut: set[str] = set()
        self.models = [model(name, limit=limit, max_waiting=max_waiting) for name in "abc"]

    def stops(self, name: str) -> None:
        """A process is told to go, and not since it ended by itself."""
        assert not self.inside[name] or name in self.may_cut, f"{name} is stopped while it serves"

    async def ask(self, routed: ModelRouter, ask: Ask) -> None:
        steps: list[LeaseProgress] = []
        fate = "cancelled"
        try:
            with trio.move_on_after(ask.leaves_after):
                try:
                    if ask.nowait:
                        with routed.lease_nowait(ask.model, ask.priority):
                            fate = await self.body(routed, ask)
                    else:
                        async with routed.lease(
                            ask.model,
                            ask.priority,
                            max_wait=ask.max_wait,
                            outer_deadline="allow",
                            on_progress=steps.append if ask.watched else None,
                        ):
                            fate = "admitted"
                            if ask.watched:
                                assert steps[-1].stage is LeaseStage.READY
                            fate = await self.body(routed, ask)
                except (GateRefused, ModelError, trio.WouldBlock):
                    fate = "refused"
        finally:
            self.fates[ask.model, fate] += 1
        for earlier, later in pairwise(steps):
            assert earlier.stage is not LeaseStage.READY
            assert earlier != later or later.stage is not LeaseStage.QUEUED

    async def body(self, routed: ModelRouter, ask: Ask) -> str:
        name = ask.model
        self.inside[name] += 1
        assert self.inside[name] <= self.limit
        assert name in self.servers.running
        # It was ready when this was granted, which was a pass ago at most: since then it may have been killed.
        state = routed.processes[name].state
        assert state is ModelState.READY or self.servers.is_killed(name) or name in self.may_cut
        try:
            await trio.sleep(ask.hold)
        finally:
            self.inside[name] -= 1
        return "admitted"

    async def other(self, routed: ModelRouter, other: Other, nursery: trio.Nursery) -> None:
        match other.what:
            case "tick":
                await trio.lowlevel.checkpoint()
            case "wait":
                await trio.sleep(other.seconds)
            case "kill":
                if other.model in self.servers.running:
                    self.servers.kill(other.model)
            case "break":
                self.servers.broken.add(other.model)
            case "mend":
                self.servers.broken.discard(other.model)
            case what:
                if what == "unload now":
                    self.may_cut.add(other.model)

                async def unload() -> None:
                    await routed.unload(other.model, now=what == "unload now")

                nursery.start_soon(unload)

    async def play(self, plan: list[Ask | Other], swap: SwapOptions) -> None:
        sets: Any = SETS[self.kind]
        async with router(self.servers, *self.models, sets=sets, swap=swap) as routed:
            with trio.fail_after(10_000):
                async with trio.open_nursery() as nursery:
                    for step in plan:
                        if isinstance(step, Ask):
                            nursery.start_soon(self.ask, routed, step)
                        else:
                            await self.other(routed, step, nursery)
            statistics = routed.statistics()
            assert statistics.waiting == statistics.in_flight == 0
            for name, known in statistics.models.items():
                asked = sum(1 for step in plan if isinstance(step, Ask) and step.model == name)
                fates = {fate: self.fates[name, fate] for fate in ("admitted", "cancelled", "refused")}
                assert sum(fates.values()) == asked
                # Who was cancelled in the pass before it asked is no request.
                assert known.admitted <= fates["admitted"] + fates["cancelled"]
                assert known.admitted >= fates["admitted"]
                assert sum(known.rejected_by_reason.values()) == fates["refused"]
            assert not routed._driver._owners
            for served in routed._driver.served.values():
                assert not served.unloads
            # Whatever happened: it works still.
            self.servers.broken.clear()
            for name in "abc":
                await routed.unload(name)
                async with routed.lease(name):
                    assert name in self.servers.running
        assert not self.servers.running


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.lists(st.one_of(ASKS, ASKS, OTHERS), max_size=25),
    kind=st.sampled_from(sorted(SETS)),
    limit=st.sampled_from([1, 1, 2]),
    max_waiting=st.sampled_from([None, None, 1]),
    load=st.sampled_from([0.0, 1.0, 2.0]),
    stop=st.sampled_from([0.0, 1.0]),
    max_bypass=st.sampled_from([0.0, 3.0, 30.0]),
    reserve=st.booleans(),
)
def test_laws_through_the_router(
    plan: list[Ask | Other],
    kind: str,
    limit: int,
    max_waiting: int | None,
    load: float,
    stop: float,
    max_bypass: float,
    reserve: bool,
) -> None:
    play = Play(kind, limit, max_waiting, load, stop)
    swap = SwapOptions(max_bypass=max_bypass, reserve=reserve)
    complaints = Complaints()
    logger = logging.getLogger("trio_mlxgate.models")
    logger.addHandler(complaints)
    try:
        trio.run(play.play, plan, swap, clock=MockClock(autojump_threshold=0))
    finally:
        logger.removeHandler(complaints)
    assert not complaints.lines
