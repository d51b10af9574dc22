"""Drives the swap scheduler: tells it what happens, in one step each, and does what it says."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.call_sites import call_site
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
from trio_mlxgate.core.ticket import WAITING
from trio_mlxgate.errors import PlanRefused
from trio_mlxgate.models._router_errors import SHUT, refusal
from trio_mlxgate.models._served import Asker, LeaseStage, Life, Served, Unload
from trio_mlxgate.models.errors import ModelCrashed, ModelError, ModelNotStopped, ModelUnloaded
from trio_mlxgate.models.ports import PortPool
from trio_mlxgate.models.process import LAST_LINES
from trio_mlxgate.outer_deadline import OuterDeadlines
from trio_mlxgate.trio_runtime import TrioRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio_mlxgate.core.lifecycle import StateChange
    from trio_mlxgate.core.swap_effects import Effect
    from trio_mlxgate.core.swap_state import SwapStatistics
    from trio_mlxgate.models._served import MakeProcess
    from trio_mlxgate.models.router_config import ModelConfig, RouterConfig
    from trio_mlxgate.outer_deadline import OuterDeadline

_logger: Final = logging.getLogger("trio_mlxgate.models")


class SwapDriver:
    """The acting half of a router: the processes of all models, and whoever asks for one, in one trio run."""

    def __init__(self, config: RouterConfig, process: MakeProcess) -> None:
        self._planner = config.effective_planner
        self._scheduler = SwapScheduler(
            self._planner, {model.name: model.options for model in config.models}, config.swap
        )
        ports = None if config.ports is None else PortPool(*config.ports)
        self.served = {model.name: self._serve(model, process, ports, config.outer_deadline) for model in config.models}
        """What is known of each model."""
        self._owners: dict[trio.lowlevel.Task, list[Asker]] = {}
        self._runtime: TrioRuntime | None = None
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._alarm = trio.CancelScope()
        self._alarm_at = math.inf
        # What is still to be done: whom an effect concerns may bring about more of them.
        self._effects: deque[Effect] = deque()
        self._acting = False

    def _serve(
        self, config: ModelConfig, process: MakeProcess, ports: PortPool | None, outer_deadline: OuterDeadline
    ) -> Served:
        def changed(change: StateChange) -> None:
            self._changed(self.served[config.name], change)

        return Served(
            config,
            OuterDeadlines(config.name, outer_deadline, f"a lease of model {config.name!r}"),
            process(config, ports=ports, on_change=changed, restarts=False),
        )

    # ---- its life ----

    async def run(self, started: Callable[[], object]) -> None:
        """Run until cancelled; ``started`` is called when leases may be asked for. Always a checkpoint."""
        self._runtime = TrioRuntime(trio.lowlevel.current_trio_token())
        self._runtime.watch_owners(self)
        try:
            async with trio.open_nursery() as nursery:
                for served in self.served.values():
                    await nursery.start(served.process.run)
                nursery.start_soon(self._ring)
                self._nursery = nursery
                try:
                    started()
                    await trio.sleep_forever()
                finally:
                    self._close()
        finally:
            self._closed = True
            for served in self.served.values():
                self._unloaded(served, "")

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

    def check_open(self) -> None:
        """Raise if no lease may be asked for now, here."""
        if self._closed:
            raise trio.ClosedResourceError(SHUT)
        if self._runtime is None or self._nursery is None:
            raise RuntimeError(
                "nobody runs this router: use it inside 'async with router', or nursery.start(router.run)"
            )
        try:
            here = trio.lowlevel.current_trio_token()
        except RuntimeError:
            raise RuntimeError("a router is asked by tasks of the trio run that runs it, not by threads") from None
        if self._runtime.token is not here:
            raise RuntimeError("this router is run by another trio run: give each run one of its own")

    def now(self) -> float:
        """The time in the run, from outside of it too."""
        # Nothing happens before it runs and after it has: there every time will do.
        return 0.0 if self._runtime is None else self._runtime.clock()

    # ---- for who asks ----

    def asked_by_this_task(self, lease: Asker) -> trio.lowlevel.Task:
        """The task that asks for a lease. Raises if it may not."""
        self.check_open()
        task = trio.lowlevel.current_task()
        held = [each.model for each in self._owners.get(task, ())]
        if lease.model in held:
            raise RuntimeError(
                f"this task holds a lease of model {lease.model!r} already; to wait for another might be "
                "to wait for itself. Use the one that it has"
            )
        in_the_way = self._in_the_way(lease.model, held)
        if in_the_way:
            raise RuntimeError(
                f"this task holds a lease of model {in_the_way[0]!r}, which has to go before {lease.model!r} can "
                "come: it would wait for itself. Leave that lease first"
            )
        return task

    def _in_the_way(self, wanted: str, held: list[str]) -> list[str]:
        """Which of the models that are in use have to go before another one may come."""
        if not held or wanted not in self.served:
            return []
        try:
            evict = self._planner.evictions(wanted, sorted(held), set(held)).evict
        except PlanRefused:
            return []  # the scheduler asks again, and refuses with it
        return [name for name in evict if name in held]

    def look_at_deadline(self, lease: Asker, policy: OuterDeadline | None) -> None:
        """Report a deadline around the wait, as the policy says."""
        served = self.served.get(lease.model)
        if served is not None and self._runtime is not None:
            served.deadlines.look(policy, self._runtime)

    def asks(self, lease: Asker, *, nowait: bool = False) -> None:
        """A lease arrives."""
        self.check_open()
        if self._acting:
            raise RuntimeError("on_progress must not ask for a lease itself: tell a task of yours to do so")
        self._happens(self._scheduler.on_request, lease, trio.current_time(), nowait=nowait)
        if lease.state is WAITING and self._owners:
            self._look_above(lease)

    def _look_above(self, lease: Asker) -> None:
        """Tell it if a lease waits for one that a task above holds: if that one's block can't end before, both hang."""
        runtime = self._runtime
        assert runtime is not None
        for above in runtime.above(trio.lowlevel.current_task()):
            held = [each.model for each in self._owners.get(above, ())]
            full = lease.model in held and held.count(lease.model) >= self.served[lease.model].config.options.slots
            if full or self._in_the_way(lease.model, held):
                file, line = call_site(runtime)
                _logger.warning(
                    "a lease of model %r waits for what the task %r above it holds (%s:%d): if that one's block "
                    "waits for this task, both wait for ever",
                    *(lease.model, above.name, file, line),
                )
                return

    def cancelled(self, lease: Asker) -> None:
        """Nobody waits for a lease any more, or it was granted and nobody came for it."""
        self._happens(self._scheduler.on_cancel, lease, trio.current_time())

    def ended(self, lease: Asker) -> None:
        """A lease that was granted has ended."""
        self._happens(self._scheduler.on_serve_done, lease, self.now())

    def owned(self, lease: Asker, task: trio.lowlevel.Task) -> None:
        """A task holds a lease from now on."""
        self._owners.setdefault(task, []).append(lease)

    def no_longer_owned(self, lease: Asker, task: trio.lowlevel.Task) -> None:
        """It no longer does."""
        leases = self._owners.get(task, [])  # none if it has ended
        if lease in leases:
            leases.remove(lease)
            if not leases:
                del self._owners[task]

    def held_by_this_task(self) -> list[Asker]:
        """The leases that this task holds."""
        return self._owners.get(trio.lowlevel.current_task(), [])

    def unload(self, waits: dict[str, Unload], *, now: bool) -> None:
        """These models are to go; who waits for each is told when it has gone."""
        for name, unload in waits.items():
            self.served[name].unloads.append(unload)
            self.served[name].process.forget()
        self._happens(self._scheduler.on_unload, waits, trio.current_time(), at_once=now)

    def statistics(self) -> SwapStatistics:
        """A snapshot."""
        return self._scheduler.statistics(self.now())

    def hand_over(self, error: BaseException) -> None:
        """Let an error come out of the router's nursery: here it would do harm."""
        if self._nursery is None or self._closed:
            _logger.error("the router has ended, and this is left: %r", error, exc_info=error)
        else:
            self._nursery.start_soon(_raise, error)

    def _task_ended(self, task: trio.lowlevel.Task) -> None:
        """A task has ended that holds leases: nobody else would give them back."""
        for lease in self._owners.pop(task):
            _logger.error(
                "task %r has ended without leaving its lease of model %r; use async with", task.name, lease.model
            )
            self.ended(lease)

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
                served = self.served[request.model]
                assert isinstance(request, Asker)
                # It may have ended since that was decided: by a function of the user's that was called meanwhile.
                life = served.life or served.dead
                assert life is not None, "what is ready has a process"
                request.granted(life)
            case Refuse(request):
                assert isinstance(request, Asker)
                try:
                    error = self._refusal(effect)
                except Exception as failed:  # noqa: BLE001 - of a key of the user's that can't be shown: it is raised
                    error = failed
                request.refused(error)
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
                    self.served[name].loads.pop(effect.load).cancel()
                self._start_stop(effect)
            case ModelStopped(name, error):
                self._unloaded(self.served[name], error)
            case Ring(at):
                self._alarm_at = self._alarm.deadline = at

    def _tell(
        self, request: object, stage: LeaseStage, wait: float | None, *, position: int | None = None, evicting: Any = ()
    ) -> None:
        assert isinstance(request, Asker)
        request.tell(stage, position, evicting, wait)

    def _refusal(self, refused: Refuse) -> Exception:
        request = refused.request
        served = self.served.get(request.model)
        waited = trio.current_time() - request.arrived_at
        failure = None if served is None or served.failure is None else served.failure()
        return refusal(refused, waited=waited, failure=failure, known=self.served)

    def _unloaded(self, served: Served, error: str) -> None:
        unloads, served.unloads = served.unloads, []
        for unload in unloads:
            unload.error = error
            unload.over.set()

    # ---- processes ----

    def _start_load(self, effect: LoadModel) -> None:
        if self._closed or self._nursery is None:
            return
        served = self.served[effect.model]
        # Made here: it may be given up before its task has begun.
        scope = served.loads[effect.identity] = trio.CancelScope()
        self._nursery.start_soon(self._load, served, effect.identity, scope, name=f"load of model {effect.model!r}")

    async def _load(  # noqa: ASYNC910 - ensure_ready is one
        self, served: Served, identity: int, scope: trio.CancelScope
    ) -> None:
        """Bring a model up, and report what came of it. Always a checkpoint."""
        error, retry_at, is_left = "", -math.inf, False
        with scope:
            try:
                base_url = await served.process.ensure_ready()
            except ModelError as failure:
                error, retry_at = failure.reason, served.process.retry_at
                served.failure = failure.again
                try:
                    await served.process.wait_stopped()
                except ModelNotStopped:
                    is_left = True
            else:
                life = served.life
                assert life is not None, "it has answered"
                life.base_url = base_url
                life.identity = life.identity or identity
                served.failure = None
        if not scope.cancelled_caught:
            served.loads.pop(identity, None)
            now = trio.current_time()
            self._happens(self._scheduler.on_swap_done, identity, now, error, retry_at=retry_at, is_left=is_left)

    def _start_stop(self, effect: StopModel) -> None:
        # When all ends, who runs the processes stops them.
        if not self._closed and self._nursery is not None:
            self._nursery.start_soon(self._stop, effect, name=f"stop of model {effect.model!r}")

    async def _stop(self, effect: StopModel) -> None:  # noqa: ASYNC910 - each way to stop is one
        """Stop a model, and report it. Always a checkpoint."""
        process, error = self.served[effect.model].process, ""
        try:
            if effect.reason == EXITED and effect.attempt == 1:
                await process.wait_stopped()
            else:
                await process.stop(now=effect.attempt > 1, forget=False)
        except ModelError as failure:
            error = failure.reason
        self._happens(self._scheduler.on_stopped, effect.identity, trio.current_time(), error)

    def _changed(self, served: Served, change: StateChange) -> None:
        """A step in the life of a process, told in the same step."""
        if change.event is ModelEvent.START and served.dead is not None:
            # From here on what is written is another one's.
            served.dead.lines = served.process.output.tail(LAST_LINES, since=served.dead.first_line)
            served.dead = None
        if change.after is ModelState.READY:
            served.life = Life(first_line=served.process.first_line)
        elif change.before is ModelState.READY and served.life is not None:
            life, served.life = served.life, None
            served.dead = life
            name, reason = change.model, change.reason
            retry_at, next_start = served.process.retry_at, served.process.next_start
            asked_for = change.event is ModelEvent.STOP

            def error() -> ModelError:
                output = life.lines
                if output is None:
                    output = served.process.output.tail(LAST_LINES, since=life.first_line)
                if asked_for:
                    return ModelUnloaded(f"model {name!r} was stopped while it was in use", model=name, output=output)
                told = f"model {name!r}: {reason}"
                retry_after = max(0.0, next_start - trio.current_time())
                return ModelCrashed(
                    told, model=name, retry_after=retry_after, output=output, exit_status=change.exit_status
                )

            life.error = error
            life.ended.set()
            if not asked_for:
                served.failure = error
            if not self._closed:
                now = trio.current_time()
                self._happens(self._scheduler.on_exit, name, life.identity, now, reason, retry_at=retry_at)


async def _raise(error: BaseException) -> None:
    """Always a checkpoint."""
    await trio.lowlevel.checkpoint()
    raise error
