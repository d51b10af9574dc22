"""One gate for each endpoint, found by URL: however a server is spelled, its callers stand in one queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar

import attrs

from trio_mlxgate.base_gate import DEFAULT_HOOKS, BaseGate
from trio_mlxgate.core.aliases import Aliases
from trio_mlxgate.core.endpoints import Endpoint, Loopback, check_loopback, name_as_spelled, shown
from trio_mlxgate.errors import UnknownEndpoint
from trio_mlxgate.gate import Gate
from trio_mlxgate.options import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio_mlxgate.core.statistics import GateStatistics
    from trio_mlxgate.instrumentation import Hook
    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.priority import Priority

Unlisted: TypeAlias = Literal["gate", "refuse"]
"""What an endpoint gets that was not listed: a gate with the default settings, or :class:`UnknownEndpoint`."""

_T = TypeVar("_T")
GateT = TypeVar("GateT", bound=BaseGate)


def _copy_of_mapping(value: Any) -> Any:
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


def _tuple_of(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) else value


def _request_options(value: object) -> RequestOptions:
    if isinstance(value, RequestOptions):
        return value
    return RequestOptions(**_known_fields(RequestOptions, value, "request"))


@attrs.frozen(kw_only=True)
class EndpointSettings:
    """How the gate of an endpoint is made, and what requests to it ask for unless they say otherwise.

    Raises:
      TypeError, ValueError: a field isn't as :class:`Gate` and :class:`RequestOptions` want it.
    """

    name: str | None = None
    """What log lines and errors call the gate; None: host and port, as the endpoint's URL spells them."""

    capacity: int = 1
    """How many slots the gate has at first; this and the following are arguments of :class:`Gate`."""

    aging: float | None = None
    """Seconds, or None for strict priority."""

    reserved: Mapping[int, int] | Mapping[Priority, int] | None = attrs.field(default=None, converter=_copy_of_mapping)
    """Slots to keep free for better priorities."""

    max_waiting: int | Mapping[int, int] | Mapping[Priority, int] | None = attrs.field(
        default=None, converter=_copy_of_mapping
    )
    """How many calls may wait."""

    outer_deadline: OuterDeadline = "warn"
    """What is done about a deadline of the caller around the wait."""

    starvation_warning: float = 300.0
    """Seconds after which a waiter is reported."""

    strict: bool = False
    """Whether the gate breaks when a task ends without giving its slot back."""

    hooks: Iterable[Hook] = attrs.field(default=DEFAULT_HOOKS, converter=_tuple_of)
    """Who is told of each step."""

    request: RequestOptions = attrs.field(factory=RequestOptions, converter=_request_options)
    """What a request through a ``GateTransport`` asks for where neither its extension, nor its header, nor
    :func:`use_options` says anything. A mapping of the fields will do."""

    def __attrs_post_init__(self) -> None:
        name: object = self.name
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string, or None for host and port, not {name!r}")
        if name == "":
            raise ValueError("name must not be empty; None is for host and port")
        self._make_gate(BaseGate)  # it knows best what it takes

    def _make_gate(self, kind: type[GateT]) -> GateT:
        options = {option: getattr(self, option) for option in _GATE_OPTIONS}
        return kind(name=self.name or "", **options)


_GATE_OPTIONS: Final = tuple(
    field.name for field in attrs.fields(EndpointSettings) if field.name not in ("name", "request")
)


@attrs.frozen(eq=False)
class _Entry(Generic[GateT]):
    gate: GateT
    settings: EndpointSettings
    listed_as: str | None
    """The URL under which it was listed; None: it wasn't."""


