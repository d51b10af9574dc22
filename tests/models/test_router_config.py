"""The settings of models and of a router, and what is said of bad ones."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.groups import Groups
from trio_mlxgate.core.matrix import Matrix
from trio_mlxgate.core.set_expressions import SetExpressionError
from trio_mlxgate.models import Group, ModelConfig, RouterConfig, SwapOptions

if TYPE_CHECKING:
    from pathlib import Path


def model(name: str = "qwen", **settings: Any) -> ModelConfig:
    return ModelConfig(**{"name": name, "command": "serve --port ${PORT}", **settings})


def test_what_the_scheduler_is_told() -> None:
    options = model(limit=4, max_waiting=20, priority=0, ttl=600).options
    assert (options.slots, options.max_waiting, options.priority, options.ttl) == (4, 20, 0, 600)
    plain = model().options
    assert (plain.slots, plain.max_waiting, plain.priority, plain.ttl) == (10, None, None, math.inf)


@pytest.mark.parametrize(
    ("bad", "error", "told"),
    [
        ({"ttl": "ten"}, TypeError, "models.qwen.ttl: expected seconds >= 0, got 'ten'"),
        ({"ttl": -1}, ValueError, "models.qwen.ttl: expected seconds >= 0, got -1"),
        ({"ttl": None}, TypeError, "models.qwen.ttl: expected seconds >= 0, got None"),
        ({"limit": 1.5}, TypeError, "models.qwen.limit: expected an int from 0 to 1000000, got 1.5"),
        ({"limit": -1}, ValueError, "models.qwen.limit: expected an int from 0"),
        ({"limit": True}, TypeError, "models.qwen.limit: expected an int from 0"),
        ({"max_waiting": -1}, ValueError, "models.qwen.max_waiting: expected an int from 0"),
        ({"priority": "high"}, TypeError, "models.qwen.priority: expected an int from -1000000 to 1000000, got 'high'"),
        ({"start_timeout": 0}, ValueError, "models.qwen.start_timeout: expected seconds > 0, got 0"),
        ({"command": ""}, ValueError, "models.qwen.command: expected a command"),
    ],
)
def test_bad_settings_of_a_model(bad: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=re.escape(told)):
        model(**bad)


class Knows:
    """A planner that knows one model."""

    def evictions(self, target: str, running: Any, busy: Any = (), last_used: Any = None) -> Any:
        return Groups(models=["qwen"]).evictions(target, running)


class AnswersNothing:
    """A planner that forgot to return its plan."""

    def evictions(self, target: str, running: Any, busy: Any = (), last_used: Any = None) -> Any:
        return None


@pytest.mark.parametrize(
    ("bad", "error", "told"),
    [
        ({"models": []}, ValueError, "models: expected at least one ModelConfig, got none"),
        ({"models": model()}, TypeError, "models: expected a list of ModelConfig, got"),
        ({"models": {"qwen": model()}}, TypeError, "models: expected a list of ModelConfig, got"),
        ({"models": None}, TypeError, "models: expected a list of ModelConfig, got None"),
        ({"models": ["qwen"]}, TypeError, "models[0]: expected a ModelConfig, got 'qwen'"),
        ({"models": [model(), model()]}, ValueError, "models[1].name: expected a name that no other model has"),
        ({"sets": {"a": "qwen &"}}, SetExpressionError, "set 'a'"),
        ({"sets": {"a": "qwen & gwen"}}, SetExpressionError, "gwen"),
        ({"sets": {}}, ValueError, "needs at least one set"),
        ({"sets": "qwen & llama"}, TypeError, "sets must map names to expressions"),
        ({"sets": {"a": "qwen"}, "groups": {}}, ValueError, "sets, groups: expected one of them, got 2"),
        ({"vars": {"q": "qwen"}}, ValueError, "vars: expected nothing, since there are no sets"),
        ({"evict_costs": {"qwen": 3}}, ValueError, "evict_costs: expected nothing, since there are no sets"),
        ({"sets": {"a": "qwen"}, "evict_costs": {"qwen": -3}}, ValueError, "evict_costs: 'qwen' must cost a finite"),
        ({"sets": {"a": "qwen"}, "ties": "chance"}, ValueError, "ties: expected 'usage' or 'definition', got 'chance'"),
        ({"ties": "chance"}, ValueError, "ties: expected 'usage' or 'definition', got 'chance'"),
        (
            {"sets": {"a": "qwen"}, "evict_costs": {"qwen": 10**400}},
            ValueError,
            "evict_costs: 'qwen' must cost a finite",
        ),
        (
            {"planner": AnswersNothing()},
            ValueError,
            "planner: expected a Plan for each model; asked for 'qwen', it r",
        ),
        ({"groups": {"g": Group(members=["gwen"])}}, ValueError, "group 'g': there is no model 'gwen'"),
        ({"groups": {"g": ["qwen"]}}, TypeError, "group 'g' must be a Group(...)"),
        ({"pinned": ["gwen"]}, ValueError, "pinned: there is no model 'gwen'"),
        ({"pinned": "qwen"}, TypeError, "pinned must be names of models"),
        ({"swap": {"max_bypass": 3}}, TypeError, "swap: expected SwapOptions, got"),
        ({"outer_deadline": "never"}, ValueError, "outer_deadline: expected 'warn', 'raise' or 'allow', got 'never'"),
        ({"ports": 5800}, TypeError, "ports: expected the first and the last port, got 5800"),
        ({"ports": (1, 70000)}, ValueError, "ports[1]: expected an int from 1 to 65535, got 70000"),
        ({"ports": (20, 10)}, ValueError, "ports: expected a first port that is not above the last one"),
        ({"planner": 3}, TypeError, "planner: expected a Planner, which has a method evictions, got 3"),
        ({"planner": Knows()}, ValueError, "planner: expected one that knows all models: there is no model 'llama'"),
        ({"planner": Knows(), "pinned": ["qwen"]}, ValueError, "pinned: expected nothing, since the planner decides"),
    ],
)
def test_bad_settings_of_a_router(bad: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=re.escape(told)):
        RouterConfig(**{"models": [model(), model("llama")], **bad})


def test_which_planner_decides() -> None:
    models = (model("a"), model("b"), model("c"))
    alone = RouterConfig(models=models)
    assert alone.effective_planner.evictions("a", ["b"]).evict == ("b",)
    groups = RouterConfig(models=models, groups={"g": Group(members=("a", "b"), swap=False)})
    assert groups.effective_planner.evictions("a", ["b"]).evict == ()
    sets = RouterConfig(models=models, sets={"s": "x & b"}, vars={"x": "a"}, evict_costs={"x": 3}, pinned=["c"])
    assert isinstance(sets.effective_planner, Matrix)
    assert sets.effective_planner.evictions("a", ["b"]).evict == ()
    own = Groups(models=["a", "b", "c"])
    config = RouterConfig(models=models, planner=own)
    assert config.effective_planner.evictions("a", ["b"]) == own.evictions("a", ["b"])
    assert config.planner is own


def test_what_is_changed_afterwards_changes_nothing() -> None:
    sets, pinned = {"s": "a & b"}, ["c"]
    config = RouterConfig(models=[model("a"), model("b"), model("c")], sets=sets, pinned=pinned)
    sets["t"] = "a & c"
    pinned.clear()
    assert config.sets == {"s": "a & b"}
    assert tuple(config.pinned) == ("c",)


def test_a_changed_copy_is_checked_anew() -> None:
    config = RouterConfig(models=[model("a"), model("b")], swap=SwapOptions(max_bypass=3.0))
    other = attrs.evolve(config, sets={"s": "a & b"})
    assert other.effective_planner.evictions("a", ["b"]).evict == ()
    assert other.swap == config.swap
    assert attrs.evolve(config.models[0], ttl=5.0).ttl == 5.0
    with pytest.raises(TypeError, match=r"models\.a\.ttl"):
        attrs.evolve(config.models[0], ttl="x")  # type: ignore[arg-type]


@given(value=st.one_of(st.text(), st.booleans(), st.none(), st.floats(), st.integers(), st.lists(st.integers())))
def test_whatever_stands_there_is_taken_or_refused_with_its_place(value: Any) -> None:
    for field in ("ttl", "limit", "max_waiting", "priority"):
        try:
            model(**{field: value})
        except (TypeError, ValueError) as error:
            assert str(error).startswith(f"models.qwen.{field}: expected ")  # noqa: PT017 - most are taken


def test_servers_that_may_be_there_together_have_addresses_of_their_own() -> None:
    fixed = {"command": "serve --port 8080", "base_url": "http://127.0.0.1:8080"}
    models = [model("a", **fixed), model("b", **{**fixed, "base_url": "http://127.0.0.1:8080/"}), model("c")]
    RouterConfig(models=models)  # one at a time: why not
    RouterConfig(models=models, pinned=["a"])
    with pytest.raises(ValueError, match=r"models\.b\.base_url: expected one of its own, .* that of 'a' too"):
        RouterConfig(models=models, sets={"s": "a & b"})


def test_a_command_may_have_paths_in_it(tmp_path: Path) -> None:
    assert model(command=[tmp_path / "serve", "${PORT}"]).words == (str(tmp_path / "serve"), "${PORT}")
