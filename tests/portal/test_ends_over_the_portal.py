"""Either run may end at any time: nobody waits for ever, and no slot is lost while somebody keeps the bound."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
import trio

import trio_mlxgate.anyio
from tests.portal.conftest import World, run_caller, world
from trio_mlxgate import BaseGate, Gate, Portal, WaitTooLong
from trio_mlxgate.dialects import ANYIO, TRIO
from trio_mlxgate.instrumentation import Orphaned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

LOOKS = 3.5
"""Seconds within which either side must have seen that the other is gone."""


def run_finished(caller: str) -> type[BaseException]:
    return (TRIO if caller == "trio" else ANYIO).run_finished


class Home:
    """A run that owns a gate, and that ends as it is told."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._ready = threading.Event()
        self._how = "normally"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    gate: BaseGate
    portal: Portal
    _tell: Callable[[], None]

    def end(self, how: str) -> None:
        """Begin to end; see :meth:`ended`."""
        self._how = how
        self._tell()

    def ended(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(BaseException):  # it may be meant to crash
            if self._backend == "trio":
                trio.run(self._on_trio)
            else:
                self._on_a_loop()

    async def _on_trio(self) -> None:
        end = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self._tell = lambda: token.run_sync_soon(end.set)
        self.gate = Gate(1)
        self.portal = self.gate.portal()
        self._ready.set()
        await end.wait()
        if self._how == "cancelled":
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.sleep_forever()
        if self._how == "crashed":
            raise ZeroDivisionError
        if self._how == "without a word":

            async def break_trio() -> None:  # noqa: ASYNC124 - a task
                raise ZeroDivisionError

            trio.lowlevel.spawn_system_task(break_trio)
            await trio.sleep_forever()

    def _on_a_loop(self) -> None:
        end = asyncio.Event()

        async def main() -> None:
            loop = asyncio.get_running_loop()
            self._tell = lambda: (loop.call_soon_threadsafe(end.set), None)[1]
            self.gate = trio_mlxgate.anyio.Gate(1)
            self.portal = self.gate.portal()
            self._ready.set()
            await end.wait()
            if self._how == "cancelled":
                raise asyncio.CancelledError
            if self._how == "crashed":
                raise ZeroDivisionError

        loop = asyncio.new_event_loop()
        task = loop.create_task(main())
        try:
            loop.run_until_complete(task)
        finally:
            if self._how != "without a word":
                for left in asyncio.all_tasks(loop):
                    left.cancel()
                    loop.run_until_complete(asyncio.gather(left, return_exceptions=True))
            loop.set_exception_handler(lambda *_: None)  # of the tasks that are dropped with it
            loop.close()


HOWS = pytest.mark.parametrize("how", ["normally", "cancelled", "crashed", "without a word"])


@pytest.fixture
def quiet() -> Iterator[None]:
    """What is dropped with a run that breaks is collected within the test, and its complaints with it."""
    yield
    gc.collect()


QUIET = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")


@HOWS
@QUIET
@pytest.mark.usefixtures("quiet")
def test_the_owner_ends_while_one_holds_and_one_waits(
    owner: str, caller: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(owner)
    portal = home.portal
    seen: list[str] = []

    async def wait() -> None:
        start = time.monotonic()
        with pytest.raises(run_finished(caller), match="to which gate 'mlx' belongs has ended"):
            async with portal.slot():
                raise AssertionError
        assert time.monotonic() - start < LOOKS
        seen.append("failed")

    async def main() -> None:
        async with anyio.create_task_group() as group:
            async with portal.slot(hold_timeout=100):
                group.start_soon(wait)
                while (await portal.statistics()).tasks_waiting == 0:  # noqa: ASYNC110 - of another run
                    await anyio.sleep(0.002)
                home.end(how)
                while not seen:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                seen.append("finished")
            with pytest.raises(run_finished(caller)):
                async with portal.slot():
                    raise AssertionError
            with pytest.raises(run_finished(caller)):
                await portal.statistics()
            with pytest.raises(run_finished(caller)):
                await portal.acquire_detached()

    with caplog.at_level(logging.WARNING, "trio_mlxgate"):
        run_caller(caller, main)
    assert seen == ["failed", "finished"]
    assert "nobody has kept the bound" in caplog.text
    home.ended()
    with pytest.raises(run_finished(owner), match="belongs has ended"), portal.from_thread():
        pass


def test_a_portal_belongs_to_the_run_in_which_it_was_made() -> None:
    gate = Gate(1)

    async def ask_for_it() -> Portal:  # noqa: ASYNC124 - a run
        return gate.portal()

    first = trio.run(ask_for_it)

    async def again() -> None:
        second = gate.portal()
        assert second is not first
        with pytest.raises(trio.RunFinishedError):
            await first.acquire_detached()
        async with second.slot(outer_deadline="allow"):
            pass

    trio.run(again)


def test_a_closed_gate_turns_away_who_waits_and_who_comes(owner: str, caller: str) -> None:
    closed = (TRIO if caller == "trio" else ANYIO).closed
    with world(owner) as home:

        async def wait() -> None:
            with pytest.raises(closed, match="is closed"):
                async with home.portal.slot():
                    raise AssertionError

        async def main() -> None:
            async with anyio.create_task_group() as group, home.portal.slot():
                group.start_soon(wait)
                await home.until(lambda now: now.tasks_waiting)
                home.call(home.gate.aclose)
                group.start_soon(wait)

        run_caller(caller, main)
        assert home.settled() == (0, 0)


def test_a_drained_gate_serves_who_waits_and_then_is_idle(owner: str, caller: str) -> None:
    with world(owner) as home:
        served: list[int] = []
        drains: list[Future[None]] = []

        async def wait() -> None:
            async with home.portal.slot():
                served.append(1)

        async def main() -> None:
            async with anyio.create_task_group() as group, home.portal.slot():
                group.start_soon(wait)
                await home.until(lambda now: now.tasks_waiting)
                drains.append(home.start(home.gate.drain))
                await home.until(lambda now: now.ended)
                assert not drains[0].done()
            while not drains[0].done():  # noqa: ASYNC110 - a future of threads
                await anyio.sleep(0.001)

        run_caller(caller, main)
        assert served == [1]


def test_a_strict_gate_breaks_for_callers_when_one_of_them_loses_a_slot(owner: str, caller: str) -> None:
    broken = (TRIO if caller == "trio" else ANYIO).broken
    with world(owner, strict=True) as home:

        async def lose() -> None:
            await home.portal.slot().__aenter__()

        async def wait() -> None:
            with pytest.raises(broken, match="is strict"):
                async with home.portal.slot():
                    raise AssertionError

        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(lose)
                await home.until(lambda now: now.in_flight == 0 and now.admitted)
                group.start_soon(wait)

        run_caller(caller, main)
        assert "Ended" in home.recorder.names


def test_a_task_that_ends_without_leaving_gives_its_slot_back(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def lose() -> None:
            await home.portal.slot().__aenter__()

        async def main() -> None:
            async with anyio.create_task_group() as group:  # noqa: ASYNC112 - a task of its own
                group.start_soon(lose, name="forgetful")
            async with home.portal.slot():
                pass

        run_caller(caller, main)
        (orphaned,) = [details for details in home.recorder.details if isinstance(details, Orphaned)]
        assert orphaned.task
        assert home.settled() == (0, 0)


def test_a_callers_run_ends_while_one_holds_and_one_waits(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def hold() -> None:
            async with home.portal.slot():
                await anyio.sleep(100)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(hold)
                await home.until(lambda now: now.in_flight)
                group.start_soon(hold)
                await home.until(lambda now: now.tasks_waiting)
                raise ZeroDivisionError

        with pytest.raises(ExceptionGroup):  # noqa: ASYNC401
            run_caller(caller, main)
        home.wait_until(lambda now: now.in_flight == now.tasks_waiting == 0)
        assert "Orphaned" not in home.recorder.names


def _hold_and_wait(home: World, loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """Let one task of a loop hold a slot and one wait for it, and let the loop stand still then."""

    async def hold() -> None:
        async with home.portal.slot():
            await asyncio.sleep(100)

    async def until(condition: Callable[[Any], object]) -> None:
        await home.until(condition)

    loop.set_exception_handler(lambda *_: None)  # it complains of tasks that are dropped with it
    tasks = [loop.create_task(hold(), name="holder")]
    loop.run_until_complete(until(lambda now: now.in_flight))
    tasks.append(loop.create_task(hold(), name="waiter"))
    loop.run_until_complete(until(lambda now: now.tasks_waiting))
    return tasks


@QUIET
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "thread at its end"])
def test_a_callers_loop_is_dropped_while_one_holds_and_one_waits(owner: str, closed: bool) -> None:
    with world(owner) as home:
        loop = asyncio.new_event_loop()
        tasks: list[asyncio.Task[Any]] = []

        def work() -> None:
            tasks.extend(_hold_and_wait(home, loop))
            if closed:
                loop.close()

        if closed:
            work()
        else:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(10)
        assert home.settled() == (1, 1)
        start = time.monotonic()
        home.wait_until(lambda now: now.in_flight == now.tasks_waiting == 0)
        assert time.monotonic() - start < LOOKS
        (orphaned,) = [details for details in home.recorder.details if isinstance(details, Orphaned)]
        assert orphaned.task == "holder"
        # What the collector does with the coroutines changes nothing any more.
        tasks.clear()
        if not closed:
            loop.close()
        gc.collect()
        assert home.settled() == (0, 0)
        with home.holding():
            assert home.settled() == (1, 0)


def test_a_loop_that_only_stands_still_keeps_what_it_has(owner: str) -> None:
    with world(owner) as home:
        loop = asyncio.new_event_loop()
        tasks = _hold_and_wait(home, loop)
        time.sleep(LOOKS)
        assert home.settled() == (1, 1)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()
        assert home.settled() == (0, 0)


def test_an_owners_task_that_is_cancelled_before_it_begins_fails_its_caller() -> None:
    """asyncio doesn't begin such a task at all. Many a program cancels all tasks there are."""
    with world("asyncio") as home:

        def cancel_all_that_wait() -> None:
            for task in asyncio.all_tasks():
                if task.get_name().endswith("of another run"):
                    task.cancel()

        async def ask() -> None:
            with pytest.raises(ANYIO.run_finished):
                async with home.portal.slot():
                    raise AssertionError

        async def main() -> None:
            with home.holding():
                block, go_on = threading.Event(), threading.Event()

                def stand_still() -> None:
                    block.set()
                    go_on.wait(10)
                    asyncio.get_running_loop().call_soon(cancel_all_that_wait)

                home.start(stand_still)
                block.wait()
                async with asyncio.TaskGroup() as group:
                    group.create_task(ask())
                    await asyncio.sleep(0.01)
                    go_on.set()

        asyncio.run(main())
        assert home.settled() == (0, 0)


def test_a_max_wait_that_is_over_before_the_owner_gets_to_it(owner: str, caller: str) -> None:
    """The gate's run computes, so that a call and the end of its time are seen in one pass."""
    with world(owner) as home:
        computed: list[Future[None]] = []

        async def main() -> None:
            async with home.portal.slot():
                computed.append(home.start(compute))
                async with anyio.create_task_group() as group:
                    for seconds in (0.01, 0.01, 0.01, 0.013):
                        group.start_soon(ask, seconds)

        async def ask(seconds: float) -> None:
            while not computed[0].done():
                with pytest.raises(WaitTooLong):
                    async with home.portal.slot(max_wait=seconds):
                        raise AssertionError

        async def compute() -> None:
            for _ in range(40):
                time.sleep(0.03)  # noqa: ASYNC251 - on purpose
                await anyio.lowlevel.checkpoint()

        run_caller(caller, main)
        assert home.settled() == (0, 0)
