"""How busy a server is, in words, and the figures at which one word becomes the next."""

from __future__ import annotations

import enum
import math
from types import MappingProxyType
from typing import Any, Final

import attrs

_LABELS: Final = MappingProxyType(
    {
        "idle": {"en": "idle", "ko": "여유"},
        "normal": {"en": "normal", "ko": "보통"},
        "busy": {"en": "busy", "ko": "바쁨"},
        "very_busy": {"en": "very busy", "ko": "매우 바쁨"},
        "down": {"en": "down", "ko": "중단"},
        "unknown": {"en": "unknown", "ko": "알 수 없음"},
    }
)
_ORDER: Final = ("idle", "normal", "busy", "very_busy")


class LoadLevel(enum.Enum):
    """How busy a server is. The four known ones are ordered: ``LoadLevel.IDLE < LoadLevel.BUSY``."""

    IDLE = "idle"
    """Who asks now is served at once."""

    NORMAL = "normal"
    """It works, and bears one more."""

    BUSY = "busy"
    """Who asks now waits for others."""

    VERY_BUSY = "very_busy"
    """Ask another one, if there is one, or come later."""

    DOWN = "down"
    """It does not serve."""

    UNKNOWN = "unknown"
    """Nothing is known that is young enough to be believed."""

    @property
    def known(self) -> bool:
        """Whether this is one of the four that say how busy it is, which are those that can be compared."""
        return self.value in _ORDER

    @property
    def label(self) -> str:
        """For people, in English."""
        return self.label_in("en")

    def label_in(self, language: str) -> str:
        """For people, in ``"en"`` or ``"ko"``.

        Raises:
          ValueError: it is another language.
        """
        labels = _LABELS[self.value]
        if language not in labels:
            raise ValueError(f"language must be one of {', '.join(map(repr, labels))}, not {language!r}")
        return labels[language]

    def __lt__(self, other: object) -> bool:
        ranks = self._ranks(other)
        return NotImplemented if ranks is None else ranks[0] < ranks[1]

    def __le__(self, other: object) -> bool:
        ranks = self._ranks(other)
        return NotImplemented if ranks is None else ranks[0] <= ranks[1]

    def __gt__(self, other: object) -> bool:
        ranks = self._ranks(other)
        return NotImplemented if ranks is None else ranks[0] > ranks[1]

    def __ge__(self, other: object) -> bool:
        ranks = self._ranks(other)
        return NotImplemented if ranks is None else ranks[0] >= ranks[1]

    def _ranks(self, other: object) -> tuple[int, int] | None:
        # A server that is down is neither busier nor less busy than another: who compares must have looked first.
        if not isinstance(other, LoadLevel) or not (self.known and other.known):
            return None
        return _ORDER.index(self.value), _ORDER.index(other.value)


