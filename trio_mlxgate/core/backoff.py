"""When a server that has crashed is started again, and when it is looked at: decided without a clock."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

import attrs

from trio_mlxgate.core.checks import check_seconds


def _seconds(_: object, field: attrs.Attribute[Any], value: object) -> None:
    check_seconds(field.name, value)


def _factor(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{field.name} must be a number >= 1, not {value!r}")
    if not 1 <= value <= 1000:
        raise ValueError(f"{field.name} must be a number from 1 to 1000, not {value!r}")


def _count(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field.name} must be an int >= 0, not {value!r}")
    if not 0 <= value <= 1000:
        raise ValueError(f"{field.name} must be an int from 0 to 1000, not {value!r}")


@attrs.frozen(kw_only=True)
class RestartSettings:
    """How a server that has crashed is started again.

    Raises:
      TypeError, ValueError: at once, for a bad setting.
    """

    first: float = attrs.field(default=0.5, validator=_seconds)
    """Seconds from the first crash to the next start."""

    factor: float = attrs.field(default=2.0, validator=_factor)
    """How many times longer each further pause is."""

    longest: float = attrs.field(default=30.0, validator=_seconds)
    """Seconds that a pause lasts at most."""

    most: int = attrs.field(default=5, validator=_count)
    """Restarts within ``window``, all that start by themselves: one crash more, and it is given up. 0: none at all."""

    window: float = attrs.field(default=300.0, validator=_seconds)
    """Seconds after which a crash is forgotten."""


DEFAULT_RESTARTS: Final = RestartSettings()
"""The settings of a server that is given none."""


class Verdict(NamedTuple):
    """What follows on a crash."""

    restart: bool
    """Whether it is started again by itself. If not, it is when somebody asks for it."""

    at: float
    """When; before that it is not started, whoever asks."""

    crashes: int
    """Crashes that count, this one among them."""


class Restarts:
    """Decides what follows on the crashes of one server. ``now`` never falls.

    The pauses grow as those of every exponential backoff do, and what is counted is crashes in a sliding window, as
    systemd's StartLimitIntervalSec counts starts: one crash a day is no loop, however many days.
    """

    __slots__ = ("_crashes", "_settings")

    def __init__(self, settings: RestartSettings = DEFAULT_RESTARTS) -> None:
        self._settings = settings
        # One more than decides is never needed; and so memory is bounded.
        self._crashes: deque[float] = deque(maxlen=settings.most + 1)

    def crashed(self, now: float, *, has_served: bool) -> Verdict:
        """It has crashed.

        ``has_served``: whether it was ready at all since it was asked for. One that never was is most likely
        told to do what it can't: it isn't tried again by itself, so that who waits for it hears of it at once.
        """
        crashes = self._crashes
        while crashes and now - crashes[0] > self._settings.window:
            crashes.popleft()
        crashes.append(now)
        restart = has_served and len(crashes) <= self._settings.most
        return Verdict(restart, now + self._pause(len(crashes)), len(crashes))

    def _pause(self, crashes: int) -> float:
        settings = self._settings
        # Not a power: that of a large number would be no float.
        pause = settings.first
        for _ in range(crashes - 1):
            pause *= settings.factor
            if pause >= settings.longest:
                break
        return min(pause, settings.longest)

    def forget(self) -> None:
        """Somebody has stopped it: what comes next is a new beginning."""
        self._crashes.clear()


# ---- looks ----

SHORTEST_LOOK: Final = 0.020
"""Seconds between two looks at a server that has just been started."""

LONGEST_LOOK: Final = 1.0
"""Seconds between two looks at one that takes its time."""

SHARE: Final = 0.1
"""A pause between two looks is this share of the time that the start has taken so far."""


def next_look(started: float, now: float) -> float:
    """When a server that is starting is to be looked at next, after a look that has just failed.

    What waiting for the next look adds is a tenth of the start at most: 30 ms for a server that needs 0.3 s. It is
    never less than 20 ms, so that looks cost next to nothing, and never more than a second.
    """
    return now + min(max(SHORTEST_LOOK, SHARE * (now - started)), LONGEST_LOOK)


class Pulse:
    """Whether a server that was ready still answers, and for how long it hasn't. ``now`` never falls."""

    __slots__ = ("_heard", "_limit", "_well")

    def __init__(self, now: float, limit: float) -> None:
        """``limit``: seconds of silence after which it is taken for dead (inf: never)."""
        self._heard = now
        self._limit = limit
        self._well = True

    @property
    def well(self) -> bool:
        """Whether it answered the last look."""
        return self._well

    def looked(self, well: bool, now: float) -> bool:
        """A look has ended. Returns whether it says something new."""
        news = well is not self._well
        self._well = well
        if well:
            self._heard = now
        return news

    def dead(self, now: float) -> bool:
        """Whether it has been silent for too long."""
        return not self._well and now - self._heard >= self._limit
