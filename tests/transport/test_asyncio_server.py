"""The transport and openai's SDK under asyncio, both families, on real sockets against the embedded server."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio

import trio_mlxgate
from tests.loops import LOOPS, echo_server, families, passes, run_on
from trio_mlxgate import EndpointSettings, Fallback, Priority, rewrite_to, use_options, use_priority
from trio_mlxgate.anyio import EndpointGates, Gate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.loops import Server

pytestmark = pytest.mark.integration

QUESTION: Any = {"messages": [{"role": "user", "content": "one two three four"}]}
STREAM: Any = {**QUESTION, "stream": True}


@pytest.fixture(params=families(), ids=lambda family: family[0].__name__)
def family(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    found: tuple[Any, Any] = request.param
    return found


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest, family: tuple[Any, Any]) -> str:
    """Each kind of event loop in turn: both families on asyncio's own, one of them on the others."""
    kind: str = request.param
    if kind != "asyncio" and family[0].__name__ != "httpx":
        pytest.skip("what the families don't share knows nothing of event loops")
    return kind


@pytest.fixture
def server() -> Iterator[Server]:
    with echo_server(service_time=0.2, tokens=8) as running:
        yield running


@pytest.fixture
def slow_server() -> Iterator[Server]:
    with echo_server(service_time=20.0, tokens=200) as running:
        yield running


def make_gate(**options: Any) -> Gate:
    return Gate(1, name="macmini", **{"outer_deadline": "allow", **options})


def make_client(family: tuple[Any, Any], server: Server, gate: Any, **options: Any) -> Any:
    module, gated = family
    return module.AsyncClient(base_url=server.base_url, transport=gated.GateTransport(gate, **options))


# ---- clients ----


def test_one_at_a_time_and_the_clients_timeout_does_not_run_in_the_queue(
    family: tuple[Any, Any], server: Server, loop: str
) -> None:
    async def main() -> None:
        gate = make_gate()
        async with make_client(family, server, gate) as client, asyncio.TaskGroup() as group:

            async def plain() -> None:
                response = await client.post("chat/completions", json=QUESTION, timeout=1.0)
                assert response.status_code == 200

            async def streamed() -> None:
                async with client.stream("POST", "chat/completions", json=STREAM, timeout=1.0) as response:
                    async for _ in response.aiter_lines():
                        assert gate.statistics().in_flight == 1

            for _ in range(4):  # 1.6 s
                group.create_task(plain())
                group.create_task(streamed())
        assert gate.statistics().in_flight == 0
        status = await server.status()
        assert (status["completed"], status["max_active_jobs"], status["overlaps"]) == (8, 1, 0)

    run_on(loop, main)


@pytest.mark.parametrize("how", ["scope", "Task.cancel", "timeout", "close", "drop"])
def test_leaving_a_stream_frees_the_slot_and_the_server_sees_it(
    family: tuple[Any, Any], slow_server: Server, how: str
) -> None:
    async def main() -> None:
        gate = make_gate()
        async with make_client(family, slow_server, gate) as client:
            if how in ("close", "drop"):
                request = client.build_request("POST", "chat/completions", json=STREAM)
                response = await client.send(request, stream=True)
                if how == "close":
                    await response.aclose()
                else:
                    with pytest.warns(ResourceWarning, match="was dropped"):
                        await dropped([response, response := None])
            else:

                async def read() -> None:
                    async with client.stream("POST", "chat/completions", json=STREAM) as response:
                        async for _ in response.aiter_raw():
                            begun.set()

                begun = asyncio.Event()
                if how == "scope":
                    with anyio.move_on_after(0.5):
                        await read()
                elif how == "timeout":
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await read()
                else:
                    task = asyncio.create_task(read())
                    await begun.wait()
                    task.cancel()
                    await asyncio.wait([task])
            assert gate.statistics().in_flight == 0
            await slow_server.comes_to(active_jobs=0, abandoned=1)

    run_on("asyncio", main)


