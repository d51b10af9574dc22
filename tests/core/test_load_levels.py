"""Levels as words, the settings, the trigger, and what is told to people."""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.levels import DEFAULT_SETTINGS, LoadLevel, LoadSettings, SchmittTrigger, level_of_jobs
from trio_mlxgate.core.load_report import LoadReport
from trio_mlxgate.core.readings import Health, OwnWork

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN = [LoadLevel.IDLE, LoadLevel.NORMAL, LoadLevel.BUSY, LoadLevel.VERY_BUSY]


def test_labels() -> None:
    assert {level: (level.label, level.label_in("ko")) for level in LoadLevel} == {
        LoadLevel.IDLE: ("idle", "여유"),
        LoadLevel.NORMAL: ("normal", "보통"),
        LoadLevel.BUSY: ("busy", "바쁨"),
        LoadLevel.VERY_BUSY: ("very busy", "매우 바쁨"),
        LoadLevel.DOWN: ("down", "중단"),
        LoadLevel.UNKNOWN: ("unknown", "알 수 없음"),
    }
    with pytest.raises(ValueError, match="'en', 'ko', not 'de'"):
        LoadLevel.IDLE.label_in("de")


def test_the_known_levels_are_ordered() -> None:
    for (i, one), (j, other) in itertools.product(enumerate(KNOWN), repeat=2):
        assert ((one < other), (one <= other), (one > other), (one >= other)) == (i < j, i <= j, i > j, i >= j)
    assert sorted([KNOWN[2], KNOWN[0], KNOWN[3], KNOWN[1]]) == KNOWN
    assert max(KNOWN) is LoadLevel.VERY_BUSY
    assert [level for level in LoadLevel if level.known] == KNOWN


@pytest.mark.parametrize("level", [LoadLevel.DOWN, LoadLevel.UNKNOWN])
@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge])
def test_what_is_not_known_is_neither_more_nor_less(
    level: LoadLevel, compare: Callable[[object, object], bool]
) -> None:
    for other in (LoadLevel.IDLE, level, 3):
        with pytest.raises(TypeError, match="not supported"):
            compare(level, other)
        with pytest.raises(TypeError, match="not supported"):
            compare(other, level)


def test_the_level_of_a_count_of_jobs() -> None:
    assert [level_of_jobs(jobs, DEFAULT_SETTINGS) for jobs in range(6)] == [
        *(LoadLevel.IDLE, LoadLevel.NORMAL, LoadLevel.BUSY, LoadLevel.BUSY, LoadLevel.VERY_BUSY, LoadLevel.VERY_BUSY),
    ]
    large = LoadSettings(normal_jobs=2, busy_jobs=8, very_busy_jobs=16)
    assert [level_of_jobs(jobs, large) for jobs in (1, 2, 7, 8, 15, 16)] == [
        *(LoadLevel.IDLE, LoadLevel.NORMAL, LoadLevel.NORMAL, LoadLevel.BUSY, LoadLevel.BUSY, LoadLevel.VERY_BUSY),
    ]


# ---- settings ----


def test_the_settings_are_those_that_are_documented() -> None:
    assert attrs.asdict(LoadSettings()) == {
        "interval": 30.0,
        "recheck": 5.0,
        "fresh_for": 75.0,
        "down_after": 3,
        "normal_jobs": 1,
        "busy_jobs": 2,
        "very_busy_jobs": 4,
        "initial_baseline": 0.050,
        "initial_hours": 6,
        "least_baseline": 0.010,
        "baseline_hours": 24,
        "normal_ratio": 2.0,
        "measure_ratio": 3.0,
        "busy_ratio": 5.0,
        "busy_inference": 4.0,
        "very_busy_inference": 8.0,
        "leave_at": 0.8,
        "measurement_serves": 30.0,
        "measurement_cooldown": 10.0,
    }


COUNTS = {"down_after", "normal_jobs", "busy_jobs", "very_busy_jobs", "initial_hours", "baseline_hours"}


