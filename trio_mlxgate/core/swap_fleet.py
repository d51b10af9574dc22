"""The processes of all models, as far as the swap scheduler was told: who comes, who goes, and who may come already."""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING

from trio_mlxgate.core.planning import PlanRefused
from trio_mlxgate.core.swap_effects import (
    EVICTION_FAILED,
    EXITED,
    AbortLoad,
    DropSwap,
    Effect,
    LoadModel,
    ModelStopped,
    Refuse,
    StartSwap,
    StopModel,
)
from trio_mlxgate.core.swap_queue import ModelQueue
from trio_mlxgate.core.swap_state import ModelState, Phase, Stop, Swap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from trio_mlxgate.core.planning import Plan, Planner
    from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions

OFF, LOADING, READY, STOPPING, STUCK = Phase.OFF, Phase.LOADING, Phase.READY, Phase.STOPPING, Phase.STUCK


class Fleet:
    """All models, the swaps and stops that are under way, and the effects that have been decided in this event.

    A model is *committed* when it will be there once all that is under way has come to its end. All of these may be
    there together, as the planner says; a load begins when it may be beside those that are on their way out, too.
    """

    def __init__(
        self, planner: Planner, models: Mapping[str, ModelOptions], options: SwapOptions, ready: Iterable[str]
    ) -> None:
        self._planner = planner
        self.options = options
        self.models = {name: ModelState(name, chosen, ModelQueue(chosen)) for name, chosen in models.items()}
        for name in self.models:
            # Asked once, so that a model that the planner doesn't know is found before there is a request for it.
            planner.evictions(name, ())
        for name in ready:
            self.models[name].phase = READY
        self._identities = count(1)
        self._swaps: dict[int, ModelState] = {}
        self._stops: dict[int, ModelState] = {}
        self.effects: list[Effect] = []
        self.loads_begun = self.stops_begun = self.evicted = 0

    def take_effects(self) -> list[Effect]:
        """What has been decided since this was last asked."""
        effects, self.effects = self.effects, []
        return effects

    # ---- who is there ----

    def committed(self) -> list[str]:
        """The models that will be there, in the order of the alphabet."""
        return sorted(
            name
            for name, model in self.models.items()
            if model.swap is not None or model.phase is READY or model.phase is STUCK
        )

    def there(self) -> list[str]:
        """The models that take memory, whatever they do."""
        return sorted(name for name, model in self.models.items() if model.phase is not OFF)

    def plan(self, target: str, running: Iterable[str], busy: Collection[str] | None = None) -> Plan:
        """What the planner says. Raises PlanRefused."""
        others = [name for name in running if name != target or self.models[name].phase is READY]
        models = self.models
        if busy is None:
            busy = {name for name in others if models[name].busy}
        used = {name: at for name in others if (at := models[name].used_at()) > -math.inf}
        return self._planner.evictions(target, others, busy, used)

    def considered(self) -> list[str]:
        """The models among which another one has to find its place."""
        if self.options.overlap:
            return self.committed()
        # What is being stopped counts, too, but for what is unloaded: llama-swap stops that within the event.
        there = (name for name in self.there() if (stop := self.models[name].stop) is None or stop.reason != "unloaded")
        return sorted({*there, *self.committed()})

    def plan_now(self, target: ModelState) -> Plan:
        """What must go so that ``target`` may come. Raises PlanRefused."""
        return self.plan(target.name, self.considered())

    def evictions(self, target: ModelState, plan: Plan) -> tuple[str, ...]:
        """The models that a plan stops."""
        if not self.options.overlap:
            return plan.evict
        going = [name for name in plan.evict if name != target.name and self._is_committed(name)]
        # A process that didn't stop can't serve either: it has to go before another one of the same model comes.
        return (*going, target.name) if target.phase is STUCK else tuple(going)

    def may_be_beside(self, target: str, running: Collection[str]) -> bool:
        """Whether nothing of ``running`` has to go for ``target``."""
        try:
            return not self.plan(target, running).evict
        except PlanRefused:
            return False

    def _is_committed(self, name: str) -> bool:
        model = self.models[name]
        return model.swap is not None or model.phase is READY or model.phase is STUCK

    # ---- coming and going ----

    def begin(self, target: ModelState, plan: Plan, evict: tuple[str, ...], now: float) -> None:
        """A swap begins: what must go is told to, and the load begins once that has gone."""
        identity = next(self._identities)
        self.effects.append(StartSwap(identity, target.name, evict, plan))
        for name in evict:
            model = self.models[name]
            if model.swap is not None:
                self.give_up(model, "unwanted", now)
            if model.phase is READY or model.phase is STUCK:
                self.evicted += 1
                self.stop(model, "evicted", now)
        target.swap = Swap(identity, target.name, evict, plan)
        target.queue.shut()
        target.cutoff = -math.inf
        self._swaps[identity] = target

    def give_up(self, model: ModelState, reason: str, now: float) -> None:
        """The swap of a model ends without it."""
        swap = model.swap
        assert swap is not None, "only a swap that is there is given up"
        self.end_swap(model)
        if model.phase is LOADING:
            self.stop(model, reason, now, swap)
        else:
            self.effects.append(DropSwap(swap.identity, model.name))

    def end_swap(self, model: ModelState) -> None:
        """The swap of a model is over: from here on its identity is a stale one."""
        assert model.swap is not None, "only a swap that is there ends"
        del self._swaps[model.swap.identity]
        model.swap = None

    def stop(self, model: ModelState, reason: str, now: float, aborted: Swap | None = None) -> None:
        """A process that is there is told to stop."""
        identity = next(self._identities)
        model.phase = STOPPING
        model.draining = False
        model.stop = Stop(identity, reason, now)
        model.queue.shut()
        model.cutoff = -math.inf
        self._stops[identity] = model
        self.stops_begun += 1
        if aborted is not None:
            self.effects.append(AbortLoad(identity, model.name, reason, load=aborted.identity))
        else:
            self.effects.append(StopModel(identity, model.name, reason))

    def loaded(self, identity: int, now: float) -> ModelState | None:
        """The model whose load this is, if that is going on; None: the report is stale."""
        model = self._swaps.get(identity)
        if model is None or model.swap is None:
            return None
        if not self.options.overlap:
            # There a swap is one act: that it is over means that what had to go has gone.
            for name in model.swap.evict:
                stop = self.models[name].stop
                if stop is not None:
                    self.stopped(stop.identity, now, "")
            model.swap.loading_since = now if model.swap.loading_since is None else model.swap.loading_since
        return model if model.swap.loading_since is not None else None

    def stopped(self, identity: int, now: float, error: str) -> None:
        """An attempt to stop a process has come to its end; a stale report changes nothing."""
        model = self._stops.pop(identity, None)
        if model is None:
            return
        stop = model.stop
        assert stop is not None, "a model that is told to stop remembers it"
        if not error:
            model.phase = OFF
            model.stop = None
            if stop.reason != EXITED:
                model.stops.append(now - stop.began)
            self.effects.append(ModelStopped(model.name))
        elif stop.attempt < self.options.stop_attempts:
            stop.retry_at = now + self.options.stop_retry_delay
        else:
            model.phase = STUCK
            model.stop = None
            self.effects.append(ModelStopped(model.name, error))
            self._give_up_behind(model, error)

    def retry_stops(self, now: float) -> None:
        """Stops that failed are tried again, those that are due."""
        for model in self.models.values():
            stop = model.stop
            if stop is not None and stop.retry_at <= now:
                stop.identity = next(self._identities)
                stop.attempt += 1
                stop.retry_at = math.inf
                self._stops[stop.identity] = model
                self.effects.append(StopModel(stop.identity, model.name, stop.reason, stop.attempt))

    def _give_up_behind(self, stuck: ModelState, error: str) -> None:
        """Who waits for the place of a model that doesn't stop is told."""
        for model in self.models.values():
            swap = model.swap
            if swap is None or swap.loading_since is not None:
                continue
            others = [name for name in self.committed() if name != model.name]
            if stuck.name in swap.evict or model is stuck or not self.may_be_beside(model.name, others):
                self.end_swap(model)
                self.effects.append(DropSwap(swap.identity, model.name))
                detail = f"{stuck.name} does not stop: {error}"
                self.effects += [
                    Refuse(request, EVICTION_FAILED, detail) for request in model.queue.refuse_waiting(EVICTION_FAILED)
                ]

    def start_loads(self, now: float) -> None:
        """Loads begin for which nothing has to go any more."""
        for model in list(self._swaps.values()):
            swap = model.swap
            assert swap is not None, "a model is found by its swap"
            if swap.loading_since is None and self._may_load(model, swap):
                swap.loading_since = now
                self.loads_begun += 1
                if model.phase is OFF:
                    model.phase = LOADING
                self.effects.append(LoadModel(swap.identity, model.name))

    def _may_load(self, target: ModelState, swap: Swap) -> bool:
        going = {name for name, model in self.models.items() if model.phase is STOPPING or model.phase is STUCK}
        if not going:
            return True
        if target.name in going or not going.isdisjoint(swap.evict):
            return False
        if not self.options.overlap:
            return True
        # What is on its way out because of others takes memory, too.
        there = [name for name in self.there() if name != target.name]
        try:
            with_them = self.plan(target.name, there)
            without = self.plan(target.name, [name for name in there if name not in going])
        except PlanRefused:
            return False
        return set(with_them.evict) <= set(without.evict)

    # ---- when something is due ----

    def next_retry(self) -> float:
        """When a stop is to be tried again; inf: never."""
        return min((model.stop.retry_at for model in self.models.values() if model.stop is not None), default=math.inf)
