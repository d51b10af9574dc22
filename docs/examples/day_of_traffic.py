"""A day of traffic in a few seconds of virtual time: how long each class waits, under each way to set up the gate."""

from __future__ import annotations

import math
import random
from statistics import fmean, median
from typing import Final

import attrs
import trio
from trio.testing import MockClock

from trio_mlxgate import Gate, Priority

SEED: Final = 1
HOUR: Final = 3600.0
DIGEST_SECONDS: Final = 60.0
AGING: Final = 1800.0


@attrs.frozen
class Job:
    """One call that will come."""

    at: float
    priority: Priority
    seconds: float


def day(seed: int) -> list[Job]:
    """All calls of a day, in the order in which they come."""
    # Whole numbers, which all versions of Python draw alike. Microseconds, so that no two things happen at the same
    # time whose order matters: trio shuffles what does.
    draw = random.Random(seed)
    jobs = []
    for number in range(24 * 180):
        at = number * 20 + draw.randrange(1_000_000) / 1e6
        rush = 19 * HOUR <= at < 21 * HOUR
        micros = draw.randrange(12_000_000, 18_000_000) if rush else draw.randrange(1_000_000, 7_000_000)
        jobs.append(Job(at, Priority.FOREGROUND, micros / 1e6))
    for number in range(24 * 3):
        at = number * 1200 + draw.randrange(1_000_000) / 1e6
        digest = Job(at, Priority.BACKGROUND, DIGEST_SECONDS)
        jobs += [digest] * draw.randrange(8, 17)
    return sorted(jobs, key=lambda job: job.at)


async def waits_of(jobs: list[Job], gate: Gate) -> dict[Priority, list[float]]:
    """Let the day pass in front of ``gate``; the waits of each class in seconds. Always a checkpoint."""
    waits: dict[Priority, list[float]] = {priority: [] for priority in Priority}

    async def call(job: Job) -> None:
        async with gate.slot(job.priority) as slot:
            waits[job.priority].append(slot.waited)
            await trio.sleep(job.seconds)

    midnight = trio.current_time()
    async with trio.open_nursery() as nursery:
        for job in jobs:
            await trio.sleep_until(midnight + job.at)
            nursery.start_soon(call, job)
    return waits


def gates() -> dict[str, Gate]:
    """Every setting, by what the table calls it."""
    made = {}
    headroom: dict[int, int] = {Priority.FOREGROUND: 1}
    for capacity in (1, 2):
        for aging in (None, AGING):
            for reserved in (None, headroom):
                setting = f"capacity={capacity}"
                setting += "" if aging is None else f", aging={aging:g}"
                setting += "" if reserved is None else ", reserved={FOREGROUND: 1}"
                # No hooks, and so no warnings about long waits, which are what is looked at here.
                made[setting] = Gate(capacity, aging=aging, reserved=reserved, hooks=())
    return made


def row(setting: str, priority: Priority, waits: list[float]) -> str:
    """A line of the table."""
    in_order = sorted(waits)
    percentile = in_order[math.ceil(0.95 * len(waits)) - 1]
    figures = (fmean(waits), median(waits), percentile, in_order[-1])
    return f"| `{setting}` | {priority.name} | {len(waits)} | {' | '.join(f'{figure:.1f}' for figure in figures)} |"


def main() -> None:
    """Print the table."""
    jobs = day(SEED)
    print("| gate | class | served | mean | median | 95 % | longest |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for setting, gate in gates().items():
        waits = trio.run(waits_of, jobs, gate, clock=MockClock(autojump_threshold=0))
        for priority in Priority:
            print(row(setting, priority, waits[priority]))


if __name__ == "__main__":
    main()
