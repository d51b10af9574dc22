"""What an adapter takes, what it refuses, and what it never shows."""

from __future__ import annotations

import math
import traceback
from typing import Any

import h11
import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st

from tests.backends.scripted_server import Answer, ScriptedTransport, chunk, good
from trio_mlxgate import (
    BackendRefused,
    BackendUnreachable,
    EndpointGates,
    Gate,
    TruncatedAnswer,
    UnknownEndpoint,
    UnknownModel,
)
from trio_mlxgate.backends import ChatLimits, ModelAdapter
from trio_mlxgate.backends.kinds.base import ServerKind

URL = "http://macmini.test:8080/v1"
SECRET = "sk-very-secret-1234"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://h:1/v1", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://h/api/v3", "https://h/api/v3"),
    ],
)
def test_the_url_is_that_of_openais_sdk(given: str, meant: str) -> None:
    assert ModelAdapter(base_url=given).base_url == meant


def test_the_name_is_by_default_host_and_port() -> None:
    assert ModelAdapter(base_url="http://macmini.local:8080/v1").name == "macmini.local:8080"


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"base_url": "macmini:8080"}, ValueError, "http://macmini:8080"),
        ({"base_url": 8080}, TypeError, "a string"),
        ({"base_url": "ws://h:1"}, ValueError, "must be http or https"),
        ({"base_url": "http://user:pass@h:1/v1"}, ValueError, "'Authorization' in headers"),
        ({"base_url": "http://h:1/v1?key=1"}, ValueError, "query"),
        ({"base_url": "http://h:1/\x7f"}, ValueError, "control character"),
        ({"base_url": "http://xn--a:80"}, ValueError, "can't be asked"),
        ({"base_url": f"http://{'a' * 64}:80"}, ValueError, "more than 63"),
        ({"base_url": f"http://a.{'b' * 64}.local./v1"}, ValueError, "more than 63"),
        ({"base_url": f"http://h:1/{'a' * 65510}"}, ValueError, "can't be asked"),
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": None}, TypeError, "name must be a string"),
        ({"model": ""}, ValueError, "model must not be empty"),
        ({"model": 1}, TypeError, "model must be a string"),
        ({"model": "m", "aliases": "qwen"}, TypeError, "a set of names"),
        ({"model": "m", "aliases": [""]}, TypeError, "not empty"),
        ({"aliases": ["qwen"]}, ValueError, "name that in model="),
        ({"system_prompt": 1}, TypeError, "system_prompt"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number"),
        ({"temperature": -0.1}, ValueError, "temperature"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be >= 1"),
        ({"headers": {"X": "a\nb"}}, ValueError, "newline"),
        ({"headers": {"X": "a\r"}}, ValueError, "newline"),
        ({"headers": {"X-Note": "a\tb"}}, ValueError, "tabs"),
        ({"headers": {"X": " a"}}, ValueError, "blanks"),
        ({"headers": {"X": "a\x7f"}}, ValueError, "control"),
        ({"headers": {b"X": b"\xe9"}}, ValueError, "ASCII"),
        ({"headers": {"X Y": "a"}}, ValueError, "'X Y'"),
        ({"headers": {"X": 1}}, TypeError, "headers must be a mapping"),
        ({"headers": {"X": "열쇠"}}, TypeError, "ASCII"),
        ({"headers": 1}, TypeError, "headers must be a mapping"),
        ({"headers": {"Content-Length": "1"}}, ValueError, "the adapter's to set"),
        ({"hold_timeout": -1}, ValueError, "hold_timeout"),
        ({"hold_timeout": 0}, ValueError, "hold_timeout must be > 0"),
        ({"hold_timeout": None}, TypeError, "hold_timeout"),
        ({"limits": 3}, TypeError, r"ChatLimits\(...\)"),
        ({"kind": 3}, TypeError, "kind must be the name"),
        ({"kind": "abacus"}, ValueError, "abacus"),
        ({"gate": Gate}, TypeError, "a Gate, EndpointGates, or None"),
        ({"gate": 1}, TypeError, "a Gate, EndpointGates, or None"),
        ({"transport": httpx.HTTPTransport}, TypeError, "httpx.AsyncBaseTransport"),
    ],
)
def test_settings_that_are_none(settings: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        ModelAdapter(**{"base_url": URL, **settings})
    assert "pass" not in str(caught.value).replace("password", "")


SAFE = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=12)