class BaseEndpointGates(Generic[GateT]):
    """The gates of several servers: one for each endpoint, found by any URL that leads there.

    ::

        gates = EndpointGates({"http://macmini.local:8080": EndpointSettings(capacity=2)})
        client = httpx.AsyncClient(transport=GateTransport(gates))

    An endpoint is one port of one host (see :class:`Endpoint` for what counts as one host); the scheme and the path
    play no part. No DNS is asked: two names of one host are two endpoints unless one is an alias of the other.
    A gate is never replaced: once an endpoint has one, that is its gate, over all runs. May be made anywhere, at
    module level too. Not to be used from several threads at a time: it belongs where its gates do, to the thread of
    their run.

    Args:
      endpoints: settings by URL; a mapping of the fields of :class:`EndpointSettings` will do for one.
      default: the settings of endpoints that aren't listed; a gate is made when one is first asked for. They can't
        name one: such a gate is called by host and port.
      aliases: URLs that stand for the endpoint of another URL: ``{"http://macmini.local:8080":
        "http://192.168.1.20:8080"}``. An alias only chooses the gate; requests are sent to the URL as it stands.
      unlisted: ``"gate"``: an endpoint that isn't listed gets a gate with the default settings; ``"refuse"``: asking
        for it raises :class:`UnknownEndpoint`.
      loopback: ``"shared"``: ``localhost``, 127.0.0.1 and ::1 are one host; ``"distinct"``: three.

    Raises:
      TypeError, ValueError: an argument isn't as described; a URL is none; two URLs of ``endpoints`` are one endpoint;
        an alias is listed as well, or stands for two; or aliases go in a circle.
      UnknownEndpoint: with ``unlisted="refuse"``, an alias leads to an endpoint that isn't listed.
    """

    _gate_class: type[GateT]

    def __init__(
        self,
        endpoints: Mapping[str, EndpointSettings | Mapping[str, Any]] | None = None,
        *,
        default: EndpointSettings | Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
        unlisted: Unlisted = "gate",
        loopback: Loopback = "shared",
    ) -> None:
        check_loopback(loopback)
        if unlisted not in ("gate", "refuse"):
            raise ValueError(f"unlisted must be 'gate' or 'refuse', not {unlisted!r}")
        self._loopback: Loopback = loopback
        self._refuse = unlisted == "refuse"
        self._default = _settings(default, "default")
        if self._default.name is not None:
            raise ValueError(f"default names the gate {self._default.name!r}, and all of its gates can't have one name")
        self._entries: dict[Endpoint, _Entry[GateT]] = {}
        self._aliases = Aliases()
        for url, settings in _by_url(endpoints, "endpoints"):
            self.add(url, settings)
        self._add_aliases(_by_url(aliases, "aliases"))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(map(str, self._entries)) or 'none yet'}>"

    # ---- asking ----

    def gate_for(self, url: str | Endpoint) -> GateT:
        """The gate of the endpoint to which this URL leads; always the same one. ``gates[url]`` says the same.

        Raises:
          TypeError, ValueError: it is no URL of an endpoint.
          UnknownEndpoint: with ``unlisted="refuse"``, it isn't listed.
        """
        endpoint = self._endpoint(url)
        entry = self._entries.get(endpoint)
        if entry is None:
            settings = self._unlisted_settings(endpoint, url)
            # To make a gate asks its hooks what they want to hear; if one asks for this gate, the first made counts.
            entry = self._entries.setdefault(endpoint, _Entry(settings._make_gate(self._gate_class), settings, None))
        return entry.gate

    __getitem__ = gate_for

    def settings_for(self, url: str | Endpoint) -> EndpointSettings:
        """The settings of the endpoint to which this URL leads: its own, or the default ones. Makes no gate.

        Raises:
          TypeError, ValueError, UnknownEndpoint: as for :meth:`gate_for`.
        """
        endpoint = self._endpoint(url)
        entry = self._entries.get(endpoint)
        return self._unlisted_settings(endpoint, url) if entry is None else entry.settings

    def is_listed(self, url: str | Endpoint) -> bool:
        """Whether the endpoint to which this URL leads is listed, and has not just been asked for. As ``in`` raises."""
        entry = self._entries.get(self._endpoint(url))
        return entry is not None and entry.listed_as is not None

    def __contains__(self, url: str | Endpoint) -> bool:
        """Whether the endpoint to which this URL leads is listed or has a gate. Raises TypeError, ValueError."""
        return self._endpoint(url) in self._entries

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints that are listed or have a gate, in the order in which they came. Aliases are none of them."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.endpoints)

    def __len__(self) -> int:
        return len(self._entries)

    def statistics(self) -> Mapping[str, GateStatistics]:
        """A snapshot of each gate, by the canonical URL of its endpoint; never waits. See :meth:`Gate.statistics`."""
        return {str(endpoint): entry.gate.statistics() for endpoint, entry in self._entries.items()}

    # ---- adding ----

    def add(self, url: str, settings: EndpointSettings | Mapping[str, Any] | None = None) -> GateT:
        """List one more endpoint, and return its gate. None: it has the default settings.

        Raises:
          TypeError: an argument isn't as described.
          ValueError: it is no URL of an endpoint, or a field of the settings is bad. The endpoint is listed already,
            maybe in another spelling; it is an alias; it has a gate already, since somebody asked for it; or the name
            of its gate is taken. Nothing was changed.
        """
        endpoint = Endpoint.from_url(url, loopback=self._loopback)
        told = repr(shown(url))
        known = self._entries.get(endpoint)
        if known is not None and known.listed_as is not None:
            raise ValueError(
                f"{shown(known.listed_as)!r} and {told} are one endpoint, {endpoint}, with one gate: list it once"
            )
        if known is not None:
            raise ValueError(
                f"{told} has a gate with the default settings, which calls may be using: list it before it is asked for"
            )
        target = self._aliases.target(endpoint)
        if target is not None:
            raise ValueError(f"{told} is an alias of {target}, and has no gate of its own: list {target}")
        read = self._default if settings is None else _settings(settings, f"the settings of {told}")
        if read.name is None:
            read = attrs.evolve(read, name=name_as_spelled(url))
        for other, entry in self._entries.items():
            if entry.settings.name == read.name:
                raise ValueError(f"{told} and {other} would both have a gate named {read.name!r}: rename one")
        return self._entries.setdefault(endpoint, _Entry(read._make_gate(self._gate_class), read, url)).gate

    def add_alias(self, alias: str, url: str) -> None:
        """From now on ``alias`` is another URL for the endpoint of ``url``, which may be an alias in turn.

        Raises:
          TypeError, ValueError: one is no URL of an endpoint; ``alias`` is listed, has a gate already, or stands for
            another endpoint; or the aliases would go in a circle. Nothing was changed.
          UnknownEndpoint: with ``unlisted="refuse"``, the endpoint of ``url`` isn't listed. Nothing was changed.
        """
        self._add_aliases([(alias, url)])

    def _add_aliases(self, aliases: Sequence[tuple[str, str]]) -> None:
        pairs = []
        for alias, url in aliases:
            source, target = (Endpoint.from_url(text, loopback=self._loopback) for text in (alias, url))
            known = self._entries.get(source)
            # One that stands for itself changes nothing, and so does no harm.
            if known is not None and source != target:
                told = f"{shown(alias)!r} can't be an alias of {shown(url)!r}, since it "
                if known.listed_as is not None:
                    raise ValueError(f"{told}is listed with a gate of its own: leave out one of the two")
                raise ValueError(f"{told}has a gate, which calls may be using: say so before it is asked for")
            pairs.append((source, target))
        changed = self._aliases.with_more(pairs)
        if self._refuse:
            for (source, _), (_, url) in zip(pairs, aliases, strict=True):
                end = changed.resolve(source)
                if end not in self._entries:
                    raise self._unknown(end, url)
        self._aliases = changed

    # ---- inside ----

    def _endpoint(self, url: str | Endpoint) -> Endpoint:
        # An endpoint may come from elsewhere, where the loopback was read in another way.
        text = str(url) if isinstance(url, Endpoint) else url
        return self._aliases.resolve(Endpoint.from_url(text, loopback=self._loopback))

    def _unlisted_settings(self, endpoint: Endpoint, url: str | Endpoint) -> EndpointSettings:
        if self._refuse:
            raise self._unknown(endpoint, str(url))
        # A listed one may have taken that name.
        taken = any(entry.settings.name == endpoint.name for entry in self._entries.values())
        return attrs.evolve(self._default, name=str(endpoint) if taken else endpoint.name)

    def _unknown(self, endpoint: Endpoint, url: str) -> UnknownEndpoint:
        known = ", ".join(map(str, self._entries)) or "none"
        return UnknownEndpoint(
            f"{shown(url)!r} leads to {endpoint}, which is not listed; listed: {known}. List it, or "
            f"call add('{endpoint}', EndpointSettings(...)); if it is another name of one that is listed, "
            f"make it an alias: add_alias('{endpoint}', URL)"
        )


class EndpointGates(BaseEndpointGates[Gate]):
    __doc__ = BaseEndpointGates.__doc__
    _gate_class = Gate


def _by_url(given: Mapping[str, _T] | None, argument: str) -> list[tuple[str, _T]]:
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a mapping whose keys are URLs, not {given!r}")
    return list(given.items())


def _settings(given: object, what: str) -> EndpointSettings:
    if given is None:
        return EndpointSettings()
    if isinstance(given, EndpointSettings):
        return given
    fields = _known_fields(EndpointSettings, given, what)
    try:
        return EndpointSettings(**fields)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from None


def _known_fields(kind: type[attrs.AttrsInstance], given: object, what: str) -> dict[str, Any]:
    """The fields of such an object as they stand in a mapping, from a configuration file for instance."""
    known = [field.name for field in attrs.fields(kind)]
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} must be {kind.__name__}(...), or a mapping with any of its fields, not {given!r}")
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(f"{what}: there is no {unknown[0]!r}; there are {', '.join(known)}")
    return dict(given)
