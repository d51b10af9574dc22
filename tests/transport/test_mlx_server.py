"""The gate in front of a real mlx_lm.server, with a model that counts."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import httpx
import pytest
import trio

from tests.tiny_model import answer, build_tiny_model
from trio_mlxgate import Gate
from trio_mlxgate.httpx import GateTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("mlx_lm")
pytestmark = pytest.mark.integration

LIMIT: Final = 60.0
"""Seconds that the server may take to give its first answer, and each test to end."""


@attrs.frozen
class MlxServer:
    """A running server."""

    base_url: str
    process: subprocess.Popen[bytes]


def chat(question: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, **more}


@pytest.fixture(scope="module")
def mlx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlxServer]:
    """An mlx_lm.server with a slow tiny model, for all tests of this module. 48 tokens take it about a second."""
    directory = tmp_path_factory.mktemp("mlx")
    model = build_tiny_model(directory / "model", layers=48)
    (directory / "cache" / "hub").mkdir(parents=True)
    environment = {
        **os.environ,
        "HF_HOME": str(directory / "cache"),
        "HF_HUB_OFFLINE": "1",
        # No compiler is needed then, and nothing is kept outside the directory.
        "MLX_DISABLE_COMPILE": "1",
    }
    deadline = time.monotonic() + LIMIT
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = directory / f"{port}.log"
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
        # One at a time, as a large model on a small machine goes best; such a tiny one would gain from batches.
        command += ["--decode-concurrency", "1", "--prompt-concurrency", "1"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            server = MlxServer(f"http://127.0.0.1:{port}/v1/", process)
            # It ends by itself if somebody has taken the port meanwhile.
            if wait_until_it_answers(server, deadline, log):
                yield server
                return
        finally:
            process.kill()
            process.wait()


def wait_until_it_answers(server: MlxServer, deadline: float, log: Path) -> bool:
    """Whether it has answered; it listens, and says that it is well, before the model is loaded."""
    while server.process.poll() is None:
        try:
            reply = httpx.post(server.base_url + "chat/completions", json=chat("ready?", 1), timeout=LIMIT)
            if reply.status_code == 200:
                return True
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if time.monotonic() > deadline:
        pytest.fail(f"mlx_lm.server gave no answer within {LIMIT:g} s; it said:\n{log.read_text()[-2000:]}")
    return False


async def test_plain_chats_at_once_are_all_answered_one_at_a_time(mlx_server: MlxServer) -> None:
    gate = Gate(1, outer_deadline="allow")
    texts: list[str] = []
    waited: list[float] = []

    async def ask(number: int) -> None:
        reply = await client.post("chat/completions", json=chat(f"question {number}", 12))
        assert reply.status_code == 200
        texts.append(reply.json()["choices"][0]["message"]["content"])
        waited.append(reply.extensions["mlxgate"]["waited"])
        assert gate.statistics().in_flight <= 1

    with trio.fail_after(LIMIT):
        async with (
            httpx.AsyncClient(base_url=mlx_server.base_url, transport=GateTransport(gate), timeout=LIMIT / 2) as client,
            trio.open_nursery() as nursery,
        ):
            for number in range(6):
                nursery.start_soon(ask, number)
    assert texts == [answer(12)] * 6
    assert waited == sorted(waited)
    seen = gate.statistics()
    assert (seen.admitted, seen.in_flight) == (6, 0)


async def test_a_stream_that_is_left_frees_the_server_for_the_next(mlx_server: MlxServer) -> None:
    gate = Gate(1, outer_deadline="allow")
    with trio.fail_after(LIMIT):
        async with httpx.AsyncClient(
            base_url=mlx_server.base_url, transport=GateTransport(gate), timeout=LIMIT / 2
        ) as client:
            # Minutes of work, if the server went on with it.
            async with client.stream("POST", "chat/completions", json=chat("go on", 20000, stream=True)) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        break
                assert gate.statistics().in_flight == 1
            assert gate.statistics().in_flight == 0
            short = await client.post("chat/completions", json=chat("and now?", 10))
            assert short.json()["choices"][0]["message"]["content"] == answer(10)


@pytest.mark.parametrize("abandoned", ["release", "drain"])
async def test_a_plain_request_that_is_left_shares_the_server_with_the_next_only_if_not_drained(
    mlx_server: MlxServer, abandoned: Literal["release", "drain"]
) -> None:
    """The server works on for who has left. Drained, the next has the server for itself, at the speed of one alone."""
    gate = Gate(1, outer_deadline="allow")
    transport = GateTransport(gate, abandoned=abandoned)
    alone: list[float] = []
    after_another: list[float] = []

    async def seconds(question: str) -> float:
        """How long the answer takes from the grant on."""
        start = trio.current_time()
        reply = await client.post("chat/completions", json=chat(question, 60))
        assert reply.json()["choices"][0]["message"]["content"] == answer(60)
        took: float = trio.current_time() - start - reply.extensions["mlxgate"]["waited"]
        return took

    with trio.fail_after(2 * LIMIT):
        async with httpx.AsyncClient(base_url=mlx_server.base_url, transport=transport, timeout=LIMIT) as client:
            for number in range(3):
                alone.append(await seconds(f"alone {number} {abandoned}"))
                with trio.move_on_after(alone[-1] / 4) as patience:
                    await seconds(f"left {number} {abandoned}")
                assert patience.cancelled_caught
                assert gate.statistics().in_flight == (1 if abandoned == "drain" else 0)
                after_another.append(await seconds(f"next {number} {abandoned}"))
    slower = statistics.median(after_another) / statistics.median(alone)
    # Without draining some three quarters of the other's work lie before it.
    assert slower < 1.35 if abandoned == "drain" else slower > 1.35, (alone, after_another)
