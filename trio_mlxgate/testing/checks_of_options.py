"""Checks of the gate's options, each for an implementation that has the option."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Final

import anyio

from trio_mlxgate.errors import GateRefused, QueueFull, Superseded, WaitTooLong
from trio_mlxgate.testing.backends import settle
from trio_mlxgate.testing.checking import BACKGROUND, FOREGROUND, Check, GateFactory, Holder, empty, require

if TYPE_CHECKING:
    from trio_mlxgate.testing.events import GateLike
    from trio_mlxgate.testing.harness import Harness, Tasks


class Refused(Holder):
    """A holder that may be refused, and says by what."""

    refused: GateRefused | None = None
    at = math.nan

    async def run(self) -> None:  # noqa: ASYNC910 - asking is a checkpoint, also where it is refused
        """Ask, hold, end. A checkpoint."""
        try:
            await super().run()
        except GateRefused as refused:
            self.refused = refused
            self.at = anyio.current_time()


def a_waiter_is_passed_only_by_those_within_its_window(factory: GateFactory, on: Harness) -> None:
    """Law 13: with aging=60 a BACKGROUND waiter is passed by FOREGROUND ones that come less than 60 s later alone."""

    async def main() -> None:
        gate = factory(1, aging=60.0)
        entered: list[str] = []

        async def call(name: str, priority: int) -> None:  # a checkpoint
            async with gate.slot(priority):
                entered.append(name)
                await anyio.sleep(1)

        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            for name, priority, pause in (
                ("old digest", BACKGROUND, 59),
                ("person within the window", FOREGROUND, 0),
                ("halfway", 50, 1),
                ("person on its edge", FOREGROUND, 0),
                ("person after it", FOREGROUND, 0),
                ("young digest", BACKGROUND, 0),
            ):
                tasks.start_soon(call, name, priority)
                await settle()
                await anyio.sleep(pause)
            holder.end()
        # Ranks: 60, 59, 89, 60, 60, 120: equal ones in the order of their arrival.
        expected = [
            "person within the window",
            "old digest",
            "person on its edge",
            "person after it",
            "halfway",
            "young digest",
        ]
        require(entered == expected, f"the order was {entered}")
        await empty(gate)

    on.run(main)


def a_reserved_slot_is_kept_from_worse_priorities(factory: GateFactory, on: Harness) -> None:
    """Law 11: with reserved={FOREGROUND: 1} the background leaves one slot free; whoever may have it is let in."""

    async def main() -> None:
        gate = factory(3, reserved={FOREGROUND: 1})
        async with on.tasks() as tasks:
            digests = [await Holder(gate).started(tasks) for _ in range(3)]
            inside = [digest.inside for digest in digests]
            require(inside == [True, True, False], f"of three digests, inside are {inside}")
            try:
                with gate.slot_nowait(BACKGROUND):
                    require(False, "slot_nowait took the reserved slot")
            except on.dialect.would_block:
                pass
            person = await Holder(gate, FOREGROUND).started(tasks)
            require(person.inside, "the slot is reserved for a person, and no person gets it")
            second = await Holder(gate, FOREGROUND).started(tasks)
            digests[0].end()
            await settle()
            require(second.inside, "a person waits, and the slot went to a digest")
            # Two persons and a digest are inside. The background holds one slot, and may have two.
            person.end()
            await settle()
            require(digests[2].inside, "the background may have two slots, and has one")
            for holder in (digests[1], digests[2], second):
                holder.end()
        await empty(_all_open(gate))

    on.run(main)


def the_reserve_has_no_effect_at_capacity_1(factory: GateFactory, on: Harness) -> None:
    """Law 7: what is reserved never shuts out the others: one slot is left to them, also if all are reserved."""

    async def main() -> None:
        for capacity in (1, 2):
            gate = factory(capacity, reserved={FOREGROUND: 5})
            async with on.tasks() as tasks:
                digests = [await Holder(gate).started(tasks) for _ in range(2)]
                inside = [digest.inside for digest in digests]
                require(inside == [True, False], f"of two digests at capacity {capacity}, inside are {inside}")
                digests[0].end()
                await settle()
                require(digests[1].inside, "the slot was given back, and who waits doesn't get it")
                gate.capacity = 7
                more = await Holder(gate).started(tasks)
                require(more.inside, "the capacity was raised by more than is reserved, and one more does not get in")
                for holder in (digests[1], more):
                    holder.end()

    on.run(main)


def a_full_queue_refuses_at_once(factory: GateFactory, on: Harness) -> None:
    """Law 4: with max_waiting, one more is refused at once with QueueFull; who need not wait never is."""

    async def main() -> None:
        gate = factory(1, max_waiting=1)
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            waiter = await Holder(gate).started(tasks)
            for priority in (BACKGROUND, FOREGROUND):
                await _refused_as_full(on, gate, priority)
            holder.end()
            await settle()
            require(waiter.inside, "who waits is let in")
            waiter.end()
            await settle()
            async with gate.slot():
                require(gate.statistics().in_flight == 1, "who need not wait is let in")
        now = gate.statistics()
        require((now.admitted, now.rejected, now.cancelled) == (3, 2, 0), f"3 admitted, 2 rejected: {now}")
        await empty_without_a_queue(gate)
        gate = factory(1, max_waiting=0)
        async with gate.slot():
            await anyio.sleep(8)
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            await anyio.sleep(3)
            try:
                async with gate.slot():
                    require(False, "one more than may wait was let in")
            except QueueFull as full:
                require(full.retry_after == 5, f"retry_after is {full.retry_after}, and the holder has 5 s of 8 left")
            holder.end()
        gate = factory(1, max_waiting={BACKGROUND: 1, 50: 2})
        async with on.tasks() as tasks:
            holders = [await Holder(gate).started(tasks) for _ in range(2)]
            await _refused_as_full(on, gate, BACKGROUND)
            await _refused_as_full(on, gate, BACKGROUND + 1)
            holders.append(await Holder(gate, 50).started(tasks))
            await _refused_as_full(on, gate, 50)
            await _refused_as_full(on, gate, 99)
            holders += [await Holder(gate, 49).started(tasks) for _ in range(3)]
            require(gate.statistics().tasks_waiting == 5, "better priorities than those named have no limit")
            for holder in holders:
                holder.end()

    on.run(main)


async def _refused_as_full(on: Harness, gate: GateLike, priority: int) -> None:  # noqa: ASYNC910 - as above
    """Must be a checkpoint that takes no time. A checkpoint."""
    begun = anyio.current_time()
    with on.assert_checkpoints():
        try:
            async with gate.slot(priority):
                require(False, "one more than may wait was let in")
        except QueueFull:
            pass
    require(anyio.current_time() == begun, "it took time to say that the queue is full")


async def empty_without_a_queue(gate: GateLike) -> None:
    """:func:`empty`, for a gate in which nobody may wait. A checkpoint."""
    await settle()
    now = gate.statistics()
    require((now.in_flight, now.tasks_waiting) == (0, 0), f"nobody is there: {now}")


def a_newer_call_takes_the_place_of_an_older_one(factory: GateFactory, on: Harness) -> None:
    """Law 11: with supersede= a newer call takes the very place of the older, which gets Superseded at once."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            older = _refusable(gate, tasks, BACKGROUND, "page 1", max_wait=5)
            await settle()
            other = await Holder(gate).started(tasks)
            await anyio.sleep(3)
            newer = _refusable(gate, tasks, BACKGROUND, "page 1", max_wait=10)
            await settle()
            require(isinstance(older.refused, Superseded), f"the older got {older.refused!r}")
            require(older.at == anyio.current_time(), "the older got it late")
            require(gate.statistics().tasks_waiting == 2, f"two wait: {gate.statistics()}")
            await anyio.sleep(8)
            holder.end()
            await settle()
            require(newer.inside and not other.inside, "the newer does not stand in the older's place")
            # Who was granted a slot is left alone.
            last = _refusable(gate, tasks, FOREGROUND, "page 1")
            await settle()
            require(newer.inside and newer.refused is None, "who was granted a slot was superseded")
            # Of another priority: the older is refused, and the newer queues last in its own class.
            changed = _refusable(gate, tasks, BACKGROUND, "page 1")
            await settle()
            require(isinstance(last.refused, Superseded), f"the older of another priority got {last.refused!r}")
            newer.end()
            await settle()
            require(other.inside and not changed.inside, "the newer passed one who came first in its class")
            other.end()
            await settle()
            changed.end()
        now = gate.statistics()
        require((now.admitted, now.rejected) == (4, 2), f"4 admitted, 2 rejected: {now}")
        await empty(gate)

    on.run(main)


