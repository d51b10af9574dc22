"""How a program on asyncio tests what it does with time: an hour of waiting in no time, exactly."""

import asyncio

from trio_mlxgate.testing import run_virtual, settle


class Nightly:
    """A program that asks a model once an hour, and gives up after a minute."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.answers: list[str] = []

    async def ask(self) -> str:
        await asyncio.sleep(self.seconds)
        return "an answer"

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(60):
                    self.answers.append(await self.ask())
            except TimeoutError:
                self.answers.append("too slow")
            await asyncio.sleep(3600)


def test_a_slow_model_is_given_up_after_a_minute() -> None:
    async def main() -> None:
        program = Nightly(seconds=90)
        task = asyncio.create_task(program.run())
        await asyncio.sleep(59)
        assert program.answers == []
        await asyncio.sleep(1)
        await settle()
        assert program.answers == ["too slow"]
        program.seconds = 30
        await asyncio.sleep(3630)
        await settle()
        assert program.answers == ["too slow", "an answer"]
        task.cancel()

    run_virtual(main, backend="asyncio")
