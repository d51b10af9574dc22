"""The gate as the limiter of worker threads."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, holder, in_a_task_of_its_own, job, run
from trio_mlxgate import Gate, QueueFull, WaitTooLong

if TYPE_CHECKING:
    from trio.testing import MockClock


class Inside:
    """Counts the threads that are inside at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)  # a thread has no virtual clock
        with self._lock:
            self.now -= 1


async def test_threads_run_in_slots_of_the_gate() -> None:
    gate, inside = Gate(2), Inside()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                limiter = gate.limiter(FOREGROUND if number % 2 else BACKGROUND, outer_deadline="allow")
                nursery.start_soon(functools.partial(trio.to_thread.run_sync, inside, limiter=limiter))
    assert inside.most == 2
    seen = gate.statistics()
    assert (seen.in_flight, seen.tasks_waiting, seen.admitted) == (0, 0, 10)


async def test_threads_queue_with_tasks_by_priority(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()

    async def in_a_thread(name: str, priority: int) -> None:
        # The gate's part alone: threads and a virtual clock don't go together.
        limiter, borrower = gate.limiter(priority), object()
        await limiter.acquire_on_behalf_of(borrower)
        log(f"+{name}")
        await trio.sleep(1)
        limiter.release_on_behalf_of(borrower)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "task", BACKGROUND, 5)
        await wait_all_tasks_blocked()
        nursery.start_soon(in_a_thread, "digest", BACKGROUND)
        await wait_all_tasks_blocked()
        nursery.start_soon(in_a_thread, "question", FOREGROUND)
    assert log.of("+") == [(0, "task"), (5, "question"), (6, "digest")]


