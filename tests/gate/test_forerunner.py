"""The cases that the gate's forerunner got wrong."""

from __future__ import annotations

import logging
import math
import random
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, holder, in_a_task_of_its_own, job
from trio_mlxgate import Gate, Priority


async def test_cancelled_between_grant_and_resume() -> None:
    gate = Gate(1)
    entered = []
    end = trio.Event()
    scope = trio.CancelScope()

    async def granted_and_cancelled() -> None:
        with scope:
            async with gate.slot():
                entered.append("granted")
                await trio.lowlevel.checkpoint()
                entered.append("too far")

    async with trio.open_nursery() as nursery:
        slot = await gate.acquire_detached()
        nursery.start_soon(granted_and_cancelled)
        await wait_all_tasks_blocked()
        nursery.start_soon(holder, gate, end)
        await wait_all_tasks_blocked()
        slot.release()
        scope.cancel()
        assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (1, 1)
        await wait_all_tasks_blocked()
        assert entered == ["granted"]
        assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (1, 0)
        end.set()
    assert gate.statistics().in_flight == 0


async def test_cancelled_twice_while_releasing() -> None:
    gate = Gate(1)
    outer = trio.CancelScope()

    async def body() -> None:
        with outer, trio.CancelScope() as inner:
            async with gate.slot(hold_timeout=100):
                try:
                    inner.cancel()
                    await trio.sleep_forever()
                finally:
                    outer.cancel()
                    gate.capacity = 1  # any step of the gate while the slot is given back

    await in_a_task_of_its_own(body)
    statistics = gate.statistics()
    assert (statistics.in_flight, statistics.tasks_waiting, statistics.admitted) == (0, 0, 1)
    async with gate.slot():
        pass


