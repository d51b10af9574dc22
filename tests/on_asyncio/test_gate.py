"""What is particular to asyncio: loops that come and go, tasks without parents, callbacks, trio beside it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
import trio

import trio_mlxgate
from tests.gate.helpers import Recorder
from trio_mlxgate import BaseGate, OuterDeadlineWarning, Priority, instrumentation as told
from trio_mlxgate.anyio import (
    Gate,
    acquire_mlx_gate,
    configure_mlx_gate,
    current_mlx_gate,
    gate_status,
    get_mlx_gate,
)
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.testing import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def hold(gate: BaseGate, seconds: float = 3600.0, **options: Any) -> None:
    async with gate.slot(**options):
        await anyio.sleep(seconds)


# ---- the loops ----


def test_a_gate_starts_empty_in_each_loop() -> None:
    gate = Gate(1)

    async def main() -> None:
        assert gate.statistics().in_flight == 0
        task = asyncio.create_task(hold(gate))
        await asyncio.sleep(0.01)
        assert gate.statistics().in_flight == 1
        del task

    asyncio.run(main())
    asyncio.run(main())
    assert gate.statistics().in_flight == 0


def test_a_gate_goes_from_asyncio_to_trio_and_back() -> None:
    gate = Gate(1)

    async def main() -> None:
        gate.capacity = 0
        with pytest.raises(anyio.WouldBlock), gate.slot_nowait():
            pytest.fail("it was let in")
        gate.capacity = 1
        with pytest.raises(TimeoutError):
            await hold(gate, hold_timeout=0.01)

    asyncio.run(main())
    trio.run(main)
    anyio.run(main, backend="trio")
    anyio.run(main, backend="asyncio")
    asyncio.run(main())


def test_a_loop_that_stands_still_lets_an_idle_gate_go() -> None:
    """Programs in the old style make a loop, run things in it one by one, and close it some time."""
    gate = Gate(1)
    loops = [asyncio.new_event_loop() for _ in range(2)]
    try:
        for loop in loops:
            loop.run_until_complete(hold(gate, 0))
        kept = loops[0].create_task(hold(gate, 0.05))
        loops[0].run_until_complete(asyncio.sleep(0.01))
        with pytest.raises(RuntimeError, match="in use by another run"):
            loops[1].run_until_complete(hold(gate, 0))
        loops[0].run_until_complete(kept)
        loops[1].run_until_complete(hold(gate, 0))
    finally:
        for loop in loops:
            loop.close()


def test_a_gate_in_use_by_one_loop_is_refused_to_another() -> None:
    gate = Gate(1)
    errors: list[BaseException] = []

    def other() -> None:
        try:
            asyncio.run(hold(gate, 0))
        except RuntimeError as error:
            errors.append(error)

    async def main() -> None:
        async with gate.slot():
            thread = threading.Thread(target=other)
            thread.start()
            await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert "portal" in str(errors[0])


def test_trios_gate_says_that_there_is_another_for_asyncio() -> None:
    with pytest.raises(RuntimeError, match=r"trio_mlxgate\.anyio\.Gate"):
        asyncio.run(hold(trio_mlxgate.Gate(1), 0))
    with pytest.raises(RuntimeError, match="running event loop"):
        Gate(1).slot_nowait().__enter__()


def test_a_callback_is_no_task() -> None:
    async def main() -> None:
        gate = Gate(1)
        loop = asyncio.get_running_loop()
        seen = loop.create_future()

        def callback() -> None:
            try:
                with gate.slot_nowait():
                    pytest.fail("it was let in")
            except RuntimeError as error:
                seen.set_result(str(error))

        loop.call_soon(callback)
        assert "callback" in await seen
        # What needs no task works there.
        done = loop.create_future()

        def change() -> None:
            gate.capacity = 3
            done.set_result(gate.statistics().capacity)

        loop.call_soon(change)
        assert await done == 3

    asyncio.run(main())


def test_a_loop_that_is_closed_over_a_waiter_and_a_holder_leaves_nothing() -> None:
    """Coroutines that are thrown away: nothing is raised, and nothing is counted in the next loop."""
    gate = Gate(1)
    loop = asyncio.new_event_loop()
    holder = loop.create_task(hold(gate))
    waiter = loop.create_task(hold(gate))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert gate.statistics().tasks_waiting == 1
    # Or the collector complains of tasks that were pending.
    for task in (waiter, holder):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del holder, waiter, task
    gc.collect()
    asyncio.run(hold(gate, 0))
    assert gate.statistics().in_flight == gate.statistics().tasks_waiting == 0


# ---- tasks ----


def test_a_slot_whose_task_has_ended_is_taken_back_in_the_next_pass(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        seen = Recorder(told.Orphaned, told.Granted)
        gate = Gate(1, hooks=[seen])

        async def forget() -> None:
            await gate.slot().__aenter__()

        task = asyncio.create_task(forget(), name="the forgetful")
        waiter = asyncio.create_task(hold(gate, 0))
        await task
        assert gate.statistics().in_flight == 1
        await asyncio.sleep(0)
        await waiter
        assert [details.task for details in seen.details if isinstance(details, told.Orphaned)] == ["the forgetful"]

    run_virtual(main, backend="asyncio")


@pytest.mark.parametrize("start", ["create_task", "TaskGroup", "gather", "anyio"])
def test_who_waits_for_a_slot_of_a_task_above_is_told_of(start: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        gate = Gate(1)

        async def child() -> None:
            async with gate.slot(max_wait=1):
                pass

        async def parent() -> None:
            async with gate.slot():
                match start:
                    case "create_task":
                        task = asyncio.create_task(child())
                        await task
                    case "TaskGroup":
                        async with asyncio.TaskGroup() as group:
                            group.create_task(child())
                            group.create_task(asyncio.sleep(0))
                    case "gather":
                        await asyncio.gather(child())
                    case _:
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(child)
                            tasks.start_soon(asyncio.sleep, 0)

        top = asyncio.create_task(parent(), name="the parent")
        await asyncio.wait([top])
        error = top.exception()
        assert isinstance(error, trio_mlxgate.WaitTooLong | ExceptionGroup)

    with caplog.at_level(logging.WARNING):
        run_virtual(main, backend="asyncio")
    (line,) = (record.getMessage() for record in caplog.records if "waits_for_parent" in record.getMessage())
    assert "parent=the parent" in line
    assert "test_gate.py" in line


def test_who_was_started_before_the_slot_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        gate = Gate(1)
        async with gate.slot():
            pass
        go = asyncio.Event()

        async def child() -> None:
            await go.wait()
            async with gate.slot():
                pass

        task = asyncio.create_task(child())
        async with gate.slot():
            go.set()
            await asyncio.sleep(1)
        await task

    with caplog.at_level(logging.WARNING):
        run_virtual(main, backend="asyncio")
    assert not [record for record in caplog.records if "waits_for_parent" in record.getMessage()]


def test_a_long_chain_of_tasks_leaves_nothing_behind() -> None:
    """Each is started by the one before, inside of its slot: the last one knows of few."""

    async def main() -> None:
        gate = Gate(2)
        ended = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        most = 0

        async def link(number: int) -> None:
            nonlocal most
            async with gate.slot():
                most = max(most, len(list(gate._runtime.above(asyncio.current_task()))))
                if number < 1000:
                    tasks[:] = [asyncio.create_task(link(number + 1))]
                else:
                    ended.set()

        tasks.append(asyncio.create_task(link(0)))
        await ended.wait()
        assert most <= 3

    run_virtual(main, backend="asyncio")


# ---- the gate of a run ----


@pytest.fixture
def _three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXGATE_CAPACITY", "3")


@pytest.mark.usefixtures("_three")
def test_each_loop_has_a_gate_of_its_own() -> None:
    assert gate_status() == {"inflight": 0, "waiters": 0}
    with pytest.raises(RuntimeError, match="running event loop"):
        current_mlx_gate()
    gates: list[BaseGate] = []

    async def main() -> None:
        assert gate_status() == {"inflight": 0, "waiters": 0}
        gates.append(current_mlx_gate())
        assert current_mlx_gate().capacity == 3
        configure_mlx_gate(capacity=1)
        async with get_mlx_gate() as slot:
            assert slot.priority == Priority.BACKGROUND
            assert slot.gate is current_mlx_gate()
            other = asyncio.create_task(hold(slot.gate, 0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert gate_status() == {"inflight": 1, "waiters": 1}
        await other
        with pytest.raises(TimeoutError):
            async with acquire_mlx_gate(Priority.FOREGROUND, hold_timeout=0.01):
                await asyncio.sleep(1)

    asyncio.run(main())
    asyncio.run(main())
    assert gates[0] is not gates[1]
    assert isinstance(gates[0], Gate)
    with pytest.raises(TypeError):
        configure_mlx_gate(capacity="1")  # type: ignore[arg-type]


def test_what_was_configured_outside_holds_for_the_loops_started_from_there() -> None:
    def run() -> int:
        configure_mlx_gate(capacity=5)

        async def main() -> int:
            await asyncio.sleep(0)
            return current_mlx_gate().capacity

        return asyncio.run(main())

    assert contextvars.copy_context().run(run) == 5


def test_a_trio_run_has_one_gate_whichever_module_is_asked() -> None:
    async def main() -> None:
        assert current_mlx_gate() is trio_mlxgate.current_mlx_gate()
        with pytest.raises(TimeoutError):
            async with acquire_mlx_gate(hold_timeout=1):
                await trio.sleep(2)
        with pytest.raises(trio.TooSlowError):
            async with trio_mlxgate.acquire_mlx_gate(hold_timeout=1):
                await trio.sleep(2)
        async with get_mlx_gate():
            assert gate_status() == trio_mlxgate.gate_status() == {"inflight": 1, "waiters": 0}
        configure_mlx_gate(capacity=7)
        assert trio_mlxgate.current_mlx_gate().capacity == 7

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_trio_as_a_guest_of_asyncio_has_gates_apart() -> None:
    """In guest mode both are in one thread: a task of trio's is in the run of trio, one of asyncio's in the loop."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        ours = Gate(1)
        theirs = Gate(1)

        async def guest() -> str:
            async with theirs.slot():
                await trio.sleep(0.01)
                assert isinstance(theirs._runtime.token, trio.lowlevel.TrioToken)
            return "guest"

        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        for _ in range(5):
            async with ours.slot():
                await asyncio.sleep(0.002)
                assert ours._runtime.token is loop
        assert (await done).unwrap() == "guest"

    asyncio.run(main())