def _check_positive(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    told = f"{attribute.name} must be a finite number > 0, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(told)
    if not 0 < value < math.inf:
        raise ValueError(told)


def _check_count(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    told = f"{attribute.name} must be an int >= 1, not {value!r}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(told)
    if value < 1:
        raise ValueError(told)


def _figure(default: float) -> Any:
    return attrs.field(default=default, validator=_check_positive)


def _count(default: int) -> Any:
    return attrs.field(default=default, validator=_check_count)


@attrs.frozen(kw_only=True)
class LoadSettings:
    """When a server is looked at, and what is made of that. All times are seconds.

    Raises:
      TypeError, ValueError: a figure is none, or two of them contradict each other; the message says which.
    """

    interval: float = _figure(30.0)
    """From one look to the next, while all is well."""

    recheck: float = _figure(5.0)
    """From one look to the next while it fails, or while one more answer will tell whether its level has changed."""

    fresh_for: float = _figure(75.0)
    """What is older says nothing any more. Longer than two intervals, so that one late look is no loss."""

    down_after: int = _count(3)
    """So many failures in a row, none of them a refused connection, make it DOWN."""

    normal_jobs: int = _count(1)
    """Active jobs from which on it is NORMAL, as its status answer says."""

    busy_jobs: int = _count(2)
    """Active jobs from which on it is BUSY. More for a server that runs many side by side."""

    very_busy_jobs: int = _count(4)
    """Active jobs from which on it is VERY_BUSY."""

    initial_baseline: float = _figure(0.050)
    """The latency that is taken for usual until there are readings. More for a server that is far away."""

    initial_hours: int = _count(6)
    """Until so many hours of readings are there, the baseline never rises above the initial one."""

    least_baseline: float = _figure(0.010)
    """The baseline never falls below, so that jitter is no load."""

    baseline_hours: int = _count(24)
    """The baseline is the best of so many hours of readings."""

    normal_ratio: float = _figure(2.0)
    """More than so many baselines of health latency are NORMAL."""

    measure_ratio: float = _figure(3.0)
    """More than so many baselines of health latency ask for a measurement."""

    busy_ratio: float = _figure(5.0)
    """More than so many baselines of health latency are BUSY."""

    busy_inference: float = _figure(4.0)
    """A first token that takes longer is BUSY."""

    very_busy_inference: float = _figure(8.0)
    """A first token that takes longer is VERY_BUSY."""

    leave_at: float = _figure(0.8)
    """A level of the hybrid is left when its figure is down to so much of the threshold at which it was entered."""

    measurement_serves: float = _figure(30.0)
    """So old may the result of a measurement be that is given to who asks for one."""

    measurement_cooldown: float = _figure(10.0)
    """From the end of one measurement to the beginning of the next."""

    def __attrs_post_init__(self) -> None:
        for low, high in (
            ("normal_jobs", "busy_jobs"),
            ("busy_jobs", "very_busy_jobs"),
            ("normal_ratio", "busy_ratio"),
            ("busy_inference", "very_busy_inference"),
        ):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"{low} must be less than {high}, not {getattr(self, low)!r} >= {getattr(self, high)!r}"
                )
        for low, high, why in (
            ("recheck", "interval", "who fails is looked at earlier, not later"),
            ("interval", "fresh_for", "else each reading is stale before the next one comes"),
            ("least_baseline", "initial_baseline", "no baseline is below the least"),
            ("initial_hours", "baseline_hours", "no baseline remembers more hours"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{low} must be at most {high}: {why}; not {getattr(self, low)!r} > {getattr(self, high)!r}"
                )
        for name in ("normal_ratio", "measure_ratio"):
            if getattr(self, name) <= 1:
                raise ValueError(f"{name} must be > 1, since 1 is the usual latency; not {getattr(self, name)!r}")
        if self.leave_at > 1:
            raise ValueError(f"leave_at must be <= 1, where 1 is no hysteresis; not {self.leave_at!r}")


DEFAULT_SETTINGS: Final = LoadSettings()


def level_of_jobs(jobs: int, settings: LoadSettings) -> LoadLevel:
    """The level of a server that has so many active jobs."""
    if jobs >= settings.very_busy_jobs:
        return LoadLevel.VERY_BUSY
    if jobs >= settings.busy_jobs:
        return LoadLevel.BUSY
    return LoadLevel.NORMAL if jobs >= settings.normal_jobs else LoadLevel.IDLE


class SchmittTrigger:
    """Which of several thresholds a figure is above, with a memory: a step is left lower than it was entered.

    So a figure that wavers around a threshold moves nothing (O. H. Schmitt, "A thermionic trigger", Journal of
    Scientific Instruments 15, 1938).
    """

    __slots__ = ("_leave_at", "step")

    def __init__(self, leave_at: float) -> None:
        self._leave_at = leave_at
        self.step = 0
        """How many thresholds it is above."""

    def next_step(self, figure: float, thresholds: tuple[float, ...]) -> int:
        """The step to which ``figure`` would lead. The thresholds ascend."""
        step = 0
        for number, threshold in enumerate(thresholds, 1):
            bound = threshold * self._leave_at if number <= self.step else threshold
            if figure > bound:
                step = number
        return step
