"""Bad arguments, told before anything has changed."""

from __future__ import annotations

import math
from typing import Final

_LONGEST: Final = 1e300


def check_capacity(capacity: object, source: str = "capacity") -> int:
    """Return ``capacity`` if it is an int >= 0 and not a bool.

    Raises:
      TypeError: it isn't an int; the message names ``source``.
      ValueError: it is negative.
    """
    if not isinstance(capacity, int) or isinstance(capacity, bool):
        raise TypeError(f"{source} must be an int >= 0 (0 lets nobody in), not {capacity!r}")
    if capacity < 0:
        raise ValueError(f"{source} must be >= 0 (0 lets nobody in), not {capacity}")
    return capacity


def check_seconds(name: str, seconds: object) -> float:
    """Return ``seconds`` if it is a number >= 0, inf included.

    Raises:
      TypeError: it isn't a number; the message calls it ``name``.
      ValueError: it is negative or not a number (nan).
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds (math.inf: no limit), not {seconds!r}")
    # nan fails every comparison; an int that is larger than every float can't be added to a time.
    if not (0 <= seconds <= _LONGEST or seconds == math.inf):
        raise ValueError(f"{name} must be >= 0 seconds (math.inf: no limit), not {seconds!r}")
    return seconds
