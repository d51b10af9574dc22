"""The language of sets: what it takes, what it refuses and where, and that no depth is too deep for it."""

from __future__ import annotations

import sys
from typing import Final, TypeAlias

import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.permitted_sets import permitted_sets
from trio_mlxgate.core.set_expressions import (
    Expression,
    Node,
    SetExpressionError,
    is_identifier,
    parse,
    tokenize,
)

DEEP: Final = 50 * sys.getrecursionlimit()

Shape: TypeAlias = "str | tuple[str, list[Shape]]"
"""An expression as nested lists: "a", "+s", ("all", [...]), ("any", [...])."""


def shape(expression: Expression, place: int = -1) -> Shape:
    node = expression.nodes[place]
    if node.kind == "model":
        return node.text
    if node.kind == "reference":
        return f"+{node.text}"
    return node.kind, [shape(expression, child) for child in node.children]


ATOMS = st.sampled_from(["a", "b", "+s", "model-name.v2", "_x", "-a", "모델"])
SHAPES: Final = st.recursive(
    ATOMS,
    lambda inner: st.tuples(st.sampled_from(["all", "any"]), st.lists(inner, min_size=2, max_size=4)),
    max_leaves=8,
)


def written(given: Shape, space: str) -> str:
    """The text of a shape, with no more parentheses than are needed, save around a kind within the same kind."""
    if isinstance(given, str):
        return given
    kind, children = given
    return f"{space}{'&' if kind == 'all' else '|'}{space}".join(
        f"({written(child, space)})"
        if not isinstance(child, str) and (kind == "all" or child[0] == "any")
        else written(child, space)
        for child in children
    )


@given(SHAPES, st.sampled_from(["", " ", "\n\t"]))
def test_what_is_written_is_read(given: Shape, space: str) -> None:
    assert shape(parse(written(given, space))) == given


def test_and_binds_tighter() -> None:
    assert shape(parse("a | b & c | d")) == ("any", ["a", ("all", ["b", "c"]), "d"])
    assert shape(parse("(a | b) & c")) == ("all", [("any", ["a", "b"]), "c"])
    assert shape(parse("((a))")) == "a"


