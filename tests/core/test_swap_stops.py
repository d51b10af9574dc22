"""What goes and what must go first: unwanted loads, two places, unload, ttl, shutdown, and what does not stop."""

from __future__ import annotations

from tests.core.swap_world import (
    BACKGROUND,
    FOREGROUND,
    ONE_PLACE,
    TWO_PLACES,
    Places,
    World,
    is_granted,
    is_waiting,
    kinds,
    world_of,
)
from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.swap_effects import (
    ModelStopped,
    Refuse,
    StartSwap,
    StopModel,
)
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.core.swap_queue import SwapRequest
from trio_mlxgate.core.swap_state import Phase

# ---- loads that nobody waits for ----


def test_an_unwanted_load_is_aborted_if_somebody_wants_the_place() -> None:
    world = world_of()
    first = world.request("a")
    world.cancel(first)
    assert world.loading == ["a"], "nobody wants the place: it goes on"
    load = world.swaps["a"]
    world.log.clear()
    world.request("b")
    assert kinds(world) == ["StartSwap b", "AbortLoad a"]
    assert world.stopping == ["a"]
    world.play(world.scheduler.on_swap_done(load, world.now))
    assert kinds(world) == []
    world.stopped("a")
    assert kinds(world) == ["ModelStopped a", "LoadModel b"]


def test_a_load_that_somebody_wants_again_isnt_aborted() -> None:
    world = world_of()
    first = world.request("a")
    world.cancel(first)
    world.request("a")
    world.request("b")
    assert world.loading == ["a"]


def test_a_swap_that_waits_for_a_stop_and_is_unwanted_is_dropped() -> None:
    world = world_of(ready=["a"])
    unwanted = world.request("b")
    world.cancel(unwanted)
    world.log.clear()
    world.request("c")
    assert kinds(world) == ["StartSwap c", "DropSwap b"]
    world.stopped("a")
    assert world.loading == ["c"]


# ---- two places ----


def test_two_places_are_filled_anew_side_by_side() -> None:
    world = world_of(TWO_PLACES, ready=["a", "b"])
    world.request("c")
    world.request("d")
    swaps = [effect for effect in world.log if isinstance(effect, StartSwap)]
    assert [(swap.model, swap.evict) for swap in swaps] == [("c", ("b",)), ("d", ("a",))]
    world.stopped("a")
    assert world.loading == ["d"], "it may be beside b, which is on its way out"
    world.stopped("b")
    assert world.loading == ["c", "d"]


def test_what_is_being_stopped_takes_no_place_in_the_plan_of_another_one() -> None:
    world = world_of(Places("abx", "cx", "cd", "abd"), ready=["a", "b", "x"])
    world.request("c")
    assert world.stopping == ["a", "b"]
    # Beside a and b, which are on their way out, d could do without c; beside c it can't do with x.
    world.request("d")
    assert world.stopping == ["a", "b", "x"]


def test_a_load_waits_for_what_others_stop_if_it_may_not_be_beside_it() -> None:
    world = world_of(Places("ab", "cd"), ready=["a", "b"])
    world.request("c")
    world.request("d")
    assert kinds(world) == ["StartSwap c", "StopModel a", "StopModel b", "StartSwap d"]
    world.stopped("a")
    assert world.loading == []
    world.stopped("b")
    assert world.loading == ["c", "d"]


# ---- unload, ttl, shutdown ----


def test_unload_lets_requests_end_first() -> None:
    world = world_of(ready=["a"])
    running = world.request("a")
    world.unload("a")
    assert kinds(world) == ["Grant a"]
    late = world.request("a")
    assert is_waiting(late)
    world.end(running)
    assert world.stopping == ["a"]
    world.log.clear()
    world.stopped("a")
    assert kinds(world) == ["ModelStopped a", "LoadModel a"], "who came later brings it back"


def test_unload_lets_requests_end_of_a_model_that_waits_for_others_to_go() -> None:
    # Its group puts out the other one, whose group leaves it alone: so it is there, and brought nonetheless.
    groups = {"alone": Group(members=("a",)), "beside": Group(members=("b",), exclusive=False)}
    world = World(
        Places("ab"),
        {name: ModelOptions() for name in "ab"},
        ready=["a"],
        planner=Groups(groups, models=["a", "b"]),
    )
    served = world.request("a")
    world.request("b")
    world.loaded("b")
    waits = world.request("a")
    assert is_granted(served)
    assert is_waiting(waits)
    world.end(world.in_flight["b"][0])
    assert world.stopping == ["b"]
    world.unload("a")
    assert world.stopping == ["b"], "it serves one still"
    assert world.fates[waits] == "model_unloaded"
    world.end(served)
    assert world.stopping == ["a", "b"]
    world.finish()
    assert sorted(world.stops_told) == ["a", "b"]


def test_unload_at_once_stops_a_busy_model() -> None:
    world = world_of(ready=["a"])
    running = world.request("a")
    world.unload("a", at_once=True)
    assert world.stopping == ["a"]
    world.stopped("a")
    assert world.stops_told == ["a"]
    world.end(running)


