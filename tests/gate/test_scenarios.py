"""The scenarios that the gate is made for, at exact times."""

from __future__ import annotations

import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, job
from trio_mlxgate import Gate, get_mlx_gate
from trio_mlxgate.mlx import current_mlx_gate


async def test_first_come_first_served_within_a_class(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(job, gate, log, str(number), BACKGROUND, 2, number * 0.1)
    assert log.of("+") == [(0, "0"), (2, "1"), (4, "2"), (6, "3"), (8, "4")]
    assert log.of("-") == [(2, "0"), (4, "1"), (6, "2"), (8, "3"), (10, "4")]


async def test_the_foreground_jumps_the_queue(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(job, gate, log, f"digest {number}", BACKGROUND, 10, number)
        nursery.start_soon(job, gate, log, "person", FOREGROUND, 10, 5)
    assert log.of("+") == [(0, "digest 0"), (10, "person"), (20, "digest 1"), (30, "digest 2")]


async def test_a_running_background_call_is_not_interrupted(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 60)
        nursery.start_soon(job, gate, log, "person", FOREGROUND, 1, 0.5)
    assert log.lines == [(0, "+digest"), (60, "-digest"), (60, "+person"), (61, "-person")]


async def test_mixed_arrivals(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    arrivals = [
        ("b1", BACKGROUND, 0),
        ("b2", BACKGROUND, 1),
        ("f1", FOREGROUND, 2),
        ("b3", BACKGROUND, 3),
        ("f2", FOREGROUND, 4),
        ("f3", FOREGROUND, 16),
        ("b4", BACKGROUND, 17),
        ("f4", FOREGROUND, 33),
    ]
    async with trio.open_nursery() as nursery:
        for name, priority, delay in arrivals:
            nursery.start_soon(job, gate, log, name, priority, 8, delay)
    # b1 runs; f1 and f2 go before b2; f3 comes at 16, while f2 runs until 24, and goes before b2 too.
    order = ["b1", "f1", "f2", "f3", "b2", "f4", "b3", "b4"]
    assert log.of("+") == [(8 * place, name) for place, name in enumerate(order)]


async def test_the_legacy_call_is_background(autojump_clock: MockClock) -> None:
    gate, log = current_mlx_gate(), Log()

    async def legacy() -> None:
        async with get_mlx_gate() as slot:
            assert slot.priority == BACKGROUND == 100
            log("+legacy")
            await trio.sleep(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "running", BACKGROUND, 5)
        await wait_all_tasks_blocked()
        nursery.start_soon(legacy)
        nursery.start_soon(job, gate, log, "person", FOREGROUND, 4, 1)
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 1, 2)
    assert log.of("+") == [(0, "running"), (5, "person"), (9, "legacy"), (12, "digest")]


async def test_a_cancelled_waiter_never_runs_and_blocks_nobody(autojump_clock: MockClock) -> None:
    gate, log = Gate(1, outer_deadline="allow"), Log()

    async def impatient() -> None:
        with trio.move_on_after(3) as scope:
            await job(gate, log, "impatient", FOREGROUND, 1)
        assert scope.cancelled_caught
        log("gave up")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "running", BACKGROUND, 10)
        await wait_all_tasks_blocked()
        nursery.start_soon(impatient)
        nursery.start_soon(job, gate, log, "next", BACKGROUND, 1)
    assert log.lines == [
        (0, "+running"),
        (3, "gave up"),
        (10, "-running"),
        (10, "+next"),
        (11, "-next"),
    ]
    assert gate.statistics().cancelled == 1
