"""Which server a URL leads to: its host and its port, whatever the spelling. Nothing is looked up, in no DNS."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import unquote

import attrs
import idna

if TYPE_CHECKING:
    from collections.abc import Mapping

Loopback: TypeAlias = Literal["shared", "distinct"]
"""Whether ``localhost``, 127.0.0.1 and ::1 are one host, or each a host of its own."""

DEFAULT_PORTS: Final[Mapping[str, int]] = MappingProxyType({"http": 80, "ws": 80, "https": 443, "wss": 443})
"""The schemes of an endpoint, and the port that each means if the URL names none."""

LOOPBACK: Final = "127.0.0.1"
"""The host that stands for all names of this machine's loopback while they are shared."""

_EXAMPLE: Final = "'http://127.0.0.1:8080'"
_LONGEST_HOST: Final = 253
# The address of "everywhere" can be listened on; who connects to it comes to the loopback.
_ANYWHERE: Final[Mapping[str, str]] = MappingProxyType({"0.0.0.0": LOOPBACK, "::": "::1"})
_SCHEME_AND_REST: Final = re.compile(r"([a-z][a-z0-9+.\-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*)(?::(?P<port>.*))?", re.DOTALL)
_PORT: Final = re.compile(r"0*([0-9]{1,5})")
_NAME: Final = re.compile(r"[a-z0-9_~!$&'()*+,;=\-]+(?:\.[a-z0-9_~!$&'()*+,;=\-]+)*")
_NUMBERS: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*")
_ZONE: Final = re.compile(r"[A-Za-z0-9._~\-]+")


@attrs.frozen
class Endpoint:
    """One port of one host, where a server listens: made by :meth:`from_url`. ``str()`` gives its canonical URL.

    Two endpoints are equal if their hosts and ports are: a port has one server, whatever the scheme.
    """

    scheme: str = attrs.field(eq=False)
    """``"http"``, ``"https"``, ``"ws"`` or ``"wss"``; it takes no part in comparisons."""

    host: str
    """A name in lower case and ASCII, or an address in its shortest spelling, without brackets."""

    port: int
    """From 1 to 65535."""

    @classmethod
    def from_url(cls, url: str, *, loopback: Loopback = "shared") -> Endpoint:
        """Read the endpoint of a URL. Path, query, fragment, user and password play no part.

        All spellings of one host give one: case, a trailing dot, percent-encoding, international names, each way to
        write an IPv4 or IPv6 address, and an IPv4 address that is wrapped in an IPv6 one. A name and its address
        are two hosts, since nothing is looked up; but for ``localhost``.

        Args:
          url: such as ``"http://macmini.local:8080/v1"``.
          loopback: ``"shared"``: ``localhost``, names that end in ``.localhost``, 127.0.0.1 and ::1 are one host;
            ``"distinct"``: they are not. In both cases 0.0.0.0 is 127.0.0.1, and :: is ::1.

        Raises:
          TypeError: ``url`` is no string.
          ValueError: it is no URL of an endpoint; the message says what to write. It shows no user, password or query.
        """
        check_loopback(loopback)
        scheme, host, port = _split(url)
        canonical = _read_address_in_brackets(host, url) if host.startswith("[") else _read_host(host, url)
        canonical = _ANYWHERE.get(canonical, canonical)
        if loopback == "shared" and (canonical in ("localhost", "::1") or canonical.endswith(".localhost")):
            canonical = LOOPBACK
        return cls(scheme, canonical, port)

    def __str__(self) -> str:
        port = "" if self.port == DEFAULT_PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{self._host_in_url}{port}"

    @property
    def name(self) -> str:
        """Host and port, as ``macmini.local:8080``."""
        return f"{self._host_in_url}:{self.port}"

    @property
    def _host_in_url(self) -> str:
        return f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host


def name_as_spelled(url: str) -> str:
    """Host and port of a URL, the host as it is written there.

    Raises:
      TypeError, ValueError: as :meth:`Endpoint.from_url`, as far as it finds host and port.
    """
    _, host, port = _split(url)
    return f"{host}:{port}"


def check_loopback(loopback: object) -> None:
    """Raise ValueError unless it is a :data:`Loopback`."""
    if loopback not in ("shared", "distinct"):
        raise ValueError(f"loopback must be 'shared' or 'distinct', not {loopback!r}")


def shown(url: str) -> str:
    """The URL as messages may show it: without user, password, query and fragment."""
    before, at, after = url.rpartition("@")
    scheme = _SCHEME_AND_REST.match(url)
    start = f"{scheme[1]}://" if scheme else ""
    if at and re.search(r"[?#]", before):
        return start + "..."  # a password with such a character in it, or a query with an "@": better say too little
    return re.split(r"[?#]", start + after if at else url, maxsplit=1)[0]


