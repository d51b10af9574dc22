"""What the single checks of a gate share: a task that holds a slot, and the look at a gate that should be as new."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import anyio

from trio_mlxgate.priority import Priority
from trio_mlxgate.testing.backends import settle
from trio_mlxgate.testing.events import GateLike, LawBroken
from trio_mlxgate.testing.harness import Harness, Tasks

GateFactory = Callable[..., GateLike]
"""Makes a gate of a given capacity, with options as keyword arguments if it has any."""
Check = Callable[[GateFactory, Harness], None]

FOREGROUND: Final = Priority.FOREGROUND
BACKGROUND: Final = Priority.BACKGROUND


def only(error: BaseException) -> BaseException:
    """What a group of one holds: a check's task group wraps what fails inside."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def require(holds: bool, what: str) -> None:
    if not holds:
        raise LawBroken(what)


class Holder:
    """A task that holds one slot until :meth:`end`, and says of itself where it is."""

    def __init__(
        self,
        gate: GateLike,
        priority: int = BACKGROUND,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        **options: Any,
    ) -> None:
        self._gate = gate
        self.slot: Any = gate.slot(priority, hold_timeout=hold_timeout, max_wait=max_wait, **options)
        self._end = anyio.Event()
        self.scope = anyio.CancelScope()
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
                self.entered_at = anyio.current_time()
                try:
                    await self._end.wait()
                finally:
                    self.inside = False
        self.over = True

    async def started(self, tasks: Tasks) -> Holder:
        """Start it and let everything run that can. A checkpoint."""
        tasks.start_soon(self.run)
        await settle()
        return self


async def empty(gate: GateLike) -> None:
    """The gate is as new: nothing is held, nobody waits, and all slots can be had. A checkpoint."""
    await settle()
    now = gate.statistics()
    require(now.in_flight == 0, f"slots are held by nobody: {now}")
    require(now.tasks_waiting == 0 and not now.waiting_by_priority, f"nobody waits, yet some are counted: {now}")
    async with anyio.create_task_group() as tasks:
        holders = [Holder(gate) for _ in range(gate.capacity)]
        for holder in holders:
            tasks.start_soon(holder.run)
        await settle()
        inside = sum(holder.inside for holder in holders)
        require(inside == gate.capacity, f"of {gate.capacity} slots {inside} are left")
        for holder in holders:
            holder.end()