async def test_raised_with_a_queue_four_run_at_once(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(job, gate, log, str(number), BACKGROUND, 10, number * 0.1)
        await trio.sleep(1)
        gate.capacity = 4
        assert gate.statistics().in_flight == 4
    # Those that come in together are shuffled by trio.
    assert sorted(log.of("+")) == [(0, "0"), (1, "1"), (1, "2"), (1, "3"), (10, "4"), (11, "5")]


async def test_lowered_under_load_it_drains(autojump_clock: MockClock) -> None:
    gate, log = Gate(4), Log()
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(job, gate, log, str(number), BACKGROUND, 10 + number, number * 0.5)
        await trio.sleep(3)
        gate.capacity = 1
        assert gate.statistics().in_flight == 4
    # The four that run end at 10, 11.5, 13 and 14.5; only when the last of them has, the next comes in.
    assert log.of("+") == [(0, "0"), (0.5, "1"), (1, "2"), (1.5, "3"), (14.5, "4"), (28.5, "5")]


async def test_a_plain_int_is_a_priority(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "running", 3, 5)
        await wait_all_tasks_blocked()
        for priority in (100, 7, Priority.FOREGROUND, -10, 8):
            nursery.start_soon(job, gate, log, str(int(priority)), priority, 1)
    assert [name for _, name in log.of("+")] == ["running", "-10", "0", "7", "8", "100"]


@pytest.mark.parametrize("priority", [True, 1.0, "0", None, 10**6 + 1, -(10**6) - 1])
def test_what_is_no_priority_is_told_at_once(priority: Any) -> None:
    gate = Gate(1)
    with pytest.raises((TypeError, ValueError), match="priority"):
        gate.slot(priority)
    with pytest.raises((TypeError, ValueError), match="priority"):
        gate.slot_nowait(priority)


@pytest.mark.parametrize("seconds", [True, "1", None, -1, math.nan])
@pytest.mark.parametrize("name", ["hold_timeout", "max_wait"])
def test_what_is_no_time_is_told_at_once(name: str, seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        Gate(1).slot(**{name: seconds})


async def test_dead_entries_alone_while_a_slot_is_free() -> None:
    """The forerunner left cancelled calls in its queue, and took them for waiters when a slot was free."""
    gate, end = Gate(1, outer_deadline="allow"), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        async with trio.open_nursery() as crowd:
            for _ in range(10):
                crowd.start_soon(holder, gate, end)
            await wait_all_tasks_blocked()
            crowd.cancel_scope.cancel()
        end.set()
    assert gate.statistics().in_flight == gate.statistics().tasks_waiting == 0
    with gate.slot_nowait():
        pass
    with trio.fail_after(1):
        async with gate.slot(max_wait=0):
            pass


async def test_5000_cancelled_waiters_count_nowhere() -> None:
    gate, end = Gate(1), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        async with trio.open_nursery() as crowd:
            for number in range(5000):
                crowd.start_soon(holder, gate, end, number % 7)
            await wait_all_tasks_blocked()
            assert gate.statistics().tasks_waiting == 5000
            crowd.cancel_scope.cancel()
            # In the very step of the cancellation.
            assert gate.statistics().tasks_waiting == 0
        statistics = gate.statistics()
        assert statistics.cancelled == 5000
        assert not statistics.waiting_by_priority
        assert statistics.longest_wait == 0
        end.set()


async def test_the_same_task_asks_twice() -> None:
    gate = Gate(3)
    async with gate.slot() as slot:
        assert gate.owned_slot() is slot
        with pytest.raises(RuntimeError, match="already"):
            async with gate.slot():
                pass
        with pytest.raises(RuntimeError, match="already"), gate.slot_nowait():
            pass
        with pytest.raises(RuntimeError, match="already"):
            await gate.acquire_detached()
        assert gate.statistics().in_flight == 1
        # Another gate is another matter.
        async with Gate(1).slot():
            pass
        # And a child is another task.
        end = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(holder, gate, end)
            assert gate.statistics().in_flight == 2
            end.set()
    assert gate.owned_slot() is None
    async with gate.slot():
        pass


async def test_a_task_that_asks_again_from_its_own_worker_thread() -> None:
    gate = Gate(1, outer_deadline="allow")

    async def ask() -> None:
        async with gate.slot():
            raise AssertionError("two slots")

    with trio.fail_after(5):
        async with gate.slot():
            with pytest.raises(RuntimeError, match="already"):
                await trio.to_thread.run_sync(trio.from_thread.run, ask)
    assert gate.statistics().in_flight == 0


def test_a_second_run_while_the_first_is_alive() -> None:
    gate = Gate(1)
    errors: list[BaseException] = []

    async def intrude() -> None:
        for use in (
            gate.slot().__aenter__,
            gate.acquire_detached,
        ):
            with pytest.raises(RuntimeError, match="in use by another run") as caught:
                await use()
            errors.append(caught.value)
        with pytest.raises(RuntimeError, match="in use by another run"):
            gate.slot_nowait().__enter__()
        with pytest.raises(RuntimeError, match="in use by another run"):
            gate.capacity = 7

    async def main() -> None:
        async with gate.slot():
            await trio.to_thread.run_sync(trio.run, intrude)
            assert gate.statistics().in_flight == 1
            assert gate.capacity == 1
        await trio.to_thread.run_sync(trio.run, intrude)  # also while nothing is held

    trio.run(main)
    assert len(errors) == 4


async def test_a_starving_waiter_is_reported_while_it_waits(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate, end, log = Gate(1, name="macmini"), trio.Event(), Log()
    seen: list[float] = []
    logger = logging.getLogger("trio_mlxgate.gate")

    class Clocked(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(trio.current_time() - log.start)

    handler = Clocked(level=logging.WARNING)
    logger.addHandler(handler)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(holder, gate, end)
            nursery.start_soon(job, gate, log, "digest", BACKGROUND, 1)
            nursery.start_soon(job, gate, log, "person", FOREGROUND, 1, 20)
            await trio.sleep(299)
            assert not caplog.records
            await trio.sleep(2)
            assert not log.lines  # nobody came in, the first was reported
            (record,) = caplog.records
            assert record.levelno == logging.WARNING
            assert record.getMessage() == "starving gate=macmini priority=100 seq=2 wait_ms=300000.0 queue_length=2"
            await trio.sleep(5000)
            # Each once, and no more.
            assert [getattr(record, "seq", None) for record in caplog.records] == [2, 3]
            assert seen == [300, 320]
            assert gate._alarms._timer is None  # nobody is left to be reported, so the watcher has ended
            end.set()
    finally:
        logger.removeHandler(handler)


async def test_who_waited_less_is_not_reported_and_the_watcher_ends(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate, end, log = Gate(1, starvation_warning=10), trio.Event(), Log()
    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 0)
        await trio.sleep(9.5)
        end.set()
    await trio.sleep(1)
    assert not caplog.records
    assert gate._alarms._timer is None
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_starvation_warning_can_be_turned_off(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate, end, log = Gate(1, starvation_warning=math.inf), trio.Event(), Log()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 0)
        await trio.sleep(10**6)
        assert gate._alarms._timer is None
        end.set()
    assert not caplog.records


@pytest.mark.parametrize("seed", range(4))
async def test_ten_clients_with_little_patience(autojump_clock: MockClock, seed: int) -> None:
    """0 to 20 ms of patience against 2 ms of work: the forerunner was dead for good after seconds of this."""
    source = random.Random(seed)
    gate = Gate(1 + seed % 3, outer_deadline="allow")
    inside = most = served = gave_up = 0

    async def client() -> None:
        nonlocal inside, most, served, gave_up
        for _ in range(1000):
            with trio.move_on_after(source.choice((0.0, 0.002, 0.004, source.uniform(0, 0.02)))) as scope:
                async with gate.slot(
                    source.choice((FOREGROUND, BACKGROUND)), hold_timeout=source.choice((math.inf, 0.5))
                ):
                    inside += 1
                    most = max(most, inside)
                    try:
                        await trio.sleep(source.choice((0, 0.002, 0.004)))
                        served += 1
                    finally:
                        inside -= 1
            gave_up += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(client)
    statistics = gate.statistics()
    assert (statistics.in_flight, statistics.tasks_waiting, inside) == (0, 0, 0)
    assert most == gate.capacity
    assert served > 1000
    assert gave_up > 1000
    assert statistics.admitted + statistics.cancelled == 10_000
    # Alive, and no slot is lost.
    end = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(gate.capacity):
            await nursery.start(holder, gate, end)
        end.set()
