"""Looks at one server over HTTP: acts on what a kind's ``look`` asks for, within a limit, and never raises for it."""

from __future__ import annotations

import base64
import ssl
from typing import TYPE_CHECKING, Final, Self, TypeVar

import httpx
import trio

from trio_mlxgate.backends._reasons import no_reply_of
from trio_mlxgate.backends._settings import http_url, is_header
from trio_mlxgate.backends.detecting import Detected, detect
from trio_mlxgate.backends.kinds.base import NoReply, Reply, unanswered
from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.endpoints import shown
from trio_mlxgate.core.readings import Health, Reading

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType

    from trio_mlxgate.backends.kinds.base import ServerKind

MOST_READ: Final = 1 << 20
"""Bytes of an answer that are read; what is asked for is far shorter."""

_CLOSING: Final = 1.0
"""Seconds that closing a connection may take beyond the limit of a look."""


ResultT = TypeVar("ResultT")


class Prober:
    """Looks at one server when it is told to, one look at a time and over one connection, which ends with the look.

    ::

        prober = Prober("http://127.0.0.1:8080/v1")
        reading = await prober.read()

    Redirects are not followed, and proxies of the environment not used: what is asked for is this server.

    Args:
      base_url: as openai's SDK takes it; paths are asked at its root, without the trailing ``/v1``.
      headers: sent with each request, such as ``{"Authorization": "Bearer ..."}``.
      timeout: seconds that a whole look may take, finding out the kind included.
      kind: what the server is; None: that is found out, and found out anew when the server was not well.
      transport: what sends the requests, closed by :meth:`aclose`; None is a new connection for each look.

    Raises:
      TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 2.0,
        kind: ServerKind | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._root = _root(base_url)
        self._timeout = check_seconds("timeout", timeout)
        if not 0 < self._timeout < 1e9:
            raise ValueError(f"timeout must be a finite number of seconds > 0, not {timeout!r}")
        self._headers = _headers(self._root, headers or {})
        self._transport = transport
        self._given = kind is not None
        self._kind = kind
        # What the last look saw; UP: the kind that is remembered can be relied on.
        self._seen: Health | None = None
        self._tls: ssl.SSLContext | None = None
        self._lock = trio.Lock()
        self._closed = False

    @property
    def kind(self) -> ServerKind | None:
        """What the server is, as far as is known; while it is not well, what it was last."""
        return self._kind

    async def read(self) -> Reading:
        """Look at the server once. Always a checkpoint.

        It takes ``timeout`` seconds at most, and a moment for closing; if another task looks at the same time, this
        one waits for that first. Nothing that the server does is raised: it is told in the reading. Cancelled, it
        leaves no connection open.

        Raises:
          RuntimeError: the prober has been closed.
        """
        async with self._lock:
            async with self._visit() as visit:
                if self._must_find_out():
                    detected = await self._find_out(visit)
                    if detected.kind is None:
                        reading = _reading_of(detected)
                        self._seen = reading.health
                        return reading
                assert self._kind is not None
                reading = await visit.act(self._kind.look())
            self._seen = reading.health
            return reading

    async def find_kind(self) -> ServerKind | None:
        """What the server is: as given or remembered, else found out now, within ``timeout`` seconds.

        None: it gives no answer, or says that it can't serve. Always a checkpoint.

        Raises:
          RuntimeError: the prober has been closed.
        """
        async with self._lock, self._visit() as visit:
            if self._must_find_out():
                return (await self._find_out(visit)).kind
            return self._kind

    async def aclose(self) -> None:
        """Close the transport that was given, after the look that runs. Always a checkpoint. Closing twice is fine."""
        async with self._lock:
            self._closed = True
            if self._transport is not None:
                await self._transport.aclose()

    async def __aenter__(self) -> Self:
        """Never a checkpoint."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it. Always a checkpoint."""
        await self.aclose()

    def _must_find_out(self) -> bool:
        return not self._given and (self._kind is None or self._seen is not Health.UP)

    async def _find_out(self, visit: _Visit) -> Detected:
        """Ask which kind it is and remember it. Always a checkpoint."""
        detected = await visit.act(detect())
        # A server that fumbled once is not taken for one of which nothing can be known; one that was gone may be.
        fumbled = self._kind is not None and self._seen is Health.UNKNOWN and not detected.is_certain
        if detected.kind is not None:
            if fumbled:
                return Detected(kind=self._kind, reason="as it was known before")
            self._kind = detected.kind
            # It has answered: that is enough for what is found out without a look.
            self._seen = Health.UP
        return detected

    def _visit(self) -> _Visit:
        if self._closed:
            raise RuntimeError(f"the prober of {_shown(self._root)} has been closed")
        transport = self._transport
        if transport is None:
            if self._tls is None:
                # Loading certificates takes long; where nothing is encrypted, a context that trusts nobody will do.
                encrypted = self._root.scheme == "https"
                self._tls = httpx.create_ssl_context() if encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            transport = httpx.AsyncHTTPTransport(
                verify=self._tls,
                trust_env=False,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60),
            )
        deadline = trio.current_time() + self._timeout
        return _Visit(self._root, self._headers, transport, deadline, closes=self._transport is None)


