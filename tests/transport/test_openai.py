"""openai's SDK on trio, with a client of either family, through the gate, against the embedded server."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

import trio_mlxgate.httpx
from trio_mlxgate import Fallback, Gate, Priority, rewrite_to, use_options, use_priority
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_mlxgate.testing import InferenceServer

openai: Any = pytest.importorskip("openai")
pytestmark = pytest.mark.integration

MESSAGES: Any = [{"role": "user", "content": "one two three four"}]


@pytest.fixture(params=["httpx", "httpx2"])
def family(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    if request.param == "httpx":
        return httpx, trio_mlxgate.httpx
    return importlib.import_module("httpx2"), importlib.import_module("trio_mlxgate.httpx2")


@pytest.fixture
async def server() -> AsyncIterator[InferenceServer]:
    async with inference_server(service_time=0.4, tokens=8) as running:
        yield running


def make_sdk(family: tuple[Any, Any], server: InferenceServer, gate: Gate, **kwargs: Any) -> Any:
    module, gated = family
    client = module.AsyncClient(transport=gated.GateTransport(gate))
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="none", http_client=client, max_retries=0, **kwargs)


async def test_plain_and_streamed_calls_pass_the_gate(family: tuple[Any, Any], server: InferenceServer) -> None:
    gate = Gate(1, outer_deadline="allow")
    async with make_sdk(family, server, gate) as sdk:

        async def plain() -> None:
            answer = await sdk.chat.completions.create(model="m", messages=MESSAGES)
            assert "one two three four" in (answer.choices[0].message.content or "")
            assert "echo" in answer.model

        async def streamed() -> None:
            words = []
            async with await sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
                async for chunk in stream:
                    assert gate.statistics().in_flight == 1
                    words += [choice.delta.content or "" for choice in chunk.choices]
            assert "one two three four" in "".join(words)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(plain)
                    nursery.start_soon(streamed)
    seen = gate.statistics()
    assert (seen.admitted, seen.in_flight) == (6, 0)
    status = await server.status()
    assert status["total_requests"] == status["completed"] == 6
    assert status["max_active_jobs"] == 1


async def test_the_clients_timeout_does_not_fire_in_the_queue(family: tuple[Any, Any], server: InferenceServer) -> None:
    gate = Gate(1)
    async with make_sdk(family, server, gate, timeout=1.0) as sdk, trio.open_nursery() as nursery:

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            async with gate.slot(Priority.FOREGROUND):
                task_status.started()
                await trio.sleep(2.0)

        await nursery.start(hold)
        start = trio.current_time()
        with use_priority(Priority.FOREGROUND):
            await sdk.chat.completions.create(model="m", messages=MESSAGES)
        assert trio.current_time() - start > 2.0


@pytest.mark.parametrize("how", ["leave", "close"])
async def test_leaving_a_stream_frees_the_slot_at_once_and_the_server_sees_it(
    family: tuple[Any, Any], how: str
) -> None:
    gate = Gate(1)
    async with inference_server(service_time=20.0, tokens=200) as server, make_sdk(family, server, gate) as sdk:
        stream = await sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        if how == "leave":
            async with stream:
                await anext(stream)
        else:
            await anext(stream)
            await stream.close()
        assert gate.statistics().in_flight == 0
        with trio.fail_after(2):
            while (await server.status())["active_jobs"]:  # noqa: ASYNC110 - the server tells no event
                await trio.sleep(0.05)
        assert (await server.status())["abandoned"] == 1


async def test_what_the_gate_raises_reaches_the_user_as_the_sdks_timeout(
    family: tuple[Any, Any], server: InferenceServer
) -> None:
    gate = Gate(1)
    async with make_sdk(family, server, gate) as sdk:
        async with gate.slot(), trio.open_nursery() as nursery:

            async def refused() -> None:
                with use_options(max_wait=0.1), pytest.raises(openai.APITimeoutError) as error:
                    await sdk.chat.completions.create(model="m", messages=MESSAGES)
                assert isinstance(error.value.__cause__, trio_mlxgate.WaitTooLong)

            nursery.start_soon(refused)
        with use_options(hold_timeout=0.1), pytest.raises(openai.APITimeoutError) as error:
            await sdk.chat.completions.create(model="m", messages=MESSAGES)
        assert isinstance(error.value.__cause__, trio.TooSlowError)
        # By a header, where the SDK has a place for one.
        await sdk.chat.completions.create(model="m", messages=MESSAGES, extra_headers={"Priority": "u=0"})
    assert gate.statistics().in_flight == 0
    assert (await server.status())["total_requests"] == 2


async def test_the_sdk_gets_its_answer_from_the_fallback(family: tuple[Any, Any], server: InferenceServer) -> None:
    module, gated = family
    gate = Gate(1, outer_deadline="allow")
    with trio.fail_after(30):
        async with inference_server() as dead:
            dead.kill()
            await dead.wait()
            rewrite = rewrite_to(server.base_url, api_key="another", model="other")
            fallback = Fallback(module.AsyncHTTPTransport(), rewrite)
            client = module.AsyncClient(transport=gated.GateTransport(gate, fallback=fallback))
            async with openai.AsyncOpenAI(
                base_url=dead.base_url, api_key="none", http_client=client, max_retries=0
            ) as sdk:
                answer = await sdk.chat.completions.create(model="m", messages=MESSAGES)
                assert "one two three four" in (answer.choices[0].message.content or "")
                words = []
                async with await sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
                    async for chunk in stream:
                        words += [choice.delta.content or "" for choice in chunk.choices]
                assert "one two three four" in "".join(words)
                server.kill()
                await server.wait()
                with pytest.raises(openai.APIConnectionError) as error:
                    await sdk.chat.completions.create(model="m", messages=MESSAGES)
                assert isinstance(error.value.__cause__, module.ConnectError)
                assert isinstance(error.value.__cause__.__cause__, module.ConnectError)


async def test_a_call_of_the_sdk_that_was_left_is_drained(family: tuple[Any, Any], server: InferenceServer) -> None:
    module, gated = family
    gate = Gate(1, outer_deadline="allow")
    client = module.AsyncClient(transport=gated.GateTransport(gate, abandoned="drain"))
    with trio.fail_after(30):
        async with openai.AsyncOpenAI(
            base_url=server.base_url, api_key="none", http_client=client, max_retries=0
        ) as sdk:
            with trio.move_on_after(0.2) as left:
                await sdk.chat.completions.create(model="m", messages=MESSAGES)
            assert left.cancelled_caught
            # The SDK's own timeout leaves it, too.
            with pytest.raises(openai.APITimeoutError):
                await sdk.chat.completions.create(model="m", messages=MESSAGES, timeout=0.2)
            assert gate.statistics().in_flight == 1
            words = []
            async with await sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
                async for chunk in stream:
                    words += [choice.delta.content or "" for choice in chunk.choices]
            assert "one two three four" in "".join(words)
            answer = await sdk.chat.completions.create(model="m", messages=MESSAGES)
            assert "one two three four" in (answer.choices[0].message.content or "")
    status = await server.status()
    assert (status["completed"], status["abandoned"], status["overlaps"]) == (4, 0, 0)
