"""A server that is killed in the middle, and another one that takes over; both are embedded ones."""

import httpx
import trio

from trio_mlxgate import Fallback, Gate, rewrite_to
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.testing import inference_server


async def main() -> None:
    async with inference_server(service_time=0.2) as macmini, inference_server(service_time=0.1) as cloud:
        fallback = Fallback(
            httpx.AsyncHTTPTransport(),
            rewrite_to(cloud.base_url, api_key="the-key-of-the-cloud", model="large"),
            on=["unreachable", "wait_too_long"],
        )
        transport = GateTransport(Gate(1, name="macmini"), fallback=fallback)
        async with httpx.AsyncClient(base_url=macmini.base_url, transport=transport) as client:
            for number in range(4):
                if number == 2:
                    macmini.kill()
                    await macmini.wait()
                question = {"model": "small", "messages": [{"role": "user", "content": f"Question {number}"}]}
                response = await client.post("chat/completions", json=question)
                reason = response.extensions["mlxgate"].get("fallback")
                where = "the Mac mini" if reason is None else f"the cloud ({reason})"
                print(f"question {number}: HTTP {response.status_code} from {where}")


if __name__ == "__main__":
    trio.run(main)
