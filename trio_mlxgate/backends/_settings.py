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

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Neither a tab nor a blank at an end: what one library sends another refuses.
_HEADER_VALUE: Final = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?")
_LONGEST_LABEL: Final = 63


def http_url(given: str) -> httpx.URL:
    """The URL as httpx has it, if it can be asked. Raises ValueError, which says what is wrong with it."""
    if not given.isprintable():
        raise ValueError("it has a control character, or another that can't be seen: leave it out")
    try:
        url = httpx.URL(given)
        # What follows is done for each request, and fails there else: an "xn--..." is read, and looked up.
        labels = url.host and url.raw_host.decode("ascii").removesuffix(".").split(".")
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(str(error)) from None
    if url.scheme not in ("http", "https") or not labels:
        raise ValueError("it has no host, or a scheme other than http and https")
    if any(len(label) > _LONGEST_LABEL for label in labels):
        raise ValueError(f"a part of its host has more than {_LONGEST_LABEL} characters")
    return url


def is_header(name: object, value: object) -> bool:
    """Whether HTTP can send it."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and _HEADER_NAME.fullmatch(name) is not None
        and _HEADER_VALUE.fullmatch(value) is not None
    )


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
    url += "" if "/" in url.partition("://")[2] else "/v1"
    try:
        http_url(f"{url}/chat/completions")
    except ValueError as error:
        raise ValueError(f"base_url is {told}, which can't be asked: {error}") from None
    return url


def headers_of(given: Mapping[str, str]) -> httpx.Headers:
    """As httpx takes them. No value is shown in a message: it may be a key."""
    try:
        headers = httpx.Headers(given)
    except (TypeError, ValueError, AttributeError):
        raise TypeError("headers must be a mapping of names to values, each a string in ASCII") from None
    for raw_name, raw_value in headers.raw:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if not is_header(name, ""):
            raise ValueError(f"the name of a header is {name!r}: it has letters, digits and dashes")
        if not is_header(name, value):
            raise ValueError(
                f"the value of the header {name!r} must be printable ASCII: leave out newlines, tabs and other control "
                "characters, and blanks at its ends"
            )
        if name.lower() in _OURS:
            raise ValueError(f"the header {name!r} is the adapter's to set: leave it out")
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
