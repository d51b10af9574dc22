"""On SIGTERM: serve who waits for at most a second more, then send the rest away, and let the last one finish."""

from __future__ import annotations

import signal

import trio

from trio_mlxgate import Gate

gate = Gate(1, name="macmini")


async def digest(number: int) -> None:
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
    await gate.wait_idle()
    print("the server may be stopped")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            for number in range(6):
                await nursery.start(begin, number)
            signal.raise_signal(signal.SIGTERM)  # as the system would
            async for _ in signals:
                break
        await shut_down()


async def begin(number: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Start a digest in the order of the numbers: trio starts tasks of one step in random order."""
    task_status.started()
    await digest(number)


if __name__ == "__main__":
    trio.run(main)