def test_unload_tells_who_waits_and_blocks_nobody_else() -> None:
    world = world_of(TWO_PLACES, ready=["b"])
    waits = world.request("a")
    world.log.clear()
    world.unload("a")
    assert world.fates[waits] == "model_unloaded"
    assert kinds(world) == ["Refuse a", "AbortLoad a"]
    assert is_granted(world.request("b"))


def test_unloading_what_isnt_there_is_over_at_once() -> None:
    world = world_of()
    world.unload("a", "b")
    assert world.stops_told == ["a", "b"]


def test_a_model_goes_after_its_ttl() -> None:
    world = world_of(a=ModelOptions(ttl=60.0))
    first = world.request("a")
    world.loaded("a")
    world.now = 10.0
    world.end(first)
    assert world.alarm == 70.0
    world.now = 40.0
    second = world.request("a")
    world.now = 80.0
    world.tick()
    assert world.stopping == [], "it serves"
    world.end(second)
    assert world.alarm == 140.0
    world.now = 140.0
    world.tick()
    assert world.stopping == ["a"]
    assert is_waiting(world.request("a")), "a grant never meets a process that stops"


def test_a_model_that_somebody_waits_for_has_no_ttl() -> None:
    places = Places(("x", "y"), ("big",))  # type: ignore[arg-type]
    world = world_of(places, ready=["x", "y"], x=ModelOptions(ttl=10.0))
    world.request("y")
    big = world.request("big", FOREGROUND)
    waits = world.request("x", BACKGROUND)
    world.tick(20.0)
    assert world.stopping == []
    world.cancel(big)
    assert is_granted(waits)


def test_one_that_was_there_from_the_start_has_its_ttl_from_the_first_event() -> None:
    world = world_of(ready=["a"], a=ModelOptions(ttl=60.0))
    world.tick(1000.0)
    assert world.stopping == []
    assert world.alarm == 1060.0


def test_after_the_shutdown_nothing_is_granted_any_more() -> None:
    world = world_of(ready=["a"])
    world.request("a")
    waits = world.request("b")
    world.shut_down()
    assert world.fates[waits] == "closed"
    assert world.stopping == ["a"]
    assert world.fates[world.request("a")] == "closed"


def test_a_load_that_ends_after_the_shutdown_grants_nothing() -> None:
    world = world_of()
    request = world.request("a")
    load = world.swaps["a"]
    world.shut_down()
    world.log.clear()
    world.play(world.scheduler.on_swap_done(load, world.now))
    assert kinds(world) == []
    assert world.fates[request] == "closed"


def test_a_model_that_is_configured_no_more() -> None:
    world = world_of(ready=["a"])
    running = world.request("a")
    waits = world.request("b")
    world.play(world.scheduler.on_removed("b", world.now))
    world.play(world.scheduler.on_removed("a", world.now))
    assert world.fates[waits] == "unknown_model"
    world.end(running)
    assert world.stopping == ["a"]
    request = SwapRequest("a")
    assert Refuse(request, "unknown_model") in world.scheduler.on_request(request, world.now)


# ---- what doesn't stop ----


def test_a_stop_that_fails_is_tried_again() -> None:
    world = world_of(ready=["a"])
    world.request("b")
    world.stopped("a", "it won't")
    assert world.stopping == []
    assert world.alarm == 1.0
    world.tick(1.0)
    again = [effect for effect in world.log if isinstance(effect, StopModel)][-1]
    assert (again.model, again.attempt) == ("a", 2)
    world.stopped("a")
    assert world.loading == ["b"]


def test_what_doesnt_stop_is_told_to_who_waited_for_its_place() -> None:
    world = world_of(options=SwapOptions(stop_attempts=2), ready=["a"])
    waits = world.request("b")
    world.stopped("a", "it won't")
    world.tick(1.0)
    world.stopped("a", "it still won't")
    refusal = [effect for effect in world.log if isinstance(effect, Refuse)][-1]
    assert refusal == Refuse(waits, "eviction_failed", "a does not stop: it still won't")
    assert ModelStopped("a", "it still won't") in world.log
    assert world.scheduler.statistics(1.0).models["a"].phase is Phase.STUCK
    # The next one tries again, also one for the model itself, which can't serve as it is.
    request = world.request("a")
    assert is_waiting(request)
    assert world.stopping == ["a"]
    world.stopped("a")
    world.loaded("a")
    assert is_granted(request)


def test_a_pinned_model_refuses_who_would_need_its_place() -> None:
    world = World(
        ONE_PLACE,
        {name: ModelOptions() for name in ONE_PLACE.models},
        ready=["a"],
        planner=ONE_PLACE.planner(pinned=["a"]),
    )
    request = world.request("b")
    refusal = [effect for effect in world.log if isinstance(effect, Refuse)][-1]
    assert refusal.request is request
    assert refusal.reason == "plan_refused"
    assert "pinned" in refusal.detail


def test_a_load_that_failed_and_left_its_process_behind_keeps_its_place() -> None:
    world = world_of()
    world.request("a")
    world.loaded("a", "not ready in time", is_left=True)
    assert world.scheduler.statistics(world.now).models["a"].phase is Phase.STUCK
    world.log.clear()
    other = world.request("b")
    assert kinds(world) == ["StartSwap b", "StopModel a"]
    world.stopped("a")
    world.loaded("b")
    assert is_granted(other)
