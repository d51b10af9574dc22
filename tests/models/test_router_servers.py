"""The router before real servers, in real time: turns, the bound of a wait, kill -9 of a server and of ourselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trio

from tests.limits import ends_within
from tests.models.process_servers import is_alive, server, wait_gone, wait_none_with, with_token
from trio_mlxgate.models import (
    LeaseProgress,
    ModelConfig,
    ModelCrashed,
    ModelRouter,
    ModelState,
    ModelUnloaded,
    RestartSettings,
    RouterConfig,
    SwapOptions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

SERVER = [sys.executable, "-m", "trio_mlxgate", "echo-server", "--port", "${PORT}", "--service-time"]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with ends_within(120):
        yield


def model(name: str, service_time: float = 0.02, **settings: Any) -> ModelConfig:
    return ModelConfig(
        **{
            "name": name,
            "command": [*SERVER, str(service_time)],
            "start_timeout": 60.0,
            "stop_grace": 5.0,
            "restarts": RestartSettings(first=0.05),
            **settings,
        }
    )


def router(*models: ModelConfig, **settings: Any) -> ModelRouter:
    return ModelRouter(RouterConfig(models=models, **settings))


async def chat(client: httpx.AsyncClient, base_url: str, text: str = "hello") -> None:
    body = {"messages": [{"role": "user", "content": text}]}
    answer = await client.post(f"{base_url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert text in answer.text


def patient() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=60.0, trust_env=False)


async def test_thirty_requests_for_two_models_in_one_place_make_one_eviction() -> None:
    async with router(model("a"), model("b")) as routed, patient() as client:

        async def ask(number: int) -> None:
            async with routed.lease("ab"[number % 2]) as lease:
                await chat(client, lease.base_url, f"number {number}")

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(ask, number)
                await trio.sleep(0.004)
        statistics = routed.statistics()
        assert statistics.evictions == 1
        assert statistics.loads == 2
        assert [statistics.models[name].admitted for name in "ab"] == [15, 15]


@attrs.define
class Run:
    """One B beside A traffic that always overlaps: when it asked, what came before it, and when."""

    asked: float = 0.0
    granted: float = 0.0
    steps: dict[str, float] = attrs.field(factory=dict)
    grants_of_a: list[float] = attrs.field(factory=list)
    ends_of_a: list[float] = attrs.field(factory=list)


async def b_beside_a(swap: SwapOptions, traffic: float) -> Run:
    run = Run()

    def note(step: LeaseProgress) -> None:
        run.steps.setdefault(step.stage.value, trio.current_time())

    async with router(model("a", 0.3), model("b", 0.02), swap=swap) as routed, patient() as client:
        async with routed.lease("a") as lease:
            await chat(client, lease.base_url)

        async def one() -> None:
            async with routed.lease("a") as lease:
                run.grants_of_a.append(trio.current_time())
                await chat(client, lease.base_url)
            run.ends_of_a.append(trio.current_time())

        async def many() -> None:
            end = trio.current_time() + traffic
            while trio.current_time() < end and not run.granted:
                nursery.start_soon(one)
                # The next one has come before this one is over.
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(many)
            await trio.sleep(0.5)
            assert routed.statistics().models["a"].in_flight
            run.asked = trio.current_time()
            async with routed.lease("b", on_progress=note) as lease:
                run.granted = trio.current_time()
                await chat(client, lease.base_url)
    return run


async def test_one_b_beside_endless_a_is_served_within_the_bound() -> None:
    run = await b_beside_a(SwapOptions(max_bypass=1.0), traffic=60.0)
    closed = run.asked + 1.0
    before = [at for at in run.grants_of_a if at < run.granted]
    assert max(before) <= closed + 0.2, "a newcomer was served though B had waited for max_bypass"
    rest = max(at for at in run.ends_of_a if at < run.granted) - closed
    stop = run.steps["loading"] - run.steps["evicting"]
    load = run.steps["ready"] - run.steps["loading"]
    assert 1.0 <= run.granted - run.asked <= 1.0 + rest + stop + load + 0.3


async def test_without_the_bound_b_waits_as_long_as_the_traffic_lasts() -> None:
    run = await b_beside_a(SwapOptions.parity(), traffic=3.0)
    assert run.granted - run.asked > 2.4


async def test_a_server_that_is_killed_in_mid_request_is_named_and_replaced() -> None:
    async with router(model("a", 30.0), model("b")) as routed, patient() as client:

        async def ask() -> None:
            async with routed.lease("a") as lease:
                await chat(client, lease.base_url)

        pid = 0

        async def kill() -> None:
            nonlocal pid
            while not routed.statistics().models["a"].in_flight:  # noqa: ASYNC110 - it can only be looked at
                await trio.sleep(0.01)
            await trio.sleep(0.2)
            found = routed.processes["a"].pid
            assert found is not None
            pid = found
            os.kill(pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(ModelCrashed, match="model 'a': it was killed by SIGKILL while it was ready") as caught:
                await ask()
        assert caught.value.model == "a"
        assert caught.value.exit_status == -signal.SIGKILL
        assert isinstance(caught.value.__cause__, httpx.TransportError)
        async with routed.lease("a") as lease:
            assert (await client.get(f"{lease.base_url}/health")).status_code == 200
            assert routed.processes["a"].pid not in (None, pid)
        async with routed.lease("b") as lease:
            await chat(client, lease.base_url)
        assert routed.processes["a"].state is ModelState.STOPPED


async def test_unload_now_takes_a_busy_server_away_and_its_caller_is_told() -> None:
    async with router(model("a", 30.0, stop_grace=0.5)) as routed, patient() as client:

        async def ask() -> None:
            async with routed.lease("a") as lease:
                await chat(client, lease.base_url)

        async def unload() -> None:
            while not routed.statistics().models["a"].in_flight:  # noqa: ASYNC110 - it can only be looked at
                await trio.sleep(0.01)
            await trio.sleep(0.2)
            pid = routed.processes["a"].pid
            assert pid is not None
            await routed.unload("a", now=True)
            assert not is_alive(pid)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(unload)
            with pytest.raises(ModelUnloaded, match="model 'a' was stopped while it was in use"):
                await ask()


OURSELVES = """
import json, sys, trio
from trio_mlxgate.models import ModelConfig, ModelRouter, RouterConfig

command = json.loads(sys.argv[1])

async def main():
    models = [ModelConfig(name=name, command=command) for name in "ab"]
    async with ModelRouter(RouterConfig(models=models, sets={"pair": "a & b"})) as router:
        async with router.lease("a"), router.lease("b"):
            print(*(process.pid for process in router.processes.values()), flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


def test_kill_9_of_ourselves_leaves_no_server() -> None:
    token = f"mlxgate-{uuid.uuid4().hex}"
    command = json.dumps(server("", "", token))
    ourselves = subprocess.Popen([sys.executable, "-c", OURSELVES, command], stdout=subprocess.PIPE)
    with ourselves:
        try:
            assert ourselves.stdout is not None
            pids = [int(word) for word in ourselves.stdout.readline().split()]
            assert len(pids) == 2
            assert all(map(is_alive, pids))
            assert len(with_token(token)) > 2
        finally:
            ourselves.kill()
    wait_gone(*pids)
    wait_none_with(token)
