"""What is told of a server: how busy it is and why, and that its health has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from trio_mlxgate.core.readings import Health, OwnWork

if TYPE_CHECKING:
    from trio_mlxgate.core.levels import LoadLevel

Source: TypeAlias = Literal["status", "hybrid", "none"]
"""What a level rests on: the server's own count of jobs; latencies and our own work; nothing."""

NO_WORK: Final = OwnWork()


def duration(seconds: float) -> str:
    """For people."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


@attrs.frozen
class Transition:
    """The settled health of a server has changed."""

    before: Health
    after: Health
    reason: str
    """Why, for people; "" if there is nothing to say."""
    now: float
    """When, in seconds of the caller's clock."""


@attrs.frozen(kw_only=True)
class LoadReport:
    """How busy a server is, and why this is said. Figures are None where nothing is known that is young enough."""

    level: LoadLevel
    """The answer."""

    source: Source = "none"
    """What it rests on; "none" with DOWN and UNKNOWN."""

    age: float | None = None
    """Seconds since the look at the server on which it rests (the latest one, if it rests on none); None: there was
    none."""

    reason: str = ""
    """Why it is this level, for people."""

    health: Health = Health.UNKNOWN
    """The settled health."""

    active_jobs: int | None = None
    """Jobs that the server runs or that wait in it, ours among them, as it said at that look."""

    foreign_jobs: int | None = None
    """Those of them that were not ours."""

    latency: float | None = None
    """The median of the latest health latencies, in seconds."""

    baseline: float | None = None
    """The latency that is usual, in seconds."""

    inference_latency: float | None = None
    """Seconds to the first token, when that was measured last."""

    inference_age: float | None = None
    """Seconds since then."""

    own: OwnWork = NO_WORK
    """What we have under way there now."""

    models: tuple[str, ...] = ()
    """What it has loaded, as far as it says."""

    def __str__(self) -> str:
        return self.describe()

    def describe(self, language: str = "en") -> str:
        """One line for people: level (in ``"en"`` or ``"ko"``), source, age, why, and the figures.

        Raises:
          ValueError: it is another language.
        """
        seen = "never seen" if self.age is None else f"{self.age:.0f} s ago"
        figures = []
        if self.active_jobs is not None:
            figures.append(f"jobs {self.active_jobs}")
        if self.foreign_jobs is not None:
            figures.append(f"foreign {self.foreign_jobs}")
        if self.latency is not None:
            figures.append(f"latency {duration(self.latency)}")
        if self.baseline is not None:
            figures.append(f"baseline {duration(self.baseline)}")
        if self.inference_latency is not None and self.inference_age is not None:
            figures.append(f"first token {duration(self.inference_latency)} {self.inference_age:.0f} s ago")
        figures.append(f"ours {self.own.in_flight}+{self.own.waiting}")
        line = f"{self.level.label_in(language)} ({self.source}, {seen}): {self.reason} [{', '.join(figures)}]"
        return " ".join(line.split())
