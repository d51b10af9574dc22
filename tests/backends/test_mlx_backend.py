"""The adapter in front of a real mlx_lm.server, with a model that counts."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests.mlx_server import LIMIT, MlxServer, running_mlx_server
from tests.tiny_model import answer
from trio_mlxgate import BackendRefused, BackendUnreachable, Gate, TruncatedAnswer, UnknownModel
from trio_mlxgate.backends import ModelAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("mlx_lm")
pytestmark = pytest.mark.integration

IDLE: Final = 0.2
"""Of a core: what a server uses that has nothing to do is far less, and one that works uses all of it."""


@pytest.fixture(scope="module")
def mlx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlxServer]:
    """The server for all tests of this module but the one that kills it."""
    with running_mlx_server(tmp_path_factory.mktemp("mlx")) as server:
        yield server


def adapter(server: MlxServer, **more: Any) -> ModelAdapter:
    settings = {
        "base_url": server.base_url,
        "model": str(server.model),
        "gate": Gate(1, outer_deadline="allow"),
        **more,
    }
    return ModelAdapter(**settings)


def processor_time(server: MlxServer) -> float:
    """Seconds of processor time that the server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def seconds_until_idle(server: MlxServer) -> float:
    """How long it goes on working."""
    start = trio.current_time()
    while True:
        before, began = processor_time(server), trio.current_time()
        await trio.sleep(0.2)
        if processor_time(server) - before < IDLE * (trio.current_time() - began):
            return began - start


needs_proc: Final[Callable[[Any], Any]] = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processor times are read from /proc"
)


def test_a_herd_is_answered_through_the_gate(mlx_server: MlxServer) -> None:
    """With more slots than the server runs at once, the rest of them wait in the server, and nothing is lost either."""
    for capacity in (1, 4):
        command = [sys.executable, "-m", "trio_mlxgate", "herd", "--json", "--requests=8", f"--capacity={capacity}"]
        command += ["--url", mlx_server.base_url, "--max-tokens=12", "--timeout=30"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT, check=False)
        assert done.returncode == 0, done.stderr
        gated = json.loads(done.stdout)["gated"]
        assert (gated["answered"], gated["order_kept"]) == (8, True)


async def test_chat_stream_and_usage(mlx_server: MlxServer) -> None:
    with trio.fail_after(LIMIT):
        async with adapter(mlx_server, aliases={"counter"}, kind="mlx-lm") as model:
            whole = await model.chat("count", max_tokens=20, model="counter")
            assert whole.text == answer(20)
            assert (whole.finish_reason, whole.model) == ("length", str(mlx_server.model))
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 20
            assert whole.usage.prompt_tokens is not None
            assert whole.system_fingerprint
            async with model.stream("count again", max_tokens=20) as stream:
                texts = [delta.text async for delta in stream if delta.text]
            assert len(texts) == 20
            assert "".join(texts) == answer(20)
            assert stream.completion.first_token is not None
            assert 0 < stream.completion.first_token < stream.completion.seconds
            assert await model.measure_inference_latency() > 0


async def test_many_at_once_wait_for_their_turn(mlx_server: MlxServer) -> None:
    model = adapter(mlx_server)
    waited: list[float] = []

    async def ask(number: int) -> None:
        whole = await model.chat(f"question {number}", max_tokens=8)
        assert whole.text == answer(8)
        waited.append(whole.waited)

    with trio.fail_after(LIMIT):
        async with model, trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, number)
    assert waited == sorted(waited)
    assert model.endpoint_gate.statistics().admitted == 8


async def test_logprobs(mlx_server: MlxServer) -> None:
    with trio.fail_after(LIMIT):
        async with adapter(mlx_server) as model:
            whole = await model.chat("count", max_tokens=4, extra={"logprobs": True, "top_logprobs": 2})
    assert whole.text == answer(4)
    assert whole.logprobs is not None
    assert [entry["logprob"] for entry in whole.logprobs] == pytest.approx([0.0] * 4, abs=0.01)
    assert all(len(entry["top_logprobs"]) == 2 for entry in whole.logprobs)
    assert whole.first_token is None


@needs_proc
async def test_a_stream_that_is_left_leaves_the_server_idle(mlx_server: MlxServer) -> None:
    with trio.fail_after(LIMIT):
        async with adapter(mlx_server) as model:
            # Minutes of work, if the server went on with it.
            async with model.stream("go on", max_tokens=20000) as stream:
                async for _ in stream:
                    if len(stream.text) > 50:
                        break
            assert model.own_work.in_flight == 0
            assert await seconds_until_idle(mlx_server) < 5.0
            # So does a whole answer that nobody waits for any more.
            with trio.move_on_after(1.0):
                await model.chat("go on and on", max_tokens=20000)
            assert model.own_work.in_flight == 0
            assert await seconds_until_idle(mlx_server) < 5.0


@needs_proc
async def test_a_plain_request_that_is_left_keeps_its_slot_as_long_as_the_server_works(mlx_server: MlxServer) -> None:
    extra = {"logprobs": True}
    with trio.fail_after(LIMIT):
        async with adapter(mlx_server) as model:
            alone = statistics.median(
                [(await model.chat(f"alone {number}", max_tokens=30, extra=extra)).seconds for number in range(3)]
            )
            with trio.move_on_after(alone / 2) as scope:
                await model.chat("left", max_tokens=120, extra=extra)
            assert scope.cancelled_caught
            assert model.own_work.in_flight == 1
            before = processor_time(mlx_server)
            # It waits until the server is free, and has it for itself.
            following = await model.chat("next", max_tokens=30, extra=extra)
            assert following.text == answer(30)
            assert following.waited > alone
            assert processor_time(mlx_server) - before > alone
            assert await seconds_until_idle(mlx_server) < 2.0
            assert model.own_work.in_flight == 0


async def test_an_unknown_model_is_refused_before_the_server_drops_its_own(mlx_server: MlxServer) -> None:
    with trio.fail_after(LIMIT):
        async with adapter(mlx_server) as model:
            with pytest.raises(UnknownModel):
                await model.chat("hi", model="mlx-community/Qwen3-typo")
            assert model.endpoint_gate.statistics().admitted == 0
        # What it would have said itself, with its own model gone; it loads it again for the next.
        async with adapter(mlx_server, model="mlx-community/Qwen3-typo") as wrong:
            with pytest.raises(BackendRefused) as caught:
                await wrong.chat("hi", max_tokens=1)
            assert caught.value.upstream_status == 404
            assert len(caught.value.upstream_message) > 10
        async with adapter(mlx_server) as model:
            assert (await model.chat("hi", max_tokens=3)).text == answer(3)


async def test_what_the_server_refuses_is_told_in_its_words(mlx_server: MlxServer) -> None:
    with trio.fail_after(LIMIT):
        async with adapter(mlx_server) as model:
            with pytest.raises(BackendRefused, match="HTTP 400") as caught:
                await model.chat("hi", extra={"top_logprobs": 99, "logprobs": True})
            assert "logprobs" in caught.value.upstream_message


async def test_a_server_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    with running_mlx_server(tmp_path) as server, trio.fail_after(LIMIT):
        async with adapter(server) as model:
            async with model.stream("go on", max_tokens=20000) as stream:
                with pytest.raises(TruncatedAnswer) as caught:  # noqa: PT012 - it dies while it is read
                    async for _ in stream:
                        if len(stream.text) > 50:
                            server.process.kill()
            count = len(caught.value.text.split())
            assert count > 10
            assert caught.value.text == answer(count)
            assert model.own_work.in_flight == 0
            with pytest.raises(BackendUnreachable):
                await model.chat("hi")
