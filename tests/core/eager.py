"""What expressions mean, written down as a reader would: every choice, one after the other. The oracle of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trio_mlxgate.core.permitted_sets import permitted_sets
from trio_mlxgate.core.set_expressions import SetExpressionError, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trio_mlxgate.core.set_expressions import Expression

NO_LIMIT: Final = 10**9


class TooMany(Exception):
    """There are more choices than may be written down."""


def expand(
    sets: Mapping[str, str],
    name: str,
    models: Collection[str],
    short: Mapping[str, str],
    limit: int = NO_LIMIT,
) -> list[tuple[str, ...]]:
    """All choices of a set, in order, with all that is in them twice.

    Raises:
      SetExpressionError: it can't be read.
      TooMany: there are more than ``limit``.
    """

    def choices(of: str, seen: tuple[str, ...]) -> list[tuple[str, ...]]:
        if of in seen or of not in sets:
            raise SetExpressionError("a circle, or no such set")
        expression = parse(sets[of])
        return walk(expression, len(expression.nodes) - 1, (*seen, of))

    def walk(expression: Expression, place: int, seen: tuple[str, ...]) -> list[tuple[str, ...]]:
        node = expression.nodes[place]
        if node.kind == "model":
            model = short.get(node.text, node.text)
            if model not in models:
                raise SetExpressionError("unknown")
            return [(model,)]
        if node.kind == "reference":
            return choices(node.text, seen)
        parts = [walk(expression, child, seen) for child in node.children]
        if node.kind == "any":
            found = [choice for part in parts for choice in part]
        else:
            found = [()]
            for part in parts:
                if len(found) * len(part) > limit:
                    raise TooMany
                found = [left + right for left in found for right in part]
        if len(found) > limit:
            raise TooMany
        return found

    return choices(name, ())


def expand_all(
    sets: Mapping[str, str], models: Collection[str], most: int = NO_LIMIT
) -> list[tuple[str, frozenset[str]]]:
    """All choices of all sets, in the order in which they count, each with the name of its set.

    Raises:
      TooMany: a set has more than ``most``.
    """
    return [
        (one.name, frozenset(choice))
        for one in permitted_sets(sets, models, {}, limit=NO_LIMIT)
        for choice in expand(sets, one.name, models, {}, limit=most)
    ]


def frontier_of(
    sets: Mapping[str, str], name: str, relevant: Collection[str]
) -> list[tuple[frozenset[str], frozenset[str]]]:
    """What is left of a set's choices if every part drops those that others cover: (what counts of it, all of it)."""

    def add(
        found: list[tuple[frozenset[str], frozenset[str]]], new: frozenset[str]
    ) -> list[tuple[frozenset[str], frozenset[str]]]:
        counts = new & frozenset(relevant)
        if any(counts <= other for other, _ in found):
            return found
        return [pair for pair in found if not pair[0] <= counts] + [(counts, new)]

    def walk(expression: Expression, place: int) -> list[tuple[frozenset[str], frozenset[str]]]:
        node = expression.nodes[place]
        if node.kind == "model":
            return add([], frozenset([node.text]))
        if node.kind == "reference":
            inner = parse(sets[node.text])
            return walk(inner, len(inner.nodes) - 1)
        parts = [walk(expression, child) for child in node.children]
        found: list[tuple[frozenset[str], frozenset[str]]] = []
        if node.kind == "any":
            for part in parts:
                for _, choice in part:
                    found = add(found, choice)
            return found
        found = add([], frozenset())
        for part in parts:
            lefts, found = found, []
            for _, left in lefts:
                for _, right in part:
                    found = add(found, left | right)
        return found

    expression = parse(sets[name])
    return walk(expression, len(expression.nodes) - 1)
