"""Rounds, medians and ratios."""

from __future__ import annotations

import gc
import random
import statistics
from typing import TYPE_CHECKING

import attrs
import trio

from tests.bench.subjects import REFERENCE, SUBJECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.subjects import Subject
    from tests.bench.workloads import Workload


@attrs.frozen
class Cell:
    """What was measured of one subject under one workload."""

    microseconds: float
    """CPU time of one operation: the median over the rounds."""

    ratio: float | None
    """The median over the rounds of this time divided by the reference's of the same round; None without reference."""

    quartiles: tuple[float, float] | None
    """Between which ratios the middle half of the rounds lies."""


def measure(workload: Workload) -> dict[str, Cell]:
    """Measure all subjects in interleaved rounds: each round has one sample of each, in random order."""
    names = [name for name in SUBJECTS if not (workload.only_gates and not name.startswith("Gate"))]
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(workload.rounds):
        for name in random.sample(names, len(names)):
            samples[name].append(_sample(workload, SUBJECTS[name]))
    reference = samples.get(REFERENCE)
    cells = {}
    for name, seconds in samples.items():
        ratio = quartiles = None
        if reference is not None:
            ratios = [mine / other for mine, other in zip(seconds, reference, strict=True)]
            ratio = statistics.median(ratios)
            low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratio, ratio, ratio)
            quartiles = (low, high)
        cells[name] = Cell(statistics.median(seconds) * 1e6, ratio, quartiles)
    return cells


def _sample(workload: Workload, make: Callable[[], Subject]) -> float:
    """One sample, in a trio run of its own; the garbage collector has run before and rests meanwhile."""

    async def main() -> float:
        return await workload.measure(make())

    gc.collect()
    gc.disable()
    try:
        return trio.run(main)
    finally:
        gc.enable()
