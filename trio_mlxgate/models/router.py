"""The router: models that take turns, leased to whoever wants one."""

from __future__ import annotations

import logging
import math
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.core.lifecycle import ModelEvent, ModelState
from trio_mlxgate.core.swap import SwapScheduler
from trio_mlxgate.core.swap_effects import (
    EXITED,
    AbortLoad,
    Evicting,
    Grant,
    Loading,
    LoadModel,
    ModelStopped,
    Queued,
    Refuse,
    Ring,
    StartSwap,
    StopModel,
)
from trio_mlxgate.errors import PlanRefused, UnknownModel
from trio_mlxgate.models._blocks import RunInBlock
from trio_mlxgate.models._router_errors import SHUT, refusal, unknown_model
from trio_mlxgate.models._served import Life, Served, Unload
from trio_mlxgate.models.errors import EvictionFailed, ModelCrashed, ModelError, ModelFailed, ModelUnloaded
from trio_mlxgate.models.lease import AsyncLease, Lease, LeaseStage, SyncLease
from trio_mlxgate.models.ports import PortPool
from trio_mlxgate.models.process import LAST_LINES, ModelProcess
from trio_mlxgate.models.router_config import RouterConfig
from trio_mlxgate.outer_deadline import OuterDeadlines
from trio_mlxgate.trio_runtime import TrioRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from trio_mlxgate.core.lifecycle import StateChange
    from trio_mlxgate.core.swap_effects import Effect
    from trio_mlxgate.core.swap_state import SwapStatistics
    from trio_mlxgate.models._served import MakeProcess, ServerProcess
    from trio_mlxgate.models.lease import LeaseProgress
    from trio_mlxgate.models.router_config import ModelConfig
    from trio_mlxgate.outer_deadline import OuterDeadline

