"""Servers that do as they are told: a transport without sockets for the virtual clock, and one with sockets."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import attrs
import httpx
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DONE: Final = b"data: [DONE]\n\n"
KEEPALIVE: Final = b": keepalive 2048/4096\n\n"
USAGE: Final = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(text: str | None = None, *, finish: str | None = None, **delta: Any) -> bytes:
    """The event of one token."""
    said = {**delta, **({} if text is None else {"content": text})}
    return event({"id": "chatcmpl-1", "model": "theirs", "choices": [choice(said, finish)]})


def choice(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def usage_chunk() -> bytes:
    return event({"choices": [], "usage": USAGE})


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def plain_answer(text: str, **more: Any) -> bytes:
    chosen = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return json.dumps({"id": "chatcmpl-1", "choices": [chosen], "usage": USAGE}).encode()


def good(*texts: str, every: float = 0.0) -> tuple[tuple[float, bytes], ...]:
    """The parts of a whole answer: a token every so many seconds."""
    tokens = [(every, chunk(text)) for text in texts]
    return (*tokens, (0.0, chunk(finish="stop")), (0.0, usage_chunk()), (0.0, DONE))


@attrs.define
class Answer:
    """What becomes of one request."""

    parts: Sequence[tuple[float, bytes]] = ()
    """The body: after how many seconds each part comes."""

    connect_after: float = 0.0
    head_after: float = 0.0
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=lambda: {"content-type": "text/event-stream"})
    broken: Exception | None = None
    """Raised in place of a head."""

    end_after: float = 0.0
    """Seconds from the last part to the end of the body."""

    end: Exception | None = None
    """Raised in place of the end."""

    close_after: float = 0.0
    traced: bool = True
    """Whether it tells of its progress, as transports over httpcore do."""


@attrs.define(eq=False)
class ScriptedTransport(httpx.AsyncBaseTransport):
    """Answers one request after the other as was written; the last answer serves all further ones."""

    answers: list[Answer]
    requests: list[httpx.Request] = attrs.field(factory=list)
    sent_at: list[float] = attrs.field(factory=list)
    closed_at: list[float] = attrs.field(factory=list)
    open: int = 0
    """Requests that have been sent, and whose bodies have not been closed."""
    most_open: int = 0

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.requests.append(request)
        self.sent_at.append(trio.current_time())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._connect(request, answer)
            await trio.sleep(answer.head_after)
            if answer.broken is not None:
                raise answer.broken
        except BaseException:
            self.open -= 1
            raise
        return httpx.Response(answer.status, headers=answer.headers, stream=ScriptedBody(self, answer))

    async def _connect(self, request: httpx.Request, answer: Answer) -> None:
        async def tell(what: str) -> None:
            if answer.traced:
                await request.extensions["trace"](what, {})

        limit = request.extensions["timeout"]["connect"]
        await tell("connection.connect_tcp.started")
        with trio.move_on_after(float("inf") if limit is None else limit) as scope:
            await trio.sleep(answer.connect_after)
        if scope.cancelled_caught:
            raise httpx.ConnectTimeout("")
        await tell("http11.send_request_headers.started")
        await tell("http11.send_request_body.complete")


class ScriptedBody(httpx.AsyncByteStream):
    def __init__(self, transport: ScriptedTransport, answer: Answer) -> None:
        self._transport = transport
        self._answer = answer
        self._parts = iter(answer.parts)
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for after, part in self._parts:
            await trio.sleep(after)
            return part
        await trio.sleep(self._answer.end_after)
        if self._answer.end is not None:
            raise self._answer.end
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await trio.sleep(self._answer.close_after)
        if not self._closed:
            self._closed = True
            self._transport.open -= 1
            self._transport.closed_at.append(trio.current_time())


# ---- with sockets ----

Handler: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]
HEAD: Final = b"HTTP/1.0 200 OK\r\nServer: BaseHTTP/0.6 Python/3.11\r\nContent-type: text/event-stream\r\n\r\n"


@attrs.define
class RawServer:
    """A server that handles one connection after the other as was written; the last handler serves all further ones."""

    handlers: list[Handler]
    port: int = 0
    requests: list[bytes] = attrs.field(factory=list)
    """Head and body of each request."""
    open: int = 0
    most_open: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, stream: trio.SocketStream) -> None:
        handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            self.requests.append(await read_request(stream))
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The client has left.
        finally:
            self.open -= 1


async def read_request(stream: trio.SocketStream) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        part = await stream.receive_some()
        if not part:
            return got
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += await stream.receive_some()
    return head + b"\r\n\r\n" + body


@asynccontextmanager
async def raw_server(*handlers: Handler) -> AsyncIterator[RawServer]:
    async with trio.open_nursery() as nursery:
        server = RawServer(list(handlers))
        listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


def sends(*parts: bytes) -> Handler:
    """Sends these and closes the connection, as HTTP/1.0 has it."""

    async def handle(stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)
            await trio.sleep(0.001)
        await stream.send_eof()
        # Closing with something unread would reset the connection.
        await stream.receive_some()

    return handle


def sends_and_waits(*parts: bytes) -> Handler:
    """Sends these and then nothing, until the client leaves."""

    async def handle(stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)
        while await stream.receive_some():
            pass

    return handle


async def resets(stream: trio.SocketStream) -> None:
    """Resets the connection."""
    await trio.lowlevel.checkpoint()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def hangs_up(stream: trio.SocketStream) -> None:
    """Closes the connection without a word."""
    await stream.aclose()
