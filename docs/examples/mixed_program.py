"""An application on asyncio and a worker on trio share one gate, which the worker's run owns."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import trio

from trio_mlxgate import Gate, Portal, Priority


async def worker(portal_is_there: Future[Portal]) -> None:
    """The trio side: it owns the gate, and indexes documents whenever nobody else needs the model."""
    gate = Gate(1, name="macmini")
    portal_is_there.set_result(gate.portal())
    for number in range(4):
        async with gate.slot(Priority.BACKGROUND):
            await trio.sleep(0.05)  # where the model would be called
            print(f"document {number} is indexed")
    await gate.drain()  # the others may still wait: let them have their turn


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
    portal_is_there: Future[Portal] = Future()
    thread = threading.Thread(target=trio.run, args=(worker, portal_is_there))
    thread.start()
    asyncio.run(application(portal_is_there.result()))
    thread.join()


if __name__ == "__main__":
    main()
