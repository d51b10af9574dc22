"""A router before two real mlx_lm.servers, each with a model that counts."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from tests.limits import ends_within
from tests.mlx_server import chat
from tests.tiny_model import answer, build_tiny_model
from trio_mlxgate import Priority
from trio_mlxgate.models import ModelConfig, ModelCrashed, ModelRouter, RestartSettings, RouterConfig

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("mlx_lm")
pytestmark = pytest.mark.integration


def config(directory: Path, name: str, layers: int) -> ModelConfig:
    model = build_tiny_model(directory / name, layers=layers)
    (directory / "cache" / "hub").mkdir(parents=True, exist_ok=True)
    return ModelConfig(
        name=name,
        command=[sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", "${PORT}"],
        env={"HF_HOME": str(directory / "cache"), "HF_HUB_OFFLINE": "1", "MLX_DISABLE_COMPILE": "1"},
        warm_up=True,
        limit=1,
        restarts=RestartSettings(first=0.05),
    )


async def test_two_models_take_turns_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    models = [config(tmp_path, "quick", 2), config(tmp_path, "deep", 48)]
    with ends_within(150):
        async with (
            ModelRouter(RouterConfig(models=models)) as router,
            httpx.AsyncClient(timeout=60.0, trust_env=False) as client,
        ):

            async def ask(model: str, tokens: int, priority: int = Priority.BACKGROUND) -> None:
                async with router.lease(model, priority, hold_timeout=60.0) as lease:
                    reply = await client.post(f"{lease.base_url}/v1/chat/completions", json=chat("Count.", tokens))
                    assert reply.status_code == 200, reply.text
                    assert reply.json()["choices"][0]["message"]["content"] == answer(tokens)

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(ask, ("quick", "deep")[number % 2], 8)
                    await trio.sleep(0.004)
            statistics = router.statistics()
            assert statistics.evictions == 1
            assert [statistics.models[name].admitted for name in ("quick", "deep")] == [4, 4]

            async def kill() -> None:
                while not router.statistics().models["deep"].in_flight:  # noqa: ASYNC110 - it can only be looked at
                    await trio.sleep(0.01)
                await trio.sleep(0.3)
                pid = router.processes["deep"].pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                with pytest.raises(ModelCrashed, match="model 'deep': it was killed by SIGKILL"):
                    await ask("deep", 190)
            await ask("deep", 8, Priority.FOREGROUND)
