"""Priorities, and reading one from the outside world (the ``Priority`` header of RFC 9218)."""

from __future__ import annotations

import enum
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Priority(enum.IntEnum):
    """The two priorities that most programs need. Any int is a priority: the lower goes first."""

    FOREGROUND = 0
    """A person is waiting for the answer."""

    BACKGROUND = 100
    """Nobody looks at the clock, as with digests, embeddings and nightly jobs."""


DEFAULT_PRIORITY: Final = Priority.BACKGROUND
"""What a call has that names no priority."""

MAX_PRIORITY: Final = 10**6
"""The largest absolute value of a priority."""

URGENCY_PRIORITIES: Final[Mapping[int, int]] = MappingProxyType(
    {urgency: Priority.FOREGROUND if urgency <= 3 else Priority.BACKGROUND for urgency in range(8)}
)
"""Which priority each urgency ``u=0`` … ``u=7`` of RFC 9218 names: 0 to 3 foreground, 4 to 7 background."""


def check_priority(priority: object) -> int:
    """Return ``priority`` if it is one: an int, not a bool, of at most :data:`MAX_PRIORITY` either way.

    Raises:
      TypeError: it isn't an int, or is a bool.
      ValueError: it is too large or too small.
    """
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise TypeError(
            f"a priority is an int, such as Priority.FOREGROUND (0) or Priority.BACKGROUND (100), not {priority!r}"
        )
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise ValueError(f"a priority lies between {-MAX_PRIORITY} and {MAX_PRIORITY}, {priority} does not")
    return priority


# A dictionary of RFC 8941 (structured fields), as far as one must read it to be sure of the value of "u".
_KEY = r"[a-z*][a-z0-9_\-.*]*"
_BARE_ITEM = (
    r'(?:-?[0-9]{1,12}\.[0-9]{1,3}|-?[0-9]{1,15}|"(?:[ !#-\[\]-~]|\\["\\])*"'
    r"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*|:[A-Za-z0-9+/=]*:|\?[01])"
)
_PARAMETERS = rf"(?:; *{_KEY}(?:={_BARE_ITEM})?)*"
_VALUE = rf"(?:{_BARE_ITEM}|\((?: *{_BARE_ITEM}{_PARAMETERS}(?= |\)))* *\)){_PARAMETERS}"
_MEMBER = re.compile(rf"(?P<key>{_KEY})(?:=(?P<value>{_VALUE})|{_PARAMETERS})")
_SEPARATOR = re.compile(r"[ \t]*,[ \t]*")
_INTEGER = re.compile(r"-?[0-9]{1,15}(?=;|$)")


def urgency_from_header(header: str) -> int | None:
    """The urgency (0 to 7) that a ``Priority`` header names, or None.

    None means that no urgency was named: there is no ``u``, its value isn't an integer from 0 to 7
    (RFC 9218, section 4: to be ignored), or the header is not a well-formed structured field (RFC 8941,
    section 4.2: then all of it is ignored). Never raises. Of several ``u`` the last counts.
    """
    text = header.strip(" ")
    urgency: int | None = None
    position = 0
    while position < len(text):
        member = _MEMBER.match(text, position)
        if member is None:
            return None
        if member["key"] == "u":
            number = _INTEGER.match(member["value"] or "")
            urgency = int(number[0]) if number else None
        position = member.end()
        if position < len(text):
            separator = _SEPARATOR.match(text, position)
            if separator is None or separator.end() == len(text):
                return None
            position = separator.end()
    return urgency if urgency is not None and 0 <= urgency <= 7 else None


def priority_from_header(header: str, priorities: Mapping[int, int] = URGENCY_PRIORITIES) -> int | None:
    """The priority that a ``Priority`` header of RFC 9218 names, or None if it names none. Never raises.

    ``priorities`` maps an urgency to a priority; an urgency that it lacks names no priority.
    """
    urgency = urgency_from_header(header)
    return None if urgency is None else priorities.get(urgency)
