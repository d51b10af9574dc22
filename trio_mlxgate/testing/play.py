"""Plays any sequence of events against a gate, and checks the laws of the gate at each of them.

The laws are those that any implementation must keep; what is played comes from elsewhere: from
:func:`trio_mlxgate.testing.check_gate`, or from a property-based test that draws it.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import anyio

from trio_mlxgate.errors import QueueFull, Superseded, WaitTooLong
from trio_mlxgate.testing.backends import settle
from trio_mlxgate.testing.events import (
    Arrive,
    Cancel,
    Close,
    Drain,
    End,
    Event,
    GateLike,
    LawBroken,
    Options,
    SetCapacity,
    Settle,
    Sleep,
    Tick,
)
from trio_mlxgate.testing.harness import harness as _harness
from trio_mlxgate.testing.judging import Call, Judge, waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from trio_mlxgate.testing.harness import Harness, Tasks


class _Boom(Exception):
    """What a body raises that is told to fail."""


class _Player(Judge):
    async def call(self, call: Call) -> None:
        """One call, from asking to its end; says of itself what became of it. A checkpoint if the call is one."""
        try:
            with call.scope:
                await self._call(call)
        finally:
            if self.releasing is call:
                self.releasing = None
            call.over = True

    async def _call(self, call: Call) -> None:  # noqa: ASYNC910 - some kinds of call end at once
        arrive = call.arrive
        gate: Any = self.gate
        asked_at = call.asked_at = anyio.current_time()
        entered_at = math.nan
        # A gate without this option is not asked for it.
        more = {} if arrive.supersede is None else {"supersede": arrive.supersede}
        slot: AbstractAsyncContextManager[object]
        if arrive.nowait:
            slot = nullcontext(None)
        else:
            slot = gate.slot(arrive.priority, hold_timeout=arrive.hold_timeout, max_wait=arrive.max_wait, **more)
            call.slot = slot
        cancelled_before = call.cancelled
        call.asked = True
        call.asked_in = self.settles
        call.asked_when_ended = self.ended is not None
        try:
            if arrive.forgets:
                await self._forget(call)
                return
            async with slot:
                with (
                    gate.slot_nowait(arrive.priority, hold_timeout=arrive.hold_timeout, **more)
                    if arrive.nowait
                    else nullcontext(None)
                ):
                    self.require(
                        arrive.nowait or not cancelled_before, "15", f"call {call.number} entered although cancelled"
                    )
                    entered_at = anyio.current_time()
                    self.entered(call)
                    try:
                        await call.end.wait()
                        if call.fail:
                            raise _Boom
                    finally:
                        call.inside = False
                        self.releasing = call
        except _Boom:
            pass
        except self.on.dialect.would_block:
            call.fate = "rejected"
        except (self.on.dialect.closed, self.on.dialect.broken) as error:
            call.fate = "rejected"
            self.refused_by_the_end(call, error)
        except QueueFull as full:
            call.fate = "rejected"
            self.require(self.options.max_waiting is not None, "4", f"the queue has no limit: {full!r}")
            places = [
                other.arrive
                for other in self.calls
                if other.arrive.supersede == arrive.supersede is not None
                and other.arrive.priority == arrive.priority
                and other.waited_since == call.asked_in
                and waits(other)
            ]
            self.require(not places, "4", f"{arrive} was refused, and had the place of {places}: {full!r}")
            self.require(anyio.current_time() == asked_at, "14", "it took time to say that the queue is full")
        except Superseded as superseded:
            call.fate = "rejected"
            self.superseded.append(call)
            newer = [
                other
                for other in self.calls
                if other is not call and other.asked and other.arrive.supersede == arrive.supersede
            ]
            self.require(arrive.supersede is not None and bool(newer), "4", f"by whom? {superseded!r}")
        except WaitTooLong:
            call.fate = "rejected"
            waited = anyio.current_time() - asked_at
            self.require(_close(waited, arrive.max_wait), "14", f"max_wait={arrive.max_wait} took {waited} s")
        except self.on.dialect.too_slow:
            held = anyio.current_time() - entered_at
            self.require(_close(held, arrive.hold_timeout), "14", f"hold_timeout={arrive.hold_timeout} took {held} s")
        except anyio.get_cancelled_exc_class():
            if call.fate is None:
                call.fate = "cancelled"
            raise

    async def _forget(self, call: Call) -> None:
        """Hold a slot as others do, and end the task without giving it back. A checkpoint."""
        await call.slot.__aenter__()
        self.entered(call)
        try:
            await call.end.wait()
        finally:
            call.inside = False
            self.forgotten += 1
            if self.options.strict:
                task = call.task
                if task is None:
                    self.end("broken")
                else:
                    # asyncio tells of it in the pass after; the gate, which asked before, hears of it first.
                    task.add_done_callback(lambda _: self.end("broken"))

    async def _drain(self) -> None:
        """Drain the gate, and see that it is idle then. A checkpoint."""
        gate: Any = self.gate
        self.end("drained")
        await gate.drain()
        now = self.gate.statistics()
        self.require(now.in_flight == now.tasks_waiting == 0, "19", "it is not idle although it was drained")

    def _start(self, call: Call, tasks: Tasks) -> None:
        task = tasks.start_soon(self.call, call)
        if isinstance(task, asyncio.Task):
            call.task = task
            # A task that was cancelled before its first step has none.
            task.add_done_callback(lambda _: setattr(call, "over", True))

    async def play(self, events: Iterable[Event]) -> None:
        """Play all events, then let everybody finish, and see that nothing was lost. Always a checkpoint."""
        async with self.on.tasks(native=True) as tasks:
            for event in events:
                await self._play(event, tasks)
                self.observe()
            await self._finish(tasks)

    async def _play(self, event: Event, tasks: Tasks) -> None:  # noqa: ASYNC910 - most events are no checkpoint
        match event:
            case Arrive():
                call = Call(len(self.calls), event)
                self.calls.append(call)
                self._start(call, tasks)
            case End(index, fail):
                inside = [call for call in self.calls if call.inside and not call.end.is_set()]
                if inside:
                    call = inside[index % len(inside)]
                    call.fail = fail
                    call.end.set()
            case Cancel(index, native):
                alive = [call for call in self.calls if not call.over and not call.cancelled]
                if alive:
                    call = alive[index % len(alive)]
                    if native and call.task is not None:
                        call.cancelled_natively = True
                        call.task.cancel()
                    else:
                        call.scope.cancel()
            case SetCapacity(capacity):
                self.gate.capacity = capacity
                self.most = max(self.most, capacity)
            case Close():
                gate: Any = self.gate
                self.end("closed")
                await gate.aclose()
                self.passes += 1
                self.judge_order(settled=False)
            case Drain():
                tasks.start_soon(self._drain)
            case Tick():
                await self.on.tick()
                self.passes += 1
                self.judge_order(settled=False)
            case Settle():
                await settle()
                self.observe_settled()
            case Sleep(seconds):
                await anyio.sleep(seconds)
                await settle()
                self.observe_settled()

    async def _finish(self, tasks: Tasks) -> None:
        await settle()
        self.observe_settled()
        self.gate.capacity = self.most = max(1, self.gate.capacity)
        self.observe()
        while any(not call.over for call in self.calls):
            await settle()
            self.observe_settled()
            for call in self.calls:
                if call.inside:
                    call.end.set()
        capacity = self.gate.capacity
        # Nothing is reserved from the best priority of all.
        best = min(self.options.reserved or [0])
        last = [Call(len(self.calls) + n, Arrive(best)) for n in range(capacity + 1)]
        self.calls += last
        for call in last:
            self._start(call, tasks)
        await settle()
        self.observe_settled()
        inside = sum(call.inside for call in last)
        expected = capacity if self.ended is None else 0
        self.require(inside == expected, "3", f"of {expected} slots {inside} are left at the end")
        for call in last:
            call.end.set()
        await settle()
        self.observe_settled()
        now = self.last
        self.require(now.in_flight == now.tasks_waiting == 0, "3", "all calls have ended")
        self.require(now.longest_wait == 0.0, "16", "nobody waits")


def _close(seconds: float, expected: float) -> bool:
    return math.isclose(seconds, expected, rel_tol=1e-9, abs_tol=1e-9)


def play(
    factory: Callable[..., GateLike],
    capacity: int,
    events: Iterable[Event],
    options: Options | None = None,
    on: Harness | None = None,
) -> None:
    """Make a gate of that ``capacity`` in a run on a virtual clock, play ``events`` against it, check the laws.

    ``factory`` gets the capacity, and those of the ``options`` that are on as keyword arguments. The run is one of
    ``on``, or of trio.

    Raises:
      LawBroken: the gate broke a law.
    """

    with_options = options or Options()
    harness = on or _harness("trio")

    async def main() -> None:  # a checkpoint, always
        await _Player(factory(capacity, **with_options.for_the_gate()), with_options, harness).play(events)

    try:
        harness.run(main)
    except BaseExceptionGroup as group:
        broken = _first_broken(group)
        if broken is None:
            raise
        raise broken from None


def _first_broken(error: BaseException) -> LawBroken | None:
    if isinstance(error, LawBroken):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            broken = _first_broken(inner)
            if broken is not None:
                return broken
    return None
