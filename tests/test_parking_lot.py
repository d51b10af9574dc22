"""The parking lot: trio's own, with priorities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.lowlevel import Task, current_task
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_mlxgate import PriorityParkingLot, PriorityParkingLotStatistics


async def parked(nursery: trio.Nursery, lot: PriorityParkingLot, log: list[Any], *priorities: int) -> list[Task]:
    """Park one task for each priority, in this order; each writes (its number, its priority) when it is woken."""
    tasks: list[Task] = []

    async def park(number: int, priority: int) -> None:
        tasks.append(current_task())
        await lot.park(priority)
        log.append((number, priority))

    for number, priority in enumerate(priorities):
        nursery.start_soon(park, number, priority)
        await wait_all_tasks_blocked()
    await trio.lowlevel.checkpoint()
    return tasks


async def test_the_best_priority_is_unparked_first_and_equals_in_order() -> None:
    lot = PriorityParkingLot()
    log: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        tasks = await parked(nursery, lot, log, 100, 0, 100, -7, 0)
        assert len(lot) == 5
        for expected in (3, 1, 4, 0, 2):
            assert lot.unpark() == [tasks[expected]]
            await wait_all_tasks_blocked()
    assert [number for number, _ in log] == [3, 1, 4, 0, 2]
    assert len(lot) == 0
    assert not lot
    assert lot.unpark() == []


async def test_unpark_some_and_all() -> None:
    lot = PriorityParkingLot()
    log: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        tasks = await parked(nursery, lot, log, 100, 0, 100, 0)
        assert lot.unpark(count=0) == []
        assert lot.unpark(count=3) == [tasks[1], tasks[3], tasks[0]]
        # In the same step: the giver records who was woken.
        assert lot.statistics() == PriorityParkingLotStatistics(1, {100: 1})
        assert lot.unpark(count=5) == [tasks[2]]
        await parked(nursery, lot, log, 1, 2)
        assert len(lot.unpark(count=math.inf)) == 2
        more = await parked(nursery, lot, log, 2, 1)
        assert lot.unpark_all() == [more[1], more[0]]
    assert len(log) == 8


@pytest.mark.parametrize("count", [1.0, 0.5, -math.inf, math.nan])
def test_a_count_is_an_int_or_inf(count: float) -> None:
    with pytest.raises(ValueError, match="count"):
        PriorityParkingLot().unpark(count=count)


@pytest.mark.parametrize("priority", [True, 1.5, None, "0", 10**7])
async def test_what_is_no_priority_is_told_before_anything_happens(priority: Any) -> None:
    lot = PriorityParkingLot()
    with pytest.raises((TypeError, ValueError), match="priority"):
        await lot.park(priority)
    assert len(lot) == 0


async def test_parking_without_a_priority_is_in_the_background() -> None:
    lot = PriorityParkingLot()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lot.park)
        await wait_all_tasks_blocked()
        assert lot.statistics().waiting_by_priority == {100: 1}
        lot.unpark()


async def test_parking_is_a_checkpoint() -> None:
    lot = PriorityParkingLot()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wake() -> None:
            await wait_all_tasks_blocked()
            lot.unpark()

        with assert_checkpoints():
            await lot.park(0)


async def test_a_cancelled_task_leaves_in_the_same_step(autojump_clock: MockClock) -> None:
    lot = PriorityParkingLot()
    log: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            await parked(leaving, lot, log, 0, 0, 50)
            await parked(nursery, lot, log, 0, 50)
            assert lot.statistics() == PriorityParkingLotStatistics(5, {0: 3, 50: 2})
            leaving.cancel_scope.cancel()
            assert lot.statistics() == PriorityParkingLotStatistics(2, {0: 1, 50: 1})
        assert len(lot.unpark_all()) == 2
    assert sorted(log) == [(0, 0), (1, 50)]
    with trio.move_on_after(3) as scope:
        await lot.park(0)
    assert scope.cancelled_caught
    assert len(lot) == 0


async def test_cancelled_after_it_was_unparked_it_was_woken() -> None:
    lot = PriorityParkingLot()
    woken = False
    scope = trio.CancelScope()

    async def park() -> None:
        nonlocal woken
        with scope:
            await lot.park(0)
            woken = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(park)
        await wait_all_tasks_blocked()
        assert len(lot.unpark()) == 1
        scope.cancel()
    assert woken


async def test_a_broken_lot_wakes_all_and_takes_nobody() -> None:
    lot = PriorityParkingLot()
    errors: list[trio.BrokenResourceError] = []

    async def park(priority: int) -> None:
        with pytest.raises(trio.BrokenResourceError, match="broken by") as caught:
            await lot.park(priority)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for priority in (0, 100, 100):
            nursery.start_soon(park, priority)
        await wait_all_tasks_blocked()
        assert "broken" not in repr(lot)
        lot.break_lot()
        assert len(lot) == 0
        assert not lot
    assert len({id(error) for error in errors}) == 3  # each task an error of its own
    assert lot.broken_by == [current_task()]
    assert "broken" in repr(lot)
    with pytest.raises(trio.BrokenResourceError):
        await lot.park(0)
    assert lot.unpark() == []
    lot.break_lot(nursery.parent_task)
    assert lot.broken_by == [current_task()] * 2


async def test_10000_that_are_cancelled_leave_nothing_behind() -> None:
    lot = PriorityParkingLot()
    async with trio.open_nursery() as nursery:
        for number in range(10_000):
            nursery.start_soon(lot.park, number % 11)
        await wait_all_tasks_blocked()
        assert len(lot) == 10_000
        nursery.cancel_scope.cancel()
    assert lot.statistics() == PriorityParkingLotStatistics(0, {})
    assert not lot._places
    assert not lot._line._classes
