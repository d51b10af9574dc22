"""The registry before real servers, which are killed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio

from tests.limits import ends_within
from trio_mlxgate import BackendUnavailable, Priority
from trio_mlxgate.backends import BackendRegistry, LoadLevel, LoadSettings, ModelAdapter
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_mlxgate.testing import InferenceServer

pytestmark = pytest.mark.integration

QUICK = LoadSettings(interval=0.5, recheck=0.2, fresh_for=2.0)
"""For tests that wait in real time."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with ends_within(60):
        yield


def adapter(server: InferenceServer, name: str, **more: str) -> ModelAdapter:
    return ModelAdapter(name=name, base_url=server.base_url, **more)  # type: ignore[arg-type]


async def test_the_next_is_asked_when_the_first_is_killed_and_the_first_again_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_mlxgate.backends")
    async with inference_server(service_time=0.2) as macmini, inference_server(service_time=0.2) as macbook:
        port = int(macbook.url.rpartition(":")[2])
        roles = {"reasoner": [adapter(macbook, "macbook"), adapter(macmini, "macmini")]}
        async with BackendRegistry(roles, settings=QUICK) as registry:
            await registry.wait_healthy("reasoner", backend="macbook")
            async with registry.stream("reasoner", "one two three") as stream:
                assert stream.backend == "macbook"
                assert "".join([delta.text async for delta in stream]).startswith("one two three")
            macbook.kill()
            await macbook.wait()
            # Nobody knows it yet: the call itself finds out.
            answer = await registry.call("reasoner", "still there?", priority=Priority.FOREGROUND)
            assert answer.backend == "macmini"
            assert answer.text.startswith("still there?")
            assert (await macmini.status())["completed"] == 1
            with trio.fail_after(10):
                while registry.health_summary()["reasoner"]["macbook"].level is not LoadLevel.DOWN:
                    await registry.wait_change()
            assert registry.choose("reasoner").name == "macmini"
            with pytest.raises(BackendUnavailable) as caught:
                await registry.call("reasoner", "hi", on_unavailable="defer")
            assert caught.value.retry_after is not None
            async with inference_server(service_time=0.2, port=port) as back:
                await registry.wait_healthy("reasoner", backend="macbook")
                await registry.call("reasoner", "welcome")
                assert (await back.status())["completed"] == 1
    told = [record.getMessage().partition(":")[0] for record in caplog.records if "'macbook' is" in record.getMessage()]
    assert told == ["backend 'macbook' is up", "backend 'macbook' is down", "backend 'macbook' is up"]


async def test_a_stream_that_breaks_off_is_the_callers_and_marks_the_backend() -> None:
    async with inference_server(service_time=2.0) as macbook, inference_server() as macmini:
        roles = {"reasoner": [adapter(macbook, "macbook"), adapter(macmini, "macmini")]}
        async with BackendRegistry(roles, settings=QUICK) as registry:

            async def read() -> None:
                async with registry.stream("reasoner", "one two three four") as stream:
                    async for _ in stream:
                        macbook.kill()

            with pytest.raises(Exception, match="macbook") as caught:
                await read()
            assert caught.type.__name__ == "TruncatedAnswer"
            assert (await registry.call("reasoner", "hi")).text.startswith("hi")
        assert (await macmini.status())["total_requests"] == 1


async def test_two_roles_of_one_server_share_its_gate_and_load_is_what_the_server_counts() -> None:
    async with inference_server(service_time=0.2) as server:
        roles = {
            "classifier": adapter(server, "classifier", system_prompt="Answer in JSON."),
            "reasoner": adapter(server, "reasoner"),
        }
        async with BackendRegistry(roles, settings=QUICK) as registry:
            await registry.wait_healthy("reasoner")
            report = await registry.load("reasoner", fresh=True)
            assert (report.level, report.source, report.active_jobs) == (LoadLevel.IDLE, "status", 0)
            async with trio.open_nursery() as nursery:
                for role in ("classifier", "reasoner") * 3:
                    nursery.start_soon(registry.call, role, "a question")
                await trio.sleep(0.3)
                report = await registry.load("classifier", fresh=True)
                assert report.own.in_flight == 1
                assert report.own.waiting >= 3
                assert report.foreign_jobs == 0
        seen = await server.status()
        assert (seen["completed"], seen["max_active_jobs"], seen["overlaps"]) == (6, 1, 0)


async def test_the_cloud_is_asked_without_a_slot_when_all_are_gone() -> None:
    async with inference_server() as server:
        lone = adapter(server, "macmini")
        async with BackendRegistry({"reasoner": lone}, settings=QUICK) as registry:
            server.kill()
            await server.wait()
            held: list[int] = []

            async def cloud(error: Exception) -> str:
                held.append(lone.own_work.in_flight)
                await trio.lowlevel.checkpoint()
                return f"from the cloud, since {type(error).__name__}"

            answer = await registry.call("reasoner", "hi", fallback=cloud)
        assert answer in ("from the cloud, since BackendUnreachable", "from the cloud, since BackendUnavailable")
        assert held == [0]


async def test_leaving_the_registry_ends_all_calls_and_asks_nobody_else() -> None:
    asked: list[Exception] = []
    ends: list[type[BaseException]] = []

    async def cloud(error: Exception) -> str:
        asked.append(error)
        await trio.lowlevel.checkpoint()
        return "from the cloud"

    async with inference_server(service_time=10.0) as macbook, inference_server() as macmini:
        roles = {"reasoner": [adapter(macbook, "macbook"), adapter(macmini, "macmini")]}
        registry = BackendRegistry(roles, settings=QUICK)

        async def call() -> None:
            with pytest.raises(trio.ClosedResourceError, match="was left") as caught:
                await registry.call("reasoner", "one two three", fallback=cloud)
            ends.append(caught.type)

        async with trio.open_nursery() as nursery, registry:
            await registry.wait_healthy("reasoner", backend="macbook")
            for _ in range(3):
                nursery.start_soon(call)
            while (await macbook.status())["generating"] == 0:  # noqa: ASYNC110 - of another process
                await trio.sleep(0.02)
        assert len(ends) == 3
        assert asked == []
        assert (await macmini.status())["total_requests"] == 0
        with trio.fail_after(5):
            while (await macbook.status())["active_jobs"]:  # noqa: ASYNC110 - of another process
                await trio.sleep(0.02)
