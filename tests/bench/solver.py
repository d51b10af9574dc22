"""How long a plan takes: the matrix beside an expander that has written all choices down and looks at each.

An operation is one question: a model that doesn't run, while others do. *configuration* is what is made of the text
beforehand, for both. Where the expander would have to write down more than :data:`MOST_CHOICES`, it has no number. That
both find the same cost is asserted once for each row.
"""

from __future__ import annotations

import gc
import random
import statistics
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from tests.bench.measuring import Cell
from tests.bench.subjects import cpu_seconds
from tests.core.eager import TooMany, expand_all
from trio_mlxgate.core.matrix import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OURS: Final = "Matrix"
WRITTEN_DOWN: Final = "all choices written down"
MOST_CHOICES: Final = 20_000

Choices: TypeAlias = "list[tuple[str, frozenset[str]]]"


@attrs.frozen(kw_only=True)
class Case:
    """One matrix, and one question to it."""

    name: str
    sets: dict[str, str]
    models: Sequence[str]
    target: str
    running: Sequence[str]

    def matrix(self) -> Matrix:
        return Matrix(self.sets, models=self.models)

    def written_down(self) -> Choices | None:
        try:
            return expand_all(self.sets, self.models, most=MOST_CHOICES)
        except TooMany:
            return None

    def least_cost(self, choices: Choices) -> int:
        """What the expander finds: the least that is left out, of all choices that have the target."""
        target, running = self.target, self.running
        least = len(running)
        for _, choice in choices:
            if target in choice:
                cost = sum([name not in choice for name in running])
                least = min(least, cost)
        return least


def cases(*, quick: bool) -> list[Case]:
    """What is asked; the models of a set are chosen at random, and always the same ones."""
    models = [f"m{number}" for number in range(40)]
    found = []
    for count in (10, 100) if quick else (10, 100, 1000):
        dice = random.Random(count)
        sets = {
            f"s{number}": " & ".join(f"({' | '.join(dice.sample(models, 3))})" for _ in range(3))
            for number in range(count)
        }
        found.append(Case(name=f"{count} sets", sets=sets, models=models, target="m0", running=models[1:9]))
    pairs = [f"{side}{number}" for number in range(14) for side in "ab"]
    triples = [f"gpu{place}-{size}" for place in range(8) for size in "sml"]
    return [
        *found,
        Case(
            name="14 pairs",
            sets={"s": " & ".join(f"(a{number} | b{number})" for number in range(14))},
            models=pairs,
            target="a0",
            running=pairs[1::2],
        ),
        Case(
            name="8 accelerators, 3 models each",
            sets={"s": " & ".join(f"({' | '.join(triples[place : place + 3])})" for place in range(0, 24, 3))},
            models=triples,
            target="gpu0-l",
            running=triples[::3],
        ),
        Case(
            name="8 places, each for any of 12",
            sets={"s": " & ".join([f"({' | '.join(models[:12])})"] * 8)},
            models=models[:12],
            target="m0",
            running=models[1:9],
        ),
    ]


def results(*, quick: bool, only: str = "") -> dict[str, dict[str, Cell]]:
    """All rows whose name contains ``only``."""
    found: dict[str, dict[str, Cell]] = {}
    for case in cases(quick=quick):
        name = f"plan, {case.name}"
        if only in name:
            found |= {name: _asked(case, quick=quick), f"configuration, {case.name}": _configured(case, quick=quick)}
    return found


def _asked(case: Case, *, quick: bool) -> dict[str, Cell]:
    matrix, choices = case.matrix(), case.written_down()
    subjects: dict[str, Callable[[], object]] = {OURS: lambda: matrix.evictions(case.target, case.running)}
    if choices is not None:
        subjects[WRITTEN_DOWN] = lambda: case.least_cost(choices)
        assert matrix.evictions(case.target, case.running).cost == case.least_cost(choices)
    return _measured(subjects, rounds=2 if quick else 21, times=2 if quick else 20)


def _configured(case: Case, *, quick: bool) -> dict[str, Cell]:
    subjects: dict[str, Callable[[], object]] = {OURS: case.matrix}
    if case.written_down() is not None:
        subjects[WRITTEN_DOWN] = case.written_down
    return _measured(subjects, rounds=2 if quick else 5, times=1)


def _measured(subjects: dict[str, Callable[[], object]], *, rounds: int, times: int) -> dict[str, Cell]:
    """Interleaved rounds; ratios are to the expander, where there is one."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name in random.sample([*subjects], len(subjects)):
            call = subjects[name]
            gc.collect()
            gc.disable()
            try:
                start = cpu_seconds()
                for _ in range(times):
                    call()
                samples[name].append((cpu_seconds() - start) / times)
            finally:
                gc.enable()
    cells = {}
    for name, seconds in samples.items():
        ratio = quartiles = None
        if WRITTEN_DOWN in samples:
            ratios = [mine / max(other, 1e-9) for mine, other in zip(seconds, samples[WRITTEN_DOWN], strict=True)]
            ratio = statistics.median(ratios)
            low, _, high = statistics.quantiles(ratios, n=4)
            quartiles = (low, high)
        cells[name] = Cell(statistics.median(seconds) * 1e6, ratio, quartiles)
    return cells
