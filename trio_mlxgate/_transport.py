"""The transport behind ``trio_mlxgate.httpx`` and ``trio_mlxgate.httpx2``: a slot for each request, from before it is
sent until its response body is closed. It knows neither family: their classes come in as a ``Family``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar
from weakref import WeakSet

import anyio
from anyio.lowlevel import checkpoint
from trio.lowlevel import enable_ki_protection

from trio_mlxgate._drain import Exchanges, own_drain_ended
from trio_mlxgate._fallback import check_fallback, has_begun
from trio_mlxgate._gated_stream import GatedStream
from trio_mlxgate.anyio import current_mlx_gate
from trio_mlxgate.core.checks import check_abandoned, check_drain_limit, check_seconds
from trio_mlxgate.endpoint_gates import BaseEndpointGates
from trio_mlxgate.errors import GateRefused, QueueFull, Superseded, WaitTooLong
from trio_mlxgate.options import EXTENSION, RequestOptions, current_options, options_from_extension
from trio_mlxgate.priority import URGENCY_PRIORITIES, check_priority, priority_from_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from trio_mlxgate._fallback import Fallback
    from trio_mlxgate._family import Family
    from trio_mlxgate._response_body import Hold
    from trio_mlxgate.base_gate import BaseGate
    from trio_mlxgate.core.checks import WhenAbandoned
    from trio_mlxgate.detached_slots import DetachedSlot
    from trio_mlxgate.loan import Loan
    from trio_mlxgate.portal import Portal

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that closing a response may take; it can't be cancelled, so it must have an end of its own."""

DRAIN_LIMIT: Final = 300.0
"""Seconds for which a request is drained at most, if nothing else is said."""


class _Transport(Protocol):
    async def handle_async_request(self, request: Any) -> Any: ...
    async def aclose(self) -> None: ...


TransportT = TypeVar("TransportT", bound=_Transport)