def who_is_not_let_in_supersedes_nobody(factory: GateFactory, on: Harness) -> None:
    """Law 4: a call that is cancelled when it asks, is refused, or has another key, kicks nobody."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            older = _refusable(gate, tasks, BACKGROUND, "page 1")
            await settle()
            cancelled = Refused(gate, BACKGROUND, supersede="page 1")
            cancelled.scope.cancel()
            tasks.start_soon(cancelled.run)
            impatient = _refusable(gate, tasks, FOREGROUND, "page 1", max_wait=0)
            another = _refusable(gate, tasks, BACKGROUND, "page 2")
            await settle()
            require(isinstance(impatient.refused, WaitTooLong), f"max_wait=0 got {impatient.refused!r}")
            try:
                nowait: Any = gate.slot_nowait
                with nowait(BACKGROUND, supersede="page 1"):
                    require(False, "slot_nowait barged in")
            except on.dialect.would_block:
                pass
            require(older.refused is None, f"{older.refused!r} although nobody took its place")
            require(gate.statistics().tasks_waiting == 2, f"two wait: {gate.statistics()}")
            holder.end()
            await settle()
            require(older.inside, "the older is let in")
            older.end()
            another.end()
        await empty(gate)

    on.run(main)


def _refusable(gate: GateLike, tasks: Tasks, priority: int, key: str, *, max_wait: float = math.inf) -> Refused:
    holder = Refused(gate, priority, max_wait=max_wait, supersede=key)
    tasks.start_soon(holder.run)
    return holder


def positions_are_1_to_n(factory: GateFactory, on: Harness) -> None:
    """Law 16: ``slot.position`` is 1..n in rank order at every moment, and None for who does not wait."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks() as tasks:
            holder = Holder(gate)
            require(holder.slot.position is None, "who has not asked has a position")
            await holder.started(tasks)
            digest = await Holder(gate).started(tasks)
            second = await Holder(gate).started(tasks)
            person = await Holder(gate, FOREGROUND).started(tasks)
            seen = [each.slot.position for each in (holder, person, digest, second)]
            require(seen == [None, 1, 2, 3], f"the positions are {seen}")
            digest.scope.cancel()
            seen = [each.slot.position for each in (person, digest, second)]
            require(seen == [1, None, 2], f"in the step of a cancellation the positions are {seen}")
            holder.end()
            await settle()
            seen = [each.slot.position for each in (person, second)]
            require(seen == [None, 1], f"after a grant the positions are {seen}")
            person.end()
            second.end()
        await empty(gate)

    on.run(main)


