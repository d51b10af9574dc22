"""What is said of a server at each moment: each rule by itself, on both sides of each threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_mlxgate.core.load import LoadLevel, LoadMonitor, LoadReport, LoadSettings, Transition
from trio_mlxgate.core.readings import Health, OwnWork, Reading, Status

IDLE, NORMAL, BUSY, VERY_BUSY = LoadLevel.IDLE, LoadLevel.NORMAL, LoadLevel.BUSY, LoadLevel.VERY_BUSY
DOWN, UNKNOWN = LoadLevel.DOWN, LoadLevel.UNKNOWN
TIMEOUT = Reading(health=Health.UNKNOWN, reason="no answer within 2 s")
ERROR = Reading(health=Health.UNKNOWN, reason="HTTP 500", latency=0.001)
UNAVAILABLE = Reading(health=Health.DOWN, reason="HTTP 503: loading model")
REFUSED = Reading(health=Health.DOWN, reason="connection refused", refused=True)
NOTHING = OwnWork()


def up(latency: float | None = 0.020, jobs: int | None = None, **more: Any) -> Reading:
    return Reading(health=Health.UP, latency=latency, status=None if jobs is None else Status(active_jobs=jobs), **more)


def looked_at(*latencies: float, every: float = 30.0, settings: LoadSettings | None = None) -> LoadMonitor:
    """Looked at with these latencies, the last time at 0 s."""
    monitor = LoadMonitor(settings or LoadSettings())
    for number, latency in enumerate(latencies):
        monitor.observe(up(latency), (number - len(latencies) + 1) * every)
    return monitor


def quiet(latency: float = 0.020) -> LoadMonitor:
    """Three quiet looks, the last one at 0 s: the baseline is that latency."""
    monitor = looked_at(latency, latency, latency)
    assert monitor.baseline == latency
    return monitor


def level(monitor: LoadMonitor, now: float, own: OwnWork = NOTHING, caller: int = 0) -> LoadLevel:
    return monitor.report(now, own, caller=caller).level


# ---- nothing is known ----


def test_at_first_nothing_is_known() -> None:
    monitor = LoadMonitor()
    assert monitor.health is Health.UNKNOWN
    assert monitor.reason == ""
    assert monitor.report(5.0, OwnWork(in_flight=1, waiting=2)) == LoadReport(
        level=UNKNOWN, reason="not looked at yet", baseline=0.050, own=OwnWork(in_flight=1, waiting=2)
    )
    assert monitor.next_check(5.0) == 5.0
    assert not monitor.wants_measurement(5.0)


# ---- a status answer ----


@pytest.mark.parametrize(("jobs", "said"), [*enumerate([IDLE, NORMAL, BUSY, BUSY, VERY_BUSY, VERY_BUSY])])
def test_the_level_of_a_status_answer(jobs: int, said: LoadLevel) -> None:
    monitor = LoadMonitor()
    monitor.observe(up(4.0, jobs, models=("m",)), 0.0)
    report = monitor.report(30.0)
    assert (report.level, report.source, report.age) == (said, "status", 30.0)
    assert (report.active_jobs, report.foreign_jobs, report.models) == (jobs, jobs, ("m",))
    assert report.latency == 4.0, "told, though the level doesn't go by it"


def test_status_answers_are_exact_without_memory() -> None:
    monitor = LoadMonitor()
    said = []
    for now, jobs in enumerate([5, 0, 4, 3, 1, 2, 0]):
        monitor.observe(up(jobs=jobs), float(now))
        said.append(level(monitor, now))
    assert said == [VERY_BUSY, IDLE, VERY_BUSY, BUSY, NORMAL, BUSY, IDLE]


def test_foreign_jobs_are_what_was_not_ours_at_the_time_of_the_reading() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(jobs=3), 0.0, OwnWork(in_flight=2, waiting=9))
    report = monitor.report(1.0, OwnWork(in_flight=2))
    assert (report.active_jobs, report.foreign_jobs) == (3, 1)
    assert report.reason == "3 active jobs, 1 of others"
    assert monitor.report(1.0).foreign_jobs == 1, "whatever is ours now"


def test_our_own_jobs_are_counted_as_they_are_now() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(jobs=4), 0.0, OwnWork(in_flight=4))
    assert [level(monitor, 20.0, OwnWork(in_flight=count)) for count in range(5)] == [
        *(IDLE, NORMAL, BUSY, BUSY, VERY_BUSY),
    ]
    monitor.observe(up(jobs=0), 30.0)
    assert level(monitor, 31.0, OwnWork(in_flight=2)) is BUSY, "sent since"
    # The server has none of those that wait in the gate: they raise the level by one step, and no further.
    assert level(monitor, 31.0, OwnWork(waiting=5)) is NORMAL
    assert level(monitor, 31.0, OwnWork(in_flight=1, waiting=11)) is BUSY
    assert monitor.report(31.0, OwnWork(in_flight=1, waiting=1), caller=1).level is NORMAL
    assert level(monitor, 31.0, OwnWork(in_flight=2, waiting=11)) is BUSY


def test_a_server_that_counts_fewer_than_are_ours() -> None:
    """Between our slot and its counter, or after it: never less than nothing is foreign."""
    monitor = LoadMonitor()
    monitor.observe(up(jobs=0), 0.0, OwnWork(in_flight=1))
    assert monitor.report(1.0, OwnWork(in_flight=1)).foreign_jobs == 0
    assert level(monitor, 1.0, OwnWork(in_flight=1)) is NORMAL


def test_without_a_usable_status_it_is_the_hybrid() -> None:
    monitor = quiet()
    monitor.observe(up(jobs=5), 10.0)
    monitor.observe(up(reason="active_jobs is no number"), 20.0)
    report = monitor.report(20.0)
    assert (report.level, report.source, report.active_jobs, report.foreign_jobs) == (IDLE, "hybrid", None, None)
    assert report.reason == "health latency 20 ms is 1.0 times the usual; active_jobs is no number"
    assert monitor.reason == "active_jobs is no number"


# ---- the hybrid: latency ----


@pytest.mark.parametrize(
    ("latency", "said"),
    [(0.020, IDLE), (0.040, IDLE), (0.0401, NORMAL), (0.100, NORMAL), (0.1001, BUSY), (60.0, BUSY)],
)
def test_thresholds_of_the_latency(latency: float, said: LoadLevel) -> None:
    monitor = quiet()
    monitor.observe(up(latency), 5.0)
    monitor.observe(up(latency), 10.0)
    report = monitor.report(10.0)
    assert (report.level, report.source, report.latency, report.baseline) == (said, "hybrid", latency, 0.020)


def test_the_level_goes_by_the_median_of_three() -> None:
    monitor = quiet()
    said = []
    for number, latency in enumerate([0.2, 0.02, 0.2, 0.2, 0.02, 0.02]):
        monitor.observe(up(latency), number * 30.0)
        said.append(level(monitor, number * 30.0))
    assert said == [IDLE, IDLE, BUSY, BUSY, BUSY, IDLE]


@pytest.mark.parametrize(
    ("high", "low", "said"),
    [
        (0.110, 0.0801, BUSY),
        (0.110, 0.080, NORMAL),
        (0.110, 0.0321, NORMAL),
        (0.110, 0.032, IDLE),
        (0.050, 0.0321, NORMAL),
        (0.050, 0.032, IDLE),
        (0.050, 0.0999, NORMAL),
    ],
)
def test_a_level_is_left_at_four_fifths_of_its_threshold(high: float, low: float, said: LoadLevel) -> None:
    monitor = quiet()
    for number, latency in enumerate([high, high, low, low]):
        monitor.observe(up(latency), number * 5.0)
    assert level(monitor, 20.0) is said


def test_jitter_is_no_load() -> None:
    monitor = looked_at(*[0.001] * 20, *[0.003] * 5)
    assert monitor.baseline == 0.010
    assert level(monitor, 0.0) is IDLE
    monitor = looked_at(*[0.001] * 20, 0.0201, 0.0201)
    assert level(monitor, 0.0) is NORMAL


def test_one_slow_answer_as_the_first_is_not_busy_and_is_asked_again_soon() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(4.0), 0.0)
    assert level(monitor, 0.0) is NORMAL
    assert monitor.next_check(0.0) == 5.0
    monitor.observe(up(0.02), 5.0)
    assert level(monitor, 5.0) is IDLE
    assert monitor.next_check(5.0) == 35.0


def test_a_first_answer_that_is_confirmed_is_busy() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(4.0), 0.0)
    monitor.observe(up(4.0), 5.0)
    assert level(monitor, 5.0) is BUSY
    monitor = LoadMonitor()
    monitor.observe(up(4.0), 0.0)
    monitor.observe(up(0.21), 5.0)
    assert level(monitor, 5.0) is NORMAL, "never was it BUSY, so that the lower threshold doesn't count"


def test_one_cold_start_in_the_middle_moves_nothing() -> None:
    monitor = quiet()
    monitor.observe(up(4.0), 30.0)
    assert (level(monitor, 30.0), monitor.baseline) == (IDLE, 0.020)
    monitor.observe(up(0.020), 60.0)
    assert (level(monitor, 60.0), monitor.baseline) == (IDLE, 0.020)


def test_after_a_pause_old_latencies_have_no_say() -> None:
    monitor = looked_at(0.02, 0.02, 0.02, 0.2, 0.2, 0.2)
    assert level(monitor, 0.0) is BUSY
    monitor.observe(up(0.081), 75.0)
    assert level(monitor, 75.0) is BUSY, "they are young enough"
    monitor = looked_at(0.02, 0.02, 0.02, 0.2, 0.2, 0.2)
    monitor.observe(up(0.081), 75.5)
    assert level(monitor, 75.5) is NORMAL
    monitor = looked_at(0.02, 0.02, 0.02, 0.05, 0.05, 0.05)
    monitor.observe(up(0.035), 75.5)
    assert level(monitor, 75.5) is IDLE, "nor has the level that they made"


@pytest.mark.parametrize("latency", [None, -1.0, math.inf, math.nan])
def test_an_answer_without_a_latency_says_that_it_is_well_and_no_more(latency: float | None) -> None:
    monitor = LoadMonitor()
    monitor.observe(up(latency), 0.0)
    report = monitor.report(0.0)
    assert (report.level, report.source, report.health) == (UNKNOWN, "none", Health.UP)
    assert report.reason == "it answers, but nothing tells how busy it is"
    monitor.observe_inference(0.5, 0.0)
    assert level(monitor, 0.0) is IDLE


def test_latencies_of_long_ago_are_not_those_of_an_answer_without() -> None:
    monitor = quiet()
    monitor.observe(up(None), 60.0)
    assert level(monitor, 75.0) is IDLE
    report = monitor.report(75.5)
    assert (report.level, report.latency) == (UNKNOWN, None)


# ---- the hybrid: inference ----


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, IDLE), (4.0, IDLE), (4.01, BUSY), (8.0, BUSY), (8.01, VERY_BUSY), (60.0, VERY_BUSY)]
)
def test_thresholds_of_the_inference(seconds: float, said: LoadLevel) -> None:
    monitor = quiet()
    monitor.observe_inference(seconds, 0.0)
    report = monitor.report(7.0)
    assert (report.level, report.inference_latency, report.inference_age) == (said, seconds, 7.0)


def test_the_worst_counts() -> None:
    monitor = looked_at(0.02, 0.02, 0.02, 0.2, 0.2)
    monitor.observe_inference(0.1, 0.0)
    assert monitor.report(0.0).reason == "health latency 200 ms is 10.0 times the usual"
    assert level(monitor, 0.0) is BUSY
    monitor.observe_inference(9.0, 0.0)
    assert monitor.report(0.0).reason == "first token after 9.0 s"
    assert level(monitor, 0.0) is VERY_BUSY


def test_inference_has_hysteresis_and_expires() -> None:
    monitor = quiet()
    said = []
    for seconds in (9.0, 6.5, 6.4, 3.3, 3.2, 3.3):
        monitor.observe_inference(seconds, 0.0)
        said.append(level(monitor, 0.0))
    assert said == [VERY_BUSY, VERY_BUSY, BUSY, BUSY, IDLE, IDLE]
    monitor.observe_inference(9.0, 0.0)
    monitor.observe(up(), 60.0)
    assert level(monitor, 75.0) is VERY_BUSY
    report = monitor.report(75.5)
    assert (report.level, report.inference_latency, report.inference_age) == (IDLE, None, None)
    monitor.observe_inference(6.5, 76.0)
    assert level(monitor, 76.0) is BUSY, "the one that has expired keeps nothing up"


@pytest.mark.parametrize(("seconds", "error"), [(-1, ValueError), (math.inf, ValueError), (None, TypeError)])
def test_an_inference_is_a_duration(seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds must be"):
        LoadMonitor().observe_inference(seconds, 0.0)


# ---- the hybrid: our own work ----


@pytest.mark.parametrize(
    ("own", "caller", "raised"),
    [
        (OwnWork(), 0, False),
        (OwnWork(in_flight=1), 0, True),
        (OwnWork(waiting=1), 0, True),
        (OwnWork(in_flight=1), 1, False),
        (OwnWork(in_flight=1, waiting=1), 1, True),
        (OwnWork(in_flight=1, waiting=1), 2, False),
        (OwnWork(in_flight=9, waiting=90), 1, True),
    ],
)
def test_our_own_queue_raises_by_one_step(own: OwnWork, caller: int, raised: bool) -> None:
    assert level(quiet(), 0.0, own, caller) is (NORMAL if raised else IDLE)
    normal = looked_at(0.02, 0.02, 0.02, 0.05, 0.05)
    assert level(normal, 0.0, own, caller) is (BUSY if raised else NORMAL)
    busy = looked_at(0.02, 0.02, 0.02, 0.2, 0.2)
    assert level(busy, 0.0, own, caller) is BUSY, "no further"
    assert busy.report(0.0, own, caller=caller).reason == "health latency 200 ms is 10.0 times the usual"
    very_busy = quiet()
    very_busy.observe_inference(9.0, 0.0)
    assert level(very_busy, 0.0, own, caller) is VERY_BUSY


def test_the_queue_is_told() -> None:
    report = quiet().report(0.0, OwnWork(in_flight=1, waiting=2), caller=1)
    assert report.reason == "our own jobs besides: 2; health latency 20 ms is 1.0 times the usual"
    assert report.own == OwnWork(in_flight=1, waiting=2)


# ---- what expires ----


@pytest.mark.parametrize("jobs", [None, 0, 5])
def test_a_stale_reading_says_nothing(jobs: int | None) -> None:
    monitor = quiet()
    monitor.observe(up(jobs=jobs, models=("m",)), 0.0)
    assert level(monitor, 75.0) is not UNKNOWN
    report = monitor.report(75.1)
    assert (report.level, report.source, report.age) == (UNKNOWN, "none", 75.1)
    assert report.reason == "nothing was seen of it for 75 s"
    assert (report.active_jobs, report.foreign_jobs, report.latency, report.models) == (None, None, None, ())
    assert report.health is Health.UP, "settled, until something says otherwise"


def test_a_server_that_is_down_stays_down_however_old() -> None:
    monitor = quiet()
    monitor.observe(REFUSED, 10.0)
    for now in (10.0, 10_000.0):
        report = monitor.report(now, OwnWork(in_flight=5, waiting=5))
        assert (report.level, report.source, report.age) == (DOWN, "none", now - 10.0)
        assert (report.health, report.reason) == (Health.DOWN, "connection refused")
        assert (report.latency, report.inference_latency, report.active_jobs) == (None, None, None)


# ---- health ----


def test_one_good_answer_makes_it_up() -> None:
    monitor = LoadMonitor()
    assert monitor.observe(up(), 1.0) == Transition(Health.UNKNOWN, Health.UP, "", 1.0)
    assert monitor.observe(up(), 2.0) is None
    monitor.observe(REFUSED, 3.0)
    assert monitor.observe(up(reason="odd"), 4.0) == Transition(Health.DOWN, Health.UP, "odd", 4.0)


def test_refused_makes_it_down_at_once() -> None:
    monitor = quiet()
    assert monitor.observe(REFUSED, 1.0) == Transition(Health.UP, Health.DOWN, "connection refused", 1.0)
    assert monitor.observe(REFUSED, 2.0) is None
    assert LoadMonitor().observe(REFUSED, 0.0) == Transition(Health.UNKNOWN, Health.DOWN, "connection refused", 0.0)


@pytest.mark.parametrize("failure", [TIMEOUT, ERROR, UNAVAILABLE])
def test_other_failures_make_it_down_the_third_time(failure: Reading) -> None:
    monitor = quiet()
    for now in (1.0, 2.0):
        assert monitor.observe(failure, now) is None
        assert monitor.health is Health.UP
        assert level(monitor, now) is UNKNOWN, "a server that may hang is not idle"
    assert monitor.report(2.0).reason == f"{failure.reason} (failures in a row: 2; down after 3)"
    assert monitor.observe(failure, 3.0) == Transition(Health.UP, Health.DOWN, failure.reason, 3.0)
    assert level(monitor, 3.0) is DOWN
    assert monitor.observe(failure, 4.0) is None


def test_only_failures_in_a_row_count() -> None:
    monitor = quiet()
    for now in (1.0, 2.0):
        monitor.observe(TIMEOUT, now)
    monitor.observe(up(), 3.0)
    assert level(monitor, 3.0) is IDLE
    for now in (4.0, 5.0):
        monitor.observe(TIMEOUT, now)
    assert monitor.health is Health.UP


def test_down_after_is_a_setting() -> None:
    monitor = LoadMonitor(LoadSettings(down_after=1))
    changed = monitor.observe(TIMEOUT, 0.0)
    assert changed is not None
    assert changed.after is Health.DOWN


def test_a_failure_without_a_reason_has_one_for_people() -> None:
    monitor = LoadMonitor()
    monitor.observe(Reading(health=Health.UNKNOWN), 0.0)
    assert monitor.reason == "no good answer"


def test_the_latency_of_a_failure_is_not_learnt() -> None:
    monitor = quiet(0.040)
    for now in range(100):
        monitor.observe(ERROR, float(now))
    assert monitor.baseline == 0.040


def test_what_comes_up_again_begins_anew_but_for_the_baseline() -> None:
    monitor = looked_at(0.02, 0.02, 0.02, 0.2, 0.2)
    monitor.observe_inference(9.0, 0.0)
    monitor.observe(REFUSED, 5.0)
    monitor.observe(up(0.030), 10.0)
    report = monitor.report(10.0)
    assert (report.level, report.latency, report.inference_latency) == (IDLE, 0.030, None)
    assert report.baseline == 0.020


# ---- tokens ----


def test_a_token_makes_it_up() -> None:
    monitor = LoadMonitor()
    assert monitor.observe_tokens(0.0) == Transition(Health.UNKNOWN, Health.UP, "", 0.0)
    assert monitor.observe_tokens(0.1) is None
    for now in (10.0, 11.0, 12.0):
        monitor.observe(TIMEOUT, now)
    assert monitor.health is Health.DOWN
    assert monitor.observe_tokens(13.0) == Transition(Health.DOWN, Health.UP, "", 13.0)
    assert monitor.reason == ""


def test_a_token_ends_the_row_of_failures() -> None:
    monitor = quiet()
    monitor.observe(TIMEOUT, 1.0)
    monitor.observe(TIMEOUT, 2.0)
    monitor.observe_tokens(3.0)
    monitor.observe(TIMEOUT, 9.0)
    assert monitor.health is Health.UP


def test_a_token_keeps_what_is_odd() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(reason="odd"), 0.0)
    monitor.observe_tokens(1.0)
    assert monitor.reason == "odd"


def test_a_server_that_streams_is_never_idle_without_a_reading() -> None:
    monitor = quiet()
    monitor.observe_tokens(1000.0)
    report = monitor.report(1000.0, OwnWork(in_flight=1), caller=1)
    assert (report.level, report.source, report.reason) == (NORMAL, "hybrid", "a stream delivers tokens")
    assert level(monitor, 1000.0, OwnWork(in_flight=1)) is NORMAL  # that is the stream
    assert level(monitor, 1000.0, OwnWork(in_flight=1, waiting=1)) is BUSY
    assert level(monitor, 1000.0, OwnWork(in_flight=9, waiting=9)) is BUSY
    monitor.observe_inference(5.0, 1000.0)
    assert level(monitor, 1000.0) is BUSY
    assert level(monitor, 1075.0) is BUSY
    assert level(monitor, 1075.1) is UNKNOWN


def test_what_was_idle_before_it_failed_is_not_when_it_streams_again() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(jobs=0), 0.0)
    monitor.observe(TIMEOUT, 10.0)
    monitor.observe_tokens(11.0)
    assert level(monitor, 11.0) is NORMAL


def test_tokens_from_before_a_failure_say_nothing_after_it() -> None:
    monitor = LoadMonitor()
    monitor.observe_tokens(0.0)
    monitor.observe(TIMEOUT, 5.1)
    assert level(monitor, 5.2) is UNKNOWN


@pytest.mark.parametrize("failure", [TIMEOUT, ERROR])
def test_while_tokens_come_a_late_answer_is_no_failure(failure: Reading) -> None:
    monitor = quiet()
    for second in range(100):
        monitor.observe_tokens(second - 5.0)
        assert monitor.observe(failure, float(second)) is None
    assert level(monitor, 75.0) is IDLE, "the last good look still holds"
    monitor.observe_tokens(100.0)
    for now in (105.1, 105.2, 105.3):
        monitor.observe(failure, now)
    assert monitor.health is Health.DOWN


def test_what_says_itself_that_it_cannot_serve_is_believed_beside_tokens() -> None:
    monitor = quiet()
    for now in (1.0, 2.0, 3.0):
        monitor.observe_tokens(now)
        monitor.observe(UNAVAILABLE, now)
    assert level(monitor, 3.0) is UNKNOWN
    for now in (3.1, 3.2, 3.3):
        monitor.observe(UNAVAILABLE, now)
    assert monitor.health is Health.DOWN


def test_a_server_that_shuts_down_is_not_up_again_for_the_streams_that_it_ends() -> None:
    monitor = quiet()
    monitor.observe_tokens(1.0)
    monitor.observe(REFUSED, 1.1)
    for now in (2.0, 3.0, 4.0):
        assert monitor.observe_tokens(now) is None
    assert level(monitor, 4.0) is DOWN
    assert monitor.next_check(4.0) == 6.1, "tokens put off no look at what is down"
    changed = monitor.observe(up(), 6.1)
    assert changed is not None
    assert changed.after is Health.UP


def test_tokens_of_what_listens_again_count() -> None:
    monitor = quiet()
    monitor.observe(REFUSED, 1.0)
    monitor.observe(ERROR, 6.0)
    changed = monitor.observe_tokens(7.0)
    assert changed is not None
    assert changed.after is Health.UP


# ---- real calls ----


def test_a_refused_call_makes_it_down_at_once() -> None:
    monitor = quiet()
    changed = monitor.observe_call_failure("nobody there", 1.0, refused=True)
    assert changed == Transition(Health.UP, Health.DOWN, "nobody there", 1.0)


def test_calls_that_fail_together_are_one_failure() -> None:
    monitor = quiet()
    for _ in range(23):
        assert monitor.observe_call_failure("reset", 1.0, refused=False) is None
    assert monitor.observe_call_failure("reset", 5.9, refused=False) is None
    assert monitor.report(5.9).reason == "reset (failures in a row: 1; down after 3)"
    assert monitor.observe_call_failure("reset", 6.0, refused=False) is None
    assert monitor.report(6.0).reason == "reset (failures in a row: 2; down after 3)"
    assert monitor.observe_call_failure("reset", 11.0, refused=False) is not None
    assert monitor.health is Health.DOWN


def test_after_a_good_answer_a_call_counts_at_once() -> None:
    monitor = quiet()
    monitor.observe_call_failure("reset", 1.0, refused=False)
    monitor.observe(up(), 2.0)
    monitor.observe_call_failure("reset", 3.0, refused=False)
    assert level(monitor, 3.0) is UNKNOWN


def test_one_call_that_fails_beside_a_stream_is_none() -> None:
    monitor = quiet()
    monitor.observe_tokens(1.0)
    monitor.observe_call_failure("reset", 6.0, refused=False)
    assert level(monitor, 6.0) is IDLE
    monitor.observe_call_failure("reset", 6.1, refused=False)
    assert level(monitor, 6.1) is UNKNOWN


# ---- measurements and looks ----


@pytest.mark.parametrize(("latency", "wanted"), [(0.060, False), (0.0601, True), (0.5, True)])
def test_the_latency_asks_for_a_measurement(latency: float, wanted: bool) -> None:
    monitor = looked_at(0.02, 0.02, 0.02, latency, latency)
    assert monitor.wants_measurement(0.0) is wanted
    assert not monitor.wants_measurement(75.1), "stale"


def test_nobody_measures_what_is_known_or_in_use() -> None:
    monitor = looked_at(0.02, 0.02, 0.02, 0.2, 0.2)
    assert monitor.wants_measurement(0.0)
    assert not monitor.wants_measurement(0.0, OwnWork(in_flight=1))
    assert not monitor.wants_measurement(0.0, OwnWork(waiting=1))
    monitor.observe_inference(1.0, 0.0)
    assert not monitor.wants_measurement(30.0)
    assert monitor.wants_measurement(30.1)
    monitor.observe(up(0.2, jobs=1), 31.0)
    assert not monitor.wants_measurement(31.0), "it counts its jobs"
    monitor.observe(up(0.2), 32.0)
    assert monitor.wants_measurement(32.0)
    monitor.observe(TIMEOUT, 33.0)
    assert not monitor.wants_measurement(33.0)


def test_one_slow_answer_asks_for_no_measurement() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(4.0), 0.0)
    assert not monitor.wants_measurement(0.0)
    monitor.observe(up(4.0), 5.0)
    assert monitor.wants_measurement(5.0)


def test_the_next_look() -> None:
    monitor = quiet()
    assert monitor.next_check(0.0) == 30.0
    assert monitor.next_check(29.0) == 30.0
    assert monitor.next_check(31.0) == 31.0, "overdue: at once"
    monitor.observe(TIMEOUT, 32.0)
    assert monitor.next_check(32.0) == 37.0
    monitor.observe(REFUSED, 37.0)
    assert monitor.next_check(37.0) == 42.0
    monitor.observe(up(), 42.0)
    assert monitor.next_check(42.0) == 72.0


def test_a_call_that_failed_has_it_looked_at_soon() -> None:
    monitor = quiet()
    monitor.observe_call_failure("reset", 2.0, refused=False)
    assert monitor.next_check(2.0) == 5.0
    monitor = quiet()
    monitor.observe_call_failure("reset", 20.0, refused=False)
    assert monitor.next_check(20.0) == 20.0


def test_tokens_put_a_look_off() -> None:
    monitor = quiet()
    monitor.observe_tokens(20.0)
    assert monitor.next_check(20.0) == 30.0
    monitor.observe_tokens(29.0)
    assert monitor.next_check(29.0) == 34.0
    monitor.observe_tokens(500.0)
    assert monitor.next_check(500.0) == 505.0
    monitor.observe(UNAVAILABLE, 501.0)
    assert monitor.next_check(501.0) == 506.0
    monitor.observe_tokens(502.0)
    assert monitor.next_check(502.0) == 507.0, "up again, but how busy it is only a look tells"


def test_it_is_looked_at_again_soon_while_its_level_may_have_changed() -> None:
    monitor = quiet()
    waits = []
    now = 30.0
    for latency in (0.2, 0.2, 0.2, 0.02, 0.02, 0.02, 0.2, 0.02, 0.2, 0.02):
        monitor.observe(up(latency), now)
        waits.append(monitor.next_check(now) - now)
        now += waits[-1]
    assert waits == [5, 30, 30, 5, 30, 30, 5, 30, 30, 30]


@given(st.lists(st.sampled_from([0.02, 0.035, 0.05, 0.085, 0.2])))
def test_answers_that_waver_are_not_looked_at_in_haste_for_ever(latencies: list[float]) -> None:
    monitor = quiet()
    in_haste = 0
    for number, latency in enumerate(latencies):
        now = 5.0 * number
        monitor.observe(up(latency), now)
        in_haste = in_haste + 1 if monitor.next_check(now) == now + 5 else 0
        assert in_haste <= 3


def test_a_status_needs_no_second_look() -> None:
    monitor = quiet()
    monitor.observe(up(4.0, jobs=0), 30.0)
    assert monitor.next_check(30.0) == 60.0


# ---- a stuck generation ----


def test_a_request_without_a_token_outweighs_a_health_that_is_well() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(), 0.0)
    assert monitor.observe_silence("no token for 60 s", 60.0) is None
    assert monitor.silent
    for now in (60.0, 65.0, 90.0):
        assert monitor.observe(up(), now) is None
        report = monitor.report(now)
        assert (report.level, report.health) == (LoadLevel.UNKNOWN, Health.UP)
        assert report.reason == "it may be stuck: no token for 60 s"
    transition = monitor.observe_silence("no token for 30 s", 120.0)
    assert transition is not None
    assert transition.after is Health.DOWN
    assert monitor.observe(up(), 121.0) is None
    assert monitor.report(121.0).level is LoadLevel.DOWN
    back = monitor.observe_tokens(150.0)
    assert back is not None
    assert (back.after, monitor.silent) == (Health.UP, False)
    monitor.observe(up(), 180.0)
    assert level(monitor, 180.0) is IDLE


def test_one_request_without_a_token_beside_others_that_have_theirs_is_slow_and_no_more() -> None:
    monitor = LoadMonitor()
    monitor.observe(up(), 0.0)
    monitor.observe_tokens(58.0)
    assert monitor.observe_silence("no token for 60 s", 60.0) is None
    assert not monitor.silent
    assert level(monitor, 60.0) is IDLE


def test_what_comes_up_after_a_refusal_is_another_process() -> None:
    monitor = LoadMonitor()
    monitor.observe_silence("no token", 0.0)
    monitor.observe_silence("no token", 10.0)
    monitor.observe(Reading(health=Health.DOWN, reason="refused", refused=True), 20.0)
    assert not monitor.silent
    transition = monitor.observe(up(), 25.0)
    assert transition is not None
    assert transition.after is Health.UP
