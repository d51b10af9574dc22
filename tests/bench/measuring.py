"""Rounds, medians and ratios."""

from __future__ import annotations

import gc
import random
import statistics
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.subjects import Subject
    from tests.bench.workloads import Run, Table, Workload


@attrs.frozen
class Cell:
    """What was measured of one subject under one workload."""

    value: float
    """CPU time of one operation in microseconds, or bytes: the median over the rounds."""

    ratio: float | None
    """The median over the rounds of this value divided by the reference's of the same round; None without reference."""

    quartiles: tuple[float, float] | None
    """Between which ratios the middle half of the rounds lies."""


def measure(workload: Workload, table: Table) -> dict[str, Cell]:
    """Measure all subjects in interleaved rounds: each round has one sample of each, in random order."""
    names = [name for name in table.subjects if not (workload.only_gates and not name.startswith("Gate"))]
    names = [name for name in names if name != workload.leave_out]
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(workload.rounds):
        for name in random.sample(names, len(names)):
            samples[name].append(_sample(workload, table.subjects[name], table.run))
    reference = samples.get(table.reference)
    cells = {}
    for name, seconds in samples.items():
        ratio = quartiles = None
        if reference is not None:
            ratios = [mine / other for mine, other in zip(seconds, reference, strict=True)]
            ratio = statistics.median(ratios)
            low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratio, ratio, ratio)
            quartiles = (low, high)
        cells[name] = Cell(statistics.median(seconds) * workload.scale, ratio, quartiles)
    return cells


def _sample(workload: Workload, make: Callable[[], Subject], run: Run) -> float:
    """One sample, in a run of its own; the garbage collector has run before and rests meanwhile."""

    async def main() -> float:
        return await workload.measure(make())

    gc.collect()
    gc.disable()
    try:
        return run(main)
    finally:
        gc.enable()
