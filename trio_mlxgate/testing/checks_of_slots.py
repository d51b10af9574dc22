"""Checks of how a slot is asked for and left, in time and when it is cancelled."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, NoReturn

import anyio

from trio_mlxgate.errors import WaitTooLong
from trio_mlxgate.priority import Priority
from trio_mlxgate.testing.backends import settle
from trio_mlxgate.testing.checking import GateFactory, Holder, empty, only, require
from trio_mlxgate.testing.events import (
    GateLike,
    LawBroken,
)

if TYPE_CHECKING:
    from trio_mlxgate.testing.harness import Harness


def entering_is_a_checkpoint_and_leaving_is_none(factory: GateFactory, on: Harness) -> None:
    """Law 5: entering is always a checkpoint; giving back is one step, with a waiter and without."""

    async def main() -> None:
        gate = factory(1)
        slot = gate.slot()
        with on.assert_checkpoints():
            await slot.__aenter__()
        with on.assert_no_checkpoints():
            await slot.__aexit__(None, None, None)
        async with on.tasks() as tasks:
            slot = gate.slot(hold_timeout=5)
            await slot.__aenter__()
            waiter = await Holder(gate).started(tasks)
            with on.assert_no_checkpoints():
                await slot.__aexit__(None, None, None)
            require(gate.statistics().in_flight == 1, "the slot was not handed over in the step that gave it back")
            require(gate.statistics().tasks_waiting == 0, "who was granted a slot is still counted as waiting")
            waiter.end()
        with gate.slot_nowait(), on.assert_no_checkpoints():
            pass
        await empty(gate)

    on.run(main)


def asking_twice_is_an_error_at_once(factory: GateFactory, on: Harness) -> None:
    """Law 17: a task that owns a slot and asks again gets RuntimeError at once; its child queues like anybody."""

    async def main() -> None:
        gate = factory(2)
        async with gate.slot():
            await _refused(gate)
            require(gate.statistics().in_flight == 1, "a refused call holds a slot")
        with gate.slot_nowait():
            await _refused(gate)
        gate.capacity = 1
        async with on.tasks() as tasks:
            async with gate.slot():
                child = await Holder(gate).started(tasks)
                require(gate.statistics().tasks_waiting == 1, "the child of a holder must queue")
            child.end()
        await empty(gate)

    async def _refused(gate: GateLike) -> None:  # noqa: ASYNC910 - refusing is no checkpoint
        begun = anyio.current_time()
        try:
            async with gate.slot(max_wait=5):
                raise LawBroken("the task that owns a slot was given a second one")
        except RuntimeError:
            pass
        try:
            with gate.slot_nowait():
                raise LawBroken("the task that owns a slot was given a second one by slot_nowait")
        except RuntimeError:
            pass
        except on.dialect.would_block:
            raise LawBroken("slot_nowait raised WouldBlock where RuntimeError is due") from None
        require(anyio.current_time() == begun, "the task waited before it was refused")

    on.run(main)


def a_slot_is_used_once(factory: GateFactory, on: Harness) -> None:
    """Law 2: a slot is one object for one use; entered again, it is a RuntimeError and holds nothing."""

    async def main() -> None:
        gate = factory(1)
        slot = gate.slot()
        async with slot:
            pass
        try:
            async with slot:
                raise LawBroken("a slot was entered a second time")
        except RuntimeError:
            pass
        plain = gate.slot_nowait()
        with plain:
            pass
        try:
            with plain:
                raise LawBroken("a slot of slot_nowait was entered a second time")
        except RuntimeError:
            pass
        await empty(gate)

    on.run(main)


def who_is_cancelled_when_it_asks_never_enters(factory: GateFactory, on: Harness) -> None:
    """Law 15: a call that is cancelled when it asks never enters, although a slot is free, and holds nothing."""

    async def main() -> None:
        gate = factory(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with gate.slot():
                raise LawBroken("a cancelled call entered a free gate")
        await empty(gate)
        before = gate.statistics()
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with gate.slot(Priority.FOREGROUND):
                    raise LawBroken("a cancelled call entered a busy gate")
            now = gate.statistics()
            require(now.cancelled == before.cancelled + 1, f"the cancelled call is not counted: {now}")
            require(now.tasks_waiting == 0, f"the cancelled call is counted as waiting: {now}")
            holder.end()
        await empty(gate)

    on.run(main)


def a_cancel_after_the_grant_loses_nothing(factory: GateFactory, on: Harness) -> None:
    """Law 3: a waiter that is cancelled just before, or just after it was granted a slot, takes none with it."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks() as tasks:
            first = gate.slot()
            await first.__aenter__()
            second = await Holder(gate).started(tasks)
            third = await Holder(gate).started(tasks)
            # Granted and cancelled in one step: no cancellation comes between the grant and the body.
            await first.__aexit__(None, None, None)
            second.scope.cancel()
            await settle()
            require(not math.isnan(second.entered_at), "who was granted a slot was cancelled before its body")
            require(second.over and third.inside, "the slot of a cancelled holder did not go to the next")
            fourth = await Holder(gate).started(tasks)
            fifth = await Holder(gate).started(tasks)
            # Cancelled and only then passed by the grant, in one step.
            fourth.scope.cancel()
            third.end()
            await settle()
            require(math.isnan(fourth.entered_at), "a cancelled waiter entered")
            require(fifth.inside, "behind a cancelled waiter nobody comes in")
            fifth.end()
        now = gate.statistics()
        require((now.admitted, now.cancelled) == (4, 1), f"4 calls were admitted and 1 was cancelled: {now}")
        await empty(gate)

    on.run(main)


