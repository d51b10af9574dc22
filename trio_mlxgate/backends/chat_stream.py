"""One answer as it comes: the slot, the connection, the limits, and what each failure is called."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import httpx
import trio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.backends._failures import Failures
from trio_mlxgate.backends._wire import CALL, WireCall
from trio_mlxgate.core.completions import CompletionAssembly, Delta, refusal_of
from trio_mlxgate.core.event_stream import EventStreamParser
from trio_mlxgate.errors import BackendError, BackendRefused, GateRefused, MalformedAnswer, TruncatedAnswer
from trio_mlxgate.httpx import HoldTimeout
from trio_mlxgate.options import EXTENSION, current_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from trio_mlxgate.backends._chat_call import ChatCall
    from trio_mlxgate.backends._line import Line
    from trio_mlxgate.core.completions import Completion

_AFTERWARDS: Final = 2.0
"""Seconds for what follows the finish_reason, the usage and the end mark: the answer is whole without these."""

_REFUSAL_TIME: Final = 5.0
_LONGEST_REFUSAL: Final = 1 << 16
_LONGEST_PLAIN: Final = 1 << 26


class ChatStream:
    """An answer that is read piece by piece, made by :meth:`ModelAdapter.stream`.

    ::

        async with adapter.stream("Hello?") as stream:
            async for delta in stream:
                print(delta.text, end="")
        print(stream.completion.usage)

    Leaving the block, in whichever way and at any time, closes the connection and gives the slot back. The server
    notices, and stops. To be used once, and read by one task at a time.
    """

    def __init__(self, call: ChatCall) -> None:
        self._call = call
        self._wire = WireCall(call.limits.first_token if call.streamed else math.inf)
        self._failures = Failures(backend=call.backend, limits=call.limits, hide=call.hide, wire=self._wire)
        self._assembly = CompletionAssembly()
        self._parser = EventStreamParser()
        self._deltas: deque[Delta] = deque()
        self._plain: bytearray | None = None
        self._line: Line | None = None
        self._body: Any = None
        self._parts: AsyncIterator[bytes] | None = None
        self._used = False
        self._reading = False
        self._waited: float | None = None
        self._first_token: float | None = None
        self._failure: BackendError | None = None
        self._completion: Completion | None = None

    def __repr__(self) -> str:
        state = "new" if not self._used else "whole" if self._completion else "open" if self._body else "closed"
        return f"<{type(self).__name__} of {self._call.backend!r}: {state}, {len(self.text)} characters>"

    @property
    def text(self) -> str:
        """What has been read so far."""
        return self._assembly.text

    @property
    def waited(self) -> float:
        """For how many seconds the request stood in the queue of the gate.

        Raises:
          RuntimeError: the stream has not been entered.
        """
        if self._waited is None:
            raise RuntimeError("how long the request waited is known inside of 'async with adapter.stream(...)'")
        return self._waited

    @property
    def granted(self) -> bool:
        """Whether the request has had its slot: it stands in the queue no more."""
        return not math.isnan(self._wire.granted_at)

    @property
    def completion(self) -> Completion:
        """The whole answer.

        Raises:
          RuntimeError: it isn't whole: it was not read to its end, or failed.
        """
        if self._completion is None:
            raise RuntimeError(
                "the answer is whole after the last delta: read the stream to its end first; 'text' has what is there"
            )
        return self._completion

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Wait for the slot, send the request, and wait for the head of the answer; not for its first token.

        Always a checkpoint. If it is cancelled or fails, the slot is given back.

        Raises:
          RuntimeError: the stream was used before.
          GateRefused: the gate doesn't let it in; nothing was sent.
          BackendError, trio.ClosedResourceError: see :meth:`ModelAdapter.stream`.
        """
        if self._used:
            raise RuntimeError("a stream is used once: call adapter.stream(...) again for another answer")
        line, request = self._call.line(), self._request()
        self._used, self._line = True, line
        await trio.lowlevel.checkpoint()
        with line.use():
            await self._open(line, request)
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close the connection and give the slot back. Always a checkpoint, and can't be cancelled.

        An answer whose ``finish_reason`` was read is whole, also if nobody has waited for what follows that.
        """
        await self._close()  # noqa: ASYNC102 - shields itself
        if self._completion is None and self._assembly.finish_reason is not None:
            self._complete()

    def __aiter__(self) -> Self:
        return self

    @enable_ki_protection
    async def __anext__(self) -> Delta:
        """The next piece of the answer. Always a checkpoint. If the wait for it is cancelled, the stream is closed.

        Raises:
          BackendError: see :meth:`ModelAdapter.stream`. The stream is closed then.
          RuntimeError: the stream has not been entered.
          trio.BusyResourceError: another task is waiting for the next piece.
          trio.ClosedResourceError: it, or its adapter, was closed before its end.
        """
        if self._waited is None:
            raise RuntimeError("a stream is entered before it is read: 'async with adapter.stream(...) as stream:'")
        if self._reading:
            raise trio.BusyResourceError("another task is reading this stream")
        # Before the first checkpoint: two may ask in one step.
        self._reading = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._deltas:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                if self._completion is not None:
                    raise StopAsyncIteration
                await self._read_on()
            return self._deltas.popleft()
        finally:
            self._reading = False

    async def _read_on(self) -> None:
        """Take in the next part, or close the stream. A checkpoint."""
        assert self._line is not None
        if self._body is None:
            raise trio.ClosedResourceError("this stream was closed before its end: its answer is not whole")
        if self._line.closed:
            await self._close()
            if self._assembly.finish_reason is None:
                raise self._line.refusal()
            self._complete()
            return
        with self._line.use():
            try:
                await self._read()
            except BaseException:
                await self._close()  # noqa: ASYNC102 - shields itself
                raise

    # ---- the request ----

    def _request(self) -> httpx.Request:
        call = self._call
        options = call.options
        if options.hold_timeout is None:
            around = current_options().hold_timeout
            options = attrs.evolve(options, hold_timeout=call.hold_timeout if around is None else around)
        self._failures.hold_timeout = options.final_hold_timeout
        # The silence is ours to measure, and the gate keeps the number of connections in bounds.
        connect = None if math.isinf(call.limits.connect) else call.limits.connect
        timeouts = {"connect": connect, "read": None, "write": None, "pool": None}
        extensions = {EXTENSION: options, CALL: self._wire, "timeout": timeouts}
        return httpx.Request("POST", call.url, headers=call.headers, content=call.body, extensions=extensions)

    async def _open(self, line: Line, request: httpx.Request) -> None:
        """Send the request, and see what kind of answer it is. A checkpoint."""
        try:
            response = await line.gated.handle_async_request(request)
        except GateRefused:
            raise
        except (httpx.TransportError, HoldTimeout) as error:
            raise self._failures.named(self._told(error)) from error
        self._body = response.stream
        self._waited = response.extensions[EXTENSION]["waited"]
        try:
            # A body that is in memory is iterated by a generator, others by themselves.
            self._parts = aiter(response.stream)
            await self._begin(response)
        except BaseException:
            await self._close()  # noqa: ASYNC102 - shields itself
            raise

    async def _begin(self, response: httpx.Response) -> None:  # noqa: ASYNC910 - who calls it has one
        """See from the head what kind of answer it is."""
        if not response.is_success:
            raise self._failures.named(await self._refusal(response))
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise self._failures.named(
                MalformedAnswer(f"an answer of type {kind}: is there an inference server at this URL?")
            )
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise self._failures.named(MalformedAnswer(f"the answer is encoded as {coding!r}, which nobody asked for"))
        # Some servers answer in one piece although they were asked for a stream.
        if kind == "application/json" or (not self._call.streamed and kind != "text/event-stream"):
            self._plain = bytearray()

    async def _refusal(self, response: httpx.Response) -> BackendRefused:
        """The error that the server answers with. A checkpoint."""
        body = bytearray()
        await trio.lowlevel.checkpoint()
        # What can't be read need not be told.
        with trio.move_on_after(_REFUSAL_TIME), contextlib.suppress(httpx.TransportError, HoldTimeout):  # noqa: ASYNC912
            while len(body) < _LONGEST_REFUSAL:
                part = await self._next_part()
                if part is None:
                    break
                body += part
        message = refusal_of(bytes(body[:_LONGEST_REFUSAL]), reason=response.reason_phrase)
        if response.is_redirect:
            message = "a redirect, which is not followed: is this the base_url of the server?"
        return BackendRefused(
            f"the server answered HTTP {response.status_code}: {message}",
            retry_after=_seconds(response.headers.get("retry-after", "")),
            upstream_status=response.status_code,
            upstream_message=message,
        )

    def _told(self, error: Exception) -> BackendError:
        begun = self._first_token is not None
        return self._failures.told(error, silence=self._silence(), begun=begun, text=self.text)

    # ---- reading ----

    async def _read(self) -> None:
        """Take in the next part of the body, and what that brings. A checkpoint."""
        failure: BackendError | None = None
        silence = self._silence()
        part: bytes | None = None
        with trio.CancelScope(deadline=trio.current_time() + silence) as scope:
            await trio.lowlevel.checkpoint()
            try:
                part = await self._next_part()
            except (httpx.TransportError, HoldTimeout) as error:
                failure = self._told(error)
                failure.__cause__ = error
        if scope.cancelled_caught:
            failure = self._failures.too_silent(silence, begun=self._first_token is not None, text=self.text)
        if failure is None:
            failure = self._take(part)
        if self._assembly.finish_reason is not None and failure is not None:
            # Whatever went wrong after that, the answer is whole.
            failure, part = None, None
        if failure is not None:
            await self._close()
            self._failure = self._failures.named(failure)
        elif part is None:
            await self._close()
            self._complete()

    async def _next_part(self) -> bytes | None:
        """The next part of the body; None: it has ended. A checkpoint."""
        assert self._parts is not None
        try:
            return await anext(self._parts)
        except StopAsyncIteration:
            return None  # noqa: ASYNC910 - the end was found by way of a checkpoint

    def _silence(self) -> float:
        """For how many seconds the server may be silent now."""
        limits = self._call.limits
        if self._assembly.finish_reason is not None:
            return min(limits.gap, _AFTERWARDS)
        if not self._call.streamed:
            return math.inf
        return limits.first_token if self._first_token is None else limits.gap

    def _take(self, part: bytes | None) -> BackendError | None:
        """What a part of the body brings; None: it has ended. Returns what is wrong with it, or with the end."""
        try:
            if self._plain is not None:
                self._take_plain(self._plain, part)
            elif part is not None:
                for event in self._parser.feed(part):
                    self._take_delta(self._assembly.feed(event))
            else:
                # What lacks its end may be half of it.
                with contextlib.suppress(MalformedAnswer):
                    for event in self._parser.finish():
                        self._take_delta(self._assembly.feed(event))
            if part is None:
                self._assembly.completion()
        except BackendError as error:
            return error
        return None

    def _take_plain(self, body: bytearray, part: bytes | None) -> None:
        if part is not None:
            body += part
            if len(body) > _LONGEST_PLAIN:
                raise MalformedAnswer(f"the answer has more than {_LONGEST_PLAIN} bytes: this is no answer")
            return
        end = bytes(body[-64:]).rstrip()
        if not end or (bytes(body[:64]).lstrip().startswith(b"{") and not end.endswith(b"}")):
            # Where the end of the connection is the end of the answer, HTTP can't tell that it was cut.
            raise TruncatedAnswer("the answer was cut: its JSON has no end")
        self._take_delta(self._assembly.feed_plain(bytes(body)))

    def _take_delta(self, delta: Delta | None) -> None:
        if delta is None:
            return
        self._deltas.append(delta)
        if delta.is_token:
            now = trio.current_time()
            self._call.on_token(now)
            if self._first_token is None and self._plain is None:
                self._first_token = now - self._wire.granted_at

    # ---- the end ----

    def _complete(self) -> None:
        self._completion = self._assembly.completion(
            backend=self._call.backend,
            model=self._call.model,
            waited=self.waited,
            first_token=self._first_token,
            seconds=trio.current_time() - self._wire.granted_at,
        )

    async def _close(self) -> None:
        """Close the connection and give the slot back. Always a checkpoint, and can't be cancelled."""
        body, self._body = self._body, None
        parts, self._parts = self._parts, None
        await trio.lowlevel.cancel_shielded_checkpoint()
        # It goes, whatever it has to say about it.
        with contextlib.suppress(httpx.TransportError):
            if parts is not None and parts is not body:
                close = getattr(parts, "aclose", None)
                if close is not None:
                    await close()
            if body is not None:
                await body.aclose()


def _seconds(text: str) -> float | None:
    """The seconds of a Retry-After; None: there is none, or it is a date."""
    return float(text) if text.strip().isascii() and text.strip().isdigit() and len(text) < 10 else None
