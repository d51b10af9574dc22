"""Log lines and hooks."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trio_mlxgate
from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, Recorder, holder, in_a_task_of_its_own, job, run
from trio_mlxgate import Gate, QueueFull, WaitTooLong
from trio_mlxgate.instrumentation import (
    KINDS,
    Abandoned,
    CallDetails,
    Cancelled,
    CapacityChanged,
    Details,
    Ended,
    FellBack,
    GivenUp,
    Granted,
    LoggingHook,
    Orphaned,
    Overdue,
    Queued,
    Rejected,
    Released,
    Starving,
    Superseded,
    WaitsForParent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

OF_TRANSPORTS = {Abandoned, FellBack, GivenUp}
"""What a gate tells in the name of a transport; see tests/transport."""


async def test_the_log_lines_and_their_numbers(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_mlxgate.gate")
    gate = Gate(1, name="macmini")
    async with trio.open_nursery() as nursery:
        log = Log()
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 1.5)
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 2, 0.5)
        nursery.start_soon(job, gate, log, "person", FOREGROUND, 0.25, 1)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "dispatch gate=macmini priority=100 seq=1 wait_ms=0.0 queue_length=0"),
        ("DEBUG", "enqueue gate=macmini priority=100 seq=2 queue_length=1"),
        ("DEBUG", "enqueue gate=macmini priority=0 seq=3 queue_length=2"),
        ("DEBUG", "release gate=macmini priority=100 seq=1 duration_ms=1500.0"),
        ("INFO", "dispatch gate=macmini priority=0 seq=3 wait_ms=500.0 queue_length=1"),
        ("DEBUG", "release gate=macmini priority=0 seq=3 duration_ms=250.0"),
        ("INFO", "dispatch gate=macmini priority=100 seq=2 wait_ms=1250.0 queue_length=0"),
        ("DEBUG", "release gate=macmini priority=100 seq=2 duration_ms=2000.0"),
    ]
    assert {record.name for record in caplog.records} == {"trio_mlxgate.gate"}
    dispatch = caplog.records[4]
    numbers = {name: getattr(dispatch, name) for name in ("gate", "priority", "seq", "wait_ms", "queue_length")}
    assert numbers == {"gate": "macmini", "priority": 0, "seq": 3, "wait_ms": 500.0, "queue_length": 1}
    assert all(isinstance(record.__dict__["priority"], int) for record in caplog.records)


async def test_every_kind_of_event_reaches_a_hook(autojump_clock: MockClock) -> None:
    hook, deaf = Recorder(), Recorder(Overdue)
    gate, end = Gate(1, name="macmini", starvation_warning=4, max_waiting=1, hooks=[hook, deaf]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(holder, gate, end, FOREGROUND)
        await trio.sleep(5)
        with pytest.raises(QueueFull):
            await gate.acquire_detached()
        with pytest.raises(WaitTooLong):
            await gate.acquire_detached(max_wait=0)
        end.set()
    with gate.slot_nowait(7, hold_timeout=10):
        await in_a_task_of_its_own(functools.partial(blocked, gate))
    detached = await gate.acquire_detached(hold_timeout=1)
    await trio.sleep(3)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(holder, gate, end)
    superseded = trio.Event()

    async def older() -> None:
        with pytest.raises(trio_mlxgate.Superseded):
            async with gate.slot(supersede="page 1"):
                pass
        superseded.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(older)
        await trio.sleep(1)
        scope = trio.CancelScope()

        async def newer() -> None:
            with scope:
                async with gate.slot(supersede="page 1"):
                    pass

        nursery.start_soon(newer)
        await superseded.wait()
        await trio.sleep(2)
        scope.cancel()
        with pytest.raises(WaitTooLong):
            async with gate.slot(max_wait=1):
                pass
    gate.capacity = 1
    gate.capacity = 3
    detached.release()

    def told(kind: type[Details], **numbers: Any) -> Details:
        known: dict[str, Any] = {"gate": "macmini", "capacity": 1, "in_flight": 1, "queue_length": 0}
        if kind is not CapacityChanged:
            known |= {"waited": 0, "held": 0, "queued": False}
        return kind(**(known | numbers))

    assert hook.details == [
        told(Granted, priority=100, seq=1),
        told(Queued, priority=0, seq=2, queue_length=1, queued=True),
        told(Starving, priority=0, seq=2, queue_length=1, queued=True, waited=4),
        told(Rejected, priority=100, seq=3, queue_length=1, reason="queue_full"),
        told(Rejected, priority=100, seq=4, queue_length=1, reason="wait_too_long"),
        told(Released, priority=100, seq=1, held=5),
        told(Granted, priority=0, seq=2, waited=5, queued=True),
        told(Released, priority=0, seq=2, waited=5, queued=True, in_flight=0),
        told(Granted, priority=7, seq=5),
        told(Rejected, priority=100, seq=0, reason="would_block"),
        told(Released, priority=7, seq=5, in_flight=0),
        told(Granted, priority=100, seq=6),
        told(Overdue, priority=100, seq=6, held=2),
        told(Cancelled, priority=100, seq=0),
        told(Queued, priority=100, seq=7, queue_length=1, queued=True),
        told(Queued, priority=100, seq=8, queue_length=1, queued=True),
        told(Superseded, priority=100, seq=7, queue_length=1, queued=True, waited=1, by=8),
        told(Cancelled, priority=100, seq=8, queued=True, waited=2),
        told(Queued, priority=100, seq=9, queue_length=1, queued=True),
        told(Rejected, priority=100, seq=9, queued=True, waited=1, reason="wait_too_long"),
        told(CapacityChanged, before=1, capacity=3),
        told(Released, priority=100, seq=6, held=7, in_flight=0, capacity=3),
    ]
    # Who ends with a slot, and who ends the gate, have tests of their own.
    assert {type(details) for details in hook.details} == set(KINDS) - OF_TRANSPORTS - {WaitsForParent, Orphaned, Ended}
    assert [type(details) for details in deaf.details] == [Overdue]


async def blocked(gate: Gate) -> None:  # noqa: ASYNC124, ASYNC910 - a task is a coroutine
    with pytest.raises(trio.WouldBlock), gate.slot_nowait():
        raise AssertionError("it would block")


async def test_a_hook_that_raises_is_logged_and_taken_out(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        def __call__(self, details: Details) -> None:
            super().__call__(details)
            raise ValueError("the hook's own trouble")

    failing, good = Failing(), Recorder()
    gate = Gate(1, hooks=[failing, good])
    for _ in range(2):
        async with gate.slot():
            pass
    assert len(failing.details) == 1
    assert [type(details) for details in good.details] == [Granted, Released] * 2
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "the hook's own trouble" in caplog.text
    assert gate.statistics().in_flight == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_TRANSPORTS])
async def test_a_hook_that_raises_at_any_event_harms_no_call(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, kind: type[Details]
) -> None:
    class Failing(Recorder):
        def __call__(self, details: Details) -> None:
            super().__call__(details)
            raise ValueError("the hook's own trouble")

    failing = Failing(kind)
    gate, log = Gate(1, starvation_warning=1, hooks=[failing]), Log()
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(job, gate, log, str(number), BACKGROUND, 2, number * 0.1)
    slot = await gate.acquire_detached(hold_timeout=1)
    await trio.sleep(5)

    async def older() -> None:
        with pytest.raises(trio_mlxgate.Superseded):
            await gate.acquire_detached(supersede="page 1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(older)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(WaitTooLong):
            await gate.acquire_detached(supersede="page 1", max_wait=0.5)
        nursery.start_soon(holder, gate, trio.Event())
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    slot.release()
    gate.capacity = 2
    gate.capacity = 1
    await in_a_task_of_its_own(gate.slot().__aenter__)
    scope = trio.CancelScope()

    async def child() -> None:
        with scope:
            async with gate.slot():
                pass

    async with trio.open_nursery() as nursery, gate.slot():
        nursery.start_soon(child)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    await gate.aclose()
    assert log.of("+") == [(0, "0"), (2, "1"), (4, "2")]
    assert [type(details) for details in failing.details] == [kind]
    mine = [record for record in caplog.records if record.name.startswith("trio_mlxgate.instrumentation")]
    assert len(mine) == 1
    seen = gate.statistics()
    assert (seen.in_flight, seen.tasks_waiting, seen.admitted, seen.cancelled, seen.rejected) == (0, 0, 6, 2, 2)


async def test_a_hook_may_use_the_gate() -> None:
    """A hook is called when the step that it tells of is done: what it sees, and does, is consistent."""
    seen: list[tuple[str, int, int]] = []

    class Looking(Recorder):
        def __call__(self, details: Details) -> None:
            statistics = gate.statistics()
            seen.append((type(details).__name__, statistics.in_flight, statistics.tasks_waiting))
            if isinstance(details, Queued):
                gate.capacity = 2

    gate, end = Gate(1, hooks=[Looking()]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        await nursery.start(holder, gate, end)
        end.set()
    assert seen == [
        ("Granted", 1, 0),
        ("Queued", 1, 1),
        ("CapacityChanged", 2, 0),
        ("Granted", 2, 0),
        ("Released", 1, 0),
        ("Released", 0, 0),
    ]


async def test_what_a_hook_brings_about_is_told_to_all_in_order() -> None:
    class Raising(Recorder):
        def __call__(self, details: Details) -> None:
            super().__call__(details)
            if isinstance(details, CapacityChanged) and details.capacity < 4:
                gate.capacity += 1

    first, second = Raising(), Recorder()
    gate, end = Gate(1, hooks=[first, second]), trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(holder, gate, end)
        await trio.testing.wait_all_tasks_blocked()
        gate.capacity = 2
        assert gate.statistics().in_flight == 4
        end.set()
    assert first.details == second.details
    changes = [each for each in second.details if isinstance(each, CapacityChanged)]
    assert [(each.before, each.capacity, each.in_flight) for each in changes] == [(1, 2, 2), (2, 3, 3), (3, 4, 4)]


async def test_a_hook_that_is_taken_out_is_not_asked_any_more(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        asked = 0

        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            def interested() -> bool:
                self.asked += 1
                return True

            return interested

        def __call__(self, details: Details) -> None:
            gate.capacity += 1  # so that one event lies within the other
            raise ValueError("the hook's own trouble")

    failing = Failing()
    gate = Gate(1, hooks=[failing])
    async with gate.slot():
        pass
    asked = failing.asked
    for _ in range(10):
        async with gate.slot():
            pass
    assert failing.asked == asked
    assert caplog.text.count("is not called any more") == 1


@pytest.mark.parametrize("kind", [Queued, Granted])
async def test_what_is_no_exception_comes_out_of_a_hook_and_no_slot_is_lost(kind: type[Details]) -> None:
    class Exiting(Recorder):
        def __call__(self, details: Details) -> None:
            if isinstance(details, kind) and isinstance(details, CallDetails) and details.seq == 2:
                raise SystemExit

    gate, end = Gate(1 if kind is Queued else 2, hooks=[Exiting()]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        with pytest.raises(SystemExit):
            await gate.acquire_detached()
        assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (1, 0)
        end.set()
    gate = Gate(2, hooks=[Exiting()])
    async with gate.slot():
        pass
    if kind is Granted:
        with pytest.raises(SystemExit), gate.slot_nowait():
            raise AssertionError("entered")
    assert gate.statistics().in_flight == 0
    assert gate.owned_slot() is None


async def test_a_logger_that_fails_is_taken_out_too(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(logging.Logger):
        def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - as logging has it
            raise ValueError("the logger's own trouble")

    gate = Gate(1, hooks=[LoggingHook(Failing("mine"))])
    for _ in range(2):
        async with gate.slot():
            assert gate.statistics().in_flight == 1
    assert gate.statistics().in_flight == 0
    assert caplog.text.count("is not called any more") == 1


async def test_a_waiter_is_reported_in_time_whatever_else_is_awaited(autojump_clock: MockClock) -> None:
    hook = Recorder(Starving, Overdue)
    gate = Gate(1, starvation_warning=300, hooks=[hook])
    slot = await gate.acquire_detached(hold_timeout=10_000)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(holder, gate, trio.Event())
            await trio.sleep(100)
        await trio.sleep(300)
        assert [details.waited for details in hook.details if isinstance(details, Starving)] == [300, 300]
        nursery.cancel_scope.cancel()
    slot.release()
    async with gate.slot(hold_timeout=1000) as owned:
        loan = owned.lend("a response")
        owned.deadline = trio.current_time() + 5
        await trio.sleep(4)
        assert len(hook.details) == 2
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        assert isinstance(hook.details[-1], Overdue)
        owned.deadline = trio.current_time() + 1000
        loan.release()


@pytest.mark.parametrize("hooks", [[LoggingHook], [print], None, LoggingHook(), ["log"]])
def test_what_is_no_hook_is_refused_when_the_gate_is_made(hooks: Any) -> None:
    with pytest.raises(TypeError, match="hooks must be"):
        Gate(1, hooks=hooks)


async def test_a_hook_lets_a_call_in_before_its_task_sleeps_and_that_is_cancelled() -> None:
    class Raising(Recorder):
        def __call__(self, details: Details) -> None:
            if isinstance(details, Queued):
                gate.capacity = 2
                scope.cancel()

    gate, end, scope = Gate(1, hooks=[Raising()]), trio.Event(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        with scope:
            async with gate.slot():
                assert gate.statistics().in_flight == 2
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert gate.statistics().in_flight == 1
        end.set()


async def test_a_hook_of_logging_can_write_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gate = Gate(1, hooks=[LoggingHook(logging.getLogger("elsewhere"))])
    async with gate.slot():
        pass
    assert [record.name for record in caplog.records] == ["elsewhere"]


def test_a_gate_without_hooks_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        gate = Gate(1, hooks=())
        async with gate.slot():
            pass

    run(main)
    assert not caplog.records


@pytest.mark.parametrize("others", [0, 1])
async def test_a_hook_that_cannot_say_what_interests_it_is_taken_out(
    others: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad:
        asked = 0

        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            self.asked += 1
            return lambda: bool(1 / 0)

        def __call__(self, details: Details) -> None:
            raise AssertionError("never called")

    bad, good = Bad(), Recorder()
    gate = Gate(1, hooks=[bad, *[good] * others])
    asked = bad.asked
    for _ in range(2):
        async with gate.slot():
            assert gate.statistics().in_flight == 1
    assert gate.statistics().in_flight == 0
    assert caplog.text.count("is not called any more") == 1
    assert bad.asked == asked
    assert len(good.details) == 4 * others
