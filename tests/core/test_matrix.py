"""The matrix by example: prices, ties, pins, sizes, and what is refused at configuration."""

from __future__ import annotations

import math
import random
import sys
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from trio_mlxgate.core import cover
from trio_mlxgate.core.matrix import Matrix
from trio_mlxgate.core.permitted_sets import MOST_STEPS
from trio_mlxgate.core.planning import Plan, PlanRefused
from trio_mlxgate.core.set_expressions import SetExpressionError
from trio_mlxgate.errors import GateRefused, UnknownModel

if TYPE_CHECKING:
    from trio_mlxgate.core.planning import Planner

HOME: Final = {"standard": "(g | q | m) & v", "with_rerank": "(g | q) & v & e", "full": "L"}
MODELS: Final = ("g", "q", "m", "v", "e", "L", "whisper")


def home(**options: Any) -> Matrix:
    return Matrix(HOME, models=MODELS, evict_costs={"v": 50, "L": 30}, **options)


def test_it_is_a_planner() -> None:
    planner: Planner = home()
    assert planner.evictions("q", ["g", "v"]).evict == ("g",)


def test_a_plan_says_all_of_it() -> None:
    plan = home().evictions("q", ["v", "g"])
    assert plan == Plan(
        target="q",
        evict=("g",),
        target_set=("q", "v"),
        set_name="standard",
        expression="(g | q | m) & v",
        cost=1,
    )
    assert plan.describe() == "for q: evict g at cost 1; set standard ((g | q | m) & v); may run: q, v"


def test_who_runs_already_costs_nothing_and_puts_out_nobody() -> None:
    plan = home().evictions("g", ["v", "g"])
    assert (plan.evict, plan.cost, plan.set_name, plan.target_set) == ((), 0, "standard", ("g", "v"))
    # Even if the others should not be there.
    plan = home().evictions("g", ["g", "L"])
    assert (plan.evict, plan.cost, plan.set_name, plan.target_set) == ((), 0, "", ("L", "g"))


def test_a_model_in_no_set_runs_alone_and_its_price_is_told() -> None:
    plan = home().evictions("whisper", ["v", "g"])
    assert (plan.evict, plan.cost, plan.set_name, plan.target_set) == (("g", "v"), 51, "", ("whisper",))
    assert plan.describe() == "for whisper: evict g, v at cost 51; no set; may run: whisper"
    assert (
        home().evictions("whisper", []).describe() == "for whisper: evict nothing at cost 0; no set; may run: whisper"
    )


def test_what_is_known_of_no_set_goes_for_its_price() -> None:
    assert home().evictions("v", ["stranger", "whisper"]).cost == 2


@pytest.mark.parametrize("running", [["v", "v", "g"], ("g", "v")])
def test_neither_order_nor_repetition_of_what_runs_counts(running: list[str]) -> None:
    assert home().evictions("q", running) == home().evictions("q", ["g", "v"])


def test_an_unknown_model_is_an_error() -> None:
    with pytest.raises(UnknownModel, match=r"there is no model 'nope' \(there are: L, e, g,"):
        home().evictions("nope", [])


def test_times_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="'g' has nan"):
        home().evictions("q", ["g"], last_used={"g": math.nan})


def test_what_is_permitted() -> None:
    matrix = home()
    assert matrix.permits(["g", "v", "e"])
    assert not matrix.permits(["m", "v", "e"])
    assert matrix.permits(["whisper"])
    assert matrix.permits([])
    assert not matrix.permits(["whisper", "g"])


# ---- prices ----


def test_fractions_count_as_they_are_written() -> None:
    """0.1 + 0.2 is as much as 0.3, so that it is a tie, and the one used longest ago goes."""
    matrix = Matrix({"one": "t & a", "two": "t & b & c"}, models=[*"tabc"], evict_costs={"a": 0.3, "b": 0.1, "c": 0.2})
    assert matrix.evictions("t", "abc", last_used={"a": 3, "b": 2, "c": 1}).evict == ("b", "c")
    plan = matrix.evictions("t", "abc", last_used={"a": 1, "b": 2, "c": 3})
    assert plan.evict == ("a",)
    assert plan.cost == 0.3


