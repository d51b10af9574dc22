"""openai's SDK on trio through the gate, plain and streamed; run against the embedded server."""

import httpx2
import openai
import trio

from trio_mlxgate import Priority, configure_mlx_gate, use_options
from trio_mlxgate.httpx2 import GateTransport
from trio_mlxgate.testing import inference_server


async def main() -> None:
    configure_mlx_gate(capacity=1)
    async with inference_server(service_time=0.2) as server:
        # GateTransport() without a gate takes this run's own gate, looked up at each request.
        http_client = httpx2.AsyncClient(transport=GateTransport())
        # max_retries=0: the SDK would send a request that hold_timeout ended twice more.
        async with openai.AsyncOpenAI(
            base_url=server.base_url, api_key="none", http_client=http_client, max_retries=0
        ) as sdk:
            with use_options(priority=Priority.FOREGROUND, max_wait=10, hold_timeout=30):
                answer = await sdk.chat.completions.create(
                    model="any", messages=[{"role": "user", "content": "Who goes first?"}]
                )
            print(answer.choices[0].message.content)
            async with await sdk.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "And in pieces?"}], stream=True
            ) as stream:
                async for chunk in stream:
                    for choice in chunk.choices:
                        print(choice.delta.content or "", end="", flush=True)
            print()


if __name__ == "__main__":
    trio.run(main)
