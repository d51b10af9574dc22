"""An application on asyncio and a worker on trio share one gate, which the worker's run owns."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import trio

from trio_mlxgate import Gate, Portal, Priority

if TYPE_CHECKING:
    from collections.abc import Callable


async def index_documents(gate: Gate) -> None:
    """Whenever nobody else needs the model."""
    for number in range(4):
        async with gate.slot(Priority.BACKGROUND):
            await trio.sleep(0.05)  # where the model would be called
            print(f"document {number} is indexed")


async def worker(started: Future[tuple[Portal, Callable[[], None]]]) -> None:
    """The trio side. It owns the gate, and so it stays until the application is done with it."""
    gate = Gate(1, name="macmini")
    over = trio.Event()
    token = trio.lowlevel.current_trio_token()
    started.set_result((gate.portal(), lambda: token.run_sync_soon(over.set)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(index_documents, gate)
        await over.wait()


async def answer(portal: Portal, question: str) -> None:
    """The asyncio side: somebody waits for the answer."""
    async with portal.slot(Priority.FOREGROUND, hold_timeout=30) as slot:
        await asyncio.sleep(0.01)  # where the model would be called
        print(f"answered{', after a wait' if slot.waited else ''}: {question}")


async def application(portal: Portal) -> None:
    await asyncio.sleep(0.02)  # the first document has the model now
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(answer(portal, "who goes first?"))
        tasks.create_task(answer(portal, "and then?"))
    print(f"{(await portal.statistics()).admitted} calls so far, never two at once")


def main() -> None:
    started: Future[tuple[Portal, Callable[[], None]]] = Future()
    thread = threading.Thread(target=trio.run, args=(worker, started))
    thread.start()
    portal, stop = started.result(timeout=10)
    try:
        asyncio.run(application(portal))
    finally:
        stop()
        thread.join()


if __name__ == "__main__":
    main()
