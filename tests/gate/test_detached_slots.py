"""Detached slots, tied ones, and loans."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import FOREGROUND, holder, in_a_task_of_its_own
from trio_mlxgate import DetachedSlot, Gate, WaitTooLong


async def test_a_detached_slot_belongs_to_whoever_has_it() -> None:
    gate = Gate(1)
    slots: list[DetachedSlot] = []

    async def take() -> None:
        slots.append(await gate.acquire_detached(FOREGROUND))
        assert gate.owned_slot() is None

    await in_a_task_of_its_own(take)
    assert gate.statistics().in_flight == 1  # its task is gone
    with trio.testing.assert_no_checkpoints():
        slots[0].release()
    assert gate.statistics().in_flight == 0
    with pytest.raises(RuntimeError, match="not held"):
        slots[0].release()
    assert gate.statistics().in_flight == 0


async def test_asking_for_a_detached_slot_is_a_checkpoint_and_can_be_cancelled() -> None:
    gate = Gate(1)
    with trio.testing.assert_checkpoints():
        slot = await gate.acquire_detached()
    with pytest.raises(WaitTooLong):
        await gate.acquire_detached(max_wait=0)
    with trio.CancelScope() as scope:
        scope.cancel()
        await gate.acquire_detached()
    assert scope.cancelled_caught
    slot.release()
    assert gate.statistics().in_flight == gate.statistics().tasks_waiting == 0


async def test_a_detached_slot_is_given_back_to_the_next_waiter() -> None:
    gate, end = Gate(1), trio.Event()
    slot = await gate.acquire_detached()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holder, gate, end)
        await wait_all_tasks_blocked()
        slot.release()
        assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (1, 0)
        end.set()


async def test_a_detached_slot_is_not_given_back_from_another_thread() -> None:
    gate = Gate(1)
    slot = await gate.acquire_detached()
    with pytest.raises(RuntimeError, match="outside its run"):
        await trio.to_thread.run_sync(slot.release)
    assert gate.statistics().in_flight == 1
    await trio.to_thread.run_sync(trio.from_thread.run_sync, slot.release)
    assert gate.statistics().in_flight == 0


async def test_an_overdue_detached_slot_is_reported_and_interrupts_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(1)
    begun = trio.current_time()
    slot = await gate.acquire_detached(hold_timeout=10)
    assert slot.deadline == begun + 10
    await trio.sleep(10.5)
    assert not caplog.records
    await trio.sleep(1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "overdue gate=mlx priority=100 seq=1 duration_ms=11000.0"
    slot.deadline = trio.current_time() + 5  # moved, it can be overdue again
    await trio.sleep(100)
    assert len(caplog.records) == 2
    assert gate.statistics().in_flight == 1
    slot.release()
    slot = await gate.acquire_detached(hold_timeout=10)
    slot.release()
    await trio.sleep(100)
    assert len(caplog.records) == 2


async def test_tied_slots_that_would_wait_for_themselves() -> None:
    gate = Gate(2, outer_deadline="allow")
    first = await gate.acquire_detached(tied=True)
    second = await gate.acquire_detached(tied=True)
    with trio.fail_after(5), pytest.raises(RuntimeError, match="wait"):
        await gate.acquire_detached(tied=True)
    assert gate.statistics().tasks_waiting == 0

    third: list[DetachedSlot] = []

    async def other() -> None:
        third.append(await gate.acquire_detached(tied=True))

    async with trio.open_nursery() as nursery:
        # Another task may wait: the first one can give back while it does.
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        assert gate.statistics().tasks_waiting == 1
        first.release()
    # One of two is another's now, who can give it back: waiting is no hang.
    with trio.move_on_after(0.01) as scope:
        await gate.acquire_detached(tied=True)
    assert scope.cancelled_caught
    third[0].release()
    again = await gate.acquire_detached(tied=True)

    async def adopt() -> None:
        again.adopt()
        await trio.lowlevel.checkpoint()

    await in_a_task_of_its_own(adopt)
    with trio.move_on_after(0.01) as scope:
        await gate.acquire_detached(tied=True)
    assert scope.cancelled_caught
    again.release()
    second.release()
    assert gate.statistics().in_flight == 0
    assert not gate._tied


async def test_a_loan_holds_the_slot_until_it_ends() -> None:
    gate, end = Gate(1), trio.Event()
    async with trio.open_nursery() as nursery:
        async with gate.slot() as slot:
            loan = slot.lend("a response")
            assert loan.slot is slot
            with pytest.raises(RuntimeError, match="a response is still open"):
                slot.lend("another")
            loan.release()
            with pytest.raises(RuntimeError, match="before"):
                loan.release()
            assert gate.statistics().in_flight == 1
            loan = slot.lend("a second response")
            nursery.start_soon(holder, gate, end)
            await wait_all_tasks_blocked()
        # The block has ended, the loan has not: the bound counts what runs.
        assert gate.owned_slot() is None
        await wait_all_tasks_blocked()
        assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (1, 1)
        with pytest.raises(RuntimeError, match="not held"):
            slot.lend("too late")
        with trio.testing.assert_no_checkpoints():
            loan.release()
        assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (1, 0)
        with pytest.raises(RuntimeError, match="before"):
            loan.release()
        end.set()
    assert gate.statistics().in_flight == 0
    assert not gate._tied


async def test_a_loan_that_outlives_its_block_is_tied_to_its_task() -> None:
    gate = Gate(1, outer_deadline="allow")
    async with gate.slot(hold_timeout=60) as slot:
        loan = slot.lend("a response")
        assert loan.deadline == slot.deadline
    with trio.fail_after(5), pytest.raises(RuntimeError, match="wait"):
        await gate.acquire_detached(tied=True)
    loan.release()
    async with gate.slot():
        pass


async def test_only_a_held_owned_slot_can_be_lent() -> None:
    gate = Gate(1)
    slot = gate.slot()
    with pytest.raises(RuntimeError, match="not held"):
        slot.lend("a response")
    detached = await gate.acquire_detached()
    with pytest.raises(RuntimeError, match="not held by a task"):
        detached.lend("a response")
    detached.release()


async def test_a_loan_is_not_ended_from_another_thread() -> None:
    gate = Gate(1)
    async with gate.slot() as slot:
        loan = slot.lend("a response")
        with pytest.raises(RuntimeError, match="outside its run"):
            await trio.to_thread.run_sync(loan.release)
        loan.release()
    assert gate.statistics().in_flight == 0


async def test_an_overdue_loan_is_reported_whether_its_block_has_ended_or_not(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(1)
    async with gate.slot():
        loan = gate.owned_slot()
        assert loan is not None
        first = loan.lend("the first", hold_timeout=5.0)
        await trio.sleep(7)
        assert caplog.text.count("overdue") == 1
        first.release()
        loan.lend("in time", hold_timeout=5.0).release()
        last = loan.lend("the last", hold_timeout=5.0)
    await trio.sleep(100)
    assert caplog.text.count("overdue") == 2
    last.release()
    assert gate.statistics().in_flight == 0
    await trio.sleep(1000)
    assert caplog.text.count("overdue") == 2
