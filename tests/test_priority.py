"""Priorities, and the ``Priority`` header of RFC 9218."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from trio_mlxgate import DEFAULT_PRIORITY, Priority
from trio_mlxgate.priority import (
    MAX_PRIORITY,
    URGENCY_PRIORITIES,
    check_priority,
    priority_from_header,
    urgency_from_header,
)


def test_the_two_priorities() -> None:
    assert (Priority.FOREGROUND, Priority.BACKGROUND) == (0, 100)
    assert DEFAULT_PRIORITY is Priority.BACKGROUND


@pytest.mark.parametrize("good", [0, 100, -5, Priority.FOREGROUND, MAX_PRIORITY, -MAX_PRIORITY])
def test_an_int_is_a_priority(good: int) -> None:
    assert check_priority(good) == good


@pytest.mark.parametrize("bad", [True, False, 1.0, "1", None, float("nan"), 1j])
def test_what_is_no_int_is_none(bad: Any) -> None:
    with pytest.raises(TypeError, match="priority"):
        check_priority(bad)


@pytest.mark.parametrize("bad", [MAX_PRIORITY + 1, -MAX_PRIORITY - 1, 10**30])
def test_a_priority_is_bounded(bad: int) -> None:
    with pytest.raises(ValueError, match="between"):
        check_priority(bad)


# ---- the header ----


@pytest.mark.parametrize(
    ("header", "urgency"),
    [
        ("u=0", 0),
        ("u=7", 7),
        ("u=3, i", 3),
        ("i, u=5", 5),
        ("i=?1,u=2", 2),
        ("  u=1  ", 1),
        ("u=1 \t,\t i", 1),
        ("u=2;x=1;y", 2),
        ("u=2; x=1", 2),
        ("u=1, u=6", 6),  # of several the last counts
        ("u=1, u=9", None),  # also if it is none
        ("u=-0", 0),
        ("u=05", 5),
        ('a="u=7, u=6", u=4', 4),
        (r'a="\"", u=4', 4),
        ("a=(1 2 u);p=1, u=4", 4),
        ("a=(), u=4", 4),
        ("a=:dT03:, u=4", 4),
        ("a=1.5, u=4", 4),
        ("a=tok/en:*, u=4", 4),
        ("*a.b-c_d=1, u=4", 4),
    ],
)
def test_a_good_header(header: str, urgency: int | None) -> None:
    assert urgency_from_header(header) == urgency


@pytest.mark.parametrize(
    "header",
    [
        "",
        "   ",
        "i",
        "u",  # true, not a number
        "u=8",
        "u=-1",
        "u=1.0",
        "u=?1",
        'u="1"',
        "u=(1)",
        "u=one",
        "U=1",  # keys are lower case
        "x=1",
    ],
)
def test_a_header_that_names_no_urgency(header: str) -> None:
    assert urgency_from_header(header) is None
    assert priority_from_header(header) is None


@pytest.mark.parametrize(
    "header",
    [
        "u=1,",
        ",u=1",
        "u=1,,i",
        "u=1 i",
        "u=1; ",
        "u=1;;x",
        "u= 1",
        "u =1",
        "u=",
        "u=1, a=",
        'u=1, a="',
        'u=1, a="é"',
        "u=1, a=(1",
        "u=1, a=(1(2))",
        "u=1, a=?2",
        "u=1, a=:*:",
        "u=1, a=1.2345",
        "u=1, a=1234567890123456",
        "u=1, A=1",
        "u=1\nu=2",
        "\tu=1",
        "u=1\x00",
        "u=\uff11",  # a full-width digit: int() would read it
        "u=1e0",
    ],
)
def test_a_malformed_header_is_ignored_as_a_whole(header: str) -> None:
    assert urgency_from_header(header) is None


@pytest.mark.parametrize(("urgency", "priority"), [(u, 0 if u <= 3 else 100) for u in range(8)])
def test_urgencies_are_mapped(urgency: int, priority: int) -> None:
    assert priority_from_header(f"u={urgency}") == priority
    assert URGENCY_PRIORITIES[urgency] == priority


def test_the_map_can_be_replaced() -> None:
    assert priority_from_header("u=5", {5: 55}) == 55
    assert priority_from_header("u=4", {5: 55}) is None
    with pytest.raises(TypeError):
        URGENCY_PRIORITIES[0] = 5  # type: ignore[index]


@given(st.one_of(st.text(), st.text('u=0123456789,;:?"() \t\\.*-aiU')))
@example("u=1" * 5000)
@example("a=(" + "1 " * 5000)
@example("a;" * 5000)
@example('a="' + "\\" * 5000)
def test_any_text_is_read_without_an_error(text: str) -> None:
    urgency = urgency_from_header(text)
    assert urgency is None or urgency in range(8)


# Well-formed headers, written down together with what they mean: that is the oracle.

_keys = st.from_regex(r"[a-z*][a-z0-9_\-.*]{0,4}", fullmatch=True)
_items = st.one_of(
    st.integers(-(10**15) + 1, 10**15 - 1).map(str),
    st.tuples(st.integers(-(10**12) + 1, 10**12 - 1), st.from_regex(r"[0-9]{1,3}", fullmatch=True)).map(
        lambda pair: f"{pair[0]}.{pair[1]}"
    ),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8).map(
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ),
    st.from_regex(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]{0,5}", fullmatch=True),
    st.binary(max_size=6).map(lambda data: f":{base64.b64encode(data).decode()}:"),
    st.sampled_from(["?0", "?1"]),
)
_parameters = st.lists(st.tuples(st.sampled_from(["", " ", "  "]), _keys, st.none() | _items), max_size=2).map(
    lambda parts: "".join(f";{space}{key}" + ("" if item is None else f"={item}") for space, key, item in parts)
)
_inner_lists = st.lists(st.builds(str.__add__, _items, _parameters), max_size=3).map(
    lambda items: f"({' '.join(items)})"
)
_members = st.tuples(
    st.one_of(st.just("u"), st.just("u"), _keys),
    st.one_of(st.none(), st.integers(0, 7).map(str), _items, _inner_lists),
    _parameters,
)


@given(st.lists(_members, max_size=5), st.sampled_from([",", ", ", " ,", "\t,\t "]))
def test_a_well_formed_header_means_what_was_written(
    members: list[tuple[str, str | None, str]], separator: str
) -> None:
    header = separator.join(
        key + ("" if value is None else f"={value}") + parameters for key, value, parameters in members
    )
    expected = None
    for key, value, _ in members:
        if key == "u":
            expected = int(value) if value in {"0", "1", "2", "3", "4", "5", "6", "7", "-0"} else None
    assert urgency_from_header(header) == expected
    assert priority_from_header(header) == (None if expected is None else 0 if expected <= 3 else 100)
