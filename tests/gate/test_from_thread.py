"""The gate asked from inside of worker threads."""

from __future__ import annotations

import functools
import gc
import signal
import threading
import time
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.gate.helpers import Recorder, until
from trio_mlxgate import Gate, Priority, WaitTooLong
from trio_mlxgate.instrumentation import Granted

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 30
"""Seconds of real time after which a test is taken to hang: threads know no virtual clock."""


async def in_thread(work: Callable[[], Any], **kwargs: Any) -> Any:
    with trio.fail_after(LIMIT):
        return await trio.to_thread.run_sync(work, **kwargs)


def waiting(gate: Gate, count: int) -> bool:
    return gate.statistics().tasks_waiting >= count


@pytest.fixture(params=[False, True], ids=["kept", "may be abandoned"])
def abandon(request: pytest.FixtureRequest) -> bool:
    """Whether the threads may be abandoned: trio then runs what they ask for in another way."""
    return bool(request.param)


def gate_of(capacity: int = 1, **options: Any) -> Gate:
    return Gate(capacity, outer_deadline="allow", **options)


async def test_a_thread_holds_a_slot_for_its_block(abandon: bool) -> None:
    gate = gate_of()

    def work() -> None:
        with gate.from_thread(Priority.FOREGROUND) as slot:
            assert slot.waited >= 0
            assert "held" in repr(slot)
            assert trio.from_thread.run_sync(gate.statistics).in_flight == 1
        assert trio.from_thread.run_sync(gate.statistics).in_flight == 0
        with pytest.raises(ValueError, match="the body's"), gate.from_thread():
            raise ValueError("the body's")
        assert trio.from_thread.run_sync(gate.statistics).in_flight == 0
        with pytest.raises(RuntimeError, match="only once"), slot:
            pass

    await in_thread(work, abandon_on_cancel=abandon)
    seen = gate.statistics()
    assert (seen.in_flight, seen.admitted) == (0, 2)
    assert not gate._threads
    assert not gate._tied


async def test_who_waits_gets_the_slot_of_a_thread_and_the_other_way_round(abandon: bool) -> None:
    gate, order = gate_of(), []

    def work(name: str, priority: int) -> None:
        with gate.from_thread(priority):
            order.append(name)

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery, gate.slot():
            for count, (name, priority) in enumerate((("digest", 100), ("question", 0)), 1):
                start = functools.partial(trio.to_thread.run_sync, abandon_on_cancel=abandon)
                nursery.start_soon(start, work, name, priority)
                await until(functools.partial(waiting, gate, count))
            order.append("task")
    assert order == ["task", "question", "digest"]


async def test_a_cancelled_task_takes_its_thread_out_of_the_queue() -> None:
    gate, seen = gate_of(), []

    def work() -> None:
        try:
            with gate.from_thread():
                seen.append("inside")
        except trio.Cancelled:
            seen.append("cancelled")
            raise

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery, gate.slot():
            nursery.start_soon(trio.to_thread.run_sync, work)
            await until(lambda: gate.statistics().tasks_waiting)
            nursery.cancel_scope.cancel()
    assert seen == ["cancelled"]
    assert (gate.statistics().in_flight, gate.statistics().cancelled) == (0, 1)


async def test_a_thread_whose_task_is_cancelled_already_does_not_enter(abandon: bool) -> None:
    gate, go_on, seen, ended = gate_of(), threading.Event(), [], threading.Event()

    def work() -> None:
        try:
            go_on.wait(LIMIT)
            with gate.from_thread():
                seen.append("inside")
        except trio.Cancelled:
            seen.append("cancelled")
            raise
        finally:
            ended.set()

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: trio.to_thread.run_sync(work, abandon_on_cancel=abandon))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            go_on.set()
        await until(ended.is_set)
    assert seen == ["cancelled"]
    assert gate.statistics().in_flight == 0


async def test_the_gates_refusals_come_through(abandon: bool) -> None:
    gate = gate_of()

    def work() -> None:
        with pytest.raises(WaitTooLong), gate.from_thread(max_wait=0.01):
            pass
        trio.from_thread.run(gate.aclose)
        with pytest.raises(trio.ClosedResourceError), gate.from_thread():
            pass

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            end = trio.Event()

            async def hold() -> None:
                async with gate.slot():
                    await end.wait()

            nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            await in_thread(work, abandon_on_cancel=abandon)
            end.set()


async def test_a_thread_does_not_wait_for_itself(abandon: bool) -> None:
    gate = gate_of(5)

    def twice() -> None:
        with gate.from_thread():
            with (
                pytest.raises(RuntimeError, match="this thread holds a slot of gate 'mlx' already"),
                gate.from_thread(),
            ):
                pass
            assert trio.from_thread.run_sync(gate.statistics).in_flight == 1

    await in_thread(twice, abandon_on_cancel=abandon)


