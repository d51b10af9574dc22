"""The prober against servers that are what they are: our embedded one, and mlx_lm.server with a tiny model."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import trio

from tests.mlx_server import started_mlx_server
from tests.tiny_model import build_tiny_model
from trio_mlxgate.backends.detecting import kind_named
from trio_mlxgate.backends.prober import Prober
from trio_mlxgate.core.readings import Health, Status
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

LIMIT: Final = 90.0


def chat(tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "go on"}], "max_tokens": tokens, "stream": True}


async def test_the_embedded_server_while_it_works() -> None:
    with trio.fail_after(LIMIT):
        async with (
            inference_server(service_time=1.0) as server,
            Prober(server.base_url) as prober,
            httpx.AsyncClient(base_url=server.base_url, timeout=None) as client,
        ):
            assert (await prober.read()).status == Status(active_jobs=0, total_requests=0)
            assert prober.kind is kind_named("status")
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(lambda: client.post("chat/completions", json=chat(5)))
                while (reading := await prober.read()).status != Status(active_jobs=3, total_requests=3):
                    assert reading.health is Health.UP
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            server.kill()
            reading = await prober.read()
            while not reading.refused:
                await trio.sleep(0.01)
                reading = await prober.read()
            assert reading.health is Health.DOWN
            assert prober.kind is kind_named("status")  # what it was last


async def test_mlx_lm_server_from_its_start_to_its_end(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    model = build_tiny_model(tmp_path / "model", layers=48)
    with trio.fail_after(LIMIT), started_mlx_server(tmp_path, model) as server:
        base_url, process = server.base_url, server.process
        async with Prober(base_url) as prober, httpx.AsyncClient(base_url=base_url, timeout=LIMIT) as client:
            while (reading := await prober.read()).health is not Health.UP:
                assert reading.refused
                assert prober.kind is None
                await trio.sleep(0.05)
            assert prober.kind is kind_named("mlx-lm")
            assert (reading.status, reading.models) == (None, ())
            # Its health says nothing of its load: it answers as well in the middle of its work.
            async with client.stream("POST", "chat/completions", json=chat(20_000)) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        break
                reading = await prober.read()
                assert (reading.health, reading.status) == (Health.UP, None)
                assert reading.latency is not None
                assert 0 < reading.latency < 2
            # It hangs: connections still come about, and nothing else.
            os.kill(process.pid, signal.SIGSTOP)
            reading = await prober.read()
            assert (reading.health, reading.refused) == (Health.UNKNOWN, False)
            assert "no answer in time" in reading.reason
            os.kill(process.pid, signal.SIGCONT)
            while (await prober.read()).health is not Health.UP:  # noqa: ASYNC110
                await trio.sleep(0.05)
            process.kill()
            process.wait()
            reading = await prober.read()
            assert (reading.health, reading.refused) == (Health.DOWN, True)


async def test_mlx_lm_server_without_its_model(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    with trio.fail_after(LIMIT), started_mlx_server(tmp_path, tmp_path / "none") as server:
        async with Prober(server.base_url) as prober:
            # Until its thread has found that there is no model, it says that it is well.
            while (reading := await prober.read()).health is not Health.DOWN or reading.refused:  # noqa: ASYNC110
                await trio.sleep(0.05)
            assert "start it anew" in reading.reason
            assert prober.kind is kind_named("mlx-lm")