async def dropped(box: list[Any]) -> None:

    box.clear()
    gc.collect()
    await asyncio.sleep(0.2)


def test_the_hold_budget(family: tuple[Any, Any], slow_server: Server) -> None:
    async def main() -> None:
        gate = make_gate()
        async with make_client(family, slow_server, gate) as client:
            for question in QUESTION, STREAM:
                with use_options(hold_timeout=0.3), pytest.raises(family[1].HoldTimeout) as ended:
                    await client.post("chat/completions", json=question)
                for kind in (trio.TooSlowError, TimeoutError, family[0].ReadTimeout):
                    assert isinstance(ended.value, kind)
                assert gate.statistics().in_flight == 0

    run_on("asyncio", main)


def test_cancelled_at_any_moment_nothing_is_lost(family: tuple[Any, Any], loop: str) -> None:
    """The clients leave after 0 to 20 passes of the loop, or so many ms, once or twice; the server works for 5 ms."""

    async def main(server: Server) -> None:
        gate = make_gate()
        async with make_client(family, server, gate) as client:

            async def impatient(number: int) -> None:
                for turn in range(20):
                    stream = (number + turn) % 2
                    task = asyncio.create_task(client.post("chat/completions", json=STREAM if stream else QUESTION))
                    patience = (number * 7 + turn) % 21
                    if turn % 3:
                        await asyncio.sleep(patience / 1000)
                    else:
                        await passes(patience)
                    task.cancel()
                    if turn % 2:
                        await passes(turn)
                        task.cancel()
                    await asyncio.wait([task])

            async with asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(impatient(number))
            await asyncio.wait_for(gate.wait_idle(), 5)
            assert (await client.post("chat/completions", json=QUESTION)).status_code == 200
            assert gate.statistics().in_flight == 0

    with echo_server(service_time=0.005, tokens=3, plain_on_disconnect="stop") as server:
        run_on(loop, lambda: main(server))


def test_abandoned_requests_are_drained(family: tuple[Any, Any], server: Server) -> None:
    async def main() -> None:
        gate = make_gate()
        async with make_client(family, server, gate, abandoned="drain") as client:
            for _ in range(3):
                task = asyncio.create_task(client.post("chat/completions", json=QUESTION))
                await asyncio.sleep(0.1)
                task.cancel()
                await asyncio.wait([task])
            assert (await client.post("chat/completions", json=QUESTION)).status_code == 200
        status = await server.status()
        assert (status["abandoned"], status["overlaps"]) == (0, 0)

    run_on("asyncio", main)


def test_the_fallback_of_a_dead_server(family: tuple[Any, Any], server: Server) -> None:
    async def main(dead: Server) -> None:
        gate = make_gate()
        fallback = Fallback(family[0].AsyncHTTPTransport(), rewrite_to(server.base_url, model="other"))
        async with make_client(family, dead, gate, fallback=fallback) as client:
            dead.process.kill()
            dead.process.wait()
            response = await client.post("chat/completions", json=QUESTION)
            assert response.extensions["mlxgate"]["fallback"] == "unreachable"
            assert gate.statistics().in_flight == 0

    with echo_server() as dead:
        run_on("asyncio", lambda: main(dead))


def test_each_server_has_its_gate(family: tuple[Any, Any], server: Server) -> None:
    async def main(other: Server) -> None:
        gates = EndpointGates({server.url: EndpointSettings(capacity=1), other.url: EndpointSettings(capacity=2)})
        async with make_client(family, server, gates) as client, asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(client.post("chat/completions", json=QUESTION))
                group.create_task(client.post(f"{other.base_url}/chat/completions", json=QUESTION))
        assert gates.gate_for(server.url).statistics().admitted == 3
        assert gates.gate_for(other.url).capacity == 2
        assert (await server.status())["max_active_jobs"] == 1

    with echo_server(service_time=0.1) as other:
        run_on("asyncio", lambda: main(other))


