"""A day of a server with faults on the virtual clock: what the registry says of it is what a person would say."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.backends.pretend import PretendBackend
from tests.core.a_day_of_health import DAY, HANGS, Server, clock, expected, phase_at, table
from trio_mlxgate.backends import BackendRegistry, HealthChanged, LoadLevel, LoadReport

if TYPE_CHECKING:
    from trio_mlxgate.core.readings import Reading

SAMPLES_EVERY = 15.0
SLACK = 65.0
"""Seconds by which what is said may lag behind, since the next look comes within an interval and its jitter; or be
early: the data is of a server that is looked at every 30 s, and one that fails is looked at every 5 s."""


@attrs.define(eq=False)
class FaultyBackend(PretendBackend):
    """The server of that day behind a backend. It can't be measured: its gate is always busy."""

    server: Server = attrs.field(factory=Server)

    async def read(self) -> Reading:
        self.looks.append(trio.current_time())
        reading = self.server.look(trio.current_time())
        await trio.sleep(2.0 if reading is HANGS else reading.latency or 0.001)
        return reading


async def live_through_it(
    reports: list[tuple[float, LoadReport]], changes: list[tuple[float, HealthChanged]]
) -> FaultyBackend:
    """Sample what the registry says, all day."""
    backend = FaultyBackend("macmini", measured=trio.WouldBlock())
    registry = BackendRegistry(
        {"reasoner": backend},  # type: ignore[dict-item]
        hooks=[lambda change: changes.append((trio.current_time(), change))],
    )
    async with registry:
        while trio.current_time() < DAY:
            await trio.sleep_until(trio.current_time() + SAMPLES_EVERY)
            reports.append((trio.current_time(), await registry.load("reasoner")))
    return backend


def test_what_is_said_all_day_is_what_a_person_would_say() -> None:
    reports: list[tuple[float, LoadReport]] = []
    changes: list[tuple[float, HealthChanged]] = []
    backend = trio.run(live_through_it, reports, changes, clock=MockClock(autojump_threshold=0))
    for time, report in reports:
        allowed = expected(time, SLACK)
        assert report.level in allowed, f"{clock(time)}, {phase_at(time).what}: {report}"
        assert report.age is not None
        assert report.age <= 75 or report.level in (LoadLevel.UNKNOWN, LoadLevel.DOWN)
    # Whoever was down came up again, and each was told once.
    kinds = [(change.before.value, change.after.value) for _, change in changes]
    assert kinds[0] == ("unknown", "up")
    assert kinds[1:] == [("up", "down"), ("down", "up")] * 4
    # A look each half minute, and more while it fails.
    assert len(backend.looks) == pytest.approx(DAY / 30, rel=0.1)
    pauses = [later - earlier for earlier, later in zip(backend.looks, backend.looks[1:], strict=False)]
    assert max(pauses) < 30 * 1.1 + 5
    assert not math.isclose(min(pauses), max(pauses))


if __name__ == "__main__":
    day: list[tuple[float, LoadReport]] = []
    trio.run(live_through_it, day, [], clock=MockClock(autojump_threshold=0))
    sys.stdout.write(table((time, report.level) for time, report in day) + "\n")
