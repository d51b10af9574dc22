"""A wait that is cancelled settles the queue in that step, and wakes whom that lets in, on each library.

By the rules of today the removal of a waiter lets nobody in, since it frees no slot. So the core is helped a little:
its capacity is raised behind its back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.drivers import DRIVERS, dialect_of
from trio_mlxgate.testing import settle
from trio_mlxgate.testing.checking import Holder
from trio_mlxgate.testing.harness import harness

if TYPE_CHECKING:
    from trio_mlxgate import Gate
    from trio_mlxgate.testing import Backend


@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
@pytest.mark.parametrize(("driver", "backend"), DRIVERS)
def test_whom_a_cancelled_wait_lets_in_is_woken(driver: type[Gate], backend: Backend, native: bool) -> None:
    on = harness(backend, dialect_of(driver))

    async def main() -> None:
        gate = driver(1)
        async with on.tasks(native=True) as tasks:
            holder = await Holder(gate).started(tasks)
            leaving = Holder(gate)
            task: Any = tasks.start_soon(leaving.run)
            await settle()
            staying = await Holder(gate).started(tasks)
            gate._admission.capacity = 2
            if native and isinstance(task, asyncio.Task):
                task.cancel()
            else:
                leaving.scope.cancel()
            now = gate.statistics()
            assert (now.in_flight, now.tasks_waiting, now.cancelled) == (2, 0, 1)
            with anyio.fail_after(1):
                await settle()
            assert staying.inside
            assert not leaving.inside
            holder.end()
            staying.end()

    on.run(main)
