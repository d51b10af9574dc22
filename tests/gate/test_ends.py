"""How a gate comes to rest: closed, drained, waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, Recorder, holder, in_a_task_of_its_own, job, run
from trio_mlxgate import Gate, WaitTooLong
from trio_mlxgate.instrumentation import CapacityChanged, Details, Ended, Rejected, Released

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock


async def closed(gate: Gate, log: Log, name: str, **kwargs: Any) -> None:
    """Ask, and say when and with what it was refused."""
    with pytest.raises(trio.ClosedResourceError, match="gate 'mlx' is closed"):
        async with gate.slot(**kwargs):
            log(f"+{name}")
    log(f"!{name}")


async def test_who_waits_is_sent_away_and_who_holds_finishes(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "holder", BACKGROUND, 10)
        await wait_all_tasks_blocked()
        nursery.start_soon(closed, gate, log, "waiter")
        await trio.sleep(2)
        with assert_checkpoints():
            await gate.aclose()
        await wait_all_tasks_blocked()
        assert log.of("!") == [(2, "waiter")]
        seen = gate.statistics()
        assert (seen.in_flight, seen.tasks_waiting, seen.ended) == (1, 0, "closed")
        assert seen.rejected_by_reason == {"closed": 1}
        await gate.wait_idle()
        assert log.of("-") == [(10, "holder")]
    assert gate.statistics().in_flight == 0


async def test_newcomers_to_a_closed_gate_are_refused_in_every_way() -> None:
    gate = Gate(2, reserved={FOREGROUND: 1}, max_waiting=0)
    await gate.aclose()
    with pytest.raises(trio.ClosedResourceError), assert_checkpoints():
        async with gate.slot():
            pass
    with pytest.raises(trio.ClosedResourceError), assert_checkpoints():
        async with gate.slot(max_wait=0):
            pass
    with pytest.raises(trio.ClosedResourceError), gate.slot_nowait(FOREGROUND):
        pass
    with pytest.raises(trio.ClosedResourceError):
        await gate.acquire_detached()
    with pytest.raises(trio.ClosedResourceError):
        gate.acquire_detached_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await gate.limiter().acquire()
    # To raise the capacity opens nothing.
    gate.capacity = 5
    with pytest.raises(trio.ClosedResourceError):
        gate.acquire_detached_nowait()
    seen = gate.statistics()
    assert (seen.in_flight, seen.admitted, seen.rejected_by_reason) == (0, 0, {"closed": 7})


async def test_a_closed_gate_may_be_closed_again_and_cancelled_meanwhile() -> None:
    hook = Recorder(Ended, Rejected)
    gate = Gate(1, hooks=[hook])
    with trio.CancelScope() as scope:
        scope.cancel()
        await gate.aclose()
    assert scope.cancelled_caught
    assert gate.statistics().ended == "closed"
    with assert_checkpoints():
        await gate.aclose()
    await gate.drain()
    await gate.wait_idle()
    assert hook.details == [Ended(gate="mlx", capacity=1, in_flight=0, queue_length=0, reason="closed")]


async def test_a_close_in_the_pass_of_the_grant_takes_nothing_away(autojump_clock: MockClock) -> None:
    """Who was granted a slot enters, although the gate is closed before its task runs."""
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        first = await gate.acquire_detached()
        nursery.start_soon(job, gate, log, "granted", BACKGROUND, 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(closed, gate, log, "waiter")
        await wait_all_tasks_blocked()
        first.release()
        await gate.aclose()
    assert sorted(log.lines) == [(0, "!waiter"), (0, "+granted"), (1, "-granted")]


async def test_drain_serves_who_waits_and_refuses_who_comes(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        for name, priority in (("a", BACKGROUND), ("b", BACKGROUND), ("c", FOREGROUND)):
            nursery.start_soon(job, gate, log, name, priority, 5)
            await wait_all_tasks_blocked()

        async def late() -> None:
            await trio.sleep(7)
            await closed(gate, log, "late", priority=FOREGROUND)

        nursery.start_soon(late)
        await gate.drain()
        log("drained")
    assert log.of("+") == [(0, "a"), (5, "c"), (10, "b")]
    assert log.of("!") == [(7, "late")]
    assert log.of("drained") == [(15, "")]


async def test_a_drain_that_takes_too_long_can_be_turned_into_a_close(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "holder", BACKGROUND, 100)
        await wait_all_tasks_blocked()
        nursery.start_soon(closed, gate, log, "waiter")
        await wait_all_tasks_blocked()
        with trio.move_on_after(30) as scope:
            await gate.drain()
        assert scope.cancelled_caught
        # Cancelling it has changed nothing for those who wait, nor for newcomers.
        assert gate.statistics().tasks_waiting == 1
        await closed(gate, log, "newcomer")
        await gate.aclose()
        await wait_all_tasks_blocked()
        assert log.of("!") == [(30, "newcomer"), (30, "waiter")]
        assert gate._idleness._attached is False  # nobody waits for it any more


async def test_wait_idle_lets_newcomers_in_and_returns_at_the_first_rest(autojump_clock: MockClock) -> None:
    gate, log = Gate(2), Log()
    with assert_checkpoints():
        await gate.wait_idle()

    async def watch(name: str) -> None:
        await gate.wait_idle()
        log(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "a", BACKGROUND, 3)
        await wait_all_tasks_blocked()
        nursery.start_soon(watch, "one")
        nursery.start_soon(watch, "two")
        nursery.start_soon(job, gate, log, "b", BACKGROUND, 4, 2)
        await trio.sleep(100)
        assert log.of("one") == log.of("two") == [(6, "")]
        nursery.start_soon(job, gate, log, "c", BACKGROUND, 1)
        await trio.sleep(5)
    assert gate._idleness._attached is False


async def test_a_waiter_that_gives_up_is_rest_too(autojump_clock: MockClock) -> None:
    gate, log = Gate(0), Log()

    async def impatient() -> None:
        with pytest.raises(WaitTooLong):
            async with gate.slot(max_wait=5):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(impatient)
        await wait_all_tasks_blocked()
        await gate.wait_idle()
        log("idle")
    assert log.lines == [(5, "idle")]


async def test_who_holds_a_slot_may_not_wait_for_rest() -> None:
    gate = Gate(2)
    async with gate.slot():
        for wait in (gate.drain, gate.wait_idle):
            with pytest.raises(RuntimeError, match="holds a slot of gate 'mlx' itself"):
                await wait()
    slot = await gate.acquire_detached(tied=True)
    with pytest.raises(RuntimeError, match="itself"):
        await gate.wait_idle()
    slot.release()
    # A drain that was refused has not closed the gate.
    async with gate.slot():
        pass


async def test_what_is_closed_by_a_hook_is_refused_once(autojump_clock: MockClock) -> None:
    """A hook closes the gate when a call has just queued, before its task sleeps."""
    told: list[Details] = []

    class Closing:
        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            return lambda: True

        def __call__(self, details: Details) -> None:
            told.append(details)
            if type(details).__name__ == "Queued":
                gate._end("closed")

    gate = Gate(1, hooks=[Closing()])
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end := trio.Event())
        await closed(gate, Log(), "waiter")
        end.set()
    assert [type(details).__name__ for details in told] == ["Granted", "Queued", "Ended", "Rejected", "Released"]


def test_the_next_run_finds_the_gate_open() -> None:
    gate = Gate(1)

    async def close() -> None:
        await gate.aclose()

    async def use() -> None:
        async with gate.slot():
            assert gate.statistics().ended is None

    run(close)
    run(use)


async def test_progress_ends_when_the_gate_is_closed(autojump_clock: MockClock) -> None:
    gate, seen = Gate(0), []
    slot = gate.slot()

    async def watch() -> None:
        async for outlook in gate.progress(slot):
            seen.append(outlook.position)  # noqa: PERF401 - there is no asynchronous extend
        seen.append(-1)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            async with slot:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(wait)
        await trio.sleep(1)
        await gate.aclose()
    assert seen == [1, -1]


async def test_a_gate_that_rests_tells_nobody_more_than_before() -> None:
    """Who waits for rest listens only while it waits."""
    gate = Gate(1, hooks=[])
    await in_a_task_of_its_own(gate.wait_idle)
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end := trio.Event())
        with trio.move_on_after(0):
            await gate.wait_idle()
        assert gate._listeners.wanted(CapacityChanged) is bool
        end.set()


async def test_a_superseded_call_is_no_matter_to_a_drained_gate(autojump_clock: MockClock) -> None:
    """A newcomer is refused before its key counts: the waiter with the same key is served."""
    gate, log = Gate(1), Log()

    async def waiter() -> None:
        async with gate.slot(supersede="page"):
            log("+")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, Log(), "holder", BACKGROUND, 5)
        await wait_all_tasks_blocked()
        nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
        nursery.start_soon(gate.drain)
        await wait_all_tasks_blocked()
        await closed(gate, Log(), "newer", supersede="page")
    assert log.lines == [(5, "+")]


async def test_each_end_is_told_once() -> None:
    hook = Recorder(Ended)
    gate = Gate(1, hooks=[hook])
    for end in (gate.drain, gate.drain, gate.aclose, gate.aclose, gate.drain):
        await end()
    assert [details.reason for details in hook.details] == ["draining", "closed"]


async def test_who_waits_for_rest_hears_of_it_before_a_hook_can_fail(autojump_clock: MockClock) -> None:
    class Leaving:
        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            return lambda: Released in kinds

        def __call__(self, details: Details) -> None:
            raise SystemExit

    gate = Gate(1, hooks=[Leaving()])

    async def hold() -> None:
        with pytest.raises(SystemExit):
            async with gate.slot():
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        await gate.wait_idle()
