"""A server to test against: it speaks OpenAI's HTTP API, runs one inference at a time, answers with an echo.

An echo, not a model: every answer says so in its field ``model``. What it imitates is how a local inference
server behaves towards its clients, as ``mlx_lm.server`` was measured: one generator, first come first served,
an unbounded queue, and a plain request that runs to its last token for a client who has long gone.

`inference_server` runs it as a process of its own; `serve_inference` runs it in this process. ``/status``
tells what the generator does, also while it is busy.

A client counts as gone when its side of the connection is closed, even if only for sending.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import Any, Final, cast

import h11
import trio

from trio_mlxgate._echo_book import EchoStatus, Job, JobBook, JobStatus
from trio_mlxgate._echo_process import InferenceServer, command_line, inference_server
from trio_mlxgate._echo_protocol import (
    ECHO_MODEL,
    Answer,
    EchoSettings,
    Endpoint,
    InferenceRequest,
    OnDisconnect,
    RequestRefused,
    models,
    parse_inference,
    route,
)

__all__ = [
    "ECHO_MODEL",
    "EchoSettings",
    "EchoStatus",
    "InferenceServer",
    "JobStatus",
    "OnDisconnect",
    "command_line",
    "inference_server",
    "serve_inference",
]

_logger = logging.getLogger("trio_mlxgate.echo_server")

_RECEIVE_SIZE: Final = 65536
# Bytes of a next request that are taken in while an answer is under way; beyond, the client has to wait.
_MAX_READ_AHEAD: Final = 1 << 20
_MAX_HEADERS: Final = 65536
_LINGER: Final = 1.0


# --- the generator -----------------------------------------------------------------------------------------


class _Generator:
    """The one thing that makes tokens, as a GPU would: the book decides, here is the clock and the waking."""

    def __init__(self, settings: EchoSettings) -> None:
        self._book = JobBook(settings)
        self._epoch = trio.current_time()
        self._arrival = trio.Event()
        self._progress: dict[int, trio.lowlevel.ParkingLot] = {}
        self._scope = trio.CancelScope()

    def _now(self) -> float:
        return trio.current_time() - self._epoch

    def status(self) -> EchoStatus:
        return self._book.status(self._now())

    def submit(self, request: InferenceRequest) -> Job:
        """Queue a job. It runs whether or not somebody waits for it, until `leave` says otherwise."""
        job = self._book.accept(request, self._now())
        self._progress[job.number] = trio.lowlevel.ParkingLot()
        self._arrival.set()
        return job

    def leave(self, job: Job) -> None:
        """The job's client has gone. Without effect on a job that is over."""
        was_running = job is self._book.running
        self._book.leave(job, self._now())
        if job.over:
            self._progress.pop(job.number, None)
            if was_running:
                self._scope.cancel()

    async def wait_made(self, job: Job, count: int) -> None:
        """Wait until the job has made ``count`` tokens. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while job.made < count:
            await self._progress[job.number].park()

    async def run(self) -> None:
        """Work off the queue, for ever. A checkpoint for every job and token, and while the queue is empty."""
        while True:
            # Made before the look at the queue, so that it is set by an arrival after that look and by no other.
            self._arrival = trio.Event()
            job = self._book.start_next(self._now())
            if job is None:
                await self._arrival.wait()
            else:
                await self._generate(job)

    async def _generate(self, job: Job) -> None:
        """Make the job's tokens until it is over. A checkpoint."""
        progress = self._progress[job.number]
        with trio.CancelScope() as self._scope:
            await trio.lowlevel.checkpoint()
            while not job.over:
                await trio.sleep_until(self._epoch + self._book.next_token_due(job))
                # The job may have been stopped in the same pass that ended the sleep; the book knows.
                self._book.make_token(job, self._now())
                progress.unpark_all()
        self._progress.pop(job.number, None)


# --- one connection ----------------------------------------------------------------------------------------


