"""What is measured: coroutines that return the CPU seconds of one operation."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from tests.bench.subjects import Race, cpu_seconds
from trio_mlxgate.priority import DEFAULT_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.subjects import Subject


@attrs.frozen
class Workload:
    """One row of the table."""

    name: str
    measure: Callable[[Subject], Awaitable[float]]
    rounds: int
    only_gates: bool = False
    """Whether trio's primitives are left out, since they have nothing of the kind."""


async def uncontended(subject: Subject, *, times: int) -> float:
    """One task takes and gives back; nobody else is there. An operation is one entering and leaving."""
    await subject.repeat(times // 10)
    start = cpu_seconds()
    await subject.repeat(times)
    return (cpu_seconds() - start) / times


async def contended(subject: Subject, *, waiters: int, times: int, classes: int = 1) -> float:
    """``waiters`` tasks wait all the time. An operation is one handover: give back, let the next in, queue again.

    With more than one class each task has a priority of its own, modulo ``classes``.
    """
    race = Race(times)
    order = list(range(waiters + 1))
    random.Random(0).shuffle(order)
    async with trio.open_nursery() as nursery, subject.one():
        for number in order:
            priority = DEFAULT_PRIORITY if classes == 1 else number % classes
            nursery.start_soon(subject.compete, race, priority)
        await wait_all_tasks_blocked()
        start = cpu_seconds()
    return (race.finished - start) / times


async def cancelling(subject: Subject, *, waiters: int, times: int) -> float:
    """Of ``waiters`` waiting tasks some are cancelled, anywhere in the queue. An operation is one scope.cancel(),
    in which the wait is aborted and the queue edited; that the task then runs and ends is not timed."""
    scopes = [trio.CancelScope() for _ in range(waiters)]

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            async with subject.one():
                pass

    async with trio.open_nursery() as nursery, subject.one():
        for scope in scopes:
            nursery.start_soon(wait, scope)
        await wait_all_tasks_blocked()
        chosen = random.Random(0).sample(scopes, min(times, waiters))
        start = cpu_seconds()
        for scope in chosen:
            scope.cancel()
        end = cpu_seconds()
    return (end - start) / len(chosen)


def workloads(*, quick: bool) -> list[Workload]:
    """All rows of the table; with ``quick`` so small that they prove that all of it runs, and nothing more."""
    if quick:
        short, times, large, many, few = 100, 200, 200, 2, 1
        sizes: tuple[int, ...] = (10, 100)
    else:
        # Short samples and many rounds: what disturbs one sample then seldom disturbs most of them.
        short, times, large, many, few = 1_000, 5_000, 20_000, 201, 5
        sizes = (100, 1_000, 10_000, 100_000)
    partial = functools.partial
    rows = [
        Workload("uncontended", partial(uncontended, times=short), many),
        Workload("contended, 50 waiters", partial(contended, waiters=50, times=short), many),
        Workload(f"contended, {large} waiters", partial(contended, waiters=large, times=large), few),
    ]
    rows += [
        Workload(f"handover, {n} waiters, 1 class", partial(contended, waiters=n, times=times), few) for n in sizes
    ]
    rows += [
        Workload(
            f"handover, {n} waiters, {n} classes",
            partial(contended, waiters=n, times=times, classes=n),
            few,
            only_gates=True,
        )
        for n in sizes
    ]
    rows += [Workload(f"cancel, {n} waiters", partial(cancelling, waiters=n, times=short), few) for n in sizes]
    return rows
