"""A task that ends with a slot in hand: the slot is taken back in the same step, and that is told."""

from __future__ import annotations

import functools
import gc
import logging
import weakref
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, Recorder, holder, in_a_task_of_its_own, job, run
from trio_mlxgate import Gate
from trio_mlxgate.trio_runtime import _exits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio_mlxgate.instrumentation import Details


async def forgetful(gate: Gate, seconds: float = 0) -> None:
    """Take a slot as no block would, and end without it."""
    await gate.slot(FOREGROUND, hold_timeout=1000).__aenter__()
    await trio.sleep(seconds)


async def test_the_slot_of_an_ended_task_goes_to_the_next(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Recorder()
    from trio_mlxgate.instrumentation import LoggingHook

    gate, log = Gate(1, name="macmini", hooks=[hook, LoggingHook()]), Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgetful, gate, 3, name="reader")
        await wait_all_tasks_blocked()
        nursery.start_soon(job, gate, log, "next", BACKGROUND, 1)
    assert log.of("+") == [(3, "next")]
    assert hook.names == ["Granted", "Queued", "Orphaned", "Released", "Granted", "Released"]
    orphaned = hook.details[2]
    assert (orphaned.task, orphaned.priority, orphaned.held, orphaned.in_flight) == ("reader", 0, 3, 1)
    (record,) = (record for record in caplog.records if record.levelno > logging.INFO)
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "orphan gate=macmini priority=0 seq=1 duration_ms=3000.0 task=reader"
    seen = gate.statistics()
    assert (seen.in_flight, seen.admitted, seen.ended) == (0, 2, None)
    assert not gate._owners


async def test_every_way_to_end_is_seen(autojump_clock: MockClock) -> None:
    gate = Gate(1, outer_deadline="allow")

    async def failing() -> None:
        await gate.slot().__aenter__()
        raise ValueError("in the middle")

    async def leaving_a_stack() -> None:
        await AsyncExitStack().enter_async_context(gate.slot())

    async def nowait() -> None:  # noqa: ASYNC124, ASYNC910 - a task is a coroutine
        gate.slot_nowait().__enter__()

    for ending in (leaving_a_stack, nowait, failing):
        try:
            await in_a_task_of_its_own(ending)
        except* ValueError:
            assert ending is failing
        assert gate.statistics().in_flight == 0
    with trio.move_on_after(1):
        await in_a_task_of_its_own(functools.partial(forgetful, gate, 100))
    assert gate.statistics().in_flight == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgetful, gate)
        nursery.start_soon(holder, gate, end := trio.Event())
        await wait_all_tasks_blocked()
        end.set()


async def test_a_strict_gate_breaks(autojump_clock: MockClock) -> None:
    gate, log = Gate(1, strict=True), Log()

    async def broken(name: str) -> None:
        with pytest.raises(trio.BrokenResourceError, match="gate 'mlx' is strict"):
            async with gate.slot():
                log(f"+{name}")
        log(f"!{name}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgetful, gate, 3)
        await wait_all_tasks_blocked()
        nursery.start_soon(broken, "waiter")
        await trio.sleep(5)
        await broken("newcomer")
        with pytest.raises(trio.BrokenResourceError), gate.slot_nowait():
            pass
    assert log.lines == [(3, "!waiter"), (5, "!newcomer")]
    seen = gate.statistics()
    assert (seen.ended, seen.in_flight, seen.rejected_by_reason) == ("broken", 0, {"broken": 3})
    await gate.wait_idle()
    await gate.aclose()
    with pytest.raises(trio.ClosedResourceError), gate.slot_nowait():
        pass


async def test_a_strict_gate_that_is_drained_breaks_for_who_still_waits(autojump_clock: MockClock) -> None:
    gate = Gate(1, strict=True)

    async def broken() -> None:
        with pytest.raises(trio.BrokenResourceError):
            async with gate.slot():
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgetful, gate, 3)
        await wait_all_tasks_blocked()
        nursery.start_soon(broken)
        await wait_all_tasks_blocked()
        await gate.drain()
        assert trio.current_time() == 3


async def test_a_closed_strict_gate_stays_closed(autojump_clock: MockClock) -> None:
    gate = Gate(1, strict=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgetful, gate, 3)
        await wait_all_tasks_blocked()
        await gate.aclose()
    assert gate.statistics().ended == "closed"


