"""Following a call while it waits."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, holder
from trio_mlxgate import Gate, Outlook, Slot, WaitTooLong


async def follow(gate: Gate, slot: Slot, seen: list[Outlook | None]) -> None:
    async for outlook in gate.progress(slot):
        seen.append(outlook)  # noqa: PERF401 - it is looked at while it grows
    seen.append(None)


async def test_a_thousand_watchers_cost_one_walk_for_each_change(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, end = Gate(1), trio.Event()
    walks = 0
    original = gate._admission.outlooks
    seen: list[list[Outlook | None]] = []

    def counting(slots: set[Slot], now: float) -> dict[Slot, Outlook]:
        nonlocal walks
        walks += 1
        return original(slots, now)

    async def wait(slot: Slot) -> None:
        async with slot:  # type: ignore[attr-defined]
            pass

    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        monkeypatch.setattr(gate._admission, "outlooks", counting)
        for _ in range(1000):
            slot = gate.slot()
            seen.append([])
            nursery.start_soon(wait, slot)
            nursery.start_soon(follow, gate, slot, seen[-1])
        await wait_all_tasks_blocked()
        assert sorted(each[0].position for each in seen if each[0]) == list(range(1, 1001))
        assert walks < 10
        walks = 0
        async with trio.open_nursery() as more:
            for _ in range(100):
                more.start_soon(wait, gate.slot(FOREGROUND, max_wait=5))
            await wait_all_tasks_blocked()
            # One hundred arrived in one pass; then the thousand came back to ask for more.
            assert walks <= 4
            assert sorted(each[-1].position for each in seen if each[-1]) == list(range(101, 1101))
            more.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert sorted(each[-1].position for each in seen if each[-1]) == list(range(1, 1001))
        end.set()
    assert all(each[-1] is None for each in seen)
    assert not gate._board._watching


async def test_nobody_watching_costs_nothing(autojump_clock: MockClock) -> None:
    gate, end = Gate(1, hooks=()), trio.Event()
    seen: list[Outlook | None] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        slot = gate.slot(max_wait=3)
        nursery.start_soon(follow, gate, slot, seen)
        await wait_all_tasks_blocked()
        with pytest.raises(WaitTooLong):
            await slot.__aenter__()
        await wait_all_tasks_blocked()
        assert seen == [Outlook(1, None), None]
        # The first event without a watcher sends the board away.
        end.set()
    assert gate._board not in gate._listeners
    assert not gate._granted_wanted()


async def test_the_estimate_appears_when_something_is_measured(autojump_clock: MockClock) -> None:
    gate, seen, end = Gate(2), list[Outlook | None](), trio.Event()
    async with trio.open_nursery() as nursery:
        short = trio.Event()
        await nursery.start(holder, gate, short)
        await nursery.start(holder, gate, end)
        slots = [gate.slot() for _ in range(3)]

        async def wait(slot: Slot) -> None:
            async with slot:  # type: ignore[attr-defined]
                await end.wait()

        for slot in slots:
            nursery.start_soon(wait, slot)
            await wait_all_tasks_blocked()
        nursery.start_soon(follow, gate, slots[2], seen)
        await trio.sleep(10)
        short.set()
        await wait_all_tasks_blocked()
        # Two hold: one for 10 s of 10, the other for 0. One waits before it.
        assert seen == [Outlook(3, None), Outlook(2, (0 + 10 + 10) / 2)]
        assert slots[2].estimated_wait == 10
        await trio.sleep(4)
        assert slots[2].estimated_wait == 8
        gate.capacity = 0
        await wait_all_tasks_blocked()
        assert seen[2:] == [Outlook(2, None)]
        gate.capacity = 2
        await wait_all_tasks_blocked()
        assert seen[3:] == [Outlook(2, 8)]
        end.set()
    assert seen[-1] is None


async def test_who_is_slow_gets_the_latest_alone(autojump_clock: MockClock) -> None:
    gate, end = Gate(1), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        scopes = [trio.CancelScope() for _ in range(5)]
        slots = [gate.slot() for _ in range(5)]

        async def wait(slot: Slot, scope: trio.CancelScope) -> None:
            with scope:
                async with slot:  # type: ignore[attr-defined]
                    pass

        for slot, scope in zip(slots, scopes, strict=True):
            nursery.start_soon(wait, slot, scope)
            await wait_all_tasks_blocked()
        progress = gate.progress(slots[4])
        assert await anext(progress) == Outlook(5, None)
        for scope in scopes[:3]:
            scope.cancel()
            await wait_all_tasks_blocked()
        assert await anext(progress) == Outlook(2, None)
        # A cancelled wait for news has lost nothing.
        with trio.move_on_after(1) as patience:
            await anext(progress)
        assert patience.cancelled_caught
        assert not gate._board._watching
        scopes[3].cancel()
        assert (slots[3].position, slots[4].position) == (None, 1)
        assert await anext(progress) == Outlook(1, None)
        end.set()
        for _ in range(2):
            with pytest.raises(StopAsyncIteration), assert_checkpoints():
                await anext(progress)


async def test_misuse_is_told(autojump_clock: MockClock) -> None:
    gate = Gate(1)
    with pytest.raises(ValueError, match="not a slot of gate 'other'"):
        Gate(1, name="other").progress(gate.slot())
    progress = gate.progress(gate.slot())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(anext, progress)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await anext(progress)
        nursery.cancel_scope.cancel()


async def test_a_call_that_is_refused_as_a_mistake_is_followed_to_its_end() -> None:
    gate, seen = Gate(1), list[Outlook | None]()
    tied = await gate.acquire_detached(tied=True)
    slot = gate.slot()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, gate, slot, seen)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="wait"):
            await slot.__aenter__()
    assert seen == [None]
    tied.release()


def test_a_board_does_not_outlive_its_run() -> None:
    gate, seen = Gate(1), list[Outlook | None]()

    async def main() -> None:
        end = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(holder, gate, end)
            slot = gate.slot(BACKGROUND)
            nursery.start_soon(follow, gate, slot, seen)
            await wait_all_tasks_blocked()
            assert gate._board in gate._listeners
            nursery.cancel_scope.cancel()

    for _ in range(3):
        trio.run(main)
        assert len(gate._listeners._listeners) <= 2
    assert not seen


async def test_a_hook_fails_while_somebody_watches(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def interest(self, *_: object) -> object:
            return lambda: True

        def __call__(self, details: object) -> None:
            raise ValueError("the hook's own trouble")

    gate, end, seen = Gate(1, hooks=[Failing()]), trio.Event(), list[Outlook | None]()  # type: ignore[list-item]
    async with trio.open_nursery() as nursery:
        slot = gate.slot()
        nursery.start_soon(follow, gate, slot, seen)
        await wait_all_tasks_blocked()
        await nursery.start(holder, gate, end)
        nursery.start_soon(holder, gate, end, FOREGROUND)
        await wait_all_tasks_blocked()
        end.set()
        async with slot:
            pass
    assert caplog.text.count("is not called any more") == 1
    assert seen[-1] is None
    assert gate.statistics().in_flight == 0


def test_positions_of_who_has_not_asked() -> None:
    slot = Gate(1).slot()
    assert (slot.position, slot.estimated_wait) == (None, None)
    assert math.isinf(slot.max_wait)
