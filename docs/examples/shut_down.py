"""On SIGTERM: serve who waits for at most a second more, then send the rest away, and let the last one finish."""

from __future__ import annotations

import signal

import trio

from trio_mlxgate import Gate

gate = Gate(1, name="macmini")


async def digest(number: int) -> None:  # noqa: ASYNC910 - asking is a checkpoint, also where it is refused
    try:
        async with gate.slot():
            await trio.sleep(0.4)  # where the model would be called
            print(f"digest {number} is done")
    except trio.ClosedResourceError:
        print(f"digest {number} is sent away")


async def shut_down() -> None:
    with trio.move_on_after(1):
        await gate.drain()
    await gate.aclose()
    with trio.move_on_after(10) as patience:
        await gate.wait_idle()
    print("somebody still holds a slot" if patience.cancelled_caught else "the server may be stopped")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            for number in range(6):
                nursery.start_soon(digest, number)
            await trio.lowlevel.checkpoint()
            signal.raise_signal(signal.SIGTERM)  # as the system would
            async for _ in signals:
                break
        await shut_down()


if __name__ == "__main__":
    trio.run(main)