async def test_a_thread_does_not_wait_for_the_slot_of_its_task(abandon: bool) -> None:
    gate = gate_of(5)

    def work() -> None:
        with pytest.raises(RuntimeError, match="the task that started this thread owns a slot"), gate.from_thread():
            pass

    async with gate.slot():
        await in_thread(work, abandon_on_cancel=abandon)
    assert gate.statistics().in_flight == 0


async def test_a_thread_under_the_limiter_does_not_wait_for_the_slot_that_it_runs_in(abandon: bool) -> None:
    gate = gate_of(1)

    def refused() -> None:
        with pytest.raises(RuntimeError, match="under limiter= of gate 'mlx'"), gate.from_thread():
            pass

    for capacity in (1, 2):
        gate.capacity = capacity
        await in_thread(refused, limiter=gate.limiter(), abandon_on_cancel=abandon)
    assert gate.statistics().in_flight == 0


async def test_a_coroutine_that_a_thread_runs_does_not_wait_for_the_thread(abandon: bool) -> None:
    gate = gate_of(1)

    async def ask() -> None:
        async with gate.slot():
            pass

    async def start(nursery: trio.Nursery) -> None:  # noqa: ASYNC124, ASYNC910 - a thread runs it
        nursery.start_soon(ask)

    def work(nursery: trio.Nursery) -> None:
        with gate.from_thread():
            for wait in (ask, gate.drain, gate.wait_idle):
                with pytest.raises(RuntimeError, match="itself"):
                    trio.from_thread.run(wait)
            # A task that is only started there may wait: the thread doesn't wait for it.
            trio.from_thread.run(start, nursery)
            trio.from_thread.run(until, lambda: gate.statistics().tasks_waiting)
        trio.from_thread.run(ask)

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await trio.to_thread.run_sync(work, nursery, abandon_on_cancel=abandon)
    assert gate.statistics().admitted == 3


async def test_what_a_foreign_thread_runs_does_not_wait_for_it_either() -> None:
    gate, token, seen = gate_of(1), trio.lowlevel.current_trio_token(), []

    async def ask() -> None:
        async with gate.slot():
            pass

    def work() -> None:
        with gate.from_thread(trio_token=token):
            try:
                trio.from_thread.run(ask, trio_token=token)
            except RuntimeError as error:
                seen.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    await in_thread(thread.join)
    assert len(seen) == 1
    assert "wait for itself" in seen[0]


@pytest.mark.parametrize("under_limiter", [False, True])
async def test_the_next_thread_waits_for_one_that_was_abandoned(abandon: bool, under_limiter: bool) -> None:
    """Timed out, and tried again: the first thread still works, and gives its slot back by itself."""
    gate, go_on, order = gate_of(1), threading.Event(), []
    started = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def first() -> None:
        with nullcontext() if under_limiter else gate.from_thread():
            token.run_sync_soon(started.set)
            go_on.wait(LIMIT)
            order.append("first")

    def second() -> None:
        with gate.from_thread():
            order.append("second")
        trio.from_thread.run(ask)

    async def ask() -> None:
        async with gate.slot():
            order.append("third")

    async def abandoned(scope: trio.CancelScope) -> None:
        limiter = gate.limiter() if under_limiter else None
        with scope:
            await trio.to_thread.run_sync(first, limiter=limiter, abandon_on_cancel=True)
        await trio.to_thread.run_sync(second, abandon_on_cancel=abandon)

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(abandoned, scope)
            await started.wait()
            scope.cancel()
            await until(lambda: gate.statistics().tasks_waiting)
            go_on.set()
    assert order == ["first", "second", "third"]


async def test_a_thread_that_ends_with_a_slot_gives_it_back_with_a_warning() -> None:
    gate = gate_of(1)

    def forgetful() -> None:
        gate.from_thread().__enter__()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await in_thread(forgetful)
        gc.collect()
    assert [str(one.message) for one in caught] == [
        "a thread has not given its slot of gate 'mlx' back: enter it with 'with'"
    ]
    await wait_all_tasks_blocked()
    assert gate.statistics().in_flight == 0
    assert not gate._threads


async def test_how_long_it_waited_is_known_afterwards() -> None:
    gate, slots = gate_of(1), []

    def work() -> None:
        with gate.from_thread() as slot:
            slots.append(slot)

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery, gate.slot():
            nursery.start_soon(trio.to_thread.run_sync, work)
            await until(lambda: gate.statistics().tasks_waiting)
            await trio.sleep(0.01)
    assert slots[0].waited >= 0.01


async def test_trios_own_thread_is_told_what_to_do() -> None:  # noqa: ASYNC124 - it is to run in trio
    with pytest.raises(RuntimeError, match=r"in a task use 'async with gate\.slot"), gate_of().from_thread():
        pass


async def test_it_is_no_asynchronous_context_manager() -> None:
    slot: Any = gate_of().from_thread()
    with pytest.raises(TypeError, match="with a plain 'with'"):
        async with slot:
            pass


