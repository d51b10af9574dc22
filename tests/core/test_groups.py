"""Groups of models that take turns, against what their words say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings, strategies as st

from trio_mlxgate.core.groups import DEFAULT_GROUP, Group, Groups
from trio_mlxgate.core.planning import Plan, PlanRefused
from trio_mlxgate.errors import UnknownModel

if TYPE_CHECKING:
    from trio_mlxgate.core.planning import Planner

MODELS: Final = [*"abcdef"]
EXAMPLES: Final = int(os.environ.get("MLXGATE_EXAMPLES", "300"))


@st.composite
def groupings(draw: st.DrawFn) -> dict[str, Group]:
    names = ["g", "h", "i", DEFAULT_GROUP][: draw(st.integers(0, 4))]
    members: dict[str, list[str]] = {name: [] for name in names}
    for model in MODELS:
        place = draw(st.integers(0, len(names)))
        if place < len(names):
            members[names[place]].append(model)
    return {
        name: Group(
            members=tuple(members[name]),
            swap=draw(st.booleans()),
            exclusive=draw(st.booleans()),
            persistent=draw(st.booleans()),
        )
        for name in names
    }


@settings(max_examples=EXAMPLES)
@given(groupings(), st.sampled_from(MODELS), st.lists(st.sampled_from([*MODELS, "stranger"])))
def test_who_goes(groups: dict[str, Group], target: str, running: list[str]) -> None:
    plan = Groups(groups, models=MODELS).evictions(target, running)

    def group_of(model: str) -> str:
        return next((name for name, group in groups.items() if model in group.members), DEFAULT_GROUP)

    settled = {DEFAULT_GROUP: Group()} | groups
    own = group_of(target)
    for model in running:
        other = group_of(model)
        if model == target:
            goes = False
        elif other == own:
            goes = settled[own].swap
        else:
            goes = settled[own].exclusive and not settled[other].persistent
        assert (model in plan.evict) == goes
    assert set(plan.evict) <= set(running)
    assert plan.evict == tuple(sorted(set(plan.evict)))
    assert set(plan.target_set) == {target, *running} - set(plan.evict)
    assert plan.cost == len(plan.evict)
    assert plan.set_name == own


def test_by_default_one_runs_at_a_time() -> None:
    planner: Planner = Groups(models=MODELS)
    plan = planner.evictions("c", ["b", "a"])
    assert plan == Plan(
        target="c",
        evict=("a", "b"),
        target_set=("c",),
        set_name=DEFAULT_GROUP,
        expression="swap, exclusive",
        cost=2,
    )


def test_a_default_group_that_is_given_is_joined_by_those_in_no_other() -> None:
    groups = Groups({DEFAULT_GROUP: Group(members=("a",), swap=False), "g": Group(members=("f",))}, models=MODELS)
    assert groups.evictions("b", ["a", "c", "f"]).evict == ("f",)
    assert groups.evictions("f", ["a", "c"]).evict == ("a", "c")


def test_what_is_pinned_never_goes() -> None:
    groups = Groups(models=MODELS, pinned=["a"])
    assert groups.pinned == {"a"}
    assert groups.evictions("a", ["b"]).evict == ("b",)
    with pytest.raises(PlanRefused, match="'b' can't run beside 'a', which is pinned"):
        groups.evictions("b", ["a", "c"])


def test_an_unknown_model_is_an_error() -> None:
    with pytest.raises(UnknownModel, match=r"there is no model 'nope' \(there are: a, b, c, d, e, f\)"):
        Groups(models=MODELS).evictions("nope", [])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"groups": {"g": Group(members=("nope",))}}, ValueError, "group 'g': there is no model 'nope'"),
        (
            {"groups": {"g": Group(members=("a",)), "h": Group(members=("b", "a"))}},
            ValueError,
            "'a' is in the groups 'g' and 'h': leave it out of one",
        ),
        ({"groups": {"": Group()}}, ValueError, "the name of a group is empty"),
        ({"groups": {3: Group()}}, TypeError, "the name of a group must be a string"),
        ({"groups": {"g": ["a"]}}, TypeError, r"group 'g' must be a Group\(...\)"),
        ({"groups": [Group()]}, TypeError, "groups must map names to"),
        ({"models": ["a", "a"]}, ValueError, "models: 'a' is named twice"),
        ({"models": "ab"}, TypeError, "models must be names"),
        ({"pinned": ["nope"]}, ValueError, "pinned: there is no model 'nope'"),
    ],
)
def test_bad_configurations(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Groups(**{"models": MODELS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"members": ("a", "a")}, ValueError, "members: 'a' is named twice"),
        ({"members": "ab"}, TypeError, "members must be names"),
        ({"members": ("",)}, ValueError, "a name in members is empty"),
        ({"swap": 1}, TypeError, "swap must be True or False"),
        ({"exclusive": None}, TypeError, "exclusive must be True or False"),
        ({"persistent": "no"}, TypeError, "persistent must be True or False"),
    ],
)
def test_bad_groups(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Group(**arguments)
