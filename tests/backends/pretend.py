"""A backend that does what a test says, for the virtual clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import attrs
import trio

from trio_mlxgate import Gate, UnknownModel
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

    measuring_takes: float = 0.0
    """Seconds until it raises."""

    answer: str | Exception = "yes"
    """What a chat returns, or raises."""

    answer_takes: float = 0.0
    gate: Gate = attrs.field(factory=lambda: Gate(1, name="pretended", outer_deadline="allow"))
    unknown_model: str | None = None
    """A model that it doesn't have."""

    last_token_at: float = -math.inf
    looks: list[float] = attrs.field(factory=list)
    measurements: list[float] = attrs.field(factory=list)
    chats: list[tuple[float, dict[str, Any]]] = attrs.field(factory=list)
    closings: int = 0
    on_chat: Callable[[], object] = lambda: None
    _closed_in: object = None

    @property
    def closed(self) -> bool:
        return self._closed_in is trio.lowlevel.current_trio_token()

    @property
    def endpoint_gate(self) -> Gate:
        return self.gate

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
            await trio.sleep(self.measuring_takes)
            raise self.measured
        await trio.sleep(self.measured)
        return self.measured

    def stream(self, messages: Any, *, max_wait: float | None = None, **options: Any) -> PretendStream:
        if options.get("model", "") == self.unknown_model:
            raise UnknownModel(f"{self.name} has no such model")
        return PretendStream(self, math.inf if max_wait is None else max_wait, options)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closings += 1
        self._closed_in = trio.lowlevel.current_trio_token()


class PretendStream:
    """Three deltas, or an error in place of the one that the backend's answer names by ``at`` (the first)."""

    def __init__(self, backend: PretendBackend, max_wait: float, options: dict[str, Any]) -> None:
        self.backend = backend
        self.options = options
        self.slot = backend.gate.slot(max_wait=max_wait)
        self.granted = False
        self.number = 0

    @property
    def text(self) -> str:
        return ""

    @property
    def completion(self) -> str:
        return f"{self.backend.name}: {self.backend.answer}"

    async def __aenter__(self) -> Self:
        await self.slot.__aenter__()
        self.granted = True
        self.backend.chats.append((trio.current_time(), self.options))
        self.backend.on_chat()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.slot.__aexit__(kind, error, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        await trio.sleep(self.backend.answer_takes)
        self.number += 1
        answer = self.backend.answer
        if isinstance(answer, Exception) and self.number >= getattr(answer, "at", 1):
            raise answer
        if self.number > 3:
            raise StopAsyncIteration
        self.backend.last_token_at = trio.current_time()
        return f"{self.backend.name} {self.number}"
