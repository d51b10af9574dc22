"""Plans of random matrices, against all choices written down one by one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self

import pytest
from hypothesis import given, settings, strategies as st

from tests.core.matrices import Question, by_hand, choices_of, cost_of, questions
from trio_mlxgate.core import cover
from trio_mlxgate.core.planning import PlanRefused

if TYPE_CHECKING:
    from trio_mlxgate.core.matrix import Ties

TIES: Final[tuple[Ties, Ties]] = ("usage", "definition")

many: Final = settings(max_examples=int(os.environ.get("MLXGATE_EXAMPLES", "300")), deadline=None)


def check(question: Question, ties: Ties) -> None:
    matrix = question.matrix(ties)
    arguments = question.target, question.running, question.busy, question.last_used
    running = frozenset(question.running)
    if question.target in running:
        plan = matrix.evictions(*arguments)
        assert (plan.evict, plan.cost, plan.target_set) == ((), 0, tuple(sorted(running)))
        holding = (name for name, choice in choices_of(question, ties) if running <= choice)
        assert plan.set_name == next(holding, "")
        return
    name, gone, together = by_hand(question, ties)
    if gone & question.pinned:
        with pytest.raises(PlanRefused) as caught:
            matrix.evictions(*arguments)
        assert set(caught.value.pinned) <= question.pinned & running
        assert caught.value.target == question.target
        return
    plan = matrix.evictions(*arguments)
    assert plan.target == question.target
    assert plan.cost == pytest.approx(float(cost_of(question, gone)))
    assert (plan.set_name, plan.evict, plan.target_set) == (name, tuple(sorted(gone)), tuple(sorted(together)))
    assert plan.expression == question.sets.get(name, "")


@many
@given(questions(), st.just("usage"))
def test_the_best_plan_of_all(question: Question, ties: Ties) -> None:
    check(question, ties)


@many
@given(questions(once=True), st.just("usage"))
def test_the_best_plan_where_each_model_occurs_once(question: Question, ties: Ties) -> None:
    check(question, ties)
    assert not any(one.tree.tangled for one in question.matrix(ties).sets)


@many
@given(questions(parity=True))
def test_the_first_plan_in_their_order(question: Question) -> None:
    check(question, "definition")


@many
@given(questions(once=True, parity=True))
def test_the_first_plan_in_their_order_where_each_model_occurs_once(question: Question) -> None:
    check(question, "definition")


@many
@given(questions(), st.sampled_from(TIES))
def test_what_stays_may_run_together_and_only_what_runs_goes(question: Question, ties: Ties) -> None:
    matrix = question.matrix(ties)
    try:
        plan = matrix.evictions(question.target, question.running, question.busy, question.last_used)
    except PlanRefused:
        return
    running = set(question.running)
    assert set(plan.evict) <= running - {question.target}
    assert not set(plan.evict) & question.pinned
    left = (running - set(plan.evict)) | {question.target}
    if question.target in running:
        assert left == running
    else:
        assert left <= set(plan.target_set)
        assert len(left) == 1 or any(left <= choice for _, choice in choices_of(question, "usage"))
        assert matrix.permits(left)


@many
@given(questions(), st.integers(0, 2**12 - 1))
def test_what_is_permitted(question: Question, mask: int) -> None:
    some = {model for place, model in enumerate(question.models) if mask >> place & 1}
    expected = len(some) <= 1 or any(some <= choice for _, choice in choices_of(question, "usage"))
    assert question.matrix("usage").permits(some) == expected


@many
@given(questions())
def test_no_question_takes_more_steps_than_were_foretold(question: Question) -> None:
    steps = 0

    class Counted(cover._State):
        def __new__(cls, mask: int, value: int, trail: cover.Trail) -> Self:
            nonlocal steps
            steps += 1
            return super().__new__(cls, mask, value, trail)

    for one in question.matrix("usage").sets:
        steps = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cover, "_State", Counted)
            found = one.tree.best(dict.fromkeys(one.tree.models, 1))
        assert found is not None
        # Beside the steps, each ALL begins with an empty choice.
        assert steps <= one.tree.steps + len(one.tree.parts)


@many
@given(questions(), st.integers(-1, 12))
def test_nothing_is_told_that_is_not_more_than_asked_for(question: Question, more_than: int) -> None:
    for one in question.matrix("usage").sets:
        weights = dict.fromkeys(question.running, 1)
        best = one.tree.best(weights)
        assert best is not None
        found = one.tree.best(weights, more_than)
        assert found == (best if best.value > more_than else None)
