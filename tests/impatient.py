"""Ten clients that give up after 0 to 20 ms, for a while, on a real loop: ``python -m tests.impatient --seconds 60``.

Each gives up in one of the ways that asyncio and anyio have: ``Task.cancel()``, ``asyncio.timeout``, ``wait_for``,
``anyio.move_on_after``. All times are on one grid of milliseconds, so that much happens in the same pass of the loop: a
slot is given back while its next holder gives up. Meanwhile the capacity changes, and a patient client looks whether
the gate is alive.

At the end the calls that the gate counted must be those that the clients saw, and every slot must be there. Exit status
1, and what was lost, if it is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import functools
import logging
import random
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

import anyio

from trio_mlxgate.anyio import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from trio_mlxgate.testing import GateLike

CLIENTS: Final = 10
PATIENCE: Final = 20
"""Milliseconds after which the last client gives up."""
ALIVE: Final = 10.0
"""Seconds within which a patient client must have got a slot, although all others are impatient."""


class Lost(Exception):
    """Something is not there any more, or too much is."""


class Crowd:
    """The clients of one gate, and what they saw."""

    def __init__(self, gate: GateLike, seed: int) -> None:
        self.gate = gate
        self.draw = random.Random(seed)
        self.inside = 0
        self.most = gate.capacity
        self.asked = 0
        self.entered = 0
        self.gave_up: collections.Counter[str] = collections.Counter()
        self.served: collections.Counter[str] = collections.Counter()
        self.looks = 0

    def after(self, milliseconds: int) -> float:
        """A time on the grid, in seconds of the loop's clock."""
        return (asyncio.get_running_loop().time() * 1000 // 1 + milliseconds) / 1000

    async def call(self, priority: int, milliseconds: int) -> None:
        """One call: ask, hold the slot for so long, give it back."""
        loop = asyncio.get_running_loop()
        self.asked += 1
        async with self.gate.slot(priority):
            self.entered += 1
            self.inside += 1
            try:
                if self.inside > self.most:
                    raise Lost(f"{self.inside} are inside, and there are {self.most} slots")
                if milliseconds:
                    await asyncio.sleep(self.after(milliseconds) - loop.time())
            finally:
                self.inside -= 1

    # ---- the ways to give up; each returns whether it had to ----

    async def by_cancel(self, call: Callable[[], Coroutine[Any, Any, None]], when: float) -> bool:
        task = asyncio.create_task(call())
        timer = asyncio.get_running_loop().call_at(when, task.cancel)
        await asyncio.wait([task])
        timer.cancel()
        if not task.cancelled():
            task.result()
        return task.cancelled()

    async def by_timeout(self, call: Callable[[], Coroutine[Any, Any, None]], when: float) -> bool:
        try:
            async with asyncio.timeout_at(when):
                await call()
        except TimeoutError:
            return True
        return False

    async def by_wait_for(self, call: Callable[[], Coroutine[Any, Any, None]], when: float) -> bool:
        try:
            await asyncio.wait_for(call(), max(0.0, when - asyncio.get_running_loop().time()))
        except TimeoutError:
            return True
        return False

    async def by_scope(self, call: Callable[[], Coroutine[Any, Any, None]], when: float) -> bool:
        with anyio.CancelScope(deadline=when) as scope:
            await call()
        return scope.cancelled_caught

    # ---- who is there ----

    async def client(self, end: float) -> None:
        """One impatient client."""
        loop = asyncio.get_running_loop()
        ways = (self.by_cancel, self.by_timeout, self.by_wait_for, self.by_scope)
        task = asyncio.current_task()
        assert task is not None
        while loop.time() < end:
            way = self.draw.choice(ways)
            call = functools.partial(self.call, self.draw.choice((0, 100, 100)), self.draw.randrange(4))
            try:
                gave_up = await way(call, self.after(self.draw.randint(0, PATIENCE)))
            except asyncio.CancelledError:  # noqa: ASYNC103 - a task group would take it for a task that was cancelled
                lost = f"after {way.__name__} a cancellation is left, which nobody has caught"
                raise Lost(lost) from None  # noqa: ASYNC104
            (self.gave_up if gave_up else self.served)[way.__name__] += 1
            if task.cancelling():
                raise Lost(f"after {way.__name__} a cancellation is left")
            if self.draw.random() < 0.1:
                await asyncio.sleep(0)

    async def patient(self, end: float) -> None:
        """One client that gives up only when something is wrong."""
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            try:
                async with asyncio.timeout(ALIVE):
                    await self.call(0, 0)
            except TimeoutError:
                raise Lost(f"nobody has let a patient client in for {ALIVE} s: {self.gate.statistics()}") from None
            self.looks += 1
            await asyncio.sleep(0.05)

    async def steer(self, end: float) -> None:
        """Change the capacity now and then."""
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            await asyncio.sleep(self.draw.uniform(0.05, 0.2))
            capacity = self.draw.choice((1, 1, 2, 3))
            # Who is inside already may finish.
            self.most = max(capacity, self.gate.statistics().in_flight)
            self.gate.capacity = capacity

    async def run(self, seconds: float) -> None:
        """All of them, for so long; then the look at what they left.

        Raises:
          Lost: something was lost; in an ExceptionGroup if it was seen on the way.
        """
        end = asyncio.get_running_loop().time() + seconds
        async with asyncio.timeout(seconds + 3 * ALIVE), asyncio.TaskGroup() as tasks:
            tasks.create_task(self.patient(end))
            tasks.create_task(self.steer(end))
            for _ in range(CLIENTS):
                tasks.create_task(self.client(end))
        seen = self.gate.statistics()
        if seen.in_flight or seen.tasks_waiting:
            raise Lost(f"slots are lost: no call is left, and the gate says {seen}")
        if (seen.admitted, seen.admitted + seen.cancelled) != (self.entered, self.asked):
            raise Lost(f"{self.asked} calls asked and {self.entered} entered, and the gate says {seen}")
        self.gate.capacity = 3
        over = asyncio.Event()

        async def hold() -> None:
            with self.gate.slot_nowait():
                await over.wait()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(hold())
            await asyncio.sleep(0.01)
            if self.gate.statistics().in_flight != 3:
                raise Lost(f"of 3 slots some are missing: {self.gate.statistics()}")
            over.set()


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A real loop: asyncio's own or uvloop's."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def main(arguments: list[str] | None = None, make_gate: Callable[[], GateLike] | None = None) -> int:
    """Run it; the exit status."""
    what = (__doc__ or "").partition(":")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.impatient", description=what)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--seed", type=int, default=0, help="of what is done; real time has none")
    options = parser.parse_args(arguments)
    logger = logging.getLogger("trio_mlxgate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    crowd = Crowd(make_gate() if make_gate is not None else Gate(2, outer_deadline="allow"), options.seed)
    try:
        with asyncio.Runner(loop_factory=lambda: new_loop(options.loop)) as runner:
            runner.run(crowd.run(options.seconds))
    except Exception as error:  # noqa: BLE001 - all of it is told
        lost = error
        while isinstance(lost, ExceptionGroup):
            lost = lost.exceptions[0]
        said = str(lost) if isinstance(lost, Lost) else "".join(traceback.format_exception(error))
        print(f"LOST: {said}")
        return 1
    finally:
        logger.setLevel(level)
    for way, number in sorted((crowd.gave_up + crowd.served).items()):
        print(f"{number:>9} {way}, of which {crowd.gave_up[way]} gave up")
    print(f"{crowd.asked:>9} calls, {crowd.entered} entered, {crowd.looks} times alive on {options.loop}: 0 slots lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
