"""What a decision of the swap scheduler costs, and what its decisions are worth on a made trace.

*decision*: a request for the ready model that is served and ends, and one for another model that waits and is
cancelled, while so many others wait for seven other models: four events. Beside it the same in parity mode, where
nobody is closed out and nothing is reserved.

*busy* and *steady* are made traces of four models that take turns in one place, two hours long: what is shown is how
many were stopped for others, and how long requests wait. A load takes 20 s and a stop 2 s. In the busy one each model
has quiet times and bursts; in the steady one the first is never idle, and the others are wanted now and then. *FIFO
parity* decides as llama-swap does, but queues at the limit. The *offline bound* of evictions knows the whole trace
beforehand: so many are needed by whoever lets nobody wait longer than ours did at most. That of the waits gives each
model a place of its own.
"""

from __future__ import annotations

import gc
import random
import statistics
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from tests.bench.measuring import Cell
from tests.bench.subjects import cpu_seconds
from tests.core.swap_world import Places, Timed, World
from trio_mlxgate.core.swap import SwapScheduler
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.core.swap_queue import SwapRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS: Final = "SwapScheduler"
PARITY: Final = "FIFO parity"
BOUND: Final = "offline bound"
LOAD, STOP = 20.0, 2.0

SUBJECTS: Final = {OURS: SwapOptions(), PARITY: SwapOptions.parity()}


@attrs.frozen
class Arrival:
    """One request of the trace."""

    when: float
    model: str
    priority: int
    hold: float


def busy(seconds: float) -> list[Arrival]:
    """Each model has quiet times and bursts; behind a third of the requests a person waits."""
    arrivals = []
    for number, model in enumerate("abcd"):
        dice = random.Random(number)
        now = 0.0
        while now < seconds:
            now += dice.expovariate(1 / 240)
            ends = now + dice.expovariate(1 / 60)
            while now < min(ends, seconds):
                arrivals.append(Arrival(now, model, dice.choice([0, 100, 100]), dice.uniform(1, 6)))
                now += dice.expovariate(1 / 3)
    return sorted(arrivals, key=lambda arrival: arrival.when)


def steady(seconds: float) -> list[Arrival]:
    """One model has a request every two seconds that takes three; each other one has a request every ten minutes."""
    dice = random.Random(0)
    arrivals = [Arrival(2.0 * number, "a", 100, 3.0) for number in range(int(seconds / 2))]
    for model in "bcd":
        now = dice.expovariate(1 / 600)
        while now < seconds:
            arrivals.append(Arrival(now, model, 100, dice.uniform(1, 6)))
            now += dice.expovariate(1 / 600)
    return sorted(arrivals, key=lambda arrival: arrival.when)


def results(*, quick: bool, only: str = "") -> dict[str, dict[str, Cell]]:
    """All rows whose name contains ``only``."""
    found: dict[str, dict[str, Cell]] = {}
    for queued in (10, 100, 1000):
        name = f"decisions of a swap, {queued} queued, per second"
        if only in name:
            found[name] = _decisions(queued, quick=quick)
    for name, made in {"busy": busy, "steady": steady}.items():
        if only in f"swap, {name} trace":
            found |= _played(f"swap, {name} trace", made(600.0 if quick else 7200.0))
    return found


# ---- what a decision costs ----


def _decisions(queued: int, *, quick: bool) -> dict[str, Cell]:
    rounds, times = (2, 2) if quick else (15, 50)
    samples: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for _ in range(rounds):
        for name in random.sample([*SUBJECTS], len(SUBJECTS)):
            samples[name].append(_per_second(SUBJECTS[name], queued, times))
    ratios = [mine / other for mine, other in zip(samples[OURS], samples[PARITY], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        OURS: Cell(statistics.median(samples[OURS]), statistics.median(ratios), (low, high)),
        PARITY: Cell(statistics.median(samples[PARITY]), None, None),
    }


def _per_second(options: SwapOptions, queued: int, times: int) -> float:
    places = Places(*"abcdefgh")
    scheduler = SwapScheduler(
        places.planner(), {name: ModelOptions(limit=2) for name in "abcdefgh"}, options, ready="a"
    )
    scheduler.on_request(SwapRequest("a"), 0.0)
    for number in range(queued):
        scheduler.on_request(SwapRequest("bcdefgh"[number % 7], number % 3), 0.0)
    gc.collect()
    gc.disable()
    start = cpu_seconds()
    for number in range(times):
        now = number * 1e-3
        # Better than all who wait: the model is open to it.
        served, waits = SwapRequest("a", 0), SwapRequest("h", 50)
        scheduler.on_request(served, now)
        scheduler.on_request(waits, now)
        scheduler.on_serve_done(served, now)
        scheduler.on_cancel(waits, now)
    took = cpu_seconds() - start
    gc.enable()
    return 4 * times / took


# ---- what decisions are worth ----


def _played(name: str, arrivals: Sequence[Arrival]) -> dict[str, dict[str, Cell]]:
    evictions: dict[str, Cell] = {}
    means: dict[str, Cell] = {}
    longest: dict[str, Cell] = {}
    people: dict[str, Cell] = {}
    for subject, options in SUBJECTS.items():
        world, waits = play(arrivals, options, Places(*"abcd"))
        evictions[subject] = _plain(world.scheduler.statistics(world.now).evictions)
        means[subject] = _plain(statistics.fmean(waits))
        longest[subject] = _plain(max(waits))
        people |= _of_people(subject, arrivals, waits)
    _, waits = play(arrivals, SwapOptions(), Places("abcd"))
    evictions[BOUND] = _plain(least_evictions(arrivals, longest[OURS].value))
    means[BOUND] = _plain(statistics.fmean(waits))
    longest[BOUND] = _plain(max(waits))
    people |= _of_people(BOUND, arrivals, waits)
    return {
        f"{name}, evictions": evictions,
        f"{name}, mean wait, s": means,
        f"{name}, mean wait of people, s": people,
        f"{name}, longest wait, s": longest,
    }


def play(arrivals: Sequence[Arrival], options: SwapOptions, places: Places) -> tuple[World, list[float]]:
    """Play the trace; returns how long each request waited, in the order of the trace."""
    world = World(places, {name: ModelOptions(limit=4) for name in places.models}, options)
    timed = Timed(world, lambda kind: LOAD if kind == "load" else STOP)
    for arrival in arrivals:
        timed.at(arrival.when, partial(timed.arrive, arrival.model, arrival.priority, arrival.hold))
    timed.run()
    return world, [world.granted_at[request] - request.arrived_at for request in world.requests]


def least_evictions(arrivals: Sequence[Arrival], longest: float) -> int:
    """How many swaps anybody needs in one place who lets nobody wait longer than ``longest`` seconds.

    Of two requests for different models, of which one comes after the other must have been served, a swap lies between.
    So the longest chain of such requests counts: each time that one is taken which must be served first.
    """
    chain, served_by, model = 0, -1.0, ""
    for arrival in sorted(arrivals, key=lambda arrival: arrival.when + longest):
        if arrival.when > served_by and arrival.model != model:
            chain += 1
            served_by, model = arrival.when + longest, arrival.model
    return max(0, chain - 1)


def _of_people(subject: str, arrivals: Sequence[Arrival], waits: Sequence[float]) -> dict[str, Cell]:
    people = [wait for arrival, wait in zip(arrivals, waits, strict=True) if not arrival.priority]
    return {subject: _plain(statistics.fmean(people))} if people else {}


def _plain(value: float) -> Cell:
    return Cell(value, None, None)
