"""The other server of a transport: asked when its own can't be reached, or has no time."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import trio
from anyio.lowlevel import checkpoint

from trio_mlxgate.errors import GateRefused, QueueFull, WaitTooLong
from trio_mlxgate.instrumentation import FellBack
from trio_mlxgate.options import EXTENSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate._family import Family
    from trio_mlxgate.base_gate import BaseGate

FallbackReason: TypeAlias = Literal["unreachable", "wait_too_long", "queue_full", "hold_timeout"]
"""Why a request may go to a fallback."""

REASONS: Final[tuple[FallbackReason, ...]] = get_args(FallbackReason)
"""All of these."""


class Fallback:
    """Another server for the requests of a ``GateTransport``, for when its own gives no answer.

    ::

        cloud = Fallback(httpx.AsyncHTTPTransport(), rewrite_to("https://api.example.com/v1", api_key=key, model="big"))
        client = httpx.AsyncClient(transport=GateTransport(gate, fallback=cloud), base_url="http://127.0.0.1:8080/v1")

    A request goes there once, if its own server gave it nothing, for one of the reasons ``on``:

    - ``"unreachable"``: no connection, or it broke before the first byte of the answer's body;
    - ``"wait_too_long"``: ``max_wait`` ended in the queue;
    - ``"queue_full"``: there was no place in the queue;
    - ``"hold_timeout"``: the answer's first byte did not come within ``hold_timeout``, or within the client's own
      timeout for reading or writing.

    An answer with an HTTP error is an answer. Nothing else leads here: not :class:`Superseded`, no cancellation, no
    mistake of the program. When a request goes to the fallback its slot has been given back and its connection
    closed; it holds no slot of that gate there. (A request of a task that owns a slot releases the loan; the task's
    block goes on holding. With ``abandoned="drain"``, one that goes there for ``"hold_timeout"`` leaves its slot to
    what is drained.) The client's timeouts begin anew; ``max_wait`` and ``hold_timeout`` don't count there.

    If the fallback answers with a redirect, that is an error: the client would follow it with the request as it was
    before the rewrite, with the keys of its own server. Its ``Set-Cookie`` is left out for the same reason.

    A request whose body is not in memory (an upload from a generator) can't be sent twice: it gets its own server's
    error, with a note that says so. To know that nothing was given to the caller, a transport with a fallback waits
    for the first part of the answer's body before it hands the response over. An event stream that ends before that
    counts as broken.

    Each time, the gate's hooks are told with :class:`trio_mlxgate.instrumentation.FellBack` before anything is sent,
    and the log has a WARNING: what the request holds leaves for another server. The reason is also in
    ``response.extensions["mlxgate"]``, as ``"fallback"``.

    If the rewrite or the fallback fails, its error is raised, and the first one is its ``__cause__``.

    Args:
      transport: what sends the requests to the other server, of the same client's family; a ``GateTransport`` too,
        which may have a fallback in turn. It is entered and closed together with the one that it is for.
      rewrite: a plain function that is given a copy of the request, with headers and extensions of its own, and
        returns what is to be sent, the copy or a new request; see :func:`rewrite_to`. None: the request goes as it
        is, with all its headers.
      on: the reasons that count.

    Raises:
      TypeError, ValueError: an argument isn't as described.
    """

    def __init__(
        self,
        transport: Any,
        rewrite: Callable[[Any], Any] | None = None,
        *,
        on: Iterable[FallbackReason] = ("unreachable", "wait_too_long"),
    ) -> None:
        if not callable(getattr(transport, "handle_async_request", None)):
            raise TypeError(
                "the first argument of Fallback is the transport that reaches the other server, "
                f"such as httpx.AsyncHTTPTransport(), not {transport!r}"
            )
        if inspect.iscoroutinefunction(rewrite) or not (rewrite is None or callable(rewrite)):
            raise TypeError(f"rewrite must be a plain function from a request to a request, or None, not {rewrite!r}")
        self.transport = transport
        """The transport that reaches the other server."""
        self.on = _check_reasons(on)
        """The reasons that count."""
        self._rewrite = rewrite

    def _reason_for(self, error: Exception, family: Family) -> FallbackReason | None:
        """Why a request that failed so goes to the fallback; None: it doesn't."""
        reason: FallbackReason | None = None
        # The gate's own first: they are of the client's kinds, too.
        if isinstance(error, GateRefused):
            if isinstance(error, WaitTooLong):
                reason = "wait_too_long"
            elif isinstance(error, QueueFull):
                reason = "queue_full"
        elif isinstance(error, (trio.TooSlowError, *family.too_slow)):
            reason = "hold_timeout"
        elif isinstance(error, family.unreachable):
            reason = "unreachable"
        return reason if reason in self.on else None

    async def _ask(
        self,
        request: Any,
        family: Family,
        gate: BaseGate,
        *,
        error: Exception,
        reason: str,
        priority: int,
        waited: float,
        closed: Callable[[], bool],
    ) -> Any:
        """Ask the other server. Always a checkpoint, unless it raises; it may be cancelled.

        Raises whatever the rewrite and the transport do, caused by ``error``; or ``error`` itself, if the request can't
        be sent again.
        """
        if family.content_of(request) is None:
            error.add_note(
                "the fallback was not asked: the request's body was not in memory, and can't be sent a second time"
            )
            raise error
        try:
            copy = family.copy_of(request)
            rewritten = copy if self._rewrite is None else self._check(self._rewrite(copy), family)
            _address_to_its_url(rewritten, request)
            gate._tell_of_gate(FellBack, priority=priority, reason=reason, to=_origin(rewritten.url), waited=waited)
            response = await self.transport.handle_async_request(rewritten)
        except Exception as failed:
            raise failed from error
        if closed():
            await self._close(response)
            raise family.read_error("the client was closed before this response could be read") from error
        if response.has_redirect_location:
            # The client would follow it with the request that it made: with the keys and the model of its own server.
            await self._close(response)
            raise family.protocol_error(
                f"the fallback {_origin(rewritten.url)} answered with a redirect ({response.status_code}). It is not "
                "followed, since the request as it was before the rewrite would go there: give it the final address"
            ) from error
        # What the other server sets would be kept, and sent, as a cookie of the first.
        response.headers.pop("set-cookie", None)
        # Where the fallback has a gate too, the request has stood in two queues.
        waited += response.extensions.get(EXTENSION, {}).get("waited", 0.0)
        response.extensions = {**response.extensions, EXTENSION: {"waited": waited, "fallback": reason}}
        return response

    async def _close(self, response: Any) -> None:
        """Always a checkpoint."""
        try:
            await response.aclose()
        except Exception:  # noqa: BLE001 - what is raised is that it answered so
            await checkpoint()

    def _check(self, rewritten: Any, family: Family) -> Any:
        if isinstance(rewritten, family.request):
            return rewritten
        if inspect.iscoroutine(rewritten):
            rewritten.close()  # or it would complain that nobody awaits it
        raise TypeError(f"the rewrite of the fallback must return a request of {family.name}, not {rewritten!r}")


