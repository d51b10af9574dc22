"""Slots that a task owns: leaving them on all ways, their budget and deadline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import FOREGROUND, holder, in_a_task_of_its_own
from trio_mlxgate import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def produce(gate: Gate) -> AsyncGenerator[int, None]:  # noqa: ASYNC900 - the very mistake
    """Holds a slot with a cancel scope while it is suspended: a mistake, and one that happens."""
    async with gate.slot(hold_timeout=60):
        yield 1  # noqa: ASYNC119


async def test_an_abandoned_generator_that_is_closed_elsewhere_has_nothing_to_give_back() -> None:
    gate = Gate(1)
    generator = produce(gate)
    await in_a_task_of_its_own(generator.__anext__)
    # Its task has ended, so that the slot was taken back.
    assert gate.statistics().in_flight == 0
    async with gate.slot():
        await in_a_task_of_its_own(generator.aclose)
        assert gate.statistics().in_flight == 1
    assert not gate._owners


async def test_a_slot_whose_scope_cannot_be_left_is_given_back_all_the_same() -> None:
    gate = Gate(1)
    generator = produce(gate)
    closed = trio.Event()

    async def start() -> None:
        await anext(generator)
        await closed.wait()

    async def close() -> None:
        with pytest.raises(RuntimeError, match=r"[Cc]ancel scope"):
            await generator.aclose()
        assert gate.statistics().in_flight == 0
        assert not gate._owners
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await wait_all_tasks_blocked()
        assert gate.statistics().in_flight == 1
        nursery.start_soon(close)
    async with gate.slot():
        pass


async def test_a_generator_without_budget_may_be_closed_by_another_task() -> None:
    gate = Gate(1)

    async def produce() -> AsyncGenerator[int, None]:  # noqa: ASYNC900 - the same mistake
        async with gate.slot():
            yield 1  # noqa: ASYNC119

    generator = produce()
    await in_a_task_of_its_own(generator.__anext__)
    await in_a_task_of_its_own(generator.aclose)
    assert gate.statistics().in_flight == 0
    assert not gate._owners


async def test_hold_timeout_cancels_the_body_and_says_so(autojump_clock: MockClock) -> None:
    gate = Gate(1)
    begun = trio.current_time()
    with pytest.raises(trio.TooSlowError, match="hold_timeout"):
        async with gate.slot(hold_timeout=30):
            await trio.sleep_forever()
    assert trio.current_time() == begun + 30
    assert gate.statistics().in_flight == 0


async def test_a_cancelled_body_is_no_too_slow_error(autojump_clock: MockClock) -> None:
    gate = Gate(1, outer_deadline="allow")
    with trio.move_on_after(1) as scope:
        async with gate.slot(hold_timeout=1):
            await trio.sleep_forever()
    # Both end at one time: the outer one cancelled, and ours did not catch it.
    assert scope.cancelled_caught
    async with gate.slot(hold_timeout=1):
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
    assert gate.statistics().in_flight == 0


async def test_the_error_of_a_body_beats_its_timeout(autojump_clock: MockClock) -> None:
    gate = Gate(1)

    async def fail_late() -> None:
        async with gate.slot(hold_timeout=1):
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            raise ValueError("from the body")

    with pytest.raises(ValueError, match="from the body"):
        await fail_late()
    assert gate.statistics().in_flight == 0


async def test_the_deadline_can_be_read_and_moved(autojump_clock: MockClock) -> None:
    gate = Gate(1)
    begun = trio.current_time()
    slot = gate.slot(hold_timeout=5)

    async def move_it() -> None:
        async with slot:
            assert slot.deadline == begun + 5
            await trio.sleep(4)
            slot.deadline += 5
            await trio.sleep(4)
            slot.deadline = math.inf
            await trio.sleep(100)
            slot.deadline = trio.current_time() + 1
            await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        await move_it()
    assert trio.current_time() == begun + 109
    with pytest.raises(RuntimeError, match="not held"):
        slot.deadline = 0
    async with gate.slot() as unbounded:
        assert unbounded.deadline == math.inf
        with pytest.raises(RuntimeError, match="hold_timeout"):
            unbounded.deadline = 0
        bad: Any
        for bad in (True, "1", None, math.nan):
            with pytest.raises(ValueError, match="deadline"):
                unbounded.deadline = bad


async def test_a_slot_tells_its_wait(autojump_clock: MockClock) -> None:
    gate, end = Gate(1), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)

        @nursery.start_soon
        async def end_later() -> None:
            await trio.sleep(3)
            end.set()

        async with gate.slot(FOREGROUND) as slot:
            assert (slot.waited, slot.priority, slot.gate) == (3, FOREGROUND, gate)
            assert "granted" in repr(slot)
            await trio.sleep(10)
            assert slot.waited == 3
    async with gate.slot() as slot:
        assert slot.waited == 0
    with gate.slot_nowait(7) as plain:
        assert (plain.waited, plain.priority, plain.gate) == (0, 7, gate)


async def test_a_forgotten_async_with_says_how_it_is_done() -> None:
    gate: Any = Gate(1)
    with pytest.raises(TypeError, match=r"async with gate\.slot"), gate.slot():
        pass
    with pytest.raises(TypeError, match=r"async with gate\.slot"):
        await gate.slot()
    with pytest.raises(TypeError, match=r"async with gate\.slot"):
        async with gate:
            pass
    assert gate.statistics().admitted == 0


def test_outside_of_a_run_it_says_where_it_works() -> None:
    gate = Gate(1)
    with pytest.raises(RuntimeError, match=r"inside trio\.run"), gate.slot_nowait():
        pass
    with pytest.raises(RuntimeError, match=r"inside trio\.run"):
        gate.owned_slot()
