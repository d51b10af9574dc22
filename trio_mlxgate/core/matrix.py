"""Which models may run together, said by sets: the plan that costs least, and of equal ones the gentlest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from trio_mlxgate.core.permitted_sets import MOST_STEPS, PermittedSet, permitted_sets
from trio_mlxgate.core.planning import NEVER_USED, Plan, check_name, check_names, refuse_if_pinned
from trio_mlxgate.core.set_expressions import is_identifier
from trio_mlxgate.errors import UnknownModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from trio_mlxgate.core.cover import Choice

Ties: TypeAlias = Literal["usage", "definition"]
"""Of plans that cost the same: "usage" looks at who is busy and who was used last, "definition" only at the text."""

_FRONTIER_BUDGET: Final = 200_000
"""How many comparisons llama-swap's own order may cost, beyond which it is that of the text."""

_DEAREST: Final = 1e300
"""The highest cost of a model: that of all of them together is still a number."""

_NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
_NO_COSTS: Final[Mapping[str, float]] = MappingProxyType({})


class Matrix:
    """A planner after llama-swap's matrix: each set permits its models together, and every part of it.

    If the model that is asked for is running, nothing goes. Otherwise, of all sets that can hold it, that one counts
    which leaves out the least: the sum of ``evict_costs`` over the running models that it has no place for. Plans of
    equal cost are told apart, with ``ties="usage"``, by

    1. how many busy models go: fewer are better;
    2. who goes: of two plans, look at the model most recently used that only one of them stops; the other plan is
       better. Of models that were used at the same moment, or never, fewer are better;
    3. the order of definition: earlier sets, a set after those that it refers to, and in a set earlier alternatives.

    With ``ties="definition"`` only the last of these counts, and it is llama-swap's order, also where that differs from
    the order of the text: a choice that makes others needless comes after all that were found before it. Finding that
    order has a bound; a set with more choices than it allows has them in the order of its text.

    A model in no set runs alone: everything else has to go.

    The matrix never changes, and its answers depend on nothing but the questions.
    """

    def __init__(
        self,
        sets: Mapping[str, str],
        *,
        models: Iterable[str],
        vars: Mapping[str, str] = _NO_NAMES,  # noqa: A002 - the name that it has in configurations
        evict_costs: Mapping[str, float] = _NO_COSTS,
        pinned: Iterable[str] = (),
        ties: Ties = "usage",
        limit: int = MOST_STEPS,
    ) -> None:
        """Read the sets.

        Args:
          sets: an expression for each name, in the order that counts for ties.
          models: all models there are.
          vars: short names, each for a model; in expressions it goes before a model of the same name.
          evict_costs: what it costs to stop a model, a finite number >= 0, by its name or a short one; 1 for others.
            Fractions count as they are written: three times 0.1 is as dear as 0.3.
          pinned: models, by name or short name, that are never stopped for another one.
          ties: how plans of equal cost are told apart.
          limit: how many steps one set may cost a decision at most.

        Raises:
          TypeError: an argument is of another kind.
          ValueError: a name is unknown or there twice, a cost isn't one, ``ties`` is neither, or there are no sets.
          SetExpressionError: a set can't be read, or is too large (it is a ValueError too).
        """
        self._models = frozenset(check_names("models", models))
        self._short = self._checked_vars(vars)
        if ties not in ("usage", "definition"):
            raise ValueError(f"ties must be 'usage' or 'definition', not {ties!r}")
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit must be a number of steps, an int > 0, not {limit!r}")
        if limit <= 0:
            raise ValueError(f"limit must be a number of steps > 0, not {limit}")
        self._ties = ties
        self._costs = self._checked_costs(evict_costs)
        self._pinned = frozenset(self._named("pinned", name) for name in check_names("pinned", pinned))
        self._sets = permitted_sets(_checked_sets(sets), self._models, self._short, limit)
        self._holding: dict[str, list[PermittedSet]] = {}
        for permitted in self._sets:
            for model in permitted.tree.models:
                self._holding.setdefault(model, []).append(permitted)
        # Whole numbers from here on: sums of them are equal or not, and never nearly so.
        self._unit = math.lcm(*(cost.denominator for cost in self._costs.values()))

    @property
    def sets(self) -> tuple[PermittedSet, ...]:
        """The sets in the order in which they are looked at."""
        return self._sets

    @property
    def pinned(self) -> frozenset[str]:
        """The models that are never stopped for another one, by their real names."""
        return self._pinned

    def permits(self, models: Collection[str]) -> bool:
        """Whether these may run together: within one set, or one model alone."""
        return len(set(models)) <= 1 or self._holder(tuple(models)) is not None

    def evictions(
        self,
        target: str,
        running: Sequence[str],
        busy: Collection[str] = (),
        last_used: Mapping[str, float] = NEVER_USED,
    ) -> Plan:
        """What has to be stopped before ``target`` may run; see :meth:`Planner.evictions`.

        A running model that the matrix doesn't know is in no set, and costs 1.

        Raises:
          PlanRefused: a pinned model would have to go.
          UnknownModel: ``target`` isn't one of the models.
        """
        if target not in self._models:
            known = ", ".join(sorted(self._models))
            raise UnknownModel(f"there is no model {target!r} (there are: {known})")
        there = tuple(sorted(set(running)))
        if target in there:
            holder = self._holder(there)
            return _plan(target, (), there, holder, 0)
        weights = self._weights(target, there, busy, last_used)
        choice, permitted = self._best(target, weights)
        together = frozenset([target]) if choice is None else choice.models
        evict = tuple(name for name in there if name not in together)
        refuse_if_pinned(target, evict, self._pinned)
        cost = sum((self._cost(name) for name in evict), Fraction())
        return _plan(target, evict, tuple(sorted(together)), permitted, cost)

    def _best(self, target: str, weights: Mapping[str, int]) -> tuple[Choice | None, PermittedSet | None]:
        """The heaviest choice that has the target, the first one of equals, and its set."""
        best: Choice | None = None
        holder = None
        # Whatever has the target weighs more than all without it.
        least = weights[target] - 1
        for permitted in self._holding.get(target, ()):
            tree = permitted.tree
            if sum([weight for name, weight in weights.items() if name in tree.models]) <= least:
                continue
            found = tree.best(weights, least)
            if found is None:
                continue
            if self._ties == "definition" and any(name in weights for name in tree.tangled):
                models = tree.frontier(weights, _FRONTIER_BUDGET)
                if models is not None:
                    # The same weight: the frontier has a choice for each that is worth something.
                    found = attrs.evolve(found, models=max(models, key=lambda choice: _weight(choice, weights)))
            best, holder, least = found, permitted, found.value
        return best, holder

    def _holder(self, there: tuple[str, ...]) -> PermittedSet | None:
        """The first set that can hold all of them."""
        if not there:
            return None
        weights = dict.fromkeys(there, 1)
        for permitted in self._holding.get(there[0], ()):
            tree = permitted.tree
            if tree.models.issuperset(there) and tree.best(weights, len(weights) - 1) is not None:
                return permitted
        return None

    def _weights(
        self, target: str, there: Sequence[str], busy: Collection[str], last_used: Mapping[str, float]
    ) -> dict[str, int]:
        """What it is worth to keep each: one number, in which a greater reason is worth more than all lesser ones."""
        base = len(there) + 1
        weights = dict.fromkeys(there, 0)
        one = 1  # what one unit of the reason at hand is worth
        if self._ties == "usage":
            used = {name: _moment(name, last_used) for name in there}
            for moment in sorted(set(used.values())):
                for name in there:
                    if used[name] == moment:
                        weights[name] += one
                one *= base
            for name in there:
                if name in busy:
                    weights[name] += one
            one *= base
        for name in there:
            weights[name] += int(self._cost(name) * self._unit) * one
        everything = sum(weights.values()) + 1
        for name in there:
            if name in self._pinned:
                weights[name] += everything
        weights[target] = sum(weights.values()) + 1
        return weights

    def _cost(self, name: str) -> Fraction:
        return self._costs.get(name, Fraction(1))

    def _named(self, what: str, name: object) -> str:
        """The model that a name or a short name stands for."""
        if isinstance(name, str):
            if name in self._short:
                return self._short[name]
            if name in self._models:
                return name
        raise ValueError(f"{what}: {name!r} is neither a model nor a short name in vars")

    def _checked_vars(self, short: object) -> dict[str, str]:
        if not isinstance(short, Mapping):
            raise TypeError(f"vars must map short names to models, as {{'q': 'qwen3-32b'}}, not {short!r}")
        for name, model in short.items():
            if not isinstance(name, str) or not is_identifier(name):
                raise ValueError(
                    f"vars: {name!r} can't be a short name: use letters, digits, '_', '-' and '.', at least one"
                )
            if not isinstance(model, str) or model not in self._models:
                raise ValueError(f"vars: {name!r} stands for {model!r}, which is no model")
        return dict(short)

    def _checked_costs(self, costs: object) -> dict[str, Fraction]:
        if not isinstance(costs, Mapping):
            raise TypeError(f"evict_costs must map models to numbers, as {{'qwen3-32b': 30}}, not {costs!r}")
        checked: dict[str, Fraction] = {}
        keys: dict[str, object] = {}
        for key, cost in costs.items():
            model = self._named("evict_costs", key)
            told = f"evict_costs: {key!r} must cost a finite number >= 0, not {cost!r}"
            if isinstance(cost, bool) or not isinstance(cost, int | float):
                raise TypeError(told)
            if not 0 <= cost <= _DEAREST:
                raise ValueError(told)
            if model in checked:
                raise ValueError(f"evict_costs: {keys[model]!r} and {key!r} are the same model; leave one out")
            keys[model] = key
            # As it is written: the float 0.1 is a little more than a tenth.
            checked[model] = Fraction(repr(cost)) if isinstance(cost, float) else Fraction(cost)
        return checked


def _checked_sets(sets: object) -> Mapping[str, str]:
    if not isinstance(sets, Mapping):
        raise TypeError(f"sets must map names to expressions, as {{'standard': 'a & (b | c)'}}, not {sets!r}")
    if not sets:
        raise ValueError("a matrix needs at least one set: without any, each model would run alone")
    for name in sets:
        check_name("the name of a set", name)
    return sets


def _moment(name: str, last_used: Mapping[str, float]) -> float:
    moment = last_used.get(name, -math.inf)
    if math.isnan(moment):
        raise ValueError(f"last_used: {name!r} has nan, which is no moment")
    return moment


def _weight(models: Iterable[str], weights: Mapping[str, int]) -> int:
    return sum([weights.get(name, 0) for name in models])


def _plan(
    target: str, evict: tuple[str, ...], together: tuple[str, ...], permitted: PermittedSet | None, cost: Fraction | int
) -> Plan:
    return Plan(
        target=target,
        evict=evict,
        target_set=together,
        set_name="" if permitted is None else permitted.name,
        expression="" if permitted is None else permitted.text,
        cost=int(cost) if cost == int(cost) else float(cost),
    )
