"""What ours does better than what was recorded of llama-swap's scheduler, case by case."""

from __future__ import annotations

from tests.models.recorded import Ours, named
from trio_mlxgate.core.swap_effects import Grant
from trio_mlxgate.core.ticket import TicketState


def test_a_better_priority_closes_the_fast_path() -> None:
    vector = named("lab_starvation_even_high_priority")
    ours = Ours(vector)
    ours.request("a1", "a")
    ours.request("b1", "b")
    assert ours.request("a2", "a").state is TicketState.WAITING, "there it is served at once"
    ours.end(ours.requests["a1"])
    ours.work()
    assert ours.requests["b1"].state is TicketState.GRANTED


def test_a_lower_one_doesnt_take_the_place_at_drain() -> None:
    ours = Ours(named("lab_priority_inversion_on_drain"))
    for name, model in [("x1", "x"), ("y1", "y"), ("h1", "hi"), ("l1", "lo")]:
        ours.request(name, model)
    ours.end(ours.requests["y1"])
    assert not ours.stops, "there the lower one takes its place"
    ours.end(ours.requests["x1"])
    ours.work()
    assert ours.requests["h1"].state is TicketState.GRANTED


def test_a_stale_success_grants_nothing() -> None:
    ours = Ours(named("lab_stale_success_after_unload"))
    ours.request("r1", "a")
    older = ours.loads["a"]
    ours.tell(ours.scheduler.on_unload(["a"], ours.now, at_once=True))
    newer = ours.request("r2", "a")
    ours.tell(ours.scheduler.on_stopped(ours.stops.pop("a"), ours.now))
    ours.tell(ours.scheduler.on_swap_done(older, ours.now))
    assert newer not in ours.in_flight(), "there it is granted while the process isn't ready"
    ours.work()
    assert newer in ours.in_flight()


def test_a_load_that_nobody_waits_for_is_given_up() -> None:
    ours = Ours(named("lab_cancel_sole_waiter_swap_continues"))
    ours.request("r1", "a")
    ours.request("r2", "b")
    ours.tell(ours.scheduler.on_cancel(ours.requests["r1"], ours.now))
    assert list(ours.stops) == ["a"], "there b waits for the whole load of a"
    ours.work()
    assert ours.requests["r2"].state is TicketState.GRANTED


def test_two_slots_are_filled_side_by_side() -> None:
    ours = Ours(named("lab_two_slots_replacement_is_serial"))
    ours.request("c1", "c")
    ours.request("d1", "d")
    assert sorted(ours.stops) == ["a", "b"], "there d waits until c has been served"
    ours.work()
    assert [ours.requests[name].state for name in ("c1", "d1")] == [TicketState.GRANTED] * 2


def test_nothing_is_granted_after_the_shutdown() -> None:
    ours = Ours(named("lab_shutdown_then_swap_done"))
    request = ours.request("r1", "a")
    load = ours.loads["a"]
    ours.tell(ours.scheduler.on_shutdown(ours.now))
    assert not [effect for effect in ours.scheduler.on_swap_done(load, ours.now) if isinstance(effect, Grant)]
    assert request.state is TicketState.REJECTED
