"""Of all choices that an expression permits, the first that covers the most weight; none of them is ever listed.

Where each model occurs once between ``&``, the parts don't touch each other: the best of the whole is the best of each
part, in one pass. Where models occur in several parts it is maximum coverage, which is NP-hard (Feige, 1998). Then each
part has a list of partial choices, of which two are the same if they cover the same of what still occurs elsewhere, and
of these one stays: dynamic programming, with the bounds of branch and bound to cut what can't win any more (Marsten and
Morin, "A hybrid approach to discrete mathematical programming", 1978). How much work that can be at most follows from
the expression alone (:attr:`Tree.steps`), so that what is too large is known before it is needed.

*First* is the order in which a reader would write the choices down: earlier alternatives first, the last part changing
quickest.
"""

from __future__ import annotations

from collections import Counter
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MODEL: Final = 0
ALL: Final = 1
ANY: Final = 2

UNCOUNTED: Final = 10**18
"""Numbers of steps are told exactly below this one."""

_THINNED: Final = 64
"""Longer lists are not searched for choices that others make needless: all pairs would have to be compared."""

Trail: TypeAlias = "str | tuple[Trail, Trail] | None"
"""The models of a choice, as it was put together."""


class Part(NamedTuple):
    """A model, or parts that are wanted together, or of which one is wanted."""

    kind: int
    """MODEL, ALL or ANY."""
    model: str
    """Which model; "" for the others."""
    children: tuple[int, ...]
    """Where its parts stand, before it."""


class _State(NamedTuple):
    """A choice among what has been looked at so far."""

    mask: int
    """Which models it covers that occur elsewhere too; their weight is not counted yet."""
    value: int
    """The weight of the other models that it covers."""
    trail: Trail


@attrs.frozen(kw_only=True)
class Choice:
    """Models that may run together, and what they weigh."""

    models: frozenset[str]
    value: int


class _Weights:
    """What sets of tangled models weigh; each is added up once."""

    def __init__(self, by_bit: Mapping[int, int]) -> None:
        self._by_bit = by_bit
        self._known: dict[int, int] = {0: 0}

    def of(self, mask: int) -> int:
        known = self._known.get(mask)
        if known is None:
            known = self._known[mask] = sum(weight for bit, weight in self._by_bit.items() if mask & bit)
        return known


