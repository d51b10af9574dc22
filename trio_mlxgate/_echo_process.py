"""The echo server as a process of its own: started, asked for its status, and ended, by whoever tests against it."""

from __future__ import annotations

import json
import sys
import tempfile
from subprocess import PIPE
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import attrs
import h11
import trio

from trio_mlxgate._echo_protocol import EchoSettings, Endpoint, OnDisconnect

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from trio_mlxgate._echo_book import EchoStatus

_RECEIVE_SIZE: Final = 65536
_STOP_GRACE: Final = 5.0
_STATUS_TIMEOUT: Final = 10.0


def command_line(settings: EchoSettings) -> list[str]:
    """The options of ``trio-mlxgate echo-server`` that give these settings."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in attrs.asdict(settings, recurse=False).items()]


class InferenceServer:
    """An echo server in a process of its own, for the time of an ``async with`` block: see `inference_server`."""

    def __init__(self, settings: EchoSettings, *, startup_timeout: float) -> None:
        self.settings = settings
        """The settings that it was started with."""
        self._startup_timeout = startup_timeout
        self._entered = False
        self._url = ""
        self._process: trio.Process | None = None
        self._stderr: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, as ``http://127.0.0.1:51234``. Raises `RuntimeError` before it has started."""
        if not self._url:
            raise RuntimeError("the server has not started: use it as 'async with inference_server() as server'")
        return self._url

    @property
    def base_url(self) -> str:
        """The same with ``/v1``, as OpenAI's clients take it."""
        return self.url + "/v1"

    @property
    def pid(self) -> int:
        """The process's id. Raises `RuntimeError` before it has started."""
        return self._started_process().pid

    @property
    def returncode(self) -> int | None:
        """The process's exit status, negative for a signal; None while it runs."""
        return self._started_process().returncode

    def kill(self) -> None:
        """End the process at once, in the middle of whatever it does. It may have gone already.

        The signal is on its way when this returns; `wait` returns when the process has gone.
        """
        self._started_process().kill()

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit status, negative for a signal. A checkpoint."""
        return await self._started_process().wait()

    async def status(self) -> EchoStatus:
        """What ``/status`` says now. A checkpoint.

        Raises `ConnectionError` if the server has gone, and `trio.TooSlowError` if it says nothing for 10 s.
        """
        with trio.fail_after(_STATUS_TIMEOUT):
            return cast("EchoStatus", await _get_json(self.url, Endpoint.STATUS.value))

    async def __aenter__(self) -> Self:
        """Start the process and wait until it listens. A checkpoint; a cancel ends the process.

        Raises `RuntimeError`, with what the process wrote to its stderr, if it does not start in time.
        """
        if self._entered:
            raise RuntimeError("an inference_server() can be entered once; make another one")
        self._entered = True
        # A file, not a pipe: a pipe that nobody reads fills up, and the server would stop at its next line.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _stop
        # -P: a file trio.py or json.py in the current folder is not what the server means to import.
        command = [sys.executable, "-P", "-m", "trio_mlxgate", "echo-server", "--until-stdin-closes"]
        command += command_line(self.settings)
        started = False
        try:
            # We hold the write end of its stdin. However we end, the system closes it, and the server goes.
            self._process = await trio.lowlevel.open_process(command, stdin=PIPE, stdout=PIPE, stderr=self._stderr)
            self._url = await self._read_url(self._process)
            started = True
        finally:
            if not started:
                with trio.move_on_after(2 * _STOP_GRACE, shield=True):
                    await self._stop(replay=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the process: asked to, then killed when it has not gone in 5 s. A checkpoint, shielded, bounded.

        What it wrote to its stderr comes out on ours. Exceptions of the block pass as they are.
        """
        with trio.move_on_after(2 * _STOP_GRACE, shield=True):
            await self._stop(replay=True)

    def _started_process(self) -> trio.Process:
        if self._process is None:
            raise RuntimeError("the server has not started: use it as 'async with inference_server() as server'")
        return self._process

    async def _read_url(self, process: trio.Process) -> str:
        """Wait for the server's first line. A checkpoint."""
        line = b""
        with trio.move_on_after(self._startup_timeout) as scope:
            line = await _read_line(process)
            if not line:
                await process.wait()
        if scope.cancelled_caught:
            problem = f"did not start in {self._startup_timeout:g} s (startup_timeout)"
        elif not line:
            problem = f"ended with status {process.returncode} instead of listening"
        else:
            return str(json.loads(line)["url"])
        raise RuntimeError(f"the echo server {problem}: {self._said() or 'it wrote nothing to stderr'}")

    def _said(self) -> str:
        """What the process has written to its stderr."""
        assert self._stderr is not None
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()

    async def _stop(self, *, replay: bool) -> None:
        """End the process and close all that belongs to it. A checkpoint; the caller shields and bounds it."""
        await trio.lowlevel.checkpoint()
        process = self._process
        try:
            if process is not None:
                process.terminate()
                with trio.move_on_after(_STOP_GRACE):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        finally:
            for pipe in (process.stdin, process.stdout) if process is not None else ():
                if pipe is not None:
                    with trio.move_on_after(_STOP_GRACE, shield=True):
                        await trio.aclose_forcefully(pipe)
            if self._stderr is not None:
                if replay and (said := self._said()):
                    sys.stderr.write(said + "\n")
                self._stderr.close()


