"""The life of a model's server: the table, and what holds for every path through it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings, strategies as st

from trio_mlxgate.core.lifecycle import (
    TRANSITIONS,
    IllegalTransition,
    Lifecycle,
    ModelEvent,
    ModelState,
    after,
    diagram,
)

EXAMPLES: Final = int(os.environ.get("MLXGATE_EXAMPLES", "300"))
PAGE: Final = Path(__file__).parent.parent.parent / "docs/model_processes.md"

S, E = ModelState, ModelEvent

POSSIBLE: Final = {
    E.START: {S.STOPPED, S.FAILED},  # where no process is, so that there are never two
    E.ANSWER: {S.STARTING},
    E.CRASH: {S.STARTING, S.READY},  # one that is told to go doesn't crash, it exits
    E.GIVE_UP: {S.STARTING, S.READY},
    E.STOP: {S.STARTING, S.READY, S.FAILED},
    E.EXIT: {S.STOPPING},
    E.SHUT_DOWN: {S.STOPPED, S.FAILED},
}
"""Where each event can happen, said once more and from the other side: a new line of the table is no accident."""


@pytest.mark.parametrize("event", ModelEvent)
@pytest.mark.parametrize("state", ModelState)
def test_what_is_not_in_the_table_raises_and_changes_nothing(state: ModelState, event: ModelEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
        return
    with pytest.raises(IllegalTransition, match="can't happen to a server that is") as raised:
        after(state, event)
    assert (raised.value.state, raised.value.event) == (state, event)


@pytest.mark.parametrize("event", ModelEvent)
def test_nothing_is_possible_but_what_is_meant_to_be(event: ModelEvent) -> None:
    assert {at for at, known in TRANSITIONS if known is event} == POSSIBLE[event]


def test_an_ordinary_life() -> None:
    life = Lifecycle("qwen")
    events = [E.START, E.ANSWER, E.CRASH, E.CRASH, E.ANSWER, E.STOP, E.EXIT, E.START, E.GIVE_UP, E.STOP, E.SHUT_DOWN]
    states = [life.apply(event, float(at), "so").after for at, event in enumerate(events)]
    assert states == [
        *(S.STARTING, S.READY, S.STARTING, S.STARTING, S.READY, S.STOPPING),
        *(S.STOPPED, S.STARTING, S.FAILED, S.STOPPED, S.SHUT_DOWN),
    ]


def test_a_step_tells_all_of_it() -> None:
    life = Lifecycle("qwen")
    change = life.apply(E.START, 3.0, "wanted")
    assert (change.model, change.before, change.event, change.after) == ("qwen", S.STOPPED, E.START, S.STARTING)
    assert (change.at, change.reason) == (3.0, "wanted")
    with pytest.raises(IllegalTransition, match="'exit' can't happen to a server that is starting; what can: 'answer'"):
        life.apply(E.EXIT, 4.0)
    assert life.state is S.STARTING


@given(st.lists(st.sampled_from(ModelEvent), max_size=60))
@settings(max_examples=EXAMPLES, deadline=None)
def test_whatever_happens(events: list[ModelEvent]) -> None:
    """It is ready only after an answer; it is shut down only without a process; nothing follows on that."""
    life = Lifecycle("m")
    for at, event in enumerate(events):
        before = life.state
        try:
            change = life.apply(event, float(at))
        except IllegalTransition:
            assert life.state is before
            continue
        assert change.after is life.state
        assert before is not S.SHUT_DOWN
        assert (life.state is S.READY) == (event is E.ANSWER)
        if life.state is S.SHUT_DOWN:
            assert not before.may_hold_memory
        if before.may_hold_memory and not life.state.may_hold_memory:
            assert event in {E.EXIT, E.GIVE_UP}, "a process goes by its exit, or because it has gone"


@pytest.mark.parametrize("state", ModelState)
def test_from_everywhere_the_end_can_be_reached_and_everything_is_reached(state: ModelState) -> None:
    def reached(start: ModelState) -> set[ModelState]:
        seen, todo = {start}, [start]
        while todo:
            at = todo.pop()
            for (before, _), following in TRANSITIONS.items():
                if before is at and following not in seen:
                    seen.add(following)
                    todo.append(following)
        return seen

    assert S.SHUT_DOWN in reached(state)
    assert state in reached(S.STOPPED)


def test_the_page_has_the_diagram_of_the_table() -> None:
    if not PAGE.exists():
        pytest.skip("the documentation is not here")
    assert f"```text\n{diagram()}\n```" in PAGE.read_text(), f"put this there:\n{diagram()}"
