"""A gate in a run of its own thread, and callers in runs of other kinds, in real time."""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

import trio_mlxgate
import trio_mlxgate.anyio
from tests.gate.helpers import Recorder
from tests.limits import ends_within
from trio_mlxgate import BaseGate, GateStatistics, Portal, Priority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

LIMIT: Final = 12.0
"""Seconds of real time that a test here may take."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that hangs, in whichever way that is possible."""
    with ends_within(LIMIT):
        yield


@attrs.define
class World:
    """The run that owns a gate."""

    run: BlockingPortal
    gate: BaseGate
    recorder: Recorder
    portal: Portal
    helper: ThreadPoolExecutor
    """A thread that speaks to the owner for a trio run, in which nothing may block that it knows of."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the owner's run, which may be async, and block until it has returned."""
        return self.helper.submit(self.run.call, function, *args).result()

    def start(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Start a function in the owner's run."""
        return self.helper.submit(self.run.start_task_soon, function, *args).result()

    def statistics(self) -> GateStatistics:
        now: GateStatistics = self.call(self.gate.statistics)
        return now

    def settled(self) -> tuple[int, int]:
        """How many slots are held, and how many wait, when all messages have been heard that were sent so far."""
        now = self.statistics()
        return now.in_flight, now.tasks_waiting

    @contextmanager
    def holding(self, priority: int = Priority.BACKGROUND) -> Iterator[None]:
        """A task of the owner's run holds a slot within this block, which leaves at its end or when told to."""
        held = self.run.wrap_async_context_manager(_Held(self.gate, priority))
        self.helper.submit(held.__enter__).result()
        try:
            yield
        finally:
            self.helper.submit(held.__exit__, None, None, None).result()

    async def until(self, condition: Callable[[GateStatistics], object]) -> None:
        """In a caller's run: wait until the gate is so."""
        while not condition(await self.portal.statistics()):  # noqa: ASYNC110 - of another run
            await anyio.sleep(0.002)

    def wait_until(self, condition: Callable[[GateStatistics], object]) -> None:
        """In no run: wait until the gate is so."""
        while not condition(self.statistics()):
            time.sleep(0.005)


class _Held:
    def __init__(self, gate: BaseGate, priority: int) -> None:
        self._slot = gate.slot(priority)

    async def __aenter__(self) -> None:
        await self._slot.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self._slot.__aexit__(None, None, None)


@contextmanager
def world(backend: str, capacity: int = 1, **options: Any) -> Iterator[World]:
    """A gate that a run in another thread owns; at the end of the block that run ends."""
    recorder = Recorder()
    options = {"outer_deadline": "allow", "hooks": [recorder], **options}
    gate: BaseGate = (trio_mlxgate.Gate if backend == "trio" else trio_mlxgate.anyio.Gate)(capacity, **options)
    with ThreadPoolExecutor(1) as helper, start_blocking_portal(backend) as run:
        yield World(run, gate, recorder, run.call(gate.portal), helper)


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


RUNS: Final[dict[str, dict[str, Any]]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
    "eager": {"backend": "asyncio", "backend_options": {"loop_factory": _eager_loop}},
}


def run_caller(kind: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run ``main`` in a run of that kind in this thread."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    if kind == "eager" and sys.version_info < (3, 12):
        pytest.skip("there are no eager tasks before Python 3.12")
    return anyio.run(main, **RUNS[kind])


@pytest.fixture(params=["trio", "asyncio"], ids=lambda kind: f"of {kind}")
def owner(request: pytest.FixtureRequest) -> str:
    """The kind of run that owns the gate."""
    return str(request.param)


@pytest.fixture(params=["asyncio", "uvloop", "eager", "trio"], ids=lambda kind: f"from {kind}")
def caller(request: pytest.FixtureRequest) -> str:
    """The kind of run that calls. All kinds call a gate of trio's; asyncio's has the two that differ most."""
    kind = str(request.param)
    if "owner" in request.fixturenames and kind in ("uvloop", "eager") and request.getfixturevalue("owner") != "trio":
        pytest.skip("this kind of loop calls a gate of trio's alone")
    return kind
