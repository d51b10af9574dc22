"""How a program tests its use of the gate: minutes of waiting in no time, exactly."""

import trio
from trio.testing import MockClock

from trio_mlxgate import Gate, Priority


def test_a_person_waits_for_one_digest_at_most() -> None:
    async def main() -> None:
        gate = Gate(1)

        async def digest() -> None:
            async with gate.slot():
                await trio.sleep(60)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(digest)
            await trio.sleep(30)
            async with gate.slot(Priority.FOREGROUND) as slot:
                assert slot.waited == 30
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
