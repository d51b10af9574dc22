"""Checks of how a gate comes to rest, of slots whose tasks have ended, and of its limiter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio

from trio_mlxgate.testing.backends import settle
from trio_mlxgate.testing.checking import Check, GateFactory, Holder, empty, require
from trio_mlxgate.testing.events import LawBroken

if TYPE_CHECKING:
    from trio_mlxgate.testing.harness import Harness


class Refused(Holder):
    """A holder that may be refused with an error, and says with which."""

    refused: type[Exception] | None = None

    async def run(self) -> None:  # noqa: ASYNC910 - asking is a checkpoint, also where it is refused
        """Ask, hold, end. A checkpoint."""
        try:
            await super().run()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
            self.refused = type(error)


async def _refuses_newcomers(on: Harness, gate: Any, error: type[Exception]) -> None:  # noqa: ASYNC910 - loops twice
    """See that nobody is let in. A checkpoint."""
    before = gate.statistics().in_flight
    for max_wait in (5, 0):
        try:
            with on.assert_checkpoints():
                async with gate.slot(max_wait=max_wait):
                    raise LawBroken("a newcomer was let in")
        except error:
            pass
    try:
        with gate.slot_nowait():
            raise LawBroken("a newcomer was let in by slot_nowait")
    except error:
        pass
    require(gate.statistics().in_flight == before, "a refused newcomer holds a slot")


def a_closed_gate_lets_nobody_in_and_holders_finish(factory: GateFactory, on: Harness) -> None:
    """Law 19: aclose() sends waiters and newcomers away with ClosedResourceError, holders keep their slots."""

    async def main() -> None:
        gate: Any = factory(1)
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            waiter = Refused(gate)
            await waiter.started(tasks)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await gate.aclose()
            await settle()
            require(scope.cancelled_caught, "aclose() is a checkpoint, also for who is cancelled")
            require(waiter.refused is on.dialect.closed, f"a waiter was refused with {waiter.refused}")
            now = gate.statistics()
            require((now.in_flight, now.tasks_waiting) == (1, 0), f"one holds its slot, and nobody waits: {now}")
            await _refuses_newcomers(on, gate, on.dialect.closed)
            gate.capacity = 3
            await _refuses_newcomers(on, gate, on.dialect.closed)
            with on.assert_checkpoints():
                await gate.aclose()
            holder.end()
            await gate.wait_idle()
            require(gate.statistics().in_flight == 0, "wait_idle() returned while a slot was held")

    on.run(main)


def a_drained_gate_serves_who_waits(factory: GateFactory, on: Harness) -> None:
    """Law 19: drain() refuses newcomers, serves who waits, and returns when nobody holds and nobody waits."""

    async def main() -> None:
        gate: Any = factory(1)
        drained = anyio.Event()

        async def drain() -> None:
            await gate.drain()
            drained.set()

        async with on.tasks() as tasks:
            holders = [await Holder(gate).started(tasks) for _ in range(3)]
            with anyio.CancelScope() as scope:
                scope.cancel()
                await gate.drain()
            require(scope.cancelled_caught, "drain() is a checkpoint, also for who is cancelled")
            tasks.start_soon(drain)
            await settle()
            await _refuses_newcomers(on, gate, on.dialect.closed)
            for number, holder in enumerate(holders):
                require(holder.inside, f"waiter {number} of a drained gate was not served")
                require(not drained.is_set(), "drain() returned while somebody held or waited")
                holder.end()
                await settle()
            require(drained.is_set(), "drain() does not return although the gate is idle")

    on.run(main)


def who_holds_a_slot_may_not_wait_for_rest(factory: GateFactory, on: Harness) -> None:
    """Law 17: a task that holds a slot and waits until the gate is idle gets RuntimeError, and changes nothing."""

    async def main() -> None:
        gate: Any = factory(1)
        async with gate.slot():
            for wait in (gate.drain, gate.wait_idle):
                try:
                    await wait()
                except RuntimeError:
                    continue
                raise LawBroken("the task waited for its own slot")
        await empty(gate)

    on.run(main)


def a_slot_of_an_ended_task_is_taken_back(factory: GateFactory, on: Harness) -> None:
    """Law 2: a slot whose task has ended without giving it back is taken back then, and handed on."""

    async def forget(gate: Any) -> None:  # a checkpoint
        await gate.slot().__aenter__()
        await anyio.sleep(1)

    async def main() -> None:
        gate: Any = factory(1)
        async with on.tasks() as tasks:
            tasks.start_soon(forget, gate)
            await settle()
            waiter = await Holder(gate).started(tasks)
            begun = anyio.current_time()
            waiter.end()
        require(waiter.entered_at == begun + 1, "the slot of an ended task was not handed on when that ended")
        await empty(gate)

    on.run(main)


def a_slot_of_an_ended_task_is_missing_for_a_pass_at_most(factory: GateFactory, on: Harness) -> None:
    """Law 2: a slot whose task has ended is taken back in that step; under asyncio, one pass later at the latest."""

    async def main() -> None:
        gate: Any = factory(1)
        ended = False

        async def forget() -> None:  # a checkpoint
            nonlocal ended
            await gate.slot().__aenter__()
            await on.tick()
            ended = True

        async def forget_at_once() -> None:  # noqa: ASYNC124, ASYNC910 - a task is a coroutine
            nonlocal ended
            gate.slot_nowait().__enter__()
            ended = True

        for way in (forget, forget_at_once):
            ended = False
            async with on.tasks(native=True) as tasks:
                tasks.start_soon(way)
                while not ended:
                    await on.tick()
                if on.is_asyncio:
                    await on.tick()
                now = gate.statistics()
                require(now.in_flight == 0, f"the task has ended, and holds its slot: {now}")
        await empty(gate)

    on.run(main)


def a_strict_gate_breaks_when_a_slot_is_lost(factory: GateFactory, on: Harness) -> None:
    """Law 19: with strict=True a lost slot breaks the gate: waiters and newcomers get BrokenResourceError."""

    async def forget(gate: Any) -> None:  # a checkpoint
        await gate.slot().__aenter__()
        await anyio.sleep(1)

    async def main() -> None:
        gate: Any = factory(1, strict=True)
        async with on.tasks() as tasks:
            tasks.start_soon(forget, gate)
            await settle()
            waiter = Refused(gate)
            await waiter.started(tasks)
            await anyio.sleep(1)
            await settle()
            require(waiter.refused is on.dialect.broken, f"a waiter was refused with {waiter.refused}")
        await _refuses_newcomers(on, gate, on.dialect.broken)
        require(gate.statistics().in_flight == 0, "the lost slot is counted as held")

    on.run(main)


def a_borrower_that_waits_twice_gets_no_more_than_there_is(factory: GateFactory, on: Harness) -> None:
    """Law 6: through limiter() each acquire is a slot of its own, also of one borrower that waits twice at once."""

    async def main() -> None:
        gate: Any = factory(1)
        limiter = gate.limiter()
        seen: list[int] = []

        async def borrow() -> None:
            await limiter.acquire_on_behalf_of("borrower")
            seen.append(gate.statistics().in_flight)
            await anyio.sleep(1)
            limiter.release_on_behalf_of("borrower")

        await limiter.acquire_on_behalf_of("other")
        async with on.tasks() as tasks:
            tasks.start_soon(borrow)
            tasks.start_soon(borrow)
            await settle()
            require(gate.statistics().tasks_waiting == 2, "each acquire stands in the queue by itself")
            limiter.release_on_behalf_of("other")
        require(seen == [1, 1], f"so many were in flight: {seen}")
        async with gate.slot():
            try:
                await limiter.acquire_on_behalf_of("borrower")
            except RuntimeError:
                pass
            else:
                raise LawBroken("the task that owns a slot was given a second one by the limiter")
        await empty(gate)

    on.run(main)


END_CHECKS: Final[dict[str, tuple[Check, ...]]] = {
    "ends": (
        a_closed_gate_lets_nobody_in_and_holders_finish,
        a_drained_gate_serves_who_waits,
        who_holds_a_slot_may_not_wait_for_rest,
    ),
    "strict": (
        a_slot_of_an_ended_task_is_taken_back,
        a_slot_of_an_ended_task_is_missing_for_a_pass_at_most,
        a_strict_gate_breaks_when_a_slot_is_lost,
    ),
    "limiter": (a_borrower_that_waits_twice_gets_no_more_than_there_is,),
}
"""The single checks of each of these options."""