def the_estimate_is_what_the_past_says(factory: GateFactory, on: Harness) -> None:
    """Law 16: ``slot.estimated_wait``: what is left of the mean holds, and the holds of who goes first, by capacity."""

    async def main() -> None:
        gate = factory(2)
        require(gate.slot().estimated_wait is None, "who does not wait has an estimate")  # type: ignore[attr-defined]
        for priority, hold in ((BACKGROUND, 10), (BACKGROUND, 20), (FOREGROUND, 2)):
            async with gate.slot(priority):
                await anyio.sleep(hold)
        async with on.tasks() as tasks:
            long = await Holder(gate).started(tasks)
            await anyio.sleep(40)
            short = await Holder(gate).started(tasks)
            await anyio.sleep(5)
            digest = await Holder(gate).started(tasks)
            person = await Holder(gate, FOREGROUND).started(tasks)
            # A digest takes 15 s, a person 2. One holder is long beyond its mean, the other has 10 s left.
            seen = [each.slot.estimated_wait for each in (person, digest)]
            require(seen == [5.0, 6.0], f"the estimates are {seen} and not [5, 6]")
            gate.capacity = 0
            seen = [each.slot.estimated_wait for each in (person, digest)]
            require(seen == [None, None], f"at capacity 0 the estimates are {seen}")
            gate.capacity = 1
            seen = [each.slot.estimated_wait for each in (person, digest)]
            require(seen == [10.0, 12.0], f"at capacity 1 the estimates are {seen} and not [10, 12]")
            for each in (long, short, person, digest):
                each.end()
        await empty(gate)

    on.run(main)


