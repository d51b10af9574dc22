"""How a model's server is run: its settings, and what is said of bad ones, with their place."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import attrs

from trio_mlxgate.core.backoff import DEFAULT_RESTARTS, RestartSettings

_LONGEST: Final = 1e300
_LONGEST_SHOWN: Final = 60
_WARM_UP: Final = MappingProxyType({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
_PLACEHOLDER: Final = re.compile(r"(\$?)\$\{(\w+)\}")


# ---- checks: each raises TypeError or ValueError with the place where the value stands ----


def shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def wrong_type(place: str, expected: str, value: object) -> NoReturn:
    """Raise TypeError: ``models.qwen.start_timeout: expected seconds > 0, got 'ten'``."""
    raise TypeError(f"{place}: expected {expected}, got {shown(value)}")


def wrong_value(place: str, expected: str, value: object) -> NoReturn:
    """Raise ValueError, with the same words."""
    raise ValueError(f"{place}: expected {expected}, got {shown(value)}")


def check_seconds(place: str, value: object, *, above_0: bool = False, finite: bool = False) -> float:
    """Return the value if it is a number of seconds >= 0, or > 0; inf, for no limit, unless it must be finite."""
    expected = f"seconds {'>' if above_0 else '>='} 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        wrong_type(place, expected, value)
    if not (0 <= value <= _LONGEST or (value == math.inf and not finite)) or (above_0 and value == 0):
        wrong_value(place, expected, value)
    return value


def check_whole(place: str, value: object, *, least: int = 0, most: int = 10**6) -> int:
    """Return the value if it is an int within the bounds."""
    expected = f"an int from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        wrong_type(place, expected, value)
    if not least <= value <= most:
        wrong_value(place, expected, value)
    return value


def check_name(value: object) -> str:
    """Return the value if it can be the name of a model."""
    if not isinstance(value, str):
        wrong_type("models", "names of models that are strings", value)
    if not value or not value.isprintable():
        wrong_value("models", "names of models that are not empty, and printable", value)
    return value


def split_command(place: str, value: object) -> tuple[str, ...]:
    """Return a command as a list of words: a string is split as a shell would, and no shell ever sees it.

    A line may be continued with a backslash at its end; a newline is a space, too.
    """
    expected = "a command, a string or a list of strings, that isn't empty"
    words: list[object]
    if isinstance(value, str):
        try:
            words = [*shlex.split(value.replace("\\\n", " "))]
        except ValueError as error:
            raise ValueError(f"{place}: expected {expected}: {error} in {shown(value)}") from None
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        words = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in value]
    else:
        wrong_type(place, expected, value)
    if not words or words[0] == "":
        wrong_value(place, expected, value)
    for number, word in enumerate(words):
        _check_text(f"{place}[{number}]", word)
    return tuple(map(str, words))


def _check_text(place: str, value: object) -> str:
    if not isinstance(value, str):
        wrong_type(place, "a string", value)
    if "\0" in value:
        wrong_value(place, "a string without a null character", value)
    _check_encodes(place, value)
    return value


def _check_encodes(place: str, value: str) -> None:
    try:
        os.fsencode(value)
    except UnicodeError:
        # Not shown: it may be a secret, and can't be printed everywhere.
        raise ValueError(f"{place}: expected text that the system can encode, got lone surrogates") from None


def _check_url(place: str, value: object, expected: str) -> str:
    if not isinstance(value, str):
        wrong_type(place, expected, value)
    try:
        parts = urlsplit(value.replace("${PORT}", "5800"))
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        wrong_value(place, expected, value)
    plain = value.isascii() and value.isprintable() and " " not in value and not parts.fragment
    if parts.scheme != "http" or not parts.hostname or parts.username is not None or not port_is_one or not plain:
        wrong_value(place, expected, value)
    return value


def check_placeholders(place: str, text: str, known: Sequence[str]) -> None:
    """Refuse what stands for nothing: most likely it is misspelt."""
    for escape, name in _PLACEHOLDER.findall(text):
        if not escape and name not in known:
            there = " and ".join(f"${{{each}}}" for each in known)
            raise ValueError(f"{place}: expected {there} alone, got ${{{name}}}; $${{{name}}} is the text itself")


def filled(text: str, values: Mapping[str, object]) -> str:
    """The text with ``${PORT}`` and the like replaced; ``$${PORT}`` is ``${PORT}`` itself."""

    def replacement(match: re.Match[str]) -> str:
        escape, name = match.groups()
        return f"${{{name}}}" if escape else str(values[name])

    return _PLACEHOLDER.sub(replacement, text)


def needs(text: str, name: str) -> bool:
    """Whether ``${name}`` stands in the text."""
    return any(not escape and found == name for escape, found in _PLACEHOLDER.findall(text))


# ---- the settings ----


def _seconds(*, above_0: bool = False, finite: bool = False) -> Any:
    def validate(config: ProcessConfig, field: attrs.Attribute[Any], value: object) -> None:
        check_seconds(config.place(field.name), value, above_0=above_0, finite=finite)

    return validate


def _given(place: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        wrong_type(place, "a mapping of names to strings", value)
    for name, text in value.items():
        _check_text(place, name)
        if not name or "=" in name:
            wrong_value(place, "names of variables without '='", name)
        # Values are never shown: they may be secrets.
        if not isinstance(text, str):
            raise TypeError(f"{place}.{name}: expected a string, got a {type(text).__name__}")
        if "\0" in text:
            raise ValueError(f"{place}.{name}: expected a string without a null character")
        _check_encodes(f"{place}.{name}", text)
    return MappingProxyType(dict(value))


def _first_request(place: str, wanted: object) -> bytes | None:
    """The body of the first request, or None."""
    expected = "True, False, or the body of a request, such as {'messages': [...], 'max_tokens': 1}"
    if isinstance(wanted, bool):
        wanted = _WARM_UP if wanted else None
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        wrong_type(place, expected, wanted)
    try:
        return json.dumps(dict(wanted), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: expected {expected}: {error}") from None


@attrs.frozen(kw_only=True)
class ProcessConfig:
    """How a model's server is run.

    ``${PORT}`` is the port that it gets from the pool: in ``command``, ``env``, ``base_url`` and ``check``, and, beside
    ``${PID}``, in ``cmd_stop``. ``$${PORT}`` is the text ``${PORT}`` itself.

    Raises:
      TypeError, ValueError: at once, for a bad setting: "models.qwen.start_timeout: expected seconds > 0, got 'ten'".
    """

    name: str = attrs.field(validator=lambda _, __, value: check_name(value))
    """The model's name, in errors and log lines."""

    command: str | Sequence[str] = attrs.field()
    """What is run: words, or a string that is split into words as a shell would; no shell is involved."""

    env: Mapping[str, str] = attrs.field(factory=dict, repr=lambda env: f"<{len(env)} variables>")
    """Variables that its environment has beside ours."""

    cwd: str | os.PathLike[str] | None = attrs.field(default=None)
    """The folder that it runs in; None: ours."""

    base_url: str = attrs.field(default="http://127.0.0.1:${PORT}")
    """Where it answers."""

    check: str | None = attrs.field(default="/health")
    """What is asked to see whether it is ready, which it is when the status is 200: a path at ``base_url``, or a URL.
    None: it is ready as soon as it runs."""

    warm_up: bool | Mapping[str, Any] = attrs.field(default=False)
    """Whether its model is asked for one token before it counts as ready: for servers that answer the check before the
    model is loaded, as mlx_lm.server does. A mapping is the body of that request, which is posted to
    ``/v1/chat/completions``."""

    start_timeout: float = attrs.field(default=120.0, validator=_seconds(above_0=True))
    """Seconds that it may take to become ready, ``warm_up`` included."""

    check_timeout: float = attrs.field(default=2.0, validator=_seconds(above_0=True, finite=True))
    """Seconds that the answer to one look may take."""

    health_interval: float = attrs.field(default=10.0, validator=_seconds(above_0=True))
    """Seconds between two looks at it while it is ready; inf: none. That it has ended is noticed without."""

    silence_limit: float = attrs.field(default=math.inf, validator=_seconds(above_0=True))
    """Seconds of looks without a good answer after which a ready server is taken for dead, and ended. Many servers
    don't answer while they work: give more than the longest answer takes."""

    cmd_stop: str | Sequence[str] | None = attrs.field(default=None)
    """A command that tells it to go; None: SIGTERM to its process group does."""

    stop_grace: float = attrs.field(default=10.0, validator=_seconds(finite=True))
    """Seconds that it gets to go when told, before its process group is killed."""

    restarts: RestartSettings = attrs.field(default=DEFAULT_RESTARTS)
    """How it is started again after a crash."""

    output_lines: int = attrs.field(default=1000)
    """Lines of its output that are kept."""

    words: tuple[str, ...] = attrs.field(init=False, repr=False)
    """``command``, split."""

    first_request: bytes | None = attrs.field(init=False, repr=False)
    """The body of the request of ``warm_up``; None: there is none."""

    stop_words: tuple[str, ...] = attrs.field(init=False, repr=False)
    """``cmd_stop``, split; empty if there is none."""

    def place(self, field: str) -> str:
        """Where a setting stands, for messages."""
        plain = self.name.replace("-", "").replace("_", "").isalnum()
        return f"models.{self.name if plain else repr(self.name)}.{field}"

    def __attrs_post_init__(self) -> None:
        place = self.place
        object.__setattr__(self, "words", split_command(place("command"), self.command))
        object.__setattr__(self, "env", _given(place("env"), self.env))
        stop = () if self.cmd_stop is None else split_command(place("cmd_stop"), self.cmd_stop)
        object.__setattr__(self, "stop_words", stop)
        if self.cwd is not None:
            try:
                path = os.fspath(self.cwd)
            except TypeError:
                wrong_type(place("cwd"), "a path", self.cwd)
            _check_text(place("cwd"), path)
        _check_url(place("base_url"), self.base_url, "a URL such as 'http://127.0.0.1:${PORT}'")
        if self.check is not None:
            expected = "a path such as '/health', a URL of http, or None"
            check: object = self.check
            is_path = isinstance(check, str) and check.startswith("/")
            _check_url(place("check"), f"{self.base_url}{check}" if is_path else check, expected)
        object.__setattr__(self, "first_request", _first_request(place("warm_up"), self.warm_up))
        check_whole(place("output_lines"), self.output_lines, least=1)
        if not isinstance(self.restarts, RestartSettings):
            wrong_type(place("restarts"), "RestartSettings", self.restarts)
        self._check_port()

    def _check_port(self) -> None:
        """The server and who asks it mean the same port."""
        texts = {"base_url": self.base_url, "check": self.check or ""}
        texts |= {f"command[{number}]": word for number, word in enumerate(self.words)}
        texts |= {f"env.{name}": text for name, text in self.env.items()}
        for field, text in texts.items():
            check_placeholders(self.place(field), text, ("PORT",))
        for number, word in enumerate(self.stop_words):
            check_placeholders(self.place(f"cmd_stop[{number}]"), word, ("PORT", "PID"))
        told = any(needs(text, "PORT") for text in (*self.words, *self.env.values()))
        if needs(self.base_url, "PORT") and not told:
            wrong_value(
                self.place("command"),
                "${PORT} in it (or in env), or a base_url with the port that it listens on",
                self.command,
            )

    @property
    def needs_port(self) -> bool:
        """Whether it gets a port from the pool."""
        return any(needs(text, "PORT") for text in (*self.words, *self.env.values()))

    def url(self, port: int) -> str:
        """``base_url``, with this port."""
        return filled(self.base_url, {"PORT": port}).rstrip("/")

    def warm_up_url(self, port: int) -> str:
        """Where the request of ``warm_up`` goes, with this port."""
        url = self.url(port)
        return f"{url}/chat/completions" if url.endswith("/v1") else f"{url}/v1/chat/completions"

    def check_url(self, port: int) -> str | None:
        """What is asked, with this port."""
        if self.check is None:
            return None
        where = self.url(port) + self.check if self.check.startswith("/") else self.check
        return filled(where, {"PORT": port})
