"""Ten plain requests, every second left by its caller, at a server that doesn't notice; both ways to go about it."""

from typing import Literal

import httpx
import trio

from trio_mlxgate import Gate
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.testing import inference_server

QUESTION = {"messages": [{"role": "user", "content": "Is anybody there?"}]}


async def ten_requests(abandoned: Literal["release", "drain"]) -> None:
    gate = Gate(1, name="macmini", outer_deadline="allow")
    # "finish" is how mlx_lm.server takes plain requests: to the last token, whoever is there.
    async with inference_server(service_time=0.3, plain_on_disconnect="finish") as server:
        transport = GateTransport(gate, abandoned=abandoned)
        async with httpx.AsyncClient(base_url=server.base_url, transport=transport) as client:
            start = trio.current_time()
            for number in range(10):
                with trio.move_on_after(0.1 if number % 2 == 0 else 60) as patience:
                    await client.post("chat/completions", json=QUESTION)
                if patience.cancelled_caught:
                    # The caller's time is its own either way; only the slot may still be held.
                    assert gate.statistics().in_flight == (1 if abandoned == "drain" else 0)
            seconds = trio.current_time() - start
        status = await server.status()
        print(
            f"{abandoned}: {status['overlaps']} of {status['total_requests']} inferences came while another one ran, "
            f"{status['max_active_jobs']} at most at once; {seconds:.1f} s"
        )


async def main() -> None:
    await ten_requests("release")
    await ten_requests("drain")


if __name__ == "__main__":
    trio.run(main)
