"""How a program tests its use of backends: servers that answer by rules, and minutes of waiting in no time."""

import json
import math
from typing import Self

import httpx
import pytest
import trio
from trio.testing import MockClock

from trio_mlxgate import Priority, TokenGapTooLong
from trio_mlxgate.backends import BackendRegistry, LoadLevel, ModelAdapter


def event(text: str, finish_reason: str | None = None) -> bytes:
    """One token, as servers of OpenAI's API stream it."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


class Body(httpx.AsyncByteStream):
    """An answer as it comes: after how many seconds each part."""

    def __init__(self, *parts: tuple[float, bytes]) -> None:
        self.parts = iter(parts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for seconds, part in self.parts:
            await trio.sleep(seconds)
            return part
        raise StopAsyncIteration


async def macmini(request: httpx.Request) -> httpx.Response:
    """A server: it is well, and answers in ten tokens, one each second; or hangs if it is asked to."""
    await trio.lowlevel.checkpoint()
    if request.method == "GET":  # somebody looks whether it is well
        return httpx.Response(200, json={"data": []})
    question = json.loads(request.content)["messages"][-1]["content"]
    if question == "hang":
        body = Body((1, event("half ")), (math.inf, b""))
    else:
        body = Body(*[(1, event("word "))] * 10, (0, event("", "stop")))
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)


async def macbook(_: httpx.Request) -> httpx.Response:
    """A machine that is asleep."""
    await trio.lowlevel.checkpoint()
    raise httpx.ConnectError("nobody is there")


def adapter(name: str) -> ModelAdapter:
    handler = {"macmini": macmini, "macbook": macbook}[name]
    # The kind is named, so that nobody asks the server's many paths to find it out.
    return ModelAdapter(name=name, base_url=f"http://{name}/v1", kind="openai", transport=httpx.MockTransport(handler))


def test_a_person_waits_for_one_digest_at_most() -> None:
    async def main() -> None:
        async with adapter("macmini") as model, trio.open_nursery() as nursery:
            for page in range(5):
                nursery.start_soon(model.chat, f"digest page {page}")
            await trio.sleep(4)
            answer = await model.chat("Hello?", priority=Priority.FOREGROUND)
            assert (answer.waited, answer.first_token, answer.seconds) == (6, 1, 10)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_server_that_hangs() -> None:
    async def main() -> None:
        async with adapter("macmini") as model:
            with pytest.raises(TokenGapTooLong) as caught:
                await model.chat("hang")
            assert caught.value.text == "half "
            assert trio.current_time() - start == 1 + model.limits.gap
            assert model.own_work.in_flight == 0

    clock = MockClock(autojump_threshold=0)
    start = clock.current_time()
    trio.run(main, clock=clock)


def test_the_other_machine_answers() -> None:
    async def main() -> None:
        async with BackendRegistry({"reasoner": [adapter("macbook"), adapter("macmini")]}) as registry:
            await registry.wait_healthy("reasoner")
            answer = await registry.call("reasoner", "Why is the sky blue?")
            assert answer.backend == "macmini"
            assert registry.health_summary()["reasoner"]["macbook"].level is LoadLevel.DOWN

    trio.run(main, clock=MockClock(autojump_threshold=0))