class _Special(BaseException):
    """Not even an Exception."""


def the_bodys_exception_passes_bare(factory: GateFactory, on: Harness) -> None:
    """Law 2: whatever the body raises comes out as it is, and the slot is back."""

    async def main() -> None:
        gate = factory(1)
        for timeout in (math.inf, 5.0):
            for error in (ValueError("body"), on.dialect.too_slow("body"), _Special()):
                try:
                    async with gate.slot(hold_timeout=timeout):
                        raise error
                except type(error) as caught:
                    require(caught is error, f"the body raised {error!r}, out came {caught!r}")
                else:
                    _never(error)
                try:
                    with gate.slot_nowait(hold_timeout=timeout):
                        raise error
                except type(error) as caught:
                    require(caught is error, f"the body raised {error!r}, out came {caught!r}")
                else:
                    _never(error)
                require(gate.statistics().in_flight == 0, "the slot of a body that failed is still held")
        await empty(gate)

    def _never(error: BaseException) -> NoReturn:
        raise LawBroken(f"the body raised {error!r}, and nothing came out")

    on.run(main)


def the_hold_budget_starts_at_the_grant(factory: GateFactory, on: Harness) -> None:
    """Law 14: hold_timeout runs from the grant, ends the body with TooSlowError, and the wait uses none of it."""

    async def main() -> None:
        gate = factory(1)
        start = anyio.current_time()
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)

            async def end_later() -> None:
                await anyio.sleep(10)
                holder.end()

            tasks.start_soon(end_later)
            try:
                async with gate.slot(hold_timeout=3):
                    require(anyio.current_time() == start + 10, "the waiter entered at another time than the grant")
                    await anyio.sleep_forever()
            except on.dialect.too_slow:
                ended = anyio.current_time() - start
                require(ended == 13, f"granted after 10 s, hold_timeout=3 ended the body after {ended} s")
        try:
            with gate.slot_nowait(hold_timeout=3):
                await anyio.sleep_forever()
        except on.dialect.too_slow:
            require(anyio.current_time() == start + 16, "hold_timeout of slot_nowait ended at another time")
        async with gate.slot(hold_timeout=3):
            await anyio.sleep(2)
        async with gate.slot(hold_timeout=3):
            # What nothing could interrupt was not interrupted: that is no TooSlowError.
            with anyio.CancelScope(shield=True):
                await anyio.sleep(4)
        await empty(gate)

    on.run(main)


