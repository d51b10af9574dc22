"""The echo server without a socket: its settings, requests, answers, book of jobs and generator."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st

from trio_mlxgate._echo_book import Job, JobBook
from trio_mlxgate._echo_protocol import (
    Answer,
    Endpoint,
    InferenceRequest,
    RequestRefused,
    parse_inference,
    route,
)
from trio_mlxgate.echo_server import EchoSettings, _Generator
from trio_mlxgate.testing import ECHO_MODEL, inference_server

CHAT = "/v1/chat/completions"


def chat_body(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def parse(body: object, endpoint: Endpoint = Endpoint.CHAT) -> InferenceRequest:
    return parse_inference(json.dumps(body).encode(), endpoint)


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("service_time", -0.1, ValueError),
        ("service_time", float("inf"), ValueError),
        ("service_time", float("nan"), ValueError),
        ("service_time", "1", TypeError),
        ("service_time", True, TypeError),
        ("tokens", 0, ValueError),
        ("tokens", 10**6, ValueError),
        ("tokens", 1.0, TypeError),
        ("tokens", True, TypeError),
        ("plain_on_disconnect", "ignore", ValueError),
        ("stream_on_disconnect", None, ValueError),
        ("host", "", ValueError),
        ("host", 1, TypeError),
        ("port", -1, ValueError),
        ("port", 65536, ValueError),
        ("backlog", 0, ValueError),
        ("max_body", 0, ValueError),
    ],
)
def test_bad_settings_are_named(field: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=field):
        EchoSettings(**{field: value})
    with pytest.raises(error, match=field):
        inference_server(**{field: value})


def test_bad_startup_timeout() -> None:
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="startup_timeout"):
            inference_server(startup_timeout=bad)


# --- requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "endpoint"),
    [
        ("POST", CHAT, Endpoint.CHAT),
        ("POST", "/v1/completions?x=1", Endpoint.COMPLETIONS),
        ("GET", "/v1/models", Endpoint.MODELS),
        ("HEAD", "/health", Endpoint.HEALTH),
        ("GET", "http://somewhere:80/status", Endpoint.STATUS),
    ],
)
def test_route(method: str, target: str, endpoint: Endpoint) -> None:
    assert route(method, target) is endpoint


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "*", 404, None),
        ("GET", CHAT + "/", 404, None),
        ("GET", CHAT, 405, "POST"),
        ("POST", "/status", 405, "GET, HEAD"),
        ("CONNECT", "/health", 405, "GET, HEAD"),
        ("GET", "http://[", 400, None),
    ],
)
def test_route_refuses(method: str, target: str, status: int, allow: str | None) -> None:
    with pytest.raises(RequestRefused) as caught:
        route(method, target)
    assert (caught.value.status, caught.value.allow) == (status, allow)
    assert set(caught.value.body()["error"]) == {"message", "type", "param", "code"}


def test_parse_chat() -> None:
    request = parse(
        {
            "model": "whatever",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "first question"},
                {"role": "assistant", "content": None, "tool_calls": []},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "last"},
                        {"type": "image_url", "image_url": {"url": "data:"}},
                        {"type": "text", "text": "question of all"},
                    ],
                },
                {"role": "tool", "content": "x" * 100},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 9,
            "max_completion_tokens": 3,
            "temperature": 0,
        }
    )
    assert request == InferenceRequest(
        chat=True,
        stream=True,
        include_usage=True,
        words=("last", "question", "of", "all"),
        prompt_tokens=2 + 2 + 0 + 4 + 1,
        max_tokens=3,
        label="x" * 40,
    )


def test_parse_small_cases() -> None:
    assert parse({"prompt": "a b"}, Endpoint.COMPLETIONS).words == ("a", "b")
    assert parse({"prompt": ["a b"]}, Endpoint.COMPLETIONS).label == "a b"
    assert parse(chat_body("")).words == ("(empty)",)
    assert parse(chat_body(max_tokens=None, stream=None, stream_options=None, user=None)).max_tokens is None
    assert parse(chat_body(max_tokens=5, max_completion_tokens=None)).max_tokens == 5
    assert parse(chat_body(user="me")).label == "me"
    # Without a user's message, the last one is echoed.
    assert parse({"messages": [{"role": "system", "content": "s t"}]}).words == ("s", "t")
    # What is kept or multiplied is bounded.
    assert len(parse(chat_body(user="u" * 9999)).label) == 200
    assert len(parse(chat_body("w" * 9999)).words[0]) == 100


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        "text",
        {},
        {"messages": []},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": 1, "content": "x"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        chat_body(model=1),
        chat_body(stream=1),
        chat_body(stream="true"),
        chat_body(stream_options=[]),
        chat_body(stream_options={"include_usage": "yes"}),
        chat_body(max_tokens=0),
        chat_body(max_tokens=-1),
        chat_body(max_tokens=True),
        chat_body(max_tokens=1.5),
        chat_body(max_completion_tokens="3"),
        chat_body(user=7),
    ],
)
def test_parse_refuses_types(body: object) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")


@pytest.mark.parametrize("prompt", [None, 1, [], ["a", "b"], [1, 2], [[1]]])
def test_parse_refuses_prompts(prompt: object) -> None:
    with pytest.raises(RequestRefused, match="prompt"):
        parse({"prompt": prompt}, Endpoint.COMPLETIONS)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_parse_refuses_what_is_no_json(raw: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_inference(raw, Endpoint.CHAT)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3)))
def test_parse_refuses_or_reads_any_value(value: Any) -> None:
    for body in (value, {"messages": value}, chat_body(value), chat_body(max_tokens=value, stream=value)):
        with contextlib.suppress(RequestRefused):
            assert parse(body).words


# --- answers -----------------------------------------------------------------------------------------------


def make_answer(body: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT, tokens: int = 5) -> Answer:
    settings = EchoSettings(tokens=tokens)
    return Answer(settings=settings, request=parse(body, endpoint), number=7, created=1)


@pytest.mark.parametrize(
    ("limit", "text", "reason"),
    [
        (None, "one two three one two", "stop"),
        (9, "one two three one two", "stop"),
        (5, "one two three one two", "stop"),
        (4, "one two three one", "length"),
        (1, "one", "length"),
    ],
)
def test_answer_is_as_long_as_asked(limit: int | None, text: str, reason: str) -> None:
    plain = make_answer(chat_body(max_tokens=limit)).plain()
    assert plain["model"] == ECHO_MODEL
    assert plain["choices"][0]["message"]["content"] == text
    assert plain["choices"][0]["finish_reason"] == reason
    made = len(text.split())
    assert plain["usage"] == {"prompt_tokens": 3, "completion_tokens": made, "total_tokens": 3 + made}


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
@pytest.mark.parametrize("include_usage", [False, True])
def test_streamed_events_join_to_the_plain_answer(endpoint: Endpoint, include_usage: bool) -> None:
    body = chat_body(stream=True, stream_options={"include_usage": include_usage}, prompt="one two three")
    answer = make_answer(body, endpoint)
    events = b"".join(answer.token_event(index) for index in range(answer.tokens)) + answer.last_events()
    lines = events.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    if include_usage:
        last = chunks.pop()
        assert (last["choices"], last["usage"]) == ([], answer.usage)
    choices = [chunk["choices"][0] for chunk in chunks]
    if endpoint is Endpoint.CHAT:
        assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * 5
        text = "".join(choice["delta"].get("content", "") for choice in choices)
    else:
        text = "".join(choice["text"] for choice in choices)
    assert text == answer.text == "one two three one two"
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]


# --- the book ----------------------------------------------------------------------------------------------


def run_to_end(book: JobBook, job: Job, now: float) -> None:
    while not job.over:
        book.make_token(job, now)


def test_book_is_first_come_first_served() -> None:
    book = JobBook(EchoSettings(tokens=2, service_time=1.0))
    first, second = (book.accept(parse(chat_body(user=name)), now) for name, now in (("a", 1.0), ("b", 2.0)))
    assert book.start_next(3.0) is first
    with pytest.raises(RuntimeError, match="still running"):
        book.start_next(3.0)
    assert book.next_token_due(first) == 3.5
    # Lateness does not add up: the next one is due as if this one had been in time.
    book.make_token(first, 3.9)
    assert book.next_token_due(first) == 4.0
    book.make_token(first, 4.0)
    assert first.over
    assert book.start_next(4.0) is second
    run_to_end(book, second, 6.0)
    assert book.start_next(6.0) is None
    status = book.status(7.0)
    assert [(job["label"], job["started"], job["ended"]) for job in status["order"]] == [
        ("a", 3.0, 4.0),
        ("b", 4.0, 6.0),
    ]
    assert dict(status) == {
        "active_jobs": 0,
        "total_requests": 2,
        "generating": 0,
        "max_active_jobs": 2,
        "completed": 2,
        "abandoned": 0,
        "ghost_jobs": 0,
        "overlaps": 1,
        "uptime": 7.0,
        "order": [first.status(), second.status()],
    }


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("switched", [True, False])
def test_book_when_a_client_leaves(running: bool, stream: bool, switched: bool) -> None:
    settings = EchoSettings()
    if switched:
        settings = EchoSettings(plain_on_disconnect="stop", stream_on_disconnect="finish")
    book = JobBook(settings)
    job = book.accept(parse(chat_body(stream=stream)), 0.0)
    if running:
        book.start_next(0.0)
    book.leave(job, 1.0)
    book.leave(job, 2.0)  # Leaving twice changes nothing.
    stops = stream is not switched
    status = book.status(2.0)
    assert job.over is stops
    assert (status["active_jobs"], status["ghost_jobs"]) == ((0, 0) if stops else (1, 1))
    assert (status["abandoned"], job.left) == (1, 1.0)
    if not stops:
        if not running:
            assert book.start_next(3.0) is job
        run_to_end(book, job, 4.0)
    status = book.status(5.0)
    assert book.active == status["ghost_jobs"] == status["completed"] == 0
    assert status["abandoned"] == 1
    assert len(status["order"]) == int(running or not stops)
    book.make_token(job, 6.0)  # Of a job that is over, no token more.
    assert book.status(6.0)["order"] == status["order"]


def test_book_keeps_the_last_thousand() -> None:
    book = JobBook(EchoSettings(tokens=1))
    for _ in range(1001):
        job = book.accept(parse(chat_body()), 0.0)
        book.start_next(0.0)
        run_to_end(book, job, 0.0)
    assert [job["number"] for job in book.status(0.0)["order"]] == list(range(2, 1002))


@given(st.lists(st.tuples(st.sampled_from(["plain", "stream", "start", "token", "leave"]), st.integers(0, 9))))
def test_book_adds_up(operations: list[tuple[str, int]]) -> None:
    book = JobBook(EchoSettings(tokens=2))
    jobs: list[Job] = []
    for now, (operation, pick) in enumerate(operations):
        if operation in ("plain", "stream"):
            jobs.append(book.accept(parse(chat_body(stream=operation == "stream")), now))
        elif operation == "start" and book.running is None:
            book.start_next(now)
        elif operation == "token" and book.running is not None:
            book.make_token(book.running, now)
        elif operation == "leave" and jobs:
            book.leave(jobs[pick % len(jobs)], now)
        status = book.status(now)
        active = [job for job in jobs if not job.over]
        assert status["active_jobs"] == len(active)
        assert status["ghost_jobs"] == sum(job.left is not None for job in active)
        assert status["abandoned"] == sum(job.left is not None for job in jobs)
        assert status["completed"] == sum(job.made == 2 and job.left is None for job in jobs)
        assert status["generating"] == sum(job.started is not None for job in active) <= 1
        started = [job["number"] for job in status["order"]]
        assert started == sorted(started)


# --- the generator, on a clock of its own ------------------------------------------------------------------


async def test_generator_takes_the_service_time(autojump_clock: trio.testing.MockClock) -> None:
    generator = _Generator(EchoSettings(service_time=1.0, tokens=10))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(generator.run)
        start = trio.current_time()
        jobs = [generator.submit(parse(chat_body(max_tokens=limit))) for limit in (None, 5, None)]
        for job, end in zip(jobs, (1.0, 1.5, 2.5), strict=True):
            await generator.wait_made(job, job.tokens)
            assert trio.current_time() - start == pytest.approx(end)
        nursery.cancel_scope.cancel()


async def test_generator_survives_leaving_at_the_moment_of_a_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    generator = _Generator(EchoSettings(service_time=1.0, tokens=1, plain_on_disconnect="stop"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(generator.run)
        for _ in range(40):  # Tasks that wake up together run in random order.
            job = generator.submit(parse(chat_body()))
            await trio.sleep(1.0)
            generator.leave(job)
        last = generator.submit(parse(chat_body()))
        await generator.wait_made(last, 1)
        nursery.cancel_scope.cancel()
    status = generator.status()
    assert status["completed"] + status["abandoned"] == status["total_requests"] == 41
    assert not generator._progress
