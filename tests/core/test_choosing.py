"""Which server is asked, and whether another one after a failure, against what the words say."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
from hypothesis import given, strategies as st

from trio_mlxgate import errors
from trio_mlxgate.core.choosing import Candidate, available, may_ask_another, order
from trio_mlxgate.core.load import LoadLevel
from trio_mlxgate.core.readings import Health

NAMES = "abcde"
BEST_FIRST = (
    LoadLevel.IDLE,
    LoadLevel.NORMAL,
    LoadLevel.BUSY,
    LoadLevel.VERY_BUSY,
    LoadLevel.UNKNOWN,
    LoadLevel.DOWN,
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Candidate], list[str]]:
    names = draw(st.permutations(NAMES).map(lambda names: names[: draw(st.integers(1, 5))]))
    candidates = []
    for name in names:
        health = draw(st.sampled_from(Health))
        levels = [LoadLevel.DOWN] if health is Health.DOWN else [level for level in LoadLevel if level.value != "down"]
        candidates.append(
            Candidate(name=name, health=health, level=draw(st.sampled_from(levels)), queue=draw(st.integers(0, 3)))
        )
    prefer = draw(st.lists(st.sampled_from(names), max_size=4))
    return candidates, prefer


def goes_before(one: Candidate, other: Candidate, wishes: list[str], strategy: str) -> bool:
    """Whether ``one`` is asked before ``other``, said as a person would."""
    if strategy == "least_busy":
        if one.level is not other.level:
            return BEST_FIRST.index(one.level) < BEST_FIRST.index(other.level)
        if one.queue != other.queue:
            return one.queue < other.queue
    return wishes.index(one.name) < wishes.index(other.name)


@given(situations(), st.sampled_from(["first", "least_busy"]))
def test_everybody_has_a_place_and_it_is_the_right_one(
    situation: tuple[list[Candidate], list[str]], strategy: Literal["first", "least_busy"]
) -> None:
    candidates, prefer = situation
    ranked = order(candidates, prefer, strategy)
    assert sorted(ranked) == sorted(candidate.name for candidate in candidates)
    wishes = list(dict.fromkeys([*prefer, *(candidate.name for candidate in candidates)]))
    by_name = {candidate.name: candidate for candidate in candidates}
    for one, other in itertools.combinations(ranked, 2):
        assert goes_before(by_name[one], by_name[other], wishes, strategy)


@given(situations())
def test_least_busy_never_puts_one_that_is_down_before_one_that_may_be_asked(
    situation: tuple[list[Candidate], list[str]],
) -> None:
    candidates, prefer = situation
    ranked = order(candidates, prefer, "least_busy")
    there = available(candidates)
    assert [name in there for name in ranked] == sorted((name in there for name in ranked), reverse=True)


def test_of_whom_nothing_is_known_may_be_asked() -> None:
    candidates = [Candidate(name=health.value, health=health) for health in Health]
    assert available(candidates) == {"up", "unknown"}


ALL_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.BackendError | errors.GateRefused)
]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_after_which_error_another_one_is_asked(kind: type[Exception]) -> None:
    error = kind("told")
    if isinstance(error, errors.BackendRefused):
        error.upstream_status = 400
    assert not may_ask_another(error, yielded=True)
    never = (errors.Superseded, errors.AnswerTooSlow, errors.BackendRefused)
    assert may_ask_another(error, yielded=False) == (not isinstance(error, never))


@pytest.mark.parametrize(
    ("status", "elsewhere"),
    [(200, True), (302, True), (400, False), (404, False), (408, True), (429, True), (499, False), (500, True)],
)
def test_whose_fault_a_refusal_is_tells_its_status(status: int, elsewhere: bool) -> None:
    assert may_ask_another(errors.BackendRefused("no", upstream_status=status), yielded=False) == elsewhere


@pytest.mark.parametrize("error", [KeyError(), RuntimeError(), OSError(), ValueError()])
def test_a_mistake_of_the_program_is_no_reason(error: Exception) -> None:
    assert not may_ask_another(error, yielded=False)