@given(
    path=st.just("v1") | SAFE,
    host=st.sampled_from(["h", "[::1]", "a" * 63, "1.2.3.4"]) | SAFE,
    name=st.just("X-Note") | SAFE,
    value=st.just("a") | SAFE,
)
def test_what_the_constructor_takes_never_fails_later(path: str, host: str, name: str, value: str) -> None:
    """No setting that lies in wait for the first request, or for the end."""
    try:
        model = ModelAdapter(base_url=f"http://{host}:1/{path}", headers={name: value}, transport=Refusing())
    except (TypeError, ValueError):
        return

    async def main() -> None:
        assert (await model.read()).refused
        with pytest.raises(BackendUnreachable):
            await model.chat("hi")
        await model.aclose()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Refusing(httpx.AsyncBaseTransport):
    """Nothing listens, but what HTTP/1.1 can't say is found out first, as a real one does."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        assert request.url.raw_host.decode("ascii").encode("idna")
        raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("error", "said", "refused"),
    [
        (UnicodeError("label too long"), "the host's name leads nowhere: label too long", True),
        (ConnectionRefusedError(111, "Connection refused"), "no connection: Connection refused", True),
        (ConnectionResetError("reset"), r"broke before an answer came \(sent 4 times\): reset", False),
        (OSError(24, "Too many open files"), "it could not be asked: Too many open files", False),
        (ValueError("no such port"), "it could not be asked: no such port", False),
    ],
)
async def test_errors_of_the_system_are_those_of_a_server_that_can_not_be_reached(
    autojump_clock: trio.testing.MockClock, error: Exception, said: str, refused: bool
) -> None:
    model = ModelAdapter(base_url=URL, transport=ScriptedTransport([Answer(broken=error)]))
    with pytest.raises(BackendUnreachable, match=said) as caught:
        await model.chat("hi")
    assert caught.value.refused is refused
    model = ModelAdapter(base_url=URL, transport=ScriptedTransport([Answer(parts=[(0.0, chunk("a"))], end=error)]))
    with pytest.raises(TruncatedAnswer) as cut:
        await model.chat("hi")
    assert cut.value.text == "a"


@pytest.mark.parametrize("name", ["connect", "first_token", "gap"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (math.nan, ValueError)]
)
def test_limits_that_are_none(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"limits.{name}"):
        ChatLimits(**{name: value})


def test_settings_do_not_change() -> None:
    model = ModelAdapter(base_url=URL)
    with pytest.raises(AttributeError):
        model.model = "other"


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"priority": "high"}, TypeError),
        ({"max_wait": -1}, ValueError),
        ({"hold_timeout": "1"}, TypeError),
        ({"temperature": "hot"}, TypeError),
        ({"max_tokens": 0}, ValueError),
        ({"supersede": []}, TypeError),
        ({"extra": {"stream": False}}, ValueError),
    ],
)
def test_bad_arguments_are_told_at_once(more: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ModelAdapter(base_url=URL).stream("hi", **more)


async def test_one_spelling_of_the_model_reaches_the_server() -> None:
    script = ScriptedTransport([Answer(parts=good("x"))])
    model = ModelAdapter(base_url=URL, model="/models/qwen", aliases={"qwen", "gpt-4"}, transport=script)
    for name in (None, "qwen", "gpt-4", "/models/qwen"):
        answer = await model.chat("hi", model=name)
        assert answer.model == "/models/qwen"
    assert {body["model"] for body in script.bodies} == {"/models/qwen"}
    sent = len(script.requests)
    for name in ("qwen3", "QWEN", ""):
        with pytest.raises(UnknownModel, match="'/models/qwen', 'gpt-4', 'qwen'") as caught:
            await model.chat("hi", model=name)
        assert (caught.value.backend, caught.value.status) == ("macmini.test:8080", 404)
    assert len(script.requests) == sent
    assert model.endpoint_gate.statistics().admitted == sent


async def test_an_adapter_without_a_model_names_none_and_takes_none() -> None:
    script = ScriptedTransport([Answer(parts=good("x"))])
    model = ModelAdapter(base_url=URL, transport=script)
    assert (await model.chat("hi")).model == "theirs"
    assert "model" not in script.bodies[0]
    with pytest.raises(UnknownModel, match="leave out model="):
        model.stream("hi", model="theirs")


async def test_what_the_caller_says_goes_before_what_the_adapter_says() -> None:
    script = ScriptedTransport([Answer(parts=good("x"))])
    model = ModelAdapter(base_url=URL, transport=script, temperature=0.2, max_tokens=7, system_prompt="be kind")
    await model.chat("hi")
    await model.chat([{"role": "system", "content": "be brief"}], temperature=0, max_tokens=2)
    first, second = script.bodies
    assert (first["temperature"], first["max_tokens"], len(first["messages"])) == (0.2, 7, 2)
    assert (second["temperature"], second["max_tokens"], len(second["messages"])) == (0, 2, 1)


@pytest.mark.parametrize(
    ("settings", "closes"),
    [
        ({}, True),
        ({"kind": "mlx-lm"}, True),
        ({"kind": "llama.cpp"}, False),
        ({"base_url": "https://cloud.test/v1"}, False),
    ],
)
async def test_connections_are_kept_only_where_the_kind_is_known_to(settings: Any, closes: bool) -> None:
    script = ScriptedTransport([Answer(parts=good("x"))])
    await ModelAdapter(**{"base_url": URL, "transport": script, **settings}).chat("hi")
    (request,) = script.requests
    assert ("connection" in request.headers) == closes
    assert request.headers["content-length"] == str(len(request.content))
    assert "transfer-encoding" not in request.headers


def test_a_kind_may_be_given_itself() -> None:
    kind = ServerKind()
    assert ModelAdapter(base_url=URL, kind=kind).kind is kind


async def test_httpx_own_transport_for_tests_will_do() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if b"fail" in request.content:
            return httpx.Response(500, json={"error": "out of memory"})
        if b"logprobs" in request.content:
            return httpx.Response(200, json={"choices": [{"message": {"content": "plain"}, "finish_reason": "stop"}]})
        whole = b"".join(part for _, part in good("x", "y"))
        return httpx.Response(200, content=whole, headers={"content-type": "text/event-stream"})

    async with ModelAdapter(base_url=URL, transport=httpx.MockTransport(answer)) as model:
        assert (await model.chat("hi")).text == "xy"
        assert (await model.chat("hi", extra={"logprobs": True})).text == "plain"
        async with model.stream("hi") as stream:
            assert (await anext(stream)).text == "x"
        with pytest.raises(BackendRefused, match="out of memory"):
            await model.chat("fail")
        assert model.own_work.in_flight == 0


async def test_gates_that_refuse_strangers() -> None:
    gates = EndpointGates({"http://other.test:1": {}}, unlisted="refuse")
    model = ModelAdapter(base_url=URL, gate=gates, transport=ScriptedTransport([Answer()]))
    with pytest.raises(UnknownEndpoint):
        await model.chat("hi")


async def test_headers_are_sent_and_never_shown() -> None:
    quoted = f'{{"error": "bad key {SECRET} in Bearer {SECRET}"}}'.encode()
    script = ScriptedTransport([Answer(status=401, parts=[(0.0, quoted)])])
    model = ModelAdapter(base_url=URL, transport=script, headers={"Authorization": f"Bearer {SECRET}", "X-Key": SECRET})
    shown = [repr(model), str(model), repr(model.stream("hi")), repr(model.headers["x-key"] and model)]
    with pytest.raises(BackendRefused) as caught:
        await model.chat("hi")
    assert script.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    error = caught.value
    shown += ["".join(traceback.format_exception(error)), repr(error), error.upstream_message]
    assert "bad key ***" in error.upstream_message
    for text in shown:
        assert SECRET not in text
    with pytest.raises(ValueError, match="newlines") as bad:
        ModelAdapter(base_url=URL, headers={"Authorization": f"{SECRET}\n"})
    with pytest.raises(TypeError) as worse:
        ModelAdapter(base_url=URL, headers={"Authorization": f"{SECRET}키"})
    for told in (bad, worse):
        assert SECRET not in "".join(traceback.format_exception(told.value))


async def test_nobody_else_is_to_be_seen_in_the_adapter_before_its_first_use() -> None:
    model = ModelAdapter(base_url=URL)
    assert model.last_token_at == -math.inf
    assert model.own_work.in_flight == 0
    assert repr(ModelAdapter(base_url=URL, name="mini", model="m")) == f"<ModelAdapter 'mini' at {URL}, model 'm'>"
    await trio.lowlevel.checkpoint()
