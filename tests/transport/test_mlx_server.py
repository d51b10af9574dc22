"""The gate in front of a real mlx_lm.server, with a model that counts."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Literal

import httpx
import pytest
import trio

from tests.mlx_server import LIMIT, MlxServer, chat, running_mlx_server
from tests.tiny_model import answer
from trio_mlxgate import Gate
from trio_mlxgate.httpx import GateTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("mlx_lm")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def mlx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlxServer]:
    """The server for all tests of this module."""
    with running_mlx_server(tmp_path_factory.mktemp("mlx")) as server:
        yield server


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
