"""The echo server: what it decides, and how it behaves as a process of its own towards clients of all sorts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from trio_mlxgate.echo_server import EchoSettings, serve_inference
from trio_mlxgate.testing import ECHO_MODEL, inference_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from trio_mlxgate.echo_server import EchoStatus, InferenceServer

CHAT = "/v1/chat/completions"


def chat_body(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


# --- a process of its own ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def http(server: InferenceServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False, timeout=20) as client:
        yield client


async def until(server: InferenceServer, condition: Callable[[EchoStatus], bool], within: float = 5.0) -> EchoStatus:
    """The first status of which the condition is true."""
    with trio.fail_after(within):
        while True:
            status = await server.status()
            if condition(status):
                return status
            await trio.sleep(0.01)


def own_address(response: httpx.Response) -> Any:
    """The client's end of the connection that the response came on."""
    return response.extensions["network_stream"].get_extra_info("client_addr")


class Pieces:
    """A request body of unknown length, sent in chunks."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._left = iter(pieces)

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for piece in self._left:
            return piece
        raise StopAsyncIteration


async def raw_connection(server: InferenceServer) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", int(server.url.rpartition(":")[2]))


def raw_chat(text: str, **fields: Any) -> bytes:
    body = json.dumps(chat_body(text, **fields)).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)


async def read_all(stream: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(10):
        async for data in stream:
            received += data
    return received


async def read_some(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(10):
        return bytes(await stream.receive_some())


async def leave_one(server: InferenceServer, text: str, **fields: Any) -> None:
    """Ask, wait until the job is accepted, and go away."""
    accepted = (await server.status())["total_requests"]
    async with await raw_connection(server) as stream:
        await stream.send_all(raw_chat(text, **fields))
        await until(server, lambda status: status["total_requests"] > accepted)


async def ask(client: httpx.AsyncClient, text: str, **fields: Any) -> str:
    response = await client.post(CHAT, json=chat_body(text, **fields))
    content: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
    return content


@pytest.mark.integration
async def test_every_endpoint_and_keep_alive() -> None:
    async with inference_server(service_time=0.05, tokens=4) as server:
        assert server.base_url == server.url + "/v1"
        async with http(server) as client:
            plain = await client.post(CHAT, json=chat_body("a b", max_tokens=3))
            ports = {own_address(plain)}
            assert int(plain.headers["content-length"]) == len(plain.content)
            assert plain.json()["choices"][0] == {
                "index": 0,
                "message": {"role": "assistant", "content": "a b a", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
            for path, answer in (("/health", {"status": "ok"}), ("/v1/models", None), ("/status", None)):
                response = await client.get(path)
                ports.add(own_address(response))
                assert response.status_code == 200
                assert answer is None or response.json() == answer
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == ECHO_MODEL
            head = await client.head("/health")
            assert (head.status_code, head.content) == (200, b"")
            text = await client.post("/v1/completions", json={"prompt": "a b"})
            assert text.json()["choices"][0]["text"] == "a b a b"
            async with client.stream("POST", CHAT, json=chat_body("a b", stream=True)) as streamed:
                lines = [line async for line in streamed.aiter_lines() if line]
            assert streamed.headers["content-type"].startswith("text/event-stream")
            assert streamed.headers["transfer-encoding"] == "chunked"
            assert (len(lines), lines[-1]) == (4 + 1 + 1, "data: [DONE]")
            ports.add(own_address(await client.get("/health")))
            # All of it went over one connection.
            assert len(ports) == 1
        status = await server.status()
        assert (status["total_requests"], status["completed"], status["abandoned"]) == (3, 3, 0)


# The SDK leaves its generators behind when it has read [DONE]; it has closed the response by then.
@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
@pytest.mark.integration
async def test_openai_client_reads_all_answers() -> None:
    openai: Any = pytest.importorskip("openai")
    async with (
        inference_server(service_time=0.02, tokens=6) as server,
        httpx.AsyncClient(trust_env=False) as http_client,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="x", http_client=http_client) as client,
    ):
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
        plain = await client.chat.completions.create(model="m", messages=messages)
        assert plain.model == ECHO_MODEL
        assert plain.choices[0].message.content == "one two one two one two"
        assert plain.usage is not None
        assert plain.usage.completion_tokens == 6

        stream = await client.chat.completions.create(
            model="m", messages=messages, stream=True, max_tokens=2, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        choices = [chunk.choices[0] for chunk in chunks[:-1]]
        assert "".join(choice.delta.content or "" for choice in choices) == "one two"
        assert choices[0].delta.role == "assistant"
        assert choices[-1].finish_reason == "length"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 4

        text = await client.completions.create(model="m", prompt="x y", max_tokens=2)
        assert text.choices[0].text == "x y"
        texts = [c.choices[0].text async for c in await client.completions.create(model="m", prompt="x", stream=True)]
        assert "".join(texts) == "x x x x x x"
        assert [model.id async for model in client.models.list()] == [ECHO_MODEL]
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await client.chat.completions.create(model="m", messages=messages, max_tokens=0)
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="m", input="x")


@pytest.mark.integration
async def test_one_at_a_time_in_the_order_of_arrival() -> None:
    async with inference_server(service_time=0.1, tokens=2) as server, http(server) as client:
        async with trio.open_nursery() as nursery:
            for index in range(6):
                nursery.start_soon(ask, client, f"job {index}")
                await until(server, lambda status, n=index: status["total_requests"] > n)  # type: ignore[misc]
        status = await server.status()
        assert [job["label"] for job in status["order"]] == [f"job {index}" for index in range(6)]
        for earlier, later in zip(status["order"], status["order"][1:], strict=False):
            assert earlier["ended"] is not None
            assert later["started"] is not None
            assert earlier["ended"] <= later["started"]
        assert (status["completed"], status["active_jobs"]) == (6, 0)
        assert 0 < status["overlaps"] <= 5
        assert status["max_active_jobs"] > 1


@pytest.mark.integration
async def test_status_is_not_held_up_by_the_generator() -> None:
    async with inference_server(service_time=30, tokens=3) as server, http(server) as client:
        await leave_one(server, "long")
        with trio.fail_after(5):
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert (await client.get("/v1/models")).status_code == 200
            assert (await server.status())["generating"] == 1


@pytest.mark.integration
async def test_a_plain_request_runs_on_without_its_client() -> None:
    async with inference_server(service_time=0.4, tokens=4) as server, http(server) as client:
        await leave_one(server, "left while running")
        await leave_one(server, "left while waiting")
        status = await until(server, lambda status: status["ghost_jobs"] == 2)
        assert (status["active_jobs"], status["generating"], status["abandoned"]) == (2, 1, 2)
        await ask(client, "next")
        status = await server.status()
        assert [job["label"] for job in status["order"]] == ["left while running", "left while waiting", "next"]
        # Each of the three took its whole time.
        assert all(job["tokens"] == 4 for job in status["order"])
        ended = status["order"][2]["ended"]
        assert ended is not None
        assert status["order"][0]["started"] is not None
        assert ended - status["order"][0]["started"] >= 3 * 0.4 - 0.01
        assert (status["ghost_jobs"], status["completed"], status["abandoned"]) == (0, 1, 2)


@pytest.mark.integration
async def test_a_stream_stops_when_its_client_leaves() -> None:
    async with inference_server(service_time=20, tokens=4) as server:
        async with await raw_connection(server) as running, await raw_connection(server) as waiting:
            await running.send_all(raw_chat("running", stream=True))
            await until(server, lambda status: status["generating"] == 1)
            await waiting.send_all(raw_chat("waiting", stream=True))
            await until(server, lambda status: status["active_jobs"] == 2)
            await waiting.aclose()
            status = await until(server, lambda status: status["active_jobs"] == 1, within=0.5)
            assert status["generating"] == 1
            # Not even the beginning of a next request hides that it leaves.
            await running.send_all(b"GET /status HTTP/1.1\r\n")
            await trio.sleep(0.05)
            await running.aclose()
            status = await until(server, lambda status: status["active_jobs"] == 0, within=0.5)
        assert [job["label"] for job in status["order"]] == ["running"]
        # The generator is free at once, in the middle of the 5 s of a token.
        async with await raw_connection(server) as following:
            await following.send_all(raw_chat("following", stream=True))
            await until(server, lambda status: status["generating"] == 1, within=1)
        assert (status["abandoned"], status["ghost_jobs"], status["generating"]) == (2, 0, 0)
        ended, left = status["order"][0]["ended"], status["order"][0]["left"]
        assert ended is not None
        assert left is not None
        assert ended - left < 0.5


@pytest.mark.integration
async def test_a_stream_that_is_reset_stops() -> None:
    async with inference_server(service_time=20, tokens=4) as server:
        stream = await raw_connection(server)
        await stream.send_all(raw_chat("reset", stream=True))
        await until(server, lambda status: status["generating"] == 1)
        # Linger for no time: close() sends a reset.
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        await until(server, lambda status: status["active_jobs"] == 0, within=0.5)


@pytest.mark.integration
async def test_switched_behaviours() -> None:
    async with inference_server(
        service_time=0.6, tokens=4, plain_on_disconnect="stop", stream_on_disconnect="finish"
    ) as server:
        await leave_one(server, "stream", stream=True)
        await leave_one(server, "plain, waiting")
        await until(server, lambda status: status["active_jobs"] == status["ghost_jobs"] == 1)
        status = await until(server, lambda status: status["active_jobs"] == 0)
        assert [(job["label"], job["tokens"]) for job in status["order"]] == [("stream", 4)]
        await leave_one(server, "plain, running")
        status = await until(server, lambda status: status["active_jobs"] == 0)
        assert status["order"][1]["tokens"] < 4
        assert status["abandoned"] == 3


@pytest.mark.integration
async def test_bad_requests_are_said_and_harm_nobody() -> None:
    async with inference_server(service_time=0.6, tokens=2, max_body=2000) as server, http(server) as client:
        async with trio.open_nursery() as nursery:
            answers: list[str] = []

            async def bystander() -> None:
                answers.append(await ask(client, "by stander"))

            nursery.start_soon(bystander)
            await until(server, lambda status: status["generating"] == 1)
            for content, code in ((b"{", "invalid_json"), (b"{}", "invalid_value"), (b"[" * 1999, "invalid_json")):
                response = await client.post(CHAT, content=content)
                assert (response.status_code, response.json()["error"]["code"]) == (400, code)
            for method, path, refusal in (("GET", CHAT, 405), ("GET", "/v2", 404), ("HEAD", "/v2", 404)):
                response = await client.request(method, path)
                assert response.status_code == refusal
                assert response.headers.get("allow") == ("POST" if refusal == 405 else None)
            large = await client.post(CHAT, json=chat_body("x" * 2000))
            assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

            large = await client.post(CHAT, content=Pieces([b"x" * 100] * 30))
            assert large.status_code == 413

            for garbage in (b"\x00\xff garbage\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"POST /v1 HTTP/1.1\r\nHo"):
                async with await raw_connection(server) as stream:
                    await stream.send_all(garbage)
                    await stream.send_eof()
                    assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
            async with await raw_connection(server) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000)
                assert (await read_all(stream)).startswith(b"HTTP/1.1 431 ")
            async with await raw_connection(server) as stream:
                pass  # Opened and closed without a word.
        assert answers == ["by stander"]
        status = await server.status()
        assert (status["total_requests"], status["completed"]) == (1, 1)


@pytest.mark.integration
async def test_request_bodies_in_chunks_and_after_100_continue() -> None:
    async with inference_server(service_time=0, tokens=3, max_body=1000) as server:
        body = json.dumps(chat_body("a b")).encode()

        pieces = [body[start : start + 5] for start in range(0, len(body), 5)]
        async with http(server) as client:
            response = await client.post(CHAT, content=Pieces(pieces))
            assert response.request.headers["transfer-encoding"] == "chunked"
            assert response.json()["choices"][0]["message"]["content"] == "a b a"
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        async with await raw_connection(server) as stream:
            await stream.send_all(head % (CHAT.encode(), len(body)))
            assert (await read_some(stream)).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(body)
            assert (await read_some(stream)).startswith(b"HTTP/1.1 200 ")
        async with await raw_connection(server) as stream:
            await stream.send_all(head % (CHAT.encode(), 1001))
            # Not 100: the body that would be too large is not asked for.
            assert (await read_some(stream)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.integration
async def test_a_request_sent_ahead_waits_for_its_turn() -> None:
    async with inference_server(service_time=0.1, tokens=2) as server, await raw_connection(server) as stream:
        await stream.send_all(raw_chat("first"))
        await until(server, lambda status: status["generating"] == 1)
        # While the answer to the first is under way, in two pieces.
        second = raw_chat("second", stream=True).replace(b"Host: x", b"Host: x\r\nConnection: close")
        await stream.send_all(second[:50])
        await stream.send_all(second[50:])
        received = await read_all(stream)
        assert received.count(b"HTTP/1.1 200 ") == 2
        assert received.index(b"first first") < received.index(b'"content": "second"')
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert [job["label"] for job in (await server.status())["order"]] == ["first", "second"]


@pytest.mark.integration
async def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    async with (
        inference_server(service_time=0.5, tokens=40_000) as server,
        http(server) as client,
        await raw_connection(server) as stream,
    ):
        await stream.send_all(raw_chat("x" * 100, stream=True))
        # About 15 MB are on their way to a client that takes none of it.
        await until(server, lambda status: status["generating"] == 1)
        await until(server, lambda status: status["generating"] == 0, within=20)
        assert await ask(client, "quick", max_tokens=1) == "quick"


@pytest.mark.integration
async def test_http_1_0() -> None:
    async with inference_server(service_time=0, tokens=2) as server, await raw_connection(server) as stream:
        await stream.send_all(raw_chat("old", stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
        received = await read_all(stream)
        assert b"chunked" not in received
        assert received.endswith(b"data: [DONE]\n\n")


# --- starting and ending -----------------------------------------------------------------------------------


def is_gone(pid: int) -> bool:
    """True if the process has ended; one that nobody has waited for yet counts as ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"
    return False


