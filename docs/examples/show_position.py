"""Show a person where their question stands while it waits."""

import trio

from trio_mlxgate import Gate, GateRefused, Priority, Slot

gate = Gate(1, name="macmini")


async def ask_the_model(question: str) -> str:
    await trio.sleep(0.2)  # where your program talks to the server
    return f"an answer to {question!r}"


async def show(slot: Slot) -> None:
    async for outlook in gate.progress(slot):
        seconds = outlook.estimated_wait
        print(f"number {outlook.position} in the queue", "" if seconds is None else f"for some {seconds:.1f} s more")


async def chat(question: str) -> None:  # noqa: ASYNC910 - to be refused is a checkpoint, too
    slot = gate.slot(Priority.FOREGROUND, hold_timeout=30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show, slot)
        try:
            async with slot:
                print(await ask_the_model(question))
        except GateRefused as refused:  # here, since outside of the nursery it would come in a group
            print(f"{question}: {refused}")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(chat, f"question {number}")
            await trio.sleep(0.01)


if __name__ == "__main__":
    trio.run(main)
