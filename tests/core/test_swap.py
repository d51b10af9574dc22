"""Models that take turns: each rule of the scheduler in a scenario of its own, with exact times."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from tests.core.swap_world import Places, World
from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.swap import SwapScheduler
from trio_mlxgate.core.swap_effects import (
    Grant,
    LoadModel,
    ModelStopped,
    Queued,
    Refuse,
    Ring,
    StartSwap,
    StopModel,
)
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.core.swap_queue import SwapRequest
from trio_mlxgate.core.swap_state import Phase
from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.errors import UnknownModel
from trio_mlxgate.priority import Priority

if TYPE_CHECKING:
    from collections.abc import Iterable

ONE_PLACE = Places("a", "b", "c", "d")
TWO_PLACES = Places("ab", "ac", "ad", "bc", "bd", "cd")
FOREGROUND, BACKGROUND = Priority.FOREGROUND, Priority.BACKGROUND


def world_of(
    places: Places = ONE_PLACE,
    options: SwapOptions | None = None,
    *,
    ready: Iterable[str] = (),
    **models: ModelOptions,
) -> World:
    return World(places, {name: models.get(name, ModelOptions()) for name in places.models}, options, ready=ready)


def fates(*requests: SwapRequest) -> list[str]:
    return [request.state.value for request in requests]


def is_waiting(request: SwapRequest) -> bool:
    return request.state is TicketState.WAITING


def is_granted(request: SwapRequest) -> bool:
    return request.state is TicketState.GRANTED


def is_refused(request: SwapRequest) -> bool:
    return request.state is TicketState.REJECTED


def kinds(world: World) -> list[str]:
    """What was told since this was last asked, without the alarms."""
    told = [effect for effect in world.log if not isinstance(effect, Ring | Queued)]
    world.log.clear()
    words = []
    for effect in told:
        if isinstance(effect, Grant | Refuse):
            words.append(f"{type(effect).__name__} {effect.request.model}")
        else:
            words.append(f"{type(effect).__name__} {effect.model}")
    return words


# ---- the simple cases ----


def test_a_request_brings_its_model_and_is_served() -> None:
    world = world_of()
    request = world.request("a")
    assert kinds(world) == ["StartSwap a", "LoadModel a"]
    world.now = 4.0
    world.loaded("a")
    assert kinds(world) == ["Grant a"]
    assert request.waited == 4.0
    world.end(request)
    assert kinds(world) == []
    assert world.scheduler.statistics(4.0).models["a"].phase is Phase.READY


def test_a_ready_model_serves_at_once() -> None:
    world = world_of(ready=["a"])
    world.request("a")
    assert kinds(world) == ["Grant a"]


def test_requests_join_the_load_that_is_going_on() -> None:
    world = world_of()
    for _ in range(3):
        world.request("a")
    world.loaded("a")
    assert kinds(world) == ["StartSwap a", "LoadModel a", "Grant a", "Grant a", "Grant a"]


def test_a_busy_model_is_never_stopped() -> None:
    world = world_of(ready=["a"])
    first, second = world.request("a"), world.request("a")
    world.request("b")
    world.end(first)
    assert kinds(world) == ["Grant a", "Grant a"]
    world.end(second)
    assert kinds(world) == ["StartSwap b", "StopModel a"]
    world.stopped("a")
    assert kinds(world) == ["ModelStopped a", "LoadModel b"]


def test_turns_are_as_few_as_can_be() -> None:
    world = world_of()
    requests = [world.request(model) for model in "abcabc"]
    world.finish()
    loads = [effect.model for effect in world.log if isinstance(effect, LoadModel)]
    served = [effect.request for effect in world.log if isinstance(effect, Grant)]
    assert loads == ["a", "b", "c"]
    assert served == [requests[index] for index in (0, 3, 1, 4, 2, 5)]


def test_thirty_requests_for_two_models_make_one_eviction() -> None:
    world = world_of()
    for number in range(30):
        world.now = number * 0.004
        world.request("ab"[number % 2])
    world.finish()
    assert world.scheduler.statistics(world.now).evictions == 1
    assert set(world.fates.values()) == {"granted"}


def test_the_limit_of_a_model_with_its_turn_going_on() -> None:
    world = world_of(a=ModelOptions(limit=1))
    order = [world.request(model) for model in "abaa"]
    world.finish()
    served = [effect.request for effect in world.log if isinstance(effect, Grant)]
    assert served == [order[0], order[2], order[3], order[1]], "who is there is served before the model goes"


def test_models_that_may_be_together_load_side_by_side() -> None:
    world = world_of(TWO_PLACES)
    world.request("a")
    world.request("b")
    assert kinds(world) == ["StartSwap a", "LoadModel a", "StartSwap b", "LoadModel b"]


def test_a_failed_load_is_told_to_all_who_waited() -> None:
    world = world_of()
    world.request("a")
    world.request("a")
    world.request("b")
    world.loaded("a", "no such file")
    refusals = [effect for effect in world.log if isinstance(effect, Refuse)]
    assert [(refusal.reason, refusal.detail) for refusal in refusals] == [("load_failed", "no such file")] * 2
    assert world.loading == ["b"], "the place is free for the next one"


def test_unknown_models() -> None:
    world = world_of()
    request = SwapRequest("z")
    assert world.scheduler.on_request(request, 0.0) == [Refuse(request, "unknown_model")]
    assert is_refused(request)
    assert world.scheduler.statistics(0.0).unknown == 1
    with pytest.raises(KeyError):
        world.scheduler.on_unload(["z"], 0.0)
    with pytest.raises(UnknownModel):
        SwapScheduler(ONE_PLACE.planner(), {"z": ModelOptions()})


def test_ending_twice_is_told() -> None:
    world = world_of(ready=["a"])
    request = world.request("a")
    world.end(request)
    with pytest.raises(RuntimeError, match="this request is not in flight"):
        world.scheduler.on_serve_done(request, 0.0)


# ---- identities ----


def test_a_report_of_an_older_swap_changes_nothing() -> None:
    world = world_of()
    world.request("a")
    older = world.swaps["a"]
    world.unload("a")
    world.stopped("a")
    request = world.request("a")
    newer = world.swaps["a"]
    assert newer != older
    world.log.clear()
    world.play(world.scheduler.on_swap_done(older, world.now))
    world.play(world.scheduler.on_swap_done(older, world.now, "killed"))
    assert kinds(world) == []
    assert is_waiting(request)
    world.loaded("a")
    assert is_granted(request)


def test_a_process_that_ended_by_itself_is_started_anew() -> None:
    world = world_of()
    first = world.request("a")
    world.loaded("a")
    old = world.processes["a"].load
    world.exit("a")
    world.end(first)
    second = world.request("a")
    world.loaded("a")
    assert world.processes["a"].load != old
    # The news of the first one's end, once more.
    assert world.scheduler.on_exit("a", old, world.now) == []
    assert is_granted(second)
    assert world.scheduler.statistics(world.now).models["a"].phase is Phase.READY


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


def test_one_that_is_in_nobodys_way_starts_at_once() -> None:
    places = Places("ac", "bc")
    world = world_of(places, ready=["a"])
    world.request("a")
    world.request("b", FOREGROUND)
    world.request("c", BACKGROUND)
    assert world.loading == ["c"]


# ---- the limit ----


def test_at_the_limit_requests_queue() -> None:
    world = world_of(ready=["a"], a=ModelOptions(limit=2))
    requests = [world.request("a") for _ in range(3)]
    assert fates(*requests) == ["granted", "granted", "waiting"]
    world.end(requests[0])
    assert is_granted(requests[2])


def test_the_default_limit_is_ten() -> None:
    world = world_of(ready=["a"])
    requests = [world.request("a") for _ in range(11)]
    assert fates(*requests) == ["granted"] * 10 + ["waiting"]


def test_max_waiting_refuses_with_an_honest_retry_after() -> None:
    world = world_of(ready=["a"], a=ModelOptions(limit=1, max_waiting=1))
    first = world.request("a")
    world.now = 4.0
    world.end(first)
    world.request("a")
    world.request("a")
    world.now = 5.0
    world.log.clear()
    refused = world.request("a")
    # One that takes three seconds more, and one of four.
    assert [effect for effect in world.log if isinstance(effect, Refuse)] == [Refuse(refused, "queue_full", "", 7.0)]


def test_max_waiting_counts_from_the_limit_while_the_model_loads() -> None:
    world = world_of(a=ModelOptions(limit=2, max_waiting=1))
    requests = [world.request("a") for _ in range(4)]
    assert fates(*requests) == ["waiting"] * 3 + ["rejected"]
    world.loaded("a")
    assert fates(*requests) == ["granted"] * 2 + ["waiting", "rejected"]


def test_who_is_served_at_once_is_never_refused() -> None:
    world = world_of(ready=["a"], a=ModelOptions(limit=2, max_waiting=0))
    world.request("a", BACKGROUND)
    world.request("b", 50)
    waits = world.request("a", BACKGROUND)
    assert is_waiting(waits)
    better = world.request("a", FOREGROUND, max_wait=0.0)
    assert is_granted(better)


def test_max_wait_ends_a_wait() -> None:
    world = world_of()
    request = world.request("a", max_wait=3.0)
    assert world.alarm == 3.0
    world.tick(3.0)
    assert world.fates[request] == "wait_too_long"


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


# ---- groups ----


def test_an_exclusive_model_sends_others_away_also_if_it_is_ready() -> None:
    groups = Groups(
        {"big": Group(members=("a",), exclusive=True), "small": Group(members=("b",), exclusive=False)},
        models=["a", "b"],
    )
    world = World(Places("ab"), {"a": ModelOptions(), "b": ModelOptions()}, ready=["a"], planner=groups)
    world.request("b")
    world.loaded("b")
    world.log.clear()
    waits = world.request("a")
    assert is_waiting(waits)
    world.end(world.in_flight["b"][0])
    assert kinds(world) == ["StartSwap a", "StopModel b"]
    world.stopped("b")
    assert kinds(world) == ["ModelStopped b", "LoadModel a"], "that it is up already is the report"
    world.loaded("a")
    assert is_granted(waits)


# ---- positions and estimates ----


def test_positions_are_told_to_who_watches() -> None:
    world = world_of(ready=["a"])
    running = world.request("a")
    other = world.request("b")
    watched = world.request("c", watched=True)
    better = world.request("d", FOREGROUND, watched=True)
    world.cancel(other)
    told = [(effect.request, effect.position) for effect in world.log if isinstance(effect, Queued)]
    assert told == [(watched, 2), (better, 1), (watched, 3), (watched, 2)]
    world.log.clear()
    world.end(running)
    told = [(effect.request, effect.position) for effect in world.log if isinstance(effect, Queued)]
    assert told == [(watched, 1)], "the better one's model is coming: it stands in no queue"


def test_an_estimate_is_made_of_what_was_measured() -> None:
    world = world_of()
    first = world.request("a")
    assert world.scheduler.estimated_wait(first, 0.0) is None
    world.now = 8.0
    world.loaded("a")
    world.now = 11.0
    world.end(first)
    second = world.request("b")
    assert world.scheduler.estimated_wait(second, 11.0) is None, "no stop was measured"
    world.now = 12.0
    world.stopped("a")
    world.now = 15.0
    assert world.scheduler.estimated_wait(second, 15.0) == 5.0, "it takes as long as the load of a did"
    world.now = 16.0
    world.loaded("b")
    third = world.request("a")
    assert world.scheduler.estimated_wait(third, 16.0) is None, "nobody of b has ended"
    world.now = 19.0
    world.end(second)
    # A stop as long as that of a, and a load of a.
    assert world.scheduler.estimated_wait(third, 19.0) == 1.0 + 8.0
    world.now = 21.0
    world.stopped("b")
    world.now = 29.0
    world.loaded("a")
    world.now = 30.0
    world.log.clear()
    fourth, fifth = world.request("b", watched=True), world.request("c", watched=True)
    # What runs ends after 3 s as the one before did; then a stops in 1 s, and b loads in 4.
    told = [effect for effect in world.log if isinstance(effect, Queued)]
    assert told[0] == Queued(fourth, 1, 2.0 + 1.0 + 4.0)
    # Then the turn of b, 3 s of its own kind, and c, which takes what loads took on an average.
    assert told[1] == Queued(fifth, 2, 7.0 + 3.0 + 1.0 + (8.0 + 8.0 + 4.0) / 3)


def test_bad_options_are_told() -> None:
    with pytest.raises(TypeError, match="limit must be an int >= 0, not '3'"):
        ModelOptions(limit="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ttl must be >= 0 seconds"):
        ModelOptions(ttl=-1.0)
    with pytest.raises(ValueError, match="max_waiting must be >= 0, not -1"):
        ModelOptions(max_waiting=-1)
    with pytest.raises(TypeError, match="a priority is an int"):
        ModelOptions(priority="high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_bypass must be >= 0 seconds"):
        SwapOptions(max_bypass=math.nan)
    with pytest.raises(ValueError, match="stop_attempts must be >= 1, not 0"):
        SwapOptions(stop_attempts=0)
    with pytest.raises(TypeError, match="reserve must be True or False"):
        SwapOptions(reserve=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a priority is an int"):
        SwapRequest("a", 1.5)  # type: ignore[arg-type]
