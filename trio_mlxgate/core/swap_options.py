"""What can be chosen of the swap scheduler, for all models and for each."""

from __future__ import annotations

import math
from typing import Any, Final

import attrs

from trio_mlxgate.core.checks import check_bool, check_seconds
from trio_mlxgate.priority import check_priority

DEFAULT_LIMIT: Final = 10
"""How many requests a model serves at once when its options don't say."""


def _check_seconds(_: object, attribute: attrs.Attribute[float], seconds: object) -> None:
    check_seconds(attribute.name, seconds)


def _check_seconds_or_none(_: object, attribute: attrs.Attribute[Any], seconds: Any) -> None:
    if seconds is not None:
        check_seconds(attribute.name, seconds)


def _check_bool(_: object, attribute: attrs.Attribute[bool], value: object) -> None:
    check_bool(attribute.name, value)


def _check_count(_: object, attribute: attrs.Attribute[Any], count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{attribute.name} must be an int >= 0, not {count!r}")
    if count < 0:
        raise ValueError(f"{attribute.name} must be >= 0, not {count}")


def _check_count_or_none(_: object, attribute: attrs.Attribute[Any], count: Any) -> None:
    if count is not None:
        _check_count(_, attribute, count)


def _check_attempts(_: object, attribute: attrs.Attribute[int], count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{attribute.name} must be an int >= 1, not {count!r}")
    if count < 1:
        raise ValueError(f"{attribute.name} must be >= 1, not {count}")


def _check_priority_or_none(_: object, __: object, priority: Any) -> None:
    if priority is not None:
        check_priority(priority)


@attrs.frozen(kw_only=True)
class ModelOptions:
    """What the scheduler must know of one model.

    Raises:
      TypeError, ValueError: an argument isn't as described.
    """

    limit: int = attrs.field(default=0, validator=_check_count)
    """How many requests it serves at once; 0 is :data:`DEFAULT_LIMIT`."""

    max_waiting: int | None = attrs.field(default=None, validator=_check_count_or_none)
    """How many more may be with it than it serves at once; None: as many as come. One more is refused at once."""

    priority: int | None = attrs.field(default=None, validator=_check_priority_or_none)
    """The priority of its requests that name none; None: that of the gate, BACKGROUND."""

    ttl: float = attrs.field(default=math.inf, validator=_check_seconds)
    """Seconds without a request after which it is unloaded; inf and 0: never."""

    @property
    def slots(self) -> int:
        """How many requests it serves at once, the default put in."""
        return self.limit or DEFAULT_LIMIT


@attrs.frozen(kw_only=True)
class SwapOptions:
    """How models take turns. All times are seconds.

    Raises:
      TypeError, ValueError: an argument isn't as described.
    """

    max_bypass: float = attrs.field(default=30.0, validator=_check_seconds)
    """So long a loaded model may serve newcomers while somebody waits for another one; inf: for ever."""

    min_residency: float | None = attrs.field(default=None, validator=_check_seconds_or_none)
    """So long a model that was just loaded stays, if it is in use; None: as long as that load took, so that no more
    than half of the time goes into loads. ``max_bypass`` wins over it."""

    in_use_for: float = attrs.field(default=0.0, validator=_check_seconds)
    """For ``min_residency``: a model counts as in use for so long after its last request has ended, since who works
    with it may think for a moment before the next one."""

    reserve: bool = attrs.field(default=True, validator=_check_bool)
    """Whether who is better placed reserves what it waits for: a ready model takes none of a worse priority that would
    delay it, and none of a worse place takes the memory that becomes free for it."""

    abort_unwanted: bool = attrs.field(default=True, validator=_check_bool)
    """Whether a load that nobody waits for any more is given up when somebody wants its place."""

    overlap: bool = attrs.field(default=True, validator=_check_bool)
    """Whether the planner is told only what will be there, without what is being stopped, so that two swaps at once may
    use what each of them frees. If not, all that is there counts, and the planner's word is taken as it stands."""

    stop_attempts: int = attrs.field(default=3, validator=_check_attempts)
    """How often a model is told to stop before those who waited for its place are told that it doesn't."""

    stop_retry_delay: float = attrs.field(default=1.0, validator=_check_seconds)
    """From a stop that failed to the next attempt."""

    @classmethod
    def parity(cls) -> SwapOptions:
        """Decide as llama-swap's scheduler does. Its models' options are ``max_waiting=0``: at the limit it refuses."""
        return cls(max_bypass=math.inf, min_residency=0.0, reserve=False, abort_unwanted=False, overlap=False)
