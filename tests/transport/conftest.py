"""A transport without sockets, for both families, so that the virtual clock can measure what happens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs
import httpx
import pytest

import trio_mlxgate.httpx
from tests.limits import ends_within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


LIMIT: Final = 120.0
"""Seconds that a test here may take, the virtual ones too: a slot that is lost would be waited for for ever."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that hangs, in whichever way that is possible."""
    with ends_within(LIMIT):
        yield


@attrs.define
class Script:
    """What the inner transport does with every request, and what it saw."""

    answer_after: float = 0.0
    """Seconds until the response's head is there."""

    parts: tuple[bytes, ...] = (b"one ", b"two ", b"three")
    part_after: float = 0.0
    """Seconds until each part."""

    close_after: float = 0.0
    """Seconds that closing takes."""

    send_error: Exception | None = None
    read_error: Exception | None = None
    """Raised after the last part."""

    requests: list[Any] = attrs.field(factory=list)

    sent: list[tuple[str, float]] = attrs.field(factory=list)
    """Path and time of each request that was sent."""

    closed: list[tuple[str, float]] = attrs.field(factory=list)
    """Path and time of each response that was closed, at the end of the closing."""

    close_error: Exception | None = None
    iterator_close_error: Exception | None = None
    """Raised by the body's generator when it is closed early."""

    headers: dict[str, str] = attrs.field(factory=dict)
    """Of each answer."""

    cut: list[tuple[str, float]] = attrs.field(factory=list)
    """Path and time of each request that was cancelled before its head was there."""

    transport_closed: list[float] = attrs.field(factory=list)

    on_close: Callable[[], object] = lambda: None
    on_send: Callable[[str], object] = lambda path: None

    location: str = "/there"
    """Where ``/moved`` leads."""


@attrs.define
class Family:
    """One family of client with its gate transport."""

    module: Any
    gated: Any
    script: Script = attrs.field(factory=Script)

    def transport(self) -> Any:
        """An inner transport that follows the script."""
        script, module = self.script, self.module

        class Body(module.AsyncByteStream):  # type: ignore[misc, name-defined]
            def __init__(self, path: str) -> None:
                self.path = path

            async def __aiter__(self) -> AsyncIterator[bytes]:
                try:
                    for part in script.parts:
                        await anyio.sleep(script.part_after)
                        yield part
                except GeneratorExit:
                    if script.iterator_close_error is not None:
                        raise script.iterator_close_error from None
                    raise
                if script.read_error is not None:
                    raise script.read_error

            async def aclose(self) -> None:
                await anyio.sleep(script.close_after)
                script.on_close()
                script.closed.append((self.path, anyio.current_time()))
                if script.close_error is not None:
                    raise script.close_error

        class Inner(module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                script.sent.append((request.url.path, anyio.current_time()))
                script.on_send(request.url.path)
                script.requests.append(request)
                try:
                    await anyio.sleep(script.answer_after)
                except anyio.get_cancelled_exc_class():
                    script.cut.append((request.url.path, anyio.current_time()))
                    raise
                if script.send_error is not None:
                    raise script.send_error
                if request.url.path == "/moved":
                    return module.Response(302, headers={"location": script.location}, stream=Body("/moved"))
                body = Body(request.url.path)
                return module.Response(
                    200, headers=script.headers, stream=body, extensions={"http_version": b"HTTP/1.1"}
                )

            async def aclose(self) -> None:
                script.transport_closed.append(anyio.current_time())

        return Inner()

    def client(self, gate: Any = None, **kwargs: Any) -> Any:
        """A client whose requests pass ``gate`` and end in the script."""
        transport = self.gated.GateTransport(gate, self.transport(), **kwargs)
        return self.module.AsyncClient(transport=transport, base_url="http://server", timeout=1.0)


@pytest.fixture(params=["httpx", "httpx2"])
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in turn."""
    if request.param == "httpx":
        return Family(httpx, trio_mlxgate.httpx)
    # An extra: these tests run without it, too.
    return Family(pytest.importorskip("httpx2"), importlib.import_module("trio_mlxgate.httpx2"))
