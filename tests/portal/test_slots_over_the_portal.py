"""What a slot is that is asked for through a portal: the same as at the gate, in another run."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio.lowlevel import checkpoint

import trio_mlxgate.anyio
from tests.portal.conftest import run_caller, world
from trio_mlxgate import Gate, OuterDeadlineWarning, Priority, QueueFull, Superseded, WaitTooLong
from trio_mlxgate.instrumentation import Cancelled, Granted, Overdue, Queued, Released, WaitsForParent

FOREGROUND, BACKGROUND = Priority.FOREGROUND, Priority.BACKGROUND


def dialect(caller: str, of_trio: type[BaseException], of_anyio: type[BaseException]) -> type[BaseException]:
    return of_trio if caller == "trio" else of_anyio


def stand_still(begun: threading.Event, go_on: threading.Event) -> None:
    begun.set()
    go_on.wait(10)


def test_a_slot_is_held_for_its_block(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def main() -> None:
            asked = home.portal.slot(FOREGROUND)
            async with asked as slot:
                assert (slot.priority, slot.deadline) == (FOREGROUND, float("inf"))
                assert slot.waited >= 0
                assert slot.gate.name == home.gate.name
                assert home.portal.owned_slot() is slot
                assert (await home.portal.statistics()).in_flight == 1
            assert home.portal.owned_slot() is None
            assert (await home.portal.statistics()).in_flight == 0
            with pytest.raises(RuntimeError, match="only once"):
                await asked.__aenter__()
            with pytest.raises(ZeroDivisionError):
                async with home.portal.slot():
                    raise ZeroDivisionError

        run_caller(caller, main)
        assert home.settled() == (0, 0)
        assert home.recorder.names == ["Granted", "Released"] * 2


def test_the_better_priority_goes_first_in_both_worlds(owner: str, caller: str) -> None:
    with world(owner) as home:
        order: list[str] = []

        async def ask_at_home(priority: int, name: str) -> None:
            async with home.gate.slot(priority):
                order.append(name)

        async def ask(priority: int, name: str) -> None:
            async with home.portal.slot(priority) as slot:
                assert slot.waited > 0
                order.append(name)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                with home.holding():
                    for waiting, (where, priority, name) in enumerate(
                        [
                            ("here", BACKGROUND, "4 digest here"),
                            ("home", BACKGROUND, "5 digest at home"),
                            ("home", FOREGROUND, "1 person at home"),
                            ("here", FOREGROUND, "2 person here"),
                            ("here", 7, "3 between"),
                        ],
                        1,
                    ):
                        if where == "home":
                            home.start(ask_at_home, priority, name)
                        else:
                            group.start_soon(ask, priority, name)
                        await home.until(lambda now, waiting=waiting: now.tasks_waiting == waiting)  # type: ignore[misc]
            await home.until(lambda now: now.in_flight == 0)

        run_caller(caller, main)
        assert order == sorted(order)
        assert len(order) == 5


def test_calls_of_one_run_arrive_in_the_order_in_which_they_were_made(owner: str, caller: str) -> None:
    with world(owner) as home:
        order: list[int] = []

        async def ask(number: int) -> None:
            async with home.portal.slot():
                order.append(number)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                with home.holding():
                    block, go_on = threading.Event(), threading.Event()
                    # The owner comes to see them all at once.
                    home.start(stand_still, block, go_on)
                    block.wait()
                    for number in range(20):
                        group.start_soon(ask, number)
                        for _ in range(5):
                            await checkpoint()
                    go_on.set()
                    await home.until(lambda now: now.tasks_waiting == 20)

        run_caller(caller, main)
        assert order == list(range(20))


def test_hold_timeout_interrupts_the_body_in_the_callers_words(owner: str, caller: str) -> None:
    error = dialect(caller, trio.TooSlowError, TimeoutError)
    with world(owner) as home:

        async def main() -> None:
            with pytest.raises(error, match=r"held for longer than its hold_timeout of 0\.05 s"):  # noqa: PT012
                async with home.portal.slot(hold_timeout=0.05) as slot:
                    assert 0 < slot.deadline - anyio.current_time() <= 0.05
                    await anyio.sleep(10)
            async with home.portal.slot(hold_timeout=0.05) as slot:
                slot.deadline = anyio.current_time() + 10
                await anyio.sleep(0.1)

        run_caller(caller, main)
        assert home.settled() == (0, 0)


def test_the_wait_uses_none_of_the_hold_timeout(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def ask() -> None:
            async with home.portal.slot(hold_timeout=0.3) as slot:
                assert slot.waited >= 0.4
                assert slot.deadline - anyio.current_time() > 0.2
                await anyio.sleep(0.1)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                with home.holding():
                    group.start_soon(ask)
                    await home.until(lambda now: now.tasks_waiting)
                    await anyio.sleep(0.41)

        run_caller(caller, main)


def test_the_hold_timeout_starts_at_the_grant_also_where_the_caller_comes_late_to_hear_of_it(caller: str) -> None:
    with world("trio") as home:

        async def ask() -> None:
            async with home.portal.slot(hold_timeout=0.3) as slot:
                assert slot.deadline - anyio.current_time() < 0.11

        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await checkpoint()
                await checkpoint()
                time.sleep(0.2)  # noqa: ASYNC251

        run_caller(caller, main)


def test_an_overdue_slot_is_reported_by_the_owner(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def main() -> None:
            slot = await home.portal.acquire_detached(hold_timeout=0.01)
            slot.deadline = anyio.current_time() + 0.3
            await anyio.sleep(1.1)
            assert "Overdue" not in home.recorder.names
            await anyio.sleep(0.4)
            assert [type(details) for details in home.recorder.details] == [Granted, Overdue]
            slot.release()

        run_caller(caller, main)
        assert home.settled() == (0, 0)


def test_refusals_come_through(owner: str, caller: str) -> None:
    with world(owner, max_waiting=1) as home:

        async def ask(**options: Any) -> None:
            with pytest.raises(Superseded):
                async with home.portal.slot(**options):
                    pass

        async def main() -> None:
            with home.holding():
                with pytest.raises(WaitTooLong, match="within max_wait"):
                    async with home.portal.slot(max_wait=0.02):
                        pass
                with pytest.raises(WaitTooLong, match="max_wait=0"):
                    async with home.portal.slot(max_wait=0):
                        pass
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda: ask(supersede="k"))
                    await home.until(lambda now: now.tasks_waiting)
                    with pytest.raises(QueueFull, match="is full"):
                        async with home.portal.slot():
                            pass
                    with anyio.move_on_after(0.05):
                        async with home.portal.slot(supersede="k"):
                            pass
            with pytest.raises(TypeError, match="supersede must be hashable"):
                home.portal.slot(supersede=[])  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="hold_timeout"):
                home.portal.slot(hold_timeout=-1)

        run_caller(caller, main)
        assert home.settled() == (0, 0)


def test_a_key_that_cannot_be_compared_is_the_callers_trouble(caller: str) -> None:
    class Odd:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    with world("trio") as home:

        async def ask() -> None:
            with anyio.move_on_after(0.2):
                async with home.portal.slot(supersede=Odd()):
                    pass

        async def main() -> None:
            with home.holding():
                async with anyio.create_task_group() as group:
                    group.start_soon(ask)
                    await home.until(lambda now: now.tasks_waiting)
                    with pytest.raises(ZeroDivisionError):
                        async with home.portal.slot(supersede=Odd()):
                            pass

        run_caller(caller, main)
        assert home.settled() == (0, 0)


def test_a_task_that_owns_a_slot_and_asks_again_is_told_at_once(owner: str, caller: str) -> None:
    with world(owner, 5) as home:

        async def main() -> None:
            async with home.portal.slot():
                for again in (home.portal.slot(), home.call(home.gate.portal).slot()):
                    with pytest.raises(RuntimeError, match="owns a slot of gate 'mlx' already"):
                        async with again:
                            pass
                with pytest.raises(RuntimeError, match="owns a slot of gate 'mlx' already"):
                    await home.portal.acquire_detached()

        run_caller(caller, main)
        assert home.settled() == (0, 0)
        assert home.statistics().admitted == 1


def test_a_task_whose_detached_slots_are_all_there_are_does_not_wait_for_itself(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def main() -> None:
            slot = await home.portal.acquire_detached(tied=True)
            with pytest.raises(RuntimeError, match="held by open responses of this task"):
                await home.portal.acquire_detached(tied=True)
            slot.release()
            with pytest.raises(RuntimeError, match="not held"):
                slot.release()
            async with home.portal.slot():
                pass

        run_caller(caller, main)
        assert home.settled() == (0, 0)


def test_a_slot_is_lent_and_kept_until_the_loan_ends(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def main() -> None:
            async with home.portal.slot(hold_timeout=5) as slot:
                loan = slot.lend("a response", hold_timeout=1)
                assert loan.deadline <= anyio.current_time() + 1
                with pytest.raises(RuntimeError, match="one open response at a time"):
                    slot.lend("another")
            assert (await home.portal.statistics()).in_flight == 1
            loan.release()
            assert (await home.portal.statistics()).in_flight == 0

        run_caller(caller, main)


def test_who_waits_for_a_task_above_it_is_told(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def ask() -> None:
            with anyio.move_on_after(0.05):
                async with home.portal.slot():
                    pass

        async def main() -> None:
            async with home.portal.slot(), anyio.create_task_group() as group:  # noqa: ASYNC112 - a task below this one
                group.start_soon(ask)

        run_caller(caller, main)
        told = [details for details in home.recorder.details if isinstance(details, WaitsForParent)]
        assert len(told) == 1
        assert __file__ in told[0].site


def test_a_deadline_around_the_wait_is_reported_where_the_caller_stands(owner: str, caller: str) -> None:
    with world(owner, outer_deadline="warn") as home:

        async def main() -> None:
            with pytest.warns(OuterDeadlineWarning, match="a deadline of the caller") as caught:  # noqa: PT031
                with anyio.fail_after(5):
                    async with home.portal.slot():
                        pass
            assert caught[0].filename == __file__
            with anyio.fail_after(5):
                with pytest.raises(RuntimeError, match="a deadline of the caller"):
                    async with home.portal.slot(outer_deadline="raise"):
                        pass
                async with home.portal.slot(outer_deadline="allow"):
                    pass

        run_caller(caller, main)


def test_in_the_gates_own_run_it_is_the_gate_itself(owner: str) -> None:
    with world(owner) as home:

        async def main() -> None:
            async with home.portal.slot(FOREGROUND) as slot:
                assert home.gate.owned_slot() is home.portal.owned_slot() is slot
                assert slot.gate is home.gate
                assert (await home.portal.statistics()).in_flight == 1
            detached = await home.portal.acquire_detached(tied=True)
            assert detached.gate is home.gate
            detached.release()

        home.call(main)
        assert home.portal is home.call(home.gate.portal)
        assert "mlx" in repr(home.portal)


def test_entering_is_a_checkpoint_and_leaving_is_none(owner: str, caller: str) -> None:
    with world(owner, 2) as home:

        async def main() -> None:
            if trio.lowlevel.in_trio_run():
                # Who goes first of those that can run is chance there, so that trio itself has to say it.
                slot = home.portal.slot()
                with trio.testing.assert_checkpoints():
                    await slot.__aenter__()
                with trio.testing.assert_no_checkpoints():
                    await slot.__aexit__(None, None, None)
            else:
                seen: list[str] = []

                async def other() -> None:  # noqa: ASYNC124 - a task
                    seen.append("other")

                async with anyio.create_task_group() as group:
                    group.start_soon(other)
                    async with home.portal.slot():
                        assert seen == ["other"]
                        group.start_soon(other)
                    assert seen == ["other"]
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with home.portal.slot():
                    raise AssertionError
            assert scope.cancelled_caught

        run_caller(caller, main)
        assert home.statistics().admitted == 1


def test_a_cancelled_caller_leaves_the_queue(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def main() -> None:
            with home.holding():
                start = time.monotonic()
                with anyio.move_on_after(0.05):
                    async with home.portal.slot():
                        raise AssertionError
                assert time.monotonic() - start < 5
                await home.until(lambda now: now.tasks_waiting == 0)

        run_caller(caller, main)
        assert [type(details) for details in home.recorder.details] == [Granted, Queued, Cancelled, Released]


def test_a_caller_is_cancelled_without_waiting_for_the_owner(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def main() -> None:
            asked, go_on = threading.Event(), threading.Event()
            home.start(stand_still, asked, go_on)
            asked.wait()  # the owner's thread stands still
            start = time.monotonic()
            with anyio.move_on_after(0.05):
                async with home.portal.slot():
                    raise AssertionError
            assert time.monotonic() - start < 5
            go_on.set()

        run_caller(caller, main)
        home.wait_until(lambda now: now.admitted == 1)
        assert home.settled() == (0, 0)


def test_a_slot_whose_grant_crosses_with_the_cancellation_goes_back(owner: str, caller: str) -> None:
    with world(owner) as home:

        async def ask(scope: anyio.CancelScope) -> None:
            with scope:
                async with home.portal.slot():
                    raise AssertionError

        async def main() -> None:
            scope = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                with home.holding():
                    group.start_soon(ask, scope)
                    await home.until(lambda now: now.tasks_waiting)
                # Granted over there; here nobody has heard of it, since this doesn't let the loop go on.
                home.wait_until(lambda now: now.admitted == 2)
                scope.cancel()
            await home.until(lambda now: now.in_flight == 0)

        run_caller(caller, main)
        assert home.recorder.names[-3:] == ["Released", "Granted", "Released"]


def test_a_cancellation_at_every_pass_loses_no_slot(owner: str, caller: str) -> None:
    with world(owner) as home:
        inside = 0

        async def ask(scope: anyio.CancelScope) -> None:
            nonlocal inside
            with scope:
                async with home.portal.slot():
                    inside += 1
                    await checkpoint()
                    inside += 1

        async def main() -> None:
            for passes in range(150):
                scope = anyio.CancelScope()
                async with anyio.create_task_group() as group:
                    group.start_soon(ask, scope)
                    for _ in range(passes % 50):
                        await checkpoint()
                        if passes >= 100:
                            time.sleep(0.0002)  # noqa: ASYNC251 - the answer comes within a pass
                    scope.cancel()
            await home.until(lambda now: now.in_flight == now.tasks_waiting == 0)

        run_caller(caller, main)
        assert 0 < inside < 300


def test_native_cancellations_count_too(owner: str) -> None:
    with world(owner) as home:

        async def ask() -> None:
            async with home.portal.slot():
                await asyncio.sleep(10)

        async def main() -> None:
            with home.holding():
                task = asyncio.create_task(ask())
                await home.until(lambda now: now.tasks_waiting)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(ask(), 0.05)
                await home.until(lambda now: now.tasks_waiting == 0)
            task = asyncio.create_task(ask())
            await home.until(lambda now: now.in_flight)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert home.settled() == (0, 0)


def test_statistics_are_the_gates(owner: str, caller: str) -> None:
    with world(owner, 3) as home:

        async def main() -> None:
            with home.holding():
                now = await home.portal.statistics()
                assert (now.capacity, now.in_flight) == (3, 1)
                assert isinstance(now, trio_mlxgate.GateStatistics)
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await home.portal.statistics()
                assert scope.cancelled_caught

        run_caller(caller, main)


def test_outside_of_a_run_it_says_what_to_do() -> None:
    with world("trio") as home, pytest.raises(RuntimeError, match=r"with portal.from_thread\(\)"):
        home.portal.slot()
    with pytest.raises(RuntimeError, match="works inside"):
        Gate(1).portal()


def test_a_gate_of_another_run_names_the_portal() -> None:
    with world("asyncio") as home:

        async def main() -> None:
            with pytest.raises(RuntimeError, match=r"gate\.portal\(\)"):
                await home.gate.acquire_detached()

        trio.run(main)


def test_hooks_are_called_in_the_owners_run(caller: str) -> None:
    threads: list[Any] = []

    class Hook:
        def interest(self, *kinds: object) -> Any:
            return lambda: True

        def __call__(self, details: object) -> None:
            threads.append((threading.get_ident(), trio.lowlevel.currently_ki_protected()))

    with world("trio", hooks=[Hook()]) as home:

        async def main() -> None:
            async with home.portal.slot():
                pass
            with home.holding(), anyio.move_on_after(0.01):
                async with home.portal.slot():
                    pass

        run_caller(caller, main)
        home.settled()
        assert threads
        assert {thread for thread, _ in threads} == {home.call(threading.get_ident)}
