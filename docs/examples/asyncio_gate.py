"""The shortest program on asyncio with a gate: three calls to a model that runs one at a time, and a person's."""

import asyncio

from trio_mlxgate import Priority
from trio_mlxgate.anyio import Gate

gate = Gate(1, name="macmini")  # one gate for each endpoint, for every call to that endpoint


async def call(who: str, priority: Priority) -> None:
    async with gate.slot(priority, hold_timeout=30) as slot:  # the 30 s start when the slot is granted
        await asyncio.sleep(0.1)  # where the model would be called
        print(f"{who} was let in after {slot.waited:.1f} s")


async def main() -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(call(f"digest {number}", Priority.BACKGROUND))
        await asyncio.sleep(0.05)
        tasks.create_task(call("person", Priority.FOREGROUND))


if __name__ == "__main__":
    asyncio.run(main())
