"""What is measured: coroutines that return the CPU seconds of one operation, or its bytes."""

from __future__ import annotations

import asyncio
import functools
import random
import tracemalloc
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from tests.bench.subjects import (
    ASYNCIO_REFERENCE,
    LINES,
    ON_ASYNCIO,
    OPTIONS,
    PARKED,
    REFERENCE,
    SHIPPED,
    SUBJECTS,
    WAITERS,
    WATCHED,
    Gated,
    Race,
    cpu_seconds,
)
from trio_mlxgate.outer_deadline import LOOKS_AT_FIRST
from trio_mlxgate.priority import DEFAULT_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from tests.bench.subjects import Subject
    from trio_mlxgate.slots import AsyncSlot

Run: TypeAlias = "Callable[[Callable[[], Coroutine[Any, Any, float]]], float]"
"""Runs an async function to its end."""

WARM_UP: Final = LOOKS_AT_FIRST + 100
"""Of the first calls of a run a gate looks at more than of the later ones, which are what nearly all are."""


@attrs.frozen
class Workload:
    """One row of the table."""

    name: str
    measure: Callable[[Subject], Awaitable[float]]
    rounds: int
    only_gates: bool = False
    """Whether trio's primitives are left out, since they have nothing of the kind."""
    scale: float = 1e6
    """What a result is multiplied with for the table."""
    leave_out: str | None = None
    """A subject that has nothing of the kind."""


@attrs.frozen
class Table:
    """Some rows that are measured with the same subjects."""

    heading: str
    subjects: Mapping[str, Callable[[], Subject]]
    reference: str
    rows: list[Workload]
    turned: bool = False
    """Whether subjects are printed as rows and workloads as columns."""
    run: Run = trio.run
    """What starts the run of a sample."""


async def uncontended(subject: Subject, *, times: int, warm_up: int) -> float:
    """One task takes and gives back; nobody else is there. An operation is one entering and leaving."""
    await subject.repeat(warm_up)
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


async def contended_on_asyncio(subject: Subject, *, waiters: int, times: int) -> float:
    """As :func:`contended`, for asyncio: ``waiters`` tasks wait all the time, in one class."""
    race = Race(times)
    async with asyncio.TaskGroup() as group, subject.one():
        for _ in range(waiters + 1):
            group.create_task(subject.compete(race, DEFAULT_PRIORITY))
        for _ in range(5):  # all are in the queue by then
            await asyncio.sleep(0)
        start = cpu_seconds()
    return (race.finished - start) / times


def _run_asyncio(main: Callable[[], Coroutine[Any, Any, float]]) -> float:
    return asyncio.run(main())


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


async def arriving(subject: Subject, *, waiters: int) -> float:
    """Tasks arrive, all of them wait, and all are cancelled at once. An operation is all of that for one of them, from
    the start of its task to the end."""

    async def hold() -> None:
        async with subject.one():
            await trio.sleep_forever()

    # The first one may be let in, and holds what the others wait for.
    async with trio.open_nursery() as outer:
        outer.start_soon(hold)
        await wait_all_tasks_blocked()
        start = cpu_seconds()
        async with trio.open_nursery() as nursery:
            for _ in range(waiters):
                nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        end = cpu_seconds()
        outer.cancel_scope.cancel()
    return (end - start) / waiters


async def memory(subject: Subject, *, waiters: int, own: bool) -> float:
    """The bytes of one waiting task; ``own``: without what a task takes that is parked by hand."""
    # trio's own collections grow with the first herd, and stay so large.
    await _bytes_of_a_waiter(WAITERS[PARKED](), waiters)
    whole = await _bytes_of_a_waiter(subject, waiters)
    return whole - await _bytes_of_a_waiter(WAITERS[PARKED](), waiters) if own else whole


async def _bytes_of_a_waiter(subject: Subject, waiters: int) -> float:
    async def hold() -> None:
        async with subject.one():
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            for _ in range(waiters):
                nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        nursery.cancel_scope.cancel()
    return used / waiters


