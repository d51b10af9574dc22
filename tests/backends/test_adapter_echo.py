"""The adapter in front of the embedded server, which runs one inference at a time and tells what it does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_mlxgate import BackendUnreachable, EndpointGates, Priority, TruncatedAnswer, use_options
from trio_mlxgate.backends import ModelAdapter
from trio_mlxgate.core.readings import Health
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_mlxgate.testing import InferenceServer

pytestmark = pytest.mark.integration

LIMIT = 30.0


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[InferenceServer, ModelAdapter]]:
    gates = EndpointGates(default={"outer_deadline": "allow"})
    with trio.fail_after(LIMIT):
        async with (
            inference_server(**settings) as server,
            ModelAdapter(base_url=server.base_url, gate=gates) as model,
        ):
            yield server, model


async def test_chat_and_stream() -> None:
    async with serving(service_time=0.1, tokens=5) as (_, model):
        answer = await model.chat("하나 둘 셋")
        assert answer.text == "하나 둘 셋 하나 둘"
        assert answer.usage is not None
        assert (answer.usage.completion_tokens, answer.finish_reason) == (5, "stop")
        assert answer.first_token is not None
        assert 0 < answer.first_token < answer.seconds
        async with model.stream("a b c", max_tokens=3) as stream:
            deltas = [delta async for delta in stream]
        assert "".join(delta.text for delta in deltas) == stream.completion.text == "a b c"
        assert len([delta for delta in deltas if delta.text]) == 3
        assert deltas[-1].finish_reason == "length"


async def test_a_stream_that_is_left_frees_the_server() -> None:
    async with serving(service_time=60.0, tokens=600) as (server, model):
        async with model.stream("go on") as stream:
            await anext(stream)
        start = trio.current_time()
        # Plainly asked it would go on for a minute.
        assert (await model.chat("next", max_tokens=1)).text == "next"
        assert trio.current_time() - start < 5.0
        status = await server.status()
        assert status["ghost_jobs"] == 0


async def test_chats_that_are_left_free_the_server() -> None:
    async with serving(service_time=60.0, tokens=600) as (server, model):
        for _ in range(3):
            with trio.move_on_after(0.15), use_options(outer_deadline="allow"):
                await model.chat("go on")
        start = trio.current_time()
        assert (await model.chat("next", max_tokens=1)).text == "next"
        assert trio.current_time() - start < 5.0
        assert (await server.status())["ghost_jobs"] == 0


async def test_whoever_leaves_whenever_leaves_nothing_behind() -> None:
    async with serving(service_time=0.05, tokens=10) as (server, model):
        for number in range(40):
            with trio.move_on_after(number * 0.002):
                async with model.stream(f"{number}") as stream:
                    async for _ in stream:
                        pass
            assert model.own_work.in_flight == 0
        assert (await model.chat("next", max_tokens=1)).text == "next"
        status = await server.status()
        assert (status["ghost_jobs"], status["overlaps"], status["active_jobs"]) == (0, 0, 0)


async def test_a_person_goes_first() -> None:
    async with serving(service_time=0.05) as (server, model):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(model.chat, f"digest{number}")
            await trio.testing.wait_all_tasks_blocked(0.005)
            await model.chat("person", priority=Priority.FOREGROUND)
        order = [job["label"] for job in (await server.status())["order"]]
        assert order.index("person") <= 2
        assert len(order) == 7
        assert (await server.status())["overlaps"] == 0


async def test_it_looks_at_the_server() -> None:
    async with serving() as (_, model):
        assert await model.health_check()
        status = await model.status_check()
        assert status is not None
        assert status.active_jobs == 0
        assert (await model.read()).health is Health.UP
        assert 0 < await model.measure_inference_latency() < 10


async def test_a_server_that_dies_in_the_middle() -> None:
    with trio.fail_after(LIMIT):
        async with inference_server(service_time=20.0, tokens=600) as server:
            gates = EndpointGates(default={"outer_deadline": "allow"})
            model = ModelAdapter(base_url=server.base_url, gate=gates)
            async with model.stream("a b") as stream:
                await anext(stream)
                server.kill()
                with pytest.raises(TruncatedAnswer) as caught:
                    async for _ in stream:
                        pass
            assert caught.value.text.startswith("a")
            with pytest.raises(BackendUnreachable):
                await model.chat("hi")
            assert not await model.health_check()
            assert model.own_work.in_flight == 0
            await model.aclose()
