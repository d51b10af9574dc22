"""Named sets of models that may run together: their expressions read, with all that they name in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.core.cover import ALL, ANY, MODEL, UNCOUNTED, Part, Tree
from trio_mlxgate.core.set_expressions import Expression, Node, SetExpressionError, is_identifier, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MOST_STEPS: Final = 250_000
"""What a set may cost a decision at most, in steps; one takes less than a microsecond on a current machine."""


@attrs.frozen(kw_only=True)
class PermittedSet:
    """A set, and what it permits."""

    name: str
    text: str
    """Its expression as it is written."""
    tree: Tree
    """Its expression with real models in place of short names, and what they say in place of references."""


def permitted_sets(
    sets: Mapping[str, str], models: Collection[str], short: Mapping[str, str], limit: int = MOST_STEPS
) -> tuple[PermittedSet, ...]:
    """Read all sets. They come as they are defined, but each after those that it refers to.

    Args:
      sets: the expression of each name.
      models: what an identifier may be.
      short: models by the short names that stand for them; a short name goes before a model that is called so.
      limit: how many steps a set may cost a decision at most.

    Raises:
      SetExpressionError: an expression can't be read, names what there isn't, refers to itself in the end, or is too
        large.
    """
    read = {name: _read(name, text) for name, text in sets.items()}
    for name, expression in read.items():
        for node in expression.nodes:
            _check(node, name, expression, models, short, sets)
    trees: dict[str, Tree] = {}
    for name in _order(read):
        expression = read[name]
        size = sum(len(trees[node.text].parts) if node.kind == "reference" else 1 for node in expression.nodes)
        if size > limit:
            raise _too_large(name, expression, size, limit, ())
        tree = Tree(_put_in(expression, short, trees))
        if tree.steps > limit:
            raise _too_large(name, expression, tree.steps, limit, tree.tangled)
        trees[name] = tree
    return tuple(PermittedSet(name=name, text=sets[name], tree=tree) for name, tree in trees.items())


def _read(name: str, text: str) -> Expression:
    try:
        return parse(text)
    except SetExpressionError as error:
        raise error.of_set(name) from None
    except TypeError as error:
        raise TypeError(f"set {name!r}: {error}") from None


def _check(
    node: Node,
    name: str,
    expression: Expression,
    models: Collection[str],
    short: Mapping[str, str],
    sets: Mapping[str, str],
) -> None:
    """Refuse a node that names what there isn't."""
    if node.kind == "model" and node.text not in short and node.text not in models:
        hint = f"; the set of this name is '+{node.text}'" if node.text in sets else ""
        reason = f"{node.text!r} is neither a model nor a short name in vars{hint}"
    elif node.kind == "reference" and node.text not in sets:
        hint = f"; leave the '+' out for the model {node.text!r}" if node.text in models or node.text in short else ""
        known = ", ".join(other for other in sets if is_identifier(other))
        reason = f"there is no set {node.text!r} (there are: {known}){hint}"
    else:
        return
    raise SetExpressionError(reason, position=node.position, text=expression.text, set_name=name)


def _order(read: Mapping[str, Expression]) -> list[str]:
    """The names as they are defined, but each after those that it refers to; depth first, without recursion.

    Raises:
      SetExpressionError: one refers to itself in the end.
    """
    done: dict[str, None] = {}
    for first in read:
        if first in done:
            continue
        # The way from the first one to where we are: each with its references that are still to be looked at.
        way = {first: _references(read[first])}
        while way:
            name = next(reversed(way))
            if not way[name]:
                way.pop(name)
                done[name] = None
                continue
            node = way[name].pop()
            if node.text in way:
                names = list(way)
                circle = " -> ".join([*names[names.index(node.text) :], node.text])
                raise SetExpressionError(
                    f"the sets refer to each other in a circle: {circle}; take one of these references out",
                    position=node.position,
                    text=read[name].text,
                    set_name=name,
                )
            if node.text not in done:
                way[node.text] = _references(read[node.text])
    return list(done)


def _references(expression: Expression) -> list[Node]:
    """Its references, the last one first."""
    return [node for node in reversed(expression.nodes) if node.kind == "reference"]


def _put_in(expression: Expression, short: Mapping[str, str], trees: Mapping[str, Tree]) -> list[Part]:
    parts: list[Part] = []
    places: list[int] = []
    for node in expression.nodes:
        if node.kind == "reference":
            shift = len(parts)
            parts += [
                Part(kind, model, tuple([child + shift for child in children]))
                for kind, model, children in trees[node.text].parts
            ]
        elif node.kind == "model":
            parts.append(Part(MODEL, short.get(node.text, node.text), ()))
        else:
            kind = ALL if node.kind == "all" else ANY
            parts.append(Part(kind, "", tuple([places[child] for child in node.children])))
        places.append(len(parts) - 1)
    return parts


def _too_large(
    name: str, expression: Expression, steps: int, limit: int, tangled: tuple[str, ...]
) -> SetExpressionError:
    told = f"{UNCOUNTED:.0e} or more" if steps >= UNCOUNTED else str(steps)
    if tangled:
        some = ", ".join(map(repr, tangled[:5])) + (", ..." if len(tangled) > 5 else "")
        why = f"models that occur in several parts joined by '&', {len(tangled)} in all: {some}; name each in one only"
    else:
        why = "with all its references it is too long: split it into several sets"
    return SetExpressionError(
        f"too large: a decision could take {told} steps, and the limit is {limit}; {why}",
        text=expression.text,
        set_name=name,
    )
