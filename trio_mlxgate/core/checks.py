"""Bad arguments, told before anything has changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from trio_mlxgate.priority import MAX_PRIORITY, check_priority

_LONGEST: Final = 1e300
_COUNTS: Final = MappingProxyType({"max_waiting": "an int >= 0, a mapping of priorities to such, or None for no limit"})


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


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False.

    Raises:
      TypeError: it isn't; the message calls it ``name``.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


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


WhenAbandoned: TypeAlias = Literal["release", "drain"]
"""What becomes of a request whose caller leaves: its slot is given back, or kept until the server has answered."""


def check_abandoned(abandoned: object) -> WhenAbandoned:
    """Return ``abandoned`` if it is one of the two.

    Raises:
      ValueError: it isn't.
    """
    if abandoned == "release":
        return "release"
    if abandoned == "drain":
        return "drain"
    raise ValueError(f"abandoned must be 'release' or 'drain', not {abandoned!r}")


def check_drain_limit(drain_limit: object) -> float:
    """Return ``drain_limit`` if it is a finite number of seconds > 0.

    Raises:
      TypeError: it isn't a number.
      ValueError: it isn't > 0 and finite: a server that never answers would keep its slot for ever.
    """
    told = f"drain_limit must be a finite number of seconds > 0, not {drain_limit!r}"
    if isinstance(drain_limit, bool) or not isinstance(drain_limit, int | float):
        raise TypeError(told)
    if not 0 < drain_limit <= _LONGEST:
        raise ValueError(told)
    return drain_limit


def check_aging(aging: object) -> float | None:
    """Return ``aging`` if it is None or a finite number of seconds > 0.

    Raises:
      TypeError: it isn't a number.
      ValueError: it isn't > 0 and finite.
    """
    if aging is None:
        return None
    told = f"aging must be a finite number of seconds > 0 (None: strict priority), not {aging!r}"
    if isinstance(aging, bool) or not isinstance(aging, int | float):
        raise TypeError(told)
    if not 0 < aging <= _LONGEST:
        raise ValueError(told)
    return aging


def check_reserved(reserved: object) -> dict[int, int]:
    """Return a copy of ``reserved``, an int >= 0 for each priority; None is an empty one.

    Raises:
      TypeError, ValueError: it isn't that.
    """
    if reserved is None:
        return {}
    if not isinstance(reserved, Mapping):
        raise TypeError(f"reserved must map priorities to numbers of slots, as {{0: 1}}, not {reserved!r}")
    return _check_counts("reserved", reserved)


def check_max_waiting(max_waiting: object) -> dict[int, int]:
    """Return what ``max_waiting`` says as a mapping, the best priority being the key of a limit for all; None is {}.

    Raises:
      TypeError, ValueError: it is neither an int >= 0 nor a mapping of priorities to such.
    """
    if max_waiting is None:
        return {}
    if isinstance(max_waiting, Mapping):
        return _check_counts("max_waiting", max_waiting)
    return {-MAX_PRIORITY: _check_count("max_waiting", max_waiting)}


def _check_counts(name: str, counts: Mapping[object, object]) -> dict[int, int]:
    checked = {}
    for key, count in counts.items():
        try:
            priority = check_priority(key)
        except (TypeError, ValueError) as error:
            raise type(error)(f"a key of {name}: {error}") from None
        checked[priority] = _check_count(f"{name}[{key!r}]", count)
    return checked


def _check_count(name: str, count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} must be {_COUNTS.get(name, 'an int >= 0')}, not {count!r}")
    if count < 0:
        raise ValueError(f"{name} must be >= 0, not {count}")
    return count