def a_deadline_around_the_wait_is_reported(factory: GateFactory, on: Harness) -> None:
    """Law 15: a finite deadline of the caller around the wait is told with file and line, once for each place."""

    async def main() -> None:
        gate = factory(1)

        async def told(deadline: float, **options: Any) -> list[warnings.WarningMessage]:  # a checkpoint
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with anyio.CancelScope(deadline=deadline):
                    async with gate.slot(**options):
                        pass
            return caught

        require(not await told(math.inf), "a deadline that is none was reported")
        reports = await told(anyio.current_time() + 60)
        require(len(reports) == 1, f"a deadline of the caller was reported {len(reports)} times")
        first = reports[0]
        where = (first.filename, first.lineno)
        start = told.__code__.co_firstlineno
        here = where[0] == __file__ and start < where[1] < start + 8
        require(here, f"the deadline of {__file__}:{start + 4} was reported at {where[0]}:{where[1]}")
        require(not await told(anyio.current_time() + 60), "the same place was reported twice")
        require(not await told(anyio.current_time() + 60, outer_deadline="allow"), "what is allowed was reported")
        before = gate.statistics()
        for strict, options in ((gate, {"outer_deadline": "raise"}), (factory(1, outer_deadline="raise"), {})):
            gate = strict
            try:
                await told(anyio.current_time() + 60, **options)
            except RuntimeError:
                pass
            else:
                require(False, "outer_deadline='raise' did not raise")
            require(strict.statistics().in_flight == 0, "who was refused holds a slot")
            if options:
                require(strict.statistics() == before, "a mistake of the program was counted")
        require(not await told(math.inf), "without a deadline it goes on")

    on.run(main)


def progress_is_told_once_for_each_change(factory: GateFactory, on: Harness) -> None:
    """Law 16: ``gate.progress(slot)`` gives each position once, the latest alone to who is slow, and then ends."""

    async def main() -> None:
        gate: Any = factory(1)
        async with on.tasks() as tasks:
            holders = [await Holder(gate).started(tasks) for _ in range(3)]
            last = Holder(gate)
            seen: list[int] = []
            ended = anyio.Event()

            async def watch() -> None:  # a checkpoint
                async for outlook in gate.progress(last.slot):
                    seen.append(outlook.position)  # noqa: PERF401 - it is looked at while it grows
                ended.set()

            tasks.start_soon(watch)
            await settle()
            require(not seen, f"before it asks it is told {seen}")
            await last.started(tasks)
            require(seen == [3], f"of three who wait the last is told {seen}")
            await Holder(gate, FOREGROUND + 1).started(tasks)
            require(seen == [3, 4], f"after one passed it is told {seen}")
            later = await Holder(gate).started(tasks)
            require(seen == [3, 4], f"after one came behind it is told {seen}")
            for holder in holders[1:]:
                holder.scope.cancel()
            await settle()
            require(seen == [3, 4, 2], f"after two have left at once it is told {seen}")
            last.scope.cancel()
            await settle()
            require(ended.is_set(), "the loop goes on although the call waits no more")
            require(seen == [3, 4, 2], f"when it has left it is told {seen}")
            later.scope.cancel()
            tasks.cancel()
        await empty(gate)

    on.run(main)


def _all_open(gate: GateLike) -> GateLike:
    """The gate, for :func:`empty`, which asks in the background: with one slot more than it reserves from that."""
    gate.capacity = 1
    return gate


OPTION_CHECKS: Final[dict[str, tuple[Check, ...]]] = {
    "aging": (a_waiter_is_passed_only_by_those_within_its_window,),
    "reserved": (a_reserved_slot_is_kept_from_worse_priorities, the_reserve_has_no_effect_at_capacity_1),
    "max_waiting": (a_full_queue_refuses_at_once,),
    "supersede": (a_newer_call_takes_the_place_of_an_older_one, who_is_not_let_in_supersedes_nobody),
    "positions": (positions_are_1_to_n, the_estimate_is_what_the_past_says),
    "progress": (progress_is_told_once_for_each_change,),
    "outer_deadline": (a_deadline_around_the_wait_is_reported,),
}
"""The single checks of each option."""
