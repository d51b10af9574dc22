"""A backend that does what a test says, for the virtual clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import attrs
import trio

from trio_mlxgate import Gate
from trio_mlxgate.core.readings import Health, OwnWork, Reading, Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

UP = Reading(health=Health.UP, latency=0.02)
REFUSED = Reading(health=Health.DOWN, reason="nothing listens there", refused=True)


def busy(active_jobs: int) -> Reading:
    return Reading(health=Health.UP, latency=0.02, status=Status(active_jobs=active_jobs))


@attrs.define(eq=False)
class PretendBackend:
    """What the registry needs of a ModelAdapter, without a server."""

    name: str
    reading: Reading | Exception = UP
    """What a look tells, or raises."""

    look_takes: float = 0.0
    """Seconds, math.inf: it hangs."""

    measured: float | Exception = 0.3
    """What a measurement tells, after as many seconds, or raises."""

    answer: str | Exception = "yes"
    """What a chat returns, or raises."""

    answer_takes: float = 0.0
    gate: Gate = attrs.field(factory=lambda: Gate(1, name="pretended", outer_deadline="allow"))
    last_token_at: float = -math.inf
    looks: list[float] = attrs.field(factory=list)
    measurements: list[float] = attrs.field(factory=list)
    chats: list[tuple[float, dict[str, Any]]] = attrs.field(factory=list)
    closed: int = 0
    on_chat: Callable[[], object] = lambda: None

    @property
    def own_work(self) -> OwnWork:
        seen = self.gate.statistics()
        return OwnWork(in_flight=seen.in_flight, waiting=seen.tasks_waiting)

    async def read(self) -> Reading:
        self.looks.append(trio.current_time())
        await trio.sleep(self.look_takes)
        if isinstance(self.reading, Exception):
            raise self.reading
        return self.reading

    async def measure_inference_latency(self) -> float:
        self.measurements.append(trio.current_time())
        if isinstance(self.measured, Exception):
            await trio.lowlevel.checkpoint()
            raise self.measured
        await trio.sleep(self.measured)
        return self.measured

    async def chat(self, messages: Any, *, max_wait: float | None = None, **options: Any) -> str:
        async with self.gate.slot(max_wait=math.inf if max_wait is None else max_wait):
            self.chats.append((trio.current_time(), options))
            self.on_chat()
            await trio.sleep(self.answer_takes)
            if isinstance(self.answer, Exception):
                raise self.answer
            return f"{self.name}: {self.answer}"

    def stream(self, messages: Any, *, max_wait: float | None = None, **options: Any) -> PretendStream:
        return PretendStream(self, math.inf if max_wait is None else max_wait)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed += 1


class PretendStream:
    """Three deltas, or an error after as many as the backend's answer says."""

    def __init__(self, backend: PretendBackend, max_wait: float) -> None:
        self.backend = backend
        self.slot = backend.gate.slot(max_wait=max_wait)
        self.left = 3

    async def __aenter__(self) -> Self:
        await self.slot.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.slot.__aexit__(kind, error, traceback)

    def __aiter__(self) -> PretendStream:
        return self

    async def __anext__(self) -> str:
        await trio.sleep(self.backend.answer_takes)
        if isinstance(self.backend.answer, Exception) and self.left <= getattr(self.backend.answer, "left", 3):
            raise self.backend.answer
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        self.backend.last_token_at = trio.current_time()
        return f"{self.backend.name} {3 - self.left}"


def cast_to_adapter(*backends: PretendBackend) -> Any:
    """For the type checkers: the registry takes what has this face."""
    return list(backends)
