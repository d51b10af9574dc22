"""What is compared: the gate beside trio's own primitives, each used as its documentation says to use it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol, Self

import anyio
import attrs
import trio

from trio_mlxgate import BaseGate, Gate, anyio as for_anyio
from trio_mlxgate.priority import DEFAULT_PRIORITY, MAX_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from trio_mlxgate.slots import AsyncSlot


@attrs.define
class Race:
    """Counts down the operations of all tasks together and stops the clock at the last one."""

    left: int
    """How many operations are still to be done."""

    finished: float = 0.0
    """When the last one was done, as :func:`cpu_seconds` has it."""


def cpu_seconds() -> float:
    """The CPU time of this process, in seconds: other processes on the machine disturb it less than wall time."""
    return time.process_time()


class Subject(Protocol):
    """One thing to measure, fresh in each sample."""

    def one(self) -> AbstractAsyncContextManager[object]:
        """A context manager for one use; for the parts of a workload that are not timed."""
        ...

    async def repeat(self, times: int) -> None:
        """Take and give back ``times`` times, with an empty body."""
        ...

    async def compete(self, race: Race, priority: int) -> None:
        """Take and give back until the race is over."""
        ...


class Primitive:
    """A primitive of trio: one object, ``async with`` it."""

    def __init__(self, primitive: AbstractAsyncContextManager[object]) -> None:
        self._primitive = primitive

    def one(self) -> AbstractAsyncContextManager[object]:
        """The primitive itself."""
        return self._primitive

    async def repeat(self, times: int) -> None:  # noqa: ASYNC910 - none if there is nothing to do
        """Take and give back ``times`` times."""
        primitive = self._primitive
        for _ in range(times):
            async with primitive:
                pass

    async def compete(self, race: Race, priority: int) -> None:  # noqa: ASYNC910 - none if there is nothing to do
        """Take and give back until the race is over. It knows no priorities: ``priority`` is not used."""
        primitive = self._primitive
        while race.left > 0:
            async with primitive:
                race.left -= 1
                if race.left == 0:
                    race.finished = cpu_seconds()


class Gated:
    """A gate: ``async with gate.slot()``. The bodies are those of :class:`Primitive`, letter by letter."""

    def __init__(self, gate: BaseGate) -> None:
        self._gate = gate

    def slot(self) -> AsyncSlot:
        """A slot, to be asked where it stands."""
        return self._gate.slot()

    def one(self) -> AbstractAsyncContextManager[object]:
        """A slot."""
        return self._gate.slot()

    async def repeat(self, times: int) -> None:  # noqa: ASYNC910 - none if there is nothing to do
        """Take and give back ``times`` times."""
        gate = self._gate
        for _ in range(times):
            async with gate.slot():
                pass

    async def compete(self, race: Race, priority: int) -> None:  # noqa: ASYNC910 - none if there is nothing to do
        """Take and give back until the race is over."""
        gate = self._gate
        if priority == DEFAULT_PRIORITY:
            while race.left > 0:
                async with gate.slot():
                    race.left -= 1
                    if race.left == 0:
                        race.finished = cpu_seconds()
        else:
            while race.left > 0:
                async with gate.slot(priority):
                    race.left -= 1
                    if race.left == 0:
                        race.finished = cpu_seconds()


class Keyed(Gated):
    """A gate whose every call has a ``supersede`` key, another one for each task. The bodies are as above."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate)
        self._keys = 0

    async def repeat(self, times: int) -> None:  # noqa: ASYNC910 - none if there is nothing to do
        """Take and give back ``times`` times."""
        gate = self._gate
        for _ in range(times):
            async with gate.slot(supersede="key"):
                pass

    async def compete(self, race: Race, priority: int) -> None:  # noqa: ASYNC910 - none if there is nothing to do
        """Take and give back until the race is over."""
        gate = self._gate
        self._keys = key = self._keys + 1
        while race.left > 0:
            async with gate.slot(supersede=key):
                race.left -= 1
                if race.left == 0:
                    race.finished = cpu_seconds()


