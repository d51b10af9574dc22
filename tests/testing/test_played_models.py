"""Models that are played: what a program's own tests of them go by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from trio_mlxgate.models import ModelConfig, ModelProcess, ModelStartFailed, ModelState
from trio_mlxgate.testing import PlayedModels

if TYPE_CHECKING:
    from trio.testing import MockClock

CONFIG = ModelConfig(name="qwen", command="serve ${PORT}")


async def test_a_life_in_exact_times(autojump_clock: MockClock) -> None:
    models = PlayedModels(load=20, stop=3)
    async with models(CONFIG) as played:
        assert isinstance(played, ModelProcess)
        start = trio.current_time()
        assert await played.ensure_ready() == "http://qwen.test"
        assert trio.current_time() - start == 20
        assert models.running == {"qwen"}
        assert played.pid is not None
        await played.stop()
        assert trio.current_time() - start == 23
        assert models.running == frozenset()
        models.stop = 0
        models.load = 1
        await played.ensure_ready()
        await played.stop()
        assert trio.current_time() - start == 24
    assert models.starts == ["qwen", "qwen"]


async def test_one_that_is_killed_or_broken(autojump_clock: MockClock) -> None:
    models = PlayedModels(load=5, clearing=2)
    async with models(CONFIG, restarts=False) as played:
        with pytest.raises(LookupError, match="'qwen' doesn't run"):
            models.kill("qwen")
        await played.ensure_ready()
        assert not models.is_killed("qwen")
        models.kill("qwen")
        start = trio.current_time()
        await trio.sleep(1)
        assert played.state is ModelState.FAILED
        assert models.is_killed("qwen")
        assert models.running == {"qwen"}
        await played.wait_stopped()
        assert trio.current_time() - start == 2
        models.broken.add("qwen")
        with pytest.raises(ModelStartFailed, match="it ended with status 1"):
            await played.ensure_ready()


async def test_one_that_is_killed_while_it_starts(autojump_clock: MockClock) -> None:
    models = PlayedModels(load=5)
    async with models(CONFIG) as played, trio.open_nursery() as nursery:

        async def kill() -> None:
            await trio.sleep(1)
            models.kill("qwen")

        nursery.start_soon(kill)
        with pytest.raises(ModelStartFailed, match="killed by SIGKILL while it was starting"):
            await played.ensure_ready()


async def test_the_end_stops_what_runs(autojump_clock: MockClock) -> None:
    models = PlayedModels()
    async with models(CONFIG) as played:
        await played.ensure_ready()
        start = trio.current_time()
    assert trio.current_time() - start == 1.0
    assert models.running == frozenset()


def test_bad_times() -> None:
    with pytest.raises(TypeError, match="load must be a number of seconds"):
        PlayedModels(load="2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stop must be >= 0"):
        PlayedModels(stop=-1)
