"""The values that a configuration file may hold, each checked: what is wrong is told with its path."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeAlias

from trio_mlxgate.backends._settings import base_url_of, is_header
from trio_mlxgate.backends.detecting import KINDS
from trio_mlxgate.core.endpoints import Endpoint

_LONGEST_SHOWN: Final = 60
_MOST: Final = 10**6


class Misfit(Exception):
    """What is wrong at a path, without the file's name."""


Check: TypeAlias = Callable[[str, object], Any]
"""Returns a value as it is kept, or raises Misfit; the first argument is the path at which it stands."""


def misfit(path: str, expected: str, value: object) -> NoReturn:
    raise Misfit(f"{path}: expected {expected}, got {shown(value)}")


def check_url(path: str, value: object) -> str:
    expected = 'a base URL such as "http://127.0.0.1:8080/v1"'
    if not isinstance(value, str):
        misfit(path, expected, value)
    try:
        scheme = Endpoint.from_url(value).scheme
    except ValueError as error:
        raise Misfit(f"{path}: expected {expected}: {error}") from None
    # From here on the value isn't shown: it may hold a password.
    if scheme not in ("http", "https"):
        raise Misfit(f"{path}: expected {expected}, got one of {scheme}")
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise Misfit(f"{path}: expected {expected} without a user or a password; there are headers, and api_key_env")
    if "?" in value or "#" in value or not value.isprintable() or " " in value:
        raise Misfit(f"{path}: expected {expected} without query, fragment or spaces")
    if value.rstrip("/").endswith(("/completions", "/models", "/responses")):
        raise Misfit(f"{path}: expected {expected}, got the URL of one call: give what stands before it")
    try:
        base_url_of(value)
    except ValueError as error:
        raise Misfit(f"{path}: expected {expected}: {error}") from None
    return value


def check_kind(path: str, value: object) -> str:
    names = tuple(kind.name for kind in KINDS)
    if value not in names:
        hint = nearest(value, names) if isinstance(value, str) else ""
        raise Misfit(f"{path}: expected one of {', '.join(names)}, got {shown(value)}{hint}")
    return str(value)


def check_text(path: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        misfit(path, "a string that isn't empty", value)
    return value


def check_names(path: str, value: object) -> frozenset[str]:
    if not isinstance(value, list):
        misfit(path, "a list of names", value)
    return frozenset(check_text(f"{path}[{number}]", name) for number, name in enumerate(value))


def check_temperature(path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
        misfit(path, "a number >= 0", value)
    return value


def check_seconds_above_0(path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < 1e300 or value == math.inf):
        misfit(path, "seconds > 0 (inf: no limit)", value)
    return value


def check_whole(least: int) -> Check:
    def check(path: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            misfit(path, f"an int >= {least}", value)
        return value

    return check


def check_headers(path: str, value: object) -> Mapping[str, str]:
    # Values are never shown: they may be secrets.
    if not isinstance(value, dict):
        raise Misfit(f'{path}: expected a table such as {{ X-Team = "assistants" }}; for a key there is api_key_env')
    for name, text in value.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise Misfit(f"{path}.{key_in_path(name)}: expected the name of a header, of letters, digits and dashes")
        if not isinstance(text, str) or not is_header(name, text):
            raise Misfit(
                f"{path}.{key_in_path(name)}: expected a string of printable ASCII characters, without blanks at its "
                "ends"
            )
    return MappingProxyType(dict(value))


def check_variable(path: str, value: object) -> str:
    # Somebody may have written the key itself here: it isn't shown.
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier():
        raise Misfit(f"{path}: expected the name of a variable of the environment that holds the key")
    return value


# ---- tables and words ----


def check_table(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        misfit(path, f"a table [{path}]", value)
    return value


def check_known(table: Mapping[str, object], path: str, names: tuple[str, ...]) -> None:
    for name in table:
        if name not in names:
            at = f"{path}.{key_in_path(name)}" if path else key_in_path(name)
            raise Misfit(f"{at}: there is no such key{nearest(name, names)}; there are {', '.join(names)}")


def nearest(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name[:_LONGEST_SHOWN], names, 1)
    return f" (do you mean {near[0]}?)" if near else ""


def key_in_path(name: str) -> str:
    """A key as TOML would have it in a path."""
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if plain else shown(name)


def shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