_logger: Final = logging.getLogger("trio_mlxgate.models")


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
            raise TypeError(f"config must be a RouterConfig, not {config!r}")
        self.config = config
        """What it was made of."""
        self._scheduler = SwapScheduler(
            config.effective_planner, {model.name: model.options for model in config.models}, config.swap
        )
        ports = None if config.ports is None else PortPool(*config.ports)
        self._served = {model.name: self._serve(model, process, ports) for model in config.models}
        self._owners: dict[trio.lowlevel.Task, list[Lease]] = {}
        self._runtime: TrioRuntime | None = None
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._alarm = trio.CancelScope()
        self._alarm_at = math.inf
        # What is still to be done: whom an effect concerns may bring about more of them.
        self._effects: deque[Effect] = deque()
        self._acting = False

    def _serve(self, config: ModelConfig, process: MakeProcess, ports: PortPool | None) -> Served:
        def changed(change: StateChange) -> None:
            self._changed(self._served[config.name], change)

        return Served(
            config,
            OuterDeadlines(config.name, self.config.outer_deadline),
            process(config, ports=ports, on_change=changed, restarts=False),
        )

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
            self,
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
        return SyncLease(self, model, priority, hold_timeout=hold_timeout)

    async def unload(self, *models: str, now: bool = False) -> None:
        """Stop these models, or all if none is named, and return when their processes have gone. Always a checkpoint.

        Who waits for one of them gets ModelUnloaded. A model with requests in flight is stopped when they have ended,
        or at once if ``now``; then they lose their connections, and their leases raise ModelUnloaded. Nobody who waits
        for another model is held up, and who comes later brings the model back. That it failed is forgotten.
        Cancelled, this no longer waits; the models go all the same.

        Raises:
          UnknownModel: one of them isn't there; nothing was done.
          EvictionFailed: a process did not stop, however often it was told to.
          ClosedResourceError: the router has ended.
          RuntimeError: nobody runs the router, or this task holds a lease that would have to end first.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        names = models or tuple(self._served)
        for name in names:
            if name not in self._served:
                raise unknown_model(name, self._served)
        held = {lease.model for lease in self._owners.get(trio.lowlevel.current_task(), ())}
        if not now and not held.isdisjoint(names):
            raise RuntimeError(
                f"this task holds a lease of {', '.join(sorted(held.intersection(names)))}, and would wait for its own "
                "end: leave it first, or say now=True"
            )
        waits = {name: Unload() for name in names}
        for name, unload in waits.items():
            self._served[name].unloads.append(unload)
            self._served[name].process.forget()
        self._happens(self._scheduler.on_unload, waits, trio.current_time(), at_once=now)
        try:
            for unload in waits.values():
                await unload.over.wait()
        finally:
            for name, unload in waits.items():
                if not unload.over.is_set():
                    self._served[name].unloads.remove(unload)
        for name, unload in waits.items():
            if unload.error:
                raise EvictionFailed(f"model {name!r} does not stop: {unload.error}", model=name)

    def statistics(self) -> SwapStatistics:
        """What each model does, how many requests are in flight and wait, and what became of the others. Never waits.

        Raises:
          RuntimeError: this is called outside of the trio run that runs the router, while it does.
        """
        return self._scheduler.statistics(self._now())

    @property
    def processes(self) -> Mapping[str, ServerProcess]:
        """What runs each model's server, to be looked at: its state, its process id, its output.

        To stop one, use :meth:`unload`.
        """
        return MappingProxyType({name: served.process for name, served in self._served.items()})

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
        self._runtime = TrioRuntime(trio.lowlevel.current_trio_token())
        try:
            async with trio.open_nursery() as nursery:
                for served in self._served.values():
                    await nursery.start(served.process.run)
                nursery.start_soon(self._ring)
                self._nursery = nursery
                try:
                    task_status.started(self)
                    await trio.sleep_forever()
                finally:
                    self._close()
        finally:
            self._closed = True
            for served in self._served.values():
                self._unloaded(served, "")

    def _run_once(self) -> str:
        return "this router is run already, or was: make another ModelRouter"

    def _close(self) -> None:
        """Refuse who waits and who comes. The processes are stopped by the end of those who run them."""
        self._closed = True
        self._happens(self._scheduler.on_shutdown, trio.current_time())

    async def _ring(self) -> None:
        """Tell the scheduler when the time has come that it named. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while True:
            with trio.CancelScope(deadline=self._alarm_at) as self._alarm:
                await trio.sleep_forever()
            if self._alarm_at <= trio.current_time():
                self._happens(self._scheduler.on_tick, trio.current_time())

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(SHUT)
        if self._runtime is None or self._nursery is None:
            raise RuntimeError(
                "nobody runs this router: use it inside 'async with router', or nursery.start(router.run)"
            )
        if self._runtime.token is not trio.lowlevel.current_trio_token():
            raise RuntimeError("this router is run by another trio run: give each run one of its own")

    def _now(self) -> float:
        # Nothing happens before it runs and after it has: there every time will do.
        return 0.0 if self._runtime is None else self._runtime.clock()

    # ---- for its leases ----

    def asked_by_this_task(self, lease: Lease) -> trio.lowlevel.Task:
        """The task that asks for a lease. Raises if it may not."""
        self._check_open()
        task = trio.lowlevel.current_task()
        for held in self._owners.get(task, ()):
            if held.model == lease.model:
                raise RuntimeError(
                    f"this task holds a lease of model {lease.model!r} already; to wait for another might be "
                    "to wait for itself. Use the one that it has, or start a child task"
                )
            if lease.model in self._served and not self._together(held.model, lease.model):
                raise RuntimeError(
                    f"this task holds a lease of model {held.model!r}, which has to go before {lease.model!r} can "
                    "come: it would wait for itself. Leave that lease first"
                )
        return task

    def _together(self, held: str, wanted: str) -> bool:
        """Whether a model may come while another one is in use."""
        try:
            return held not in self.config.effective_planner.evictions(wanted, [held], {held}).evict
        except (PlanRefused, UnknownModel):
            return True  # the scheduler asks again, and refuses with it

    def look_at_deadline(self, lease: Lease, policy: OuterDeadline | None) -> None:
        """Report a deadline around the wait, as the policy says."""
        served = self._served.get(lease.model)
        if served is not None and self._runtime is not None:
            served.deadlines.look(policy, self._runtime)

    def asks(self, lease: Lease, *, nowait: bool = False) -> None:
        """A lease arrives."""
        self._check_open()
        self._happens(self._scheduler.on_request, lease, trio.current_time(), nowait=nowait)

    def cancelled(self, lease: Lease) -> None:
        """Nobody waits for a lease any more, or it was granted and nobody came for it."""
        self._happens(self._scheduler.on_cancel, lease, trio.current_time())

    def ended(self, lease: Lease) -> None:
        """A lease that was granted has ended."""
        self._happens(self._scheduler.on_serve_done, lease, self._now())

    def owned(self, lease: Lease, task: trio.lowlevel.Task) -> None:
        """A task holds a lease from now on."""
        self._owners.setdefault(task, []).append(lease)

    def no_longer_owned(self, lease: Lease, task: trio.lowlevel.Task) -> None:
        """It no longer does."""
        leases = self._owners[task]
        leases.remove(lease)
        if not leases:
            del self._owners[task]

    def call(self, function: Callable[[Any], object], argument: object, name: str) -> None:
        """Call a function of the user's, whose errors are logged."""
        try:
            function(argument)
        except Exception:
            _logger.exception("%s failed with %r", name, argument)

    # ---- what the scheduler wants done ----

    @enable_ki_protection
    def _happens(self, event: Callable[..., Iterable[Effect]], *what: Any, **more: Any) -> None:
        """Tell the scheduler of an event, and do what it says, in one step."""
        self._effects += event(*what, **more)
        self._act()

    def _act(self) -> None:
        if self._acting:
            return
        self._acting = True
        try:
            while self._effects:
                self._do(self._effects.popleft())
        finally:
            self._acting = False
            if self._effects:
                # A function of the user's has raised what ends the program. The others are served all the same.
                self._act()

    def _do(self, effect: Effect) -> None:
        match effect:
            case Grant(request):
                served = self._served[request.model]
                assert isinstance(request, Lease)
                assert served.life is not None, "what is ready has a process"
                request.granted(served.life)
            case Refuse(request):
                assert isinstance(request, Lease)
                request.refused(self._refusal(effect))
            case Queued(request, position, wait):
                self._tell(request, LeaseStage.QUEUED, wait, position=position)
            case Evicting(request, models, wait):
                self._tell(request, LeaseStage.EVICTING, wait, evicting=models)
            case Loading(request, wait):
                self._tell(request, LeaseStage.LOADING, wait)
            case StartSwap(identity, _, _, plan):
                _logger.info("swap %d: %s", identity, plan.describe())
            case LoadModel():
                self._start_load(effect)
            case StopModel(_, name):
                if isinstance(effect, AbortLoad):
                    self._served[name].loads.pop(effect.load).cancel()
                self._start_stop(effect)
            case ModelStopped(name, error):
                self._unloaded(self._served[name], error)
            case Ring(at):
                self._alarm_at = self._alarm.deadline = at

    def _tell(
        self, request: object, stage: LeaseStage, wait: float | None, *, position: int | None = None, evicting: Any = ()
    ) -> None:
        assert isinstance(request, Lease)
        request.tell(stage, position, evicting, wait)

    def _refusal(self, refused: Refuse) -> Exception:
        request = refused.request
        served = self._served.get(request.model)
        waited = trio.current_time() - request.arrived_at
        failure = None if served is None else served.failure
        return refusal(refused, waited=waited, failure=failure, known=self._served)

    def _unloaded(self, served: Served, error: str) -> None:
        unloads, served.unloads = served.unloads, []
        for unload in unloads:
            unload.error = error
            unload.over.set()

    # ---- processes ----

    def _start_load(self, effect: LoadModel) -> None:
        if self._closed or self._nursery is None:
            return
        served = self._served[effect.model]
        # Made here: it may be given up before its task has begun.
        scope = served.loads[effect.identity] = trio.CancelScope()
        self._nursery.start_soon(self._load, served, effect.identity, scope, name=f"load of model {effect.model!r}")

    async def _load(  # noqa: ASYNC910 - ensure_ready is one
        self, served: Served, identity: int, scope: trio.CancelScope
    ) -> None:
        """Bring a model up, and report what came of it. Always a checkpoint."""
        error, retry_at = "", -math.inf
        with scope:
            try:
                base_url = await served.process.ensure_ready()
            except ModelError as failure:
                error, retry_at = failure.reason, served.process.retry_at
                served.failure = failure if isinstance(failure, ModelFailed) else None
            else:
                life = served.life
                assert life is not None, "it has answered"
                life.base_url = base_url
                life.identity = life.identity or identity
                served.failure = None
        if not scope.cancelled_caught:
            served.loads.pop(identity, None)
            self._happens(self._scheduler.on_swap_done, identity, trio.current_time(), error, retry_at=retry_at)

    def _start_stop(self, effect: StopModel) -> None:
        # When all ends, who runs the processes stops them.
        if not self._closed and self._nursery is not None:
            self._nursery.start_soon(self._stop, effect, name=f"stop of model {effect.model!r}")

    async def _stop(self, effect: StopModel) -> None:  # noqa: ASYNC910 - each way to stop is one
        """Stop a model, and report it. Always a checkpoint."""
        process, error = self._served[effect.model].process, ""
        try:
            if effect.reason == EXITED and effect.attempt == 1:
                await process.wait_stopped()
            else:
                await process.stop(now=effect.attempt > 1)
        except ModelError as failure:
            error = failure.reason
        self._happens(self._scheduler.on_stopped, effect.identity, trio.current_time(), error)

    def _changed(self, served: Served, change: StateChange) -> None:
        """A step in the life of a process, told in the same step."""
        if change.after is ModelState.READY:
            served.life = Life()
        elif change.before is ModelState.READY and served.life is not None:
            life, served.life = served.life, None
            name, reason, retry_at = change.model, change.reason, served.process.retry_at
            asked_for = change.event is ModelEvent.STOP

            def error() -> ModelError:
                output = served.process.output.tail(LAST_LINES)
                if asked_for:
                    return ModelUnloaded(f"model {name!r} was stopped while it was in use", model=name, output=output)
                told = f"model {name!r}: {reason}"
                retry_after = max(0.0, retry_at - trio.current_time())
                return ModelCrashed(
                    told, model=name, retry_after=retry_after, output=output, exit_status=change.exit_status
                )

            life.error = error
            life.ended.set()
            if not asked_for and retry_at > trio.current_time():
                failure = error()
                served.failure = failure if isinstance(failure, ModelFailed) else None
            if not self._closed:
                now = trio.current_time()
                self._happens(self._scheduler.on_exit, name, life.identity, now, reason, retry_at=retry_at)