def _address_to_its_url(rewritten: Any, request: Any) -> None:
    """A request whose URL was changed still has the ``Host`` of the first server: give it that of its own."""
    if rewritten.url.netloc != request.url.netloc and rewritten.headers.get("host") == request.headers.get("host"):
        rewritten.headers["Host"] = rewritten.url.netloc.decode("ascii")


def _check_reasons(on: object) -> frozenset[FallbackReason]:
    known = ", ".join(map(repr, REASONS))
    if isinstance(on, str) or not isinstance(on, Iterable):
        raise TypeError(f"on must be a list with any of {known}, not {on!r}")
    reasons = list(on)
    for reason in reasons:
        if reason not in REASONS:
            raise ValueError(f"on has an unknown reason {reason!r}; there are {known}")
    if not reasons:
        raise ValueError(f"on is empty, so the fallback would never be asked; there are {known}")
    return frozenset(reasons)


def check_fallback(fallback: object, family: Family) -> Fallback | None:
    """Return ``fallback`` if it is one for this family, or None. Raises TypeError if it isn't."""
    if fallback is None:
        return None
    if not isinstance(fallback, Fallback):
        raise TypeError(f"fallback must be a trio_mlxgate.Fallback(transport, rewrite), or None, not {fallback!r}")
    if not isinstance(fallback.transport, family.transport):
        module = family.name
        raise TypeError(
            f"the fallback of a trio_mlxgate.{module}.GateTransport must have an {module}.AsyncBaseTransport, "
            f"such as {module}.AsyncHTTPTransport(), not {fallback.transport!r}"
        )
    return fallback


async def has_begun(request: Any, response: Any, family: Family) -> None:  # noqa: ASYNC910 - as it says
    """Wait until the first part of the body is here, so that what breaks before it counts.

    A checkpoint, unless the connection is for another protocol; if it is cancelled the response is closed.

    Raises what reading does; and the family's ReadError if an event stream ends before it began. A server that marks
    the end of its answer by closing the connection (``mlx_lm.server``) has no other way to say that it died.
    """
    # No checkpoint before that: cancelled there, nobody would close the response.
    if family.switches_protocol(request, response) or await response.stream.peek():
        return  # noqa: ASYNC910
    kind = response.headers.get("content-type", "").lower()
    if response.status_code == 200 and request.method != "HEAD" and kind.startswith("text/event-stream"):
        raise family.read_error("the event stream ended before its first byte")


def _origin(url: Any) -> str:
    port = f":{url.port}" if url.port is not None else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}{port}"
