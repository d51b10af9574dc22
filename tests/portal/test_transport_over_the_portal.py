"""GateTransport in front of a real server, with a gate that another run owns."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from tests.portal.conftest import run_caller, world
from trio_mlxgate import Fallback, rewrite_to
from trio_mlxgate.instrumentation import Abandoned, FellBack
from trio_mlxgate.testing import InferenceServer, inference_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration
BODY = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture(params=["httpx", "httpx2"])
def family(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param)
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def server() -> Iterator[InferenceServer]:
    """A server for all tests here, watched by a trio run of its own."""
    with (
        start_blocking_portal("trio") as run,
        run.wrap_async_context_manager(inference_server(service_time=0.2)) as server,
    ):
        yield server


def transport(family: Any) -> Callable[..., Any]:
    gated: Callable[..., Any] = importlib.import_module(f"trio_mlxgate.{family.__name__}").GateTransport
    return gated


def test_requests_pass_one_at_a_time(owner: str, caller: str, family: Any, server: InferenceServer) -> None:
    with world(owner) as home:

        async def main() -> None:
            async with family.AsyncClient(transport=transport(family)(home.portal), base_url=server.url) as client:

                async def ask() -> None:
                    response = await client.post("/v1/chat/completions", json=BODY)
                    assert response.status_code == 200
                    assert response.extensions["mlxgate"]["waited"] >= 0

                async with anyio.create_task_group() as group:
                    for _ in range(5):
                        group.start_soon(ask)
                async with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as stream:
                    assert (await home.portal.statistics()).in_flight == 1
                    with pytest.raises(RuntimeError, match="held by open responses of this task"):
                        await client.post("/v1/chat/completions", json=BODY)
                    async for _ in stream.aiter_lines():
                        pass
                async with home.portal.slot():
                    await client.post("/v1/chat/completions", json=BODY)
                    assert (await home.portal.statistics()).in_flight == 1

        run_caller(caller, main)
        assert home.settled() == (0, 0)
        assert home.statistics().admitted == 7


def test_what_is_abandoned_is_drained_and_what_fails_goes_to_the_fallback(
    owner: str, caller: str, server: InferenceServer
) -> None:
    from trio_mlxgate.httpx import GateTransport

    with world(owner) as home:

        async def main() -> None:
            gated = GateTransport(home.portal, abandoned="drain")
            async with httpx.AsyncClient(transport=gated, base_url=server.url) as client:
                with anyio.move_on_after(0.1):
                    await client.post("/v1/chat/completions", json=BODY)
                    raise AssertionError
                await home.until(lambda now: now.in_flight == 0)
            cloud = Fallback(httpx.AsyncHTTPTransport(), rewrite_to(server.url))
            gated = GateTransport(home.portal, fallback=cloud)
            async with httpx.AsyncClient(transport=gated, base_url="http://127.0.0.1:9") as client:
                response = await client.post("/v1/chat/completions", json=BODY)
                assert response.extensions["mlxgate"]["fallback"] == "unreachable"

        run_caller(caller, main)
        assert home.settled() == (0, 0)
        told = [type(details) for details in home.recorder.details]
        assert Abandoned in told
        assert FellBack in told