async def _read_line(process: trio.Process) -> bytes:
    """The first line of the process's stdout, or b"" if it ends before there is one. A checkpoint."""
    assert process.stdout is not None
    line = bytes(await process.stdout.receive_some())
    while line and not line.endswith(b"\n"):
        more = await process.stdout.receive_some()
        if not more:
            return b""
        line += more
    return line


async def _get_json(url: str, path: str) -> Any:
    """The JSON that a GET answers. A checkpoint. Raises `ConnectionError` if there is no answer.

    By hand and not with httpx: the server's process imports this module too, and should start fast.
    """
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    client = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=path, headers=[("host", where.netloc), ("connection", "close")])
    body = bytearray()
    try:
        async with await trio.open_tcp_stream(where.hostname, where.port) as stream:
            await stream.send_all((client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b""))
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    client.receive_data(await stream.receive_some(_RECEIVE_SIZE))
                elif isinstance(event, h11.Data):
                    body += event.data
    except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise ConnectionError(f"the echo server at {url} does not answer: {error}") from error
    return json.loads(body)


def inference_server(
    *,
    service_time: float = 0.35,
    tokens: int = 8,
    plain_on_disconnect: OnDisconnect = "finish",
    stream_on_disconnect: OnDisconnect = "stop",
    host: str = "127.0.0.1",
    port: int = 0,
    backlog: int = 128,
    max_body: int = 1 << 20,
    startup_timeout: float = 30.0,
) -> InferenceServer:
    """An echo server in a process of its own, for ``async with inference_server() as server``.

    An echo, not a model. It runs one inference at a time, first come first served, and listens when the block
    begins. When the block has ended, however it ended, so has the process; and it goes if this process dies.

    Args:
      service_time: seconds of a whole inference of ``tokens`` tokens; one token takes ``service_time / tokens``.
      tokens: words of an answer, unless the request's own maximum is lower.
      plain_on_disconnect: what becomes of a plain request whose client has gone, running or still waiting.
        ``"finish"``: it takes its turn and runs to its last token, for nobody. ``"stop"``: it is over at once. The
        defaults, here and for streams, are how ``mlx_lm.server`` was measured.
      stream_on_disconnect: the same for a streamed request.
      host: the address to listen on.
      port: the port to listen on; 0 is any free one.
      backlog: how many connections may wait to be accepted.
      max_body: bytes of the largest request body.
      startup_timeout: seconds that the process may take until it listens.

    Raises:
      TypeError, ValueError: at once, for a bad setting.
      RuntimeError: on entering, if the process does not come up. Errors of the block arrive bare, never in an
        ``ExceptionGroup``.
    """
    settings = EchoSettings(
        service_time=service_time,
        tokens=tokens,
        plain_on_disconnect=plain_on_disconnect,
        stream_on_disconnect=stream_on_disconnect,
        host=host,
        port=port,
        backlog=backlog,
        max_body=max_body,
    )
    if not startup_timeout > 0:
        raise ValueError(f"startup_timeout is {startup_timeout!r}: give a number of seconds above 0")
    return InferenceServer(settings, startup_timeout=startup_timeout)
