"""What the backends command knows of each server, and how it comes to know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import trio

from trio_mlxgate.backends.prober import Prober
from trio_mlxgate.core.load import LoadLevel, LoadMonitor, LoadSettings
from trio_mlxgate.core.readings import Health

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trio_mlxgate.backends.kinds.base import ServerKind
    from trio_mlxgate.core.load import LoadReport
    from trio_mlxgate.core.readings import Reading


@attrs.frozen(kw_only=True)
class Target:
    """A server to look at."""

    name: str
    url: str
    kind: ServerKind | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    model: str | None = None
    """What the configuration says that requests name."""


@attrs.frozen(kw_only=True)
class Row:
    """What is known of a server now."""

    target: Target
    kind: ServerKind | None
    reading: Reading | None
    """The latest look; None: the first one is under way."""

    report: LoadReport

    once: bool = False
    """Whether there will be no other look, so that nothing is settled by more of them."""

    @property
    def health(self) -> Health:
        """The settled one where there is one; before that, what the one look says."""
        if self.report.health is Health.UNKNOWN and self.reading is not None:
            return self.reading.health
        return self.report.health

    @property
    def level(self) -> LoadLevel:
        """How busy it is; DOWN where its one look says so, though that settles nothing yet."""
        return LoadLevel.DOWN if self.health is Health.DOWN else self.report.level

    @property
    def why(self) -> str:
        """Why the level is what it is, for people."""
        if self.reading is None:
            return self.report.reason
        reason = self.report.reason
        if self.once and self.reading.health is not Health.UP:
            reason = self.reading.reason or "no good answer"
        told = [reason]
        if self.reading.reason not in reason:
            told.append(self.reading.reason)
        if self.target.kind is None and self.kind is not None and self.kind.name == "openai":
            told.append("answers, but as none of the kinds known here: is the URL right?")
        return "; ".join(told)

    @property
    def models(self) -> tuple[str, ...]:
        """What it has loaded, as far as it says, else what it is asked for."""
        loaded = () if self.reading is None else self.reading.models
        return loaded or (() if self.target.model is None else (self.target.model,))

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints of it."""
        status = None if self.reading is None else self.reading.status
        return {
            "name": self.target.name,
            "url": self.target.url,
            "kind": None if self.kind is None else self.kind.name,
            "health": self.health.value,
            "level": self.level.value,
            "source": self.report.source,
            "reason": self.why,
            "latency": None if self.reading is None else _rounded(self.reading.latency),
            "models": list(self.models),
            "active_jobs": None if status is None else status.active_jobs,
            "waiting": None if status is None else status.waiting,
            "slots": None if status is None else status.slots,
            "total_requests": None if status is None else status.total_requests,
            "hint": "" if self.kind is None else self.kind.hint,
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


class Watch:
    """Looks at servers side by side, once or again and again.

    Raises:
      TypeError, ValueError: a target's URL or headers are none.
    """

    def __init__(self, targets: Sequence[Target], *, timeout: float, interval: float) -> None:
        settings = LoadSettings(
            interval=interval, recheck=min(5.0, interval), fresh_for=max(75.0, 2.5 * interval), down_after=3
        )
        self._interval = interval
        self._targets = targets
        self._monitors = [LoadMonitor(settings) for _ in targets]
        self._readings: list[Reading | None] = [None for _ in targets]
        self._probers = [
            Prober(target.url, headers=target.headers, kind=target.kind, timeout=timeout) for target in targets
        ]

    def rows(self, *, once: bool = False) -> list[Row]:
        """What is known now, in the order of the targets; ``once``: no other look will follow. Called in trio."""
        now = trio.current_time()
        return [
            Row(target=target, kind=prober.kind, reading=reading, report=monitor.report(now), once=once)
            for target, prober, reading, monitor in zip(
                self._targets, self._probers, self._readings, self._monitors, strict=True
            )
        ]

    async def look_once(self) -> list[Row]:
        """One look at each, side by side. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            for number in range(len(self._targets)):
                nursery.start_soon(self._look, number)
        return self.rows(once=True)

    async def keep_looking(self, show: Callable[[list[Row]], None]) -> None:
        """Look at each, every interval, until cancelled; ``show`` is told after each look. Always a checkpoint."""
        await trio.lowlevel.checkpoint()

        async def watch(number: int) -> None:
            while True:
                next_look = trio.current_time() + self._interval
                await self._look(number)
                show(self.rows())
                await trio.sleep_until(next_look)

        show(self.rows())
        async with trio.open_nursery() as nursery:
            for number in range(len(self._targets)):
                nursery.start_soon(watch, number)

    async def _look(self, number: int) -> None:
        """Always a checkpoint."""
        reading = await self._probers[number].read()
        self._readings[number] = reading
        self._monitors[number].observe(reading, trio.current_time())
