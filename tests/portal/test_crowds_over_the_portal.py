"""Many impatient callers in several runs at once: the bound holds over all of them, and no slot is lost."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import anyio
import pytest
import trio

from tests.portal.conftest import World, run_caller, world
from trio_mlxgate import Priority
from trio_mlxgate.instrumentation import Granted

SECONDS = float(os.environ.get("MLXGATE_SECONDS", "1.5"))


class Counter:
    """Counts the bodies of all runs, by the bodies themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.worst = 0
        self.entered = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self.entered += 1
            self.worst = max(self.worst, self._inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1


def crowd(home: World, caller: str, count: int, counter: Counter, seed: int) -> None:
    """Impatient clients in a run of that kind, for some seconds."""
    chance = random.Random(seed)

    async def client(ask: Any) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with anyio.move_on_after(chance.random() * 0.05):
                slot = ask(chance.choice([Priority.FOREGROUND, Priority.BACKGROUND]), hold_timeout=30)
                async with slot:
                    with counter:
                        await anyio.sleep(chance.random() * 0.003)
            await anyio.sleep(chance.random() * 0.002)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(client, home.portal.slot)

    run_caller(caller, main)


@pytest.mark.parametrize("callers", [("asyncio",), ("trio",), ("uvloop", "trio"), ("asyncio", "asyncio")], ids="+".join)
def test_the_bound_holds_over_all_worlds(owner: str, callers: tuple[str, ...]) -> None:
    counter = Counter()
    failed: list[BaseException] = []
    with world(owner, 2) as home:

        def run(kind: str, seed: int) -> None:
            try:
                crowd(home, kind, 50 // len(callers), counter, seed)
            except BaseException as error:  # noqa: BLE001, ASYNC103 - raised below
                failed.append(error)

        async def at_home() -> None:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                async with home.gate.slot(Priority.FOREGROUND):
                    with counter:
                        await anyio.sleep(0.001)
                await anyio.sleep(0.003)

        here = home.start(at_home)
        threads = [threading.Thread(target=run, args=(kind, seed)) for seed, kind in enumerate(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        here.result()
        if failed:
            raise failed[0]
        home.wait_until(lambda now: now.in_flight == now.tasks_waiting == 0)
        now = home.statistics()
    assert counter.worst == 2
    assert now.admitted >= counter.entered > 100
    assert now.cancelled > 10
    # Who waits longest of a class goes first, and nobody of a worse class passes: each grant was of the best.
    granted = [details for details in home.recorder.details if isinstance(details, Granted)]
    assert len(granted) == now.admitted
    assert "Orphaned" not in home.recorder.names


def test_threads_of_all_kinds_take_the_same_gate(owner: str) -> None:
    counter = Counter()
    with world(owner, 1) as home:

        def work() -> None:
            with home.portal.from_thread(Priority.FOREGROUND), counter:
                time.sleep(0.002)

        async def of_anyio() -> None:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(anyio.to_thread.run_sync, work)

        async def of_trio() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(trio.to_thread.run_sync, work)

        plain = [threading.Thread(target=work) for _ in range(5)]
        for thread in plain:
            thread.start()
        anyio.run(of_anyio)
        trio.run(of_trio)
        home.call(of_anyio)
        for thread in plain:
            thread.join()
        assert home.settled() == (0, 0)
        assert home.statistics().admitted == 20
    assert counter.worst == 1


def test_a_thread_does_not_wait_for_the_slot_of_the_task_that_waits_for_it(owner: str, caller: str) -> None:
    with world(owner) as home:

        def work() -> None:
            with (
                pytest.raises(RuntimeError, match="the task that started this thread owns a slot"),
                home.portal.from_thread(),
            ):
                raise AssertionError

        async def main() -> None:
            async with home.portal.slot():
                await anyio.to_thread.run_sync(work)
            with pytest.raises(RuntimeError, match=r"in a task use 'async with portal\.slot\(\)"):
                home.portal.from_thread().__enter__()

        run_caller(caller, main)
        if owner != "trio":
            return

        async def native() -> None:
            async with home.portal.slot(outer_deadline="allow"):
                await trio.to_thread.run_sync(work)

        trio.run(native)


def test_a_thread_that_waits_fails_when_the_gates_run_ends(owner: str) -> None:
    seen: list[BaseException] = []

    def work(home: World) -> None:
        try:
            with home.portal.from_thread():
                raise AssertionError
        except BaseException as error:  # noqa: BLE001, ASYNC103 - looked at below
            seen.append(error)

    with world(owner) as home:
        home.call(home.gate.acquire_detached)
        thread = threading.Thread(target=work, args=(home,))
        thread.start()
        home.wait_until(lambda now: now.tasks_waiting)
        home.call(home.run.stop, True)
        thread.join(10)
    assert isinstance(seen[0], home.gate._dialect.run_finished)
