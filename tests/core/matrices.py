"""Matrices and moments made up at random, and the plan that a reader would find who writes all choices down."""

from __future__ import annotations

import math
import random
from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import attrs
from hypothesis import strategies as st

from tests.core.eager import expand_all, frontier_of
from trio_mlxgate.core.matrix import Matrix
from trio_mlxgate.core.permitted_sets import permitted_sets

if TYPE_CHECKING:
    from trio_mlxgate.core.matrix import Ties

MODELS: Final = tuple("abcdefghijkl")


@attrs.frozen(kw_only=True)
class Question:
    """A matrix, and what is asked of it."""

    sets: dict[str, str]
    models: tuple[str, ...]
    costs: dict[str, float]
    pinned: frozenset[str]
    target: str
    running: tuple[str, ...]
    busy: frozenset[str]
    last_used: dict[str, float]

    def matrix(self, ties: Ties) -> Matrix:
        return Matrix(self.sets, models=self.models, evict_costs=self.costs, pinned=self.pinned, ties=ties, limit=10**9)


def _expression(draw: random.Random, names: list[str], references: list[str], leaves: int, once: bool) -> str:
    """Some expression; with ``once`` each name is taken off the list when it is used."""
    if leaves <= 1:
        if references and draw.random() < 0.2:
            return f"+{draw.choice(references)}"
        place = draw.randrange(len(names))
        return names.pop(place) if once else names[place]
    count = min(draw.choice([2, 2, 3, 4]), leaves)
    parts = [_expression(draw, names, references, leaves // count, once) for _ in range(count)]
    sign = draw.choice(" &|")
    return f"({(sign if sign != ' ' else '&').join(parts)})"


@st.composite
def questions(draw: st.DrawFn, *, once: bool = False, parity: bool = False) -> Question:
    """Any question of up to 12 models.

    Args:
      once: whether a model occurs once in a set.
      parity: whether costs are as llama-swap has them, whole numbers > 0.
    """
    # Hypothesis makes up a seed: such trees shrink badly anyhow, and are made much faster this way.
    dice = random.Random(draw(st.integers(0, 2**32)))
    models = MODELS[: draw(st.integers(1, len(MODELS)))]
    # The order of definition is not that in which they can refer to each other.
    names = [f"s{number}" for number in range(draw(st.integers(1, 5)))]
    made: dict[str, str] = {}
    for name in names:
        # A model that is never in a set: it runs alone.
        within = list(models[1:] if len(models) > 1 and dice.random() < 0.3 else models)
        references = [] if once else [other for other in made if len(made[other]) < 30][:2]
        made[name] = _expression(dice, within, references, dice.randint(1, len(within) if once else 12), once)
    order = draw(st.permutations(names))
    costs: list[float] = [1, 2, 3] if parity else [0, 1, 2, 0.5, 0.1, 0.2, 0.3, 30]
    unknown = () if parity else ("stranger",)
    running = tuple(model for model in (*models, *unknown) if dice.random() < draw(st.sampled_from([0.3, 0.6, 0.9])))
    moments: list[float] = [dice.choice([1.0, 2.0, 3.0, 4.0, dice.random()]) for _ in running]
    return Question(
        sets={name: made[name] for name in order},
        models=models,
        costs={model: dice.choice(costs) for model in models if dice.random() < 0.6},
        pinned=frozenset(model for model in models if dice.random() < draw(st.sampled_from([0.0, 0.1]))),
        target=dice.choice(models),
        running=running,
        busy=frozenset(model for model in running if dice.random() < 0.4),
        last_used={model: moment for model, moment in zip(running, moments, strict=True) if dice.random() < 0.8},
    )


def cost_of(question: Question, names: frozenset[str]) -> Fraction:
    return sum((Fraction(str(question.costs.get(name, 1))) for name in names), Fraction())


def choices_of(question: Question, ties: Ties) -> list[tuple[str, frozenset[str]]]:
    """All choices in the order that counts, each with its set."""
    if ties == "usage":
        return expand_all(question.sets, question.models)
    return [
        (one.name, choice)
        for one in permitted_sets(question.sets, question.models, {}, limit=10**9)
        for _, choice in frontier_of(question.sets, one.name, {*question.running, question.target})
    ]


def by_hand(question: Question, ties: Ties) -> tuple[str, frozenset[str], frozenset[str]]:
    """The best plan: its set, what is to be stopped, and what may run together."""
    running = frozenset(question.running)

    def key(choice: frozenset[str]) -> tuple[Any, ...]:
        gone = running - choice
        pins = len(gone & question.pinned)
        if ties == "definition":
            return pins, cost_of(question, gone)
        moments = {name: question.last_used.get(name, -math.inf) for name in running}
        counts = Counter(moments[name] for name in gone)
        ages = tuple(counts[moment] for moment in sorted(set(moments.values()), reverse=True))
        return pins, cost_of(question, gone), len(gone & question.busy), ages

    choices = [pair for pair in choices_of(question, ties) if question.target in pair[1]]
    if not choices:
        return "", running, frozenset([question.target])
    name, choice = min(choices, key=lambda pair: key(pair[1]))
    return name, running - choice, choice
