"""What llama-swap decides, recorded from itself, and what ours decides with ``ties="definition"``.

Errors are compared as errors; what they say is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.core.eager import TooMany, expand
from tests.models.recorded import Ours, check, named
from tests.models.vectors import each, load, with_note
from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.matrix import Matrix
from trio_mlxgate.core.set_expressions import SetExpressionError, tokenize
from trio_mlxgate.core.ticket import TicketState

if TYPE_CHECKING:
    from tests.models.vectors import Vector
    from trio_mlxgate.core.planning import Plan

TOKENS = {
    "identifier": "ident",
    "reference": "ref",
    "and": "and",
    "or": "or",
    "open": "lparen",
    "close": "rparen",
    "end": "eof",
}


def matrix_of(vector: Vector, **options: Any) -> Matrix:
    return Matrix(
        {one["name"]: one["dsl"] for one in vector["sets"]},
        models=vector["models"],
        vars=vector["vars"],
        ties="definition",
        **options,
    )


def as_recorded(plan: Plan) -> dict[str, object]:
    """A plan in the words of the records, in which a model that runs alone costs nothing."""
    return {
        "evict": list(plan.evict),
        "set_name": plan.set_name,
        "cost": plan.cost if plan.set_name else 0,
        "target_set": list(plan.target_set),
    }


def test_there_are_vectors() -> None:
    assert any(load().values())


@each("solver")
def test_solver(vector: Vector) -> None:
    matrix = matrix_of(vector, evict_costs=vector["evict_costs"])
    assert as_recorded(matrix.evictions(vector["requested"], vector["running"])) == vector["expect"]


@each("solver_random")
def test_solver_random(vector: Vector) -> None:
    matrix = matrix_of(vector, evict_costs=vector["evict_costs"])
    assert as_recorded(matrix.evictions(vector["requested"], vector["running"])) == vector["expect"]


@each("dsl_expand")
def test_symbolic_sets(vector: Vector) -> None:
    expected = vector["expect"]["symbolic"]
    if "error" in expected:
        with pytest.raises(SetExpressionError):
            matrix_of(vector)
        return
    sets = matrix_of(vector).sets
    if "order" in expected:
        assert [one.name for one in sets] == expected["order"]
    if "projected" in expected:
        (tree,) = (one.tree for one in sets if one.name == vector["set"])
        choices = tree.frontier(sorted(tree.models), budget=10_000_000)
        assert choices is not None
        assert [sorted(choice) for choice in choices] == expected["projected"]


@each("dsl_expand")
def test_the_oracle_expands_as_they_did(vector: Vector) -> None:
    expected = vector["expect"]["eager"]
    sets = {one["name"]: one["dsl"] for one in vector["sets"]}
    if "error" in expected:
        with pytest.raises((SetExpressionError, TooMany)):
            expand(sets, vector["set"], vector["models"], vector["vars"], limit=1000)
    else:
        choices = expand(sets, vector["set"], vector["models"], vector["vars"], limit=1000)
        assert [sorted(set(choice)) for choice in choices] == expected["sets"]


@each("dsl_tokenize")
def test_tokens(vector: Vector) -> None:
    if "error" in vector["expect"]:
        with pytest.raises(SetExpressionError):
            tokenize(vector["input"])
    else:
        assert [[TOKENS[token.kind], token.text] for token in tokenize(vector["input"])] == vector["expect"]["tokens"]


@each("group")
def test_group(vector: Vector) -> None:
    groups = {name: Group(**fields) for name, fields in vector["groups"].items()}
    models = [member for group in groups.values() for member in group.members]
    plan = Groups(groups, models=models).evictions(vector["requested"], vector["running"])
    assert list(plan.evict) == vector["expect"]["evict"]


@each("evict_costs")
def test_evict_costs_by_short_names(vector: Vector) -> None:
    models = set(vector["vars"].values()) | set(vector["expect"])
    matrix = Matrix({"one": "lone"}, models=[*models, "lone"], vars=vector["vars"], evict_costs=vector["evict_costs"])
    for model, cost in vector["expect"].items():
        assert matrix.evictions("lone", [model]).cost == cost


@each("fifo")
def test_fifo(vector: Vector) -> None:
    check(vector)


@each("fifo_random")
def test_fifo_random(vector: Vector) -> None:
    check(vector)


# ---- better than recorded ----


@each("solver")
def test_what_goes_has_its_true_price(vector: Vector) -> None:
    """Theirs says 0 for a model that is in no set, whatever has to go for it."""
    matrix = matrix_of(vector, evict_costs=vector["evict_costs"])
    plan = matrix.evictions(vector["requested"], vector["running"])
    costs = {vector["vars"].get(name, name): cost for name, cost in vector["evict_costs"].items()}
    assert plan.cost == sum(costs.get(model, 1) for model in plan.evict)


@each("dsl_expand")
def test_what_their_expander_refused_for_its_size_is_solved(vector: Vector) -> None:
    if "error" in vector["expect"]["symbolic"] or "error" not in vector["expect"]["eager"]:
        return
    matrix = matrix_of(vector)
    for model in vector["models"]:
        plan = matrix.evictions(model, [])
        assert model in plan.target_set


@pytest.mark.parametrize("name", [*with_note("fifo", "WEAKNESS"), *with_note("fifo_random", "WEAKNESS")])
def test_where_llama_swap_says_that_it_is_weak_nobody_starves(name: str) -> None:
    vector = named(name)
    starved = set(vector["steps"][-1]["expect"]["queue"])
    assert starved, "in the recording somebody waits for ever"
    ours = Ours(vector)
    ours.play(vector)
    waiting = [ours.requests[one] for one in starved if ours.requests[one].state is TicketState.WAITING]
    ours.tick(30.0)
    for model in {request.model for request in ours.in_flight()}:
        assert ours.request(f"late {model}", model).state is TicketState.WAITING, (
            "closed after max_bypass at the latest"
        )
    for request in ours.in_flight():
        ours.end(request)
    ours.work()
    assert {request.state for request in waiting} <= {TicketState.GRANTED}
