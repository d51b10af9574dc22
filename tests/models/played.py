"""Models whose processes are played on the virtual clock: all of ModelProcess but the process itself."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import trio

from trio_mlxgate.models import (
    ModelConfig,
    ModelCrashed,
    ModelProcess,
    ModelRouter,
    ModelStartFailed,
    ModelState,
    RestartSettings,
    RouterConfig,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Played(ModelProcess):
    """One model's. It takes ``load`` seconds to get ready, and ``stop`` to go."""

    servers: Servers

    async def _serve(self) -> None:
        servers, name = self.servers, self.config.name
        servers.comes(name)
        self._pid = next(servers.pids)
        self.killed = trio.Event()
        try:
            if await self.lasts(servers.load) and self.state is ModelState.STARTING:
                if name in servers.broken:
                    self.crashed(ModelStartFailed, "no memory", 1)
                    return
                self.answered(f"http://{name}.test")
                await self.lasts(float("inf"))
            if self.killed.is_set() and not self._stop_asked.is_set():
                self.crashed(ModelCrashed, "it was killed by SIGKILL", -9)
                with trio.CancelScope(shield=True):
                    await trio.sleep(servers.clearing)
        finally:
            if self.state in (ModelState.STARTING, ModelState.READY):
                self.left()
            if self.state is ModelState.STOPPING:
                servers.stops(name)
                with trio.move_on_after(servers.stop, shield=True):
                    await self._kill_asked.wait()
            self._pid = None
            servers.there.remove(name)

    async def lasts(self, seconds: float) -> bool:
        """Whether nothing ends it for so long."""
        ended = False

        async def ends(event: trio.Event) -> None:
            nonlocal ended
            await event.wait()
            ended = True
            nursery.cancel_scope.cancel()

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends, self._stop_asked)
                nursery.start_soon(ends, self.killed)
        return not ended


class Servers:
    """Makes them, and sees to it that those are there together that may be."""

    def __init__(
        self,
        permit: Callable[[Collection[str]], bool] = lambda there: len(there) < 2,
        *,
        load: float = 2.0,
        stop: float = 1.0,
        clearing: float = 0.25,
    ) -> None:
        self.permit = permit
        self.load = load
        self.stop = stop
        self.clearing = clearing
        self.there: set[str] = set()
        self.broken: set[str] = set()
        self.made: dict[str, Played] = {}
        self.pids = count(1000)
        self.starts: list[str] = []
        self.stops: Callable[[str], object] = str  # is called when one is told to go

    def __call__(self, config: ModelConfig, **more: Any) -> Played:
        process = self.made[config.name] = Played(config, **more)
        process.servers = self
        return process

    def comes(self, name: str) -> None:
        assert name not in self.there, f"{name} is there twice"
        self.there.add(name)
        self.starts.append(name)
        assert self.permit(self.there), f"{sorted(self.there)} may not be there together"

    def kill(self, name: str) -> None:
        """As kill -9 does."""
        self.made[name].killed.set()


def model(name: str, **settings: Any) -> ModelConfig:
    return ModelConfig(
        **{
            "name": name,
            "command": "serve ${PORT}",
            "restarts": RestartSettings(first=0.5, most=2, window=100.0),
            **settings,
        }
    )


def router(servers: Servers, *models: ModelConfig | str, **settings: Any) -> ModelRouter:
    configs = [each if isinstance(each, ModelConfig) else model(each) for each in models or ("a", "b")]
    return ModelRouter(RouterConfig(models=configs, **settings), process=servers)