def test_whole_prices_are_whole_numbers() -> None:
    matrix = Matrix({"one": "t | a | b"}, models=[*"tab"], evict_costs={"a": 0.5, "b": 0.5})
    cost = matrix.evictions("t", "ab").cost
    assert (cost, type(cost)) == (1, int)


def test_a_price_counts_before_everything_else() -> None:
    matrix = Matrix({"one": "t & a", "two": "t & b"}, models=[*"tab"], evict_costs={"a": 2})
    for ties in ("usage", "definition"):
        matrix = Matrix({"one": "t & a", "two": "t & b"}, models=[*"tab"], evict_costs={"b": 2}, ties=ties)
        assert matrix.evictions("t", "ab", busy="a", last_used={"a": 9}).evict == ("a",)


# ---- ties ----

PAIR: Final = {"one": "t & a", "two": "t & b"}


@pytest.mark.parametrize(
    ("busy", "last_used", "goes"),
    [
        ("", {}, "b"),
        ("b", {}, "a"),
        ("a", {}, "b"),
        ("ab", {}, "b"),
        ("", {"a": 1, "b": 2}, "a"),
        ("", {"a": 2, "b": 1}, "b"),
        ("", {"a": 1, "b": 1}, "b"),
        ("", {"b": -5}, "a"),
        ("a", {"a": 1, "b": 2}, "b"),
        ("b", {"a": 2, "b": 1}, "a"),
        ("abt", {"a": 1, "b": 2}, "a"),
    ],
)
def test_ties_look_at_who_is_busy_then_at_who_was_used_last(busy: str, last_used: dict[str, float], goes: str) -> None:
    assert Matrix(PAIR, models=[*"tab"]).evictions("t", "ab", busy, last_used).evict == (goes,)
    # llama-swap's look at neither.
    assert Matrix(PAIR, models=[*"tab"], ties="definition").evictions("t", "ab", busy, last_used).evict == ("b",)


def test_who_was_used_most_recently_stays_whatever_goes_for_it() -> None:
    matrix = Matrix({"one": "t & a & b", "two": "t & c & d"}, models=[*"tabcd"])
    assert matrix.evictions("t", "abcd", last_used={"a": 8, "b": 7, "c": 9, "d": 1}).evict == ("a", "b")
    assert matrix.evictions("t", "abcd", last_used={"a": 9, "b": 7, "c": 9, "d": 8}).evict == ("a", "b")


def test_fewer_go_if_all_were_used_at_the_same_moment() -> None:
    matrix = Matrix({"one": "t & a", "two": "t & b & c"}, models=[*"tabc"], evict_costs={"a": 2})
    assert matrix.evictions("t", "abc").evict == ("a",)


def test_their_order_moves_what_makes_others_needless() -> None:
    """In ``a | c | a & b`` the last alternative replaces the first, and so comes after ``c``."""
    sets = {"s": "t & (a | c | a & b) & b"}
    running = "abc"
    assert Matrix(sets, models=[*"tabc"], ties="definition").evictions("t", running).evict == ("a",)
    assert Matrix(sets, models=[*"tabc"]).evictions("t", running).evict == ("c",)


@pytest.mark.parametrize(
    "text",
    [
        # The third alternative is better than the first, covers the same, and still comes after the second.
        "t & (x | y & q | x & r) & (x & z | y & z)",
        "t & ((x & u) & (u | y & q | x & r)) & y & z",
    ],
)
def test_what_is_better_than_an_earlier_choice_does_not_take_its_place_in_the_order(text: str) -> None:
    models = [*"txyzuqr"]
    running = [model for model in models if model in text and model != "t"]
    assert Matrix({"s": text}, models=models).evictions("t", running).evict == ("r",)