async def test_one_borrower_that_waits_twice_gets_no_more_than_the_capacity(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    limiter, borrower = gate.limiter(), object()
    await limiter.acquire_on_behalf_of("other")

    async def borrow() -> None:
        await limiter.acquire_on_behalf_of(borrower)
        log(f"{gate.statistics().in_flight}")
        await trio.sleep(1)
        limiter.release_on_behalf_of(borrower)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(borrow)
        nursery.start_soon(borrow)
        await trio.sleep(1)
        assert gate.statistics().tasks_waiting == 2
        limiter.release_on_behalf_of("other")
    assert log.lines == [(1, "1"), (2, "1")]
    assert gate.statistics().in_flight == 0
    with pytest.raises(RuntimeError, match="holds no slot that was taken through"):
        limiter.release_on_behalf_of(borrower)


async def test_a_borrower_may_hold_several(autojump_clock: MockClock) -> None:  # noqa: ASYNC124 - it is to run in trio
    gate = Gate(3)
    limiter = gate.limiter()
    for _ in range(3):
        limiter.acquire_on_behalf_of_nowait("batch")
    with pytest.raises(trio.WouldBlock):
        limiter.acquire_on_behalf_of_nowait("batch")
    assert limiter.statistics().borrowers == ["batch"]
    for left in (2, 1, 0):
        limiter.release_on_behalf_of("batch")
        assert gate.statistics().in_flight == left
    assert limiter.statistics().borrowers == []


async def test_it_has_the_face_of_trios_limiter(autojump_clock: MockClock) -> None:
    gate = Gate(2)
    limiter = gate.limiter(FOREGROUND)
    assert "limiter of gate 'mlx'" in repr(limiter)
    with assert_checkpoints():
        await limiter.acquire()
    with assert_no_checkpoints():
        limiter.release()
    limiter.acquire_nowait()
    assert (limiter.total_tokens, limiter.borrowed_tokens, limiter.available_tokens) == (2, 1, 1)
    limiter.total_tokens = 1
    assert gate.capacity == 1
    with pytest.raises(TypeError):
        limiter.total_tokens = 1.5
    limiter.release()
    async with limiter:
        seen = limiter.statistics()
        assert (seen.borrowed_tokens, seen.total_tokens, seen.tasks_waiting) == (1, 1, 0)
        assert seen.borrowers == [trio.lowlevel.current_task()]
    assert {name for name in dir(trio.CapacityLimiter) if name[0] != "_"} <= set(dir(limiter))
    with pytest.raises(RuntimeError):
        limiter.release()
    with pytest.raises(TypeError, match="unhashable"):
        await limiter.acquire_on_behalf_of([])
    with pytest.raises(TypeError, match="unhashable"):
        limiter.acquire_on_behalf_of_nowait([])

    class Incomparable:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise ValueError("not to be compared")

    gate.capacity = 2
    limiter.acquire_on_behalf_of_nowait(Incomparable())
    with pytest.raises(ValueError, match="not to be compared"):
        limiter.acquire_on_behalf_of_nowait(Incomparable())
    assert gate.statistics().in_flight == 1


async def test_the_gates_refusals_come_through(autojump_clock: MockClock) -> None:
    gate = Gate(1, max_waiting=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end := trio.Event())
        with pytest.raises(WaitTooLong):
            await trio.to_thread.run_sync(str, limiter=gate.limiter(max_wait=0))
        with pytest.raises(QueueFull):
            await trio.to_thread.run_sync(str, limiter=gate.limiter())
        end.set()
    every: tuple[dict[str, Any], ...] = (
        {"priority": "high"},
        {"max_wait": -1},
        {"outer_deadline": "no"},
        {"supersede": []},
    )
    for arguments in every:
        with pytest.raises((TypeError, ValueError)):
            gate.limiter(**arguments)


async def test_a_task_that_owns_a_slot_is_refused_at_once() -> None:
    gate = Gate(2)
    async with gate.slot():
        with pytest.raises(RuntimeError, match="owns a slot of gate 'mlx' already"):
            await trio.to_thread.run_sync(str, limiter=gate.limiter())
        with pytest.raises(RuntimeError):
            gate.limiter().acquire_nowait()
    # One that has taken all slots through a limiter, for itself, would wait for itself, too.
    gate.capacity = 1
    async with gate.limiter():
        with pytest.raises(RuntimeError, match="wait for itself"):
            async with gate.slot():
                pass


async def test_an_abandoned_thread_keeps_its_slot_until_it_ends() -> None:
    gate, go_on, order = Gate(1), threading.Event(), []

    def work() -> None:
        go_on.wait(30)
        order.append("ended")

    with trio.move_on_after(0.05):
        await trio.to_thread.run_sync(work, limiter=gate.limiter(outer_deadline="allow"), abandon_on_cancel=True)
    assert gate.statistics().in_flight == 1
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            # The same task may ask again: the thread gives its slot back by itself.
            nursery.start_soon(go_on_later, go_on)
            async with gate.slot(outer_deadline="allow"):
                order.append("next")
    assert order == ["ended", "next"]


async def go_on_later(event: threading.Event) -> None:
    await trio.sleep(0.05)
    event.set()


async def test_a_thread_that_fails_gives_its_slot_back() -> None:
    gate = Gate(1)

    def fail() -> None:
        raise ValueError("in the thread")

    with pytest.raises(ValueError, match="in the thread"):
        await trio.to_thread.run_sync(fail, limiter=gate.limiter())
    assert gate.statistics().in_flight == 0


async def test_a_coroutine_that_its_thread_runs_does_not_wait_for_the_thread() -> None:
    gate, refused = Gate(1, outer_deadline="allow"), []

    async def ask() -> None:
        async with gate.slot():
            raise AssertionError("let in beside the thread")

    def work() -> None:
        try:
            trio.from_thread.run(ask)
        except RuntimeError as error:
            refused.append(str(error))

    with trio.fail_after(30):
        await trio.to_thread.run_sync(work, limiter=gate.limiter())
    assert len(refused) == 1
    assert "wait for itself" in refused[0]
    assert gate.statistics().in_flight == 0


def test_a_limiter_may_be_used_in_run_after_run() -> None:
    gate = Gate(1)
    limiter = gate.limiter()

    async def leave_one_behind() -> None:
        assert limiter.statistics().borrowers == []
        await limiter.acquire_on_behalf_of("lost")

    for _ in range(2):
        run(leave_one_behind)

    async def release() -> None:
        await in_a_task_of_its_own(limiter.acquire)
        with pytest.raises(RuntimeError):
            limiter.release_on_behalf_of("lost")

    run(release)


async def test_the_outer_deadline_is_told_by_the_line_that_starts_the_thread() -> None:
    gate = Gate(1)
    with trio.fail_after(30), pytest.raises(RuntimeError, match=r"test_limiter\.py:\d+: a deadline of the caller"):
        await trio.to_thread.run_sync(str, limiter=gate.limiter(outer_deadline="raise"))
