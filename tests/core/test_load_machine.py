"""All that can be seen of a server, in any order, against an oracle that reads the whole list of it each time."""

from __future__ import annotations

import math
import os
from statistics import median_low
from typing import TYPE_CHECKING

import attrs
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_mlxgate.core.load import LoadLevel, LoadMonitor, LoadSettings, Transition
from trio_mlxgate.core.readings import Health, OwnWork, Reading, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "150"))
SETTINGS = LoadSettings(baseline_hours=3, initial_hours=2)
NOTHING = OwnWork()
KNOWN = [LoadLevel.IDLE, LoadLevel.NORMAL, LoadLevel.BUSY, LoadLevel.VERY_BUSY]
WORK = st.builds(OwnWork, in_flight=st.sampled_from([0, 0, 1, 3]), waiting=st.sampled_from([0, 0, 1, 5]))
LATENCIES = st.sampled_from([0.003, 0.02, 0.02, 0.03, 0.045, 0.05, 0.09, 0.11, 0.2, 4.0])
TICKS = st.sampled_from([0.0, 0.5, 4.5, 5.0, 5.0, 5.5, 29.5, 30.0, 30.5, 44.5, 75.0, 75.5, 3600.0, 90000.0])


@attrs.frozen
class Event:
    now: float
    kind: str
    """One of: look, tokens, inference, call."""
    reading: Reading | None = None
    own: OwnWork = NOTHING
    seconds: float = 0.0
    refused: bool = False