# ---- pins ----


def test_what_is_pinned_never_goes() -> None:
    matrix = home(pinned=["v"])
    assert matrix.pinned == {"v"}
    assert matrix.evictions("q", ["g", "v"]).evict == ("g",)
    with pytest.raises(PlanRefused) as caught:
        matrix.evictions("L", ["g", "v"])
    assert (caught.value.target, caught.value.pinned) == ("L", ("v",))
    assert str(caught.value) == caught.value.reason
    assert "'L' can't run beside 'v', which is pinned" in caught.value.reason
    assert isinstance(caught.value, GateRefused)
    with pytest.raises(PlanRefused, match="'whisper' can't run beside 'v', which is pinned"):
        matrix.evictions("whisper", ["v"])


def test_a_pin_is_worth_more_than_any_price() -> None:
    matrix = Matrix(PAIR, models=[*"tab"], evict_costs={"b": 10**9}, pinned=["a"])
    assert matrix.evictions("t", "ab").evict == ("b",)


def test_several_pins_are_all_named() -> None:
    matrix = Matrix({"one": "a & b", "two": "t"}, models=[*"tab"], vars={"first": "a"}, pinned=["first", "b"])
    with pytest.raises(PlanRefused, match="beside 'a', 'b', which are pinned"):
        matrix.evictions("t", "ab")


def test_a_pin_can_be_loaded_and_used() -> None:
    matrix = home(pinned=["v"])
    assert matrix.evictions("v", ["L"]).evict == ("L",)
    assert matrix.evictions("v", ["v", "L"]).evict == ()


# ---- sizes ----


def test_where_each_model_occurs_once_the_work_is_the_length() -> None:
    """16384 choices, of which none is written down."""
    models = [f"{side}{number}" for number in range(14) for side in "ab"]
    matrix = Matrix({"pairs": "&".join(f"(a{n}|b{n})" for n in range(14))}, models=models)
    tree = matrix.sets[0].tree
    assert tree.steps == len(tree.parts) == 14 * 3 + 1
    assert tree.tangled == ()
    plan = matrix.evictions("a0", [f"b{number}" for number in range(14)])
    assert (plan.evict, plan.cost) == (("b0",), 1)
    assert len(plan.target_set) == 14


def test_eight_accelerators_with_three_models_each() -> None:
    names = [[f"gpu{place}-{size}" for size in ("s", "m", "l")] for place in range(8)]
    matrix = Matrix(
        {"all": " & ".join(f"({' | '.join(three)})" for three in names)},
        models=[name for three in names for name in three],
    )
    assert matrix.sets[0].tree.steps == 8 * 4 + 1
    plan = matrix.evictions("gpu3-l", [three[0] for three in names])
    assert plan.evict == ("gpu3-s",)
    # The same three on each of them: the choices are as many, but few of them differ.
    matrix = Matrix({"all": " & ".join(["(s | m | l)"] * 8)}, models=["s", "m", "l", "x"])
    assert matrix.sets[0].tree.steps < 300
    assert matrix.evictions("s", ["m", "l", "x"]).evict == ("x",)


def test_a_model_in_two_of_the_pairs_costs_little() -> None:
    pairs = "&".join(f"(a{n}|b{n})" for n in range(14))
    matrix = Matrix({"s": f"{pairs} & (a3 | b5)"}, models=[f"{side}{number}" for number in range(14) for side in "ab"])
    assert matrix.sets[0].tree.tangled == ("a3", "b5")
    assert matrix.sets[0].tree.steps < 150
    assert matrix.evictions("a3", ["b3", "a5", "b5"]).evict == ("b3",)


def test_alternatives_that_name_the_same_models_are_not_tangled() -> None:
    matrix = Matrix({"s": "(a & b) | (a & c) | (b & c & a)"}, models=[*"abc"])
    assert matrix.sets[0].tree.tangled == ()
    assert matrix.sets[0].tree.steps == len(matrix.sets[0].tree.parts)


