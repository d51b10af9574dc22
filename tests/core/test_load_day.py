"""A day of health checks with faults: what is said at each moment is what a person would say."""

from __future__ import annotations

from itertools import pairwise

from tests.core.a_day_of_health import (
    DAY,
    HANGS,
    INTERVAL,
    Server,
    at,
    clock,
    expected,
    levels_of_the_day,
    looks,
    table,
)
from trio_mlxgate.core.load import LoadLevel, LoadMonitor, LoadSettings, Transition
from trio_mlxgate.core.readings import Health


def test_a_look_every_30_seconds() -> None:
    monitor = LoadMonitor()
    changes: list[Transition] = []
    for time, reading, levels in looks():
        changed = monitor.observe(reading, time)
        changes += [changed] if changed else []
        for later in (0.0, INTERVAL - 0.001):
            level = monitor.report(time + later).level
            assert level in levels, f"{clock(time + later)}: {level}, not {levels}"
    assert [(clock(change.now), change.after) for change in changes] == [
        ("00:00:00", Health.UP),
        ("02:01:00", Health.DOWN),
        ("02:05:00", Health.UP),
        ("04:01:00", Health.DOWN),
        ("04:03:00", Health.UP),
        ("05:01:00", Health.DOWN),
        ("05:03:00", Health.UP),
        ("06:00:00", Health.DOWN),
        ("06:10:00", Health.UP),
    ]


def test_looks_when_the_monitor_asks_for_them() -> None:
    """Later, as a change comes between two looks; or earlier, since what fails is looked at every 5 s."""
    monitor, server = LoadMonitor(), Server()
    settings = LoadSettings()
    time, taken = 0.0, 0
    while time < DAY:
        monitor.observe(server.look(time), time)
        taken += 1
        level = monitor.report(time).level
        levels = expected(time, slack=2 * settings.interval)
        assert level in levels, f"{clock(time)}: {level}, not {levels}"
        after = monitor.next_check(time)
        assert settings.recheck <= after - time <= settings.interval
        time = after
    # Failing costs a look every 5 s, for 21 minutes in all; the rest is a look every 30 s and a few in haste.
    assert DAY / INTERVAL < taken < 1.15 * DAY / INTERVAL


def test_overload_is_never_learnt_in_three_hours_nor_an_idle_hour_forgotten() -> None:
    monitor = LoadMonitor()
    baselines = {}
    for time, reading, _ in looks():
        monitor.observe(reading, time)
        baselines[time] = monitor.baseline
    assert 0.019 <= baselines[at(9)] <= 0.020
    assert baselines[at(12)] == baselines[at(9)], "six times slower for 3 hours"
    assert baselines[at(23) - INTERVAL] == baselines[at(12)], "a drift over ten hours"
    assert baselines[at(23, 0, 30)] == baselines[at(12)], "two better answers may be chance"
    assert baselines[at(23, 1)] == 0.010, "the third is learnt; below the least no baseline falls"


def test_a_server_that_hangs_after_an_idle_look_is_never_idle_again() -> None:
    monitor = LoadMonitor()
    for time, reading, _ in looks():
        if time < at(2):
            monitor.observe(reading, time)
    time = at(2) - INTERVAL
    assert monitor.report(time).level is LoadLevel.IDLE
    said = []
    for late in (32.0, 37.0, 42.0, 130.0):
        monitor.observe(HANGS, time + late)
        said.append(monitor.report(time + late).level)
        assert monitor.report(time + late).active_jobs is None
    assert said == [LoadLevel.UNKNOWN, LoadLevel.UNKNOWN, LoadLevel.DOWN, LoadLevel.DOWN]


def test_the_table_has_a_line_for_each_change() -> None:
    lines = table(levels_of_the_day()).splitlines()
    assert lines[2:5] == [
        "| 00:00:00 | normal | a cold start, as the very first answer |",
        "| 00:00:30 | idle | quiet: 20 ms |",
        "| 02:00:00 | unknown | hangs |",
    ]
    said = [line.split("|")[2].strip() for line in lines[2:]]
    assert all(one != other for one, other in pairwise(said))
    assert len(said) == 22
