"""An httpx client whose requests all pass the gate; run against the embedded server."""

import httpx
import trio

from trio_mlxgate import Gate, Priority, use_priority
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.testing import inference_server

QUESTION = {"messages": [{"role": "user", "content": "What is a gate good for?"}]}


async def main() -> None:
    gate = Gate(1, name="macmini")
    # Limits, certificates and proxies belong to the inner transport; the client would drop them silently.
    inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=1))
    async with (
        inference_server(service_time=0.1) as server,
        httpx.AsyncClient(base_url=server.base_url, transport=GateTransport(gate, inner)) as client,
        trio.open_nursery() as nursery,
    ):

        async def ask(who: str, **extensions: object) -> None:
            response = await client.post("chat/completions", json=QUESTION, extensions=extensions)
            waited = response.extensions["mlxgate"]["waited"]
            print(f"{who}: HTTP {response.status_code} after {waited:.1f} s in the queue")

        for number in range(5):
            nursery.start_soon(ask, f"digest {number}")
        await trio.sleep(0.05)
        with use_priority(Priority.FOREGROUND):  # tasks started in the block inherit it
            nursery.start_soon(ask, "person")


if __name__ == "__main__":
    trio.run(main)
