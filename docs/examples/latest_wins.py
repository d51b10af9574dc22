"""A search box: each keystroke asks anew, and only the latest that waits is answered."""

import trio

from trio_mlxgate import Gate, Priority, Superseded

gate = Gate(1, name="macmini")


async def ask_the_model(text: str) -> str:
    await trio.sleep(0.2)  # where your program talks to the server
    return f"suggestions for {text!r}"


async def keystroke(text: str) -> None:  # noqa: ASYNC910 - to be refused is a checkpoint, too
    try:
        async with gate.slot(Priority.FOREGROUND, supersede="search box"):
            print(await ask_the_model(text))
    except Superseded:
        print(f"{text!r} was overtaken by the next keystroke")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        for end in range(1, 6):
            nursery.start_soon(keystroke, "gates"[:end])
            await trio.sleep(0.05)


if __name__ == "__main__":
    trio.run(main)