def test_what_is_too_large_is_refused_with_its_size() -> None:
    models = [f"m{number}" for number in range(40)]
    any_of_them = f"({' | '.join(models)})"
    with pytest.raises(SetExpressionError) as caught:
        Matrix({"fine": "m1", "huge": " & ".join([any_of_them] * 20)}, models=models)
    assert caught.value.set_name == "huge"
    assert "too large: a decision could take 534487222358941 steps, and the limit is 250000" in caught.value.reason
    assert "40 in all: 'm0', 'm1', 'm2', 'm3', 'm4', ..." in caught.value.reason


def test_the_limit_can_be_moved() -> None:
    sets = {"s": " & ".join([f"({' | '.join('abcdefgh')})"] * 6)}
    steps = Matrix(sets, models=[*"abcdefgh"]).sets[0].tree.steps
    assert 8 < steps < MOST_STEPS
    Matrix(sets, models=[*"abcdefgh"], limit=steps)
    with pytest.raises(SetExpressionError, match=f"could take {steps} steps, and the limit is {steps - 1}"):
        Matrix(sets, models=[*"abcdefgh"], limit=steps - 1)


def test_references_that_double_each_time() -> None:
    sets = {"s0": "(a | b) & (c | d)"} | {f"s{n}": f"+s{n - 1} & +s{n - 1}" for n in range(1, 500)}
    with pytest.raises(SetExpressionError, match="too large") as caught:
        Matrix(sets, models=[*"abcd"])
    assert caught.value.set_name < "s20"


def test_what_is_too_long_is_never_put_together() -> None:
    """A set that refers to a long one many times would take all memory before its size is known."""
    models = [f"m{number}" for number in range(100)]
    sets = {"long": "&".join(models), "longer": " | ".join(["+long"] * 3)}
    with pytest.raises(SetExpressionError, match="304 steps, and the limit is 300; with all its references") as caught:
        Matrix(sets, models=models, limit=300)
    assert caught.value.set_name == "longer"
    with pytest.raises(SetExpressionError, match="too large: a decision could take 101 steps"):
        Matrix(sets, models=models, limit=100)


