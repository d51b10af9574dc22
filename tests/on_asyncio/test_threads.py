"""Worker threads of anyio's and of asyncio's, under asyncio: the limiter, and asking from inside a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from trio_mlxgate.anyio import Gate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LONGEST = 20.0


def limited(main: Callable[[], Awaitable[None]], **options: Any) -> None:
    """Run it on asyncio; a hang is an error."""

    async def watched() -> None:
        async with asyncio.timeout(LONGEST):
            await main()

    with asyncio.Runner(**options) as runner:
        runner.run(watched())


class Work:
    """What a thread does until it is told to end; counts how many do so at a time."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.end.wait(LONGEST)
        with self._lock:
            self.inside -= 1


async def until(condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + 5
        await asyncio.sleep(0.005)


def test_a_thread_runs_in_a_slot() -> None:
    async def main() -> None:
        gate = Gate(2)
        work = Work()
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(lambda: anyio.to_thread.run_sync(work, limiter=gate.limiter()))
            await until(lambda: work.inside == 2)
            await until(lambda: gate.statistics().tasks_waiting == 3)
            assert gate.statistics().in_flight == 2
            work.end.set()
        assert work.most == 2
        assert gate.statistics().in_flight == 0

    limited(main)


@pytest.mark.parametrize("how", ["anyio's scope", "Task.cancel", "Task.cancel, not to be abandoned"])
def test_an_abandoned_thread_keeps_its_slot_until_it_ends(how: str) -> None:
    """anyio leaves the limiter when the task is cancelled, while the thread works on. Also where somebody keeps the
    cancelled task, and so the traceback of its cancellation with the frames of anyio in it."""

    async def main() -> None:
        gate = Gate(1)
        limiter = gate.limiter()
        work = Work()
        scope = anyio.CancelScope()

        async def ask() -> None:
            with scope:
                abandon = "not" not in how
                await anyio.to_thread.run_sync(work, abandon_on_cancel=abandon, limiter=limiter)

        task = asyncio.create_task(ask())
        await until(lambda: work.inside == 1)
        if how == "anyio's scope":
            scope.cancel()
        else:
            task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.01)
        assert gate.statistics().in_flight == 1
        assert limiter.statistics().borrowers == ()
        # Whoever had it may ask again, and waits like anybody.
        another = asyncio.create_task(anyio.to_thread.run_sync(lambda: None, limiter=limiter))
        await until(lambda: gate.statistics().tasks_waiting == 1)
        work.end.set()
        await another
        await until(lambda: gate.statistics().in_flight == 0)
        assert task.done()

    gc.disable()  # it doesn't depend on the collector
    try:
        limited(main)
    finally:
        gc.enable()


def test_the_task_whose_thread_is_abandoned_may_ask_again() -> None:
    async def main() -> None:
        gate = Gate(1)
        work = Work()

        async def ask() -> None:
            with anyio.move_on_after(0.05):
                await anyio.to_thread.run_sync(
                    work, abandon_on_cancel=True, limiter=gate.limiter(outer_deadline="allow")
                )
            asyncio.get_running_loop().call_later(0.05, work.end.set)
            async with gate.slot():
                assert work.inside == 0

        await ask()

    limited(main)


def test_a_limiter_that_is_no_threads_is_left_at_once_when_cancelled() -> None:
    async def main() -> None:
        gate = Gate(1)

        async def ask() -> None:
            async with gate.limiter():
                await asyncio.sleep(LONGEST)

        task = asyncio.create_task(ask())
        await until(lambda: gate.statistics().in_flight == 1)
        child = asyncio.create_task(asyncio.sleep(0.05))  # has a copy of some context
        task.cancel()
        await asyncio.wait([task])
        assert gate.statistics().in_flight == 0
        await child

    limited(main)


@pytest.mark.parametrize("start", [anyio.to_thread.run_sync, asyncio.to_thread])
def test_threads_ask_for_themselves_and_go_by_priority(start: Callable[..., Awaitable[Any]]) -> None:
    async def main() -> None:
        gate = Gate(0)
        order: list[int] = []
        inside: list[int] = []

        def work(priority: int) -> None:
            with gate.from_thread(priority):
                inside.append(gate._admission.in_flight)
                order.append(priority)

        async with anyio.create_task_group() as group:
            for number, priority in enumerate((100, 50, 0)):
                group.start_soon(lambda priority=priority: start(work, priority))  # type: ignore[misc, arg-type]
                await until(lambda number=number: gate.statistics().tasks_waiting == number + 1)  # type: ignore[misc]
            gate.capacity = 1
        assert order == [0, 50, 100]
        assert inside == [1, 1, 1]
        await until(lambda: gate.statistics().in_flight == 0)

    limited(main)


def test_a_thread_leaves_the_queue_when_its_task_is_cancelled() -> None:
    async def main() -> None:
        gate = Gate(1)
        seen: list[BaseException] = []

        def work() -> None:
            try:
                with gate.from_thread():
                    pytest.fail("it was let in")
            except BaseException as error:
                seen.append(error)
                raise

        async with gate.slot():
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.to_thread.run_sync, work)
                    await until(lambda: gate.statistics().tasks_waiting == 1)
                    scope.cancel()
            assert gate.statistics().tasks_waiting == 0
        (error,) = seen
        assert isinstance(error, concurrent.futures.CancelledError | asyncio.CancelledError)
        assert gate.statistics().in_flight == 0

    limited(main)


