"""The settings of an adapter: how they are read, and what is said of bad ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import httpx

from trio_mlxgate.backends.detecting import kind_named
from trio_mlxgate.backends.kinds.base import ServerKind
from trio_mlxgate.core.endpoints import Endpoint, shown

if TYPE_CHECKING:
    import attrs

_OURS: Final = frozenset(
    {"content-length", "transfer-encoding", "connection", "content-type", "accept", "accept-encoding"}
)
"""Headers that say what the adapter does, and so are not to be given."""

_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


def base_url_of(given: str) -> str:
    """The URL of the API, which is at /v1 if the server alone is named. Raises TypeError, ValueError."""
    endpoint = Endpoint.from_url(given)
    told = repr(shown(given))
    if endpoint.scheme not in ("http", "https"):
        raise ValueError(f"base_url is {told}: its scheme must be http or https")
    if "@" in given.partition("://")[2].partition("/")[0]:
        raise ValueError(f"base_url is {told} with a user or a password: give an 'Authorization' in headers instead")
    if "?" in given or "#" in given:
        raise ValueError(f"base_url is {told} with a query or a fragment: leave it out")
    url = given.rstrip("/")
    if url.endswith(("/completions", "/models", "/responses")):
        raise ValueError(f"base_url is {told}, the URL of one call: give what stands before it, which ends with /v1")
    # As OpenAI's SDK takes it; who names the server alone means its API.
    return url + "/v1" if "/" not in url.partition("://")[2] else url


def headers_of(given: Mapping[str, str]) -> httpx.Headers:
    """As httpx takes them. No value is shown in a message: it may be a key."""
    try:
        headers = httpx.Headers(given)
    except (TypeError, ValueError, AttributeError):
        raise TypeError("headers must be a mapping of names to values, each a string in ASCII") from None
    for name, value in headers.raw:
        text = name.decode("latin-1")
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"the name of a header is {text!r}: it has letters, digits and dashes")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {text!r} has a newline or a control character: leave it out")
        if text.lower() in _OURS:
            raise ValueError(f"the header {text!r} is the adapter's to set: leave it out")
    return headers


def names_of(given: Iterable[str]) -> frozenset[str]:
    """The names as a set. Raises TypeError: they are none."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"aliases must be a set of names, such as {{'qwen3'}}, not {given!r}")
    names = frozenset(given)
    for name in names:
        if not _is_name(name):
            raise TypeError(f"aliases must be names, which are strings that are not empty, not {name!r}")
    return names


def _is_name(given: object) -> bool:
    return isinstance(given, str) and given != ""


def kind_of(given: str | ServerKind | None) -> ServerKind | None:
    """The kind itself, or that of the name. Raises TypeError, ValueError."""
    if given is None or isinstance(given, ServerKind):
        return given
    if not isinstance(given, str):
        raise TypeError(f"kind must be the name of a kind of server, such as 'mlx-lm', or None, not {given!r}")
    return kind_named(given)


def optional(check: Any) -> Any:
    """A validator: None, or what ``check`` takes."""

    def validate(_: object, _field: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            check(value)

    return validate


def text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    """A validator: a string that is not empty; None where that is the default."""
    if value is None and field.default is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{field.name} must be a string, not {value!r}")
    if not value:
        raise ValueError(f"{field.name} must not be empty")


def instance_of(kind: type | tuple[type, ...], said: str) -> Any:
    """A validator: an instance of this class; the message calls it ``said``."""

    def validate(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"{field.name} must be {said}, not {value!r}")

    return validate
