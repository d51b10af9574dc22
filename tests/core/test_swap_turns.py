"""Whose turn it is: how long anybody waits at most, priorities, and how long a model stays; with exact times."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from tests.core.swap_world import (
    BACKGROUND,
    FOREGROUND,
    TWO_PLACES,
    Places,
    Timed,
    World,
    fates,
    is_granted,
    is_waiting,
    world_of,
)
from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.swap_effects import (
    LoadModel,
)
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.core.ticket import TicketState

if TYPE_CHECKING:
    from trio_mlxgate.core.swap_queue import SwapRequest

# ---- nobody starves ----


def steady_traffic(world: World, model: str, until: float, hold: float = 2.0, priority: int = BACKGROUND) -> None:
    """A request each second that overlaps the next one, so that the model is never idle."""
    running: list[SwapRequest] = []
    while world.now < until:
        while world.alarm <= world.now:
            world.tick()
        request = world.request(model, priority)
        if request.state is TicketState.GRANTED:
            running.append(request)
        for served in [one for one in running if world.now - one.granted_at >= hold]:
            running.remove(served)
            world.end(served)
        world.now += 1.0


def test_under_steady_traffic_another_model_waits_for_max_bypass_and_no_longer() -> None:
    world = world_of(ready=["a"])
    world.request("a")
    other = world.request("b")
    assert world.alarm == 30.0
    steady_traffic(world, "a", until=30.0)
    assert is_waiting(world.request("a")), "closed from this moment on"
    assert len(world.in_flight["a"]) == 3
    for request in list(world.in_flight["a"]):
        world.end(request)
    world.now = 31.0
    world.stopped("a")
    world.now = 35.0
    world.loaded("b")
    assert is_granted(other)
    assert other.waited == 35.0, "30 + the rest that ran + stop + load"


def test_without_max_bypass_it_waits_for_as_long_as_the_traffic_lasts() -> None:
    world = world_of(options=SwapOptions(max_bypass=math.inf), ready=["a"])
    world.request("a")
    other = world.request("b")
    steady_traffic(world, "a", until=1000.0)
    assert is_waiting(other)


def test_traffic_of_a_better_priority_doesnt_pass_for_longer_either() -> None:
    world = world_of(ready=["a"])
    world.request("a", FOREGROUND)
    world.request("b", BACKGROUND)
    steady_traffic(world, "a", until=30.0, priority=FOREGROUND)
    assert world.request("a", FOREGROUND).state is TicketState.WAITING


def test_a_better_priority_closes_a_ready_model_to_worse_ones_at_once() -> None:
    world = world_of(ready=["a"])
    running = world.request("a", BACKGROUND)
    better = world.request("b", FOREGROUND)
    worse, equal = world.request("a", BACKGROUND), world.request("a", FOREGROUND)
    assert fates(better, worse, equal) == ["waiting", "waiting", "granted"]
    world.end(running)
    world.end(equal)
    assert world.stopping == ["a"]


def test_a_worse_priority_closes_nothing_before_its_time() -> None:
    world = world_of(ready=["a"])
    world.request("a", FOREGROUND)
    world.request("b", BACKGROUND)
    world.now = 29.9
    assert world.request("a", FOREGROUND).state is TicketState.GRANTED


def test_a_model_that_was_closed_opens_again_if_its_closer_leaves() -> None:
    world = world_of(ready=["a"])
    world.request("a", BACKGROUND)
    better = world.request("b", FOREGROUND)
    worse = world.request("a", BACKGROUND)
    world.cancel(better)
    assert is_granted(worse)


def test_who_was_kept_longer_is_served_before_the_model_goes() -> None:
    world = world_of(options=SwapOptions(max_bypass=20.0), ready=["a"])
    world.request("a", BACKGROUND)
    first = world.request("b", FOREGROUND)
    world.now = 1.0
    kept = world.request("a", BACKGROUND)
    world.now = 2.0
    world.request("c", FOREGROUND)
    world.cancel(first)
    assert is_waiting(kept)
    # Both are overdue by now, and the one for a was kept longer than the one for c.
    world.now = 23.0
    world.tick()
    assert is_granted(kept)
    assert is_waiting(world.request("a", FOREGROUND))


def test_the_longest_kept_goes_first_whatever_its_priority() -> None:
    world = world_of(ready=["a"])
    running = world.request("a")
    world.request("b", BACKGROUND)
    world.now = 1.0
    world.request("c", FOREGROUND)
    world.now = 30.0
    world.tick()
    world.end(running)
    world.stopped("a")
    assert world.loading == ["b"]


def test_a_model_that_was_loaded_serves_who_waited_before_it_goes() -> None:
    world = world_of(options=SwapOptions(max_bypass=5.0), b=ModelOptions(limit=2))
    world.request("a")
    world.loaded("a")
    background = [world.request("b", BACKGROUND) for _ in range(3)]
    world.now = 5.0
    world.tick()
    urgent = world.request("a", FOREGROUND)
    assert is_waiting(urgent), "b was kept for max_bypass"
    world.end(world.in_flight["a"][0])
    world.stopped("a")
    world.loaded("b")
    assert fates(*background) == ["granted", "granted", "waiting"]
    world.end(background[0])
    assert fates(*background) == ["released", "granted", "waiting"], "b is closed for the better one"
    world.end(background[1])
    world.stopped("b")
    world.loaded("a")
    assert is_granted(urgent)


def test_a_turn_is_for_all_who_waited_when_the_model_was_loaded() -> None:
    world = world_of(options=SwapOptions(max_bypass=5.0), a=ModelOptions(limit=1), b=ModelOptions(limit=1))
    world.request("a")
    world.loaded("a")
    mine = [world.request("b") for _ in range(3)]
    world.now = 5.0
    world.tick()
    others = [world.request("a"), world.request("c")]
    world.end(world.in_flight["a"][0])
    world.stopped("a")
    world.loaded("b")
    world.now = 11.0
    late = world.request("b")
    for request in mine:
        assert is_granted(request)
        assert world.stopping == []
        world.now += 1.0
        world.end(request)
    assert world.stopping == ["b"]
    assert world.alarm == 11.0 + 5.0, "the turn of the others is no turn of its own"
    assert fates(*others, late) == ["waiting"] * 3, "it came after the turn had begun"


def test_two_places_that_become_free_at_once_are_both_taken() -> None:
    places = Places(("a", "b"), ("big",))  # type: ignore[arg-type]
    world = world_of(places, ready=["big"])
    running = world.request("big")
    world.request("a")
    world.request("b")
    world.end(running)
    world.stopped("big")
    assert world.loading == ["a", "b"]


def test_a_model_that_drains_for_another_one_isnt_spared_because_its_requests_end() -> None:
    world = world_of(TWO_PLACES, SwapOptions(max_bypass=5.0), ready=["a", "b"])
    draining = [world.request("a"), world.request("a")]
    world.now = 1.0
    world.request("b")
    world.request("c")
    world.now = 6.0
    world.tick()
    assert is_waiting(world.request("a"))
    world.end(draining[0])
    assert is_waiting(world.request("a")), "it is still the one that was used least recently"
    assert is_granted(world.request("b"))
    world.end(draining[1])
    assert world.stopping == ["a"]


def test_who_is_left_after_a_turn_is_kept_from_then_on() -> None:
    world = world_of(options=SwapOptions(max_bypass=5.0, min_residency=0.0), b=ModelOptions(limit=1))
    world.request("a")
    world.loaded("a")
    mine = [world.request("b", BACKGROUND) for _ in range(2)]
    world.now = 5.0
    world.tick()
    world.end(world.in_flight["a"][0])
    world.stopped("a")
    world.loaded("b")
    world.now = 7.0
    world.request("a", FOREGROUND)
    world.end(mine[0])
    assert is_waiting(mine[1])
    assert world.stopping == ["b"]
    assert world.alarm == 7.0 + 5.0


def test_time_that_a_request_spent_at_the_limit_of_its_own_model_is_no_bypass() -> None:
    world = world_of(ready=["a"], a=ModelOptions(limit=1))
    first = world.request("a", BACKGROUND)
    other = world.request("b", FOREGROUND)
    second, third = world.request("a", BACKGROUND), world.request("a", BACKGROUND)
    world.now = 1.0
    world.cancel(other)
    world.end(first)
    assert fates(second, third) == ["granted", "waiting"]
    world.now = 40.0
    world.request("b", FOREGROUND)
    world.end(second)
    assert world.stopping == ["a"], "the third waits since 40 for another model"


def test_the_ready_model_is_closed_to_nobody_for_a_swap_that_needs_another_place() -> None:
    world = world_of(TWO_PLACES, SwapOptions(max_bypass=5.0), ready=["a", "b"])
    world.request("a")
    world.now = 1.0
    world.request("b")
    world.request("c", FOREGROUND)
    # Both are busy: the one that was used last stays.
    assert world.request("b", BACKGROUND).state is TicketState.GRANTED
    assert world.request("a", BACKGROUND).state is TicketState.WAITING


# ---- minimum residency ----


def test_a_model_that_is_in_use_stays_for_min_residency() -> None:
    world = world_of(options=SwapOptions(min_residency=10.0, in_use_for=1.0))
    first = world.request("a", BACKGROUND)
    world.loaded("a")
    world.request("b", FOREGROUND)
    world.now = 3.0
    second = world.request("a", BACKGROUND)
    assert is_granted(second), "not even a better priority closes it"
    world.end(first)
    world.now = 9.5
    world.end(second)
    assert world.stopping == []
    assert world.alarm == 10.0
    world.now = 10.0
    world.tick()
    assert world.stopping == ["a"]


def test_a_model_that_nobody_uses_goes_at_once() -> None:
    world = world_of(options=SwapOptions(min_residency=10.0, in_use_for=1.0))
    first = world.request("a")
    world.loaded("a")
    world.request("b")
    world.now = 2.0
    world.end(first)
    assert world.stopping == []
    assert world.alarm == 3.0
    world.now = 3.0
    world.tick()
    assert world.stopping == ["a"]


def test_max_bypass_wins_over_min_residency() -> None:
    world = world_of(options=SwapOptions(max_bypass=5.0, min_residency=60.0))
    first = world.request("a")
    world.loaded("a")
    world.request("b")
    world.now = 5.0
    world.tick()
    assert is_waiting(world.request("a"))
    world.end(first)
    assert world.stopping == ["a"]


def test_by_default_a_model_stays_as_long_as_its_load_took() -> None:
    world = world_of()
    world.request("a", BACKGROUND)
    world.now = 20.0
    world.loaded("a")
    world.request("b", FOREGROUND)
    world.now = 39.0
    assert is_granted(world.request("a", BACKGROUND))
    assert world.alarm == 40.0
    world.now = 40.0
    assert is_waiting(world.request("a", BACKGROUND))


# ---- priorities ----


def test_the_priority_of_a_model_is_that_of_its_requests_that_name_none() -> None:
    world = world_of(ready=["d"], a=ModelOptions(priority=0))
    running = world.request("d", -1)
    requests = [world.request("b"), world.request("c", 50), world.request("a"), world.request("a", 70)]
    assert [request.priority for request in requests] == [100, 50, 0, 70]
    assert list(world.scheduler.positions(0.0)) == [requests[2], requests[1], requests[3], requests[0]]
    world.end(running)
    world.stopped("d")
    assert world.loading == ["a"]


def test_a_worse_one_doesnt_take_the_place_that_a_better_one_waits_for() -> None:
    # "big" needs both places; when the first becomes free, "small" would fit in.
    places = Places(("x", "y"), ("x", "small"), ("y", "small"), ("big",))  # type: ignore[arg-type]
    world = world_of(places, ready=["x", "y"])
    first, second = world.request("x"), world.request("y")
    big, small = world.request("big", FOREGROUND), world.request("small", BACKGROUND)
    world.end(second)
    assert fates(big, small) == ["waiting", "waiting"]
    assert world.stopping == []
    world.end(first)
    assert world.stopping == ["x", "y"]
    world.finish()
    assert world.granted_at.keys() >= {big, small}
    loads = [effect.model for effect in world.log if isinstance(effect, LoadModel)]
    assert loads == ["big", "small"]


def test_a_worse_one_doesnt_take_an_empty_place_that_a_better_one_needs() -> None:
    places = Places(("x", "small"), ("big",))  # type: ignore[arg-type]
    world = world_of(places, ready=["x"])
    world.request("x")
    world.request("big", FOREGROUND)
    world.request("small", BACKGROUND)
    assert world.loading == []


def test_what_goes_for_a_better_one_is_not_taken_by_a_worse_one_that_would_let_it_come() -> None:
    # "big" puts out all others, who put out none of other groups: beside it "small" could be, as far as "small" goes.
    groups = Groups(
        {
            "big": Group(members=("big",)),
            "x": Group(members=("x",), exclusive=False),
            "y": Group(members=("y", "small"), exclusive=False),
        },
        models=["big", "x", "y", "small"],
    )
    places = Places(("big", "x", "y", "small"))  # type: ignore[arg-type]
    options = {model: ModelOptions() for model in places.models}
    world = World(places, options, ready=["x", "y"], planner=groups)
    running = world.request("x")
    big, small = world.request("big", FOREGROUND), world.request("small", BACKGROUND)
    assert fates(big, small) == ["waiting", "waiting"]
    assert world.stopping == [], "small would have to be waited for, too"
    world.end(running)
    assert world.stopping == ["x", "y"]


def test_one_that_is_in_nobodys_way_starts_at_once() -> None:
    places = Places("ac", "bc")
    world = world_of(places, ready=["a"])
    world.request("a")
    world.request("b", FOREGROUND)
    world.request("c", BACKGROUND)
    assert world.loading == ["c"]


def test_one_that_puts_out_others_does_not_wait_for_those_that_would_let_it_be() -> None:
    """Each load of theirs would begin in the empty place that it needs, for as long as they are asked for."""
    groups = {
        "alone": Group(members=("a",)),
        "b": Group(members=("b",), exclusive=False),
        "c": Group(members=("c",), exclusive=False),
    }
    models = {name: ModelOptions(ttl=1.0) for name in "abc"}
    world = World(Places("abc"), models, planner=Groups(groups, models=list("abc")))
    timed = Timed(world, lambda kind: 5.0 if kind == "load" else 0.5)
    for number in range(40):
        timed.at(number * 10.0, partial(timed.arrive, "b", BACKGROUND, 1.0))
        timed.at(number * 10.0 + 5.0, partial(timed.arrive, "c", BACKGROUND, 1.0))
    timed.at(1.0, partial(timed.arrive, "a", FOREGROUND, 1.0))
    timed.run()
    waited = next(world.granted_at[request] - request.arrived_at for request in world.requests if request.model == "a")
    # The load of b that was under way, its request, its stop, and the own load.
    assert waited <= 4.0 + 1.0 + 0.5 + 5.0
