"""The other server: when it is asked, what it is sent, and that no slot is held meanwhile."""

from __future__ import annotations

import functools
import json
import logging
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.gate.helpers import Recorder, in_a_task_of_its_own
from tests.transport.conftest import Family
from trio_mlxgate import EndpointGates, EndpointSettings, Fallback, Gate, Superseded, rewrite_to, use_options
from trio_mlxgate.instrumentation import FellBack, Released
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import Callable

CLOUD = "https://cloud.example/v1"
ALLOWED = {"accept", "accept-encoding", "content-encoding", "content-type", "user-agent", "content-length"}


@attrs.define
class Cloud:
    """The other server: it keeps what it was sent, and how many slots were held then."""

    module: Any
    gate: Gate
    sent: list[Any] = attrs.field(factory=list)
    held: list[int] = attrs.field(factory=list)
    error: Exception | None = None
    closed: int = 0

    def transport(self) -> Any:
        cloud = self

        class Transport(self.module.MockTransport):  # type: ignore[misc, name-defined]
            async def aclose(self) -> None:
                cloud.closed += 1

        return Transport(self._answer)

    def _answer(self, request: Any) -> Any:
        self.sent.append(request)
        self.held.append(self.gate.statistics().in_flight)
        if self.error is not None:
            raise self.error
        return self.module.Response(200, text="from the cloud", extensions={"http_version": b"HTTP/2"})


@attrs.define
class Place:
    """A gate, a client in front of the script of the family, and a fallback."""

    family: Family
    gate: Gate = attrs.field(factory=lambda: Gate(1, name="macmini", outer_deadline="allow"))
    recorder: Recorder = attrs.field(factory=lambda: Recorder(FellBack, Released))
    cloud: Cloud = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.cloud = Cloud(self.family.module, self.gate)
        self.gate._listeners.add(self.recorder)
        self.gate._listen()

    def client(self, rewrite: Any = None, **options: Any) -> Any:
        return self.family.client(self.gate, fallback=Fallback(self.cloud.transport(), rewrite, **options))

    def told(self) -> list[FellBack]:
        return [details for details in self.recorder.details if isinstance(details, FellBack)]


@pytest.fixture
def place(family: Family) -> Place:
    return Place(family)


def errors_of_a_dead_server(module: Any) -> list[Exception]:
    kinds = ["ConnectError", "ConnectTimeout", "RemoteProtocolError", "ReadError", "WriteError", "ProxyError"]
    return [getattr(module, kind)("gone") for kind in kinds]


@pytest.mark.parametrize("number", range(6))
async def test_a_server_that_cannot_be_reached(place: Place, number: int, caplog: pytest.LogCaptureFixture) -> None:
    place.family.script.send_error = errors_of_a_dead_server(place.family.module)[number]
    async with place.client(rewrite_to("https://cloud.example:8443/v1?key=secret", api_key="secret")) as client:
        response = await client.post("/v1/chat", json={"model": "local"})
    assert response.text == "from the cloud"
    assert response.extensions["mlxgate"] == {"waited": 0.0, "fallback": "unreachable"}
    assert response.extensions["http_version"] == b"HTTP/2"
    assert len(place.family.script.sent) == len(place.cloud.sent) == 1
    assert place.cloud.held == [0]
    # The slot went back before anybody was told, and that before anything was sent.
    assert [type(details) for details in place.recorder.details] == [Released, FellBack]
    (told,) = place.told()
    assert attrs.asdict(told) == {
        "gate": "macmini",
        "capacity": 1,
        "in_flight": 0,
        "queue_length": 0,
        "priority": 100,
        "waited": 0.0,
        "reason": "unreachable",
        "to": "https://cloud.example:8443",
    }
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == (
        "fallback gate=macmini priority=100 wait_ms=0.0 reason=unreachable to=https://cloud.example:8443"
    )
    assert "secret" not in caplog.text.replace("https://cloud.example:8443/v1/chat?key=secret", "")  # the client's own


