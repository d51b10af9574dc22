"""Who may measure a server now: one at a time, not too often, and an answer serves all who ask soon after."""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from trio_mlxgate.core.levels import DEFAULT_SETTINGS

if TYPE_CHECKING:
    from trio_mlxgate.core.levels import LoadSettings


class Served(NamedTuple):
    """There is a result that will do."""

    word: Literal["serve"]
    seconds: float
    """That the first token took."""
    age: float
    """Seconds since it was measured."""


Verdict: TypeAlias = Literal["start", "join", "cooling"] | Served
"""What who asks is to do: measure (and say so with ``started``); wait for the one who does; take this; leave it."""


def check_measured(seconds: object) -> float:
    """Return ``seconds`` if that is how long something can have taken.

    Raises:
      TypeError: it isn't a number.
      ValueError: it is negative, infinite or not a number (nan).
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"seconds must be a number, not {seconds!r}")
    if not (isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds must be finite and >= 0, not {seconds!r}")
    return seconds


class MeasuringDesk:
    """Decides about the measurements of one server. ``now`` never falls."""

    __slots__ = ("_measured_at", "_ready_at", "_running", "_seconds", "_settings")

    def __init__(self, settings: LoadSettings = DEFAULT_SETTINGS) -> None:
        self._settings = settings
        self._running = False
        self._ready_at = -inf
        self._seconds = 0.0
        self._measured_at = -inf

    @property
    def running(self) -> bool:
        """Whether one measures now."""
        return self._running

    @property
    def ready_at(self) -> float:
        """From when on another one may start, as soon as none runs; -inf: nothing is in its way."""
        return self._ready_at

    def ask(self, now: float) -> Verdict:
        """What who wants a figure is to do. Changes nothing: who is told "start" calls :meth:`started` next.

        A result that is young enough goes before one that is being measured: nobody need wait for that.
        """
        if now <= self._measured_at + self._settings.measurement_serves:
            return Served("serve", self._seconds, now - self._measured_at)
        if self._running:
            return "join"
        return "start" if now >= self._ready_at else "cooling"

    def started(self, now: float) -> None:  # noqa: ARG002 - all that happens has its time
        """One measures from now on.

        Raises:
          RuntimeError: one does already; ask first.
        """
        if self._running:
            raise RuntimeError("a measurement runs already: ask() says whether to start one")
        self._running = True

    def finished(self, seconds: float, now: float) -> None:
        """It took so many seconds to the first token.

        Raises:
          TypeError, ValueError: that is no duration.
          RuntimeError: none runs.
        """
        check_measured(seconds)
        self._end(now)
        self._seconds = seconds
        self._measured_at = now

    def failed(self, now: float) -> None:
        """The server was asked and gave no figure. What was measured earlier is true no more.

        Raises:
          RuntimeError: none runs.
        """
        self._end(now)
        self._measured_at = -inf

    def called_off(self, now: float) -> None:
        """Nothing was sent (the gate was busy), or the caller went away: the next one may start at once.

        Raises:
          RuntimeError: none runs.
        """
        before = self._ready_at
        self._end(now)
        self._ready_at = before

    def _end(self, now: float) -> None:
        if not self._running:
            raise RuntimeError("no measurement runs: started() comes first")
        self._running = False
        self._ready_at = now + self._settings.measurement_cooldown