def test_a_task_that_owns_a_slot_is_refused_by_way_of_its_thread() -> None:
    """Law 17, also where the thread runs in the loop what asks."""

    async def main() -> None:
        gate = Gate(1)

        def ask_here() -> None:
            with pytest.raises(RuntimeError, match="owns a slot"), gate.from_thread():
                pytest.fail("it was let in")

        async def ask() -> None:
            with pytest.raises(RuntimeError, match="owns a slot"):
                async with gate.slot():
                    pytest.fail("it was let in")

        async with gate.slot():
            await anyio.to_thread.run_sync(ask_here)
            await anyio.to_thread.run_sync(anyio.from_thread.run, ask)

    limited(main)


def test_a_thread_under_the_limiter_is_refused() -> None:
    async def main() -> None:
        gate = Gate(1)

        def ask_here() -> None:
            with pytest.raises(RuntimeError, match="would wait for itself"), gate.from_thread():
                pytest.fail("it was let in")

        async def ask() -> None:
            with pytest.raises(RuntimeError, match="would wait for itself"):
                async with gate.slot():
                    pytest.fail("it was let in")

        await anyio.to_thread.run_sync(ask_here, limiter=gate.limiter())
        await anyio.to_thread.run_sync(anyio.from_thread.run, ask, limiter=gate.limiter())
        assert gate.statistics().in_flight == 0

    limited(main)


def test_the_child_of_a_holder_is_not_taken_for_it_because_of_its_thread() -> None:
    """anyio's thread of a task without scopes of its own carries the scope of the task group, which is the parent's."""

    async def main() -> None:
        gate = Gate(2)

        async def ask() -> None:
            async with gate.slot():
                assert gate.statistics().in_flight == 2

        async def child() -> None:
            await anyio.to_thread.run_sync(anyio.from_thread.run, ask)

        async with gate.slot(), anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(asyncio.sleep, 0)
        assert gate.statistics().in_flight == 0

    limited(main)


def test_a_thread_that_holds_a_slot_may_not_ask_for_another() -> None:
    async def main() -> None:
        gate = Gate(1)

        async def ask() -> None:
            with pytest.raises(RuntimeError, match="wait"):
                async with gate.slot():
                    pytest.fail("it was let in")

        def work() -> None:
            with gate.from_thread():
                with pytest.raises(RuntimeError, match="holds a slot"), gate.from_thread():
                    pytest.fail("it was let in")
                anyio.from_thread.run(ask)

        await anyio.to_thread.run_sync(work)
        await until(lambda: gate.statistics().in_flight == 0)

    limited(main)


def test_a_thread_whose_loop_ends_while_it_waits_is_told() -> None:
    gate = Gate(1)
    seen: list[BaseException] = []
    threads: list[threading.Thread] = []

    def work() -> None:
        try:
            with gate.from_thread():
                pytest.fail("it was let in")
        except BaseException as error:  # noqa: BLE001, ASYNC103
            seen.append(error)

    # The loop ends while the slot is held, by a task that asyncio.run() cancels.
    async def hold_and_end() -> None:
        holding = asyncio.create_task(_hold(gate))
        await until(lambda: gate.statistics().in_flight == 1)
        threads.append(threading.Thread(target=work))
        threads[0].start()
        await until(lambda: gate.statistics().tasks_waiting == 1)
        assert not holding.done()

    limited(hold_and_end)
    threads[0].join(LONGEST)
    assert not threads[0].is_alive()
    (error,) = seen
    assert isinstance(error, getattr(anyio, "RunFinishedError", RuntimeError))


async def _hold(gate: Gate) -> None:
    async with gate.slot():
        await asyncio.sleep(LONGEST)


def test_from_a_task_it_says_how_it_is_done() -> None:
    async def main() -> None:
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"async with gate\.slot"), Gate(1).from_thread():
            pytest.fail("it was let in")

    limited(main)
    with pytest.raises(RuntimeError, match="loop="), Gate(1).from_thread():
        pytest.fail("it was let in")
    with pytest.raises(TypeError, match="loop must be"):
        Gate(1).from_thread(loop="asyncio")  # type: ignore[arg-type]


def test_what_a_thread_has_started_does_not_keep_its_slot() -> None:
    async def main() -> None:
        gate = Gate(1)
        ended = threading.Event()
        started: list[asyncio.Task[None]] = []

        def work() -> None:
            anyio.from_thread.run_sync(lambda: started.append(asyncio.create_task(asyncio.sleep(LONGEST))))
            assert ended.wait(LONGEST)

        task = asyncio.create_task(anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=gate.limiter()))
        await until(lambda: bool(started))
        task.cancel()
        await asyncio.wait([task])
        assert gate.statistics().in_flight == 1
        ended.set()
        await until(lambda: gate.statistics().in_flight == 0)
        started[0].cancel()

    limited(main)


def test_a_thread_whose_task_is_gone_is_refused_another_slot_than_its_own() -> None:
    async def main() -> None:
        gate = Gate(1)
        go = threading.Event()
        seen: list[BaseException] = []

        def work() -> None:
            assert go.wait(LONGEST)
            try:
                with gate.from_thread():
                    pytest.fail("it was let in")
            except BaseException as error:  # noqa: BLE001, ASYNC103
                seen.append(error)

        task = asyncio.create_task(anyio.to_thread.run_sync(work, limiter=gate.limiter()))
        await until(lambda: gate.statistics().in_flight == 1)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        go.set()
        await until(lambda: bool(seen))
        assert isinstance(seen[0], RuntimeError | asyncio.CancelledError | concurrent.futures.CancelledError)
        await until(lambda: gate.statistics().in_flight == 0)

    limited(main)