async def asking_where(subject: Subject, *, waiters: int, times: int) -> float:
    """The last of ``waiters`` waiting calls is asked for its position. An operation is one question."""
    assert isinstance(subject, Gated)
    slots = [subject.slot() for _ in range(waiters)]

    async def wait(slot: AsyncSlot) -> None:
        async with slot:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery, subject.one():
        for slot in slots:
            nursery.start_soon(wait, slot)
        await wait_all_tasks_blocked()
        last = max(slots, key=lambda slot: slot.seq)
        start = cpu_seconds()
        for _ in range(times):
            assert last.position == waiters
        end = cpu_seconds()
        nursery.cancel_scope.cancel()
    return (end - start) / times


def tables(*, quick: bool) -> list[Table]:
    """Everything; with ``quick`` so small that it proves that all of it runs, and nothing more."""
    if quick:
        short, times, many, herd, sizes = 100, 20, 2, 100, (10, 100)
    else:
        short, times, many, herd, sizes = 1_000, 100, 101, 100_000, (1_000, 100_000)
    few = min(many, 5)
    partial = functools.partial
    comparing = f"ratio to {REFERENCE} [middle half of the rounds]"
    return [
        Table(f"us per operation; {comparing}", SUBJECTS, REFERENCE, workloads(quick=quick)),
        Table(
            f"{herd} tasks that arrive, wait and are cancelled: us for each; {comparing}",
            WAITERS,
            REFERENCE,
            [Workload("arrive, wait, cancel", partial(arriving, waiters=herd), few)],
        ),
        Table(
            f"bytes of a waiting task; {comparing}",
            WAITERS,
            REFERENCE,
            [
                Workload("memory, the whole task", partial(memory, waiters=herd // 10, own=False), 3, scale=1),
                Workload("memory, beyond a parked task", partial(memory, waiters=herd // 10, own=True), 3, scale=1),
            ],
        ),
        Table(
            f"us per operation; ratio to {SHIPPED!r}, with one option more [middle half of the rounds]",
            OPTIONS,
            SHIPPED,
            [
                Workload(
                    "options, uncontended", partial(uncontended, times=short, warm_up=WARM_UP), many, leave_out=WATCHED
                ),
                Workload("options, contended, 50 waiters", partial(contended, waiters=50, times=short), many),
            ],
            turned=True,
        ),
        Table(
            "us per operation under asyncio; ratio to anyio.CapacityLimiter [middle half of the rounds]",
            ON_ASYNCIO,
            ASYNCIO_REFERENCE,
            [
                Workload("asyncio, uncontended", partial(uncontended, times=short, warm_up=WARM_UP), many),
                Workload(
                    "asyncio, contended, 50 waiters", partial(contended_on_asyncio, waiters=50, times=short), many
                ),
            ],
            run=_run_asyncio,
        ),
        Table(
            f"us for each question where the last waiter stands; ratio to {SHIPPED!r}",
            LINES,
            SHIPPED,
            [
                Workload(f"position, {size} waiters", partial(asking_where, waiters=size, times=times), few)
                for size in sizes
            ],
        ),
    ]


def workloads(*, quick: bool) -> list[Workload]:
    """The rows of the first table."""
    if quick:
        short, times, large, many, few = 100, 200, 200, 2, 1
        sizes: tuple[int, ...] = (10, 100)
    else:
        # Short samples and many rounds: what disturbs one sample then seldom disturbs most of them.
        short, times, large, many, few = 1_000, 5_000, 20_000, 201, 5
        sizes = (100, 1_000, 10_000, 100_000)
    partial = functools.partial
    rows = [
        Workload("uncontended", partial(uncontended, times=short, warm_up=WARM_UP), many),
        Workload("uncontended, first calls", partial(uncontended, times=min(short, LOOKS_AT_FIRST), warm_up=0), many),
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
