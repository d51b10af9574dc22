"""The prober against a server whose every byte is scripted, over real sockets."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import httpx
import hypothesis
import hypothesis.strategies as st
import pytest
import trio
from trio.testing import MockClock

from tests.backends import answers
from trio_mlxgate.backends.detecting import kind_named
from trio_mlxgate.backends.kinds.base import Looking, Reply, ServerKind
from trio_mlxgate.backends.prober import MOST_READ, Prober
from trio_mlxgate.core.readings import Health, Reading, Status

if TYPE_CHECKING:
    from tests.backends.answers import Site

integration = pytest.mark.integration
LIMIT: Final = 10.0
"""Seconds for a test that should take a fraction of one."""

Script: TypeAlias = Callable[[str, trio.SocketStream], Awaitable[None]]
"""Told the path; sends what it likes. The connection is closed when it returns."""


@attrs.define
class Scripted:
    """A server that sends what its script says."""

    script: Script
    port: int = 0
    asked: list[str] = attrs.field(factory=list)
    requests: list[bytes] = attrs.field(factory=list)
    open: int = 0
    most_open: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, stream: trio.SocketStream) -> None:
        self.open += 1
        self.connections += 1
        self.most_open = max(self.most_open, self.open)
        try:
            async with stream:
                request = b""
                while b"\r\n\r\n" not in request:
                    data = await stream.receive_some(4096)
                    if not data:
                        return
                    request += data
                    if request.startswith(b"\x16"):
                        request = b"GET tls\r\n\r\n"  # the beginning of a TLS handshake
                self.requests.append(request)
                self.asked.append(request.split()[1].decode())
                await self.script(self.asked[-1], stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1

    async def none_is_open(self) -> None:
        """Return when the server has seen the end of every connection."""
        while self.open:  # noqa: ASYNC110
            await trio.sleep(0.005)


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    server = Scripted(script)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
            server.port = listeners[0].socket.getsockname()[1]
            yield server
            nursery.cancel_scope.cancel()


def raw(reply: Reply) -> bytes:
    head = f"{reply.http_version} {reply.status} It is\r\ncontent-length: {len(reply.body)}\r\nconnection: close\r\n"
    return (head + "".join(f"{k}: {v}\r\n" for k, v in reply.headers.items()) + "\r\n").encode() + reply.body


def site_script(site: Site) -> Script:
    async def script(path: str, stream: trio.SocketStream) -> None:
        await stream.send_all(raw(site.answer(path)))

    return script


async def until_it_leaves(stream: trio.SocketStream) -> None:
    while await stream.receive_some(4096):
        pass


def sends(data: bytes, then_hang: bool = False) -> Script:
    async def script(path: str, stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        if then_hang:
            await until_it_leaves(stream)

    return script


OK: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n" + b'{"status": "ok"}'
MLX_LM: Final = kind_named("mlx-lm")


@integration
@pytest.mark.parametrize("site", answers.SITES, ids=lambda site: site.name)
async def test_every_known_server_over_a_real_socket(site: Site) -> None:
    async with scripted(site_script(site)) as server, Prober(server.url) as prober:
        reading = await prober.read()
        assert prober.kind is not None
        assert prober.kind.name == site.kind
        assert reading.health is (Health.DOWN if site.name.endswith(("dead", "loading")) else Health.UP)
        await server.none_is_open()
        assert server.most_open == 1
        for request in server.requests:
            assert request.startswith(b"GET /")
            assert b"accept-encoding: identity" in request.lower()


@integration
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (sends(b""), "Server disconnected"),
        (sends(b"\x00\xff garbage \r\n\r\n"), "broken"),
        (sends(b"HTTP/1.1 999999 OK\r\n\r\n"), "broken"),
        (sends(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), "broken"),
        (sends(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{"), "broken"),
        (sends(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n"), "broken"),
        (sends(b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 100_000 + b"\r\n"), "broken"),
        (sends(b"HTTP/1.1 301 Moved\r\nlocation: http://[::g]:x/\r\ncontent-length: 0\r\n\r\n"), "redirect"),
        (sends(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"), "redirect"),
        (sends(b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno"), "HTTP 500"),
        (sends(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\n\x1f\x8b\x08"), "should say"),
        (sends(b"HTTP/1.1 200 OK\r\ncontent-type: \xff\xfe; charset=nothing\r\ncontent-length: 1\r\n\r\n{"), "should"),
    ],
    ids=[
        *("closed at once", "garbage", "odd status", "broken off", "odd length", "odd chunks", "long headers"),
        *("redirect to nowhere", "redirect", "500", "bad gzip", "odd headers"),
    ],
)
async def test_whatever_it_sends_is_told_and_not_raised(script: Script, reason: str) -> None:
    async with scripted(script) as server, Prober(server.url, kind=MLX_LM) as prober:
        reading = await prober.read()
        assert (reading.health, reading.refused) == (Health.UNKNOWN, False)
        assert reason in reading.reason or (reason == "broken" and "got no answer that is HTTP" in reading.reason)
        assert len(server.asked) == 1
        await server.none_is_open()


@integration
@pytest.mark.parametrize(
    "script",
    [
        sends(b"", True),
        sends(OK[:30], True),
        sends(OK[:-3], True),
        sends(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, True),
    ],
    ids=["silent", "in the headers", "in the body", "continue"],
)
@pytest.mark.parametrize("kind", [None, MLX_LM], ids=["unknown", "known"])
async def test_a_hang_ends_with_the_limit(script: Script, kind: ServerKind | None) -> None:
    async with scripted(script) as server, Prober(server.url, kind=kind, timeout=0.2) as prober:
        start = trio.current_time()
        reading = await prober.read()
        assert 0.19 < trio.current_time() - start < 2
        assert (reading.health, reading.latency) == (Health.UNKNOWN, None)
        assert "no answer in time" in reading.reason
        assert len(server.asked) == 1
        await server.none_is_open()


@integration
async def test_a_slow_drip_does_not_outlast_the_limit() -> None:
    async def drip(path: str, stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.02)

    async with scripted(drip) as server, Prober(server.url, kind=MLX_LM, timeout=0.3) as prober:
        start = trio.current_time()
        assert (await prober.read()).health is Health.UNKNOWN
        assert trio.current_time() - start < 2
        await server.none_is_open()


@integration
async def test_a_body_without_end_is_read_to_its_limit() -> None:
    sent = 0

    async def flood(path: str, stream: trio.SocketStream) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(b"[" * 65536)
            sent += 65536

    async with scripted(flood) as server, Prober(server.url, kind=MLX_LM, timeout=5) as prober:
        reading = await prober.read()
        assert reading.health is Health.UNKNOWN
        assert "[[[" in reading.reason
        await server.none_is_open()
        assert MOST_READ <= sent < 32 * MOST_READ  # the rest was on its way


@integration
async def test_the_limit_holds_for_the_look_as_a_whole_and_what_is_known_by_then_is_told() -> None:
    async def slow(path: str, stream: trio.SocketStream) -> None:
        if path == "/metrics":
            await until_it_leaves(stream)
        await stream.send_all(raw(answers.LLAMA_CPP.answer(path)))

    async with scripted(slow) as server, Prober(server.url, timeout=0.5) as prober:
        reading = await prober.read()
        assert (reading.health, reading.status, reading.models) == (Health.UP, None, ("models/qwen2.5-7b-q4.gguf",))
        assert "GET /metrics gave no answer in time" in reading.reason
        assert reading.latency is not None
        assert 0 < reading.latency < 0.5
        assert server.asked[-1] == "/metrics"


@integration
async def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        async with Prober(f"http://127.0.0.1:{taken.getsockname()[1]}/v1") as prober:
            for _ in range(2):
                reading = await prober.read()
                assert (reading.health, reading.refused, reading.latency) == (Health.DOWN, True, None)
                assert "refused" in reading.reason.lower()
            assert prober.kind is None
            assert await prober.find_kind() is None
    with trio.fail_after(LIMIT):
        async with Prober("http://no-such-host.invalid/v1", timeout=5) as prober:
            reading = await prober.read()
    # A resolver that hangs is no refusal.
    assert reading.health is (Health.DOWN if reading.refused else Health.UNKNOWN)
    if reading.refused:
        assert "leads nowhere" in reading.reason


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_that_we_have_no_sockets_left_is_not_the_servers_fault(number: int) -> None:
    def none_left(_: httpx.Request) -> httpx.Response:
        # As it comes from trio through httpcore: one error for each address.
        group = ExceptionGroup("all attempts failed", [OSError(number, os.strerror(number))])
        raise httpx.ConnectError("all attempts failed") from group

    async with Prober("http://x/v1", transport=httpx.MockTransport(none_left)) as prober:
        reading = await prober.read()
    assert (reading.health, reading.refused) == (Health.UNKNOWN, False)
    assert f"it could not be asked: {os.strerror(number)}" in reading.reason


@integration
@pytest.mark.parametrize("hangs", [False, True])
async def test_plain_http_where_tls_is_expected(hangs: bool) -> None:
    async with scripted(sends(b"" if hangs else OK, hangs)) as server:
        async with Prober(f"https://127.0.0.1:{server.port}/v1", kind=MLX_LM, timeout=0.5) as prober:
            reading = await prober.read()
        assert (reading.health, reading.refused) == (Health.UNKNOWN, False)
        assert ("no answer in time" if hangs else "no TLS as it should be") in reading.reason
        await server.none_is_open()


@integration
@pytest.mark.parametrize("moment", [0.0, 0.02, 0.1])
async def test_a_cancelled_look_leaves_no_connection(moment: float) -> None:
    async with scripted(sends(OK[:-3], True)) as server, Prober(server.url, timeout=5) as prober:
        with trio.move_on_after(moment) as scope:
            await prober.read()
        assert scope.cancelled_caught
        await server.none_is_open()
        server.script = site_script(answers.ECHO)
        assert (await prober.read()).health is Health.UP


@integration
async def test_one_connection_at_a_time_though_two_ask() -> None:
    async with scripted(site_script(answers.LLAMA_CPP)) as server, Prober(server.url) as prober:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(prober.read)
        assert server.most_open == 1
        # The kind is found out once.
        assert server.asked.count("/status") == 1


@integration
async def test_a_connection_that_is_kept_serves_the_whole_look_and_ends_with_it() -> None:
    async def keep(path: str, stream: trio.SocketStream) -> None:
        while True:
            reply = raw(answers.MLX_VLM.answer(path)).replace(b"connection: close\r\n", b"")
            await stream.send_all(reply)
            request = await stream.receive_some(4096)
            if not request:
                return
            path = request.split()[1].decode()

    async with scripted(keep) as server, Prober(server.url) as prober:
        for looks in (1, 2, 3):
            assert (await prober.read()).status == Status(active_jobs=3, waiting=1, total_requests=40)
            await server.none_is_open()
            assert server.connections == looks


@integration
async def test_the_kind_is_found_out_anew_after_the_server_was_not_well() -> None:
    async with scripted(site_script(answers.LLAMA_CPP_LOADING)) as server, Prober(server.url) as prober:
        reading = await prober.read()
        assert (reading.health, reading.reason) == (Health.DOWN, "it loads its model")
        server.script = site_script(answers.MLX_LM)
        assert (await prober.read()).health is Health.UP
        assert prober.kind is MLX_LM
        # While it is well, nothing but what this kind is asked.
        server.asked.clear()
        assert (await prober.read()).health is Health.UP
        assert server.asked == ["/health"]
        # It fumbles: it is not taken for a server of which nothing is known.
        server.script = sends(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno")
        assert (await prober.read()).health is Health.UNKNOWN
        assert (await prober.read()).health is Health.UNKNOWN
        assert prober.kind is MLX_LM
        # Another server has come in its place.
        server.script = site_script(answers.OLLAMA)
        assert (await prober.read()).models == ("gemma3",)
        assert prober.kind is kind_named("ollama")
        # And one of which nothing is known, after it was gone.
        server.script = site_script(answers.MLX_LM_DEAD)
        assert (await prober.read()).health is Health.UNKNOWN
        assert (await prober.read()).health is Health.DOWN
        server.script = site_script(answers.OTHER)
        assert (await prober.read()).health is Health.UP
        assert prober.kind is kind_named("openai")


@integration
async def test_a_kind_that_was_given_stays() -> None:
    async with scripted(site_script(answers.OLLAMA)) as server, Prober(server.url, kind=MLX_LM) as prober:
        for _ in range(2):
            assert (await prober.read()).health is Health.UNKNOWN
        assert prober.kind is await prober.find_kind() is MLX_LM
        assert server.asked == ["/health", "/health"]


@integration
async def test_what_is_sent_and_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with scripted(site_script(answers.OTHER)) as server:
        for url, asked in [
            ("", "/"),
            ("/", "/"),
            ("/v1", "/"),
            ("/v1/", "/"),
            ("/mlx/v1", "/mlx/"),
            ("/a%20b/v1/", "/a%20b/"),
            ("/v11", "/v11/"),
        ]:
            base_url = f"http://127.0.0.1:{server.port}{url}"
            async with Prober(base_url, kind=kind_named("openai"), headers={"Authorization": "Bearer key"}) as prober:
                await prober.read()
            assert server.asked[-1] == asked, url
            assert b"authorization: bearer key" in server.requests[-1].lower()
        async with Prober(f"http://me:secret@127.0.0.1:{server.port}", kind=kind_named("openai")) as prober:
            await prober.read()
        assert b"Basic bWU6c2VjcmV0" in server.requests[-1]


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://host/v1", "http://", "http://host/v1?a=b", "http://host#x", "http://host:x/v1"],
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no base URL; give a base URL such as http://127\.0\.0\.1:8080/v1"):
        Prober(url)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="base_url must be a str, not 3"):
        Prober(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for timeout in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout must be"):
            Prober("http://x", timeout=timeout)
    with pytest.raises(ValueError, match="is no base URL") as told:
        Prober("http://h/?key=s3cr3t")
    assert "s3cr3t" not in str(told.value)
    for value in ("schlüssel", "a\r\nb: c", "a\tb", " xyz "):
        with pytest.raises(ValueError, match=r"the header 'Authorization' must") as caught:
            Prober("http://x", headers={"Authorization": value})
        assert value not in str(caught.value)


async def test_a_closed_one_says_so() -> None:
    closed = 0

    class Transport(httpx.MockTransport):
        async def aclose(self) -> None:
            nonlocal closed
            closed += 1

    prober = Prober("http://me:secret@x/v1", transport=Transport(lambda _: httpx.Response(200, json={"status": "ok"})))
    async with prober:
        assert (await prober.read()).health is Health.UP
        assert closed == 0
    assert closed == 1
    for call in (prober.read, prober.find_kind):
        with pytest.raises(RuntimeError, match=r"prober of http://x/ has been closed") as caught:
            await call()
        assert "secret" not in str(caught.value)


def test_the_latency_is_that_of_the_clock() -> None:
    """Exact, on a virtual clock: each answer is timed from its own asking, and all share one limit."""

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await trio.sleep(delays[request.url.path])
            reply = answers.MLX_VLM.answer(request.url.path)
            return httpx.Response(reply.status, headers=reply.headers, content=reply.body)

    async def main() -> list[Reading]:
        prober = Prober("http://x", transport=Transport(), kind=kind_named("mlx-vlm"), timeout=2.0)
        start = trio.current_time()
        reading = await prober.read()
        assert trio.current_time() - start == pytest.approx(min(2.0, sum(delays.values())))
        return [reading]

    for first, second in [(0.25, 1.5), (0.5, 1.75), (3.0, 0.0)]:
        delays = {"/health": first, "/metrics": second}
        (reading,) = trio.run(main, clock=MockClock(autojump_threshold=0))
        assert reading.latency == (pytest.approx(first) if first < 2 else None)
        assert (reading.status is not None) is (first + second < 2)
        assert reading.health is (Health.UP if first < 2 else Health.UNKNOWN)


async def test_a_mistake_in_a_look_is_not_taken_for_the_servers() -> None:
    class Wrong(ServerKind):
        name = "wrong"

        def look(self) -> Looking:
            yield "/health"
            raise KeyError("a mistake of ours")

    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    with pytest.raises(KeyError):
        await Prober("http://x", transport=transport, kind=Wrong()).read()


@integration
def test_fuzzed_bytes_never_raise() -> None:
    pieces = st.sampled_from(
        [
            *(
                b"HTTP/1.1 200 OK\r\n",
                b"HTTP/1.0 503 X\r\n",
                b"HTTP/1.1 101 S\r\n",
                b"HTTP/9.9 200\r\n",
                b"\r\n",
                b"\n",
            ),
            *(
                b"content-length: 5\r\n",
                b"transfer-encoding: chunked\r\n",
                b"connection: upgrade\r\n",
                b"5\r\nhello\r\n",
            ),
            *(b'{"status": "ok"}', b"location: \xff\r\n", b"content-type: text/html; charset=\x00\r\n", b"0\r\n\r\n"),
        ]
    ) | st.binary(max_size=8)
    examples = int(os.environ.get("MLXGATE_EXAMPLES", "100"))

    async def main(data: bytes) -> None:
        async with scripted(sends(data)) as server, Prober(server.url, timeout=1) as prober:
            reading = await prober.read()
            assert reading.health is Health.UP or reading.reason
            await server.none_is_open()

    @hypothesis.given(st.lists(pieces, max_size=8).map(b"".join))
    @hypothesis.settings(max_examples=examples, deadline=None)
    def run(data: bytes) -> None:
        trio.run(main, data)

    run()
