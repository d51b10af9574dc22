"""One client, two servers: each runs one request at a time, and both work at once."""

import httpx
import trio

from trio_mlxgate import EndpointGates, EndpointSettings, Priority, RequestOptions
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.testing import inference_server

QUESTION = {"messages": [{"role": "user", "content": "What is a gate good for?"}]}


async def main() -> None:
    async with inference_server(service_time=0.2) as chat, inference_server(service_time=0.2) as embeddings:
        gates = EndpointGates(
            {
                chat.url: EndpointSettings(name="chat", request=RequestOptions(priority=Priority.FOREGROUND)),
                embeddings.url: EndpointSettings(name="embeddings", max_waiting=100),
            },
            unlisted="refuse",  # a URL that nobody thought of is an error, and no server without a gate
        )
        most_at_once = 0

        async def ask(url: str) -> None:
            nonlocal most_at_once
            async with client.stream("POST", f"{url}/v1/chat/completions", json=QUESTION) as response:
                busy = [seen.in_flight for seen in gates.statistics().values()]
                most_at_once = max(most_at_once, sum(busy))
                await response.aread()

        async with httpx.AsyncClient(transport=GateTransport(gates)) as client, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, chat.url.replace("127.0.0.1", "localhost"))  # another spelling, the same gate
                nursery.start_soon(ask, chat.url)
                nursery.start_soon(ask, embeddings.url)

        for server in (chat, embeddings):
            status = await server.status()
            print(
                f"{gates[server.url].name}: {status['completed']} requests, "
                f"at most {status['max_active_jobs']} at a time"
            )
        print(f"both servers together: up to {most_at_once} at a time")


if __name__ == "__main__":
    trio.run(main)