class _Connection:
    """One client's connection: requests come in one after the other, and each gets its answer."""

    def __init__(self, stream: trio.SocketStream, settings: EchoSettings, generator: _Generator) -> None:
        self._stream = stream
        self._settings = settings
        self._generator = generator
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADERS)

    async def serve(self) -> None:
        """Answer until either side closes. A checkpoint. Whatever the client does, only a cancel gets out."""
        await trio.lowlevel.checkpoint()
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The client has gone.
        except Exception:
            # A mistake of ours in one exchange must not end the others' requests.
            _logger.exception("an exchange failed, its connection is closed")

    async def _exchange(self) -> bool:
        """One request and its answer. A checkpoint. Returns whether the connection can take another one."""
        try:
            event = await self._next_event()
            if not isinstance(event, h11.Request):
                return False  # Closed between two requests.
            try:
                body = await self._read_body(event)
                await self._answer(event, body)
            except RequestRefused as refused:
                await self._send_refusal(refused, head=event.method == b"HEAD")
        except h11.RemoteProtocolError as error:
            message = f"this is not HTTP as this server knows it: {error}"
            await self._send_refusal(RequestRefused(error.error_status_hint, "malformed_http", message), close=True)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            return True
        if self._http.their_state is not h11.DONE:
            await self._linger()
        return False

    async def _answer(self, request: h11.Request, body: bytes) -> None:
        method = request.method.decode("latin-1")
        endpoint = route(method, request.target.decode("latin-1"))
        if endpoint.is_inference:
            await self._answer_inference(parse_inference(body, endpoint))
            return
        content: Any
        if endpoint is Endpoint.STATUS:
            content = self._generator.status()
        elif endpoint is Endpoint.MODELS:
            content = models(int(time.time()))
        else:
            content = {"status": "ok"}
        await self._send_json(200, content, head=method == "HEAD")

    async def _answer_inference(self, request: InferenceRequest) -> None:
        """Queue the job and send its answer; if the client goes, tell the generator and give up. A checkpoint."""
        job = self._generator.submit(request)
        answer = Answer(settings=self._settings, request=request, number=job.number, created=int(time.time()))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                # Sending may find the client gone before the watcher does.
                with contextlib.suppress(trio.BrokenResourceError):
                    await (self._send_stream if request.stream else self._send_plain)(job, answer)
                nursery.cancel_scope.cancel()
        finally:
            self._generator.leave(job)

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Read ahead while an answer is under way; cancel ``scope`` when the client goes. A checkpoint."""
        await trio.lowlevel.checkpoint()
        read_ahead = 0
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self._stream.receive_some(_RECEIVE_SIZE):
                # h11 only keeps it until the next cycle.
                self._http.receive_data(data)
                read_ahead += len(data)
                if read_ahead > _MAX_READ_AHEAD:
                    return  # From here on only sending notices that the client has gone.
        scope.cancel()

    async def _send_plain(self, job: Job, answer: Answer) -> None:
        await self._generator.wait_made(job, job.tokens)
        await self._send_json(200, answer.plain())

    async def _send_stream(self, job: Job, answer: Answer) -> None:
        headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
        # At once, as mlx_lm.server does for a job that has to wait: headers are no sign that its turn has come.
        await self._send(h11.Response(status_code=200, headers=self._headers(headers)))
        sent = 0
        while sent < job.tokens:
            await self._generator.wait_made(job, sent + 1)
            # All that is there: a client who reads slowly holds up itself, never the generator.
            made = job.made
            events = [h11.Data(data=answer.token_event(index)) for index in range(sent, made)]
            if made == job.tokens:
                await self._send(*events, h11.Data(data=answer.last_events()), h11.EndOfMessage())
            else:
                await self._send(*events)
            sent = made

    async def _read_body(self, request: h11.Request) -> bytes:
        """The whole body. A checkpoint. Raises `RequestRefused` (413) for one above the limit."""
        limit = self._settings.max_body
        too_large = RequestRefused(413, "body_too_large", f"the body is larger than {limit} bytes, the limit here")
        for name, value in request.headers:
            # Refused before it is sent: a client that waits for 100-continue never sends it.
            if name == b"content-length" and int(value) > limit:
                raise too_large
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > limit:
                raise too_large
        return bytes(body)

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        """h11's next event. A checkpoint. Raises `h11.RemoteProtocolError`."""
        await trio.lowlevel.checkpoint()
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._stream.receive_some(_RECEIVE_SIZE))
        return cast("h11.Event | type[h11.PAUSED]", event)

    async def _send_refusal(self, refused: RequestRefused, *, head: bool = False, close: bool = False) -> None:
        extra = [("allow", refused.allow)] if refused.allow else []
        # An unread rest of the body would be taken for the next request.
        if close or self._http.their_state is not h11.DONE:
            extra.append(("connection", "close"))
        await self._send_json(refused.status, refused.body(), extra, head=head)

    async def _send_json(
        self, status: int, content: Any, extra: list[tuple[str, str]] | None = None, *, head: bool = False
    ) -> None:
        data = json.dumps(content).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(data))), *(extra or [])]
        response = h11.Response(status_code=status, headers=self._headers(headers))
        await self._send(response, *([] if head else [h11.Data(data=data)]), h11.EndOfMessage())

    @staticmethod
    def _headers(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [("server", "trio-mlxgate-echo"), *headers]

    async def _send(self, *events: h11.Event) -> None:
        """Send these together. A checkpoint."""
        await self._stream.send_all(b"".join(self._http.send(event) or b"" for event in events))

    async def _linger(self) -> None:
        """Let the client read our answer before the connection goes. A checkpoint of at most a second.

        Closing while bytes of the client are unread resets the connection, and it may lose the answer.
        """
        with trio.move_on_after(_LINGER):
            await self._stream.send_eof()
            while await self._stream.receive_some(_RECEIVE_SIZE):
                pass


async def serve_inference(
    settings: EchoSettings | None = None, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run an echo server in this task until it is cancelled.

    To be started with ``url = await nursery.start(serve_inference, settings)``: the started value is the server's
    URL, such as ``http://127.0.0.1:51234``. Raises `OSError` if the address can't be listened on. Cancelling
    closes all connections at once. A checkpoint.
    """
    settings = settings or EchoSettings()
    listeners = await trio.open_tcp_listeners(settings.port, host=settings.host, backlog=settings.backlog)
    generator = _Generator(settings)

    async def serve_connection(stream: trio.SocketStream) -> None:
        await _Connection(stream, settings, generator).serve()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(generator.run)
        await nursery.start(trio.serve_listeners, serve_connection, listeners)
        task_status.started(_url_of(listeners[0].socket.getsockname()))


def _url_of(address: tuple[Any, ...]) -> str:
    """The URL at which a listening socket is reached from this machine."""
    host, port = address[:2]
    # A server that listens everywhere is reached by the loopback address.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
