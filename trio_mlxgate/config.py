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

import os
import tomllib
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from trio_mlxgate._config_values import (
    Check,
    Misfit,
    check_headers,
    check_kind,
    check_known,
    check_names,
    check_seconds_above_0,
    check_table,
    check_temperature,
    check_text,
    check_url,
    check_variable,
    check_whole,
    key_in_path,
    misfit,
    nearest,
    shown,
)
from trio_mlxgate.backends._settings import is_header
from trio_mlxgate.backends.adapter import ModelAdapter
from trio_mlxgate.backends.detecting import kind_named
from trio_mlxgate.backends.limits import ChatLimits
from trio_mlxgate.backends.registry import BackendRegistry
from trio_mlxgate.core.endpoints import Endpoint
from trio_mlxgate.endpoint_gates import EndpointGates

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        path = f"{self.source}: backends.{key_in_path(self.name)}.api_key_env"
        key = environ.get(self.api_key_env, "")
        if not key:
            raise ConfigError(
                f"{path}: the environment has no {self.api_key_env}; set it to the key, or drop this line"
            )
        if not is_header("Authorization", key):
            raise ConfigError(
                f"{path}: the environment's {self.api_key_env} has characters that no HTTP header may have, or blanks "
                "at its ends"
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

    def gates(self) -> EndpointGates:
        """New gates for its servers, with the capacities of the file; they can be used in any run."""
        return EndpointGates({url: {"capacity": capacity} for url, capacity in self.capacities().items()})

    def adapters(
        self, gates: EndpointGates | None = None, environ: Mapping[str, str] = os.environ
    ) -> dict[str, ModelAdapter]:
        """An adapter for each backend, by name.

        Args:
          gates: where their requests pass; None: :meth:`gates`, one for all of them. A program that calls these servers
            by other ways too gives these the same gates.
          environ: where keys are.

        Raises:
          ConfigError: the environment has no such key; or an adapter wants it otherwise, and says so.
        """
        shared = self.gates() if gates is None else gates
        made = {}
        for name, backend in self.backends.items():
            arguments = backend.adapter_arguments(environ)
            limits = ChatLimits(**arguments.pop("limits", {}))
            try:
                made[name] = ModelAdapter(**arguments, limits=limits, gate=shared)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{self.source}: backends.{key_in_path(name)}: {error}") from None
        return made

    def registry(
        self, gates: EndpointGates | None = None, environ: Mapping[str, str] = os.environ, **options: Any
    ) -> BackendRegistry:
        """A registry of its roles, not entered yet; without ``[roles]`` each backend is a role of its own name.

        Args:
          gates, environ: as for :meth:`adapters`.
          options: of :class:`trio_mlxgate.backends.BackendRegistry`.

        Raises:
          ConfigError: as :meth:`adapters`.
        """
        made = self.adapters(gates, environ)
        roles = self.roles or {name: (name,) for name in self.backends}
        return BackendRegistry({role: [made[name] for name in names] for role, names in roles.items()}, **options)


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
    except Misfit as misfit:
        raise ConfigError(f"{source}: {misfit}") from None


def _config(document: dict[str, Any], source: str) -> Config:
    check_known(document, "", ("backends", "roles"))
    tables = check_table("backends", document.get("backends", {}))
    if not tables:
        raise Misfit('backends: expected at least one table [backends.NAME] with url = "http://..."')
    backends = {name: _backend(name, value, source) for name, value in tables.items()}
    _check_capacities(backends)
    roles = {
        name: _role(f"roles.{key_in_path(name)}", value, tuple(backends))
        for name, value in check_table("roles", document.get("roles", {})).items()
    }
    return Config(backends=MappingProxyType(backends), roles=MappingProxyType(roles), source=source)


def _backend(name: str, value: object, source: str) -> BackendConfig:
    path = f"backends.{key_in_path(name)}"
    table = check_table(path, value)
    if not name.strip() or not name.isprintable():
        raise Misfit(f"{path}: the name of a backend can't be empty or unprintable")
    check_known(table, path, tuple(_CHECKS))
    if "url" not in table:
        raise Misfit(f'{path}.url: it is missing; give one such as "http://127.0.0.1:8080/v1"')
    fields = {key: _CHECKS[key](f"{path}.{key}", given) for key, given in table.items()}
    backend = BackendConfig(name=name, source=source, **fields)
    if backend.aliases and backend.model is None:
        raise Misfit(f"{path}.aliases: they are other names of the model; give that in model")
    if backend.api_key_env is not None and any(header.lower() == "authorization" for header in backend.headers):
        raise Misfit(f"{path}.api_key_env: headers have an Authorization already; leave one of them out")
    if backend.kind is not None and backend.capacity is not None:
        most = kind_named(backend.kind).capacity
        if most is not None and backend.capacity > most:
            misfit(f"{path}.capacity", f"at most {most}, which is what {backend.kind} bears", backend.capacity)
    return backend


def _check_capacities(backends: Mapping[str, BackendConfig]) -> None:
    """One server has one gate, and so one capacity, however many backends lead to it."""
    seen: dict[Endpoint, BackendConfig] = {}
    for backend in backends.values():
        if backend.capacity is None:
            continue
        other = seen.setdefault(Endpoint.from_url(backend.url), backend)
        if other.capacity != backend.capacity:
            misfit(
                f"backends.{key_in_path(backend.name)}.capacity",
                f"{other.capacity}, as of {other.name}, which is on the same server and shares its gate",
                backend.capacity,
            )


def _role(path: str, value: object, backends: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        misfit(path, 'a list of backends such as ["macbook", "macmini"]', value)
    for number, name in enumerate(value):
        if not isinstance(name, str) or name not in backends:
            hint = nearest(name, backends) if isinstance(name, str) else ""
            known = ", ".join(backends)
            raise Misfit(f"{path}[{number}]: expected the name of a backend ({known}), got {shown(name)}{hint}")
        if name in value[:number]:
            raise Misfit(f"{path}[{number}]: {name!r} is named twice")
    return tuple(value)


def _limits(path: str, value: object) -> LimitsConfig:
    table = check_table(path, value)
    check_known(table, path, tuple(field.name for field in attrs.fields(LimitsConfig)))
    return LimitsConfig(**{name: check_seconds_above_0(f"{path}.{name}", seconds) for name, seconds in table.items()})


_CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "url": check_url,
        "kind": check_kind,
        "model": check_text,
        "aliases": check_names,
        "system_prompt": check_text,
        "temperature": check_temperature,
        "max_tokens": check_whole(1),
        "headers": check_headers,
        "api_key_env": check_variable,
        "hold_timeout": check_seconds_above_0,
        "capacity": check_whole(1),
        "limits": _limits,
    }
)
