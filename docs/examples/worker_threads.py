"""Three threads and a task share one gate; each thread works freely and asks for a slot only for the call itself."""

from __future__ import annotations

import time

import trio

from trio_mlxgate import Gate, Priority

gate = Gate(1, name="macmini")


def index(document: str) -> None:
    """Blocking code: prepare, ask the model, store."""
    with gate.from_thread(Priority.BACKGROUND) as slot:
        time.sleep(0.05)  # where the blocking client would be called
        print(f"{document} is indexed" + (", after a wait" if slot.waited else ""))


async def answer(question: str) -> None:
    async with gate.slot(Priority.FOREGROUND):
        print(f"answered: {question}")


async def index_in_a_thread(document: str, threads: trio.CapacityLimiter) -> None:
    await trio.to_thread.run_sync(index, document, limiter=threads)


async def main() -> None:
    # Threads of their own for the documents: where they all wait, a person's thread could not even start.
    threads = trio.CapacityLimiter(10)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(index_in_a_thread, f"document {number}", threads)
        await trio.sleep(0.02)  # two of them wait now
        nursery.start_soon(answer, "who goes first?")
    print(f"{gate.statistics().admitted} calls, never two at once")


if __name__ == "__main__":
    trio.run(main)
