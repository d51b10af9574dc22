"""Ten calls at once to one server: a gate lets one in at a time, and the person goes first."""

import trio

from trio_mlxgate import Gate, Priority

gate = Gate(1, name="macmini")


async def call_the_model(question: str) -> str:
    await trio.sleep(0.1)  # where your program talks to the server
    return f"an answer to {question!r}"


async def digest(number: int) -> None:
    async with gate.slot():  # no priority named: BACKGROUND
        print(await call_the_model(f"digest {number}"))


async def chat(question: str) -> None:
    # The 30 seconds start when the slot is granted; waiting in the queue uses none of them.
    async with gate.slot(Priority.FOREGROUND, hold_timeout=30) as slot:
        print(f"after {slot.waited:.1f} s in the queue:", await call_the_model(question))


async def main() -> None:
    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(digest, number)
        await trio.sleep(0.05)
        nursery.start_soon(chat, "Who goes first?")


if __name__ == "__main__":
    trio.run(main)
