"""A deadline of the caller around the wait: who is told, how often, and naming which line."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import holder
from trio_mlxgate import Gate, OuterDeadlineWarning, acquire_mlx_gate, use_options
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.outer_deadline import LOOKS_AT_EVERY, LOOKS_AT_FIRST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio_mlxgate.outer_deadline import OuterDeadline


@pytest.fixture
def reports() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def line(offset: int = 0) -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno + offset


async def test_each_place_is_told_once_and_what_to_write(
    autojump_clock: MockClock, reports: list[warnings.WarningMessage]
) -> None:
    gate, first, second = Gate(1, name="macmini"), 0, 0
    for _ in range(3):
        with trio.fail_after(30):
            async with gate.slot(hold_timeout=5):
                first = line(-1)
        with trio.move_on_at(trio.current_time() + 7):
            slot = await gate.acquire_detached()
            second = line(-1)
            slot.release()
    assert [(report.filename, report.lineno) for report in reports] == [(__file__, first), (__file__, second)]
    assert {report.category for report in reports} == {OuterDeadlineWarning}
    message = str(reports[0].message)
    assert "ends in 30 s" in message
    for word in ("'macmini'", "hold_timeout=", "max_wait=", "outer_deadline='allow'"):
        assert word in message


async def test_what_is_no_deadline_around_the_wait(
    autojump_clock: MockClock, reports: list[warnings.WarningMessage]
) -> None:
    gate = Gate(1)
    with trio.move_on_after(30), trio.CancelScope(shield=True):
        async with gate.slot():  # a shield hides what is outside of it
            pass
    async with gate.slot(hold_timeout=5, max_wait=5):
        with trio.fail_after(5):
            await trio.sleep(1)
    with trio.CancelScope(deadline=-math.inf):
        async with gate.slot():  # cancelled already: there is no wait
            raise AssertionError("entered although cancelled")
    with trio.move_on_after(5), gate.slot_nowait():
        await trio.sleep(1)  # never waits for the slot
    assert not reports


async def test_another_gate_within_a_hold_budget_is_told(
    autojump_clock: MockClock, reports: list[warnings.WarningMessage]
) -> None:
    outer, inner = Gate(1, name="outer"), Gate(1, name="inner")
    async with outer.slot(hold_timeout=30), inner.slot():
        where = line(-1)
    assert [(report.filename, report.lineno) for report in reports] == [(__file__, where)]


async def test_raise_is_at_every_call_and_holds_nothing(autojump_clock: MockClock) -> None:
    gate, end = Gate(1, outer_deadline="raise"), trio.Event()
    async with trio.open_nursery() as nursery:
        for waits in (False, True):
            if waits:
                await nursery.start(holder, gate, end)
            before = gate.statistics()
            for _ in range(LOOKS_AT_FIRST + LOOKS_AT_EVERY):
                with trio.move_on_after(30), pytest.raises(RuntimeError, match=rf"{__file__}:\d+: a deadline"):
                    await gate.acquire_detached()
            assert gate.statistics() == before
        with trio.move_on_after(0.5) as scope:
            await gate.acquire_detached(outer_deadline="allow")
        assert scope.cancelled_caught
        end.set()


async def test_a_program_that_makes_errors_of_warnings_loses_no_slot(autojump_clock: MockClock) -> None:
    gate, end = Gate(1), trio.Event()
    async with trio.open_nursery() as nursery:
        for waits in (False, True):
            if waits:
                await nursery.start(holder, gate, end)
            for _ in range(2):
                with trio.move_on_after(30), pytest.raises(OuterDeadlineWarning):
                    await gate.acquire_detached()
            assert gate.statistics().tasks_waiting == 0
        end.set()
    assert (gate.statistics().in_flight, gate.statistics().cancelled) == (0, 0)


@pytest.mark.parametrize("policy", ["warn", "raise", "allow"])
async def test_a_call_may_say_otherwise_than_its_gate(
    policy: OuterDeadline, reports: list[warnings.WarningMessage]
) -> None:
    for own, times in (("warn", 1), ("allow", 0)):
        gate = Gate(1, outer_deadline=policy)
        reports.clear()
        calls: Any = gate.slot(outer_deadline=own)  # type: ignore[arg-type]
        with trio.move_on_after(30):
            async with calls:
                pass
        assert len(reports) == times


async def test_later_it_is_looked_for_now_and_then_and_after_a_cancelled_wait(
    autojump_clock: MockClock, reports: list[warnings.WarningMessage]
) -> None:
    gate = Gate(1)

    async def call() -> None:
        async with gate.slot():
            pass

    for _ in range(LOOKS_AT_FIRST):
        await call()
    for _ in range(LOOKS_AT_EVERY):
        with trio.move_on_after(30):
            await call()
    assert len(reports) == 1
    # A rhythm of calls with one of them under a deadline is met with, whatever its length.
    for length in (2, 16, 64):
        gate = Gate(1)
        reports.clear()
        for _ in range(LOOKS_AT_FIRST):
            await call()
        for number in range(length * LOOKS_AT_EVERY):
            with trio.CancelScope(deadline=math.inf if number % length else trio.current_time() + 30):
                await call()
        assert len(reports) == 1
    gate, end = Gate(1), trio.Event()
    for _ in range(LOOKS_AT_FIRST):
        await call()
    reports.clear()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_soon, scope)  # noqa: ASYNC111 - it is over before
            await call()
        with trio.move_on_after(1):
            await call()
        assert len(reports) == 1
        end.set()


async def _cancel_soon(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_through_a_client_it_is_the_line_that_called_the_client(
    reports: list[warnings.WarningMessage],
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="yes")

    gate = Gate(1)
    transport = GateTransport(gate, httpx.MockTransport(answer))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        with trio.fail_after(30):
            await client.get("/")
            where = line(-1)
        with trio.fail_after(30), use_options(outer_deadline="allow"):
            await client.get("/")
        with trio.fail_after(30):
            await client.get("/", extensions={"mlxgate": {"outer_deadline": "allow"}})
            with pytest.raises(RuntimeError, match=f"{__file__}:{line(1)}: a deadline"):
                await client.get("/", extensions={"mlxgate": {"outer_deadline": "raise"}})
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 30
            nursery.start_soon(client.get, "/")
    assert reports[0].lineno == where
    # A task that is nothing but a call of the client has no line of its own: the client's is told.
    assert [report.filename == __file__ for report in reports] == [True, False]
    assert "httpx" in reports[1].filename


async def test_a_task_that_is_nothing_but_a_call_is_told_by_its_parent(
    autojump_clock: MockClock, reports: list[warnings.WarningMessage]
) -> None:
    gate, first = Gate(1), 0
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            first = line(-1)
            nursery.start_soon(gate.acquire_detached)
            nursery.start_soon(gate.acquire_detached)
    assert [report.filename for report in reports] == [__file__]
    assert first <= reports[0].lineno <= first + 3


async def test_who_follows_a_call_that_is_refused_as_a_mistake_does_not_wait(autojump_clock: MockClock) -> None:
    gate = Gate(1, outer_deadline="raise")
    slot = gate.slot()
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            async for _ in gate.progress(slot):
                raise AssertionError("it never waits")

        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        with trio.move_on_after(5), pytest.raises(RuntimeError):
            await slot.__aenter__()


async def test_the_line_may_stand_in_a_generator(reports: list[warnings.WarningMessage]) -> None:
    async def words() -> AsyncIterator[str]:
        async with acquire_mlx_gate():
            yield "one"  # noqa: ASYNC119 - what is looked at is the entering

    with trio.fail_after(30):
        async for _ in words():
            pass
    (report,) = reports
    assert report.filename == __file__
    assert report.lineno == words.__code__.co_firstlineno + 1
