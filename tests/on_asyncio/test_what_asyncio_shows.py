"""What a gate can see on asyncio, and what it can not: deadlines of the caller, tasks that end or wait for others."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.gate.helpers import Recorder
from tests.loops import LOOPS, passes, run_on
from trio_mlxgate import OuterDeadlineWarning
from trio_mlxgate.anyio import Gate
from trio_mlxgate.instrumentation import Orphaned, WaitsForParent

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

FROM_3_12 = sys.version_info >= (3, 12)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of outer deadlines: what they say of the deadline."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    for warning in caught:
        assert warning.category is OuterDeadlineWarning
        assert warning.filename == __file__
        said.append("before" if "a deadline of the caller" in str(warning.message) else "cut off")


async def ask(gate: Gate) -> None:
    async with gate.slot():
        await asyncio.sleep(0)


# ---- the ways to put a deadline around a wait ----


async def in_a_scope(gate: Gate) -> None:
    with anyio.move_on_after(0.02):
        await ask(gate)


async def in_fail_after(gate: Gate) -> None:
    with contextlib.suppress(TimeoutError), anyio.fail_after(0.02):
        await ask(gate)


async def in_timeout(gate: Gate) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            await ask(gate)


async def in_wait_for(gate: Gate) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ask(gate), 0.02)


async def in_a_timer(gate: Gate) -> None:
    """As other libraries do it."""
    task = asyncio.create_task(ask(gate))
    asyncio.get_running_loop().call_later(0.02, task.cancel)
    await asyncio.wait([task])


SEEN: list[Any] = [
    # way, what is told of a call that need not wait, of one that is cut off
    (in_a_scope, ["before"], ["before"]),
    (in_fail_after, ["before"], ["before"]),
    (in_timeout, [], ["cut off"]),
    (in_wait_for, [], ["cut off"] if FROM_3_12 else []),
    (in_a_timer, [], []),
]


@pytest.mark.parametrize(("way", "at_once", "cut_off"), SEEN, ids=lambda value: getattr(value, "__name__", ""))
def test_which_deadlines_are_told_of(
    way: Callable[[Gate], Coroutine[Any, Any, None]], at_once: list[str], cut_off: list[str], loop: str
) -> None:
    async def main() -> None:
        with told() as said:
            await way(Gate(1))
        assert said == at_once
        gate = Gate(1)
        holder = await gate.acquire_detached()
        with told() as said:
            await way(gate)
            await way(gate)  # once for each place
        assert said == cut_off
        assert gate.statistics().tasks_waiting == 0
        holder.release()
        quiet = Gate(0, outer_deadline="allow")
        with told() as said:
            await way(quiet)
        assert said == []

    run_on(loop, main)


def test_to_refuse_them_they_must_be_seen_before() -> None:
    async def main() -> None:
        gate = Gate(0, outer_deadline="raise")
        with pytest.raises(RuntimeError, match="a deadline of the caller"):
            await in_a_scope(gate)
        with told() as said:
            await in_timeout(gate)
        assert said == ["cut off"]

    run_on("asyncio", main)


# ---- tasks ----


def test_a_lost_slot_is_noticed_one_pass_after_the_end_of_its_task(loop: str) -> None:
    async def main() -> None:
        hook = Recorder(Orphaned)
        gate = Gate(1, hooks=[hook])
        kept = []

        async def lose() -> None:
            kept.append(gate.slot())
            await kept[0].__aenter__()

        task = asyncio.create_task(lose())
        while not task.done():
            await asyncio.sleep(0)
        await passes(1)
        assert gate.statistics().in_flight == 0
        assert len(hook.details) == 1

    run_on(loop, main)


@pytest.mark.parametrize("awaited", [False, True])
def test_a_task_started_inside_a_slot_is_told_of_also_if_nobody_awaits_it(awaited: bool, loop: str) -> None:
    async def main() -> None:
        hook = Recorder(WaitsForParent)
        gate = Gate(1, hooks=[hook])
        async with gate.slot():
            child = asyncio.create_task(ask(gate))
            if awaited:
                await asyncio.wait([child], timeout=0.02)
            else:
                await passes(3)
        await child
        assert len(hook.details) == 1

    run_on(loop, main)


def test_wait_for_around_entering_by_hand_makes_an_orphan_of_it_before_3_12() -> None:
    """There ``wait_for`` enters in a task of its own, which ends at once."""

    async def main() -> None:
        hook = Recorder(Orphaned)
        gate = Gate(1, hooks=[hook])
        slot = gate.slot()
        await asyncio.wait_for(slot.__aenter__(), 5)
        await passes(2)
        assert bool(hook.details) == (not FROM_3_12)
        await slot.__aexit__(None, None, None)
        assert gate.statistics().in_flight == 0

    run_on("asyncio", main)
