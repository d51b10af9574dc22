"""The router: models that take turns, leased to whoever wants one."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from trio_mlxgate.core.checks import check_bool
from trio_mlxgate.models._blocks import RunInBlock
from trio_mlxgate.models._driver import SwapDriver
from trio_mlxgate.models._router_errors import unknown_model
from trio_mlxgate.models._served import Unload
from trio_mlxgate.models.errors import EvictionFailed
from trio_mlxgate.models.lease import AsyncLease, SyncLease
from trio_mlxgate.models.process import ModelProcess
from trio_mlxgate.models.router_config import RouterConfig
from trio_mlxgate.models.settings import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from trio_mlxgate.core.swap_state import SwapStatistics
    from trio_mlxgate.models._served import MakeProcess, ServerProcess
    from trio_mlxgate.models.lease import LeaseProgress
    from trio_mlxgate.outer_deadline import OuterDeadline


class ModelRouter(RunInBlock):
    """More models than memory: whoever needs one leases it, and the router loads it, and stops others for it.

    ::

        async with ModelRouter(config) as router:
            async with router.lease("qwen", Priority.FOREGROUND, hold_timeout=60) as lease:
                await client.post(f"{lease.base_url}/v1/chat/completions", json=...)

    or, in a nursery of yours, ``router = await nursery.start(ModelRouter(config).run)``. When the block is left, or the
    nursery cancelled, all servers are stopped.

    A lease is a slot in the gate of its model: as many are held at once as the model's ``limit`` says, and the others
    wait, by priority, then by arrival. :class:`~trio_mlxgate.core.swap.SwapScheduler` decides who is served, who comes
    and who goes.

    Args:
      config: the models, and which may be there together.
      process: makes what runs a model's server; something else is for tests.
    """

    def __init__(self, config: RouterConfig, *, process: MakeProcess = ModelProcess) -> None:
        super().__init__()
        if not isinstance(config, RouterConfig):
            raise TypeError(f"config must be a RouterConfig, not {shown(config)}")
        self.config = config
        """What it was made of."""
        self._driver = SwapDriver(config, process)

    # ---- what can be asked ----

    def lease(
        self,
        model: str,
        priority: int | None = None,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        on_progress: Callable[[LeaseProgress], object] | None = None,
    ) -> AsyncLease:
        """A model to be used once: ``async with router.lease("qwen") as lease:``, then ask ``lease.base_url``.

        Entering waits until the model is ready and serves this one. A task that is cancelled while it waits leaves
        the queue in that step.

        Args:
          model: the model's name.
          priority: who goes first; None: the model's own, or else BACKGROUND.
          hold_timeout: seconds that the block may take, counted from the grant: waiting and loading use none of it.
          max_wait: seconds that the wait may take, the load included.
          supersede: as of a gate: a newer request for the same model with this key takes the place of an older one.
          outer_deadline: what to do about a finite deadline of the caller around the wait; None: as the router does.
          on_progress: is called with a :class:`LeaseProgress` whenever this one's place in the queue, or what is done
            for it, has changed, in the same step; it must not wait. ``send_channel.send_nowait`` is one.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          UnknownModel: on entering: there is no such model.
          GateRefused: on entering: it was refused; it is a QueueFull, WaitTooLong, Superseded, or PlanRefused.
          ModelFailed: on entering: the model did not get ready, or has failed too often; it says when to try again.
          ModelUnloaded: on entering: somebody unloaded the model while this waited.
          EvictionFailed: on entering: a model that had to go for it did not stop.
          ClosedResourceError: on entering: the router has ended, or ended meanwhile.
          RuntimeError: on entering: nobody runs the router, or this task would wait for what it holds itself.
          TooSlowError: on leaving: ``hold_timeout`` ended the block.
          ModelCrashed, ModelUnloaded: on leaving: the block lost its connection because the server has ended.
        """
        return AsyncLease(
            self._driver,
            model,
            priority,
            hold_timeout=hold_timeout,
            max_wait=max_wait,
            supersede=supersede,
            outer_deadline=outer_deadline,
            on_progress=on_progress,
        )

    def lease_nowait(self, model: str, priority: int | None = None, *, hold_timeout: float = math.inf) -> SyncLease:
        """A model to be used once, if it can be had at once: ``with router.lease_nowait("qwen") as lease:``.

        Nothing is loaded for it, and nothing stopped.

        Args:
          model, priority, hold_timeout: as for :meth:`lease`.

        Raises:
          WouldBlock: on entering: the model isn't ready, or has no slot for it, or somebody goes first.
          Exception: as for :meth:`lease`.
        """
        return SyncLease(self._driver, model, priority, hold_timeout=hold_timeout)

    async def unload(self, *models: str, now: bool = False) -> None:
        """Stop these models, or all if none is named, and return when their processes have gone. Always a checkpoint.

        Who waits for one of them gets ModelUnloaded. A model with requests in flight is stopped when they have ended,
        or at once if ``now``; then they lose their connections, and their leases raise ModelUnloaded. Nobody who waits
        for another model is held up, and who comes later brings the model back. That it failed is forgotten.
        Cancelled, this no longer waits; the models go all the same.

        Raises:
          TypeError: a name is no string, or ``now`` no bool; nothing was done.
          UnknownModel: one of them isn't there; nothing was done.
          EvictionFailed: a process did not stop, however often it was told to.
          ClosedResourceError: the router has ended.
          RuntimeError: nobody runs the router, or this task holds a lease that would have to end first.
        """
        await trio.lowlevel.checkpoint()
        self._driver.check_open()
        check_bool("now", now)
        names = models or tuple(self._driver.served)
        for name in names:
            given: object = name
            if not isinstance(given, str):
                raise TypeError(f"unload() takes names of models, as unload('a', 'b'), not {name!r}")
            if name not in self._driver.served:
                raise unknown_model(name, self._driver.served)
        held = {lease.model for lease in self._driver.held_by_this_task()}
        if not now and not held.isdisjoint(names):
            raise RuntimeError(
                f"this task holds a lease of {', '.join(sorted(held.intersection(names)))}, and would wait for its own "
                "end: leave it first, or say now=True"
            )
        waits = {name: Unload() for name in names}
        self._driver.unload(waits, now=now)
        try:
            for unload in waits.values():
                await unload.over.wait()
        finally:
            for name, unload in waits.items():
                if not unload.over.is_set():
                    self._driver.served[name].unloads.remove(unload)
        for name, unload in waits.items():
            if unload.error:
                raise EvictionFailed(f"model {name!r} does not stop: {unload.error}", model=name)

    def statistics(self) -> SwapStatistics:
        """What each model does, how many requests are in flight and wait, and what became of the others, now."""
        return self._driver.statistics()

    @property
    def processes(self) -> Mapping[str, ServerProcess]:
        """What runs each model's server, to be looked at: its state, its process id, its output.

        To stop one, use :meth:`unload`.
        """
        return MappingProxyType({name: served.process for name, served in self._driver.served.items()})

    # ---- its life ----

    async def run(  # noqa: ASYNC114 - what it starts is a value, to be used after it
        self, *, task_status: trio.TaskStatus[ModelRouter] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run it until cancelled: ``router = await nursery.start(router.run)``. Always a checkpoint.

        When it is cancelled, who waits gets ClosedResourceError, and all servers are stopped, side by side, in the time
        that the longest ``stop_grace`` and 15 s bound.

        Raises:
          RuntimeError: it runs already, or did: each is run once.
        """
        self._begin_to_run()
        await self._driver.run(lambda: task_status.started(self))

    def _run_once(self) -> str:
        return "this router is run already, or was: make another ModelRouter"
