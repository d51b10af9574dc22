"""The adapter against servers that answer badly, over real sockets."""

from __future__ import annotations

import json
import math
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.backends.scripted_server import (
    DONE,
    HEAD,
    KEEPALIVE,
    RawServer,
    chunk,
    event,
    good,
    hangs_up,
    plain_answer,
    raw_server,
    resets,
    sends,
    sends_and_waits,
    usage_chunk,
)
from trio_mlxgate import (
    BackendError,
    BackendRefused,
    BackendUnreachable,
    FirstTokenTooSlow,
    Gate,
    MalformedAnswer,
    TokenGapTooLong,
    TruncatedAnswer,
)
from trio_mlxgate.backends import ChatLimits, ModelAdapter
from trio_mlxgate.core.readings import OwnWork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.backends.scripted_server import Handler

pytestmark = pytest.mark.integration

LIMIT = 20.0
WHOLE = b"".join(part for _, part in good("여", "유"))


@pytest.fixture
def gate() -> Gate:
    return Gate(1, outer_deadline="allow")


async def ask(gate: Gate, *handlers: Handler, extra: Any = None, **settings: Any) -> tuple[Any, RawServer]:
    """The answer or the error of one question to such a server."""
    with trio.fail_after(LIMIT):
        async with (
            raw_server(*handlers) as server,
            ModelAdapter(base_url=server.base_url, name="raw", gate=gate, **settings) as model,
        ):
            try:
                answer: Any = await model.chat("hi", extra=extra or {})
            except BackendError as error:
                answer = error
            assert model.own_work == OwnWork()
    return answer, server


def bytewise(data: bytes) -> Iterator[bytes]:
    return (bytes([byte]) for byte in data)


async def test_an_answer_byte_by_byte(gate: Gate) -> None:
    answer, server = await ask(gate, sends(HEAD, *bytewise(KEEPALIVE + WHOLE)))
    assert (answer.text, answer.finish_reason) == ("여유", "stop")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert json.loads(body)["stream"] is True


def chunked(*parts: bytes, end: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if end else b"")


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + chunk("half"),
        HEAD + chunk("half") + b'data: {"choices": [{"del',
        HEAD + chunk("half") + DONE,
        HEAD,
        chunked(chunk("half"), DONE, end=False),
        chunked(chunk("half"), end=False),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n" + chunk("half"),
    ],
    ids=["closed", "in a line", "only the mark", "nothing", "chunked with the mark", "chunked", "shorter than told"],
)
async def test_a_stream_that_is_cut(gate: Gate, sent: bytes) -> None:
    error, server = await ask(gate, sends(sent))
    assert type(error) is TruncatedAnswer
    assert error.text == ("half" if b"half" in sent else "")
    assert len(server.requests) == 1