async def test_a_server_that_answers_is_not_passed_over(place: Place) -> None:
    async with place.client() as client:
        response = await client.get("/x")
        assert response.extensions["mlxgate"] == {"waited": 0}
        assert response.text == "one two three"
        place.family.script.parts = ()
        assert (await client.get("/moved")).status_code == 302
    assert place.cloud.sent == []


async def test_a_server_that_dies_before_the_first_byte(place: Place) -> None:
    place.family.script.parts = ()
    place.family.script.read_error = place.family.module.RemoteProtocolError("peer closed connection")
    async with place.client() as client:
        assert (await client.get("/x")).text == "from the cloud"
    assert len(place.family.script.closed) == 1
    assert place.cloud.held == [0]


async def test_what_was_begun_is_the_callers_to_see(place: Place) -> None:
    place.family.script.read_error = place.family.module.ReadError("peer closed connection")
    async with place.client() as client:
        with pytest.raises(place.family.module.ReadError):
            await client.get("/x")
        async with client.stream("GET", "/x") as response:
            parts = response.aiter_raw()
            assert [await anext(parts) for _ in range(3)] == [b"one ", b"two ", b"three"]
            with pytest.raises(place.family.module.ReadError):
                await anext(parts)
    assert place.cloud.sent == []
    assert place.gate.statistics().in_flight == 0


@pytest.mark.parametrize(
    ("method", "kind", "goes"),
    [("POST", "text/event-stream", True), ("POST", "application/json", False), ("HEAD", "text/event-stream", False)],
)
async def test_an_event_stream_without_an_event(place: Place, method: str, kind: str, goes: bool) -> None:
    """How a server that marks the end of a body by closing the connection looks when it was killed."""
    module = place.family.module

    class Empty(module.AsyncByteStream):  # type: ignore[misc, name-defined]
        async def __aiter__(self) -> Any:
            for part in tuple[bytes, ...]():
                yield part

    def killed(request: Any) -> Any:
        return module.Response(200, headers={"content-type": kind}, stream=Empty())

    fallback = Fallback(place.cloud.transport())
    transport = place.family.gated.GateTransport(place.gate, module.MockTransport(killed), fallback=fallback)
    async with module.AsyncClient(transport=transport, base_url="http://server") as client:
        response = await client.request(method, "/x")
    assert (response.text == "from the cloud") == goes
    assert place.gate.statistics().in_flight == 0


async def test_a_wait_that_was_too_long(place: Place, autojump_clock: MockClock) -> None:
    async with place.client() as client, place.gate.slot():

        async def ask() -> None:
            response = await client.get("/x", extensions={"mlxgate": {"max_wait": 2.0, "priority": 7}})
            assert response.extensions["mlxgate"] == {"waited": 2.0, "fallback": "wait_too_long"}

        await in_a_task_of_its_own(ask)
    assert place.family.script.sent == []
    assert [(told.priority, told.waited) for told in place.told()] == [(7, 2.0)]


async def test_a_full_queue_only_if_it_is_named(family: Family) -> None:
    for on, goes in [(("queue_full",), True), (("unreachable", "wait_too_long"), False)]:
        place = Place(family, Gate(1, max_waiting=0))
        async with place.client(on=on) as client, place.gate.slot():

            async def ask(client: Any = client, goes: bool = goes, place: Place = place) -> None:
                if goes:
                    assert (await client.get("/x")).text == "from the cloud"
                else:
                    with pytest.raises(place.family.gated.QueueFull):
                        await client.get("/x")

            await in_a_task_of_its_own(ask)
        assert len(place.cloud.sent) == goes


@pytest.mark.parametrize("phase", ["answer_after", "part_after"])
async def test_no_answer_within_the_hold_budget(place: Place, autojump_clock: MockClock, phase: str) -> None:
    setattr(place.family.script, phase, 10.0)
    start = trio.current_time()
    async with place.client(on=["hold_timeout"]) as client:
        with use_options(hold_timeout=3.0):
            response = await client.get("/x")
    assert trio.current_time() - start == 3.0
    assert response.extensions["mlxgate"] == {"waited": 0, "fallback": "hold_timeout"}
    assert place.cloud.held == [0]


