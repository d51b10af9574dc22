"""Checks of how a gate comes to rest, of slots whose tasks have ended, and of its limiter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_mlxgate.testing.checking import GateFactory, Holder, empty, require, run
from trio_mlxgate.testing.events import LawBroken

if TYPE_CHECKING:
    from collections.abc import Callable


class Refused(Holder):
    """A holder that may be refused with one of trio's errors, and says with which."""

    refused: type[Exception] | None = None

    async def run(self) -> None:  # noqa: ASYNC910 - asking is a checkpoint, also where it is refused
        """Ask, hold, end. A checkpoint."""
        try:
            await super().run()
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            self.refused = type(error)


async def _refuses_newcomers(gate: Any, error: type[Exception]) -> None:  # noqa: ASYNC910 - loops twice
    """See that nobody is let in. A checkpoint."""
    before = gate.statistics().in_flight
    for max_wait in (5, 0):
        try:
            with assert_checkpoints():
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


def a_closed_gate_lets_nobody_in_and_holders_finish(factory: GateFactory) -> None:
    """Law 19: aclose() sends waiters and newcomers away with ClosedResourceError, holders keep their slots."""

    async def main() -> None:
        gate: Any = factory(1)
        async with trio.open_nursery() as nursery:
            holder = await Holder(gate).started(nursery)
            waiter = Refused(gate)
            await waiter.started(nursery)
            with trio.CancelScope() as scope:
                scope.cancel()
                await gate.aclose()
            await wait_all_tasks_blocked()
            require(scope.cancelled_caught, "aclose() is a checkpoint, also for who is cancelled")
            require(waiter.refused is trio.ClosedResourceError, f"a waiter was refused with {waiter.refused}")
            now = gate.statistics()
            require((now.in_flight, now.tasks_waiting) == (1, 0), f"one holds its slot, and nobody waits: {now}")
            await _refuses_newcomers(gate, trio.ClosedResourceError)
            gate.capacity = 3
            await _refuses_newcomers(gate, trio.ClosedResourceError)
            with assert_checkpoints():
                await gate.aclose()
            holder.end()
            await gate.wait_idle()
            require(gate.statistics().in_flight == 0, "wait_idle() returned while a slot was held")

    run(main)


def a_drained_gate_serves_who_waits(factory: GateFactory) -> None:
    """Law 19: drain() refuses newcomers, serves who waits, and returns when nobody holds and nobody waits."""

    async def main() -> None:
        gate: Any = factory(1)
        drained = trio.Event()

        async def drain() -> None:
            await gate.drain()
            drained.set()

        async with trio.open_nursery() as nursery:
            holders = [await Holder(gate).started(nursery) for _ in range(3)]
            with trio.CancelScope() as scope:
                scope.cancel()
                await gate.drain()
            require(scope.cancelled_caught, "drain() is a checkpoint, also for who is cancelled")
            nursery.start_soon(drain)
            await wait_all_tasks_blocked()
            await _refuses_newcomers(gate, trio.ClosedResourceError)
            for number, holder in enumerate(holders):
                require(holder.inside, f"waiter {number} of a drained gate was not served")
                require(not drained.is_set(), "drain() returned while somebody held or waited")
                holder.end()
                await wait_all_tasks_blocked()
            require(drained.is_set(), "drain() does not return although the gate is idle")

    run(main)


def who_holds_a_slot_may_not_wait_for_rest(factory: GateFactory) -> None:
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

    run(main)


def a_slot_of_an_ended_task_is_taken_back(factory: GateFactory) -> None:
    """Law 2: a slot whose task has ended without giving it back is taken back in that step, and handed on."""

    async def forget(gate: Any) -> None:  # a checkpoint
        await gate.slot().__aenter__()
        await trio.sleep(1)

    async def main() -> None:
        gate: Any = factory(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forget, gate)
            await wait_all_tasks_blocked()
            waiter = await Holder(gate).started(nursery)
            begun = trio.current_time()
            waiter.end()
        require(waiter.entered_at == begun + 1, "the slot of an ended task was not handed on when that ended")
        await empty(gate)

    run(main)


def a_strict_gate_breaks_when_a_slot_is_lost(factory: GateFactory) -> None:
    """Law 19: with strict=True a lost slot breaks the gate: waiters and newcomers get BrokenResourceError."""

    async def forget(gate: Any) -> None:  # a checkpoint
        await gate.slot().__aenter__()
        await trio.sleep(1)

    async def main() -> None:
        gate: Any = factory(1, strict=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forget, gate)
            await wait_all_tasks_blocked()
            waiter = Refused(gate)
            await waiter.started(nursery)
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            require(waiter.refused is trio.BrokenResourceError, f"a waiter was refused with {waiter.refused}")
        await _refuses_newcomers(gate, trio.BrokenResourceError)
        require(gate.statistics().in_flight == 0, "the lost slot is counted as held")

    run(main)


def a_borrower_that_waits_twice_gets_no_more_than_there_is(factory: GateFactory) -> None:
    """Law 6: through limiter() each acquire is a slot of its own, also of one borrower that waits twice at once."""

    async def main() -> None:
        gate: Any = factory(1)
        limiter = gate.limiter()
        seen: list[int] = []

        async def borrow() -> None:
            await limiter.acquire_on_behalf_of("borrower")
            seen.append(gate.statistics().in_flight)
            await trio.sleep(1)
            limiter.release_on_behalf_of("borrower")

        await limiter.acquire_on_behalf_of("other")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(borrow)
            nursery.start_soon(borrow)
            await wait_all_tasks_blocked()
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

    run(main)


END_CHECKS: Final[dict[str, tuple[Callable[[GateFactory], None], ...]]] = {
    "ends": (
        a_closed_gate_lets_nobody_in_and_holders_finish,
        a_drained_gate_serves_who_waits,
        who_holds_a_slot_may_not_wait_for_rest,
    ),
    "strict": (a_slot_of_an_ended_task_is_taken_back, a_strict_gate_breaks_when_a_slot_is_lost),
    "limiter": (a_borrower_that_waits_twice_gets_no_more_than_there_is,),
}
"""The single checks of each of these options."""