@pytest.mark.parametrize("cut", [HEAD + chunk("half"), HEAD])
async def test_a_stream_that_is_reset(gate: Gate, cut: bytes) -> None:
    """Nothing is tried again once an answer has begun."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.send_all(cut)
        await trio.sleep(0.05)
        await resets(stream)

    error, server = await ask(gate, handle)
    assert type(error) is TruncatedAnswer
    assert len(server.requests) == 1


async def test_without_the_mark_of_the_end_it_is_whole(gate: Gate) -> None:
    answer, _ = await ask(gate, sends(HEAD + chunk("x") + chunk(finish="stop") + usage_chunk()))
    assert (answer.text, answer.usage.total_tokens) == ("x", 5)
    answer, _ = await ask(gate, sends(HEAD + chunk("x") + chunk(finish="stop").rstrip()))
    assert (answer.text, answer.usage) == ("x", None)
    answer, _ = await ask(gate, sends(chunked(chunk("x", finish="stop"), end=False)))
    assert answer.text == "x"


async def hangs_up_in_the_head(stream: trio.SocketStream) -> None:
    """To httpx it is the same as nothing; and nobody has seen anything of the answer."""
    await stream.send_all(HEAD[:20])
    await hangs_up(stream)


@pytest.mark.parametrize("breaks", [resets, hangs_up, hangs_up_in_the_head])
async def test_what_breaks_before_an_answer_is_tried_again(gate: Gate, breaks: Handler) -> None:
    answer, server = await ask(gate, breaks, breaks, sends(HEAD + WHOLE))
    assert answer.text == "여유"
    assert len(server.requests) == 3
    assert len(set(server.requests)) == 1
    assert server.most_open == 1
    assert gate.statistics().admitted == 1


@pytest.mark.parametrize("breaks", [resets, hangs_up])
async def test_what_breaks_again_and_again_is_unreachable(gate: Gate, breaks: Handler) -> None:
    error, server = await ask(gate, breaks)
    assert type(error) is BackendUnreachable
    assert "(sent 4 times)" in str(error)
    assert len(server.requests) == 4


async def test_a_plain_request_is_tried_again_too(gate: Gate) -> None:
    body = plain_answer("hi")
    head = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer, server = await ask(gate, resets, sends(head + body), extra={"logprobs": True})
    assert answer.text == "hi"
    assert len(server.requests) == 2


async def test_nobody_listens(gate: Gate) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listened on
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        model = ModelAdapter(base_url=url, gate=gate)
        start = trio.current_time()
        with trio.fail_after(LIMIT), pytest.raises(BackendUnreachable, match="no connection"):
            await model.chat("hi")
        assert trio.current_time() - start < 5.0
        assert gate.statistics().in_flight == 0


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\n\n", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/9 ok\r\n\r\n"])
async def test_garbage_is_told_as_such_and_not_asked_for_again(gate: Gate, garbage: bytes) -> None:
    error, server = await ask(gate, sends(garbage))
    assert type(error) is MalformedAnswer
    assert "no HTTP" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind", "body", "said"),
    [
        (404, "application/json", b'{"error": "Cannot find an appropriate cached snapshot"}', "Cannot find"),
        (400, "application/json", b'{"error": {"message": "bad temperature", "type": "x"}}', "bad temperature"),
        (502, "text/html", b"<html><h1>Bad gateway</h1></html>", "<h1>Bad gateway</h1>"),
        (500, "text/plain", b"", "Internal Server Error"),
        (302, "text/html", b"<a>there</a>", "redirect"),
        (500, "application/json", b'{"error": "' + b"x" * 10_000_000 + b'"}', "xxx"),
    ],
)
async def test_errors_of_the_server(gate: Gate, status: int, kind: str, body: bytes, said: str) -> None:
    head = f"HTTP/1.0 {status} Internal Server Error\r\nContent-Type: {kind}\r\nLocation: /there\r\n\r\n".encode()
    error, server = await ask(gate, sends(head + body))
    assert type(error) is BackendRefused
    assert error.upstream_status == status
    assert said in error.upstream_message
    assert str(status) in str(error)
    assert len(str(error)) < 700
    assert error.retry_after is None
    assert len(server.requests) == 1


async def test_an_error_is_raised_on_entering_and_tells_when_to_come_again(gate: Gate) -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 7\r\n\r\nloading"
    with trio.fail_after(LIMIT):
        async with (
            raw_server(sends_and_waits(head)) as server,
            ModelAdapter(base_url=server.base_url, gate=gate) as model,
        ):
            with pytest.raises(BackendRefused, match="loading") as caught:
                await model.stream("hi").__aenter__()
            assert caught.value.retry_after == 7.0
            assert gate.statistics().in_flight == 0


async def test_an_error_in_the_middle_of_a_stream(gate: Gate) -> None:
    error, _ = await ask(gate, sends_and_waits(HEAD + chunk("half") + event({"error": {"message": "out of memory"}})))
    assert type(error) is BackendRefused
    assert (error.upstream_message, error.backend) == ("out of memory", "raw")


async def test_a_line_without_an_end_is_not_kept_for_ever(gate: Gate) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.send_all(HEAD)
        while True:
            await stream.send_all(b"x" * 65536)

    error, _ = await ask(gate, handle)
    assert type(error) is MalformedAnswer


async def test_a_break_is_no_garbage_because_the_caller_has_just_seen_some(gate: Gate) -> None:
    async with raw_server(sends(b"SSH-2.0\r\n\r\n"), hangs_up, sends(HEAD + WHOLE)) as server:
        model = ModelAdapter(base_url=server.base_url, gate=gate)
        try:
            await model.chat("hi")
        except MalformedAnswer:
            assert (await model.chat("hi")).text == "여유"


async def test_a_page_is_no_answer(gate: Gate) -> None:
    error, _ = await ask(gate, sends(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>hello</html>"))
    assert type(error) is MalformedAnswer
    assert "text/html" in str(error)


async def test_an_encoding_that_nobody_asked_for(gate: Gate) -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n"
    error, server = await ask(gate, sends(head + b"\x1f\x8b"))
    assert type(error) is MalformedAnswer
    assert "'gzip'" in str(error)
    assert b"accept-encoding: identity" in server.requests[0].lower()


async def test_a_server_that_is_silent(gate: Gate) -> None:
    limits = ChatLimits(first_token=0.2, gap=0.1)
    for sent, kind in [
        (b"", FirstTokenTooSlow),
        (b"HTTP/1.0 200 O", FirstTokenTooSlow),
        (HEAD, FirstTokenTooSlow),
        (HEAD + chunk("x"), TokenGapTooLong),
    ]:
        error, server = await ask(gate, sends_and_waits(sent), limits=limits)
        assert type(error) is kind, sent
        assert len(server.requests) == 1


async def test_slow_headers_are_waited_for(gate: Gate) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        for byte in bytewise(HEAD):
            await stream.send_all(byte)
            await trio.sleep(0.002)
        await sends(WHOLE)(stream)

    answer, _ = await ask(gate, handle)
    assert answer.text == "여유"


async def test_leaving_closes_the_connection_before_the_slot_goes(gate: Gate) -> None:
    gone = trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        await sends_and_waits(HEAD + chunk("x"))(stream)
        gone.set()

    with trio.fail_after(LIMIT):
        async with raw_server(handle) as server, ModelAdapter(base_url=server.base_url, gate=gate) as model:
            async with model.stream("hi") as stream:
                assert (await anext(stream)).text == "x"
                assert not gone.is_set()
            assert gate.statistics().in_flight == 0
            await gone.wait()


async def test_there_are_no_more_connections_than_slots() -> None:
    gate = Gate(2, outer_deadline="allow")
    with trio.fail_after(LIMIT):
        async with (
            raw_server(sends(HEAD + WHOLE)) as server,
            ModelAdapter(base_url=server.base_url, gate=gate) as model,
        ):
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(model.chat, "hi")
            assert len(server.requests) == 12
            # One more may be on its way out.
            assert server.most_open <= 3


async def test_a_kept_connection_serves_again_and_one_that_was_closed_meanwhile_is_replaced(gate: Gate) -> None:
    reply = chunked(WHOLE)

    async def twice(stream: trio.SocketStream) -> None:
        await stream.send_all(reply)
        await stream.receive_some()
        await stream.send_all(reply)

    with trio.fail_after(LIMIT):
        async with (
            raw_server(twice, sends(reply)) as server,
            ModelAdapter(base_url=server.base_url, gate=gate, kind="llama.cpp") as model,
        ):
            for _ in range(2):
                assert (await model.chat("hi")).text == "여유"
            assert len(server.requests) == 1
            assert (await model.chat("hi")).text == "여유"
            assert len(server.requests) == 2


async def test_limits_without_an_end(gate: Gate) -> None:
    limits = ChatLimits(connect=math.inf, first_token=math.inf, gap=math.inf)
    answer, _ = await ask(gate, sends(HEAD + WHOLE), limits=limits, hold_timeout=math.inf)
    assert answer.text == "여유"
