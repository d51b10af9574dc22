"""What a router knows of one model: its process, its present life, who asks for it, and who waits for its end."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from trio_mlxgate.core.swap_queue import SwapRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.core.lifecycle import ModelState, StateChange
    from trio_mlxgate.models.errors import ModelError
    from trio_mlxgate.models.output import Output
    from trio_mlxgate.models.ports import PortPool
    from trio_mlxgate.models.router_config import ModelConfig
    from trio_mlxgate.outer_deadline import OuterDeadlines


class LeaseStage(enum.Enum):
    """What a lease waits for."""

    QUEUED = "queued"
    """Others go before it, or its model has as many requests as it serves at once."""

    EVICTING = "evicting"
    """Its model comes next, and others are stopped for it."""

    LOADING = "loading"
    """Its model is starting."""

    READY = "ready"
    """Nothing any more: it is granted."""


class Asker(SwapRequest):
    """Who asks for a model: what the driver tells it."""

    __slots__ = ()

    def tell(self, stage: LeaseStage, position: int | None, evicting: tuple[str, ...], wait: float | None) -> None:
        """Something about it has changed."""
        raise NotImplementedError

    def granted(self, life: Life) -> None:
        """It is in flight from now on, served by this process."""
        raise NotImplementedError

    def refused(self, error: Exception) -> None:
        """It is out of the queue, for this reason."""
        raise NotImplementedError


class ServerProcess(Protocol):
    """What runs a model's server for the router: :class:`~trio_mlxgate.models.process.ModelProcess`, or a stand-in."""

    @property
    def state(self) -> ModelState:
        """Where it is."""
        ...

    @property
    def pid(self) -> int | None:
        """The id of its process; None: it has none."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether it is ready and answered the last look."""
        ...

    @property
    def retry_at(self) -> float:
        """Until when nobody gets it, since it has failed too often; -inf: it may be had."""
        ...

    @property
    def next_start(self) -> float:
        """Before that it is not started, since it has just crashed; a time that has passed, or -inf: it may be."""
        ...

    @property
    def first_line(self) -> int:
        """The number of the first line of output of its process, or of the last one it had."""
        ...

    @property
    def output(self) -> Output:
        """What it writes."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[object] = ...) -> None:  # noqa: ASYNC114 - as RunInBlock's
        """Run it until cancelled, and then stop it. Always a checkpoint."""
        ...

    async def ensure_ready(self) -> str:
        """The server's base URL when it is ready; raises ModelError. Always a checkpoint."""
        ...

    async def stop(self, *, now: bool = False, forget: bool = True) -> None:
        """Stop it, and return when nothing is left of it; raises ModelError. Always a checkpoint."""
        ...

    def forget(self) -> None:
        """Forget that it failed: who asks for it next gets it started at once."""
        ...

    async def wait_stopped(self) -> None:
        """Wait until nothing is left of it; raises ModelError. Always a checkpoint."""
        ...


class MakeProcess(Protocol):
    """Makes the process of a model; it is told ``restarts=False``: it is started when the scheduler says so."""

    def __call__(
        self,
        config: ModelConfig,
        *,
        ports: PortPool | None,
        on_change: Callable[[StateChange], object],
        restarts: bool,
    ) -> ServerProcess:
        """Make it."""
        ...


@attrs.define(eq=False)
class Life:
    """One process of a model, from ready to its end."""

    first_line: int
    """The number of its first line of output."""
    base_url: str = ""
    identity: int = 0
    """That of the swap that loaded it; 0: none has said so yet."""
    ended: trio.Event = attrs.field(factory=trio.Event)
    error: Callable[[], ModelError] | None = None
    """Makes the error for one whom it served when it ended; None: it has not ended."""
    lines: tuple[str, ...] | None = None
    """The last that it wrote; None: something of it may still come."""


@attrs.define(eq=False)
class Unload:
    """One who waits until a model has gone."""

    over: trio.Event = attrs.field(factory=trio.Event)
    error: str = ""


@attrs.define(eq=False)
class Served:
    """One model of a router."""

    config: ModelConfig
    deadlines: OuterDeadlines
    process: ServerProcess
    life: Life | None = None
    """The process that is ready; None: none is."""
    dead: Life | None = None
    """The process that was ready last, until the next one is started."""
    failure: Callable[[], ModelError] | None = None
    """Makes the error that says why it isn't to be had; None: it may be had."""
    unloads: list[Unload] = attrs.field(factory=list)
    loads: dict[int, trio.CancelScope] = attrs.field(factory=dict)
    """The loads that are going on, by the identity of their swap."""
