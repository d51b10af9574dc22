"""The adapter on the virtual clock: at its gate, when it measures, with plain requests, and when it is closed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.backends.scripted_adapter import URL, Timed, adapter, fails
from tests.backends.scripted_server import (
    Answer,
    ScriptedTransport,
    chunk,
    good,
    plain_answer,
)
from trio_mlxgate import (
    AnswerTooSlow,
    EndpointGates,
    FirstTokenTooSlow,
    Gate,
    MalformedAnswer,
    Priority,
    QueueFull,
    Superseded,
    TruncatedAnswer,
    WaitTooLong,
    use_options,
)
from trio_mlxgate.backends import ModelAdapter, current_endpoint_gates
from trio_mlxgate.core.readings import OwnWork

if TYPE_CHECKING:
    from collections.abc import Sequence

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


async def test_a_deadline_around_the_wait_may_be_what_is_meant(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=good("x", every=1.0)))
    with trio.move_on_after(10.0):
        assert (await model.chat("hi", outer_deadline="allow")).text == "x"
        async with model.stream("hi", outer_deadline="allow") as stream:
            assert (await anext(stream)).text == "x"
        with pytest.raises(RuntimeError, match="outer_deadline='allow'"):
            await model.chat("hi", outer_deadline="raise")
    with pytest.raises(ValueError, match="outer_deadline"):
        model.stream("hi", outer_deadline="never")  # type: ignore[arg-type]


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


async def test_what_the_caller_wants_of_his_own_requests_is_nothing_to_a_measurement(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(head_after=2.0, parts=good("x")))
    with use_options(hold_timeout=0.5, max_wait=0.1, priority=Priority.FOREGROUND, abandoned="drain"):
        assert await model.measure_inference_latency() == 2.0
    options = script.requests[0].extensions["mlxgate"]
    assert (options.priority, options.max_wait, options.hold_timeout) == (Priority.BACKGROUND, 0.0, 300.0)


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
