"""The adapter on the virtual clock: each limit at its exact time, with its own error, and not in the queue."""

from __future__ import annotations

import math

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.backends.scripted_adapter import Timed, adapter, fails
from tests.backends.scripted_server import (
    DONE,
    KEEPALIVE,
    USAGE,
    Answer,
    chunk,
    good,
    usage_chunk,
)
from trio_mlxgate import (
    AnswerTooSlow,
    BackendTooSlow,
    BackendUnreachable,
    ConnectTooSlow,
    FirstTokenTooSlow,
    MalformedAnswer,
    Priority,
    TokenGapTooLong,
    TruncatedAnswer,
    use_options,
)
from trio_mlxgate.backends import ChatLimits, Usage
from trio_mlxgate.core.readings import OwnWork


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
    assert "15 s (limits.gap) after a token" in str(error)
    assert isinstance(error, BackendTooSlow)
    assert error.text == "half"


async def test_the_whole(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=good(*"abcdefgh", every=10.0)), hold_timeout=35.0)
    error = await fails(model, AnswerTooSlow, 35.0)
    assert "35 s" in str(error)
    assert isinstance(error, BackendTooSlow)
    assert error.text == "abc"
    too_early = await fails(model, AnswerTooSlow, 5.0, hold_timeout=5.0)
    assert isinstance(too_early, BackendTooSlow)
    assert too_early.text == ""
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
    assert "came (sent 4 times): " in str(error)
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
