"""Who may measure: one at a time, not too often, and a result serves all."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trio_mlxgate.core.levels import LoadSettings
from trio_mlxgate.core.measuring import MeasuringDesk

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "300"))


def test_one_measures_and_the_others_join() -> None:
    desk = MeasuringDesk()
    assert desk.ask(0.0) == "start"
    assert desk.ask(0.0) == "start", "asking changes nothing"
    desk.started(0.0)
    assert desk.ask(0.5) == "join"
    desk.finished(1.5, 1.5)
    assert not desk.running
    assert desk.ask(1.5) == ("serve", 1.5, 0.0)


def test_a_result_serves_for_30_seconds() -> None:
    desk = MeasuringDesk()
    desk.started(0.0)
    desk.finished(1.5, 100.0)
    assert desk.ask(100.0) == ("serve", 1.5, 0.0)
    assert desk.ask(130.0) == ("serve", 1.5, 30.0)
    assert desk.ask(130.001) == "start"


def test_after_a_failure_it_cools_for_10_seconds() -> None:
    desk = MeasuringDesk()
    desk.started(0.0)
    desk.failed(60.0)
    assert desk.ask(60.0) == "cooling"
    assert desk.ready_at == 70.0
    assert desk.ask(69.999) == "cooling"
    assert desk.ask(70.0) == "start"


def test_after_a_result_too_if_it_serves_less_long() -> None:
    desk = MeasuringDesk(LoadSettings(measurement_serves=1.0))
    desk.started(0.0)
    desk.finished(0.5, 0.5)
    assert desk.ask(1.5) == ("serve", 0.5, 1.0)
    assert desk.ask(2.0) == "cooling"
    assert desk.ask(10.5) == "start"


def test_what_was_called_off_leaves_no_trace() -> None:
    desk = MeasuringDesk()
    desk.started(0.0)
    desk.called_off(1.0)
    assert desk.ready_at == -math.inf
    assert desk.ask(1.0) == "start"
    desk.started(1.0)
    desk.failed(2.0)
    desk.started(3.0)
    desk.called_off(4.0)
    assert desk.ready_at == 12.0


def test_a_failure_voids_an_older_result() -> None:
    desk = MeasuringDesk()
    desk.started(0.0)
    desk.finished(1.0, 1.0)
    desk.started(2.0)
    assert desk.ask(2.0) == ("serve", 1.0, 1.0), "who finds a result need not wait for the next"
    desk.failed(3.0)
    assert desk.ask(3.0) == "cooling"


def test_misuse() -> None:
    desk = MeasuringDesk()
    for end in (desk.failed, desk.called_off, lambda now: desk.finished(1.0, now)):
        with pytest.raises(RuntimeError, match="no measurement runs"):
            end(0.0)
    desk.started(0.0)
    with pytest.raises(RuntimeError, match="runs already"):
        desk.started(0.0)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(-0.1, ValueError), (math.inf, ValueError), (math.nan, ValueError), (True, TypeError), ("1", TypeError)],
)
def test_a_result_is_a_duration(seconds: Any, error: type[Exception]) -> None:
    desk = MeasuringDesk()
    desk.started(0.0)
    with pytest.raises(error, match="seconds must be"):
        desk.finished(seconds, 1.0)
    assert desk.running, "nothing has changed"
    desk.finished(0, 1.0)


class DeskMachine(RuleBasedStateMachine):
    """Against the list of all that happened."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = MeasuringDesk()
        self.now = 1000.0
        self.events: list[tuple[str, float]] = []

    @rule(seconds=st.sampled_from([0.0, 0.5, 9.5, 10.0, 19.5, 30.0, 31.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds

    @rule(end=st.sampled_from(["finished", "failed", "called off"]))
    def goes_on(self, end: str) -> None:
        if not self.desk.running:
            if self.desk.ask(self.now) == "start":
                self.desk.started(self.now)
                self.events.append(("started", self.now))
            return
        if end == "finished":
            self.desk.finished(self.now % 7, self.now)
        elif end == "failed":
            self.desk.failed(self.now)
        else:
            self.desk.called_off(self.now)
        self.events.append((end, self.now))

    @invariant()
    def says_what_the_list_says(self) -> None:
        said = self.desk.ask(self.now)
        ends = [event for event in self.events if event[0] in {"finished", "failed"}]
        word, ended = ends[-1] if ends else ("", -math.inf)
        running = bool(self.events) and self.events[-1][0] == "started"
        assert self.desk.running == running
        if word == "finished" and self.now - ended <= 30:
            assert said == ("serve", ended % 7, self.now - ended)
        elif running:
            assert said == "join"
        else:
            assert said == ("cooling" if self.now - ended < 10 else "start")

    @invariant()
    def starts_are_far_apart(self) -> None:
        """Whatever ends in between, unless it was called off: 10 s from an end to the next start."""
        asked = [event for event in self.events if event[0] != "called off"]
        for (word, ended), (following, started) in pairwise(asked):
            if word != "started" and following == "started":
                assert started - ended >= (30 if word == "finished" else 10)


TestDesk = DeskMachine.TestCase
TestDesk.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
