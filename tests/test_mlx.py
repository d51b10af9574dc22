"""The process-wide gate: one a run, configured by the program or the environment."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_mlxgate import (
    Gate,
    Priority,
    WaitTooLong,
    acquire_mlx_gate,
    configure_mlx_gate,
    current_mlx_gate,
    gate_status,
    get_mlx_gate,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

VARIABLE = "MLXGATE_CAPACITY"


def in_new_context(function: Callable[[], Any]) -> Any:
    """Call it so that what it configures is gone afterwards."""
    return contextvars.copy_context().run(function)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return trio.run(main, clock=MockClock(autojump_threshold=0))


async def capacity() -> int:
    await trio.lowlevel.checkpoint()
    return current_mlx_gate().capacity


async def test_a_run_has_one_gate() -> None:
    gate = current_mlx_gate()
    assert isinstance(gate, Gate)
    assert (gate.capacity, gate.name) == (1, "mlx")

    async def ask() -> None:
        await trio.lowlevel.checkpoint()
        assert current_mlx_gate() is gate

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    async with acquire_mlx_gate() as slot:
        assert slot.gate is gate


def test_each_run_starts_clean() -> None:
    gates: list[Gate] = []

    async def main() -> None:
        assert gate_status() == {"inflight": 0, "waiters": 0}
        gates.append(current_mlx_gate())
        await gates[-1].acquire_detached()
        assert gate_status() == {"inflight": 1, "waiters": 0}

    run(main)
    run(main)
    assert gates[0] is not gates[1]


async def test_the_legacy_call_is_background_and_the_new_one_what_it_says() -> None:
    async with get_mlx_gate() as slot:
        assert slot.priority == Priority.BACKGROUND
    async with acquire_mlx_gate() as slot:
        assert slot.priority == Priority.BACKGROUND
    async with acquire_mlx_gate(Priority.FOREGROUND) as slot:
        assert slot.priority == Priority.FOREGROUND
    async with acquire_mlx_gate(7) as slot:
        assert slot.priority == 7


async def test_the_options_are_those_of_the_gate(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def hold() -> None:
            with pytest.raises(trio.TooSlowError):
                async with acquire_mlx_gate(hold_timeout=5):
                    await trio.sleep_forever()
            assert trio.current_time() == begun + 5

        begun = trio.current_time()
        await wait_all_tasks_blocked()
        with pytest.raises(WaitTooLong):
            async with acquire_mlx_gate(max_wait=2):
                pass
        assert trio.current_time() == begun + 2


async def test_gate_status_counts() -> None:
    end = trio.Event()

    async def hold() -> None:
        async with acquire_mlx_gate():
            await end.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        assert gate_status() == {"inflight": 1, "waiters": 2}
        end.set()
    assert gate_status() == {"inflight": 0, "waiters": 0}


def test_outside_a_run_there_is_no_gate_and_the_status_is_zeros() -> None:
    assert gate_status() == {"inflight": 0, "waiters": 0}
    with pytest.raises(RuntimeError):
        current_mlx_gate()
    with pytest.raises(RuntimeError):
        acquire_mlx_gate()
    with pytest.raises(RuntimeError):
        get_mlx_gate()


async def test_the_status_in_a_worker_thread_is_zeros() -> None:
    async with acquire_mlx_gate():
        assert await trio.to_thread.run_sync(gate_status) == {"inflight": 0, "waiters": 0}


# ---- capacity ----


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("4", 4), ("0", 0), (" 3 ", 3)])
def test_the_environment_says_the_capacity(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert run(capacity) == expected


@pytest.mark.parametrize("text", ["", "-1", "1.5", "two", "None", "1e3", "0x10"])
def test_a_bad_value_in_the_environment_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=VARIABLE) as caught:
        run(capacity)
    assert repr(text) in str(caught.value)


def test_a_bad_value_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setenv(VARIABLE, "x")
        for _ in range(2):
            with pytest.raises(ValueError, match=VARIABLE):
                current_mlx_gate()
        assert gate_status() == {"inflight": 0, "waiters": 0}
        monkeypatch.setenv(VARIABLE, "2")
        assert await capacity() == 2

    run(main)


def test_configured_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def program() -> None:
        configure_mlx_gate(capacity=5)
        assert run(capacity) == 5
        assert run(capacity) == 5  # for all the runs from here
        monkeypatch.setenv(VARIABLE, "3")
        assert run(capacity) == 5
        monkeypatch.setenv(VARIABLE, "nonsense")
        assert run(capacity) == 5  # what is not asked is not wrong

    in_new_context(program)
    monkeypatch.delenv(VARIABLE)
    assert run(capacity) == 1


def test_configured_inside_the_run() -> None:
    async def before_the_first_use() -> None:
        configure_mlx_gate(capacity=3)
        assert await capacity() == 3

    async def with_a_queue() -> None:
        end = trio.Event()

        async def hold() -> None:
            async with acquire_mlx_gate():
                await end.wait()

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            gate = current_mlx_gate()
            configure_mlx_gate(capacity=4)
            assert gate_status() == {"inflight": 4, "waiters": 1}
            assert current_mlx_gate() is gate
            end.set()

    run(before_the_first_use)
    assert run(capacity) == 1  # it was for that run
    run(with_a_queue)


@pytest.mark.parametrize("bad", [True, 1.5, "2", None, -1])
def test_a_bad_capacity_is_told_and_changes_nothing(bad: Any) -> None:
    async def inside() -> None:
        with pytest.raises((TypeError, ValueError), match="capacity"):
            configure_mlx_gate(capacity=bad)
        assert await capacity() == 2
        with pytest.raises((TypeError, ValueError), match="capacity"):
            configure_mlx_gate(capacity=bad)
        assert await capacity() == 2

    def program() -> None:
        configure_mlx_gate(capacity=2)
        with pytest.raises((TypeError, ValueError), match="capacity"):
            configure_mlx_gate(capacity=bad)
        run(inside)

    in_new_context(program)