class Oracle:
    """Knows nothing but the list of events. Each question goes through all of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    # ---- what counts ----

    def signs(self) -> Iterator[tuple[str, Event, int]]:
        """What each event was worth: "good", "tokens", "failure", "inference" or "", and how many failed in a row."""
        row = 0
        failed = tokens = -math.inf
        refused = False
        for event in self.events:
            sign = ""
            if event.kind == "look":
                assert event.reading is not None
                if event.reading.health is Health.UP:
                    sign = "good"
                elif event.reading.health is Health.DOWN or event.now - tokens > 5:
                    sign = "failure"
            elif event.kind == "call":
                alone = row == 0 or event.now - failed >= 5
                if event.refused or (alone and event.now - tokens > 5):
                    sign = "failure"
            elif event.kind == "tokens":
                sign = "" if refused else "tokens"
            else:
                sign = "inference"
            if sign in {"good", "tokens"}:
                row, refused = 0, False
                tokens = event.now if sign == "tokens" else tokens
            elif sign == "failure":
                row += 1
                failed, tokens = event.now, -math.inf
                refused = event.refused or (event.reading is not None and event.reading.refused)
            yield sign, event, row

    def health(self) -> Health:
        health = Health.UNKNOWN
        for sign, event, row in self.signs():
            if sign in {"good", "tokens"}:
                health = Health.UP
            elif sign == "failure":
                refused = event.refused or (event.reading is not None and event.reading.refused)
                if refused or row >= 3:
                    health = Health.DOWN
        return health

    def since(self, *ends: str) -> list[tuple[str, Event]]:
        """What came after the last of these signs; "down" is a failure after which it is DOWN."""
        kept: list[tuple[str, Event]] = []
        down = False
        for sign, event, row in self.signs():
            refused = event.refused or (event.reading is not None and event.reading.refused)
            if sign == "failure":
                down = down or refused or row >= 3
            elif sign in {"good", "tokens"}:
                down = False
            if sign in ends or ("down" in ends and sign == "failure" and down):
                kept = []
            else:
                kept.append((sign, event))
        return kept

    # ---- figures ----

    def latencies(self) -> list[tuple[float, float]]:
        """All of them."""
        return [
            (event.now, event.reading.latency)
            for sign, event, _ in self.signs()
            if sign == "good" and event.reading is not None and event.reading.latency is not None
        ]

    def baseline(self, count: int | None = None) -> float:
        """After so many latencies."""
        hours: list[list[float]] = []
        began = 0.0
        for now, latency in self.latencies()[:count]:
            if not hours or (now - began >= 3600 and len(hours[-1]) >= 3):
                hours.append([])
                began = now
            hours[-1].append(latency)
        past = [sorted(hour)[2] for hour in hours[:-1]]
        known = past[-3:] + [sorted(hour)[2] for hour in hours[-1:] if len(hour) >= 3]
        return max(0.010, min([*known, *([0.050] if len(past) < 2 else [])]))

    def recent(self) -> list[float]:
        """The latencies that have a say, oldest first: since it was down, and since the last pause."""
        found: list[tuple[float, float]] = []
        for sign, event in self.since("down"):
            if sign == "good" and event.reading is not None and event.reading.latency is not None:
                if found and event.now - found[-1][0] > 75:
                    found = []
                found.append((event.now, event.reading.latency))
        return [latency for _, latency in found]

    def latency_step(self) -> int:
        """Each threshold is a switch of its own; the switches are played through from the first latency on."""
        recent = self.recent()
        before = len(self.latencies()) - len(recent)
        normal = busy = False
        for number in range(1, len(recent) + 1):
            figure = median_low(recent[max(0, number - 3) : number])
            baseline = self.baseline(before + number)
            normal = figure > (2 * baseline * 0.8 if normal else 2 * baseline)
            busy = figure > (5 * baseline * 0.8 if busy else 5 * baseline) and number > 1
        return normal + busy

    def last_latency_at(self) -> float:
        times = [
            event.now
            for sign, event in self.since("down")
            if sign == "good" and event.reading is not None and event.reading.latency is not None
        ]
        return times[-1] if times else -math.inf

    def inference(self, now: float) -> float | None:
        """What was measured last, if it still counts."""
        measured = [event for sign, event in self.since("down") if sign == "inference"]
        return measured[-1].seconds if measured and now - measured[-1].now <= 75 else None

    def inference_step(self) -> int:
        busy = very = False
        before = -math.inf
        for sign, event in self.since("down"):
            if sign == "inference":
                if event.now - before > 75:
                    busy = very = False
                busy = event.seconds > (4.0 * 0.8 if busy else 4.0)
                very = event.seconds > (8.0 * 0.8 if very else 8.0)
                before = event.now
        return busy + very

    def good(self, now: float) -> Event | None:
        looks = [event for sign, event in self.since("failure") if sign == "good"]
        return looks[-1] if looks and now - looks[-1].now <= 75 else None

    # ---- the answers ----

    def level(self, now: float, own: OwnWork, caller: int) -> tuple[LoadLevel, str]:
        if self.health() is Health.DOWN:
            return LoadLevel.DOWN, "none"
        good = self.good(now)
        if good is not None and good.reading is not None and good.reading.status is not None:
            jobs = max(0, good.reading.status.active_jobs - good.own.in_flight) + own.in_flight
            level = 3 if jobs >= 4 else min(2, jobs)
            return KNOWN[level + (level < 2 and own.waiting > caller)], "status"
        levels = []
        if good is not None and now - self.last_latency_at() <= 75:
            levels.append(self.latency_step())
        if self.inference(now) is not None:
            levels.append([0, 2, 3][self.inference_step()])
        if good is None:
            streams = [event for sign, event in self.since("failure") if sign == "tokens"]
            if not streams or now - streams[-1].now > 75:
                return LoadLevel.UNKNOWN, "none"
            levels.append(1)
        if not levels:
            return LoadLevel.UNKNOWN, "none"
        level = max(levels)
        if level < 2 and own.in_flight + own.waiting > caller + (good is None):
            level += 1
        return KNOWN[level], "hybrid"

    def wants_measurement(self, now: float, own: OwnWork) -> bool:
        good = self.good(now)
        recent = self.recent()
        measured = [event.now for sign, event in self.since("down") if sign == "inference"]
        return (
            self.health() is Health.UP
            and good is not None
            and good.reading is not None
            and good.reading.status is None
            and own == NOTHING
            and len(recent) >= 2
            and now - self.last_latency_at() <= 75
            and median_low(recent[-3:]) > 3 * self.baseline()
            and not (measured and now - measured[-1] <= 30)
        )


class LoadMachine(RuleBasedStateMachine):
    """Plays the same events to the monitor and to the oracle."""

    @initialize()
    def start(self) -> None:
        self.monitor = LoadMonitor(SETTINGS)
        self.oracle = Oracle()
        self.now = 1000.0
        self.health = Health.UNKNOWN

    def seen(self, event: Event, changed: Transition | None) -> None:
        """Transitions alternate, and there is one exactly when the oracle's health has changed."""
        self.oracle.events.append(event)
        health = self.oracle.health()
        if changed is None:
            assert health is self.health
        else:
            assert (changed.before, changed.after, changed.now) == (self.health, health, self.now)
            assert changed.before is not changed.after
            assert changed.reason == self.monitor.reason
        self.health = health

    def look(self, reading: Reading, own: OwnWork = NOTHING) -> None:
        changed = self.monitor.observe(reading, self.now, own)
        self.seen(Event(self.now, "look", reading, own), changed)

    @rule(seconds=TICKS)
    def tick(self, seconds: float) -> None:
        self.now += seconds

    @rule(latency=LATENCIES | st.none())
    def answers(self, latency: float | None) -> None:
        self.look(Reading(health=Health.UP, latency=latency))

    @rule(latency=LATENCIES, times=st.integers(2, 4), every=st.sampled_from([5.0, 30.0, 1800.0]))
    def goes_on_answering(self, latency: float, times: int, every: float) -> None:
        for _ in range(times):
            self.look(Reading(health=Health.UP, latency=latency))
            self.agrees()
            self.now += every

    @rule(jobs=st.integers(0, 5), own=WORK, latency=LATENCIES)
    def tells_its_status(self, jobs: int, own: OwnWork, latency: float) -> None:
        self.look(Reading(health=Health.UP, latency=latency, status=Status(active_jobs=jobs)), own)

    @rule(health=st.sampled_from([Health.UNKNOWN, Health.UNKNOWN, Health.DOWN]), times=st.sampled_from([1, 1, 2, 3]))
    def fails(self, health: Health, times: int) -> None:
        for _ in range(times):
            self.look(Reading(health=health, reason="x", latency=0.001))

    @rule()
    def refuses(self) -> None:
        self.look(Reading(health=Health.DOWN, reason="refused", refused=True))

    @rule()
    def streams(self) -> None:
        self.seen(Event(self.now, "tokens"), self.monitor.observe_tokens(self.now))

    @rule(seconds=st.sampled_from([0.2, 3.2, 3.5, 4.0, 5.0, 6.4, 7.0, 8.0, 9.0]))
    def is_measured(self, seconds: float) -> None:
        self.monitor.observe_inference(seconds, self.now)
        self.seen(Event(self.now, "inference", seconds=seconds), None)

    @rule(refused=st.sampled_from([False, False, True]), times=st.sampled_from([1, 3]))
    def fails_a_call(self, refused: bool, times: int) -> None:
        for _ in range(times):
            changed = self.monitor.observe_call_failure("call", self.now, refused=refused)
            self.seen(Event(self.now, "call", refused=refused), changed)

    @invariant()
    def agrees(self) -> None:
        assert self.monitor.health is self.oracle.health()
        assert self.monitor.baseline == self.oracle.baseline()
        for later in (0.0, 30.0, 75.0, 75.5):
            now = self.now + later
            for own, caller in (
                (NOTHING, 0),
                (OwnWork(in_flight=1), 1),
                (OwnWork(in_flight=1, waiting=2), 1),
                (OwnWork(in_flight=3), 0),
            ):
                report = self.monitor.report(now, own, caller=caller)
                assert (report.level, report.source) == self.oracle.level(now, own, caller)
                assert report.own == own
                assert self.monitor.wants_measurement(now, own) == self.oracle.wants_measurement(now, own)
                assert "\n" not in report.describe()
                assert report.inference_latency == (
                    None if report.health is Health.DOWN else self.oracle.inference(now)
                )

    @invariant()
    def is_never_idle_when_stale_or_down(self) -> None:
        looks = [event for event in self.oracle.events if event.kind == "look"]
        for later in (0.0, 75.5):
            report = self.monitor.report(self.now + later)
            if report.level is LoadLevel.IDLE:
                last = looks[-1]
                assert self.monitor.health is Health.UP
                assert report.age is not None
                assert report.age <= 75
                assert last.reading is not None
                assert last.reading.health is not Health.DOWN
            if looks and self.now + later - looks[-1].now > 75:
                assert report.level is not LoadLevel.IDLE
                assert report.active_jobs is None

    @invariant()
    def looks_again_in_time(self) -> None:
        after = self.monitor.next_check(self.now)
        if not any(event.kind == "look" for event in self.oracle.events):
            assert after <= self.now + 5
        assert self.now <= after <= self.now + 30
        if self.monitor.health is not Health.UP:
            assert after <= self.now + 5

    @invariant()
    def remembers_little(self) -> None:
        assert len(self.monitor._latencies) <= 3
        assert len(self.monitor._baseline._hours) <= SETTINGS.baseline_hours
        assert len(self.monitor._baseline._quickest) <= 3


TestLoad = LoadMachine.TestCase
TestLoad.settings = settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