async def test_an_open_loan_keeps_the_slot(autojump_clock: MockClock) -> None:
    """The response of an ended task may be read by another one: the bound counts what runs."""
    hook = Recorder()
    gate = Gate(1, hooks=[hook])
    loans, slots = [], []

    async def lender() -> None:
        slot = gate.slot()
        slots.append(slot)
        await slot.__aenter__()
        loans.append(slot.lend("GET /"))

    await in_a_task_of_its_own(lender)
    assert gate.statistics().in_flight == 1
    loans[0].release()
    assert gate.statistics().in_flight == 0
    assert hook.names == ["Granted", "Orphaned", "Released"]
    # The block is left at last, by somebody.
    await slots[0].__aexit__(None, None, None)


async def test_the_block_that_is_left_later_gives_nothing_back_twice(autojump_clock: MockClock) -> None:
    gate = Gate(1)

    async def produce(hold_timeout: float) -> AsyncGenerator[int, None]:  # noqa: ASYNC900 - the mistake to be survived
        async with gate.slot(hold_timeout=hold_timeout):
            yield 1  # noqa: ASYNC119 - the same

    for hold_timeout in (5, float("inf")):
        generator = produce(hold_timeout)
        await in_a_task_of_its_own(generator.__anext__)
        assert gate.statistics().in_flight == 0
        async with gate.slot():
            await trio.sleep(10)  # and the ended budget interrupts nobody
            await in_a_task_of_its_own(generator.aclose)
            assert gate.statistics().in_flight == 1
    assert gate.statistics().in_flight == 0


def test_the_main_task_may_end_with_a_slot(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(1)

    async def main() -> None:
        await gate.slot().__aenter__()

    run(main)
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "orphan" in record.getMessage()
    assert gate.statistics().in_flight == 0


async def test_a_gate_that_is_dropped_is_not_kept_by_who_watches_for_it() -> None:
    gate = Gate(1)
    async with gate.slot():
        pass
    reference = weakref.ref(gate)
    del gate
    gc.collect()
    assert reference() is None
    await in_a_task_of_its_own(trio.lowlevel.checkpoint)


def test_each_run_is_watched_anew() -> None:
    gate = Gate(1)

    async def main() -> None:
        await in_a_task_of_its_own(functools.partial(forgetful, gate))
        assert gate.statistics().in_flight == 0

    for _ in range(2):
        trio.run(main, clock=MockClock(autojump_threshold=0))


def test_strict_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="strict must be True or False, not 1"):
        Gate(1, strict=1)  # type: ignore[arg-type]


def test_a_hook_that_ends_the_program_loses_no_slot_and_blinds_nobody() -> None:
    class Leaving(Recorder):
        def __call__(self, details: Details) -> None:
            super().__call__(details)
            if self.names[-1] == "Orphaned":
                raise SystemExit(3)

    leaving, other = Gate(1, hooks=[Leaving()]), Gate(1)

    async def main() -> None:
        try:
            async with other.slot():
                await in_a_task_of_its_own(functools.partial(forgetful, leaving))
                await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await in_a_task_of_its_own(functools.partial(forgetful, other))

    with pytest.raises(trio.TrioInternalError) as caught:
        run(main)
    assert isinstance(caught.value.__cause__, SystemExit) or "SystemExit" in repr(caught.value.__cause__)
    assert leaving.statistics().in_flight == other.statistics().in_flight == 0


async def test_a_hook_that_raises_the_capacity_lets_nobody_into_a_gate_that_breaks(autojump_clock: MockClock) -> None:
    class Raising(Recorder):
        def __call__(self, details: Details) -> None:
            super().__call__(details)
            if self.names[-1] == "Orphaned":
                gate.capacity = 5

    hook = Raising()
    gate = Gate(1, strict=True, hooks=[hook])

    async def waiter() -> None:
        with pytest.raises(trio.BrokenResourceError):
            async with gate.slot():
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgetful, gate, 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(waiter)
    assert hook.names == ["Granted", "Queued", "Orphaned", "CapacityChanged", "Ended", "Rejected", "Released"]


async def test_to_drop_many_gates_is_quick() -> None:
    for _ in range(3):
        gates = [Gate(1) for _ in range(200)]
        for number in range(len(gates)):
            async with gates[number].slot():
                pass
        gates.clear()
        gc.collect()
    exits = _exits.get()
    assert len(exits._gates) == 0