class GateTransportBase(Generic[TransportT]):
    """A transport in front of another: each request waits for a slot of the gate before it is sent.

    The slot is kept until the response body is closed, read to its end, or broken. The time in the queue lies
    outside of all of the client's timeouts. A request says what it asks of the gate by
    ``extensions={"mlxgate": {"priority": 0, "max_wait": 2.0, "hold_timeout": 30.0}}`` (the fields are those of
    :class:`trio_mlxgate.RequestOptions`), by a ``Priority`` header (RFC 9218), or by
    :func:`trio_mlxgate.use_options` around it; of these the first that names a field counts, and after them what
    the endpoint's settings say, where the gate is found by URL (:class:`trio_mlxgate.EndpointGates`).
    ``response.extensions["mlxgate"]`` is ``{"waited": seconds}``.

    A task that owns a slot of the same gate passes, with one open response at a time; its children queue.

    With a :class:`trio_mlxgate.Fallback` another server is asked when this one gives nothing (with several servers,
    when one that is listed gives nothing). With
    ``abandoned="drain"`` a request runs in a task of its own, so that its slot and its connection outlive its caller.

    The hold budget ends sending and reading, and gives the slot back; closing has what is left of it, and a second at
    least. While nobody reads it interrupts nobody: a response that lies open keeps its slot, and is reported one
    second after its deadline. One that is dropped open keeps its slot until the collector finds it: then it is
    closed in its run, with a ResourceWarning.

    A request raises, beside what the inner transport does, exceptions that are the gate's own and of the
    client's family at once: ``QueueFull`` (a ``ConnectError``) and ``WaitTooLong`` (a ``PoolTimeout``), with nothing
    sent, and ``HoldTimeout`` (a ``ReadTimeout``, :class:`trio.TooSlowError`, and ``TimeoutError``); and
    :class:`trio_mlxgate.Superseded`, which is of no client's family, so that an SDK that tries again what its client
    raises does not try this again.
    RuntimeError: the task would wait
    for itself, since it has a response open under its own slot, or its open responses hold all slots. TypeError,
    ValueError: the extension is not as described, or no gate is found by such a URL.
    :class:`trio_mlxgate.UnknownEndpoint`: the endpoint isn't listed. A malformed header is ignored.
    """

    _family: Family

    def __init__(
        self,
        gate: BaseGate | Portal | BaseEndpointGates[Any] | None,
        transport: TransportT,
        *,
        priorities: Mapping[int, int] = URGENCY_PRIORITIES,
        close_timeout: float = CLOSE_TIMEOUT,
        fallback: Fallback | None = None,
        abandoned: WhenAbandoned = "release",
        drain_limit: float = DRAIN_LIMIT,
    ) -> None:
        given: object = gate  # callers without a type checker may give anything, as the class
        finds = given is None or isinstance(given, BaseEndpointGates)
        if isinstance(given, type) or not (finds or callable(getattr(given, "acquire_detached", None))):
            raise TypeError(
                "GateTransport's first argument is a Gate, a Portal, EndpointGates, or None for the gate of the run, "
                f"not {gate!r}; the inner transport comes second: GateTransport(gate, transport)"
            )
        module = self._family.name
        if not isinstance(transport, self._family.transport):
            raise TypeError(
                f"the inner transport of trio_mlxgate.{module}.GateTransport must be an {module}.AsyncBaseTransport, "
                f"such as {module}.AsyncHTTPTransport(), not {transport!r}"
            )
        self.transport = transport
        """The transport that sends the requests."""
        self._fallback = check_fallback(fallback, self._family)
        self._gate = gate
        self._priorities = {int(urgency): check_priority(priority) for urgency, priority in priorities.items()}
        self._close_timeout = check_seconds("close_timeout", close_timeout)
        if math.isinf(self._close_timeout):
            raise ValueError("close_timeout must be finite: closing can't be cancelled")
        # Weak references: a response that nobody has any more is closed by its finaliser.
        self._open: WeakSet[GatedStream] = WeakSet()
        self._closings = 0
        self._abandoned = check_abandoned(abandoned)
        self._drain_limit = check_drain_limit(drain_limit)
        self._exchanges = Exchanges(self._family, transport.handle_async_request, self._gated, self._close_timeout)

    async def __aenter__(self) -> Self:
        """Enter the inner transport. Always a checkpoint."""
        await checkpoint()
        await _enter(self.transport)
        if self._fallback is not None:
            try:
                await _enter(self._fallback.transport)
            except BaseException:
                await self.transport.aclose()  # noqa: ASYNC102
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close what :meth:`aclose` closes. Always a checkpoint."""
        # Closing the responses shields itself, and the inner transport cleans up as it would without us.
        try:
            await self._close_open_responses()  # noqa: ASYNC102
        finally:
            try:
                if self._family.closes_anywhere(self.transport):
                    await self._exchanges.close_after_all(self.transport.aclose)  # noqa: ASYNC102
                else:
                    await self._exchanges.give_up()  # noqa: ASYNC102
                    await _leave(self.transport, exc_type, exc_value, traceback)  # noqa: ASYNC102
            finally:
                if self._fallback is not None:
                    await _leave(self._fallback.transport, exc_type, exc_value, traceback)  # noqa: ASYNC102

    async def aclose(self) -> None:
        """Close the responses that are still open, which gives their slots back, and the transports.

        Always a checkpoint.
        """
        try:
            await self._close_open_responses()
        finally:
            try:
                if not self._family.closes_anywhere(self.transport):
                    await self._exchanges.give_up()  # noqa: ASYNC102
                await self._exchanges.close_after_all(self.transport.aclose)  # noqa: ASYNC102
            finally:
                if self._fallback is not None:
                    await self._fallback.transport.aclose()  # noqa: ASYNC102

    async def _close_open_responses(self) -> None:
        """Close all at once, so that several that hang take no longer than one; then raise the first error.

        Always a checkpoint, which comes last: before that a task of asyncio's could be cancelled, and leave them open.
        """
        self._closings += 1
        errors: list[Exception] = []

        async def close(stream: GatedStream) -> None:  # noqa: ASYNC910 - closing is a checkpoint, also where it fails
            try:
                await stream.aclose()
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)

        async with anyio.create_task_group() as group:
            for stream in list(self._open):
                group.start_soon(close, stream)
        if errors:
            raise errors[0]

    def handle_request(self, request: Any) -> Any:  # noqa: ARG002 - it has the signature that clients call
        """Say to a synchronous client that it has the wrong transport."""
        raise TypeError(
            f"a GateTransport is for {self._family.name}.AsyncClient; call a synchronous client in a thread, inside of "
            "'with gate.from_thread():'"
        )

    # Control-C is seen at the next checkpoint inside, so that no slot is lost between two steps here.
    @enable_ki_protection
    async def handle_async_request(self, request: Any) -> Any:
        """Wait for a slot, send the request, and return its response, which holds the slot until it is closed.

        Always a checkpoint. If it is cancelled, or fails, the slot is given back.
        """
        if not isinstance(request, self._family.request):
            module = type(request).__module__.partition(".")[0]
            raise TypeError(
                f"trio_mlxgate.{self._family.name}.GateTransport is for clients of {self._family.name}; "
                f"a client of {module} needs trio_mlxgate.{module}.GateTransport"
            )
        options = self._options(request)
        closings = self._closings
        fallback = self._fallback_for(request)
        if fallback is None:
            hold = await self._take(request, options)
            return await self._send_under(hold, request, options, closings)
        asked_at = anyio.current_time()
        taken: DetachedSlot | Loan | None = None
        try:
            taken = await self._take(request, options)
            response = await self._send_under(taken, request, options, closings)
            if isinstance(response.stream, GatedStream):
                await has_begun(request, response, self._family)
            return response
        except Exception as error:
            reason = fallback._reason_for(error, self._family)
            # To a client that was closed in the meantime everything looks like a server that went away.
            if reason is None or self._closings != closings:
                raise
            waited = taken.waited if taken is not None else anyio.current_time() - asked_at
            failed = error
        try:
            return await fallback._ask(
                request,
                self._family,
                self._gate_for(request),
                error=failed,
                reason=reason,
                priority=options.final_priority,
                waited=waited,
                closed=lambda: self._closings != closings,
            )
        finally:
            del failed  # it holds this frame, which would hold it

    async def _send_under(self, hold: DetachedSlot | Loan, request: Any, options: RequestOptions, closings: int) -> Any:
        try:
            if self._closings != closings:
                raise RuntimeError(
                    f"{_name_of(request)} was not sent: the client was closed while it waited for its slot"
                )
            if (options.abandoned or self._abandoned) == "release":
                return await self._send(request, hold)
            exchange = self._exchanges.start(request, hold, options.drain_limit or self._drain_limit)
        except BaseException:
            hold.release()
            raise
        # From here on the slot is the exchange's.
        response = await exchange.wait()
        response.extensions = {**response.extensions, EXTENSION: {"waited": hold.waited}}
        if isinstance(response.stream, GatedStream):
            if self._closings != closings:
                await response.stream.aclose()
                raise self._family.read_error("the client was closed before this response could be read")
            self._open.add(response.stream)
        return response

    async def _send(self, request: Any, hold: DetachedSlot | Loan) -> Any:
        # Waiting lies behind us, so no timeout of the client has run until here.
        response: Any = None
        with anyio.CancelScope(deadline=hold.deadline) as scope:
            response = await self.transport.handle_async_request(request)
        if scope.cancelled_caught:
            raise self._family.hold_timeout("no response came within hold_timeout")
        response.extensions = {**response.extensions, EXTENSION: {"waited": hold.waited}}
        if response.is_closed:
            # Its body is here, as with a MockTransport: nobody will read it from the stream or close that.
            hold.release()
            return response
        self._open.add(self._gated(request, response, hold))
        return response

    def _gated(self, request: Any, response: Any, hold: Hold) -> GatedStream:
        """Let the body of a response hold a slot until it is closed."""
        stream = self._family.stream(
            _name_of(request), response.stream, hold, self._family, self._close_timeout, self._open.discard
        )
        response.stream = stream
        return stream

    @enable_ki_protection
    async def _take(self, request: Any, options: RequestOptions) -> DetachedSlot | Loan:
        gate = self._gate_for(request)
        owned = gate.owned_slot()
        try:
            if owned is not None:
                waited = await own_drain_ended(owned, options.final_max_wait)
                loan = owned.lend(_name_of(request), hold_timeout=options.final_hold_timeout)
                loan.waited = waited
                return loan
            return await gate.acquire_detached(
                options.final_priority,
                max_wait=options.final_max_wait,
                hold_timeout=options.final_hold_timeout,
                supersede=options.supersede,
                outer_deadline=options.outer_deadline,
                tied=True,
            )
        except Superseded:
            # Of no client's family: an SDK would send it again, and it would push out the newer one in turn.
            raise
        except GateRefused as refused:
            raise self._in_family(refused) from refused

    def _in_family(self, refused: GateRefused) -> Exception:
        """The same refusal as an exception of the client's family, since SDKs wrap and retry nothing else."""
        if isinstance(refused, QueueFull):
            error = self._family.queue_full(str(refused))
        elif isinstance(refused, WaitTooLong):
            error = self._family.wait_too_long(str(refused))
        else:
            return refused
        if isinstance(error, GateRefused):
            error.retry_after = refused.retry_after
        return error

    def _options(self, request: Any) -> RequestOptions:
        options = options_from_extension(request.extensions.get(EXTENSION))
        header = request.headers.get("priority")
        if header is not None:
            options = options.over(RequestOptions(priority=priority_from_header(header, self._priorities)))
        options = options.over(current_options())
        if isinstance(self._gate, BaseEndpointGates):
            options = options.over(self._gate.settings_for(str(request.url)).request)
        return options

    def _fallback_for(self, request: Any) -> Fallback | None:
        if isinstance(self._gate, BaseEndpointGates) and not self._gate.is_listed(str(request.url)):
            return None  # a stranger's request is nothing for the other server
        return self._fallback

    def _gate_for(self, request: Any) -> BaseGate | Portal:
        if self._gate is None:
            return current_mlx_gate()
        # A redirect is a request of its own, and so has the gate of where it leads.
        return self._gate.gate_for(str(request.url)) if isinstance(self._gate, BaseEndpointGates) else self._gate


async def _enter(transport: Any) -> None:  # noqa: ASYNC910 - who calls it has one
    enter = getattr(transport, "__aenter__", None)
    if enter is not None:
        await enter()


async def _leave(transport: Any, *exc: Any) -> None:
    leave = getattr(transport, "__aexit__", None)
    if leave is not None:
        await leave(*exc)
    else:
        await transport.aclose()


def _name_of(request: Any) -> str:
    """The request as messages name it: without a password, and without a query that may hold one."""
    url = request.url
    port = f":{url.port}" if url.port is not None else ""
    return f"{request.method} {url.scheme}://{url.host}{port}{url.path}"
