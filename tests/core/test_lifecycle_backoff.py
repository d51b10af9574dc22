"""Restarts and looks: pauses that grow, a loop that is seen, a server that is found ready soon."""

from __future__ import annotations

import math
import os
from typing import Any, Final

import pytest
from hypothesis import given, settings, strategies as st

from trio_mlxgate.core.backoff import Pulse, Restarts, RestartSettings, next_look

EXAMPLES: Final = int(os.environ.get("MLXGATE_EXAMPLES", "300"))

SETTINGS = st.builds(
    RestartSettings,
    first=st.sampled_from([0.0, 0.25, 0.5, 3.0]),
    factor=st.sampled_from([1, 1.5, 2, 1000]),
    longest=st.sampled_from([0.0, 1.0, 30.0, math.inf]),
    most=st.integers(0, 7),
    window=st.sampled_from([0.0, 10.0, 300.0, math.inf]),
)


def test_the_pauses_double_and_the_sixth_crash_is_the_last() -> None:
    restarts, now, pauses = Restarts(), 0.0, []
    for _ in range(5):
        verdict = restarts.crashed(now, has_served=True)
        assert verdict.restart
        pauses.append(verdict.at - now)
        now = verdict.at
    assert pauses == [0.5, 1, 2, 4, 8]
    assert restarts.crashed(now, has_served=True) == (False, now + 16, 6)


def test_a_crash_now_and_then_is_no_loop() -> None:
    restarts = Restarts()
    for day in range(1000):
        assert restarts.crashed(day * 301.0, has_served=True) == (True, day * 301.0 + 0.5, 1)


def test_one_that_never_served_is_not_tried_again_by_itself_and_not_too_soon() -> None:
    restarts = Restarts()
    assert restarts.crashed(0.0, has_served=False) == (False, 0.5, 1)
    assert restarts.crashed(0.5, has_served=False) == (False, 1.5, 2)


def test_a_stop_makes_all_forgotten() -> None:
    restarts = Restarts()
    restarts.crashed(0.0, has_served=True)
    restarts.forget()
    assert restarts.crashed(0.0, has_served=True) == (True, 0.5, 1)


@given(SETTINGS, st.lists(st.tuples(st.sampled_from([0.0, 0.1, 5.0, 11.0, 400.0]), st.booleans()), max_size=40))
@settings(max_examples=EXAMPLES, deadline=None)
def test_against_the_list_of_all_crashes(given_: RestartSettings, steps: list[tuple[float, bool]]) -> None:
    restarts, now, crashes = Restarts(given_), 0.0, list[float]()
    for pause, has_served in steps:
        now += pause
        crashes.append(now)
        verdict = restarts.crashed(now, has_served=has_served)
        recent = sum(now - at <= given_.window for at in crashes)
        assert verdict.restart == (has_served and recent <= given_.most)
        assert verdict.crashes == min(recent, given_.most + 1)
        assert now <= verdict.at <= now + given_.longest
        if given_.longest >= given_.first:
            assert verdict.at >= now + given_.first
        expected = min(given_.first * float(given_.factor) ** (verdict.crashes - 1), given_.longest)
        assert verdict.at - now == pytest.approx(expected)


@given(st.floats(0, 1e6), st.floats(0, 1e4))
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_next_look_adds_a_tenth_at_most(started: float, elapsed: float) -> None:
    now = started + elapsed
    pause = next_look(started, now) - now
    assert 0.019 <= pause <= 1.001
    assert pause <= max(0.021, 0.1 * elapsed + 1e-6)


@pytest.mark.parametrize("ready_after", [0.0, 0.05, 0.3, 0.45, 2.0, 60.0])
def test_how_late_a_server_is_seen(ready_after: float) -> None:
    now, looks = 0.0, 1
    while now < ready_after:
        now, looks = next_look(0.0, now), looks + 1
    assert now - ready_after <= max(0.050, 0.1 * ready_after)
    assert now - ready_after <= 1.0
    assert looks <= 110


def test_a_pulse() -> None:
    pulse = Pulse(0.0, 30.0)
    assert not pulse.looked(True, 10.0)
    assert pulse.looked(False, 20.0)
    assert not pulse.well
    assert not pulse.looked(False, 39.9)
    assert not pulse.dead(39.9)
    assert pulse.dead(40.0)
    assert pulse.looked(True, 41.0)
    assert not pulse.dead(1000.0), "nobody has looked since"
    endless = Pulse(0.0, math.inf)
    endless.looked(False, 1.0)
    assert not endless.dead(1e9)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"first": -1}, ValueError),
        ({"first": "1"}, TypeError),
        ({"factor": 0.5}, ValueError),
        ({"factor": math.nan}, ValueError),
        ({"factor": None}, TypeError),
        ({"longest": math.nan}, ValueError),
        ({"most": -1}, ValueError),
        ({"most": 1.5}, TypeError),
        ({"window": True}, TypeError),
    ],
)
def test_bad_settings(bad: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(bad))):
        RestartSettings(**bad)
