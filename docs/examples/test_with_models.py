"""How a program tests its use of a router: models that load in no time, and servers that answer by rules."""

import json
from collections.abc import Awaitable, Callable

import httpx
import pytest
import trio
from trio.testing import MockClock

from trio_mlxgate import Priority
from trio_mlxgate.models import ModelConfig, ModelCrashed, ModelRouter, ModelStartFailed, RouterConfig
from trio_mlxgate.testing import PlayedModels

CONFIG = RouterConfig(
    models=[
        ModelConfig(name="qwen", command="mlx_lm.server --model qwen --port ${PORT}", limit=1),
        ModelConfig(name="llama", command="mlx_lm.server --model llama --port ${PORT}", limit=1),
    ],
)


class Program:
    """What is tested: it asks a model by its name."""

    def __init__(self, router: ModelRouter, client: httpx.AsyncClient) -> None:
        self.router = router
        self.client = client

    async def ask(self, model: str, question: str, priority: int = Priority.BACKGROUND) -> str:
        async with self.router.lease(model, priority, hold_timeout=60) as lease:
            body = {"messages": [{"role": "user", "content": question}]}
            answer = await self.client.post(f"{lease.base_url}/v1/chat/completions", json=body)
            text: str = answer.json()["choices"][0]["message"]["content"]
            return text


def run(test: Callable[[Program, PlayedModels], Awaitable[None]]) -> None:
    """Run a test with a program, and models that take 20 s to load and 1 s to stop."""

    async def main() -> None:
        models = PlayedModels(load=20, stop=1)

        async def server(request: httpx.Request) -> httpx.Response:
            """Each model's server: it thinks for 10 s, and says who it is."""
            await trio.sleep(10)
            name = request.url.host.removesuffix(".test")
            if models.is_killed(name):
                raise httpx.ReadError("the connection broke")
            question = json.loads(request.content)["messages"][-1]["content"]
            message = {"role": "assistant", "content": f"{name}: {question}!"}
            return httpx.Response(200, json={"choices": [{"message": message}]})

        client = httpx.AsyncClient(transport=httpx.MockTransport(server))
        async with client, ModelRouter(CONFIG, process=models) as router:
            await test(Program(router, client), models)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_person_waits_for_what_runs_a_stop_and_a_load() -> None:
    async def test(program: Program, models: PlayedModels) -> None:
        async with trio.open_nursery() as nursery:
            for page in range(20):
                nursery.start_soon(program.ask, "qwen", f"digest {page}")
            await trio.sleep(25)  # qwen has been loaded for 5 s, and has 5 s to go with the first digest
            start = trio.current_time()
            answer = await program.ask("llama", "Hello", Priority.FOREGROUND)
            assert answer == "llama: Hello!"
            assert trio.current_time() - start <= 20 + 5 + 1 + 20 + 10
            assert models.running == {"llama"}

    run(test)


def test_a_server_that_is_killed() -> None:
    async def test(program: Program, models: PlayedModels) -> None:
        async def kill() -> None:
            await trio.sleep(25)
            models.kill("qwen")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(ModelCrashed, match="model 'qwen': it was killed"):
                await program.ask("qwen", "Hello")
        assert await program.ask("qwen", "Hello") == "qwen: Hello!"
        assert models.starts == ["qwen", "qwen"]

    run(test)


def test_a_model_that_does_not_start() -> None:
    async def test(program: Program, models: PlayedModels) -> None:
        models.broken.add("llama")
        with pytest.raises(ModelStartFailed):
            await program.ask("llama", "Hello")

    run(test)
