"""The swap scheduler: requests, limits, reports and estimates, each rule in a scenario of its own."""

from __future__ import annotations

import math

import pytest

from tests.core.swap_world import (
    BACKGROUND,
    FOREGROUND,
    ONE_PLACE,
    TWO_PLACES,
    Places,
    World,
    fates,
    is_granted,
    is_refused,
    is_waiting,
    kinds,
    world_of,
)
from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.swap import SwapScheduler
from trio_mlxgate.core.swap_effects import (
    LOAD_FAILED,
    Evicting,
    Grant,
    Loading,
    LoadModel,
    Queued,
    Refuse,
)
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.core.swap_queue import SwapRequest
from trio_mlxgate.core.swap_state import Phase
from trio_mlxgate.core.ticket import WOULD_BLOCK
from trio_mlxgate.errors import UnknownModel

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
    kinds(world)
    world.exit("a")
    assert kinds(world) == ["StopModel a"]  # what is left of it takes its place until that is told
    world.end(first)
    second = world.request("a")
    assert is_waiting(second)
    assert kinds(world) == ["StartSwap a"]
    world.stopped("a")
    assert kinds(world) == ["ModelStopped a", "LoadModel a"]
    world.loaded("a")
    assert world.processes["a"].load != old
    # The news of the first one's end, once more.
    assert world.scheduler.on_exit("a", old, world.now) == []
    assert is_granted(second)
    assert world.scheduler.statistics(world.now).models["a"].phase is Phase.READY


def test_what_is_left_of_a_process_that_ended_keeps_its_place() -> None:
    world = world_of()
    world.request("a")
    world.loaded("a")
    other = world.request("b")
    world.exit("a")
    assert world.loading == []
    assert is_waiting(other)
    world.stopped("a")
    assert world.loading == ["b"]


def test_a_model_that_fails_too_often_is_refused_until_it_may_be_tried_again() -> None:
    world = world_of(ready=["b"])
    first = world.request("a")
    world.stopped("b")
    world.loaded("a", "no memory", retry_at=5.0)
    assert is_refused(first)
    other = world.request("b")
    world.loaded("b")
    world.tick(2.0)
    again = world.request("a")
    assert is_refused(again)
    assert world.log[-1] == Refuse(again, LOAD_FAILED, "no memory", 3.0)
    assert is_granted(other)
    world.end(other)
    assert world.stopping == [], "nobody goes for a model that can't come"
    world.tick(3.0)
    later = world.request("a")
    assert is_waiting(later)
    assert world.stopping == ["b"]


def test_an_unload_forgets_that_a_model_failed() -> None:
    world = world_of()
    world.request("a")
    world.loaded("a", "no memory", retry_at=5.0)
    world.unload("a")
    assert is_waiting(world.request("a"))


def test_who_waits_for_a_model_that_is_given_up_is_told() -> None:
    world = world_of(a=ModelOptions(limit=1))
    served = world.request("a")
    world.loaded("a")
    waiter = world.request("a")
    world.exit("a", "killed", retry_at=30.0)
    assert is_granted(served)
    assert Refuse(waiter, LOAD_FAILED, "killed") in world.log
    world.end(served)
    world.stopped("a")
    assert world.loading == []
    assert is_refused(world.request("a"))


def test_one_that_does_not_wait_changes_nothing() -> None:
    world = world_of(ready=["a"], a=ModelOptions(limit=1))
    elsewhere = world.request("b", nowait=True)
    assert world.log == [Refuse(elsewhere, WOULD_BLOCK)]
    assert is_refused(elsewhere)
    assert world.stopping == []
    served = world.request("a", nowait=True)
    assert is_granted(served)
    assert is_refused(world.request("a", nowait=True))
    waiter = world.request("b")
    world.end(served)
    assert is_refused(world.request("a", nowait=True)), "nobody goes past who waits"
    assert is_waiting(waiter)


def test_what_is_due_when_a_process_ends_serves_nobody_with_it() -> None:
    world = world_of(ready=["a"], a=ModelOptions(limit=2))
    world.request("a")
    world.request("b", FOREGROUND, max_wait=2.0)
    waiter = world.request("a")
    assert is_waiting(waiter), "b, which goes first, has closed it"
    world.now = 2.0
    world.exit("a")
    assert is_waiting(waiter)
    world.stopped("a")
    world.loaded("a")
    assert is_granted(waiter)


def test_who_leaves_in_the_moment_in_which_something_is_due_is_cancelled() -> None:
    world = world_of()
    late = world.request("a", max_wait=2.0)
    world.now = 2.0
    world.cancel(late)
    assert fates(late) == ["cancelled"]
    # Were it to go on waiting, it would be granted now: who closed its model to it has waited for long enough.
    world = world_of(ready=["a"], a=ModelOptions(limit=2))
    world.request("a")
    world.request("b", FOREGROUND, max_wait=2.0)
    leaves = world.request("a")
    assert is_waiting(leaves)
    world.now = 2.0
    world.cancel(leaves)
    assert fates(leaves) == ["cancelled"]
    assert world.scheduler.statistics(world.now).models["a"].in_flight == 1


def test_progress_is_told_step_by_step() -> None:
    world = world_of(ready=["a"], a=ModelOptions(limit=1))
    served = world.request("a")
    watched = world.request("b", watched=True)
    joined = world.request("b")
    world.end(served)
    late = world.request("b", watched=True)
    world.stopped("a")
    world.loaded("b")
    told = [effect for effect in world.log if isinstance(effect, Queued | Evicting | Loading)]
    assert [(type(effect), effect.request) for effect in told] == [
        (Queued, watched),
        (Evicting, watched),
        (Evicting, late),
        (Loading, watched),
        (Loading, late),
    ]
    assert isinstance(told[1], Evicting)
    assert told[1].models == ("a",)
    assert fates(watched, joined, late) == ["granted"] * 3


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
