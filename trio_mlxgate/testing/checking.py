"""What the single checks of a gate share: a run on a virtual clock that must end, and a task that holds a slot."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_mlxgate.priority import Priority
from trio_mlxgate.testing.events import (
    GateLike,
    LawBroken,
)

GateFactory = Callable[..., GateLike]
"""Makes a gate of a given capacity, with options as keyword arguments if it has any."""
Check = Callable[[GateFactory], None]

_NEVER: Final = 1e6
"""Virtual seconds after which a check is taken to hang."""


def only(error: BaseException) -> BaseException:
    """What a group of one holds: a check's nursery wraps what fails inside."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def require(holds: bool, what: str) -> None:
    if not holds:
        raise LawBroken(what)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run ``main`` on a virtual clock; a hang of it is an error."""

    async def watch(scope: trio.CancelScope) -> None:  # a checkpoint
        await trio.sleep(_NEVER)
        scope.cancel()

    async def limited() -> None:  # a checkpoint
        # No deadline around it all: a gate would report it as one around its waits.
        ended = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await main()
            ended = True
            nursery.cancel_scope.cancel()
        require(ended, "somebody waits who should not")

    trio.run(limited, clock=MockClock(autojump_threshold=0))


class Holder:
    """A task that holds one slot until :meth:`end`, and says of itself where it is."""

    def __init__(
        self,
        gate: GateLike,
        priority: int = Priority.BACKGROUND,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        **options: Any,
    ) -> None:
        self._gate = gate
        self.slot: Any = gate.slot(priority, hold_timeout=hold_timeout, max_wait=max_wait, **options)
        self._end = trio.Event()
        self.scope = trio.CancelScope()
        self.inside = False
        self.entered_at = math.nan
        self.over = False

    def end(self) -> None:
        self._end.set()

    async def run(self) -> None:
        """Ask, hold, end. A checkpoint."""
        with self.scope:
            async with self.slot:
                self.inside = True
                self.entered_at = trio.current_time()
                try:
                    await self._end.wait()
                finally:
                    self.inside = False
        self.over = True

    async def started(self, nursery: trio.Nursery) -> Holder:
        """Start it and let everything run that can. A checkpoint."""
        nursery.start_soon(self.run)
        await wait_all_tasks_blocked()
        return self


async def empty(gate: GateLike) -> None:
    """The gate is as new: nothing is held, nobody waits, and all slots can be had. A checkpoint."""
    await wait_all_tasks_blocked()
    now = gate.statistics()
    require(now.in_flight == 0, f"slots are held by nobody: {now}")
    require(now.tasks_waiting == 0 and not now.waiting_by_priority, f"nobody waits, yet some are counted: {now}")
    async with trio.open_nursery() as nursery:
        holders = [Holder(gate) for _ in range(gate.capacity)]
        for holder in holders:
            nursery.start_soon(holder.run)
        await wait_all_tasks_blocked()
        inside = sum(holder.inside for holder in holders)
        require(inside == gate.capacity, f"of {gate.capacity} slots {inside} are left")
        for holder in holders:
            holder.end()
