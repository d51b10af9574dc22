"""Checks of what only asyncio has: ``Task.cancel()``, and the limits of time that are built on it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import warnings
from typing import TYPE_CHECKING, Any, Final

import anyio

from trio_mlxgate.testing.backends import settle
from trio_mlxgate.testing.checking import Holder, empty, require
from trio_mlxgate.testing.events import LawBroken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_mlxgate.testing.checking import Check, GateFactory
    from trio_mlxgate.testing.harness import Harness, Tasks

PASSES: Final = 5
"""Up to so many passes after a slot was given back its next holder is cancelled."""


class Native(Holder):
    """A holder that is to be cancelled by ``Task.cancel()``, and notes what it sees of that."""

    task: asyncio.Task[Any]
    cancelling = -1
    """What ``Task.cancelling()`` said when the body was cancelled."""

    async def run(self) -> None:
        """Ask, hold, end. A checkpoint."""
        async with self.slot:
            self.inside = True
            self.entered_at = anyio.current_time()
            try:
                await self._end.wait()
            except asyncio.CancelledError:
                self.cancelling = self.task.cancelling()
                raise
            finally:
                self.inside = False
        self.over = True

    @property
    def entered(self) -> bool:
        """Whether its body was entered."""
        return not math.isnan(self.entered_at)

    async def started(self, tasks: Tasks) -> Native:
        """Start it and let everything run that can. A checkpoint."""
        task = tasks.start_soon(self.run)
        assert isinstance(task, asyncio.Task)
        self.task = task
        await settle()
        return self


def a_native_cancel_leaves_the_queue_in_that_step(factory: GateFactory, on: Harness) -> None:
    """Law 10: a waiter leaves the queue in the very step of its ``Task.cancel()``, and counts as cancelled."""

    async def main() -> None:
        gate = factory(1)
        async with on.tasks(native=True) as tasks:
            holder = await Native(gate).started(tasks)
            waiters = [await Native(gate).started(tasks) for _ in range(3)]
            waiters[1].task.cancel()
            waiters[1].task.cancel()
            now = gate.statistics()
            require((now.tasks_waiting, now.cancelled) == (2, 1), f"one of three who waited was cancelled: {now}")
            await settle()
            require(waiters[1].task.cancelled(), "the cancelled task goes on")
            require(waiters[1].task.cancelling() == 2, f"it was cancelled twice: {waiters[1].task.cancelling()}")
            waiters[0].task.cancel()
            holder.end()
            await settle()
            require(waiters[2].inside and not waiters[0].entered, "the slot went to a cancelled waiter, or to nobody")
            waiters[2].end()
        now = gate.statistics()
        require((now.admitted, now.cancelled) == (2, 2), f"2 calls were admitted and 2 cancelled: {now}")
        await empty(gate)

    on.run(main)


def a_native_cancel_around_the_grant_loses_nothing(factory: GateFactory, on: Harness) -> None:
    """Law 3: ``Task.cancel()`` before, at and after the grant, at every pass, loses nothing."""

    async def once(passes: int) -> None:
        gate = factory(1)
        async with on.tasks(native=True) as tasks:
            first = gate.slot()
            await first.__aenter__()
            second = await Native(gate).started(tasks)
            third = await Native(gate).started(tasks)
            if passes < 0:  # by the one who gives back, just before that
                second.task.cancel()
            await first.__aexit__(None, None, None)
            if passes >= 0:
                for _ in range(passes):
                    await on.tick()
                second.task.cancel()
            require(gate.statistics().in_flight == 1, f"the slot is nobody's: {gate.statistics()}")
            await settle()
            require(second.task.cancelled(), "the cancelled task was not cancelled")
            require(second.entered == (passes >= 0), f"cancelled {passes} passes after the grant: {second.entered_at}")
            if second.entered:
                require(second.cancelling == 1, f"cancelled once, it saw {second.cancelling} cancellations")
            require(third.inside, f"cancelled {passes} passes after the grant, it kept its slot")
            third.end()
        now = gate.statistics()
        fates = (3, 0) if passes >= 0 else (2, 1)
        require((now.admitted, now.cancelled) == fates, f"cancelled {passes} passes after the grant: {now}")
        await empty(gate)

    async def main() -> None:  # noqa: ASYNC910 - loops at least once
        for passes in range(-1, PASSES):
            await once(passes)

    on.run(main)


def a_cancel_that_is_taken_back_loses_nothing(factory: GateFactory, on: Harness) -> None:
    """Law 3: ``Task.cancel()`` and ``Task.uncancel()``, around the grant: nothing is lost, and the counts are right."""

    async def once(passes: int, settled: bool) -> None:
        gate = factory(1)
        entered: list[bool] = []
        counted: list[int] = []

        async def call() -> None:  # a checkpoint
            try:
                async with gate.slot():
                    entered.append(True)
                    await anyio.sleep(1)
            except asyncio.CancelledError:  # noqa: ASYNC103 - it is taken back
                if settled:
                    task.uncancel()
            counted.append(task.cancelling())
            await anyio.sleep(1)

        async with on.tasks(native=True) as tasks:
            first = gate.slot()
            await first.__aenter__()
            task: Any = tasks.start_soon(call)
            await settle()
            third = await Native(gate).started(tasks)
            if passes < 0:
                task.cancel()
            await first.__aexit__(None, None, None)
            for _ in range(passes):
                await on.tick()
            if passes >= 0:
                task.cancel()
            if not settled:
                task.uncancel()
            await anyio.sleep(10)
            require(task.done() and not task.cancelled(), "what was taken back ended the task")
            require(counted == [0], f"a cancellation that was taken back is counted: {counted}")
            require(third.inside, "the slot of a cancelled call did not go to the next")
            third.end()
        now = gate.statistics()
        require(len(entered) == (passes >= 0), f"cancelled {passes} passes after the grant, the body ran: {entered}")
        fates = (2 + len(entered), 1 - len(entered))
        require((now.admitted, now.cancelled) == fates, f"the fates are not {fates}: {now}")
        await empty(gate)

    async def main() -> None:  # noqa: ASYNC910 - loops at least once
        for passes in range(-1, PASSES):
            for settled in (False, True):
                await once(passes, settled)

    on.run(main)


def who_has_a_cancellation_pending_never_enters(factory: GateFactory, on: Harness) -> None:
    """Law 15: who was cancelled by ``Task.cancel()`` and asks then never enters, and never stands in the queue."""

    async def main() -> None:
        gate = factory(1)

        async def ask() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            async with gate.slot(0):
                raise LawBroken("a call entered whose task was cancelled before")

        for busy in (False, True):
            before = gate.statistics()
            async with on.tasks(native=True) as tasks:
                holder = Native(gate)
                if busy:
                    await holder.started(tasks)
                waiting = gate.statistics().tasks_waiting
                task: Any = tasks.start_soon(ask)
                for _ in range(PASSES):
                    await on.tick()
                    require(gate.statistics().tasks_waiting == waiting, "the cancelled call stood in the queue")
                await settle()
                require(task.cancelled(), "the cancelled task goes on")
                cancelled = gate.statistics().cancelled
                require(cancelled == before.cancelled + 1, f"the cancelled call is not counted: {gate.statistics()}")
                holder.end()
        await empty(gate)

    on.run(main)


def both_kinds_of_cancel_lose_nothing(factory: GateFactory, on: Harness) -> None:
    """Law 3: cancelled by ``Task.cancel()`` and by a scope, in either order and in one step, nothing is lost."""

    async def once(order: Callable[[asyncio.Task[object], anyio.CancelScope], None], passes: int) -> None:
        gate = factory(1)
        async with on.tasks(native=True) as tasks:
            first = gate.slot()
            await first.__aenter__()
            second = Holder(gate)
            task: Any = tasks.start_soon(second.run)
            await settle()
            third = await Native(gate).started(tasks)
            if passes < 0:
                order(task, second.scope)
            await first.__aexit__(None, None, None)
            for _ in range(passes):
                await on.tick()
            if passes >= 0:
                order(task, second.scope)
            await settle()
            require(task.done() and not second.inside, "the call goes on although it was cancelled twice")
            require(third.inside, "the slot of a call that was cancelled in two ways did not go to the next")
            third.end()
        await empty(gate)

    def task_first(task: asyncio.Task[object], scope: anyio.CancelScope) -> None:
        task.cancel()
        scope.cancel()

    def scope_first(task: asyncio.Task[object], scope: anyio.CancelScope) -> None:
        scope.cancel()
        task.cancel()

    async def main() -> None:  # noqa: ASYNC910 - loops at least once
        for passes in range(-1, PASSES):
            await once(task_first, passes)
            await once(scope_first, passes)

    on.run(main)


def a_body_may_raise_cancelled_error(factory: GateFactory, on: Harness) -> None:
    """Law 2: CancelledError that a body raises by itself comes out as it is, and the slot is back."""

    async def main() -> None:
        gate = factory(1)
        task = asyncio.current_task()
        assert task is not None
        for timeout in (math.inf, 5.0):
            error = asyncio.CancelledError("of the body's own")
            try:
                async with gate.slot(hold_timeout=timeout):
                    raise error
            except asyncio.CancelledError as caught:  # noqa: ASYNC103 - nobody has cancelled
                require(caught is error, f"the body raised {error!r}, out came {caught!r}")
            else:
                raise LawBroken("the body raised CancelledError, and nothing came out")
            require(task.cancelling() == 0, "nobody has cancelled the task")
            require(gate.statistics().in_flight == 0, "the slot of a body that failed is still held")
        await empty(gate)

    on.run(main)


def a_timeout_around_the_wait_loses_nothing(factory: GateFactory, on: Harness) -> None:
    """Law 3: ``asyncio.timeout()`` and ``wait_for()`` around the call end it in time, waiting or inside."""

    async def by_timeout(call: Callable[[], Awaitable[None]], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await call()

    async def by_wait_for(call: Callable[[], Awaitable[None]], seconds: float) -> None:
        await asyncio.wait_for(call(), seconds)

    async def once(
        limited: Callable[[Callable[[], Awaitable[None]], float], Awaitable[None]], release_at: float, first: bool
    ) -> None:
        gate = factory(1)
        loop = asyncio.get_running_loop()
        begun = loop.time()

        async def call() -> None:
            async with gate.slot():
                await anyio.sleep(100)

        async with on.tasks(native=True) as tasks:
            holder = await Native(gate).started(tasks)
            if first:  # before the timeout is set, so that it comes before it at the same time
                loop.call_at(begun + release_at, holder.end)
            else:
                loop.call_soon(loop.call_at, begun + release_at, holder.end)
            try:
                # A gate may tell of a deadline around the wait.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    await limited(call, 3)
            except TimeoutError:
                pass
            else:
                raise LawBroken("a limit of 3 s has not ended the call")
            require(loop.time() == begun + 3, f"a limit of 3 s ended the call after {loop.time() - begun} s")
            task = asyncio.current_task()
            require(task is not None and task.cancelling() == 0, "a cancellation that has been dealt with is counted")
            await settle()
            now = gate.statistics()
            held = int(release_at > 3)
            require((now.in_flight, now.tasks_waiting) == (held, 0), f"after the limit of 3 s: {now}")
            require(release_at != 1 or now.admitted == 2, f"granted after 1 s, it is not counted: {now}")
            require(now.admitted + now.cancelled == 2, f"2 calls have a fate: {now}")
        await empty(gate)

    async def main() -> None:  # noqa: ASYNC910 - loops at least once
        for limited in (by_timeout, by_wait_for):
            for release_at in (1, 3, 5):
                for first in (True, False):
                    await once(limited, release_at, first)

    on.run(main)


def a_timeout_in_the_body_is_the_bodys(factory: GateFactory, on: Harness) -> None:
    """Law 14: ``asyncio.timeout()`` inside and ``hold_timeout`` end the body at the earlier of the two, and say so."""

    async def main() -> None:
        gate = factory(1)
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        for inside, hold_timeout in ((1.0, 5.0), (5.0, 1.0), (1.0, math.inf), (1.0, 1.0)):
            begun = loop.time()
            expected = TimeoutError if inside <= hold_timeout else on.dialect.too_slow
            limit = asyncio.timeout(inside)
            try:
                async with gate.slot(hold_timeout=hold_timeout), limit:
                    await asyncio.sleep(100)
            except (TimeoutError, on.dialect.too_slow) as error:
                told = isinstance(error, expected) or inside == hold_timeout
                require(told, f"the body's limit {inside}, hold_timeout={hold_timeout}: {error!r}")
            else:
                raise LawBroken(f"neither the body's limit {inside} nor hold_timeout={hold_timeout} ended it")
            require(loop.time() == begun + 1, f"a limit of 1 s ended the body after {loop.time() - begun} s")
            require(limit.expired() or inside >= hold_timeout, "the body's own limit is not what ended it")
            require(task.cancelling() == 0, "a cancellation that has been dealt with is counted")
            require(gate.statistics().in_flight == 0, "the slot is held beyond its body")
        await empty(gate)

    on.run(main)


def a_task_group_that_fails_loses_nothing(factory: GateFactory, on: Harness) -> None:
    """Law 3: when a task of an ``asyncio.TaskGroup`` fails, the others leave nothing behind."""

    async def once(passes: int) -> None:
        gate = factory(1)

        async def fail() -> None:
            for _ in range(passes):
                await on.tick()
            raise ValueError

        try:
            async with asyncio.TaskGroup() as group:
                holder = Holder(gate)
                group.create_task(holder.run())
                await settle()
                for _ in range(3):
                    group.create_task(Holder(gate).run())
                if passes % 2:
                    await settle()
                holder.end()
                group.create_task(fail())
        except* ValueError:
            pass
        else:
            raise LawBroken("the error of a task is lost")
        await empty(gate)

    async def main() -> None:  # noqa: ASYNC910 - loops at least once
        for passes in range(2 * PASSES):
            await once(passes)

    on.run(main)


def a_cancel_at_the_end_of_the_budget_is_kept(factory: GateFactory, on: Harness) -> None:
    """Law 2: ``Task.cancel()`` at the time at which ``hold_timeout`` ends: the slot is back, and the task has ended."""

    async def once(first: bool) -> None:
        gate = factory(1)
        loop = asyncio.get_running_loop()
        async with on.tasks(native=True) as tasks:
            holder = Native(gate, hold_timeout=3)
            task: Any = tasks.start_soon(_failing_quietly, holder.run)
            holder.task = task
            if first:
                loop.call_later(3, task.cancel)
            await settle()
            if not first:
                loop.call_later(3, task.cancel)
            await anyio.sleep(3)
            await settle()
            require(task.done() and not holder.over, "the task goes on, cancelled and at the end of its budget")
            require(gate.statistics().in_flight == 0, f"its slot is held: {gate.statistics()}")
        await empty(gate)

    async def _failing_quietly(run: Callable[[], Awaitable[None]]) -> None:  # noqa: ASYNC910 - run is a checkpoint
        with contextlib.suppress(on.dialect.too_slow):
            await run()

    async def main() -> None:
        await once(True)
        await once(False)

    on.run(main)


NATIVE_CHECKS: Final[tuple[Check, ...]] = (
    a_native_cancel_leaves_the_queue_in_that_step,
    a_native_cancel_around_the_grant_loses_nothing,
    a_cancel_that_is_taken_back_loses_nothing,
    who_has_a_cancellation_pending_never_enters,
    both_kinds_of_cancel_lose_nothing,
    a_body_may_raise_cancelled_error,
    a_timeout_around_the_wait_loses_nothing,
    a_timeout_in_the_body_is_the_bodys,
    a_task_group_that_fails_loses_nothing,
    a_cancel_at_the_end_of_the_budget_is_kept,
)
"""The single checks that are made under asyncio in addition."""
