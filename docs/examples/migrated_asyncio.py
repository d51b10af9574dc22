"""A program on asyncio, after its move: ten pages to be digested, and a person who comes in between."""

import asyncio
import time

from trio_mlxgate import Priority
from trio_mlxgate.anyio import acquire_mlx_gate, gate_status, get_mlx_gate


async def ask_the_model(prompt: str) -> str:
    await asyncio.sleep(0.05)  # where the server would be called
    return prompt.upper()


async def chat(question: str) -> str:
    # The budget of the work, from the grant on; it was an asyncio.timeout() inside of the block.
    async with acquire_mlx_gate(Priority.FOREGROUND, hold_timeout=30):
        return await ask_the_model(question)


async def digest(page: str) -> None:
    async with get_mlx_gate():
        print("digest:", await ask_the_model(page))


async def main() -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(digest(f"page {number}"))
        await asyncio.sleep(0.02)
        print(gate_status())
        start = time.monotonic()
        answer = await chat("who goes first?")
        print(f"person: {answer} after {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