async def test_the_clients_own_timeout_counts_as_such_too(place: Place) -> None:
    place.family.script.send_error = place.family.module.ReadTimeout("slow")
    async with place.client(on=["hold_timeout"]) as client:
        assert (await client.get("/x")).text == "from the cloud"
    async with place.client() as client:
        with pytest.raises(place.family.module.ReadTimeout):
            await client.get("/x")
    assert len(place.cloud.sent) == 1


async def test_what_is_no_sign_of_a_server_in_trouble(place: Place) -> None:
    module = place.family.module
    everything: Any = ["unreachable", "wait_too_long", "queue_full", "hold_timeout"]
    async with place.client(on=everything) as client:
        for error in [RuntimeError("a bug"), module.PoolTimeout("x"), module.UnsupportedProtocol("x"), OSError()]:
            place.family.script.send_error = error
            with pytest.raises(type(error)):
                await client.get("/x")
        with pytest.raises(TypeError):
            await client.get("/x", extensions={"mlxgate": 5})
    assert place.cloud.sent == []
    assert place.gate.statistics().in_flight == 0


async def test_superseded_and_cancelled_requests_go_nowhere(place: Place, autojump_clock: MockClock) -> None:
    place.family.script.answer_after = 1.0
    everything: Any = ["unreachable", "wait_too_long", "queue_full", "hold_timeout"]
    ended: list[str] = []

    async def ask() -> None:
        try:
            with use_options(supersede="search"):
                await client.get("/x")
            ended.append("answered")
        except Superseded:
            ended.append("superseded")

    async with place.client(on=everything) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
                await wait_all_tasks_blocked()
        with trio.move_on_after(0.5):
            await client.get("/x")
    assert sorted(ended) == ["answered", "answered", "superseded"]
    assert place.cloud.sent == []
    assert place.gate.statistics().in_flight == 0


async def test_a_client_that_is_closed_meanwhile_sends_nothing_elsewhere(place: Place) -> None:
    module, closed = place.family.module, trio.Event()

    class Body(module.AsyncByteStream):  # type: ignore[misc, name-defined]
        async def __aiter__(self) -> Any:
            await closed.wait()
            if closed.is_set():
                raise module.ReadError("closed under its reader")
            yield b""

        async def aclose(self) -> None:
            closed.set()

    inner = module.MockTransport(lambda request: module.Response(200, stream=Body()))
    fallback = Fallback(place.cloud.transport())
    transport = place.family.gated.GateTransport(place.gate, inner, fallback=fallback)
    client = module.AsyncClient(transport=transport, base_url="http://server")
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(module.ReadError, match="closed under its reader"):
                await client.get("/x")

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await client.aclose()
    assert place.cloud.sent == []
    assert place.cloud.closed == 1
    assert place.gate.statistics().in_flight == 0


async def test_a_task_with_a_slot_releases_the_loan_and_goes_on_holding(place: Place) -> None:
    place.family.script.send_error = place.family.module.ConnectError("gone")
    async with place.client() as client:
        async with place.gate.slot():
            assert (await client.get("/x")).text == "from the cloud"
            assert (await client.get("/x")).text == "from the cloud"
            assert place.gate.statistics().in_flight == 1
        assert place.gate.statistics().in_flight == 0


