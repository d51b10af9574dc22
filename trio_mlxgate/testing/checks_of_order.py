"""Checks of capacity and order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from trio_mlxgate.priority import Priority
from trio_mlxgate.testing.backends import settle
from trio_mlxgate.testing.checking import GateFactory, Holder, empty, require
from trio_mlxgate.testing.events import LawBroken

if TYPE_CHECKING:
    from trio_mlxgate.testing.harness import Harness


def a_raise_grants_as_many_as_fit(factory: GateFactory, on: Harness) -> None:
    """Law 8: a raise from 1 to 4 with a queue runs four at once, in the same step."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks() as tasks:
            holders = [await Holder(gate).started(tasks) for _ in range(6)]
            gate.capacity = 4
            require(gate.statistics().in_flight == 4, f"after the raise to 4: {gate.statistics()}")
            await settle()
            inside = [holder.inside for holder in holders]
            require(inside == [True] * 4 + [False] * 2, f"after the raise to 4, inside are {inside}")
            for holder in holders:
                holder.end()
        await empty(gate)

    on.run(main)


def a_fall_drains(factory: GateFactory, on: Harness) -> None:
    """Law 9: a fall from 4 to 1 interrupts nobody and lets nobody in until fewer than 1 are inside."""

    async def main() -> None:
        gate = factory(4)
        async with on.tasks() as tasks:
            holders = [await Holder(gate).started(tasks) for _ in range(6)]
            gate.capacity = 1
            for ended in range(6):
                await settle()
                inside = sum(holder.inside for holder in holders)
                require(inside == max(1, 4 - ended), f"{inside} are inside after {ended} of 4 ended")
                next(holder for holder in holders if holder.inside).end()
        await empty(gate)

    on.run(main)


def capacity_0_pauses(factory: GateFactory, on: Harness) -> None:
    """Law 9: capacity 0 lets nobody in, from the start or later, and a raise resumes."""

    async def main() -> None:
        gate = factory(0)
        async with on.tasks() as tasks:
            first, second = [await Holder(gate).started(tasks) for _ in range(2)]
            await anyio.sleep(1000)
            require(not first.inside and not second.inside, "somebody is inside at capacity 0")
            try:
                with gate.slot_nowait():
                    raise LawBroken("slot_nowait entered at capacity 0")
            except on.dialect.would_block:
                pass
            gate.capacity = 1
            await settle()
            require(first.inside and not second.inside, "the raise from 0 to 1 must let the first in")
            gate.capacity = 0
            first.end()
            await settle()
            require(not second.inside, "somebody was let in at capacity 0")
            gate.capacity = 1
            second.end()
        await empty(gate)

    on.run(main)


def a_bad_capacity_changes_nothing(factory: GateFactory, on: Harness) -> None:
    """Law 9: what is no int >= 0 (a bool isn't one) is a TypeError or ValueError, and the last good value binds."""

    async def main() -> None:
        gate = factory(2)
        bad: tuple[object, ...] = (True, False, 1.5, math.nan, -1, "2", None)
        async with on.tasks() as tasks:
            holders = [await Holder(gate).started(tasks) for _ in range(3)]
            for value in bad:
                before = gate.statistics()
                try:
                    gate.capacity = value  # type: ignore[assignment]
                except (TypeError, ValueError):
                    pass
                else:
                    raise LawBroken(f"the capacity {value!r} was accepted")
                require(gate.capacity == 2, f"after the refused capacity {value!r} it is {gate.capacity!r}")
                require(gate.statistics() == before, f"the refused capacity {value!r} changed the gate")
            for holder in holders:
                holder.end()
        for value in bad:
            try:
                factory(value)
            except (TypeError, ValueError):
                pass
            else:
                raise LawBroken(f"a gate of capacity {value!r} could be made")
        await empty(gate)

    on.run(main)


def the_better_priority_goes_first_and_equals_in_order(factory: GateFactory, on: Harness) -> None:
    """Law 11: strict priority, first come first served within one, and nobody who runs is interrupted."""

    async def main() -> None:
        gate = factory(1)
        priorities = [100, 0, 100, 50, 0, -3, 7]
        async with on.tasks() as tasks:
            running = await Holder(gate, 1000).started(tasks)
            waiters = [await Holder(gate, priority).started(tasks) for priority in priorities]
            require(running.inside, "who runs was interrupted by who waits")
            order = []
            running.end()
            for _ in waiters:
                await settle()
                (now,) = (index for index, waiter in enumerate(waiters) if waiter.inside)
                order.append(now)
                waiters[now].end()
        expected = [5, 1, 4, 6, 3, 0, 2]
        require(order == expected, f"calls of the priorities {priorities} came in as {order}, not {expected}")
        await empty(gate)

    on.run(main)


def nobody_barges(factory: GateFactory, on: Harness) -> None:
    """Law 12: a slot that was given back is its waiter's at once, no newcomer's, by slot_nowait or not."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks() as tasks:
            async with gate.slot():
                waiter = await Holder(gate).started(tasks)
            # In the very step in which a slot was given back, before its waiter could run:
            try:
                with gate.slot_nowait(Priority.FOREGROUND):
                    raise LawBroken("slot_nowait went past a waiter")
            except on.dialect.would_block:
                pass
            newcomer = await Holder(gate, Priority.FOREGROUND).started(tasks)
            require(waiter.inside and not newcomer.inside, "a newcomer took the slot that was a waiter's already")
            waiter.end()
            newcomer.end()
        await empty(gate)

    on.run(main)
