"""The adapter on the virtual clock: each limit at its exact time, with its own error, and not in the queue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.backends.scripted_server import (
    DONE,
    KEEPALIVE,
    USAGE,
    Answer,
    ScriptedTransport,
    chunk,
    good,
    plain_answer,
    usage_chunk,
)
from trio_mlxgate import (
    AnswerTooSlow,
    BackendError,
    BackendTooSlow,
    BackendUnreachable,
    ConnectTooSlow,
    EndpointGates,
    FirstTokenTooSlow,
    Gate,
    MalformedAnswer,
    Priority,
    QueueFull,
    Superseded,
    TokenGapTooLong,
    TruncatedAnswer,
    WaitTooLong,
    use_options,
)
from trio_mlxgate.backends import ChatLimits, ModelAdapter, Usage, current_endpoint_gates
from trio_mlxgate.core.readings import OwnWork

if TYPE_CHECKING:
    from collections.abc import Sequence

URL = "http://macmini.test:8080/v1"


def adapter(*answers: Answer, **more: Any) -> tuple[ModelAdapter, ScriptedTransport]:
    script = ScriptedTransport(list(answers))
    return ModelAdapter(base_url=URL, name="mini", transport=script, **more), script


class Timed:
    """How many seconds it takes until a block ends."""

    def __enter__(self) -> Self:
        self._start = trio.current_time()
        self.seconds = math.nan
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = trio.current_time() - self._start


async def fails(model: ModelAdapter, kind: type[BackendError], after: float, **more: Any) -> BackendError:
    """Ask, and see that it fails so, then, and leaves nothing behind."""
    with Timed() as timed, pytest.raises(BackendError) as caught:
        await model.chat("hi", **more)
    assert type(caught.value) is kind
    assert timed.seconds == pytest.approx(after, abs=1e-9)
    assert caught.value.backend == "mini"
    assert str(caught.value).startswith("mini: ")
    assert model.own_work == OwnWork()
    assert isinstance(model.transport, ScriptedTransport)
    assert model.transport.open == 0
    return caught.value


async def test_a_whole_answer_and_its_times(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(connect_after=1.0, head_after=2.0, parts=good("Hel", "lo", every=3.0)), model="m")
    answer = await model.chat("hi")
    assert (answer.text, answer.finish_reason, answer.model, answer.id) == ("Hello", "stop", "m", "chatcmpl-1")
    assert answer.usage == Usage(**USAGE)
    assert (answer.waited, answer.first_token, answer.seconds) == (0.0, 6.0, 9.0)
    assert model.last_token_at == trio.current_time()
    (body,) = script.bodies
    assert (body["model"], body["stream"], body["stream_options"]) == ("m", True, {"include_usage": True})


async def test_no_connection_in_time(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(connect_after=5.0))
    error = await fails(model, ConnectTooSlow, 2.0)
    assert isinstance(error, trio.TooSlowError)
    assert isinstance(error, TimeoutError)


@pytest.mark.parametrize("traced", [True, False])
async def test_silence_before_the_head(autojump_clock: MockClock, traced: bool) -> None:
    """Connecting has its own limit, and the silence begins when the request goes out."""
    model, _ = adapter(Answer(connect_after=1.5, head_after=math.inf, traced=traced))
    await fails(model, FirstTokenTooSlow, 61.5 if traced else 60.0)


async def test_a_limit_of_the_silence_below_that_of_the_connection_does_not_hide_it(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(connect_after=5.0), limits=ChatLimits(connect=2.0, first_token=1.0))
    await fails(model, ConnectTooSlow, 2.0)


async def test_silence_after_the_head_begins_with_it(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(head_after=10.0, end_after=math.inf))
    await fails(model, FirstTokenTooSlow, 70.0)


async def test_a_role_alone_is_no_token(autojump_clock: MockClock) -> None:
    opening = chunk("", role="assistant")
    model, _ = adapter(Answer(parts=[(1.0, opening)], end_after=math.inf))
    await fails(model, FirstTokenTooSlow, 61.0)


async def test_keepalives_are_life(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=[*[(50.0, KEEPALIVE)] * 4, *good("x")]))
    answer = await model.chat("hi")
    assert answer.text == "x"
    assert answer.first_token == 200.0


async def test_silence_after_a_token(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=[(1.0, chunk("half")), (14.0, KEEPALIVE)], end_after=math.inf))
    error = await fails(model, TokenGapTooLong, 30.0)
    assert "15 s after a token" in str(error)


async def test_the_whole(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=good(*"abcdefgh", every=10.0)), hold_timeout=35.0)
    error = await fails(model, AnswerTooSlow, 35.0)
    assert "35 s" in str(error)
    await fails(model, AnswerTooSlow, 25.0, hold_timeout=25.0)
    with use_options(hold_timeout=15.0):
        await fails(model, AnswerTooSlow, 15.0)
        await fails(model, AnswerTooSlow, 5.0, hold_timeout=5.0)


@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (Answer(connect_after=9.0), 2.0),
        (Answer(head_after=math.inf), 60.0),
        (Answer(end_after=math.inf), 60.0),
        (Answer(parts=[(1.0, chunk("x"))], end_after=math.inf), 16.0),
    ],
    ids=["connect", "head", "first token", "gap"],
)
async def test_if_two_limits_end_at_once_that_of_the_whole_goes_first(
    autojump_clock: MockClock, answer: Answer, limit: float
) -> None:
    model, _ = adapter(answer)
    await fails(model, AnswerTooSlow, limit, hold_timeout=limit)
    model, _ = adapter(answer)
    with Timed() as timed, pytest.raises(BackendTooSlow) as caught:
        await model.chat("hi", hold_timeout=limit + 0.001)
    assert timed.seconds == limit
    assert not isinstance(caught.value, AnswerTooSlow)


async def test_waiting_uses_none_of_the_limits(autojump_clock: MockClock) -> None:
    limits = ChatLimits(connect=2.0, first_token=5.0, gap=5.0)
    model, script = adapter(
        Answer(connect_after=1.9, head_after=4.9, parts=good("x", every=4.9)), limits=limits, hold_timeout=20.0
    )
    async with trio.open_nursery() as nursery:

        async def hold() -> None:
            async with model.endpoint_gate.slot():
                await trio.sleep(1000.0)

        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        answer = await model.chat("hi", priority=Priority.FOREGROUND)
    assert answer.waited == 1000.0
    assert answer.seconds == pytest.approx(1.9 + 4.9 + 4.9)
    assert answer.first_token == answer.seconds
    assert script.sent_at == [trio.current_time() - answer.seconds]


async def test_a_slow_reader_is_no_silent_server(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=good("a", "b", "c", every=1.0)))
    async with model.stream("hi") as stream:
        await trio.sleep(70.0)
        async for _ in stream:
            await trio.sleep(20.0)
    assert stream.completion.text == "abc"


async def test_the_whole_counts_for_a_slow_reader_too(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=good("a", "b", "c")), hold_timeout=30.0)
    async with model.stream("hi") as stream:
        assert (await anext(stream)).text == "a"
        await trio.sleep(31.0)
        with pytest.raises(AnswerTooSlow):
            await anext(stream)
        assert script.open == 0
        assert model.own_work == OwnWork()


async def test_what_follows_the_end_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=[(1.0, chunk("x", finish="stop"))], end_after=math.inf))
    answer = await model.chat("hi")
    assert (answer.text, answer.usage, answer.seconds) == ("x", None, 3.0)
    # A missing mark of the end is fine, as is whatever goes wrong after the finish_reason.
    for end in (None, httpx.ReadError("gone"), httpx.RemoteProtocolError("incomplete")):
        model, _ = adapter(Answer(parts=[(1.0, chunk("x", finish="length")), (0.0, usage_chunk())], end=end))
        answer = await model.chat("hi")
        assert (answer.finish_reason, answer.usage) == ("length", Usage(**USAGE))
    model, _ = adapter(Answer(parts=[(1.0, chunk("x", finish="stop"))], end_after=math.inf))
    assert (await model.chat("hi", hold_timeout=2.0)).seconds == 2.0


@pytest.mark.parametrize("end", [None, httpx.ReadError("gone"), httpx.RemoteProtocolError("incomplete")])
@pytest.mark.parametrize("mark", [b"", DONE, b'data: {"choi'])
async def test_an_end_without_a_finish_reason_is_a_cut(
    autojump_clock: MockClock, end: Exception | None, mark: bytes
) -> None:
    model, script = adapter(Answer(parts=[(1.0, chunk("half")), (1.0, mark)], end=end))
    error = await fails(model, TruncatedAnswer, 2.0)
    assert isinstance(error, TruncatedAnswer)
    assert error.text == "half"
    assert len(script.requests) == 1


async def test_what_was_good_is_told_before_what_was_not(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=[(1.0, chunk("a") + chunk("b") + b"data: {\n\n")], end_after=math.inf))
    got = []
    async with model.stream("hi") as stream:
        got.append((await anext(stream)).text)
        # The server is free at once.
        assert script.open == 0
        got.append((await anext(stream)).text)
        with pytest.raises(MalformedAnswer):
            await anext(stream)
        with pytest.raises(trio.ClosedResourceError):
            await anext(stream)
        assert stream.text == "ab"
        with pytest.raises(RuntimeError, match="is whole after the last delta"):
            _ = stream.completion
    assert got == ["a", "b"]


# ---- tried again ----


async def test_resets_before_an_answer_are_tried_again_with_growing_pauses(autojump_clock: MockClock) -> None:
    broken = Answer(head_after=0.5, broken=httpx.ReadError("reset"))
    lost = Answer(head_after=0.1, broken=httpx.RemoteProtocolError("Server disconnected without sending a response."))
    model, script = adapter(broken, lost, broken, Answer(parts=good("x")))
    gate = model.endpoint_gate
    start = trio.current_time()
    answer = await model.chat("hi")
    assert answer.text == "x"
    assert [at - start for at in script.sent_at] == pytest.approx([0.0, 0.55, 0.75, 1.45])
    assert gate.statistics().admitted == 1
    assert answer.seconds == pytest.approx(1.45)


async def test_no_more_than_three_times(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(broken=httpx.ReadError("reset")))
    error = await fails(model, BackendUnreachable, 0.35)
    assert len(script.requests) == 4
    assert "4 times" in str(error)
    assert script.most_open == 1


async def test_no_longer_than_the_limit_of_the_connection(autojump_clock: MockClock) -> None:
    """Counted from the first break: what took long to break may be tried again all the same."""
    model, script = adapter(Answer(head_after=1.03, broken=httpx.ReadError("reset")))
    # Breaks at 1.03, 2.11 and 3.24; the next would begin at 3.44, later than 1.03 + 2.
    await fails(model, BackendUnreachable, 3.24)
    assert len(script.requests) == 3


async def test_the_whole_ends_what_is_tried_again(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(head_after=1.03, broken=httpx.ReadError("reset")))
    await fails(model, AnswerTooSlow, 1.05, hold_timeout=1.05)
    assert len(script.requests) == 1


async def test_what_was_refused_is_not_tried_again(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(broken=httpx.ConnectError("[Errno 111] Connection refused")))
    error = await fails(model, BackendUnreachable, 0.0)
    assert "Connection refused" in str(error)
    assert len(script.requests) == 1


# ---- the gate ----


async def test_what_the_gate_refuses_is_its_own_and_nothing_is_sent(autojump_clock: MockClock) -> None:
    gate = Gate(1, max_waiting=1)
    model, script = adapter(Answer(parts=good("x", every=10.0)), gate=gate)
    seen: list[type[Exception]] = []

    async def refused(**more: Any) -> None:
        try:
            await model.chat("hi", **more)
        except (WaitTooLong, QueueFull, Superseded) as error:
            seen.append(type(error).__mro__[1] if type(error) is not Superseded else Superseded)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.chat, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(refused)
        await wait_all_tasks_blocked()
        await refused()
        await refused(max_wait=5.0)
        assert seen == [QueueFull, QueueFull]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.chat, "first")
        await wait_all_tasks_blocked()
        await refused(max_wait=5.0)
        nursery.start_soon(lambda: refused(supersede="key"))
        await wait_all_tasks_blocked()
        assert (await model.chat("newer", supersede="key")).text == "x"
    assert seen == [QueueFull, QueueFull, WaitTooLong, Superseded]
    assert len(script.requests) == 4


async def test_a_person_goes_first(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=good("x", every=1.0)))
    async with trio.open_nursery() as nursery:
        for name, priority in [("now", None), ("digest", None), ("mail", 100), ("person", Priority.FOREGROUND)]:

            async def ask(name: str = name, priority: int | None = priority) -> None:
                await model.chat(name, priority=priority)

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
        assert model.own_work == OwnWork(in_flight=1, waiting=3)
    assert [body["messages"][0]["content"] for body in script.bodies] == ["now", "person", "digest", "mail"]
    assert script.most_open == 1


async def test_who_owns_the_slot_does_not_queue(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=good("x", every=1.0)))
    async with model.endpoint_gate.slot(Priority.FOREGROUND):
        assert (await model.chat("one")).waited == 0.0
        assert (await model.chat("two")).text == "x"
    assert model.own_work == OwnWork()


async def test_the_endpoints_settings_count_where_nobody_says_otherwise(autojump_clock: MockClock) -> None:
    gates = EndpointGates({"http://MACMINI.test:8080": {"request": {"max_wait": 3.0, "hold_timeout": 1.0}}})
    model, _ = adapter(Answer(parts=good("x", every=10.0)), gate=gates)
    assert model.endpoint_gate is gates[URL]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.chat, "first")
        await wait_all_tasks_blocked()
        with Timed() as timed, pytest.raises(WaitTooLong):
            await model.chat("hi")
        assert timed.seconds == 3.0
        assert (await model.chat("hi", max_wait=math.inf)).waited == 7.0


async def test_adapters_of_one_endpoint_share_a_gate(autojump_clock: MockClock) -> None:
    await trio.lowlevel.checkpoint()
    one, _ = adapter(Answer(parts=good("x", every=1.0)))
    other = ModelAdapter(base_url="http://MacMini.test:8080", name="other", transport=ScriptedTransport([Answer()]))
    assert one.endpoint_gate is other.endpoint_gate is current_endpoint_gates()[URL]
    assert other.base_url == "http://MacMini.test:8080/v1"


# ---- measuring ----


async def test_a_measurement_is_the_time_to_the_first_token(autojump_clock: MockClock) -> None:
    model, script = adapter(
        Answer(head_after=2.0, parts=good("x", every=1.5), end_after=1.0), model="m", system_prompt="long", max_tokens=9
    )
    assert await model.measure_inference_latency() == 3.5
    (body,) = script.bodies
    assert (body["max_tokens"], body["model"], len(body["messages"])) == (1, "m", 1)
    assert model.own_work == OwnWork()


async def test_an_answer_without_a_token_is_measured_to_its_end(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=[(2.0, chunk(finish="stop"))]))
    assert await model.measure_inference_latency() == 2.0


async def test_an_end_is_no_token(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=[(2.0, chunk(finish="stop"))]))
    answer = await model.chat("hi")
    assert (answer.text, answer.first_token, answer.seconds) == ("", None, 2.0)
    assert model.last_token_at == -math.inf


@pytest.mark.parametrize("capacity", [0, 1, 2])
async def test_nothing_is_measured_while_the_gate_is_busy(autojump_clock: MockClock, capacity: int) -> None:
    gate = Gate(capacity)
    model, script = adapter(Answer(parts=good("x", every=1.0)), gate=gate)
    async with trio.open_nursery() as nursery:
        if capacity:
            nursery.start_soon(model.chat, "hi")
            await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            await model.measure_inference_latency()
    assert len(script.requests) == min(capacity, 1)


async def test_a_measurement_that_fails_gives_the_slot_back(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(head_after=math.inf))
    with pytest.raises(FirstTokenTooSlow):
        await model.measure_inference_latency()
    assert model.own_work == OwnWork()


# ---- plain requests ----

PLAIN = {"content-type": "application/json"}


async def test_logprobs_come_in_a_plain_answer(autojump_clock: MockClock) -> None:
    logprobs = {"content": [{"token": "hi", "logprob": 0.0}]}
    parts = [(1.0, plain_answer("hi", logprobs=logprobs))]
    model, script = adapter(Answer(head_after=70.0, headers=PLAIN, parts=parts))
    async with model.stream("hi", extra={"logprobs": True}) as stream:
        assert [delta.text async for delta in stream] == ["hi"]
    answer = stream.completion
    assert answer.logprobs == tuple(logprobs["content"])
    assert (answer.first_token, answer.seconds) == (None, 71.0)
    assert script.bodies[0]["stream"] is False


async def test_a_plain_request_that_is_left_keeps_its_slot_until_the_server_is_done(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(head_after=70.0, headers=PLAIN, parts=[(1.0, plain_answer("hi"))]))
    with trio.move_on_after(10.0), use_options(outer_deadline="allow"):
        await model.chat("hi", extra={"logprobs": True})
    assert model.own_work == OwnWork(in_flight=1)
    with Timed() as timed, pytest.raises(AnswerTooSlow):
        await model.chat("hi", extra={"logprobs": True}, hold_timeout=30.0)
    assert timed.seconds == 61.0 + 30.0
    assert model.own_work == OwnWork(in_flight=1)
    await trio.sleep(41.5)
    assert model.own_work == OwnWork()
    assert script.most_open == 1


async def test_a_plain_answer_that_breaks_off(autojump_clock: MockClock) -> None:
    whole = plain_answer("hi")
    model, _ = adapter(Answer(headers=PLAIN, parts=[(1.0, whole[:20])]))
    await fails(model, TruncatedAnswer, 1.0, extra={"logprobs": True})
    model, _ = adapter(Answer(headers=PLAIN, parts=[(1.0, whole[:20])], end=httpx.ReadError("gone")))
    await fails(model, TruncatedAnswer, 1.0, extra={"logprobs": True})
    model, _ = adapter(Answer(headers=PLAIN, parts=[(1.0, b"{nonsense}")]))
    await fails(model, MalformedAnswer, 1.0, extra={"logprobs": True})
    model, _ = adapter(Answer(headers=PLAIN, parts=[(1.0, plain_answer("hi", finish_reason=None))]))
    await fails(model, TruncatedAnswer, 1.0, extra={"logprobs": True})
    model, _ = adapter(Answer(headers=PLAIN))
    await fails(model, TruncatedAnswer, 0.0, extra={"logprobs": True})


@pytest.mark.parametrize(
    "parts", [[(1.0, plain_answer("hi"))], [(0.5, plain_answer("hi")[:9]), (0.5, plain_answer("hi")[9:])]]
)
async def test_a_server_that_answers_plainly_though_asked_for_a_stream(
    autojump_clock: MockClock, parts: Sequence[tuple[float, bytes]]
) -> None:
    model, _ = adapter(Answer(headers=PLAIN, parts=parts))
    answer = await model.chat("hi")
    assert (answer.text, answer.first_token, answer.seconds) == ("hi", None, 1.0)


# ---- the end ----


async def test_closing_the_adapter_closes_what_is_open(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=good("a", "b", every=1.0)))
    async with model.stream("hi") as stream:
        assert (await anext(stream)).text == "a"
        await model.aclose()
        assert script.open == 0
        assert model.own_work == OwnWork()
        with pytest.raises(TruncatedAnswer) as caught:
            await anext(stream)
        assert caught.value.text == "a"
    with pytest.raises(trio.ClosedResourceError, match="'mini' was closed"):
        await model.chat("hi")
    with pytest.raises(trio.ClosedResourceError):
        await model.read()
    await model.aclose()


async def test_what_waits_for_its_slot_is_not_sent_after_the_close(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=good("a", every=10.0)))
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(RuntimeError, match="closed while it waited"):
                await model.chat("second")

        async with model.stream("first"):
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            await model.aclose()
    assert len(script.requests) == 1
    assert model.own_work == OwnWork()


def test_each_run_starts_clean() -> None:
    model, _ = adapter(Answer(parts=good("x")))
    gates = []

    async def main() -> None:
        assert model.last_token_at == -math.inf
        async with model:
            await model.chat("hi")
        assert model.last_token_at <= trio.current_time()
        gates.append(current_endpoint_gates())

    trio.run(main)
    assert model.last_token_at == -math.inf
    trio.run(main)
    assert gates[0] is not gates[1]
    with pytest.raises(RuntimeError, match=r"inside trio\.run"):
        current_endpoint_gates()