class Watched(Gated):
    """A gate at which one task follows a waiter that never gets in, all the time that others compete."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate)
        self._followed: AsyncSlot | None = None

    async def compete(self, race: Race, priority: int) -> None:
        """Take and give back until the race is over; the first one to come is also followed. Always a checkpoint."""
        if self._followed is None:
            self._followed = self._gate.slot(MAX_PRIORITY)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._be_followed, self._followed)
                nursery.start_soon(self._follow, self._followed)
                await super().compete(race, priority)
                nursery.cancel_scope.cancel()
        else:
            await super().compete(race, priority)

    async def _be_followed(self, slot: AsyncSlot) -> None:
        async with slot:
            pass

    async def _follow(self, slot: AsyncSlot) -> None:
        async for _ in self._gate.progress(slot):
            pass


def _abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


class Parked:
    """No primitive: its users are parked until they are cancelled. The least that trio needs for a task that waits."""

    async def __aenter__(self) -> object:
        return await trio.lowlevel.wait_task_rescheduled(_abort)

    async def __aexit__(  # noqa: ASYNC910 - leaving is no checkpoint, as in all that is compared
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Never called."""


class LotLimiter:
    """The least that bounds anything: a flag, and a bare ParkingLot to wait in. It checks and counts nothing."""

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()
        self._taken = False

    async def __aenter__(self) -> Self:
        if self._taken:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        if self._taken:
            await self._lot.park()
        else:
            self._taken = True
        return self

    async def __aexit__(  # noqa: ASYNC910 - leaving is no checkpoint, as in all that is compared
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not self._lot.unpark():
            self._taken = False


REFERENCE: Final = "trio.CapacityLimiter"
"""The subject that the ratios refer to."""

SHIPPED: Final = "Gate"
"""The gate as it is shipped: statistics on, log lines attached, the root logger at WARNING."""

WATCHED: Final = "one progress watcher"
"""The option that shows only while somebody waits."""

SUBJECTS: Final[dict[str, Callable[[], Subject]]] = {
    REFERENCE: lambda: Primitive(trio.CapacityLimiter(1)),
    "trio.Semaphore": lambda: Primitive(trio.Semaphore(1)),
    "ParkingLot": lambda: Primitive(LotLimiter()),
    SHIPPED: lambda: Gated(Gate(1)),
    "Gate, hooks=()": lambda: Gated(Gate(1, hooks=())),
}
"""How to make each subject, by the name that the table gives it."""

PARKED: Final = "parked by hand"
"""The least that trio itself needs for a task that waits."""

WAITERS: Final[dict[str, Callable[[], Subject]]] = {PARKED: lambda: Primitive(Parked()), **SUBJECTS}
"""Those that are compared by how they wait and are cancelled."""

OPTIONS: Final[dict[str, Callable[[], Subject]]] = {
    SHIPPED: SUBJECTS[SHIPPED],
    "hooks=()": SUBJECTS["Gate, hooks=()"],
    "outer_deadline='allow'": lambda: Gated(Gate(1, outer_deadline="allow")),
    "outer_deadline='raise'": lambda: Gated(Gate(1, outer_deadline="raise")),
    "aging=600": lambda: Gated(Gate(1, aging=600)),
    "reserved={0: 1}": lambda: Gated(Gate(1, reserved={0: 1})),
    "max_waiting=10**6": lambda: Gated(Gate(1, max_waiting=10**6)),
    "max_waiting={0: 10**6, 100: 10**5}": lambda: Gated(Gate(1, max_waiting={0: 10**6, 100: 10**5})),
    "supersede=key": lambda: Keyed(Gate(1)),
    WATCHED: lambda: Watched(Gate(1)),
}
"""The gate as it is shipped, and with one option each."""

ASYNCIO_REFERENCE: Final = "anyio.CapacityLimiter"
"""What the ratios refer to under asyncio."""

ON_ASYNCIO: Final[dict[str, Callable[[], Subject]]] = {
    ASYNCIO_REFERENCE: lambda: Primitive(anyio.CapacityLimiter(1)),
    "asyncio.Semaphore": lambda: Primitive(asyncio.Semaphore(1)),
    SHIPPED: lambda: Gated(for_anyio.Gate(1)),
}
"""What is compared under asyncio."""

LINES: Final[dict[str, Callable[[], Subject]]] = {SHIPPED: SUBJECTS[SHIPPED], "Gate, aging": OPTIONS["aging=600"]}
"""The gates whose queues are looked through in different ways."""
