"""Control-C at any line, and at any moment, loses no slot."""

from __future__ import annotations

import contextlib
import math
import random
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.gate.helpers import Log, holder, job
from trio_mlxgate import Gate, WaitTooLong

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType


async def interrupted_slots(gate: Gate) -> None:
    async def one(priority: int, patience: float) -> None:
        with trio.move_on_after(patience):
            async with gate.slot(priority, hold_timeout=5 if priority else math.inf, max_wait=7):
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for priority in (0, 100):
            nursery.start_soon(one, priority, 10)
            nursery.start_soon(one, priority, 1.5)


async def interrupted_slots_without_waiting(gate: Gate) -> None:  # noqa: ASYNC910 - loops thrice
    for timeout in (3, 0.5, math.inf):
        with trio.move_on_after(1), contextlib.suppress(trio.TooSlowError), gate.slot_nowait(hold_timeout=timeout):
            await trio.sleep_forever()


async def interrupted_detached_slots(gate: Gate) -> None:
    async def one(delay: float) -> None:
        await trio.sleep(delay)
        slot = await gate.acquire_detached(50)
        try:
            await trio.sleep(1)
        finally:
            # To interrupt this very line is to interrupt the caller.
            slot.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0)
        nursery.start_soon(one, 0.5)


async def interrupted_capacity(gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(job, gate, Log(), "", 100, 1)
        await trio.sleep(0.5)
        gate.capacity = 3
        gate.statistics()


async def interrupted_rest(gate: Gate) -> None:
    async def forgetful() -> None:
        await gate.slot().__aenter__()
        await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgetful)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(job, gate, Log(), "", 100, 1)
        nursery.start_soon(gate.wait_idle)
        with trio.move_on_after(0.5):
            await gate.wait_idle()
        await gate.wait_idle()


async def interrupted_limiter(gate: Gate) -> None:
    limiter = gate.limiter(50)

    async def one() -> None:
        await limiter.acquire_on_behalf_of("borrower")
        try:
            await trio.sleep(1)
        finally:
            # To interrupt this very line is to interrupt the caller.
            limiter.release_on_behalf_of("borrower")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)


async def interrupted_statistics(gate: Gate) -> None:
    await trio.lowlevel.checkpoint()
    gate.statistics()


@pytest.mark.parametrize(
    "scenario",
    [
        interrupted_slots,
        interrupted_slots_without_waiting,
        interrupted_detached_slots,
        interrupted_capacity,
        interrupted_rest,
        interrupted_limiter,
        interrupted_statistics,
    ],
)
def test_no_line_of_the_library_loses_anything_to_a_keyboard_interrupt(
    scenario: Callable[[Gate], Awaitable[None]],
) -> None:
    """SIGINT arrives at each line of the gate's modules in turn; after each, no slot is lost and the gate works."""
    modules = {
        sys.modules[f"trio_mlxgate.{name}"].__file__
        for name in (
            *("gate", "base_gate", "driver", "trio_runtime", "slots", "detached_slots", "alarms", "ends", "threads"),
            *("core.admission", "core.ordering"),
        )
    }
    losses: set[str] = set()
    interrupted = number = 0

    async def main(gate: Gate, trace: Any) -> None:
        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            await scenario(gate)
        finally:
            sys.settrace(previous)
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            statistics = gate.statistics()
            if statistics.in_flight or statistics.tasks_waiting or gate._owners:
                losses.add(f"{where}: {statistics}")
            elif gate._runtime.token is trio.lowlevel.current_trio_token() and gate._clock() != trio.current_time():
                losses.add(f"{where}: the gate lives by another clock")
            else:
                try:
                    with trio.CancelScope(shield=True):
                        await _works_as_ever(gate)
                except AssertionError as error:
                    losses.add(f"{where}: {error}")

    for number in range(1, 3000):
        steps = 0
        where = ""

        def trace(frame: FrameType, event: str, argument: object, number: int = number) -> Any:
            nonlocal steps, where
            if frame.f_code.co_filename not in modules:
                return None
            if event == "line":
                steps += 1
                if steps == number:
                    where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                    signal.raise_signal(signal.SIGINT)
            return trace

        try:
            trio.run(main, Gate(1, outer_deadline="allow"), trace, clock=MockClock(autojump_threshold=0))
        except BaseExceptionGroup as group:
            assert group.split(KeyboardInterrupt)[1] is None  # noqa: PT017 - one of two ways in which it comes
            interrupted += 1
        except KeyboardInterrupt:
            interrupted += 1
        if steps < number:
            break
    assert interrupted >= number - 1 > 5  # at every line of the run
    assert number < 2999
    assert not losses


async def _works_as_ever(gate: Gate) -> None:
    gate.capacity = 1
    begun = trio.current_time()
    end = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        with pytest.raises(WaitTooLong):
            async with gate.slot(max_wait=1):
                pass
        assert trio.current_time() == begun + 1
        end.set()
    with pytest.raises(trio.TooSlowError):
        async with gate.slot(hold_timeout=2):
            await trio.sleep_forever()
    assert trio.current_time() == begun + 3


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_a_keyboard_interrupt_at_any_moment_loses_no_slot() -> None:
    """SIGINT arrives at random moments in a run of many tasks; 300 times in one process.

    Except between Python's own steps of an ``async with``: whatever the context manager is, CPython 3.11 may drop
    the coroutine of its ``__aexit__`` there before it has begun. trio's primitives lose a token in the same way.
    """
    source = random.Random(7)
    gate = Gate(2, outer_deadline="allow")
    interrupted = 0

    async def body() -> None:
        if source.random() < 0.001:
            signal.raise_signal(signal.SIGINT)
        await trio.lowlevel.checkpoint()

    async def client() -> None:
        while True:
            with trio.move_on_after(source.choice((0.0, 0.001, math.inf))):
                async with gate.slot(source.choice((0, 100)), hold_timeout=source.choice((math.inf, 60))):
                    await body()

    async def main() -> None:
        interrupt: Any = signal.getsignal(signal.SIGINT)
        over = False

        def alarm(signum: int, frame: FrameType | None) -> None:
            # An alarm that goes off as the timer is stopped would set it once more, and hit trio as it cleans up.
            if over:
                return
            if frame is not None and frame.f_code in (client.__code__, main.__code__):
                signal.setitimer(signal.ITIMER_REAL, source.uniform(0.0001, 0.001))
            else:
                interrupt(signal.SIGINT, frame)

        signal.signal(signal.SIGALRM, alarm)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(client)
                # Not earlier: a start_soon that is interrupted can leave a task that never runs.
                signal.setitimer(signal.ITIMER_REAL, source.uniform(0.0005, 0.004))
        finally:
            over = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            statistics = gate.statistics()
            assert (statistics.in_flight, statistics.tasks_waiting) == (0, 0), statistics
            assert not gate._owners

    before = signal.getsignal(signal.SIGALRM)
    try:
        for _ in range(300):
            try:
                trio.run(main)
            except BaseExceptionGroup as group:
                assert group.split(KeyboardInterrupt)[1] is None  # noqa: PT017 - one of two ways in which it comes
                interrupted += 1
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 300
