"""Reading answers that may be anything: what can't be used raises Unusable, and nothing else is ever raised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_mlxgate.backends.kinds.base import Reply

_MOST: Final = 10**12
"""Nobody counts further: a larger number is no count."""

_MOST_NAMES: Final = 64
_LONGEST_NAME: Final = 200


class Unusable(Exception):
    """An answer doesn't say what it should; the message tells people why."""


def json_of(path: str, reply: Reply) -> Any:
    """The body as JSON.

    Raises:
      Unusable: it is none, or nests deeper than any answer does.
    """
    try:
        return reply.json()
    except (ValueError, RecursionError):
        raise Unusable(f"GET {path} gave no JSON: {shown(reply.body)}") from None


def object_of(path: str, reply: Reply) -> Mapping[str, Any]:
    """The body as a JSON object.

    Raises:
      Unusable: it is none.
    """
    answer = json_of(path, reply)
    if not isinstance(answer, dict):
        raise Unusable(f"GET {path} gave no JSON object: {shown(reply.body)}")
    return answer


def object_or_nothing(reply: Reply) -> Mapping[str, Any]:
    """The body as a JSON object, empty if it is none."""
    try:
        return object_of("", reply)
    except Unusable:
        return {}


def member(answer: Mapping[str, Any], *path: str) -> Any:
    """What stands in an object within objects; None where something of it is missing."""
    found: Any = answer
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def count(where: str, value: object) -> int:
    """A number of things.

    Raises:
      Unusable: it is no int >= 0, or larger than any count. True and 1.0 are none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        # Not the repr itself: that of an int with a million digits raises.
        said = "something huge" if isinstance(value, int) and abs(value) > _MOST else shown(value)
        raise Unusable(f"{where} should be an int >= 0, not {said}")
    return value


def count_or_none(where: str, value: object) -> int | None:
    """A number of things, or None where there is none.

    Raises:
      Unusable: it is neither.
    """
    return None if value is None else count(where, value)


def names(*values: object) -> tuple[str, ...]:
    """What of these are names, lists of names among them: each once, cut to what can be shown."""
    found: dict[str, None] = {}
    for value in values:
        for name in value if isinstance(value, list | tuple) else [value]:
            if isinstance(name, str) and name and len(found) < _MOST_NAMES:
                found[_printable(name, _LONGEST_NAME)] = None
    return tuple(found)


def shown(value: object, longest: int = 80) -> str:
    """Any value in one short line."""
    if isinstance(value, bytes):
        if not value:
            return "an empty body"
        value = value[: 4 * longest].decode("utf-8", "replace")
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return _printable(" ".join(text[: 4 * longest].split()), longest)


def _printable(text: str, longest: int) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 3] + "..."