# ---- a deadline of the caller ----


async def _ask_in_time(gate: Gate, **options: Any) -> None:
    async with asyncio.timeout(1), gate.slot(**options):
        pytest.fail("it was let in")


async def _ask_in_vain(gate: Gate, times: int) -> None:
    for _ in range(times):
        with pytest.raises(TimeoutError):
            await _ask_in_time(gate)


def test_a_timeout_that_has_cancelled_a_wait_is_told() -> None:
    """It can't be seen before. It comes in the task that waited, so that it fails a test whose warnings are errors."""

    async def main() -> None:
        gate = Gate(0)
        with pytest.warns(OuterDeadlineWarning, match="timeout of the caller has cancelled") as warned:
            await _ask_in_vain(gate, 2)
        (one,) = warned  # once for the place
        assert one.filename == __file__
        with pytest.raises(TimeoutError):
            await _ask_in_time(gate, outer_deadline="allow")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run_virtual(main, backend="asyncio")


def test_a_timeout_that_has_cancelled_a_wait_fails_a_test() -> None:
    async def main() -> None:
        with pytest.raises(OuterDeadlineWarning):  # warnings are errors here
            await _ask_in_time(Gate(0))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run_virtual(main, backend="asyncio")


def test_a_cancellation_that_is_no_timeout_is_not_told() -> None:
    async def main() -> None:
        task = asyncio.create_task(hold(Gate(0)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main, backend="asyncio")


async def _hold_in_time(gate: Gate) -> None:
    with anyio.move_on_after(1):
        await hold(gate, 0)


@pytest.mark.parametrize("policy", ["warn", "raise"])
def test_a_scope_of_anyio_is_told_before_the_wait(policy: Any) -> None:
    async def main() -> None:
        gate = Gate(1, outer_deadline=policy)
        told = pytest.warns(OuterDeadlineWarning) if policy == "warn" else pytest.raises(RuntimeError, match="deadline")
        with told:
            await _hold_in_time(gate)

    run_virtual(main, backend="asyncio")


def test_a_timeout_that_ends_in_the_step_of_the_grant_is_not_heard_of_later() -> None:
    """The body has no await that could see it, and asyncio.timeout() around it must."""

    async def main() -> None:
        gate = Gate(0, outer_deadline="allow")
        asyncio.get_running_loop().call_later(1, setattr, gate, "capacity", 1)
        entered = False
        # From Python 3.13 on asyncio takes such a cancellation back, and the block ends as if in time.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                async with gate.slot():
                    entered = True
        assert entered
        await asyncio.sleep(1)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert gate.statistics().in_flight == 0
        assert not gate._runtime.late

    run_virtual(main, backend="asyncio")


# ---- a cancellation that comes too late, or at a bad time ----


@pytest.mark.parametrize("how", ["a task", "gather", "the limiter"])
def test_a_detached_slot_that_is_cancelled_after_the_grant_goes_back(how: str) -> None:
    """A task that is cancelled and returns loses what it returns."""

    async def main() -> None:
        gate = Gate(1)
        first = await gate.acquire_detached()
        match how:
            case "gather":
                asking: Any = asyncio.gather(gate.acquire_detached())
            case "a task":
                asking = asyncio.create_task(gate.acquire_detached())
            case _:
                asking = asyncio.create_task(gate.limiter().acquire_on_behalf_of("somebody"))
        await asyncio.sleep(1)
        first.release()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert gate.statistics().in_flight == 0

    run_virtual(main, backend="asyncio")


@pytest.mark.parametrize("body", ["empty", "fails", "has a budget"])
def test_a_late_timeout_is_heard_of_inside_of_it(body: str) -> None:
    async def main() -> None:
        gate = Gate(0, outer_deadline="allow")
        asyncio.get_running_loop().call_later(1, setattr, gate, "capacity", 1)
        options: Any = {"hold_timeout": 9.0} if body == "has a budget" else {}
        with contextlib.suppress(TimeoutError, ValueError):
            async with asyncio.timeout(1), gate.slot(**options):
                if body == "fails":
                    raise ValueError
        await asyncio.sleep(1)
        assert gate.statistics().in_flight == 0

    run_virtual(main, backend="asyncio")


def test_a_timeout_that_ends_as_the_call_is_refused_is_heard_of_inside_of_it() -> None:
    async def main() -> None:
        gate = Gate(0, outer_deadline="allow")
        with contextlib.suppress(TimeoutError, trio_mlxgate.WaitTooLong):
            async with asyncio.timeout(1), gate.slot(max_wait=1):
                pytest.fail("it was let in")
        await asyncio.sleep(1)

    run_virtual(main, backend="asyncio")


def test_who_asks_while_the_gate_goes_to_another_loop_is_not_let_in_beside_those_there() -> None:
    gate = Gate(1)
    loop = asyncio.new_event_loop()
    asking = loop.create_task(hold(gate, 0))
    loop.call_soon(loop.stop)
    loop.run_forever()  # it stands still while the task is at its first checkpoint

    async def main() -> None:
        async with gate.slot():
            with pytest.raises(RuntimeError, match="another run"):
                await asyncio.to_thread(loop.run_until_complete, asking)
            assert gate.statistics().in_flight == 1

    try:
        asyncio.run(main())
    finally:
        loop.close()


def test_a_hook_that_fails_at_an_alarm_does_not_silence_the_next() -> None:
    class Stop(BaseException):
        pass

    class Hook:
        def interest(self, *kinds: type[told.Details]) -> Any:
            return lambda: True

        def __call__(self, details: told.Details) -> None:
            if isinstance(details, told.Rejected):
                raise Stop

    async def main() -> None:
        gate = Gate(0, hooks=[Hook()])
        heard: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context.get("exception")))
        for _ in range(2):
            with pytest.raises(trio_mlxgate.WaitTooLong):
                await hold(gate, max_wait=1)
        assert [type(error) for error in heard] == [Stop, Stop]

    run_virtual(main, backend="asyncio")