def test_children_come_before_their_parents_and_know_their_places() -> None:
    assert parse("a & (b | +s)").nodes == (
        Node("model", "a", 0),
        Node("model", "b", 5),
        Node("reference", "s", 9),
        Node("any", "", 5, (1, 2)),
        Node("all", "", 0, (0, 3)),
    )


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("", 0, "empty"),
        (" \n", 0, "empty"),
        ("()", 1, "expected a model"),
        ("a & ", 4, "here is the end"),
        ("a | | b", 4, "here is |"),
        ("& a", 0, "here is &"),
        ("a & )", 4, "here is )"),
        ("(a | b", 0, "never closed"),
        ("x & (a | (b & c)", 4, "never closed"),
        ("a | b)", 5, "closes nothing"),
        ("a b", 2, "expected '&' or '|' before 'b'"),
        ("a +s", 2, "expected '&' or '|'"),
        ("a (b)", 2, "expected '&' or '|'"),
        ("(a) b", 4, "expected '&' or '|'"),
        ("a & +", 5, "right after '+'"),
        ("+ base", 1, "right after '+'"),
        ("a @ b", 2, "'@' has no meaning"),
        ("qwen3:32b", 5, "short one in vars"),
        ("  a b", 4, "expected '&' or '|'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, position: int, said: str) -> None:
    with pytest.raises(SetExpressionError) as caught:
        parse(text)
    assert caught.value.position == position
    assert said in caught.value.reason
    assert f"position {position}" in str(caught.value)


def test_the_message_shows_what_stood_before_and_whose_it_is() -> None:
    with pytest.raises(SetExpressionError, match=r"^set 'test': position 5, after 'a \| b': this '\)' closes nothing"):
        permitted_sets({"test": "a | b)"}, ["a", "b"], {})


@pytest.mark.parametrize("text", [None, 7, b"a"])
def test_only_text_is_read(text: object) -> None:
    with pytest.raises(TypeError, match="is said by a text"):
        parse(text)  # type: ignore[arg-type]


@given(st.text("ab+&|() \n:", max_size=12))
def test_any_text_is_read_or_refused_as_the_grammar_says(text: str) -> None:
    if in_grammar(text):
        parse(text)
        return
    with pytest.raises(SetExpressionError) as caught:
        parse(text)
    assert caught.value.position is not None
    assert 0 <= caught.value.position <= len(text)


def in_grammar(text: str) -> bool:
    """The grammar as it is defined, a function for each rule."""
    try:
        kinds = [token.kind for token in tokenize(text)]
    except SetExpressionError:
        return False

    def or_(place: int) -> int:
        place = and_(place)
        while place >= 0 and kinds[place] == "or":
            place = and_(place + 1)
        return place

    def and_(place: int) -> int:
        place = atom(place)
        while place >= 0 and kinds[place] == "and":
            place = atom(place + 1)
        return place

    def atom(place: int) -> int:
        if kinds[place] in ("identifier", "reference"):
            return place + 1
        if kinds[place] != "open":
            return -1
        place = or_(place + 1)
        return place + 1 if place >= 0 and kinds[place] == "close" else -1

    return or_(0) == len(kinds) - 1


def test_identifiers() -> None:
    assert all(map(is_identifier, ["a", "qwen3-32b.q4", "_", "모델", "3"]))
    assert not any(map(is_identifier, ["", "a b", "a:b", "a/b", "+a", "²"]))


# ---- no depth is too deep ----


def test_deep_parentheses() -> None:
    assert parse("(" * DEEP + "a" + ")" * DEEP).nodes == (Node("model", "a", DEEP),)
    for text, position in [("(" * DEEP, DEEP), ("(" * DEEP + "a", DEEP - 1), ("a" + ")" * DEEP, 1)]:
        with pytest.raises(SetExpressionError) as caught:
            parse(text)
        assert caught.value.position == position


def test_a_deep_tree() -> None:
    text = "a | (b & (" * DEEP + "c" + "))" * DEEP
    assert len(parse(text).nodes) == 4 * DEEP + 1


def test_a_long_chain_of_references() -> None:
    count = 5_000
    sets = {f"s{n}": f"+s{n + 1}" for n in range(count)} | {f"s{count}": "a"}
    assert [one.name for one in permitted_sets(sets, ["a"], {})] == [f"s{n}" for n in range(count, -1, -1)]
    with pytest.raises(SetExpressionError, match="in a circle"):
        permitted_sets(sets | {f"s{count}": "+s0"}, ["a"], {})


# ---- names ----

MODELS: Final = ["a", "b", "qwen3:32b"]


@pytest.mark.parametrize(
    ("sets", "name", "position", "said"),
    [
        ({"s": "a & nope"}, "s", 4, "'nope' is neither a model nor a short name in vars"),
        ({"s": "a | t", "t": "b"}, "s", 4, r"the set of this name is '\+t'"),
        ({"s": "a & +nope"}, "s", 4, r"there is no set 'nope' \(there are: s\)"),
        ({"s": "+a"}, "s", 0, "leave the '\\+' out for the model 'a'"),
        ({"s": "a | +s"}, "s", 4, "in a circle: s -> s"),
        ({"x": "a", "s": "+t", "t": "a | +u", "u": "b & +s"}, "u", 4, "in a circle: s -> t -> u -> s"),
        ({"s": "+t", "t": "a | +t"}, "t", 4, "in a circle: t -> t"),
    ],
)
def test_names_that_lead_nowhere(sets: dict[str, str], name: str, position: int, said: str) -> None:
    with pytest.raises(SetExpressionError, match=said) as caught:
        permitted_sets(sets, MODELS, {})
    assert (caught.value.set_name, caught.value.position) == (name, position)


def test_short_names_go_before_models_and_sets_have_names_of_their_own() -> None:
    (one, two) = permitted_sets({"a": "a & q", "t": "+a | b"}, MODELS, {"a": "b", "q": "qwen3:32b"})
    assert one.tree.models == {"b", "qwen3:32b"}
    assert two.tree.models == {"b", "qwen3:32b"}
    assert two.text == "+a | b"


def test_a_set_comes_after_those_that_it_refers_to() -> None:
    sets = {"z": "+y & +x", "y": "a", "w": "b", "x": "+w", "v": "a"}
    assert [one.name for one in permitted_sets(sets, MODELS, {})] == ["y", "w", "x", "z", "v"]
