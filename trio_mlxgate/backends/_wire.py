"""What stands between the gate and the socket: it sees the grant of the slot, and sends anew what broke off unanswered.

Under the gate's transport, so that a request that is sent anew does so under the slot that it has.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import h11
import httpx
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL: Final = "trio_mlxgate.call"
"""The key of the :class:`WireCall` in a request's extensions."""

MOST_REPEATS: Final = 3
"""How often a request is sent again at most."""

FIRST_PAUSE: Final = 0.05
"""Seconds before it is sent again the first time; each further pause is twice as long."""

LONGEST_PAUSE: Final = 1.0
"""Seconds that no pause exceeds."""

# Parts that were received together; from memory they come without a checkpoint.
_MOST_BUFFERED: Final = 1 << 16


@attrs.define(eq=False)
class WireCall:
    """One request on its way: what it may do, and what happened to it."""

    silence: float
    """Seconds that the server may be silent until the head of its answer is there; inf for plain requests."""

    granted_at: float = math.nan
    """When it had its slot, on the run's clock."""

    answered: bool = False
    """Whether the head of an answer has come."""

    repeats: int = 0
    """How often it was sent again."""


class WireTransport(httpx.AsyncBaseTransport):
    """Sends requests that carry a :class:`WireCall`.

    A connection that breaks before the head of the answer is there is made again, at most :data:`MOST_REPEATS` times,
    and no later than ``connect`` seconds after it first broke: that is what an overflowing backlog looks like (that of
    mlx_lm.server holds five), and a kept connection that the server has closed meanwhile. To send the same twice is
    safe, though it is a POST: a chat completion changes nothing. What was refused is not tried again: where nothing
    listens somebody else should be asked, and soon.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, *, connect: float) -> None:
        self._inner = inner
        self._connect = connect
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it, and return the response once its head is there. A checkpoint, as the inner transport is.

        Raises, beside what the inner transport does, ReadTimeout: the server was silent for too long. OSErrors and
        ValueErrors of the inner transport come as httpx's.
        """
        call: WireCall = request.extensions[CALL]
        call.granted_at = trio.current_time()
        pause = FIRST_PAUSE
        last_start = math.inf
        while True:
            try:
                with _in_httpx_words(httpx.ConnectError):
                    response = await self._send(request, call)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                now = trio.current_time()
                last_start = min(last_start, now + self._connect)
                if is_garbage(error) or self._closed or call.repeats == MOST_REPEATS or now + pause > last_start:
                    raise
            else:
                call.answered = True
                # One that is in memory has no connection, and others look for its class.
                if not response.is_closed:
                    response.stream = WireBody(response.stream)
                return response
            call.repeats += 1
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _send(self, request: httpx.Request, call: WireCall) -> httpx.Response:
        """Send it once. A checkpoint, as the inner transport is."""
        extensions = request.extensions
        trace = extensions.get("trace")
        # Connecting has a limit of its own, so the silence begins when the request goes out. Transports over httpcore
        # tell of that; one that tells nothing is taken to send at once.
        scope = trio.CancelScope(deadline=trio.current_time() + call.silence)

        async def follow(event: str, info: Any) -> None:
            await trio.lowlevel.checkpoint()
            if event.startswith("connection."):
                scope.deadline = math.inf
            elif event.endswith(".send_request_headers.started"):
                scope.deadline = trio.current_time() + call.silence
            if trace is not None:
                await trace(event, info)

        traced = {**extensions, "trace": follow}
        request.extensions = traced
        try:
            with scope:
                return await self._inner.handle_async_request(request)
        finally:
            request.extensions = extensions
            # The inner transport keeps it with the response, and would tell of each piece of the body.
            del traced["trace"]
            if trace is not None:
                traced["trace"] = trace
        raise httpx.ReadTimeout(f"the server was silent for {call.silence:g} s")

    async def aclose(self) -> None:
        """Close the inner transport; from now on nothing is tried again. A checkpoint, as the inner transport is."""
        self._closed = True
        await self._inner.aclose()


@contextlib.contextmanager
def _in_httpx_words(kind: type[httpx.NetworkError]) -> Iterator[None]:
    """What transports let through of the system below them, and of names that can't be encoded, is of this kind."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
            kind = httpx.ReadError  # it was there, and broke
        raise kind(str(error) or type(error).__name__) from error


class WireBody(httpx.AsyncByteStream):
    """The body of a response, which leaves nothing to the collector when it is closed before its end.

    Transports read through generators within generators, and closing the outer one leaves the inner ones to be found as
    rubbish, with a ResourceWarning for each. An exception from the innermost ends them all: the reading is cancelled.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._parts: Any = None
        self._reading = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next part. A checkpoint, as the inner transport is."""
        if self._parts is None:
            self._parts = aiter(self._inner)
        self._reading = True
        try:
            with _in_httpx_words(httpx.ReadError):
                part: bytes = await anext(self._parts)
        except BaseException:
            self._parts = _NOTHING_MORE
            raise
        finally:
            self._reading = False
        return part

    async def aclose(self) -> None:
        """Close the connection. A checkpoint, as the inner transport is."""
        parts, self._parts = self._parts, _NOTHING_MORE
        # What another task is reading ends when the connection does.
        if parts is not None and parts is not _NOTHING_MORE and not self._reading:
            # Cancelled from the start.
            with trio.CancelScope() as scope, contextlib.suppress(httpx.TransportError):  # noqa: ASYNC912
                scope.cancel()
                for _ in range(_MOST_BUFFERED):
                    if await anext(parts, None) is None:
                        break
        await self._inner.aclose()


class _NothingMore:
    """The parts of a body that has ended."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Never a checkpoint."""
        raise StopAsyncIteration


_NOTHING_MORE: Final = _NothingMore()


def is_garbage(error: Exception) -> bool:
    """Whether the error says that what came is no HTTP, and not that nothing came: it is h11 that finds so."""
    below = error.__cause__
    # Just this one: further down the contexts may be what the caller is handling. (No cause: the pool hides it.)
    return below is not None and isinstance(below.__context__, h11.ProtocolError)