def _split(url: str) -> tuple[str, str, int]:
    """The scheme, the host as it is written, and the port."""
    given: object = url
    if not isinstance(given, str):
        raise TypeError(
            f"an endpoint is told by a URL, a string such as {_EXAMPLE} (or str(url)), and no {type(given).__name__}"
        )
    if url != url.strip():
        raise ValueError(f"the URL {shown(url)!r} begins or ends with white space: leave it out")
    found = _SCHEME_AND_REST.fullmatch(url)
    if found is None:
        raise ValueError(f"{shown(url)!r} has no scheme and is no URL: write {_with_scheme(url)}")
    scheme = found[1].lower()
    if scheme not in DEFAULT_PORTS:
        known = ", ".join(DEFAULT_PORTS)
        raise ValueError(f"{shown(url)!r} has the scheme {scheme!r}: write one of {known}, as in {_EXAMPLE}")
    authority = re.split(r"[/?#]", found[2], maxsplit=1)[0].rpartition("@")[2]
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None or ":" in (parts["port"] or ""):
        raise ValueError(
            f"{shown(url)!r} has no readable host: write an IPv6 address in brackets, as in 'http://[::1]:8080'"
        )
    if not parts["host"]:
        raise ValueError(f"{shown(url)!r} has no host: write one, as in {_EXAMPLE}")
    return scheme, parts["host"], _read_port(parts["port"], scheme, url)


def _with_scheme(url: str) -> str:
    """What somebody may have meant who wrote a URL without a scheme."""
    known = shown(url)
    path_alone = re.match(r"/(?!/)", known)
    rest = "" if path_alone else re.sub(r"^(?:(?:http|ws)s?:)?/{0,2}", "", known, flags=re.IGNORECASE)
    authority = rest.partition("/")[0]
    if authority.count(":") > 1 and "[" not in authority:
        authority = f"[{authority}]"
    meant = f"http://{authority}"
    try:
        Endpoint.from_url(meant)
    except ValueError:
        return f"one such as {_EXAMPLE}"
    return repr(meant)


def _read_port(port: str | None, scheme: str, url: str) -> int:
    if not port:
        return DEFAULT_PORTS[scheme]
    digits = _PORT.fullmatch(port)
    number = int(digits[1]) if digits else 0
    if not 1 <= number <= 65535:
        raise ValueError(
            f"{shown(url)!r} has no readable port: write a number from 1 to 65535, or none for {scheme}'s own"
        )
    return number


def _read_host(host: str, url: str) -> str:
    """The canonical spelling of a host that stands in no brackets."""
    try:
        name = unquote(host, errors="strict").lower()
        if not name.isascii():
            # In lower case first: so httpx does, and the two must come to the same name.
            name = idna.encode(name, uts46=True).decode("ascii")
    except UnicodeError:
        raise ValueError(
            f"{shown(url)!r} has a host that is no international name: write it in ASCII (xn--...)"
        ) from None
    name = name.removesuffix(".")
    if not name:
        raise ValueError(f"{shown(url)!r} has no host: write one, as in {_EXAMPLE}")
    if len(name) > _LONGEST_HOST or not _NAME.fullmatch(name):
        raise ValueError(
            f"{shown(url)!r} has a host that is no host name: write letters, digits, '-' and '_' with single dots "
            f"between them, no more than {_LONGEST_HOST} characters"
        )
    return _read_numbers(name, url) if _NUMBERS.fullmatch(name) else name


def _read_numbers(name: str, url: str) -> str:
    """An IPv4 address as the system reads it: one to four numbers, the last fills what is left; octal and hex too."""
    try:
        *heads, tail = [_read_number(part) for part in name.split(".")]
        if len(heads) > 3 or any(head > 255 for head in heads) or tail >= 256 ** (4 - len(heads)):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{shown(url)!r} has numbers for a host that are no IPv4 address: write four, as in 192.168.1.20"
        ) from None
    return str(IPv4Address(sum(head << (24 - 8 * place) for place, head in enumerate(heads)) + tail))


def _read_number(text: str) -> int:
    if text.startswith("0x"):
        return int(text, 0)
    return int(text, 8 if text.startswith("0") else 10)


def _read_address_in_brackets(host: str, url: str) -> str:
    text, percent, zone = host[1:-1].partition("%")
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise ValueError(
            f"{shown(url)!r} has no IPv6 address in its brackets: write it as in 'http://[::1]:8080'"
        ) from None
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if not percent:
        return str(address)
    if zone.startswith("25") and len(zone) > 2:
        zone = zone[2:]  # the percent sign itself is encoded in a URL, but not everybody does so
    if not _ZONE.fullmatch(zone):
        raise ValueError(f"{shown(url)!r} has no readable zone: write it as in 'http://[fe80::1%25eth0]:8080'")
    # Elsewhere than in a link's own network a zone has no meaning.
    return f"{address}%{zone}" if address.is_link_local else str(address)