class Tree:
    """An expression whose references have been put in, ready for questions. It never changes."""

    parts: tuple[Part, ...]
    """Children before their parents; the whole is the last one."""

    models: frozenset[str]
    """All models that occur."""

    tangled: tuple[str, ...]
    """Those that occur in several parts that are wanted together, in the order of their first occurrence."""

    steps: int
    """How many steps a question takes at most, whatever runs; :data:`UNCOUNTED` stands for so many and more."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        counts = Counter(part.model for part in self.parts if part.kind == MODEL)
        self.models = frozenset(counts)
        self._bits = {model: 1 << place for place, model in enumerate(model for model in counts if counts[model] > 1)}
        inside = self._inside()
        elsewhere, self._kept = self._elsewhere(inside)
        self._elsewhere_of = elsewhere
        tangled = reduce(or_, (inside[place] & elsewhere[place] for place in range(len(parts))), 0)
        self.tangled = tuple(model for model, bit in self._bits.items() if bit & tangled)
        self.steps = self._most_steps(inside, elsewhere)

    def _inside(self) -> list[int]:
        """Of each part, which repeated models occur in it."""
        inside: list[int] = []
        for part in self.parts:
            mask = self._bits.get(part.model, 0)
            for child in part.children:
                mask |= inside[child]
            inside.append(mask)
        return inside

    def _elsewhere(self, inside: list[int]) -> tuple[list[int], list[tuple[int, ...]]]:
        """Of each part, which repeated models occur in others that are wanted together with it.

        And of each part of kind ALL, which still matter once its first children have been put together: those that
        occur in the children to come, or outside.
        """
        elsewhere = [0] * len(self.parts)
        kept: list[tuple[int, ...]] = [()] * len(self.parts)
        for place in range(len(self.parts) - 1, -1, -1):
            kind, _, children = self.parts[place]
            outside = elsewhere[place]
            if kind == ANY:
                for child in children:
                    elsewhere[child] = outside
            elif kind == ALL:
                after = [outside]
                for child in reversed(children):
                    after.append(after[-1] | inside[child])
                after.reverse()
                before = 0
                for number, child in enumerate(children):
                    elsewhere[child] = after[number + 1] | before
                    before |= inside[child]
                kept[place] = tuple(after[1:])
        return elsewhere, kept

    def _most_steps(self, inside: list[int], elsewhere: list[int]) -> int:
        steps = len(self.parts) * (1 + len(self._bits) // 64)
        lengths: list[int] = []
        for place, part in enumerate(self.parts):
            if part.kind == MODEL:
                length = 1
            elif part.kind == ANY:
                length = min(sum(lengths[child] for child in part.children), _subsets(inside[place] & elsewhere[place]))
            else:
                length, seen = 1, 0
                for child, kept in zip(part.children, self._kept[place], strict=True):
                    seen |= inside[child]
                    product = min(length * lengths[child], UNCOUNTED)
                    if length > 1 or lengths[child] > 1:
                        steps += product
                    length = min(product, _subsets(seen & kept))
            lengths.append(length)
        return min(steps, UNCOUNTED)

    def best(self, weights: Mapping[str, int], more_than: int = -1) -> Choice | None:
        """The first choice of the greatest weight, if it is more than so much.

        Args:
          weights: of models, >= 0; who isn't in it weighs nothing.
          more_than: None is returned if there is nothing heavier.
        """
        by_bit = {self._bits[model]: weight for model, weight in weights.items() if model in self._bits}
        found = (
            self._best_of_tangled(weights, by_bit, more_than)
            if any(model in weights for model in self.tangled)
            else self._best_of_each(weights)
        )
        return None if found is None or found.value <= more_than else found

    def _best_of_each(self, weights: Mapping[str, int]) -> Choice:
        """One pass: no model that weighs something occurs in two parts that are wanted together."""
        values: list[int] = []
        for kind, model, children in self.parts:
            if kind == MODEL:
                values.append(weights.get(model, 0))
            elif kind == ANY:
                values.append(max([values[child] for child in children]))
            else:
                values.append(sum([values[child] for child in children]))
        models = []
        todo = [len(self.parts) - 1]
        while todo:
            place = todo.pop()
            kind, model, children = self.parts[place]
            if kind == MODEL:
                models.append(model)
            elif kind == ANY:
                todo.append(next(child for child in children if values[child] == values[place]))
            else:
                todo += children
        return Choice(models=frozenset(models), value=values[-1])

    def _best_of_tangled(self, weights: Mapping[str, int], by_bit: Mapping[int, int], more_than: int) -> Choice | None:
        asked = reduce(or_, by_bit, 0)
        weigh = _Weights(by_bit)
        # What is chosen in the whole, or in an alternative of it, stands by itself: it can be compared with the best.
        exposed = {len(self.parts) - 1}
        for place in range(len(self.parts) - 1, -1, -1):
            if place in exposed and self.parts[place].kind == ANY:
                exposed.update(self.parts[place].children)
        lists: list[list[_State]] = []
        for place, (kind, model, children) in enumerate(self.parts):
            if kind == MODEL:
                bit = self._bits.get(model, 0) & asked & self._elsewhere_of[place]
                states = [_State(bit, 0 if bit else weights.get(model, 0), model)]
            elif kind == ANY:
                states = _thinned(_first_heaviest(state for child in children for state in lists[child]), weigh)
            else:
                floor = more_than + 1 if place in exposed else None
                kept = [mask & asked for mask in self._kept[place]]
                states = _joined([lists[child] for child in children], kept, weigh, floor)
            lists.append(states)
        if not lists[-1]:
            return None
        found = lists[-1][0]
        return Choice(models=frozenset(_flat(found.trail)), value=found.value)

    def frontier(self, relevant: Iterable[str], budget: int) -> list[frozenset[str]] | None:
        """Of all choices those that no other one makes needless, as llama-swap has them, in its order.

        A choice is needless if another one has all of the relevant models that it has; of equals the first stays. Each
        part drops its own at once, and what makes others needless comes where it was found, which is after them: so
        the order isn't quite that of :meth:`best`. It lists the choices, and there may be very many.

        Args:
          relevant: the models that count.
          budget: how many comparisons of two choices it may cost.

        Returns: the choices, each with all its models; None if the budget was not enough.
        """
        bits = {model: 1 << place for place, model in enumerate(dict.fromkeys(relevant))}
        lists: list[list[tuple[int, Trail]]] = []
        for kind, model, children in self.parts:
            states: list[tuple[int, Trail]] = []
            if kind == MODEL:
                states = [(bits.get(model, 0), model)]
            elif kind == ANY:
                for child in children:
                    for state in lists[child]:
                        budget -= len(states) + 1
                        if budget < 0:
                            return None
                        states = _with(states, state)
            else:
                states = [(0, None)]
                for child in children:
                    combined: list[tuple[int, Trail]] = []
                    for mask, trail in states:
                        for other, its in lists[child]:
                            budget -= len(combined) + 1
                            if budget < 0:
                                return None
                            combined = _with(combined, (mask | other, (trail, its)))
                    states = combined
            lists.append(states)
        return [frozenset(_flat(trail)) for _, trail in lists[-1]]


def _subsets(mask: int) -> int:
    return 1 << min(mask.bit_count(), 60)


def _with(states: list[tuple[int, Trail]], new: tuple[int, Trail]) -> list[tuple[int, Trail]]:
    mask = new[0]
    if any(mask & ~other == 0 for other, _ in states):
        return states
    return [*(state for state in states if state[0] & ~mask), new]


def _first_heaviest(states: Iterable[_State]) -> list[_State]:
    """Of those that cover the same the first of the heaviest, in their order."""
    found: dict[int, _State] = {}
    for state in states:
        other = found.get(state.mask)
        if other is None:
            found[state.mask] = state
        elif state.value > other.value:
            # It comes where it was found: before it are others that come before it in the order of choices.
            del found[state.mask]
            found[state.mask] = state
    return list(found.values())


def _thinned(states: list[_State], weigh: _Weights) -> list[_State]:
    """Without those that can't become the first of the heaviest, whatever is added to them.

    ``other`` is never behind ``state`` if it is heavier by all that only ``state`` covers.
    """
    if not 1 < len(states) <= _THINNED:
        return states
    return [
        state
        for place, state in enumerate(states)
        if not any(
            (lead := other.value - state.value - weigh.of(state.mask & ~other.mask)) > 0
            or (lead == 0 and number < place)
            for number, other in enumerate(states)
            if number != place
        )
    ]


def _joined(lists: list[list[_State]], kept: list[int], weigh: _Weights, floor: int | None) -> list[_State]:
    """The choices of several parts together, of each list one.

    Args:
      kept: after each list, which models still matter; the weight of all others is counted then.
      floor: what is sure to end below it is left out; None: nothing is known of how it ends.
    """
    if floor is not None:
        floor = max(floor, _greedy(lists, weigh))
    # The most that the lists to come can add: of each list its best; or all that any of them covers.
    best_rest = [0]
    private_rest = [0]
    reach_rest = [0]
    for states in reversed(lists):
        best_rest.append(best_rest[-1] + max(state.value + weigh.of(state.mask) for state in states))
        private_rest.append(private_rest[-1] + max(state.value for state in states))
        reach_rest.append(reduce(or_, (state.mask for state in states), reach_rest[-1]))
    joined = [_State(0, 0, None)]
    for number, states in enumerate(lists):
        to_come = len(lists) - 1 - number
        best, private, reach = best_rest[to_come], private_rest[to_come], reach_rest[to_come]
        keep = kept[number]
        found: dict[int, _State] = {}
        for left in joined:
            for right in states:
                mask = left.mask | right.mask
                value = left.value + right.value + weigh.of(mask & ~keep)
                mask &= keep
                known = found.get(mask)
                if known is not None:
                    if value <= known.value:
                        continue
                    del found[mask]
                elif floor is not None:
                    most = min(best, private + weigh.of(reach & ~mask))
                    if value + weigh.of(mask) + most < floor:
                        continue
                found[mask] = _State(mask, value, (left.trail, right.trail))
        joined = _thinned(list(found.values()), weigh)
    return joined


def _greedy(lists: list[list[_State]], weigh: _Weights) -> int:
    """What one choice weighs that takes of each list what adds most: the best is no less."""
    mask = value = 0
    for states in lists:
        covered = mask
        chosen = max(states, key=lambda state: state.value + weigh.of(state.mask & ~covered))
        mask |= chosen.mask
        value += chosen.value
    return value + weigh.of(mask)


def _flat(trail: Trail) -> list[str]:
    found = []
    todo = [trail]
    while todo:
        step = todo.pop()
        if isinstance(step, str):
            found.append(step)
        elif step is not None:
            todo += step
    return found