def test_arguments_are_checked_at_once() -> None:
    every: tuple[dict[str, Any], ...] = (
        {"priority": 1.5},
        {"max_wait": -1},
        {"outer_deadline": "maybe"},
        {"supersede": []},
        {"trio_token": 1},
    )
    for arguments in every:
        with pytest.raises((TypeError, ValueError)):
            gate_of().from_thread(**arguments)


# ---- threads that trio has not started ----


def test_a_thread_of_ones_own_asks_the_run_that_uses_the_gate() -> None:
    gate, seen = gate_of(), []

    def work() -> None:
        with gate.from_thread() as slot:
            seen.append(slot.waited)

    with (
        pytest.raises(RuntimeError, match="not started by trio, and no trio run uses gate 'mlx' yet"),
        gate.from_thread(),
    ):
        pass

    async def main() -> None:
        with trio.fail_after(LIMIT):
            async with gate.slot():
                thread = threading.Thread(target=work)
                thread.start()
                await until(lambda: gate.statistics().tasks_waiting)
            await trio.to_thread.run_sync(thread.join)
        assert len(seen) == 1
        assert gate.statistics().in_flight == 0

    trio.run(main)
    with pytest.raises(trio.RunFinishedError), gate.from_thread():
        pass


def test_a_thread_of_ones_own_may_name_the_run() -> None:
    gate, seen = gate_of(), []

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()

        def work() -> None:
            with gate.from_thread(trio_token=token):
                seen.append(1)

        thread = threading.Thread(target=work)
        thread.start()
        with trio.fail_after(LIMIT):
            await trio.to_thread.run_sync(thread.join)

    trio.run(main)
    assert seen == [1]


def test_the_end_of_the_run_is_told_to_who_waits_and_nothing_to_who_holds() -> None:
    gate, seen = gate_of(), []
    holds, waits, over = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with gate.from_thread():
            holds.set()
            over.wait(LIMIT)
        seen.append("held")

    def wait() -> None:
        try:
            waits.set()
            with gate.from_thread():
                pass
        except trio.RunFinishedError:
            seen.append("run finished")

    async def main() -> None:
        async with gate.slot():
            pass
        threads[0].start()
        await trio.to_thread.run_sync(holds.wait, LIMIT)
        threads[1].start()
        with trio.fail_after(LIMIT):
            await until(lambda: gate.statistics().tasks_waiting)

    threads = [threading.Thread(target=work) for work in (hold, wait)]
    trio.run(main)
    over.set()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(seen) == ["held", "run finished"]
    # And the gate is free for another run.
    trio.run(use, gate)


async def use(gate: Gate) -> None:
    assert gate.statistics().in_flight == 0
    async with gate.slot():
        pass


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
def test_control_c_in_a_foreign_main_thread_loses_no_slot() -> None:
    """trio runs in a thread; the main thread waits for a slot, and is interrupted before and after the grant."""
    gate, started, stop, done = gate_of(), threading.Event(), threading.Event(), threading.Event()

    async def main() -> None:
        async with gate.slot():
            started.set()
            await until(stop.is_set)
            with trio.fail_after(LIMIT):
                # It leaves the queue at once, and not when its turn comes.
                await until(lambda: gate.statistics().cancelled)
        with trio.fail_after(LIMIT):
            await gate.wait_idle()
            await until(lambda: not gate._threads)
        done.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    started.wait(LIMIT)

    def interrupt() -> None:
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt), gate.from_thread():
        raise AssertionError("the slot is held by the task")
    interrupter.join()
    stop.set()
    thread.join(LIMIT)
    assert done.is_set()


async def test_200_threads_and_200_tasks_on_one_gate() -> None:
    """The bound holds, and the order: who came first of a class goes first, and the better class before the worse."""
    capacity = 3
    grants = Recorder(Granted)
    gate = gate_of(capacity, hooks=[grants])
    lock = threading.Lock()
    inside = most = 0

    def come_in() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)

    def go_out() -> None:
        nonlocal inside
        with lock:
            inside -= 1

    def thread(priority: int) -> None:
        with gate.from_thread(priority):
            come_in()
            time.sleep(0.0005)
            go_out()

    async def task(priority: int) -> None:
        async with gate.slot(priority):
            come_in()
            await trio.sleep(0.0005)
            go_out()

    start = functools.partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(200))
    with trio.fail_after(4 * LIMIT):
        async with trio.open_nursery() as nursery:
            # All wait at first, so that their order is known: each asks when the one before it has.
            gate.capacity = 0
            for number in range(400):
                priority = (0, 100)[number // 2 % 2]
                if number % 2:
                    nursery.start_soon(task, priority)
                else:
                    nursery.start_soon(start, thread, priority)
                await until(functools.partial(waiting, gate, number + 1))
            gate.capacity = capacity
    assert most == capacity
    assert (gate.statistics().in_flight, gate.statistics().admitted) == (0, 400)
    granted = [(details.priority, details.seq) for details in grants.details]
    assert granted == sorted(granted)
    assert len(granted) == 400
