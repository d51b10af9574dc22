"""An adapter that is closed while others use it: they are told at once, bare, and nothing is left behind."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.backends.scripted_adapter import URL, adapter
from tests.backends.scripted_server import HEAD, Answer, ScriptedTransport, chunk, good, raw_server, sends_and_waits
from trio_mlxgate.backends import BackendRegistry, ModelAdapter
from trio_mlxgate.core.readings import OwnWork

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PLAIN = {"content-type": "application/json"}


class Silent(httpx.AsyncBaseTransport):
    """Never answers."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError("it sleeps forever")


async def refused_at_once(model: ModelAdapter, ask: Callable[[], Awaitable[object]]) -> None:
    """Close the adapter while another task asks: that one gets the one error, and time does not pass."""
    refused: list[trio.ClosedResourceError] = []

    async def other() -> None:
        with pytest.raises(trio.ClosedResourceError, match=r"'mini' was closed.*make a new one") as caught:
            await ask()
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        await model.aclose()
        assert model.own_work.waiting == 0
        await wait_all_tasks_blocked()
        assert len(refused) == 1
        assert refused[0].__suppress_context__
        assert trio.current_time() == start


async def test_who_waits_for_a_slot(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=good("a", every=10.0)))
    async with model.endpoint_gate.slot():
        await refused_at_once(model, lambda: model.chat("hi"))
    assert model.own_work == OwnWork()
    assert script.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(connect_after=1.0),
        Answer(head_after=50.0),
        Answer(broken=httpx.ReadError("reset")),  # it waits to be sent again
        Answer(parts=good("a", "b", every=10.0)),
        Answer(status=500, parts=[(1.0, b"no")]),
    ],
    ids=["connecting", "head", "again", "reading", "refusal"],
)
async def test_who_waits_for_the_server(autojump_clock: MockClock, answer: Answer) -> None:
    model, script = adapter(answer)
    await refused_at_once(model, lambda: model.chat("hi"))
    assert model.own_work == OwnWork()
    assert script.open == 0


async def test_who_waits_for_a_plain_answer(autojump_clock: MockClock) -> None:
    """The server works on, and so nobody else may have the slot until then, as with each plain request that is left."""
    model, script = adapter(Answer(headers=PLAIN, head_after=50.0, parts=[(10.0, b"{}")]))
    await refused_at_once(model, lambda: model.chat("hi", extra={"logprobs": True}))
    assert model.own_work == OwnWork(in_flight=1)
    await trio.sleep(60.5)
    assert (script.open, model.own_work) == (0, OwnWork())


async def test_who_measures(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(head_after=50.0))
    await refused_at_once(model, model.measure_inference_latency)
    assert (model.own_work, script.open) == (OwnWork(), 0)


async def test_who_looks(autojump_clock: MockClock) -> None:
    model = ModelAdapter(base_url=URL, name="mini", transport=Silent())
    await refused_at_once(model, model.read)


async def test_slots_are_back_when_closing_returns(autojump_clock: MockClock) -> None:
    """Also of who has been granted one in this very step."""
    model, script = adapter(Answer(parts=good("a", every=10.0)))
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await model.chat("hi")

        blocker = model.endpoint_gate.acquire_detached_nowait()
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        blocker.release()
        await model.aclose()
        assert model.own_work == OwnWork()
    assert script.open == 0


async def test_a_stream_that_lies_open(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=good("a", "b", every=1.0)))
    async with model.stream("hi") as stream:
        assert (await anext(stream)).text == "a"
        await model.aclose()
        assert (script.open, model.own_work) == (0, OwnWork())
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError):
                await anext(stream)
        assert stream.text == "a"
    assert model.closed
    for ask in (lambda: model.chat("hi"), model.read, model.health_check):
        with pytest.raises(trio.ClosedResourceError, match="a registry"):
            await ask()
    await model.aclose()


async def test_what_was_read_before_is_not_lost(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(parts=[(0.0, chunk("a") + chunk("b") + chunk(finish="stop"))], end_after=math.inf))
    async with model.stream("hi") as stream:
        await anext(stream)
        await model.aclose()
        assert [delta.text async for delta in stream] == ["b", ""]
    assert stream.completion.text == "ab"


async def test_who_closes_may_be_cancelled(autojump_clock: MockClock) -> None:
    model, script = adapter(Answer(parts=[(0.0, chunk("a"))], end_after=math.inf, close_after=2.0))
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await model.chat("hi")

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await model.aclose()
        assert model.closed
    assert (script.open, model.own_work) == (0, OwnWork())


async def test_a_cancellation_of_the_callers_stays_his(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(head_after=50.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.chat, "hi")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        await model.aclose()
    assert model.own_work == OwnWork()


async def test_a_registry_closes_its_backends(autojump_clock: MockClock) -> None:
    model, _ = adapter(Answer(headers=PLAIN, parts=[(0.0, b"{}")]))
    async with BackendRegistry({"role": model}):
        assert not model.closed
    assert model.closed


def test_in_the_next_run_it_is_open_again() -> None:
    model, _ = adapter(Answer(parts=good("x")))

    async def main() -> None:
        async with model:
            assert (await model.chat("hi")).text == "x"
        assert model.closed

    trio.run(main)
    assert not model.closed
    trio.run(main)


@pytest.mark.integration
async def test_with_a_real_connection() -> None:
    with trio.fail_after(20.0):
        async with raw_server(sends_and_waits(HEAD + chunk("a"))) as server, trio.open_nursery() as nursery:
            model = ModelAdapter(base_url=server.base_url, name="mini")
            seen = trio.Event()

            async def read() -> None:
                async with model.stream("hi", outer_deadline="allow") as stream:
                    async for _ in stream:
                        seen.set()

            async def read_until_closed() -> None:
                with pytest.raises(trio.ClosedResourceError, match="'mini'"):
                    await read()

            nursery.start_soon(read_until_closed)
            await seen.wait()
            await model.aclose()
        # The reader is over: had it been between two reads, it would have given its slot back by itself.
        assert model.own_work == OwnWork()


# ---- without trio ----


async def _enter(model: ModelAdapter) -> None:
    async with model:
        pass


async def _stream(model: ModelAdapter) -> None:
    async with model.stream("hi", outer_deadline="allow"):
        pass


@pytest.mark.parametrize(
    "use",
    [
        _enter,
        _stream,
        *(lambda model: model.chat("hi"), lambda model: model.measure_inference_latency(), lambda model: model.read()),
        *(lambda model: model.health_check(), lambda model: model.status_check(), lambda model: model.aclose()),
    ],
)
def test_under_asyncio_it_is_told_in_a_sentence(use: Callable[[ModelAdapter], Awaitable[object]]) -> None:
    async def main() -> None:
        model = ModelAdapter(base_url=URL, transport=ScriptedTransport([Answer()]))
        assert not model.closed
        with pytest.raises(RuntimeError, match=r"backends are for trio.*trio_mlxgate\.anyio"):
            await use(model)

    asyncio.run(main())
