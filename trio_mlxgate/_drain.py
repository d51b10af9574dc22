"""Requests that outlive their callers: the slot and the connection stay until the server is done with them."""

from __future__ import annotations

import contextvars
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import outcome
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint

from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.errors import WaitTooLong
from trio_mlxgate.instrumentation import Abandoned, GivenUp
from trio_mlxgate.loan import Loan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_mlxgate._family import Family
    from trio_mlxgate._gated_stream import GatedStream
    from trio_mlxgate.detached_slots import DetachedSlot
    from trio_mlxgate.runtime import Runtime, SomeTask
    from trio_mlxgate.slots import Slot

STREAMS: Final = frozenset(
    {
        *("text/event-stream", "application/x-ndjson", "application/ndjson", "application/jsonl"),
        *("application/x-jsonlines", "application/json-seq", "application/stream+json"),
    }
)
"""The content types of answers that are written piece by piece: who writes so notices that the reader has left."""

_logger: Final = logging.getLogger(__name__)


class Exchanges:
    """The exchanges of one transport, and what is to be closed after the last of them."""

    def __init__(
        self,
        family: Family,
        send: Callable[[Any], Awaitable[Any]],
        gated: Callable[[Any, Any, Exchange], GatedStream],
        close_timeout: float,
    ) -> None:
        self.family = family
        self.send = send
        """Sends a request."""
        self.gated = gated
        """Lets the body of a response hold a slot."""
        self._close_timeout = close_timeout
        self._running: set[Exchange] = set()
        self._closer: Callable[[], Awaitable[object]] | None = None

    def start(self, request: Any, hold: DetachedSlot | Loan, drain_limit: float) -> Exchange:
        """Send a request in a task of its own, under a slot that is the exchange's from now on.

        If it raises, the slot is still the caller's.
        """
        exchange = Exchange(self, request, hold, drain_limit)
        # The task that will give the slot back is this one: whoever asked may well queue behind it.
        # With the context of the caller.
        name = f"{request.method} {request.url.host}"
        hold.holder = hold.runtime.spawn(exchange.run, name, contextvars.copy_context())
        self._running.add(exchange)
        hold.runtime.when_over(hold.holder, exchange.see_over)
        return exchange

    async def give_up(self) -> None:
        """End all exchanges, and return when they have ended, or after twice the time that closing may take.

        Always a checkpoint, and can't be cancelled.
        """
        for exchange in list(self._running):
            exchange.give_up()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 2 * self._close_timeout):
            await checkpoint()
            for exchange in list(self._running):
                await exchange.ended()

    async def close_after_all(self, closer: Callable[[], Awaitable[object]]) -> None:
        """Call ``closer``: now, or after the last exchange that runs. A checkpoint, unless ``closer`` is none."""
        if not self._running:
            await closer()
            return
        if self._closer is None:
            self._closer = closer
        await cancel_shielded_checkpoint()

    def end(self, exchange: Exchange) -> Callable[[], Awaitable[object]] | None:
        """This one has ended. Returns what is to be closed now."""
        self._running.discard(exchange)
        if self._running:
            return None
        closer, self._closer = self._closer, None
        return closer

    async def close(self, closer: Callable[[], Awaitable[object]]) -> None:
        """Call ``closer``, whose errors nobody is there to be told. Always a checkpoint, and can't be cancelled."""
        await cancel_shielded_checkpoint()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + self._close_timeout):
            closed = await outcome.acapture(closer)
            if isinstance(closed, outcome.Error):
                _logger.debug("closing the transport failed, after the last request was drained", exc_info=closed.error)