async def until_gone(pid: int) -> None:
    await trio.lowlevel.checkpoint()
    with trio.fail_after(5):
        while True:
            await trio.sleep(0.01)
            if is_gone(pid):
                return


@pytest.mark.integration
async def test_the_process_goes_with_the_block_and_errors_arrive_bare() -> None:
    server = inference_server(service_time=10)
    with pytest.raises(RuntimeError, match="has not started"):
        _ = server.url
    with pytest.raises(RuntimeError, match="has not started"):
        server.kill()
    with pytest.raises(KeyError, match="bare"):
        async with server:
            raise KeyError("bare" if server.returncode is None and server.pid != os.getpid() else "wrong")
    assert is_gone(server.pid)
    assert server.returncode == 0
    with pytest.raises(RuntimeError, match="once"):
        async with server:
            pass
    with pytest.raises(ConnectionError, match="does not answer"):
        await server.status()


@pytest.mark.integration
async def test_the_process_goes_when_the_block_is_cancelled() -> None:
    server = inference_server()
    with trio.CancelScope() as scope:
        async with server:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert is_gone(server.pid)


@pytest.mark.integration
async def test_a_start_that_takes_too_long_or_is_cancelled_leaves_no_process() -> None:
    server = inference_server(startup_timeout=0.001)
    with pytest.raises(RuntimeError, match=r"did not start in 0.001 s \(startup_timeout\)"):
        async with server:
            pass
    assert is_gone(server.pid)
    server = inference_server()
    with trio.move_on_after(0.05):
        async with server:
            pass
    assert is_gone(server.pid)