# ---- openai's SDK ----


def make_sdk(family: tuple[Any, Any], server: Server, gate: Gate, **options: Any) -> Any:
    openai = pytest.importorskip("openai")
    module, gated = family
    client = module.AsyncClient(transport=gated.GateTransport(gate))
    options = {"max_retries": 0, **options}
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="none", http_client=client, **options)


def test_the_sdks_calls_pass_by_priority(family: tuple[Any, Any], server: Server, loop: str) -> None:
    async def main() -> list[str]:
        gate, ended = make_gate(), list[str]()
        async with make_sdk(family, server, gate, timeout=1.0) as sdk, asyncio.TaskGroup() as group:

            async def digest(number: int) -> None:
                answer = await sdk.chat.completions.create(model="m", **QUESTION)
                assert "one two three four" in (answer.choices[0].message.content or "")
                ended.append(f"digest {number}")

            async def person() -> None:
                words = []
                with use_priority(Priority.FOREGROUND):
                    stream = await sdk.chat.completions.create(model="m", **STREAM)
                async with stream:
                    async for chunk in stream:
                        assert gate.statistics().in_flight == 1
                        words += [choice.delta.content or "" for choice in chunk.choices]
                assert "one two three four" in "".join(words)
                ended.append("person")

            for number in range(4):
                group.create_task(digest(number))
            while gate.statistics().tasks_waiting < 3:
                await asyncio.sleep(0.01)
            group.create_task(person())
        assert gate.statistics().in_flight == 0
        return ended

    ended = run_on(loop, main)
    assert ended[1] == "person"
    assert sorted(ended) == ["digest 0", "digest 1", "digest 2", "digest 3", "person"]


@pytest.mark.parametrize("how", ["leave", "close", "cancel"])
def test_leaving_a_stream_of_the_sdk(family: tuple[Any, Any], slow_server: Server, how: str) -> None:
    async def main() -> None:
        gate = make_gate()
        async with make_sdk(family, slow_server, gate) as sdk:

            async def read() -> None:
                async for _ in stream:
                    pass

            stream = await sdk.chat.completions.create(model="m", **STREAM)
            if how == "leave":
                async with stream:
                    await anext(stream)
            elif how == "close":
                await anext(stream)
                await stream.close()
            else:
                task = asyncio.create_task(read())
                await asyncio.sleep(0.3)
                task.cancel()
                await asyncio.wait([task])
            assert gate.statistics().in_flight == 0
            await slow_server.comes_to(active_jobs=0, abandoned=1)

    run_on("asyncio", main)


def test_what_the_sdk_tries_again_queues_again(family: tuple[Any, Any], server: Server) -> None:
    openai = pytest.importorskip("openai")

    async def main() -> None:
        gate = make_gate()
        async with make_sdk(family, server, gate, max_retries=2) as sdk:
            async with gate.slot():

                async def refused() -> None:
                    with use_options(max_wait=0.05), pytest.raises(openai.APITimeoutError) as error:
                        await sdk.chat.completions.create(model="m", **QUESTION)
                    assert isinstance(error.value.__cause__, trio_mlxgate.WaitTooLong)

                refusal = asyncio.create_task(refused())
                await refusal
            assert gate.statistics().rejected_by_reason == {"wait_too_long": 3}
            with use_options(hold_timeout=0.05), pytest.raises(openai.APITimeoutError) as error:
                await sdk.chat.completions.create(model="m", **QUESTION)
            assert isinstance(error.value.__cause__, TimeoutError)
            assert gate.statistics().admitted == 4
            # By a header, where the SDK has a place for one.
            await sdk.chat.completions.create(model="m", **QUESTION, extra_headers={"Priority": "u=0"})
            assert gate.statistics().in_flight == 0

    run_on("asyncio", main)