def max_wait_covers_the_queue_alone(factory: GateFactory, on: Harness) -> None:
    """Law 14: max_wait ends the wait with WaitTooLong and uses nothing of the body's time; 0: only if free."""

    async def main() -> None:
        gate = factory(1)
        start = anyio.current_time()
        async with gate.slot(max_wait=1):
            await anyio.sleep(5)
        async with gate.slot(max_wait=0):
            pass
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            for max_wait, ended in ((0, 5), (2, 7)):
                try:
                    async with gate.slot(max_wait=max_wait):
                        raise LawBroken("a second one is inside")
                except WaitTooLong:
                    now = anyio.current_time() - start
                    require(now == ended, f"max_wait={max_wait} ended at {now} s, not at {ended} s")
            rejected = gate.statistics().rejected
            require(rejected == 2, f"2 calls were refused, {rejected} are counted")
            waiter = await Holder(gate, max_wait=2).started(tasks)
            await anyio.sleep(1)
            holder.end()
            await anyio.sleep(10)
            require(waiter.inside, "max_wait ended a body")
            waiter.end()
        await empty(gate)

    on.run(main)


def one_run_at_a_time(factory: GateFactory, on: Harness) -> None:
    """Law 18: a second run gets RuntimeError while the first is alive; after its end the gate starts empty."""
    gate = factory(1)
    outcomes: list[str] = []

    async def intrude() -> None:  # noqa: ASYNC910 - being refused is no checkpoint
        try:
            async with gate.slot():
                outcomes.append("slot entered")
        except RuntimeError:
            outcomes.append("refused")
        try:
            with gate.slot_nowait():
                outcomes.append("slot_nowait entered")
        except RuntimeError:
            outcomes.append("refused")
        except on.dialect.would_block:
            outcomes.append("slot_nowait raised WouldBlock")
        try:
            gate.capacity = 5
        except RuntimeError:
            outcomes.append("refused")
        else:
            outcomes.append("the capacity was changed")

    def second_run() -> None:
        try:
            on.run(intrude)
        except Exception as error:  # noqa: BLE001 - told below, in the thread that can
            outcomes.append(repr(only(error)))

    async def first_run() -> None:
        async with gate.slot():
            thread = threading.Thread(target=second_run, daemon=True)
            thread.start()
            # This run stands still meanwhile: whoever is refused at once needs nothing of it.
            thread.join(30)
            require(outcomes == ["refused"] * 3, f"in a second run: {outcomes or 'a hang'}")
            require(gate.statistics().in_flight == 1, f"a second run changed the gate: {gate.statistics()}")
        # Held to the end of the run, and never given back.
        await gate.slot().__aenter__()
        require(gate.statistics().in_flight == 1, "the slot is held")

    async def next_run() -> None:
        now = gate.statistics()
        require((now.capacity, now.in_flight) == (1, 0), f"in the next run the gate starts with {now}")
        await empty(gate)

    on.run(first_run)
    on.run(next_run)


def who_cancels_leaves_nothing_behind(factory: GateFactory, on: Harness) -> None:
    """Law 16: 2000 calls that queue and are cancelled count nowhere, and the next waiter is let in as ever."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks() as tasks:
            holder = await Holder(gate).started(tasks)
            async with on.tasks() as crowd:
                for number in range(2000):
                    crowd.start_soon(Holder(gate, number % 3).run)
                await settle()
                now = gate.statistics()
                require(now.tasks_waiting == 2000, f"2000 wait: {now}")
                require(sum(now.waiting_by_priority.values()) == 2000, f"2000 wait: {now}")
                crowd.cancel()
            now = gate.statistics()
            require(now.tasks_waiting == 0 and not now.waiting_by_priority, f"all were cancelled: {now}")
            require(now.longest_wait == 0, f"nobody waits: {now}")
            require((now.admitted, now.cancelled) == (1, 2000), f"1 was admitted, 2000 were cancelled: {now}")
            waiter = await Holder(gate).started(tasks)
            holder.end()
            await settle()
            require(waiter.inside, "after a crowd that left, nobody comes in")
            waiter.end()
        await empty(gate)

    on.run(main)
