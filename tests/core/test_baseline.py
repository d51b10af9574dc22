"""The usual latency, against a plain list of all latencies that ever were."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.baseline import HOUR, Baseline
from trio_mlxgate.core.levels import DEFAULT_SETTINGS, LoadSettings

SHORT = LoadSettings(baseline_hours=3, initial_hours=2)


def fed(latencies: list[float], settings: LoadSettings = DEFAULT_SETTINGS, every: float = 30.0) -> Baseline:
    baseline = Baseline(settings)
    for number, latency in enumerate(latencies):
        baseline.learn(latency, number * every)
    return baseline


def hours_of(history: list[tuple[float, float]]) -> list[list[float]]:
    """The latencies by hour: one begins with a latency, and ends with the first one an hour later, if it has three."""
    hours: list[list[float]] = []
    began = 0.0
    for now, latency in history:
        if not hours or (now - began >= HOUR and len(hours[-1]) >= 3):
            hours.append([])
            began = now
        hours[-1].append(latency)
    return hours


def oracle(history: list[tuple[float, float]], settings: LoadSettings) -> float:
    hours = hours_of(history)
    past = [sorted(hour)[2] for hour in hours[:-1]]
    known = past[-settings.baseline_hours :]
    known += [sorted(hour)[2] for hour in hours[-1:] if len(hour) >= 3]
    if len(past) < settings.initial_hours:
        known.append(settings.initial_baseline)
    return max(min(known), settings.least_baseline)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 30.0, 600.0, 3599.5, 3600.0, 90000.0]), st.floats(0, 5)),
        min_size=1,
        max_size=60,
    )
)
def test_it_is_what_the_list_says(steps: list[tuple[float, float]]) -> None:
    baseline = Baseline(SHORT)
    history: list[tuple[float, float]] = []
    now = 1000.0
    for passed, latency in steps:
        now += passed
        baseline.learn(latency, now)
        history.append((now, latency))
        assert baseline.seconds == oracle(history, SHORT)
        assert len(baseline._hours) <= 3
        assert len(baseline._quickest) <= 3


@given(st.lists(st.floats(0, 5)), st.floats(0.010, 5))
def test_what_is_slow_moves_nothing(latencies: list[float], slow: float) -> None:
    """Within an hour: one more answer that is slower than the baseline never moves it."""
    baseline = fed(latencies, every=1.0)
    before = baseline.seconds
    if slow >= before:
        baseline.learn(slow, len(latencies))
        assert baseline.seconds == before


def test_it_begins_with_the_initial_value() -> None:
    assert fed([]).seconds == 0.050
    assert fed([0.020]).seconds == 0.050
    assert fed([0.020] * 2).seconds == 0.050
    assert fed([0.020] * 3).seconds == 0.020
    assert fed([0.020] * 3, LoadSettings(initial_baseline=0.3)).seconds == 0.020


def test_it_never_falls_below_the_least() -> None:
    assert fed([0.001] * 1000).seconds == 0.010
    assert fed([0.0] * 5, LoadSettings(least_baseline=0.002)).seconds == 0.002


def test_one_cold_start_spoils_nothing() -> None:
    assert fed([4.0]).seconds == 0.050
    assert fed([4.0, 0.020, 0.020]).seconds == 0.050
    assert fed([4.0, 0.020, 0.020, 0.020]).seconds == 0.020
    quiet = [0.020] * 200
    assert fed([*quiet, 4.0]).seconds == 0.020
    assert fed([*quiet, 4.0, *quiet]).seconds == 0.020


def test_two_odd_answers_in_an_hour_spoil_nothing_either() -> None:
    assert fed([*[0.040] * 10, 0.011, *[0.040] * 5, 0.012, *[0.040] * 50]).seconds == 0.040


def test_a_lasting_improvement_is_learnt_with_the_third_answer() -> None:
    usual = [0.050] * 500
    assert [fed([*usual, *[0.015] * count]).seconds for count in (1, 2, 3)] == [0.050, 0.050, 0.015]


@pytest.mark.parametrize("known", [3, 10, 500])
def test_overload_for_three_hours_is_not_learnt(known: int) -> None:
    assert fed([*[0.020] * known, *[0.120] * 360]).seconds == 0.020


def test_overload_from_the_start_is_not_learnt_within_the_first_hours() -> None:
    six_hours = 6 * 120
    assert fed([0.300] * (six_hours - 1)).seconds == 0.050
    assert fed([0.300] * six_hours).seconds == 0.050
    assert fed([0.300] * (six_hours + 1)).seconds == 0.300, "a server that is far away, it seems"


def test_after_a_day_what_lasts_is_usual() -> None:
    hour = 120
    history = [0.020] * hour + [0.120] * hour * 24
    assert fed(history).seconds == 0.020
    assert fed([*history, 0.120]).seconds == 0.120


def test_a_weekend_without_readings_is_forgotten_not_the_week() -> None:
    baseline = fed([0.020] * 120 * 8)
    for number in range(3):
        baseline.learn(0.120, 300_000.0 + number)
    assert baseline.seconds == 0.020


def test_an_hour_with_too_few_answers_goes_on() -> None:
    baseline = Baseline(LoadSettings(initial_hours=1))
    for hour in range(2):
        baseline.learn(0.020, hour * HOUR)
    assert baseline.seconds == 0.050
    baseline.learn(0.030, 2 * HOUR)
    assert baseline.seconds == 0.030, "three, though in three hours"
    baseline.learn(0.040, 2 * HOUR + 1)
    assert baseline.seconds == 0.030
