"""Two models, and memory for one: twelve requests come at once, then a person. A model is stopped once or twice."""

import sys

import httpx
import trio

from trio_mlxgate import Priority
from trio_mlxgate.models import LeaseProgress, ModelConfig, ModelRouter, RouterConfig

# The embedded server, which is an echo. Yours: "mlx_lm.server --model mlx-community/Qwen3-8B-4bit --port ${PORT}", and
# warm_up=True beside it.
SERVER = [sys.executable, "-m", "trio_mlxgate", "echo-server", "--port", "${PORT}", "--service-time", "0.05"]

CONFIG = RouterConfig(
    models=[
        ModelConfig(name="qwen", command=SERVER, limit=1),
        ModelConfig(name="llama", command=SERVER, limit=1, ttl=600),
    ],
)


def show(step: LeaseProgress) -> None:
    place = f" at {step.position}" if step.position else ""
    print(f"the person's request is {step.stage.value}{place}")


async def main() -> None:
    async with ModelRouter(CONFIG) as router, httpx.AsyncClient(timeout=30, trust_env=False) as client:

        async def ask(model: str, text: str) -> str:
            async with router.lease(model, hold_timeout=20) as lease:  # the 20 s start when it is granted
                return await chat(client, lease.base_url, text)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(ask, "qwen", f"digest {number}")
                nursery.start_soon(ask, "llama", f"summary {number}")
            await trio.sleep(0.1)
            async with router.lease("llama", Priority.FOREGROUND, on_progress=show) as lease:
                print("answer:", await chat(client, lease.base_url, "Why is the sky blue?"))
        print("models stopped for another one:", router.statistics().evictions)


async def chat(client: httpx.AsyncClient, base_url: str, text: str) -> str:
    body = {"messages": [{"role": "user", "content": text}]}
    answer = await client.post(f"{base_url}/v1/chat/completions", json=body)
    answer.raise_for_status()
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


if __name__ == "__main__":
    trio.run(main)
