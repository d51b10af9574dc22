"""Ten calls through a gate, and what Prometheus would be told of them."""

import prometheus_client
import trio

from trio_mlxgate import Gate, Priority
from trio_mlxgate.instrumentation import LoggingHook
from trio_mlxgate.instrumentation.prometheus import PrometheusHook

# A program that is scraped leaves the registry out, and calls prometheus_client.start_http_server(8000) once.
registry = prometheus_client.CollectorRegistry()
gate = Gate(2, name="macmini", hooks=[LoggingHook(), PrometheusHook(registry)])


async def call_the_model(priority: int) -> None:
    async with gate.slot(priority):
        await trio.sleep(0.05)  # where your program talks to the server


async def main() -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(call_the_model, Priority.BACKGROUND)
        await trio.sleep(0.02)
        nursery.start_soon(call_the_model, Priority.FOREGROUND)


if __name__ == "__main__":
    trio.run(main)
    for line in prometheus_client.generate_latest(registry).decode().splitlines():
        if line.startswith(("mlxgate_slot_wait_time_seconds_count", "mlxgate_slot_wait_time_seconds_sum")):
            print(line)
