"""Models without processes, for tests on the virtual clock: all of a router is real but the servers."""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING

import trio

from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.lifecycle import ModelState
from trio_mlxgate.models import ModelCrashed, ModelProcess, ModelStartFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.core.lifecycle import StateChange
    from trio_mlxgate.models.ports import PortPool
    from trio_mlxgate.models.router_config import ModelConfig


class PlayedModels:
    """Plays the servers of models: ``ModelRouter(config, process=PlayedModels(load=20))``.

    Nothing is started. A model gets ready after ``load`` seconds, its ``lease.base_url`` is ``http://NAME.test``, and
    it goes ``stop`` seconds after it is told to. Whom a client asks there is the test's affair: httpx.MockTransport
    serves well. All times are those of trio's clock, so that a MockClock makes them pass at once.

    Args:
      load: seconds from the start of a model until it is ready.
      stop: seconds that it takes to go.
      clearing: seconds from the end of a model that was killed until nothing is left of it.

    Raises:
      TypeError, ValueError: a time isn't one.
    """

    def __init__(self, *, load: float = 2.0, stop: float = 1.0, clearing: float = 0.0) -> None:
        self.load = check_seconds("load", load)
        """Seconds that a load takes; may be changed at any time."""
        self.stop = check_seconds("stop", stop)
        """Seconds that a stop takes; may be changed at any time."""
        self.clearing = check_seconds("clearing", clearing)
        self.broken: set[str] = set()
        """Names of models that fail when they should get ready; may be changed at any time."""
        self.starts: list[str] = []
        """The names of all that were started, in order."""
        self.pids = count(1000)
        self._made: dict[str, PlayedModel] = {}
        self._running: set[str] = set()

    def __call__(
        self,
        config: ModelConfig,
        *,
        ports: PortPool | None = None,
        on_change: Callable[[StateChange], object] | None = None,
        restarts: bool = True,
    ) -> PlayedModel:
        """What plays one model; the router asks for it."""
        played = self._made[config.name] = PlayedModel(
            self, config, ports=ports, on_change=on_change, restarts=restarts
        )
        return played

    @property
    def running(self) -> frozenset[str]:
        """The names of the models that take memory now: those that start and stop, too."""
        return frozenset(self._running)

    def kill(self, name: str) -> None:
        """End a model's server as ``kill -9`` would. The router hears of it in this step.

        Raises:
          LookupError: it doesn't run.
        """
        if name not in self._running:
            those = ", ".join(sorted(self._running)) or "none"
            raise LookupError(f"model {name!r} doesn't run (those that do: {those})")
        self._made[name].die()

    def is_killed(self, name: str) -> bool:
        """Whether the model's present server, or its last one, was killed."""
        return self._made[name].killed.is_set()

    def comes(self, name: str) -> None:
        """A model is started. A subclass may look at it."""
        self._running.add(name)
        self.starts.append(name)

    def goes(self, name: str) -> None:
        """A model is told to go. A subclass may look at it."""

    def went(self, name: str) -> None:
        """Nothing is left of a model. A subclass may look at it."""
        self._running.remove(name)


class PlayedModel(ModelProcess):
    """A :class:`~trio_mlxgate.models.ModelProcess` without a process. Made by :class:`PlayedModels`."""

    def __init__(
        self,
        models: PlayedModels,
        config: ModelConfig,
        *,
        ports: PortPool | None,
        on_change: Callable[[StateChange], object] | None,
        restarts: bool,
    ) -> None:
        super().__init__(config, ports=ports, on_change=on_change, restarts=restarts)
        self._models = models
        self.killed = trio.Event()
        """It is to end as ``kill -9`` would end it."""

    def die(self) -> None:
        """End as ``kill -9`` would end it."""
        self.killed.set()
        if self.state is ModelState.READY:
            self.crashed(ModelCrashed, "it was killed by SIGKILL while it was ready", -9)
        elif self.state is ModelState.STARTING:
            self.crashed(ModelStartFailed, "it was killed by SIGKILL while it was starting", -9)

    async def _serve(self) -> None:
        """Play one process, from its start until nothing is left of it. Always a checkpoint."""
        models, name = self._models, self.config.name
        self.killed = trio.Event()
        models.comes(name)
        self._first_line = self._output.count
        self._pid = next(models.pids)
        try:
            if await self._lasts(models.load) and self.state is ModelState.STARTING:
                if name in models.broken:
                    self.crashed(ModelStartFailed, "it ended with status 1 while it was starting", 1)
                    return
                self.answered(f"http://{name}.test")
                await self._lasts(math.inf)
            if self.killed.is_set():
                with trio.CancelScope(shield=True):
                    await trio.sleep(models.clearing)
        finally:
            if self.state in (ModelState.STARTING, ModelState.READY):
                self.left()
            if self.state is ModelState.STOPPING:
                models.goes(name)
                with trio.move_on_after(models.stop, shield=True):
                    await self._kill_asked.wait()
            self._pid = None
            models.went(name)

    async def _lasts(self, seconds: float) -> bool:
        """Whether nothing ends it for so long. Always a checkpoint."""
        ended = False

        async def ends(event: trio.Event) -> None:
            """Always a checkpoint."""
            nonlocal ended
            await event.wait()
            ended = True
            nursery.cancel_scope.cancel()

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends, self._stop_asked)
                nursery.start_soon(ends, self.killed)
        return not ended