class Exchange:
    """One request and its answer in a task of our own; the caller waits for it, or leaves it alone.

    The gated stream that reads the answer takes it for the slot. While the answer is read here the hold budget doesn't
    end that, or it would end the connection: it ends the caller's wait.
    """

    def __init__(self, exchanges: Exchanges, request: Any, hold: DetachedSlot | Loan, drain_limit: float) -> None:
        self._exchanges = exchanges
        self._family = exchanges.family
        self._hold = hold
        self._limit = drain_limit
        self._request = self._family.copy_of(request)
        timeouts = dict(request.extensions.get("timeout") or {})
        read = timeouts.get("read")
        self._read_timeout = math.inf if read is None else check_seconds("the client's read timeout", read)
        # It would cut the connection; here it is for the caller to keep.
        self._request.extensions["timeout"] = timeouts | {"read": None}
        # The read timeout begins when the request is out, of which transports over httpcore tell; until then connecting
        # and writing have limits of their own. A transport that tells nothing is taken to have sent at once.
        self._trace = self._request.extensions.get("trace")
        self._request.extensions["trace"] = self._follow
        self._sending = False
        self._waiting: anyio.CancelScope | None = None
        self._scope = anyio.CancelScope()
        self._last_sign = anyio.current_time()
        self._done = anyio.Event()
        self._begun = self._sent = self._left = self._handed_over = self._released = False
        self._response: Any = None
        self._stream: GatedStream | None = None
        self._error: BaseException | None = None

    # ---- the slot, for the stream ----

    @property
    def deadline(self) -> float:
        """When whoever reads is to stop: the end of the hold budget, once it is the caller who reads."""
        return self._hold.deadline if self._handed_over else math.inf

    @property
    def runtime(self) -> Runtime:
        """The run that the slot belongs to."""
        return self._hold.runtime

    def adopt(self, task: SomeTask | None = None) -> None:
        """The current task, or this one, is the one that will give the slot back."""
        self._hold.adopt(task)

    def release(self) -> None:
        """Give the slot back. Never a checkpoint. The second time it does nothing."""
        if not self._released:
            self._released = True
            self._hold.release()

    # ---- the task ----

    def give_up(self) -> None:
        """End it, whoever waits."""
        self._scope.cancel()

    def see_over(self) -> None:
        """The task has ended. Under asyncio it may have been cancelled before it has begun."""
        if self._done.is_set():
            return
        self._error = self._family.read_error("the request was cancelled before it was sent")
        self.release()
        self._done.set()
        closer = self._exchanges.end(self)
        if closer is not None:
            self._hold.runtime.spawn(partial(self._exchanges.close, closer), "close the transport")

    async def ended(self) -> None:
        """Wait until it has ended. Always a checkpoint."""
        await self._done.wait()

    async def _follow(self, event: str, info: Any) -> None:
        """What the inner transport tells of its work. Always a checkpoint."""
        await checkpoint()
        if event.endswith("send_request_body.complete"):
            self._sent = True
        self._sending = not self._sent
        self._sign()
        if self._trace is not None:
            await self._trace(event, info)

    def _sign(self) -> None:
        """The server has given a sign, or the request has just gone out: the read timeout begins anew."""
        self._last_sign = anyio.current_time()
        if self._waiting is not None:
            self._waiting.deadline = self._due()

    def _due(self) -> float:
        """Until when the caller waits."""
        return min(self._hold.deadline, math.inf if self._sending else self._last_sign + self._read_timeout)

    async def run(self) -> None:  # noqa: ASYNC910 - a task, which nobody awaits
        """Send, and read the answer unless it is a stream; nothing but the end of the run gets out of here.

        A checkpoint, unless it was cancelled already.
        """
        try:
            try:
                with self._scope:
                    await checkpoint()
                    if not self._left:  # or nobody would ever have wanted it
                        self._begun = True
                        await self._work()
            finally:
                if self._scope.cancelled_caught:
                    if self._left:
                        self._tell(GivenUp)
                    else:
                        self._error = self._family.read_error("the client was closed before the answer was there")
                if self._stream is None:
                    self.release()
        except GeneratorExit:  # first, since outside of any run nobody can say what the class of the next one is
            self._error = self._family.read_error("the run has ended")
            raise
        except anyio.get_cancelled_exc_class():
            self._error = self._family.read_error("the run has ended")
            raise
        except BaseException as error:  # noqa: ASYNC103 - the caller's, since a system task that raises ends the run
            self._error = error
            if self._left:
                level = logging.DEBUG if isinstance(error, Exception) else logging.ERROR
                _logger.log(level, "a request that was abandoned has failed", exc_info=error)
        finally:
            self._done.set()
            # From here on only the user's own trace is of interest; and the request must not hold this.
            self._request.extensions.pop("trace", None)
            if self._trace is not None:
                self._request.extensions["trace"] = self._trace
            closer = self._exchanges.end(self)
            if closer is not None:
                await self._exchanges.close(closer)  # noqa: ASYNC102 - shields itself

    async def _work(self) -> None:
        response = await self._exchanges.send(self._request)
        self._sending, self._sent = False, True
        self._sign()
        if response.is_closed:
            self._response = response
            return
        stream = self._exchanges.gated(self._request, response, self)
        if self._is_stream(response):
            if self._left:
                await stream.aclose()
                return
            stream.read_timeout = self._read_timeout
            self._stream = stream
        else:
            parts = []
            async for part in stream:
                self._sign()
                parts.append(part)
                if self._left:
                    parts.clear()  # nobody gets it
            response.stream = self._family.byte_stream(b"".join(parts))
        self._response = response

    def _is_stream(self, response: Any) -> bool:
        """Whether it is the caller who reads: what is written piece by piece, and a connection for another protocol."""
        if self._family.switches_protocol(self._request, response):
            return True
        kind: str = response.headers.get("content-type", "")
        return kind.partition(";")[0].strip().lower() in STREAMS

    # ---- the caller ----

    async def wait(self) -> Any:
        """The response; of an answer that is no stream the whole. Always a checkpoint.

        If it is cancelled, or raises an error of time, the request is abandoned: it keeps its slot until its answer is
        there, or for ``drain_limit`` seconds. A stream is closed instead.
        """
        try:
            await self._answered()
        except BaseException:
            stream = self._abandon()
            if stream is not None:
                await stream.aclose()  # noqa: ASYNC102 - shields itself, and has an end of its own
            raise
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # it holds this frame, which would hold it
        if self._stream is not None:
            self._handed_over = True
            self._hold.adopt()
        # What the stream holds must not hold the stream: it is to be seen when it is dropped.
        response, self._response, self._stream = self._response, None, None
        return response

    async def _answered(self) -> None:
        """Wait for the end of the task while the hold budget and the client's read timeout allow. A checkpoint."""
        while True:
            with anyio.CancelScope(deadline=self._due()) as self._waiting:
                await self._done.wait()
            self._waiting = None
            if self._done.is_set():
                return
            now = anyio.current_time()
            drained = "the request is being drained" if self._begun else "the request was not sent"
            if now >= self._hold.deadline:
                raise self._family.hold_timeout(f"no answer came within hold_timeout; {drained}")
            if now >= self._due():
                raise self._family.read_timeout(
                    f"nothing came within the client's read timeout of {self._read_timeout:g} s; {drained}"
                )

    def _abandon(self) -> GatedStream | None:
        """The caller leaves. Returns a stream that it has to close."""
        if self._done.is_set():
            return self._stream
        self._left = True
        if isinstance(self._hold, Loan):
            self._hold.drained = self._done
        # Under asyncio some passes go by between the end of the body and that of the task.
        if not self._begun or self._released:
            return None
        self._scope.deadline = until = anyio.current_time() + self._limit
        if not isinstance(self._hold, Loan):
            # Until then nobody need be told that it is held for too long.
            self._hold.deadline = until
        self._tell(Abandoned)
        return None

    def _tell(self, kind: type[Abandoned | GivenUp]) -> None:
        slot = self._hold.slot if isinstance(self._hold, Loan) else self._hold
        slot.gate._tell(kind, slot)


async def own_drain_ended(owned: Slot, max_wait: float) -> float:
    """Wait until no request of the current task is drained under the slot that it owns: for how many seconds.

    Always a checkpoint. Raises WaitTooLong when that takes longer than ``max_wait`` seconds.
    """
    await checkpoint()
    loan = owned._loan
    if loan is None or loan.drained is None:
        return 0.0
    start = anyio.current_time()
    with anyio.CancelScope(deadline=anyio.current_time() + max_wait) as scope:
        await loan.drained.wait()
    if scope.cancelled_caught:
        raise WaitTooLong(
            f"{loan.purpose}, which was abandoned, is still drained under the slot of gate {owned.gate.name!r} that "
            f"this task owns: waited {max_wait:.3g} s"
        )
    return anyio.current_time() - start