def test_a_task_does_not_keep_the_gates_that_it_has_used() -> None:
    async def main() -> None:
        gates = []

        async def use() -> None:
            gate = Gate(1)
            await hold(gate, 0)
            gates.append(weakref.ref(gate))

        for _ in range(50):
            await use()
        gc.collect()
        assert sum(gate() is not None for gate in gates) <= 1

    asyncio.run(main())


@pytest.mark.parametrize("abandoned", ["release", "drain"])
def test_who_cancels_all_tasks_at_any_pass_loses_no_slot(abandoned: Any) -> None:
    """The usual lines of a program that ends, in one that goes on: also those of ours that have not begun yet."""

    async def once(passes: int) -> None:
        gate = Gate(1, outer_deadline="allow")

        class Inner(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                await asyncio.sleep(0)
                return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=parts())

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield b"part"

        async def ask() -> None:
            async with client.stream("GET", "http://server/x") as response:
                async for _ in response.aiter_bytes():
                    break

        async with httpx.AsyncClient(transport=GateTransport(gate, Inner(), abandoned=abandoned)) as client:
            task = asyncio.create_task(ask())
            for _ in range(passes):
                await asyncio.sleep(0)
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await asyncio.wait([task])
        await asyncio.sleep(1)
        assert gate.statistics().in_flight == 0, passes

    async def main() -> None:
        for passes in range(40):
            await once(passes)

    run_virtual(main, backend="asyncio")