@pytest.mark.parametrize("name", attrs.fields_dict(LoadSettings))
def test_each_setting_is_a_figure_above_zero(name: str) -> None:
    wrong: list[Any] = [None, "1", True, *([1.5] if name in COUNTS else [])]
    for value in wrong:
        with pytest.raises(TypeError, match=rf"{name} must be .*, not {value!r}"):
            LoadSettings(**{name: value})
    zeros: list[Any] = [0, -1, *([] if name in COUNTS else [math.inf, math.nan])]
    for value in zeros:
        with pytest.raises(ValueError, match=rf"{name} must be .*, not {value!r}"):
            LoadSettings(**{name: value})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"normal_jobs": 2}, "normal_jobs must be less than busy_jobs, not 2 >= 2"),
        ({"busy_jobs": 4}, "busy_jobs must be less than very_busy_jobs, not 4 >= 4"),
        ({"normal_ratio": 5}, "normal_ratio must be less than busy_ratio, not 5 >= 5.0"),
        ({"busy_inference": 8}, "busy_inference must be less than very_busy_inference, not 8 >= 8.0"),
        ({"recheck": 31}, "recheck must be at most interval: .*; not 31 > 30.0"),
        ({"interval": 76}, "interval must be at most fresh_for: .*; not 76 > 75.0"),
        ({"least_baseline": 0.051}, "least_baseline must be at most initial_baseline: .*; not 0.051 > 0.05"),
        ({"initial_hours": 25}, "initial_hours must be at most baseline_hours: .*; not 25 > 24"),
        ({"normal_ratio": 1}, "normal_ratio must be > 1, since 1 is the usual latency; not 1"),
        ({"measure_ratio": 0.5}, "measure_ratio must be > 1, since 1 is the usual latency; not 0.5"),
        ({"leave_at": 1.1}, "leave_at must be <= 1, where 1 is no hysteresis; not 1.1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LoadSettings(**settings)


def test_settings_may_touch() -> None:
    LoadSettings(recheck=75, interval=75, least_baseline=0.05, initial_hours=24, leave_at=1)


# ---- the trigger ----


def test_a_step_is_left_lower_than_it_was_entered() -> None:
    trigger = SchmittTrigger(0.5)
    steps = []
    for figure in (4, 4.1, 2.1, 2, 8.1, 4.1, 4, 2.1, 2, 9, 2):
        trigger.step = trigger.next_step(figure, (4, 8))
        steps.append(trigger.step)
    assert steps == [0, 1, 1, 0, 2, 2, 1, 1, 0, 2, 0]


@given(st.lists(st.integers(0, 100)), st.sampled_from([0.5, 0.8, 1.0]))
def test_the_trigger_is_one_of_two_thresholds_for_each_step(figures: list[int], leave_at: float) -> None:
    trigger = SchmittTrigger(leave_at)
    above = [False, False]  # each threshold by itself, as an engineer would wire it
    for figure in figures:
        above = [figure > (bound * leave_at if was else bound) for was, bound in zip(above, (20, 50), strict=True)]
        trigger.step = trigger.next_step(figure, (20, 50))
        assert trigger.step == sum(above)


# ---- for people ----


def test_a_report_in_one_line() -> None:
    report = LoadReport(
        level=LoadLevel.BUSY,
        source="hybrid",
        age=12.4,
        reason="health latency 120 ms is 6.0 times\nthe usual",
        health=Health.UP,
        latency=0.12,
        baseline=0.02,
        inference_latency=4.25,
        inference_age=9.6,
        own=OwnWork(in_flight=1, waiting=2),
    )
    assert report.describe() == (
        "busy (hybrid, 12 s ago): health latency 120 ms is 6.0 times the usual "
        "[latency 120 ms, baseline 20 ms, first token 4.2 s 10 s ago, ours 1+2]"
    )
    assert report.describe("ko").startswith("바쁨 (hybrid, 12 s ago): ")
    with pytest.raises(ValueError, match="not 'xx'"):
        report.describe("xx")


def test_a_report_of_a_status_and_one_of_nothing() -> None:
    report = LoadReport(level=LoadLevel.NORMAL, source="status", age=0.0, reason="r", active_jobs=1, foreign_jobs=0)
    assert report.describe() == "normal (status, 0 s ago): r [jobs 1, foreign 0, ours 0+0]"
    assert LoadReport(level=LoadLevel.UNKNOWN, reason="r").describe() == "unknown (none, never seen): r [ours 0+0]"
