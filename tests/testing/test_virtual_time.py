"""Runs on virtual time: exact, at once, and never a hang."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.drivers import ALL, ASYNCIO
from trio_mlxgate.testing import EverybodyWaits, run_virtual, settle, virtual_time
from trio_mlxgate.testing.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from trio_mlxgate.testing import Backend

on_all = pytest.mark.parametrize("backend", ALL)
on_asyncio = pytest.mark.parametrize("backend", ASYNCIO)


@on_all
def test_time_passes_at_once_and_exactly(backend: Backend) -> None:
    async def main(seconds: float) -> float:
        begun = anyio.current_time()
        woken: list[float] = []

        async def sleep(seconds: float) -> None:
            await anyio.sleep(seconds)
            woken.append(anyio.current_time() - begun)

        async with anyio.create_task_group() as tasks:
            for each in (5, 1, seconds, 3, 0.1):
                tasks.start_soon(sleep, each)
            with anyio.move_on_after(2) as limit:
                await anyio.sleep_forever()
            assert limit.cancelled_caught
            assert woken == [0.1, 1]
        assert woken == [0.1, 1, 3, 5, seconds]
        return anyio.current_time() - begun

    begun = time.monotonic()
    assert run_virtual(main, 1e5, backend=backend) == 1e5
    assert time.monotonic() - begun < 60


@on_all
def test_settle_waits_for_all_that_can_run_and_lets_no_time_pass(backend: Backend) -> None:
    async def main() -> None:
        begun = anyio.current_time()
        steps = 0

        async def work() -> None:
            nonlocal steps
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
                steps += 1
            await anyio.sleep(1)
            steps += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            tasks.start_soon(settle)
            await settle()
            assert (steps, anyio.current_time()) == (50, begun)
            await settle()
            assert (steps, anyio.current_time()) == (50, begun)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await settle()
            assert scope.cancelled_caught
        assert steps == 51

    run_virtual(main, backend=backend)


@on_asyncio
def test_a_run_in_which_everybody_waits_is_an_error(backend: Backend) -> None:
    async def wait_for_nobody() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait_for_nobody())
            await asyncio.sleep(3)

    with pytest.raises(
        EverybodyWaits, match=f"^everybody waits(.*\n)*.*{__name__.rpartition('.')[2]}.py:.*wait_for_nob"
    ):
        run_virtual(main, backend=backend)


@on_asyncio
def test_who_will_not_be_cancelled_can_not_hang_it_either(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    over = False

    async def main() -> None:
        while not over:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(EverybodyWaits):
        run_virtual(main, backend=backend)
    over = True
    assert "pending" in caplog.text or not caplog.text  # asyncio's own word for what was left


@on_asyncio
def test_a_run_that_never_rests_is_an_error(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_time, "PASSES_AT_ONE_TIME", 1000)

    async def main() -> None:
        for _ in range(3):
            for _ in range(900):
                await asyncio.sleep(0)
            await asyncio.sleep(1)
        while True:
            await asyncio.sleep(0)

    with pytest.raises(EverybodyWaits, match="never comes to rest: 1001 passes at the time 3"):
        run_virtual(main, backend=backend)


@on_asyncio
def test_errors_come_out_as_they_are(backend: Backend) -> None:
    error = RuntimeError("mine")

    async def main() -> None:
        await asyncio.sleep(1)
        raise error

    with pytest.raises(RuntimeError, match="mine") as caught:
        run_virtual(main, backend=backend)
    assert caught.value is error


@on_asyncio
def test_a_background_task_is_cancelled_at_the_end_and_sees_no_time_pass(backend: Backend) -> None:
    seen: list[object] = []

    async def background() -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            seen.append(asyncio.get_running_loop().time())
            raise
        seen.append("woken")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(background())
        await asyncio.sleep(1)
        return task

    run_virtual(main, backend=backend)
    assert seen == [1.0]


@on_asyncio
def test_threads_report_in_real_time(backend: Backend) -> None:
    def work() -> str:
        time.sleep(0.05)
        return threading.current_thread().name

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(1):
            assert await asyncio.to_thread(work) != threading.current_thread().name
        assert loop.time() == 0
        assert await anyio.to_thread.run_sync(work) != threading.current_thread().name
        assert loop.time() == 0

    run_virtual(main, backend=backend)


@on_asyncio
def test_a_thread_that_says_nothing_is_not_waited_for_forever(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_time, "PATIENCE", 0.05)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)

    async def main() -> None:
        thread.start()
        await asyncio.Event().wait()

    try:
        with pytest.raises(EverybodyWaits):
            run_virtual(main, backend=backend)
    finally:
        over.set()
        thread.join()


@on_asyncio
def test_timers_of_one_time_run_in_their_order_and_in_their_contexts(backend: Backend) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[tuple[int, int]] = []

        def note(number: int) -> None:
            seen.append((number, variable.get()))

        for number in range(5):
            variable.set(number)
            loop.call_later(1, note, number)
        loop.call_later(1, note, 99).cancel()
        loop.call_later(0, note, 5)
        context = contextvars.copy_context()
        context.run(variable.set, 7)
        loop.call_at(0.5, note, 6, context=context)
        await asyncio.sleep(0)
        assert seen == [(5, 4)]
        await asyncio.sleep(0.75)
        assert seen == [(5, 4), (6, 7)]
        await asyncio.sleep(1)
        assert seen == [(5, 4), (6, 7), (0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]

    run_virtual(main, backend=backend)


def test_timers_that_were_cancelled_are_forgotten() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen: list[int] = []
        loop.call_later(2, seen.append, 1)
        for _ in range(10_000):
            loop.call_later(1, seen.append, 2).cancel()
            assert len(loop._timers) < 250
        await asyncio.sleep(3)
        assert seen == [1]

    run_virtual(main, backend="asyncio")


def test_settle_needs_virtual_time() -> None:
    with pytest.raises(RuntimeError, match="run_virtual"):
        asyncio.run(settle())


def test_an_unknown_backend_is_told() -> None:
    with pytest.raises(ValueError, match="there is no backend 'curio'; there are trio, asyncio"):
        run_virtual(anyio.sleep, 1, backend="curio")  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python has eager tasks")
def test_a_python_without_eager_tasks_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"3\.12"):
        run_virtual(anyio.sleep, 1, backend="asyncio+eager")


def test_a_missing_uvloop_is_told_with_the_extra() -> None:
    code = (
        "import sys; sys.modules['uvloop'] = None; import anyio; from trio_mlxgate.testing import run_virtual\n"
        "try: run_virtual(anyio.sleep, 1, backend='asyncio+uvloop')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'trio-mlxgate[uvloop]'" in done.stdout