async def test_the_gate_of_the_endpoint_tells_of_it(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    family.script.send_error = family.module.ConnectError("gone")
    gates = EndpointGates({"http://server": EndpointSettings(name="chat"), "http://other": EndpointSettings()})
    answer = family.module.MockTransport(lambda _: family.module.Response(200, text="from the cloud"))
    async with family.client(gates, fallback=Fallback(answer)) as client:
        assert (await client.get("/x")).text == "from the cloud"
    assert "fallback gate=chat priority=100" in caplog.text


# ---- what is sent ----


async def test_without_a_rewrite_it_is_the_same_request(place: Place) -> None:
    place.family.script.send_error = place.family.module.ConnectError("gone")
    async with place.client() as client:
        request = client.build_request("POST", "/x?a=b", json={"model": "m"}, headers={"X-Own": "1"})
        request.extensions["trace"] = trace = object()
        await client.send(request)
    (sent,) = place.cloud.sent
    assert sent is not request
    assert (sent.method, sent.url, sent.content) == ("POST", "http://server/x?a=b", request.content)
    assert sent.headers.raw == request.headers.raw
    assert sent.extensions == request.extensions
    assert sent.extensions["trace"] is trace
    assert sent.extensions["timeout"]["read"] == 1.0


async def test_a_rewrite_may_change_its_copy_and_not_the_request(place: Place) -> None:
    place.family.script.send_error = place.family.module.ConnectError("gone")

    def rewrite(request: Any) -> Any:
        request.url = request.url.copy_with(host="elsewhere")
        request.headers["X-Own"] = "2"
        request.extensions["timeout"] = {}
        return request

    async with place.client(rewrite) as client:
        request = client.build_request("POST", "/x", json={}, headers={"X-Own": "1"})
        await client.send(request)
    (sent,) = place.cloud.sent
    assert (sent.url.host, sent.headers["X-Own"], sent.extensions["timeout"]) == ("elsewhere", "2", {})
    assert (request.url.host, request.headers["X-Own"], request.extensions["timeout"]["read"]) == ("server", "1", 1.0)


async def test_a_body_that_is_not_in_memory_is_not_sent_again(place: Place) -> None:
    place.family.script.send_error = place.family.module.ConnectError("gone")

    async def upload() -> Any:  # noqa: ASYNC124
        yield b"part"

    async with place.client() as client:
        with pytest.raises(place.family.module.ConnectError, match="gone") as error:
            await client.post("/x", content=upload())
        assert "body was not in memory" in error.value.__notes__[0]
        # Read into memory, it can be; and what told of parts is not sent beside the length.
        request = client.build_request("POST", "/x", content=upload())
        await request.aread()
        await client.send(request)
    (sent,) = place.cloud.sent
    assert sent.content == b"part"
    assert sent.headers["content-length"] == "4"
    assert "transfer-encoding" not in sent.headers
    assert place.told()[0].reason == "unreachable"
    assert len(place.told()) == 1


async def test_a_request_that_followed_a_redirect_can_be_sent_again(place: Place) -> None:
    async with place.client() as client:
        request = (await client.get("/moved")).next_request
        place.family.script.send_error = place.family.module.ConnectError("gone")
        assert (await client.send(request)).text == "from the cloud"
    assert place.cloud.sent[0].url.path == "/there"


# ---- what fails ----


def returns(value: object) -> Callable[[object], object]:
    return lambda request: value


async def asynchronous(request: Any) -> Any:  # noqa: ASYNC124
    return request


async def test_a_rewrite_that_returns_no_request(place: Place) -> None:
    original = place.family.script.send_error = place.family.module.ConnectError("gone")
    for rewrite in [returns(None), returns("http://cloud"), functools.partial(lambda call, r: call(r), asynchronous)]:
        async with place.client(rewrite) as client:
            with pytest.raises(TypeError, match=f"return a request of {place.family.module.__name__}") as error:
                await client.get("/x")
            assert error.value.__cause__ is original
    assert place.cloud.sent == []
    assert place.told() == []


async def test_a_rewrite_or_a_fallback_that_fails_is_raised_and_tells_why_it_was_asked(place: Place) -> None:
    original = place.family.script.send_error = place.family.module.ConnectError("gone")

    def no_model(request: Any) -> Any:
        raise KeyError("model")

    async with place.client(no_model) as client:
        with pytest.raises(KeyError) as no_rewrite:
            await client.get("/x")
    assert no_rewrite.value.__cause__ is original
    place.cloud.error = place.family.module.ConnectTimeout("the cloud has gone too")
    async with place.client() as client:
        with pytest.raises(place.family.module.ConnectTimeout, match="cloud has gone") as error:
            await client.get("/x")
    assert error.value.__cause__ is original
    assert len(place.cloud.sent) == 1
    assert place.gate.statistics().in_flight == 0


async def test_fallbacks_in_a_row(place: Place, autojump_clock: MockClock) -> None:
    """A second server with a gate of its own, and behind that the cloud."""
    module, gated = place.family.module, place.family.gated
    place.family.script.send_error = module.ConnectError("gone")
    second = Gate(1, name="second")
    cloud = Fallback(place.cloud.transport())
    behind = gated.GateTransport(second, place.family.transport(), fallback=cloud)
    async with place.family.client(place.gate, fallback=Fallback(behind)) as client:
        async with trio.open_nursery() as nursery:

            async def hold() -> None:
                async with second.slot():
                    await trio.sleep(5)

            nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            response = await client.get("/x")
        assert response.text == "from the cloud"
        assert response.extensions["mlxgate"] == {"waited": 5.0, "fallback": "unreachable"}
        assert len(place.family.script.sent) == 2
    assert place.cloud.closed == 1


async def test_both_transports_are_entered_and_closed(place: Place) -> None:
    entered = []

    class Inner(type(place.family.transport())):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.name = name

        async def __aenter__(self) -> Any:
            entered.append(f"+{self.name}")
            if self.name == "broken":
                raise OSError("no")
            return self

        async def __aexit__(self, *exc: object) -> None:
            entered.append(f"-{self.name}")
            raise ValueError(self.name)

        async def aclose(self) -> None:
            entered.append(f"!{self.name}")

    transport = place.family.gated.GateTransport(place.gate, Inner("local"), fallback=Fallback(Inner("cloud")))
    with pytest.raises(ValueError, match="cloud"):
        async with transport:
            pass
    await transport.aclose()
    broken = place.family.gated.GateTransport(place.gate, Inner("local"), fallback=Fallback(Inner("broken")))
    with pytest.raises(OSError, match="no"):
        async with broken:
            raise AssertionError("it was not entered")
    assert entered == ["+local", "+cloud", "-local", "-cloud", "!local", "!cloud", "+local", "+broken", "!local"]


# ---- arguments ----


def test_bad_arguments(place: Place) -> None:
    transport = place.cloud.transport()
    bad: Any
    for bad, told in [
        ("unreachable", r"on must be a list with any of 'unreachable', 'wait_too_long'"),
        (5, r"on must be a list"),
        (["unreachable", "late"], r"unknown reason 'late'; there are 'unreachable'"),
        ([], r"on is empty"),
    ]:
        with pytest.raises((TypeError, ValueError), match=told):
            Fallback(transport, on=bad)
    bad = "https://cloud.example"
    with pytest.raises(TypeError, match="first argument of Fallback"):
        Fallback(bad)
    with pytest.raises(TypeError, match="rewrite must be a plain function"):
        Fallback(transport, bad)
    with pytest.raises(TypeError, match="rewrite must be a plain function"):
        Fallback(transport, asynchronous)
    with pytest.raises(TypeError, match=r"Fallback\(transport, rewrite\)"):
        place.family.gated.GateTransport(place.gate, fallback=transport)
    other = type("Other", (), {"handle_async_request": print})()
    with pytest.raises(TypeError, match="AsyncBaseTransport"):
        place.family.gated.GateTransport(place.gate, fallback=Fallback(other))


# ---- the usual rewrite ----


def rewritten(
    family: Family, rewrite: Any, method: str = "POST", url: str = "/v1/chat/completions", **more: Any
) -> Any:
    return rewrite(family.module.Request(method, f"http://127.0.0.1:8080{url}", **more))


def test_rewrite_to_changes_address_key_and_model_and_keeps_the_rest(family: Family) -> None:
    rewrite = rewrite_to(CLOUD, api_key="cloud-key", model="big", headers={"OpenAI-Project": "p"})
    headers = {
        "Authorization": "Bearer local-key",
        "Cookie": "a=b",
        "X-Api-Key": "local-key",
        "api-key": "local-key",
        "Accept": "application/json",
        "User-Agent": "me",
        "Priority": "u=0",
        "X-Anything": "local",
    }
    extensions = {"timeout": {"read": 5.0}, "sni_hostname": "localhost", "trace": print, "mlxgate": {"priority": 0}}
    body = {"model": "local", "messages": [{"role": "user", "content": "a \u00e9 \U0001f600"}], "seed": 1}
    sent = rewritten(
        *(family, rewrite), url="/v1/chat/completions?key=local", headers=headers, json=body, extensions=extensions
    )
    assert str(sent.url) == "https://cloud.example/v1/chat/completions"
    assert dict(sent.headers) == {
        "host": "cloud.example",
        "accept": "application/json",
        "user-agent": "me",
        "openai-project": "p",
        "content-type": "application/json",
        "authorization": "Bearer cloud-key",
        "content-length": str(len(sent.content)),
    }
    assert json.loads(sent.content) == body | {"model": "big"}
    assert sent.extensions == {"timeout": {"read": 5.0}, "trace": print, "mlxgate": {"priority": 0}}


@pytest.mark.parametrize(
    ("base_url", "path", "expected"),
    [
        ("https://cloud.example/v1", "/v1/models", "https://cloud.example/v1/models"),
        ("https://cloud.example/v1/", "/v1/models", "https://cloud.example/v1/models"),
        ("https://cloud.example/openai/v2", "/v1/a%2Fb/c", "https://cloud.example/openai/v2/a%2Fb/c"),
        ("https://cloud.example", "/v1/models", "https://cloud.example/models"),
        ("https://cloud.example/v1", "/chat", "https://cloud.example/v1/chat"),
        ("https://cloud.example/v1", "/v1beta/x", "https://cloud.example/v1/v1beta/x"),
        ("https://cloud.example/v1", "/v1", "https://cloud.example/v1"),
        ("https://cloud.example/d?api-version=3", "/v1/x?key=local", "https://cloud.example/d/x?api-version=3"),
        ("http://[::1]:9000/v1", "/v1/x", "http://[::1]:9000/v1/x"),
    ],
)
def test_rewrite_to_joins_paths(family: Family, base_url: str, path: str, expected: str) -> None:
    sent = rewritten(family, rewrite_to(base_url), "GET", path)
    assert str(sent.url) == expected
    assert sent.headers["host"] == expected.split("/")[2]
    assert "authorization" not in sent.headers


@given(
    name=st.text("abcdefghijklmnopqrstuvwxyz-_", min_size=1, max_size=20).filter(lambda name: name not in ALLOWED),
    words=st.lists(st.sampled_from(["v1", "chat", "a%20b", "x.y"]), max_size=4),
)
def test_rewrite_to_keeps_every_secret_and_the_path(name: str, words: list[str]) -> None:
    family = Family(httpx, None)
    path = "/v1" + "".join(f"/{word}" for word in words)
    sent = rewritten(family, rewrite_to(CLOUD), url=f"{path}?{name}=hunter2", headers={name: "hunter2"}, content=b"x")
    assert b"hunter2" not in b"".join(value for header in sent.headers.raw for value in header)
    assert sent.url.raw_path.decode() == path


def test_rewrite_to_says_what_is_wrong(family: Family) -> None:
    for wrong in ["cloud.example/v1", "ftp://cloud.example", "https:///v1", ""]:
        with pytest.raises(ValueError, match="base_url must be one such as"):
            rewrite_to(wrong)
    with pytest.raises(ValueError, match="give api_key") as error:
        rewrite_to("https://me:secret@cloud.example")
    assert "secret" not in str(error.value)
    with pytest.raises(TypeError, match="base_url must be a str"):
        rewrite_to(family.module.URL(CLOUD))
    with pytest.raises(ValueError, match="api_key is empty"):
        rewrite_to(CLOUD, api_key="")
    bad: Any = 5
    with pytest.raises(TypeError, match="model must be a str"):
        rewrite_to(CLOUD, model=bad)
    rewrite = rewrite_to(CLOUD, model="big")
    for content in [b"not json", b"[1]", b"\xff"]:
        with pytest.raises(ValueError, match="no JSON object"):
            rewritten(family, rewrite, content=content)
    assert rewritten(family, rewrite, "GET", "/v1/models").content == b""
    assert rewritten(family, rewrite_to(CLOUD), content=b"not json").content == b"not json"


# ---- a real server that is killed ----


@pytest.mark.integration
async def test_a_server_is_killed_with_twenty_in_the_queue(family: Family) -> None:
    gate = Gate(1, outer_deadline="allow")
    answers: list[tuple[str, str, str | None]] = []
    recorder = Recorder(FellBack)
    gate._listeners.add(recorder)
    gate._listen()
    module = family.module

    async def ask(number: int) -> None:
        body = {"model": "local", "messages": [{"role": "user", "content": f"question {number}"}]}
        response = await client.post("chat/completions", json=body)
        answers.append(
            (
                f"question {number}",
                response.json()["choices"][0]["message"]["content"],
                response.extensions["mlxgate"].get("fallback"),
            )
        )

    with trio.fail_after(30):
        async with inference_server(service_time=0.1) as local, inference_server(service_time=0.05) as other:
            fallback = Fallback(module.AsyncHTTPTransport(), rewrite_to(other.base_url, model="cloud"))
            transport = family.gated.GateTransport(gate, fallback=fallback)
            async with module.AsyncClient(transport=transport, base_url=local.base_url, timeout=20) as client:
                async with trio.open_nursery() as nursery:
                    for number in range(20):
                        nursery.start_soon(ask, number)
                    await trio.sleep(0.55)
                    local.kill()
                assert gate.statistics().in_flight == 0
            status = await other.status()
    assert len(answers) == 20
    assert all(question in answer for question, answer, _ in answers)
    fell_back = [reason for _, _, reason in answers if reason is not None]
    assert 10 <= len(fell_back) < 20
    assert set(fell_back) == {"unreachable"}
    # Each of these was asked once there, and told once.
    assert len(recorder.details) == status["total_requests"] == status["completed"] == len(fell_back)
    # With the slot, they would have been there one at a time.
    assert status["max_active_jobs"] >= 5


async def test_a_redirect_by_the_other_server_is_an_error_and_carries_nothing_there(place: Place) -> None:
    """The client would follow it with the request that it made, keys and all."""
    seen: list[Any] = []

    def redirecting(request: Any) -> Any:
        seen.append(request)
        return place.family.module.Response(308, headers={"location": "https://elsewhere.example/v1/chat"})

    module = place.family.module
    place.family.script.send_error = down = module.ConnectError("gone")
    other = Fallback(module.MockTransport(redirecting), rewrite_to(CLOUD, api_key="cloud-key"))
    async with place.family.client(place.gate, fallback=other) as client:
        with pytest.raises(
            module.RemoteProtocolError, match=r"https://cloud\.example answered with a redirect"
        ) as caught:
            await client.post("/v1/chat", headers={"x-api-key": "local key"}, json={}, follow_redirects=True)
    assert caught.value.__cause__ is down
    assert len(seen) == 1
    assert place.gate.statistics().admitted == 1


async def test_the_other_servers_cookies_are_not_kept_for_ones_own(place: Place) -> None:
    module = place.family.module
    place.family.script.send_error = module.ConnectError("gone")
    answer = module.MockTransport(
        lambda _: module.Response(200, headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")])
    )
    async with place.family.client(place.gate, fallback=Fallback(answer)) as client:
        response = await client.get("/v1/models")
        assert "set-cookie" not in response.headers
        assert not list(client.cookies.jar)


async def test_with_several_servers_it_is_for_those_that_are_listed(family: Family) -> None:
    gates = EndpointGates({"http://server": EndpointSettings(outer_deadline="allow")})
    family.script.send_error = family.module.ConnectError("gone")
    asked: list[str] = []

    def cloud(request: Any) -> Any:
        asked.append(str(request.url))
        return family.module.Response(200)

    async with family.client(gates, fallback=Fallback(family.module.MockTransport(cloud))) as client:
        await client.get("/x")
        for _ in range(2):  # the second time it has a gate
            with pytest.raises(family.module.ConnectError):
                await client.get("https://bank.example/transfer")
    assert asked == ["http://server/x"]
    assert gates.is_listed("http://SERVER:80/")
    assert not gates.is_listed("https://bank.example")
    assert "https://bank.example" in gates


def test_a_synchronous_client_is_told_what_to_do(family: Family) -> None:
    transport: Any = family.gated.GateTransport(Gate(1))
    client = family.module.Client(transport=transport)
    with pytest.raises(TypeError, match=r"is for httpx2?\.AsyncClient; call a synchronous client in a thread"):
        client.get("http://server/x")


async def test_a_changed_url_gets_its_own_host(place: Place) -> None:
    """httpx sets ``Host`` when a request is made, and not when its URL is changed."""
    module = place.family.module

    def elsewhere(request: Any) -> Any:
        request.url = module.URL("https://api.example.com:8443/v2/generate")
        return request

    def with_a_host_of_its_own(request: Any) -> Any:
        request.headers["Host"] = "tenant.example.com"
        return elsewhere(request)

    place.family.script.send_error = module.ConnectError("gone")
    for rewrite, host in ((elsewhere, "api.example.com:8443"), (with_a_host_of_its_own, "tenant.example.com")):
        async with place.client(rewrite) as client:
            await client.get("/x")
        assert place.cloud.sent[-1].headers["host"] == host


async def test_a_rewrite_may_change_what_is_inside_of_its_extensions(place: Place) -> None:
    def change(request: Any) -> Any:
        request.extensions["timeout"]["read"] = 99
        return request

    place.family.script.send_error = place.family.module.ConnectError("gone")
    async with place.client(change) as client:
        request = client.build_request("GET", "/x")
        await client.send(request)
        assert request.extensions["timeout"]["read"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "https://host:abc/v1"}, "no readable port"),
        ({"base_url": "https://host:99999/v1"}, "no readable port"),
        ({"base_url": "https://ho st/v1"}, "no host name"),
        ({"api_key": "sk-SECRET\n"}, "api_key has white space"),
        ({"api_key": "sk-SECRET-\u00e9"}, "api_key has white space"),
        ({"headers": [("a", "b")]}, "headers must be a mapping"),
        ({"headers": {"X": None}}, "headers must be a mapping"),
        ({"headers": {"X": "SECRET\nc: d"}}, "'X' has a name or a value"),
        ({"headers": {"X y": "SECRET"}}, "'X y' has a name or a value"),
    ],
)
def test_a_bad_rewrite_is_refused_when_it_is_made(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"base_url": CLOUD, **arguments}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        rewrite_to(**given)
    assert "SECRET" not in str(caught.value)


def test_headers_that_are_no_ascii_and_bodies_that_are_too_deep() -> None:
    agent = (b"User-Agent", "caf\u00e9".encode())
    request = httpx.Request("POST", "http://server/v1/chat", headers=[agent], content=b"[" * 10**5)
    assert agent in rewrite_to(CLOUD)(request).headers.raw
    with pytest.raises(ValueError, match="no JSON object"):
        rewrite_to(CLOUD, model="big")(request)


async def test_a_client_that_is_closed_while_the_other_server_is_asked_gets_no_answer(place: Place) -> None:
    place.family.script.send_error = place.family.module.ConnectError("gone")

    class Slow(place.family.module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            await trio.sleep(0.05)
            return place.family.module.Response(200)

    client = place.family.client(place.gate, fallback=Fallback(Slow()))

    async def ask() -> None:
        with pytest.raises(place.family.module.ReadError, match="the client was closed"):
            await client.get("/x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await client.aclose()
