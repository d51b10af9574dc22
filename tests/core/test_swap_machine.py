"""All that can happen to the swap scheduler, in any order, with time between; and how long anybody waits at most."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.swap_world import Places, Timed, World
from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.core.swap_state import Phase
from trio_mlxgate.core.ticket import TicketState

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "200"))

PLACES = [
    Places("a", "b", "c"),
    Places("ab", "ac", "bc", "d"),
    Places("ab", "ac", "ad", "bc", "bd", "cd"),
    Places("ab", "cd"),
    Places("abc", "ad", "bd", "e"),
    Places("ac", "ad", "bc", "bd", "x"),
]
PRIORITIES = st.sampled_from([None, 0, 50, 100, 100])
OPTIONS = st.builds(
    SwapOptions,
    max_bypass=st.sampled_from([0.0, 5.0, 30.0, math.inf]),
    min_residency=st.sampled_from([None, 0.0, 3.0, 60.0]),
    in_use_for=st.sampled_from([0.0, 1.0]),
    reserve=st.sampled_from([True, True, False]),
    abort_unwanted=st.booleans(),
    stop_attempts=st.sampled_from([1, 2, 3]),
    stop_retry_delay=st.sampled_from([0.0, 1.0]),
)
MODELS = st.builds(
    ModelOptions,
    limit=st.sampled_from([0, 1, 1, 2, 3]),
    max_waiting=st.sampled_from([None, None, 0, 1, 3]),
    priority=st.sampled_from([None, None, 0, 50]),
    ttl=st.sampled_from([math.inf, math.inf, 0.0, 2.0]),
)
LATER = st.sampled_from([-math.inf, 0.0, 4.0])
TICKS = st.sampled_from([0.0, 0.5, 1.0, 3.0, 5.0, 29.0, 30.0, 60.0])


class SwapMachine(RuleBasedStateMachine):
    """Plays a world, whose every step is checked by itself, and looks at the whole after each."""

    @initialize(data=st.data(), places=st.sampled_from(PLACES), options=OPTIONS)
    def start(self, data: st.DataObject, places: Places, options: SwapOptions) -> None:
        models = {model: data.draw(MODELS) for model in places.models}
        ready = data.draw(st.sampled_from([(), (places.models[0],)]))
        self.world = World(places, models, options, ready=ready)
        self.swap_options = options
        self.over = False
        self.refused_unknown = 0

    def model(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.world.places.models))

    @rule(
        data=st.data(),
        priority=PRIORITIES,
        max_wait=st.sampled_from([math.inf, math.inf, math.inf, 0.0, 4.0]),
        watched=st.booleans(),
        key=st.sampled_from([None, None, None, "k"]),
    )
    def request(self, data: st.DataObject, priority: int | None, max_wait: float, watched: bool, key: Any) -> None:
        self.world.request(self.model(data), priority, max_wait=max_wait, watched=watched, supersede=key)

    @rule(data=st.data(), priority=PRIORITIES, key=st.sampled_from([None, "k"]))
    def request_nowait(self, data: st.DataObject, priority: int | None, key: Any) -> None:
        world = self.world
        world.tick()
        before = (world.loading, world.stopping, world.waiting, dict(world.fates), world.alarm)
        request = world.request(self.model(data), priority, supersede=key, nowait=True)
        if request.state is TicketState.REJECTED:
            others = {other: fate for other, fate in world.fates.items() if other is not request}
            assert (world.loading, world.stopping, world.waiting, others, world.alarm) == before
        else:
            assert request.state is TicketState.GRANTED

    @rule(data=st.data(), models=st.lists(st.integers(0, 5), max_size=8), priority=PRIORITIES)
    def a_crowd(self, data: st.DataObject, models: list[int], priority: int | None) -> None:
        names = self.world.places.models
        for number in models:
            self.world.request(names[number % len(names)], priority)

    @precondition(lambda self: self.world.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.cancel(data.draw(st.sampled_from(self.world.waiting)))

    @precondition(lambda self: any(self.world.in_flight.values()))
    @rule(data=st.data(), by_cancel=st.booleans())
    def end(self, data: st.DataObject, by_cancel: bool) -> None:
        served = [request for requests in self.world.in_flight.values() for request in requests]
        request = data.draw(st.sampled_from(served))
        if by_cancel:
            self.world.cancel(request)
        else:
            self.world.end(request)

    @precondition(lambda self: self.world.loading)
    @rule(data=st.data(), error=st.sampled_from(["", "", "", "no memory"]), later=LATER, is_left=st.booleans())
    def loaded(self, data: st.DataObject, error: str, later: float, is_left: bool) -> None:
        model = data.draw(st.sampled_from(self.world.loading))
        self.world.loaded(model, error, retry_at=self.world.now + later, is_left=bool(error) and is_left)

    @precondition(lambda self: self.world.stopping)
    @rule(data=st.data(), error=st.sampled_from(["", "", "", "it won't"]))
    def stopped(self, data: st.DataObject, error: str) -> None:
        self.world.stopped(data.draw(st.sampled_from(self.world.stopping)), error)

    @precondition(lambda self: any(process.ready and process.stop is None for process in self.world.processes.values()))
    @rule(data=st.data(), later=LATER)
    def crashed(self, data: st.DataObject, later: float) -> None:
        ready = [model for model, process in self.world.processes.items() if process.ready and process.stop is None]
        self.world.exit(data.draw(st.sampled_from(sorted(ready))), "it crashed", retry_at=self.world.now + later)

    @rule(data=st.data(), at_once=st.booleans())
    def unload(self, data: st.DataObject, at_once: bool) -> None:
        model = self.model(data)
        before = [request for request in self.world.waiting if request.model == model]
        self.world.unload(model, at_once=at_once)
        assert all(request in self.world.fates for request in before), "who waited is told"

    @rule(seconds=TICKS)
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(seconds=TICKS)
    def late(self, seconds: float) -> None:
        # Time passes, and the driver is late: the next event comes before the tick.
        self.world.now += seconds

    @rule(data=st.data(), error=st.sampled_from(["", "late"]))
    def stale(self, data: st.DataObject, error: str) -> None:
        world = self.world
        world.tick()
        alive = {
            *world.swaps.values(),
            *(p.stop for p in world.processes.values()),
            *(p.load for p in world.processes.values()),
        }
        stale = sorted(world.used_identities - alive) or [10**9]
        identity = data.draw(st.sampled_from(stale))
        before = world.scheduler.statistics(world.now)
        model = self.model(data)
        assert world.scheduler.on_swap_done(identity, world.now, error) == []
        assert world.scheduler.on_stopped(identity, world.now, error) == []
        if model not in world.processes or identity != world.processes[model].load:
            assert world.scheduler.on_exit(model, identity, world.now) == []
        assert world.scheduler.statistics(world.now) == before

    @precondition(lambda self: self.world.fates)
    @rule(data=st.data())
    def late_cancel(self, data: st.DataObject) -> None:
        ended = [request for request in self.world.fates if request.state is not TicketState.GRANTED]
        if ended:
            self.world.tick()
            assert self.world.scheduler.on_cancel(data.draw(st.sampled_from(ended)), self.world.now) == []
            with pytest.raises(RuntimeError, match="not in flight"):
                self.world.scheduler.on_serve_done(ended[0], self.world.now)

    @precondition(lambda self: len(self.world.requests) > 15)
    @rule(really=st.sampled_from([False, False, False, True]))
    def shut_down(self, really: bool) -> None:
        if really:
            self.world.shut_down()
            self.over = True

    # ---- what always holds ----

    @invariant()
    def fates_add_up(self) -> None:
        world = self.world
        statistics = world.scheduler.statistics(world.now)
        for name, model in statistics.models.items():
            requests = [request for request in world.requests if request.model == name]
            fates = [world.fates.get(request) for request in requests]
            assert model.admitted == fates.count("granted")
            assert model.cancelled == fates.count("cancelled")
            assert model.waiting == fates.count(None)
            assert (
                sum(model.rejected_by_reason.values())
                == len(requests) - model.admitted - model.cancelled - model.waiting
            )
            assert model.in_flight == len(world.in_flight[name])
            for request in requests:
                assert (request.state is TicketState.WAITING) == (request not in world.fates)
        assert statistics.waiting == len(world.waiting)

    @invariant()
    def phases_are_what_was_told(self) -> None:
        world = self.world
        for name, model in world.scheduler.statistics(world.now).models.items():
            process = world.processes.get(name)
            if process is None:
                assert model.phase is Phase.OFF
            elif process.stop is not None:
                assert model.phase is Phase.STOPPING
            elif process.ready:
                assert model.phase is Phase.READY
            else:
                assert model.phase in {Phase.LOADING, Phase.STUCK, Phase.STOPPING}

    @invariant()
    def positions_are_one_to_n(self) -> None:
        world = self.world
        positions = world.scheduler.positions(world.now)
        models = world.scheduler.statistics(world.now).models
        assert list(positions.values()) == list(range(1, len(positions) + 1))
        assert set(positions) == {request for request in world.waiting if models[request.model].swap is None}
        for request in world.waiting:
            wait = world.scheduler.estimated_wait(request, world.now)
            assert wait is None or 0 <= wait < math.inf

    @invariant()
    def nobody_waits_beside_a_free_slot_for_nothing(self) -> None:
        """Whoever waits waits for something that will come: a load, a stop, the end of a request, or a time."""
        world = self.world
        assert world.scheduler.next_alarm() == world.alarm
        if world.waiting and not world.loading and not world.stopping and not any(world.in_flight.values()):
            assert world.alarm < math.inf

    @invariant()
    def watched_requests_know_their_position(self) -> None:
        world = self.world
        if world.alarm <= world.now:
            return  # something is due that hasn't been decided
        for request, position in world.scheduler.positions(world.now).items():
            if request.watched:
                assert request.position == position

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.finish()
        assert len(world.fates) == len(world.requests)
        if self.over:
            assert not world.processes or all(p.stop is None and not p.ready for p in world.processes.values())
        fleet = world.scheduler._fleet
        assert not fleet._swaps
        assert not fleet._stops
        world.tick()
        assert not world.scheduler._watched


TestSwapMachine = SwapMachine.TestCase
TestSwapMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


# ---- how long anybody waits at most ----


STREAMS = st.lists(
    st.tuples(
        st.integers(0, 5),  # which model
        st.sampled_from([0, 50, 100]),  # its priority
        st.sampled_from([0.0, 3.0, 20.0]),  # when it begins
        st.sampled_from([0.3, 1.0, 2.5, 11.0]),  # from request to request
        st.sampled_from([0.1, 1.0, 4.0]),  # how long each takes
    ),
    min_size=1,
    max_size=5,
)
LONE = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0, 50, 100]), st.floats(0, 60), st.sampled_from([0.1, 1.0, 4.0])),
    max_size=6,
)
GROUPS = [
    Groups(
        {"alone": Group(members=("a",)), "b": Group(members=("b",), exclusive=False), "c": Group(members=("c", "d"))},
        models=list("abcd"),
    ),
    Groups(
        {"alone": Group(members=("a",)), **{name: Group(members=(name,), exclusive=False) for name in "bcd"}},
        models=list("abcd"),
    ),
    Groups(
        {"stays": Group(members=("a", "b"), persistent=True, exclusive=False), "c": Group(members=("c", "d"))},
        models=list("abcd"),
    ),
]
LONGEST_HOLD, LONGEST_LOAD, LONGEST_STOP = 4.0, 6.0, 1.0


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
@given(
    # Groups need not see it the same way from both sides: one may put out another that lets it be.
    planner=st.sampled_from([*[None] * len(PLACES), *GROUPS]),
    places=st.sampled_from(PLACES),
    streams=STREAMS,
    lone=LONE,
    max_bypass=st.sampled_from([0.0, 2.0, 10.0]),
    min_residency=st.sampled_from([None, 0.0, 5.0, 100.0]),
    ttl=st.sampled_from([math.inf, 1.0]),
    random=st.randoms(use_true_random=False),
)
def test_everybody_is_served_within_the_bound(
    planner: Groups | None,
    places: Places,
    streams: Any,
    lone: Any,
    max_bypass: float,
    min_residency: float | None,
    ttl: float,
    random: Any,
) -> None:
    if planner is not None:
        places = Places("abcd")
    names = places.models
    options = SwapOptions(max_bypass=max_bypass, min_residency=min_residency, in_use_for=3.0)
    # The limit is out of the way: who waits for a slot of its own model has no bound from other models.
    world = World(places, {name: ModelOptions(limit=10_000, ttl=ttl) for name in names}, options, planner=planner)
    longest = {"load": LONGEST_LOAD, "stop": LONGEST_STOP}
    timed = Timed(world, lambda kind: random.choice([0.0, 0.1, 0.5, 1.0]) * longest[kind])
    for model, priority, begins, period, hold in streams:
        for number in range(int((60 - begins) / period)):
            timed.at(
                begins + number * period,
                partial(timed.arrive, names[model % len(names)], priority, hold),
            )
    for model, priority, when, hold in lone:
        timed.at(
            when,
            partial(timed.arrive, names[model % len(names)], priority, hold),
        )
    timed.run()
    bound = max_bypass + len(names) * (LONGEST_HOLD + LONGEST_STOP + LONGEST_LOAD)
    for request in world.requests:
        waited = world.granted_at[request] - request.arrived_at
        assert waited <= bound + 1e-6, f"{request} waited for {waited}, more than {bound}"