def test_what_can_not_win_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small part of what was foretold is looked at, even if all models run."""
    states = 0

    class Counted(cover._State):
        def __new__(cls, mask: int, value: int, trail: cover.Trail) -> Self:
            nonlocal states
            states += 1
            return super().__new__(cls, mask, value, trail)

    monkeypatch.setattr(cover, "_State", Counted)
    dice = random.Random(2)
    models = [f"m{number}" for number in range(24)]
    parts = [" | ".join(" & ".join(dice.sample(models, 2)) for _ in range(4)) for _ in range(7)]
    costs = {model: dice.randint(1, 9) for model in models}
    matrix = Matrix({"s": " & ".join(f"({part})" for part in parts)}, models=models, evict_costs=costs)
    tree = matrix.sets[0].tree
    target = next(model for model in models if model in tree.models)
    matrix.evictions(target, [model for model in models if model != target])
    # Without the bounds, or without comparing partial choices, it is more than that.
    assert 0 < states < tree.steps / 20


def test_numbers_beyond_counting() -> None:
    models = [f"m{number}" for number in range(200)]
    with pytest.raises(SetExpressionError, match=r"could take 1e\+18 or more steps"):
        Matrix({"s": " & ".join([f"({' | '.join(models)})"] * 100)}, models=models)


def test_their_order_has_a_bound_and_the_price_is_right_beyond_it() -> None:
    models = [*"abcdefghijklm"]
    sets = {"s": " & ".join([f"({' | '.join(models)})"] * 8)}
    plans = [
        Matrix(sets, models=models, limit=10**9, ties=ties).evictions("a", models[1:])
        for ties in ("usage", "definition")
    ]
    assert [plan.cost for plan in plans] == [5, 5]


def test_no_depth_is_too_deep() -> None:
    deep = 10 * sys.getrecursionlimit()
    matrix = Matrix({"s": "a | (b & (" * deep + "c" + "))" * deep}, models=[*"abc"])
    assert matrix.evictions("b", "ac", last_used={"a": 1}).evict == ("c",)
    assert matrix.evictions("b", "ac", last_used={"c": 1}).evict == ("a",)
    wide = Matrix({"s": "&".join(f"m{n}" for n in range(deep))}, models=[f"m{n}" for n in range(deep)])
    assert wide.evictions("m0", ["m1", f"m{deep - 1}"]).evict == ()


# ---- what is refused at configuration ----


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sets": {}}, ValueError, "needs at least one set"),
        ({"sets": ["a"]}, TypeError, "sets must map names to expressions"),
        ({"sets": {"": "a"}}, ValueError, "the name of a set is empty"),
        ({"sets": {3: "a"}}, TypeError, "the name of a set must be a string"),
        ({"sets": {"s": 3}}, TypeError, "set 's': a set is said by a text"),
        ({"sets": {"s": "a &"}}, SetExpressionError, "set 's': position 3, after 'a &'"),
        ({"models": ["a", "b", "a"]}, ValueError, "models: 'a' is named twice"),
        ({"models": ["a", ""]}, ValueError, "a name in models is empty"),
        ({"models": ["a", 3]}, TypeError, "a name in models must be a string"),
        ({"models": "ab"}, TypeError, "models must be names of models"),
        ({"models": 3}, TypeError, "models must be names of models"),
        ({"vars": {"x": "nope"}}, ValueError, "vars: 'x' stands for 'nope', which is no model"),
        ({"vars": {"x": ["a"]}}, ValueError, r"vars: 'x' stands for \['a'\], which is no model"),
        ({"vars": {"x y": "a"}}, ValueError, "vars: 'x y' can't be a short name"),
        ({"vars": {"": "a"}}, ValueError, "vars: '' can't be a short name"),
        ({"vars": [("x", "a")]}, TypeError, "vars must map short names to models"),
        ({"evict_costs": {"nope": 1}}, ValueError, "evict_costs: 'nope' is neither a model nor a short name"),
        ({"evict_costs": {"a": -1}}, ValueError, "evict_costs: 'a' must cost a finite number >= 0, not -1"),
        ({"evict_costs": {"a": math.nan}}, ValueError, "finite number >= 0, not nan"),
        ({"evict_costs": {"a": math.inf}}, ValueError, "finite number >= 0, not inf"),
        ({"evict_costs": {"a": "3"}}, TypeError, "finite number >= 0, not '3'"),
        ({"evict_costs": {"a": True}}, TypeError, "finite number >= 0, not True"),
        ({"evict_costs": {"a": 1, "x": 1}, "vars": {"x": "a"}}, ValueError, "'a' and 'x' are the same model"),
        ({"evict_costs": [1]}, TypeError, "evict_costs must map models to numbers"),
        ({"pinned": ["nope"]}, ValueError, "pinned: 'nope' is neither a model nor a short name"),
        ({"pinned": ["a", "a"]}, ValueError, "pinned: 'a' is named twice"),
        ({"pinned": "a"}, TypeError, "pinned must be names of models"),
        ({"ties": "lru"}, ValueError, "ties must be 'usage' or 'definition', not 'lru'"),
        ({"limit": 0}, ValueError, "limit must be a number of steps > 0, not 0"),
        ({"limit": 1.5}, TypeError, "limit must be a number of steps, an int > 0, not 1.5"),
        ({"limit": True}, TypeError, "limit must be a number of steps, an int > 0, not True"),
    ],
)
def test_bad_configurations(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    good: dict[str, Any] = {"sets": {"s": "a & b"}, "models": ["a", "b"]}
    with pytest.raises(error, match=said):
        Matrix(**(good | changes))
    Matrix(**good)