@pytest.mark.integration
async def test_a_killed_server_breaks_its_answers() -> None:
    async with inference_server(service_time=20, tokens=2) as server, http(server) as client:

        async def asks() -> None:
            # A closed connection or a reset one.
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await ask(client, "never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks)
            await until(server, lambda status: status["generating"] == 1)
            server.kill()
            assert await server.wait() == -signal.SIGKILL
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")
        with pytest.raises(ConnectionError, match=server.url):
            await server.status()
    assert server.returncode == -signal.SIGKILL


@pytest.mark.integration
async def test_a_server_that_hangs_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_mlxgate._echo_process._STOP_GRACE", 0.3)
    async with inference_server() as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert server.returncode == -signal.SIGKILL


@pytest.mark.integration
async def test_a_port_in_use_is_said() -> None:
    async with inference_server() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(RuntimeError, match=f"status 2 .*can't listen on 127.0.0.1 port {port}: .*--port"):
            async with inference_server(port=port):
                pass


@pytest.mark.integration
async def test_the_server_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import trio\n"
        "from trio_mlxgate.testing import inference_server\n"
        "async def main():\n"
        "    async with inference_server() as server:\n"
        "        print(server.pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    # From another folder, with a file in it that would be imported instead of the real one.
    (tmp_path / "json.py").write_text("raise ImportError('the wrong json')\n")
    parent = await trio.lowlevel.open_process([sys.executable, "-P", "-c", script], stdout=PIPE, cwd=tmp_path)
    assert parent.stdout is not None
    try:
        with trio.fail_after(20):
            pid = int(await parent.stdout.receive_some())
        assert not is_gone(pid)
    finally:
        parent.kill()
        with trio.move_on_after(5, shield=True):
            await parent.wait()
            await parent.stdout.aclose()
    await until_gone(pid)


@pytest.mark.integration
async def test_stderr_of_the_server_comes_out_on_ours(capsys: pytest.CaptureFixture[str]) -> None:
    async with inference_server() as server:
        assert server._stderr is not None
        os.write(server._stderr.fileno(), b"a line of the server\n")
    assert capsys.readouterr().err == "a line of the server\n"


@pytest.mark.integration
async def test_in_this_process() -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve_inference, EchoSettings(service_time=0, tokens=2))
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
            assert await ask(client, "here") == "here here"
        other = await nursery.start(serve_inference, EchoSettings(host="0.0.0.0"))
        assert other.startswith("http://127.0.0.1:")
        nursery.cancel_scope.cancel()
