"""A task that waits for the slot of a task above it: told once for each place in the code, and let wait."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.gate.helpers import FOREGROUND, Recorder, in_a_task_of_its_own
from trio_mlxgate import Gate, WaitTooLong
from trio_mlxgate.instrumentation import WaitsForParent

if TYPE_CHECKING:
    from trio.testing import MockClock


async def ask(gate: Gate) -> None:
    async with gate.slot(max_wait=5):  # the place that is told
        pass


async def test_a_child_waits_and_is_let_in_when_its_parent_lets_go(autojump_clock: MockClock) -> None:
    hook = Recorder(WaitsForParent)
    gate = Gate(1, hooks=[hook])
    async with trio.open_nursery() as nursery, gate.slot():
        for _ in range(3):
            nursery.start_soon(ask, gate)
            await trio.sleep(1)
    (told,) = hook.details
    assert told.site.startswith(__file__)
    assert told.site.endswith(f":{ask.__code__.co_firstlineno + 1}")
    assert told.parent == trio.lowlevel.current_task().name
    assert (told.queued, told.in_flight, told.queue_length) == (True, 1, 1)
    assert gate.statistics().admitted == 4


async def test_it_is_a_warning_in_the_log(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(1)
    async with trio.open_nursery() as nursery, gate.slot():
        nursery.start_soon(ask, gate)
        await wait_all_tasks_blocked()
    (record,) = (record for record in caplog.records if record.levelno > logging.INFO)
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("waits_for_parent gate=mlx priority=100 seq=2 parent=")


async def test_each_place_is_told_and_grandchildren_too(autojump_clock: MockClock) -> None:
    hook = Recorder(WaitsForParent)
    gate = Gate(1, hooks=[hook])

    async def child() -> None:
        with pytest.raises(WaitTooLong):
            async with gate.slot(max_wait=5):
                pass
        await in_a_task_of_its_own(grandchild)

    async def grandchild() -> None:
        with pytest.raises(WaitTooLong):
            await gate.acquire_detached(max_wait=5)

    async with gate.slot():
        await in_a_task_of_its_own(child)
    assert len({told.site for told in hook.details}) == len(hook.details) == 2


async def test_who_could_have_another_slot_is_not_told_of(autojump_clock: MockClock) -> None:
    hook = Recorder(WaitsForParent)
    gate = Gate(2, hooks=[hook])

    async def stranger() -> None:
        async with gate.slot():
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger)
        await wait_all_tasks_blocked()
        async with gate.slot():
            await in_a_task_of_its_own(functools.partial(ask, gate))
    # One that waits for a stranger's slot, at capacity 1.
    gate.capacity = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, gate)
    assert not hook.details


async def test_what_is_reserved_from_it_counts(autojump_clock: MockClock) -> None:
    """A digest whose parent holds the only slot that digests may have waits for it although one is free."""
    hook = Recorder(WaitsForParent)
    gate = Gate(2, reserved={FOREGROUND: 1}, hooks=[hook])
    async with trio.open_nursery() as nursery, gate.slot():
        nursery.start_soon(ask, gate)
        await wait_all_tasks_blocked()
    assert len(hook.details) == 1


async def test_who_was_not_looked_at_is_told_of_when_it_starves(autojump_clock: MockClock) -> None:
    """Of a long queue only some are looked at as they come: but one that hangs must come to light."""
    hook = Recorder(WaitsForParent)
    gate = Gate(1, hooks=[hook], starvation_warning=50)

    async def stranger(seconds: float) -> None:
        with contextlib.suppress(WaitTooLong):
            async with gate.slot(max_wait=30):
                await trio.sleep(seconds)

    async def child() -> None:
        async with gate.slot():  # the line that is told
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger, 1)
        await wait_all_tasks_blocked()
        for _ in range(200):
            nursery.start_soon(stranger, 1)
        await wait_all_tasks_blocked()
        async with gate.slot(FOREGROUND):
            for _ in range(5):
                nursery.start_soon(child)
                await wait_all_tasks_blocked()
            await trio.sleep(49)
            assert not hook.details  # none of them was looked at
            await trio.sleep(2)
            assert {told.site for told in hook.details} == {f"{__file__}:{child.__code__.co_firstlineno + 1}"}
            assert {told.waited for told in hook.details} == {50}


async def test_a_parents_open_response_counts(autojump_clock: MockClock) -> None:
    """What a response holds is a detached slot, tied to the task that reads it."""
    hook = Recorder(WaitsForParent)
    gate = Gate(1, hooks=[hook])
    slot = await gate.acquire_detached(tied=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, gate)
        await trio.sleep(1)
        slot.release()
    assert len(hook.details) == 1


async def test_a_thread_is_told_by_its_own_line() -> None:
    hook = Recorder(WaitsForParent)
    gate = Gate(1, hooks=[hook])

    def one() -> None:
        with contextlib.suppress(WaitTooLong), gate.from_thread(max_wait=0.01):
            pass

    def other() -> None:
        with contextlib.suppress(WaitTooLong), gate.from_thread(max_wait=0.01):
            pass

    async with gate.slot():
        for work in (one, one, other):
            await in_a_task_of_its_own(functools.partial(trio.to_thread.run_sync, work))
    lines = [work.__code__.co_firstlineno + 1 for work in (one, other)]
    assert [told.site for told in hook.details] == [f"{__file__}:{line}" for line in lines]
