"""Capacity from outside, one run after the other, statistics, and what stays in memory."""

from __future__ import annotations

import contextlib
import gc
import math
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import holder, in_a_task_of_its_own, run
from trio_mlxgate import DetachedSlot, Gate, GateStatistics, WaitTooLong
from trio_mlxgate.slots import Slot

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_the_capacity_is_not_set_from_another_thread() -> None:
    gate = Gate(1)

    def set_it(capacity: int) -> None:
        gate.capacity = capacity

    async with gate.slot():
        with pytest.raises(RuntimeError, match="outside its run"):
            await trio.to_thread.run_sync(set_it, 2)
        assert gate.capacity == 1
        await trio.to_thread.run_sync(trio.from_thread.run_sync, set_it, 2)
        assert gate.capacity == 2


def test_the_capacity_can_be_set_before_and_between_runs() -> None:
    gate = Gate(1)
    gate.capacity = 2

    async def main() -> None:
        assert gate.capacity == 2
        await gate.acquire_detached()
        await gate.acquire_detached(max_wait=0)

    run(main)
    gate.capacity = 2
    run(main)


GATE_OF_THIS_MODULE = Gate(2, name="at module level")


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_gate_made_at_module_level_serves_one_run_after_the_other(attempt: int) -> None:
    left: list[DetachedSlot] = []

    async def first() -> None:
        assert GATE_OF_THIS_MODULE.statistics() == Gate(2).statistics()
        async with GATE_OF_THIS_MODULE.slot():
            left.append(await acquired_by_a_child(GATE_OF_THIS_MODULE))
        await GATE_OF_THIS_MODULE.slot().__aenter__()  # and never left
        assert GATE_OF_THIS_MODULE.statistics().in_flight == 2

    async def second() -> None:
        assert GATE_OF_THIS_MODULE.statistics() == Gate(2).statistics()
        async with GATE_OF_THIS_MODULE.slot():
            left[0].release()  # of a run that is over: harmless
            assert GATE_OF_THIS_MODULE.statistics().in_flight == 1
            with pytest.raises(RuntimeError, match="not held"):
                left[0].release()
        assert GATE_OF_THIS_MODULE.statistics().in_flight == 0
        with GATE_OF_THIS_MODULE.slot_nowait():
            pass

    run(first)
    run(second)
    assert GATE_OF_THIS_MODULE.statistics().admitted == 2


async def acquired_by_a_child(gate: Gate) -> DetachedSlot:
    slots: list[DetachedSlot] = []

    async def take() -> None:
        slots.append(await gate.acquire_detached())

    await in_a_task_of_its_own(take)
    return slots[0]


def test_a_slot_that_was_left_over_can_be_given_back_when_no_run_is_alive() -> None:
    gate = Gate(1)

    async def take() -> DetachedSlot:
        return await gate.acquire_detached()

    slot: DetachedSlot = run(take)
    slot.release()
    assert gate.statistics().in_flight == 0


@pytest.mark.parametrize("kind", ["slot", "slot_nowait", "loan"])
def test_an_owned_slot_of_a_run_that_is_over_is_left_harmlessly_in_the_next(kind: str) -> None:
    gate = Gate(1)
    leave: list[Callable[[], Any]] = []

    async def first() -> None:
        if kind == "slot":
            slot = gate.slot()
            await slot.__aenter__()
            leave.append(lambda: slot.__aexit__(None, None, None).send(None))
        elif kind == "slot_nowait":
            plain = gate.slot_nowait()
            plain.__enter__()
            leave.append(lambda: plain.__exit__(None, None, None))
        else:
            async with gate.slot() as lender:
                loan = lender.lend("a response")
            leave.append(loan.release)
        await trio.lowlevel.checkpoint()

    async def second() -> None:
        async with gate.slot():
            with contextlib.suppress(StopIteration):  # what a coroutine ends with that never waited
                leave[0]()
            assert gate.statistics().in_flight == 1
        assert gate.statistics().in_flight == 0

    run(first)
    run(second)


def test_a_gate_that_no_run_uses_has_statistics() -> None:
    gate = Gate(3, name="macmini")
    assert gate.statistics() == GateStatistics(
        capacity=3,
        in_flight=0,
        tasks_waiting=0,
        waiting_by_priority={},
        longest_wait=0.0,
        admitted=0,
        cancelled=0,
        rejected=0,
        rejected_by_reason={},
    )
    assert repr(gate) == "<Gate 'macmini': 0/3 in flight, 0 waiting>"


async def test_statistics_in_each_state(autojump_clock: MockClock) -> None:
    gate, end, cancelled = Gate(1), trio.Event(), trio.CancelScope()

    async def wait(priority: int, scope: trio.CancelScope) -> None:
        with scope:
            await holder(gate, end, priority)

    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(wait, 100, trio.CancelScope())
        await trio.sleep(2)
        nursery.start_soon(wait, -5, cancelled)
        nursery.start_soon(wait, 100, trio.CancelScope())
        await trio.sleep(1)
        seen = gate.statistics()
        assert (seen.capacity, seen.in_flight, seen.tasks_waiting, seen.longest_wait) == (1, 1, 3, 3)
        assert list(seen.waiting_by_priority.items()) == [(-5, 1), (100, 2)]
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            seen.in_flight = 0  # type: ignore[misc]
        with pytest.raises(TypeError):
            seen.waiting_by_priority[0] = 1  # type: ignore[index]
        with pytest.raises(trio.WouldBlock), gate.slot_nowait():
            pass
        with pytest.raises(WaitTooLong):
            async with gate.slot(max_wait=0):
                pass
        with pytest.raises(WaitTooLong):
            async with gate.slot(max_wait=1):
                pass
        cancelled.cancel()
        assert gate.statistics() == attrs.evolve(
            seen,
            tasks_waiting=2,
            waiting_by_priority={100: 2},
            longest_wait=4,
            cancelled=1,
            rejected=3,
            rejected_by_reason={"would_block": 1, "wait_too_long": 2},
        )
        gate.capacity = 0
        assert gate.statistics().in_flight == 1
        assert repr(gate) == "<Gate 'mlx': 1/0 in flight, 2 waiting>"
        gate.capacity = 2
        assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (2, 1)
        end.set()
    final = gate.statistics()
    assert (final.admitted, final.cancelled, final.rejected, final.longest_wait) == (3, 1, 3, 0)


def living_slots() -> int:
    gc.collect()
    return sum(isinstance(thing, Slot) for thing in gc.get_objects())


async def test_arrivals_that_cancel_leave_no_object_behind() -> None:
    before = living_slots()
    gate, end = Gate(1), trio.Event()

    async def impatient(number: int) -> None:
        async with gate.slot(number % 5, max_wait=1000 if number % 2 else math.inf):
            raise AssertionError

    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        for _ in range(5):
            async with trio.open_nursery() as crowd:
                for number in range(2000):
                    crowd.start_soon(impatient, number)
                await wait_all_tasks_blocked()
                crowd.cancel_scope.cancel()
        assert gate.statistics().cancelled == 10_000
        assert living_slots() == before + 1  # the holder's
        assert gate._admission.next_alarm() == math.inf
        assert len(gate._owners) == 1
        end.set()
