"""Whoever leaves, at whatever pass of the scheduler, gives the slot back and closes the connection."""

from __future__ import annotations

import contextlib
import gc
import math
import warnings
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
from trio.testing import MockClock

from tests.backends.scripted_adapter import adapter
from tests.backends.scripted_server import (
    HEAD,
    Answer,
    chunk,
    good,
    plain_answer,
    raw_server,
    sends_and_waits,
)
from trio_mlxgate import BackendRefused, FirstTokenTooSlow, use_options
from trio_mlxgate.backends import ChatLimits, ModelAdapter
from trio_mlxgate.core.readings import OwnWork

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def read_all(model: ModelAdapter) -> None:
    async with model.stream("hi") as stream:
        async for _ in stream:
            pass


async def leave_early(model: ModelAdapter) -> None:
    async with model.stream("hi") as stream:
        async for _ in stream:
            break


async def measure(model: ModelAdapter) -> None:
    await model.measure_inference_latency()


async def ask_plainly(model: ModelAdapter) -> None:
    await model.chat("hi", extra={"logprobs": True})


async def under_own_slot(model: ModelAdapter) -> None:
    async with model.endpoint_gate.slot():
        await read_all(model)


PLAIN = Answer(headers={"content-type": "application/json"}, parts=[(0.0, plain_answer("hi"))])
STREAM = Answer(parts=good("a", "b"))
REFUSAL = Answer(status=503, parts=[(0.0, b"loading")])


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (read_all, STREAM),
        (leave_early, STREAM),
        (measure, STREAM),
        (under_own_slot, STREAM),
        (ask_plainly, PLAIN),
        (read_all, REFUSAL),
    ],
    ids=["read", "leave", "measure", "own slot", "plain", "refused"],
)
@pytest.mark.parametrize("busy", [False, True])
def test_cancelled_at_every_pass(body: Callable[[ModelAdapter], Awaitable[None]], answer: Answer, busy: bool) -> None:
    """While the gate is free, and while somebody else has the slot for a few passes."""
    cancelled = 0
    for passes in range(400):
        seen: list[bool] = []

        async def main(passes: int = passes, seen: list[bool] = seen) -> None:
            model, script = adapter(answer)
            gate = model.endpoint_gate

            async def other() -> None:
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                blocker.release()

            async def ask(scope: trio.CancelScope) -> None:
                # A measurement while the gate is busy, and the refusal.
                with scope, contextlib.suppress(trio.WouldBlock, BackendRefused):
                    await body(model)

            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                if busy:
                    blocker = gate.acquire_detached_nowait()
                    nursery.start_soon(other)
                nursery.start_soon(ask, scope)
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()  # what is drained has its end
            seen.append(scope.cancelled_caught)
            assert model.own_work == OwnWork()
            assert script.open == 0
            # And it works.
            if answer is STREAM:
                assert (await model.chat("again")).text == "ab"

        trio.run(main, clock=MockClock(autojump_threshold=0))
        cancelled += seen[0]
        if not seen[0] and passes > 20:
            break
    else:
        pytest.fail("it never came to its end")
    assert cancelled >= (1 if body is measure and busy else 10)


async def test_cancelled_while_it_is_tried_again(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(head_after=0.5, broken=httpx.ReadError("reset")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.chat, "hi")
        await trio.sleep(0.52)
        assert model.own_work == OwnWork(in_flight=1)
        nursery.cancel_scope.cancel()
    assert model.own_work == OwnWork()
    assert len(script.requests) == 1


async def test_a_stream_is_used_once(autojump_clock: MockClock) -> None:
    model, _ = adapter(STREAM)
    stream = model.stream("hi")
    with pytest.raises(RuntimeError, match="entered before it is read"):
        await anext(stream)
    with pytest.raises(RuntimeError, match="inside of"):
        _ = stream.waited
    async with stream:
        with pytest.raises(RuntimeError, match="used once"):
            await stream.__aenter__()
        with pytest.raises(RuntimeError, match="after the last delta"):
            _ = stream.completion
        assert [delta.text async for delta in stream if delta.text] == ["a", "b"]
        assert [delta async for delta in stream] == []
    assert stream.completion.text == stream.text == "ab"
    assert [delta async for delta in stream] == []
    with pytest.raises(RuntimeError, match="used once"):
        await stream.__aenter__()


async def test_a_stream_that_was_left_is_closed(autojump_clock: MockClock) -> None:
    model, script = adapter(STREAM)
    async with model.stream("hi") as stream:
        await anext(stream)
        assert "open" in repr(stream)
    assert script.open == 0
    with pytest.raises(trio.ClosedResourceError):
        await anext(stream)
    assert "closed" in repr(stream)


async def test_an_answer_that_was_left_after_its_finish_reason_is_whole(autojump_clock: MockClock) -> None:
    model, _ = adapter(STREAM)
    async with model.stream("hi") as stream:
        async for delta in stream:
            if delta.finish_reason:
                break
    assert (stream.completion.text, stream.completion.usage) == ("ab", None)


async def test_two_tasks_can_not_read_at_once(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=good("a", every=1.0)))
    async with model.stream("hi") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.__anext__)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await anext(stream)


async def test_two_tasks_that_read_in_the_same_step(autojump_clock: MockClock) -> None:
    """The second is told so at once, and the first goes on."""
    model, _ = adapter(Answer(parts=good("a", every=1.0)))
    seen: list[object] = []
    async with model.stream("hi") as stream:

        async def read() -> None:
            try:
                seen.append((await anext(stream)).text)
            except trio.BusyResourceError:
                seen.append(trio.current_time())

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
        assert seen == [start, "a"]
        assert [delta.text async for delta in stream] == [""]
    assert stream.completion.text == "a"


async def test_an_error_of_the_reader_is_his_and_closes_the_stream(autojump_clock: MockClock) -> None:
    model, script = adapter(STREAM)

    async def read_badly() -> None:
        async with model.stream("hi") as stream:
            async for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read_badly()
    assert script.open == 0
    assert model.own_work == OwnWork()


async def test_a_wait_for_a_piece_that_is_cancelled_closes_the_stream(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=[(0.0, chunk("a"))], end_after=math.inf))
    async with model.stream("hi") as stream:
        await anext(stream)
        with trio.move_on_after(1.0):
            await anext(stream)
        assert script.open == 0
        with pytest.raises(trio.ClosedResourceError):
            await anext(stream)


async def test_a_connection_that_hangs_when_it_is_closed_is_given_up(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=[(0.0, chunk("a"))], end_after=math.inf, close_after=math.inf))
    async with model.stream("hi") as stream:
        await anext(stream)
        start = trio.current_time()
    assert trio.current_time() - start == 5.0
    assert model.own_work == OwnWork()


@pytest.mark.integration
async def test_nothing_is_left_to_the_collector() -> None:
    """The generators of httpx and httpcore neither, which lie within each other."""
    limits = ChatLimits(first_token=0.05)
    with trio.fail_after(20.0), use_options(outer_deadline="allow"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with (
            raw_server(sends_and_waits(HEAD + chunk("a")), sends_and_waits(HEAD)) as server,
            ModelAdapter(base_url=server.base_url, limits=limits) as model,
        ):
            await leave_early(model)
            with pytest.raises(FirstTokenTooSlow):
                await read_all(model)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_all, model)
                await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
