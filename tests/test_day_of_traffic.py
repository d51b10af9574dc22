"""The page about a day of traffic: its table is what the example prints, and its text says what the table shows."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_mlxgate import Gate, Priority
from trio_mlxgate.instrumentation import CallDetails, Granted, Queued

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.instrumentation import Details

DOCS = Path(__file__).parent.parent / "docs"
if not DOCS.exists():
    pytest.skip("the documentation is not here: these are the tests of an installed package", allow_module_level=True)

RUSH = (19 * 3600, 21 * 3600)
KEPT = ", reserved={FOREGROUND: 1}"
AGED = ", aging=1800"


@attrs.frozen
class Row:
    """One row of the table, in seconds."""

    served: int
    mean: float
    median: float
    percentile: float
    longest: float


@pytest.fixture(scope="module")
def example() -> Any:
    return SimpleNamespace(**run_path(str(DOCS / "examples" / "day_of_traffic.py")))


@pytest.fixture(scope="module")
def page() -> str:
    return " ".join((DOCS / "day_of_traffic.md").read_text().split())


@pytest.fixture(scope="module")
def printed(example: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        example.main()
    return output.getvalue()


@pytest.fixture(scope="module")
def rows(printed: str) -> dict[tuple[str, str], Row]:
    found = re.findall(r"^\| `(.*)` \| (\w+) \| (\d+) \| (.*) \|$", printed, re.MULTILINE)
    return {
        (gate.removeprefix("capacity="), priority): Row(int(served), *map(float, figures.split(" | ")))
        for gate, priority, served, figures in found
    }


def test_the_table_is_what_the_example_prints(printed: str) -> None:
    assert len(printed.splitlines()) == 2 + 8 * 2
    assert printed in (DOCS / "day_of_traffic.md").read_text()


def test_the_day_is_as_it_is_told(example: Any, page: str) -> None:
    jobs = example.day(example.SEED)
    assert jobs == sorted(example.day(example.SEED), key=lambda job: job.at)
    questions = [job for job in jobs if job.priority is Priority.FOREGROUND]
    digests = [job for job in jobs if job.priority is Priority.BACKGROUND]
    assert [int(job.at // 20) for job in questions] == list(range(4320))
    assert f"{len(questions)} in all" in page
    assert f"{len(digests)} in all" in page
    assert {job.seconds for job in digests} == {60}
    batches = [sum(job.at // 1200 == number for job in digests) for number in range(72)]
    assert (min(batches), max(batches)) == (8, 16)

    in_rush = [job for job in questions if RUSH[0] <= job.at < RUSH[1]]
    usual = [job for job in questions if not RUSH[0] <= job.at < RUSH[1]]
    assert all(12 <= job.seconds < 18 for job in in_rush)
    assert all(1 <= job.seconds < 7 for job in usual)
    assert f"{work(usual) / 22:.0%}" == "20%"
    assert f"{work(in_rush) / 2:.0%}" == "75%"
    assert f"{work(digests) / 24:.0%}" == "60%"
    assert f"one slot has {work(jobs):.1f} hours of work in the day, {100 * work(jobs) / 24:.0f} %" in page
    all_in_rush = [job for job in jobs if RUSH[0] <= job.at < RUSH[1]]
    assert f"{100 * work(all_in_rush) / 2:.0f} % of what it can do" in page
    assert f"`aging` is {example.AGING:g} seconds" in page


def work(jobs: list[Any]) -> float:
    """The hours that these take, one after the other."""
    seconds: float = sum(job.seconds for job in jobs)
    return seconds / 3600


class Backlog:
    """A hook that measures for how long somebody of the background waits."""

    def __init__(self) -> None:
        self.waiting = 0
        self.since = 0.0
        self.stretches: list[float] = []

    def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
        return lambda: True

    def __call__(self, details: Details) -> None:
        if not isinstance(details, CallDetails) or details.priority != Priority.BACKGROUND or not details.queued:
            return
        if isinstance(details, Queued):
            if not self.waiting:
                self.since = trio.current_time()
            self.waiting += 1
        elif isinstance(details, Granted):
            self.waiting -= 1
            if not self.waiting:
                self.stretches.append(trio.current_time() - self.since)


def test_the_background_is_backlogged_for_long_stretches(example: Any, page: str) -> None:
    backlog = Backlog()
    jobs = example.day(example.SEED)
    trio.run(example.waits_of, jobs, Gate(1, hooks=(backlog,)), clock=MockClock(autojump_threshold=0))
    assert backlog.waiting == 0
    assert f"in the queue for {100 * sum(backlog.stretches) / 86400:.0f} % of the day" in page
    assert max(backlog.stretches) > 4 * 3600


def test_priority_alone_bounds_the_wait_of_questions_by_one_digest(rows: dict[tuple[str, str], Row], page: str) -> None:
    assert rows["1", "FOREGROUND"].longest <= 60
    assert f"the longest wait is {rows['1', 'BACKGROUND'].longest / 60:.0f} minutes" in page


def test_aging_bounds_the_wait_of_digests_and_questions_pay(rows: dict[tuple[str, str], Row], page: str) -> None:
    questions, digests = rows["1", "FOREGROUND"], rows["1", "BACKGROUND"]
    aged_questions, aged_digests = rows["1" + AGED, "FOREGROUND"], rows["1" + AGED, "BACKGROUND"]
    assert f"from {digests.longest / 60:.0f} to {aged_digests.longest / 60:.0f} minutes" in page
    assert f"from {questions.longest / 60:.0f} minute to {aged_questions.longest / 60:.0f}" in page
    assert f"from {questions.mean:.0f} seconds to {aged_questions.mean:.0f}" in page
    assert f"median moves by {aged_questions.median - questions.median:.0f} seconds" in page
    assert aged_digests.median == digests.median


def test_a_digest_is_passed_by_the_questions_of_half_an_hour_alone(example: Any) -> None:
    """What the text says of aging, from the grants themselves."""
    granted: list[tuple[float, int]] = []

    class Order:
        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            return lambda: True

        def __call__(self, details: Details) -> None:
            if isinstance(details, Granted):
                granted.append((trio.current_time() - details.waited, details.priority))

    jobs = example.day(example.SEED)
    gate = Gate(1, aging=example.AGING, hooks=(Order(),))
    trio.run(example.waits_of, jobs, gate, clock=MockClock(autojump_threshold=0))
    latest_question = 0.0
    longest_lead = 0.0
    for at, priority in granted:
        if priority == Priority.FOREGROUND:
            latest_question = max(latest_question, at)
        else:
            longest_lead = max(longest_lead, latest_question - at)
    assert example.AGING - 60 < longest_lead < example.AGING


@pytest.mark.parametrize("aging", ["", AGED])
@pytest.mark.parametrize("priority", ["FOREGROUND", "BACKGROUND"])
def test_headroom_has_no_effect_at_capacity_1(rows: dict[tuple[str, str], Row], aging: str, priority: str) -> None:
    assert rows["1" + aging + KEPT, priority] == rows["1" + aging, priority]


def test_headroom_at_capacity_2_is_paid_by_digests(rows: dict[tuple[str, str], Row], page: str) -> None:
    assert rows["2" + KEPT, "FOREGROUND"].longest == 0
    assert f"waits for more than {int(rows['2', 'FOREGROUND'].percentile)} seconds" in page
    without, with_it = rows["2", "BACKGROUND"], rows["2" + KEPT, "BACKGROUND"]
    assert f"from {without.mean:.0f} seconds to {with_it.mean:.0f}" in page
    assert f"from {without.longest / 60:.0f} minutes to {with_it.longest / 60:.0f}" in page


@pytest.mark.parametrize("reserved", ["", KEPT])
@pytest.mark.parametrize("priority", ["FOREGROUND", "BACKGROUND"])
def test_aging_changes_nothing_at_capacity_2(rows: dict[tuple[str, str], Row], reserved: str, priority: str) -> None:
    assert rows["2" + AGED + reserved, priority] == rows["2" + reserved, priority]
    assert rows["2" + reserved, "BACKGROUND"].longest < 1800


def test_the_second_slot_does_more_than_the_options(rows: dict[tuple[str, str], Row]) -> None:
    for priority in ("FOREGROUND", "BACKGROUND"):
        slow = [row.mean for (gate, which), row in rows.items() if gate.startswith("1") and which == priority]
        fast = [row.mean for (gate, which), row in rows.items() if gate.startswith("2") and which == priority]
        assert max(fast) < min(slow)
