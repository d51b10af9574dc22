"""The configuration file: which backends there are, how each is asked, and which roles they play.

::

    [backends.macmini]
    url = "http://macmini.local:8080/v1"
    kind = "mlx-lm"
    model = "mlx-community/Qwen3-8B-4bit"

    [roles]
    classifier = ["macbook", "macmini"]

Each mistake is refused with the path at which it stands and what was expected there.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeAlias

import attrs

from trio_mlxgate.backends.detecting import KINDS, kind_named
from trio_mlxgate.core.endpoints import Endpoint

_LONGEST_SHOWN: Final = 60
_MOST: Final = 10**6


class ConfigError(ValueError):
    """The configuration isn't as it should be; the message says where, what was expected, and what there is."""


@attrs.frozen(kw_only=True)
class LimitsConfig:
    """For how many seconds a server may be silent. None: as :class:`trio_mlxgate.backends.limits.ChatLimits` has it."""

    connect: float | None = None
    """For a connection."""

    first_token: float | None = None
    """Before the first token."""

    gap: float | None = None
    """Between two tokens."""


@attrs.frozen(kw_only=True)
class BackendConfig:
    """One ``[backends.NAME]``. Made by :func:`load_config`, which checks it."""

    name: str
    """What reports, errors and roles call it."""

    url: str
    """As openai's SDK takes it."""

    kind: str | None = None
    """The name of a kind of server; None: that is found out."""

    model: str | None = None
    """What requests name; None: nothing, and the server takes its own."""

    aliases: frozenset[str] = frozenset()
    """Other names that callers may use for the model."""

    system_prompt: str | None = None
    """Stands before all messages."""

    temperature: float | None = None
    """None: as the server has it."""

    max_tokens: int | None = None
    """The longest answer; None: as the server has it."""

    headers: Mapping[str, str] = attrs.field(default=MappingProxyType({}), repr=False)
    """Of each request."""

    api_key_env: str | None = None
    """The variable of the environment that holds the key, sent as a bearer token. The key itself is never kept here."""

    hold_timeout: float | None = None
    """Seconds that an answer may take from the grant of its slot on; None: as the adapter has it."""

    capacity: int | None = None
    """How many requests it gets at once; None: one."""

    limits: LimitsConfig = LimitsConfig()
    """How long it may be silent."""

    source: str = attrs.field(default="", repr=False, eq=False)
    """The file, for messages."""

    def request_headers(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The headers of its requests, the key among them. Not to be shown.

        Raises:
          ConfigError: the environment has no such key, or one that no header may have.
        """
        if self.api_key_env is None:
            return dict(self.headers)
        path = f"{self.source}: backends.{_key(self.name)}.api_key_env"
        key = environ.get(self.api_key_env, "")
        if not key:
            raise ConfigError(
                f"{path}: the environment has no {self.api_key_env}; set it to the key, or drop this line"
            )
        if not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"{path}: the environment's {self.api_key_env} has characters that no HTTP header may have"
            )
        return {**self.headers, "Authorization": f"Bearer {key}"}

    def adapter_arguments(self, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """The arguments of its ModelAdapter, as far as the file gives them; ``limits`` are those of ChatLimits.

        Raises:
          ConfigError: as :meth:`request_headers`.
        """
        given = {
            "name": self.name,
            "base_url": self.url,
            "kind": self.kind,
            "model": self.model,
            "aliases": self.aliases or None,
            "system_prompt": self.system_prompt,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "headers": self.request_headers(environ) or None,
            "hold_timeout": self.hold_timeout,
            "limits": {name: seconds for name, seconds in attrs.asdict(self.limits).items() if seconds is not None}
            or None,
        }
        return {name: value for name, value in given.items() if value is not None}


@attrs.frozen(kw_only=True)
class Config:
    """A whole file."""

    backends: Mapping[str, BackendConfig]
    """By name, in the order of the file."""

    roles: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Which backends may play each role, the preferred one first."""

    source: str = ""
    """The file, for messages."""

    def capacities(self) -> dict[str, int]:
        """The capacity of each server of which the file says one, by its URL: for the settings of EndpointGates."""
        return {
            str(Endpoint.from_url(backend.url)): backend.capacity
            for backend in self.backends.values()
            if backend.capacity is not None
        }


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file.

    Raises:
      ConfigError: it can't be read, is no TOML, or isn't as described.
    """
    source = os.fspath(path)
    try:
        text = Path(source).read_text("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: it isn't text in UTF-8") from None
    except (OSError, ValueError) as error:
        # ValueError: a name that no file can have.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{source}: it can't be read: {reason}") from None
    return parse_config(text, source)


def parse_config(text: str, source: str = "configuration") -> Config:
    """Check the text of a configuration file; ``source`` is what messages call it.

    Raises:
      ConfigError: it is no TOML, or isn't as described.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: no TOML: {error}") from None
    except ValueError:
        raise ConfigError(f"{source}: no TOML: a number in it is too long") from None
    try:
        return _config(document, source)
    except _Misfit as misfit:
        raise ConfigError(f"{source}: {misfit}") from None


class _Misfit(Exception):
    """What is wrong at a path, without the file's name."""


Check: TypeAlias = Callable[[str, object], Any]
"""Returns a value as it is kept, or raises _Misfit; the first argument is the path at which it stands."""


def _misfit(path: str, expected: str, value: object) -> NoReturn:
    raise _Misfit(f"{path}: expected {expected}, got {_shown(value)}")


def _config(document: dict[str, Any], source: str) -> Config:
    _known(document, "", ("backends", "roles"))
    tables = _table("backends", document.get("backends", {}))
    if not tables:
        raise _Misfit('backends: expected at least one table [backends.NAME] with url = "http://..."')
    backends = {name: _backend(name, value, source) for name, value in tables.items()}
    _check_capacities(backends)
    roles = {
        name: _role(f"roles.{_key(name)}", value, tuple(backends))
        for name, value in _table("roles", document.get("roles", {})).items()
    }
    return Config(backends=MappingProxyType(backends), roles=MappingProxyType(roles), source=source)


def _backend(name: str, value: object, source: str) -> BackendConfig:
    path = f"backends.{_key(name)}"
    table = _table(path, value)
    if not name.strip() or not name.isprintable():
        raise _Misfit(f"{path}: the name of a backend can't be empty or unprintable")
    _known(table, path, tuple(_CHECKS))
    if "url" not in table:
        raise _Misfit(f'{path}.url: it is missing; give one such as "http://127.0.0.1:8080/v1"')
    fields = {key: _CHECKS[key](f"{path}.{key}", given) for key, given in table.items()}
    backend = BackendConfig(name=name, source=source, **fields)
    if backend.aliases and backend.model is None:
        raise _Misfit(f"{path}.aliases: they are other names of the model; give that in model")
    if backend.api_key_env is not None and any(header.lower() == "authorization" for header in backend.headers):
        raise _Misfit(f"{path}.api_key_env: headers have an Authorization already; leave one of them out")
    if backend.kind is not None and backend.capacity is not None:
        most = kind_named(backend.kind).capacity
        if most is not None and backend.capacity > most:
            _misfit(f"{path}.capacity", f"at most {most}, which is what {backend.kind} bears", backend.capacity)
    return backend


def _check_capacities(backends: Mapping[str, BackendConfig]) -> None:
    """One server has one gate, and so one capacity, however many backends lead to it."""
    seen: dict[Endpoint, BackendConfig] = {}
    for backend in backends.values():
        if backend.capacity is None:
            continue
        other = seen.setdefault(Endpoint.from_url(backend.url), backend)
        if other.capacity != backend.capacity:
            _misfit(
                f"backends.{_key(backend.name)}.capacity",
                f"{other.capacity}, as of {other.name}, which is on the same server and shares its gate",
                backend.capacity,
            )


def _role(path: str, value: object, backends: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        _misfit(path, 'a list of backends such as ["macbook", "macmini"]', value)
    for number, name in enumerate(value):
        if not isinstance(name, str) or name not in backends:
            hint = _nearest(name, backends) if isinstance(name, str) else ""
            known = ", ".join(backends)
            raise _Misfit(f"{path}[{number}]: expected the name of a backend ({known}), got {_shown(name)}{hint}")
        if name in value[:number]:
            raise _Misfit(f"{path}[{number}]: {name!r} is named twice")
    return tuple(value)


# ---- one value ----


def _url(path: str, value: object) -> str:
    expected = 'a base URL such as "http://127.0.0.1:8080/v1"'
    if not isinstance(value, str):
        _misfit(path, expected, value)
    try:
        scheme = Endpoint.from_url(value).scheme
    except ValueError as error:
        raise _Misfit(f"{path}: expected {expected}: {error}") from None
    # From here on the value isn't shown: it may hold a password.
    if scheme not in ("http", "https"):
        raise _Misfit(f"{path}: expected {expected}, got one of {scheme}")
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise _Misfit(f"{path}: expected {expected} without a user or a password; there are headers, and api_key_env")
    if "?" in value or "#" in value or not value.isprintable() or " " in value:
        raise _Misfit(f"{path}: expected {expected} without query, fragment or spaces")
    return value


def _kind(path: str, value: object) -> str:
    names = tuple(kind.name for kind in KINDS)
    if value not in names:
        hint = _nearest(value, names) if isinstance(value, str) else ""
        raise _Misfit(f"{path}: expected one of {', '.join(names)}, got {_shown(value)}{hint}")
    return str(value)


def _text(path: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        _misfit(path, "a string that isn't empty", value)
    return value


def _names(path: str, value: object) -> frozenset[str]:
    if not isinstance(value, list):
        _misfit(path, "a list of names", value)
    return frozenset(_text(f"{path}[{number}]", name) for number, name in enumerate(value))


def _temperature(path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
        _misfit(path, "a number >= 0", value)
    return value


def _seconds(path: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < 1e300 or value == math.inf):
        _misfit(path, "seconds > 0 (inf: no limit)", value)
    return value


def _whole(least: int) -> Check:
    def check(path: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            _misfit(path, f"an int >= {least}", value)
        return value

    return check


def _headers(path: str, value: object) -> Mapping[str, str]:
    # Values are never shown: they may be secrets.
    for name, text in _table(path, value).items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise _Misfit(f"{path}.{_key(name)}: expected the name of a header, of letters, digits and dashes")
        if not isinstance(text, str) or not text.isascii() or not text.isprintable():
            raise _Misfit(f"{path}.{_key(name)}: expected a string of printable ASCII characters")
    return MappingProxyType(dict(_table(path, value)))


def _variable(path: str, value: object) -> str:
    # Somebody may have written the key itself here: it isn't shown.
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier():
        raise _Misfit(f"{path}: expected the name of a variable of the environment that holds the key")
    return value


def _limits(path: str, value: object) -> LimitsConfig:
    table = _table(path, value)
    _known(table, path, tuple(field.name for field in attrs.fields(LimitsConfig)))
    return LimitsConfig(**{name: _seconds(f"{path}.{name}", seconds) for name, seconds in table.items()})


_CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "url": _url,
        "kind": _kind,
        "model": _text,
        "aliases": _names,
        "system_prompt": _text,
        "temperature": _temperature,
        "max_tokens": _whole(1),
        "headers": _headers,
        "api_key_env": _variable,
        "hold_timeout": _seconds,
        "capacity": _whole(0),
        "limits": _limits,
    }
)


# ---- tables and words ----


def _table(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        _misfit(path, f"a table [{path}]", value)
    return value


def _known(table: Mapping[str, object], path: str, names: tuple[str, ...]) -> None:
    for name in table:
        if name not in names:
            at = f"{path}.{_key(name)}" if path else _key(name)
            raise _Misfit(f"{at}: there is no such key{_nearest(name, names)}; there are {', '.join(names)}")


def _nearest(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name[:_LONGEST_SHOWN], names, 1)
    return f" (do you mean {near[0]}?)" if near else ""


def _key(name: str) -> str:
    """A key as TOML would have it in a path."""
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if plain else _shown(name)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