class _Visit:
    """One look's requests, within its deadline; a context manager that closes the connection."""

    def __init__(
        self,
        root: httpx.URL,
        headers: httpx.Headers,
        transport: httpx.AsyncBaseTransport,
        deadline: float,
        *,
        closes: bool,
    ) -> None:
        self._root = root
        self._headers = headers
        self._transport = transport
        self._deadline = deadline
        self._closes = closes

    async def __aenter__(self) -> Self:
        """Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection, within a second, whatever is cancelled. Always a checkpoint."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        if self._closes:
            with trio.move_on_after(_CLOSING, shield=True):
                await self._transport.aclose()

    async def act(self, looking: Generator[str, Reply | NoReply, ResultT]) -> ResultT:
        """GET what is asked for until that is answered. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        path = next(looking)
        while True:
            answer = await self._get(path)
            try:
                path = looking.send(answer)
            except StopIteration as end:
                result: ResultT = end.value
                return result

    async def _get(self, path: str) -> Reply | NoReply:
        """One GET, until the visit's deadline. Always a checkpoint."""
        start = trio.current_time()
        answer: Reply | NoReply | None = None
        with trio.move_on_at(self._deadline):
            await trio.lowlevel.checkpoint()
            try:
                answer = await self._exchange(path, start)
            except (httpx.HTTPError, OSError, ValueError) as error:
                # What the client library makes of a server's garbage is of the server's making, whatever it is.
                answer = no_reply_of(error, trio.current_time() - start)
        seconds = trio.current_time() - start
        return NoReply(why="timeout", seconds=seconds) if answer is None else answer

    async def _exchange(self, path: str, start: float) -> Reply:
        """Send a GET and read its answer. Always a checkpoint."""
        url = self._root.copy_with(raw_path=self._root.raw_path.rstrip(b"/") + path.encode())
        # httpcore closes a connection whose TLS handshake ends by its own limit, but not one that is cancelled then.
        left = max(0.0, self._deadline - start)
        limits = {"timeout": {"connect": 0.9 * left}} if url.scheme == "https" else {}
        request = httpx.Request("GET", url, headers=self._headers, extensions=limits)
        response = await self._transport.handle_async_request(request)
        body = bytearray()
        try:
            stream = response.stream
            assert isinstance(stream, httpx.AsyncByteStream)
            async for piece in stream:
                body += piece
                if len(body) >= MOST_READ:
                    break
        finally:
            with trio.move_on_after(_CLOSING, shield=True):
                await response.aclose()
        return Reply(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=bytes(body[:MOST_READ]),
            http_version=response.http_version,
            seconds=trio.current_time() - start,
        )


def _reading_of(detected: Detected) -> Reading:
    """What it tells that a server's kind could not be found out."""
    if detected.silence is not None and detected.silence.why == "refused":
        return unanswered("", detected.silence)
    return Reading(health=Health.UNKNOWN, reason=detected.reason)


def _root(base_url: str) -> httpx.URL:
    """The URL below which a server's own paths lie."""
    wanted = "give a base URL such as http://127.0.0.1:8080/v1"
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a str, not {base_url!r}; {wanted}")
    try:
        url = http_url(base_url)
    except ValueError:
        url = None
    if url is None or url.query or url.fragment:
        # A password may stand anywhere in what is no URL, and a key in a query.
        raise ValueError(f"{shown(base_url)!r} is no base URL; {wanted}")
    path = url.raw_path.rstrip(b"/")
    return url.copy_with(raw_path=path.removesuffix(b"/v1").rstrip(b"/") or b"/")


def _headers(root: httpx.URL, given: Mapping[str, str]) -> httpx.Headers:
    """What is sent with each request."""
    for name, value in given.items():
        if not is_header(name, value):
            # Its value isn't shown: it may be a secret.
            raise ValueError(
                f"the header {name!r} must have a name of letters, digits and dashes, and a value of printable ASCII "
                "characters without blanks at its ends"
            )
    headers = httpx.Headers({"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "trio-mlxgate"})
    if root.username or root.password:
        pair = f"{root.username}:{root.password}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    headers.update(given)
    return headers


def _shown(url: httpx.URL) -> str:
    return str(url.copy_with(userinfo=b""))
