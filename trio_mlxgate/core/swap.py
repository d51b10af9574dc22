"""Models that take turns: which one is served, which one must come, and which must go for it.

Events in, frozen effects out; nothing here waits, and nothing here knows a process or a task. Each event's method takes
the time, changes the state, and returns what is to be done. After each event one settling function runs. It computes
from the state and never from what changed.

What is decided:

- a request for a model that is ready and open is served at once, within the model's limit;
- one for a model that isn't there waits, and is the model's *claim*. Claims stand in an order: first those that have
  been kept waiting for ``max_bypass`` seconds, the longest kept first, then by priority and arrival;
- in that order a claim starts a swap if what must go for it may go: models with requests in flight may not, nor those
  that come for somebody who waits. A claim *closes* the ready models that must go for it, to requests of a worse
  priority, or to all once it was kept for ``max_bypass``; and claims after it don't take what it waits for;
- a model that was loaded stays as long as its load took, if it is in use, and closes for no priority until then. For a
  claim that was kept for ``max_bypass`` it goes once it has served all who waited when it was loaded: its *turn*.

So a claim is kept for ``max_bypass``, then for the turns of the claims that were kept longer, each of them a load, the
requests that waited for it, and a stop, and then for its own stop and load. docs/swap.md says it for users.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

from trio_mlxgate.core.swap_effects import (
    EXITED,
    LOAD_FAILED,
    MODEL_UNLOADED,
    UNKNOWN_MODEL,
    ModelStopped,
    Refuse,
    Ring,
)
from trio_mlxgate.core.swap_estimates import Estimator
from trio_mlxgate.core.swap_fleet import Fleet
from trio_mlxgate.core.swap_options import SwapOptions
from trio_mlxgate.core.swap_state import ModelStatistics, Phase, SwapStatistics, mean
from trio_mlxgate.core.swap_turns import Turns
from trio_mlxgate.core.ticket import (
    CLOSED,
    GRANTED,
    QUEUE_FULL,
    SUPERSEDED,
    WAIT_TOO_LONG,
    WAITING,
    WOULD_BLOCK,
    TicketState,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trio_mlxgate.core.planning import Planner
    from trio_mlxgate.core.swap_effects import Effect
    from trio_mlxgate.core.swap_options import ModelOptions
    from trio_mlxgate.core.swap_queue import SwapRequest
    from trio_mlxgate.core.swap_state import ModelState


class SwapScheduler:
    """Models that take turns. Each event's method returns what is to be done, in the order in which it was decided.

    Times are seconds of one clock that doesn't go back. A report of something that was given up, or is over, changes
    nothing: its identity is no longer there.

    Args:
      planner: decides which models may be there together.
      models: the options of each model.
      options: how they take turns.
      ready: models whose processes are up already.

    Raises:
      UnknownModel: the planner doesn't know one of the models.
      KeyError: one of ``ready`` is no model of these.
    """

    def __init__(
        self,
        planner: Planner,
        models: Mapping[str, ModelOptions],
        options: SwapOptions | None = None,
        *,
        ready: Iterable[str] = (),
    ) -> None:
        self.options = SwapOptions() if options is None else options
        self._fleet = Fleet(planner, models, self.options, ready)
        self._turns = Turns(self._fleet)
        self._estimator = Estimator(self._fleet, self._turns)
        self._models = self._fleet.models
        self._numbers = 0
        self._unknown = 0
        # The watched requests that wait; who waits no longer is taken out after the event.
        self._watched: dict[SwapRequest, None] = {}
        self._alarm = math.inf
        self._ended = False
        # Those that were there from the start are open from the start.
        self._turns.settle(-math.inf)

    # ---- what can happen: requests ----

    def on_request(self, request: SwapRequest, now: float, *, nowait: bool = False) -> list[Effect]:
        """A request arrives. It is granted, or refused, or waits until one of that comes with a later event.

        ``nowait``: it doesn't wait; if it would have to, it is refused, and nothing else happens.
        """
        self._catch_up(now)
        self._numbers = request.number = self._numbers + 1
        model = self._models.get(request.model)
        if model is None or model.removed:
            self._unknown += 1
            request.arrived_at = now
            request.state = TicketState.REJECTED
            request.refusal = UNKNOWN_MODEL
            self._fleet.effects.append(Refuse(request, UNKNOWN_MODEL))
            return self._done(now)
        if not request.own_priority and model.options.priority is not None:
            request.priority = model.options.priority
        queue = model.queue
        at_once = queue.in_flight < queue.limit and request.priority <= model.cutoff and not self._ended
        if not at_once and not self._ended:
            reason, detail, retry_after = self._refusal(model, request, nowait, now)
            if reason:
                queue.turn_down(request, reason, now)
                self._fleet.effects.append(Refuse(request, reason, detail, retry_after))
                return self._done(now)
        older = queue.serve_at_once(request, now) if at_once else queue.request(request, now)
        if older is not None:
            self._fleet.effects.append(Refuse(older, SUPERSEDED))
        if request.state is GRANTED:
            self._turns.serve(model, [request], now)
        elif request.state is WAITING:
            if request.watched:
                self._watched[request] = None
        else:
            self._fleet.effects.append(Refuse(request, request.refusal))
        return self._settle(now)

    def on_cancel(self, request: SwapRequest, now: float) -> list[Effect]:
        """Nobody waits for this request any more. If it was granted meanwhile, it ends."""
        if request.state is GRANTED:
            return self.on_serve_done(request, now)
        if request.state is not WAITING:
            self._catch_up(now)
            return self._done(now)
        # Before what is due is decided: that may neither refuse nor grant what is nobody's any more.
        model = self._models[request.model]
        self._turns.serve(model, model.queue.cancel(request, now), now)
        self._catch_up(now)
        return self._settle(now)

    def on_serve_done(self, request: SwapRequest, now: float) -> list[Effect]:
        """A request that was granted has ended.

        Raises:
          RuntimeError: it is not in flight: it was never granted, or has ended before.
        """
        if request.state is not GRANTED:
            raise RuntimeError(f"this request is not in flight: {request!r}")
        self._catch_up(now)
        model = self._models[request.model]
        model.last_end = now
        self._turns.serve(model, model.queue.release(request, now), now)
        return self._settle(now)

    # ---- what can happen: processes ----

    def on_swap_done(
        self, identity: int, now: float, error: str = "", *, retry_at: float = -math.inf, is_left: bool = False
    ) -> list[Effect]:
        """A load has come to its end: the model is ready, or ``error`` says why it isn't, and its process is gone.

        ``retry_at``: after such an error, until when another load would be of no use; till then requests are refused.
        ``is_left``: after such an error: its process is not gone, and did not go when it was ended.
        """
        self._catch_up(now)
        model = self._fleet.loaded(identity, now)
        if model is None:
            return self._done(now)
        swap = model.swap
        assert swap is not None, "a load that is going on belongs to a swap"
        assert swap.loading_since is not None, "a load that is going on has begun"
        fresh = model.phase is Phase.LOADING
        self._fleet.end_swap(model)
        if error:
            model.phase = Phase.STUCK if is_left else Phase.OFF
            self._failed(model, error, retry_at)
        else:
            model.phase = Phase.READY
            model.barred_until = -math.inf
            if fresh:
                model.ready_at = now
                model.loaded_by = identity
                model.loads.append(now - swap.loading_since)
            self._turns.begin_turn(model, now)
        return self._settle(now)

    def on_stopped(self, identity: int, now: float, error: str = "") -> list[Effect]:
        """A process that was told to stop has exited, or ``error`` says why it is still there."""
        self._catch_up(now)
        self._fleet.stopped(identity, now, error)
        return self._settle(now)

    def on_exit(
        self, name: str, identity: int, now: float, error: str = "", *, retry_at: float = -math.inf
    ) -> list[Effect]:
        """The process of a ready model has ended by itself. Its requests are to end, too, one by one, with errors.

        It serves nobody from now on, and its place is free once ``on_stopped`` has told that nothing is left of it: a
        :class:`~trio_mlxgate.core.swap_effects.StopModel` asks for that. It is loaded again when somebody wants it.

        ``identity`` is that of the swap that loaded it, 0 for one that was there from the start. ``error`` says why it
        ended, and until ``retry_at`` it can't be loaded anew: who waits for it is told, and who comes is refused.
        """
        model = self._models[name]
        # Before what is due is decided: that must not serve anybody with what has ended.
        if model.phase is Phase.READY and model.loaded_by == identity:
            swap = model.swap
            if swap is not None and swap.loading_since is not None:
                # A swap has asked for it to be there, and goes on: it is started anew, or its failure is told.
                model.phase = Phase.LOADING
                model.cutoff = -math.inf
                model.queue.shut()
            else:
                self._fleet.stop(model, EXITED, now)
                if now < retry_at:
                    if swap is not None:
                        self._fleet.give_up(model, EXITED, now)
                    self._failed(model, error, retry_at)
        self._catch_up(now)
        return self._settle(now)

    # ---- what can happen: orders ----

    def on_unload(self, models: Iterable[str], now: float, *, at_once: bool = False) -> list[Effect]:
        """Somebody wants these models gone. Who waits for one of them is refused; who comes later may bring it back.

        A model with requests in flight stops when they have ended, or now if ``at_once``. For each model there comes a
        :class:`~trio_mlxgate.core.swap_effects.ModelStopped` when its process has exited, or if there is none.

        Raises:
          KeyError: there is no such model; nothing has changed.
        """
        chosen = [self._models[name] for name in models]
        self._catch_up(now)
        for model in chosen:
            model.barred_until = -math.inf
            self._unload(model, MODEL_UNLOADED, now, at_once=at_once)
        return self._settle(now)

    def on_removed(self, name: str, now: float) -> list[Effect]:
        """A model is configured no more: it is unloaded, and refused from then on.

        Raises:
          KeyError: there is no such model; nothing has changed.
        """
        model = self._models[name]
        self._catch_up(now)
        model.removed = True
        self._unload(model, UNKNOWN_MODEL, now, at_once=False)
        return self._settle(now)

    def on_shutdown(self, now: float) -> list[Effect]:
        """All is over: who waits is refused, as are all who come later, and every process stops."""
        self._catch_up(now)
        self._ended = True
        for model in self._models.values():
            self._refused(model.queue.refuse_all(CLOSED), CLOSED, "")
            self._stop(model, CLOSED, now)
        return self._settle(now)

    def on_tick(self, now: float) -> list[Effect]:
        """It is ``now``. To be called when a :class:`~trio_mlxgate.core.swap_effects.Ring` says so."""
        self._pass_time(now)
        return self._settle(now)

    # ---- questions ----

    def positions(self, now: float) -> dict[SwapRequest, int]:
        """The position of all who stand in a queue, from 1 in the order in which they are to be served."""
        return {request: position for position, request in enumerate(self._estimator.in_order(now), 1)}

    def estimated_wait(self, request: SwapRequest, now: float) -> float | None:
        """In how many seconds a waiter is expected to be served; None: not measured, or it doesn't wait."""
        return self._estimator.wait(request, now) if request.state is WAITING else None

    def next_alarm(self) -> float:
        """When :meth:`on_tick` is to be called, as the last ``Ring`` said; inf: never."""
        return self._alarm

    def statistics(self, now: float) -> SwapStatistics:
        """A snapshot."""
        models = {name: self._model_statistics(model, now) for name, model in self._models.items()}
        return SwapStatistics(
            models=MappingProxyType(models),
            waiting=sum(model.waiting for model in models.values()),
            in_flight=sum(model.in_flight for model in models.values()),
            unknown=self._unknown,
            loads=self._fleet.loads_begun,
            stops=self._fleet.stops_begun,
            evictions=self._fleet.evicted,
        )

    def _model_statistics(self, model: ModelState, now: float) -> ModelStatistics:
        gate = model.queue.statistics(now)
        return ModelStatistics(
            phase=model.phase,
            swap=None if model.swap is None else model.swap.identity,
            in_flight=gate.in_flight,
            waiting=gate.tasks_waiting,
            draining=model.draining,
            admitted=gate.admitted,
            cancelled=gate.cancelled,
            rejected_by_reason=gate.rejected_by_reason,
            mean_load=mean(model.loads),
            mean_stop=mean(model.stops),
        )

    # ---- how it is done ----

    def _refusal(
        self, model: ModelState, request: SwapRequest, nowait: bool, now: float
    ) -> tuple[str, str, float | None]:
        """Why one that would have to wait may not: reason, detail, retry_after; "": it may."""
        if nowait:
            return WOULD_BLOCK, "", None
        if now < model.barred_until and model.swap is None and model.phase is not Phase.READY:
            return LOAD_FAILED, model.barred_why, model.barred_until - now
        if model.queue.full_for(request):
            return QUEUE_FULL, "", self._estimator.retry_after(model, request.priority, now)
        return "", "", None

    def _failed(self, model: ModelState, error: str, retry_at: float) -> None:
        model.barred_until = retry_at
        model.barred_why = error
        self._refuse(model, LOAD_FAILED, error)

    def _unload(self, model: ModelState, reason: str, now: float, *, at_once: bool) -> None:
        self._refuse(model, reason, "")
        if model.phase is Phase.READY and model.queue.in_flight and not at_once:
            if model.swap is not None:
                # It is there already, and waits for others to go: that is over, and what it serves still ends.
                self._fleet.give_up(model, "unloaded", now)
            model.draining = True
            return
        self._stop(model, "unloaded", now)
        if model.phase is Phase.OFF:
            self._fleet.effects.append(ModelStopped(model.name))

    def _stop(self, model: ModelState, reason: str, now: float) -> None:
        if model.swap is not None:
            self._fleet.give_up(model, reason, now)
        if model.phase is Phase.READY or model.phase is Phase.STUCK:
            self._fleet.stop(model, reason, now)
        elif model.stop is not None:
            model.stop.reason = reason

    def _refuse(self, model: ModelState, reason: str, detail: str) -> None:
        self._refused(model.queue.refuse_waiting(reason), reason, detail)

    def _refused(self, requests: Iterable[SwapRequest], reason: str, detail: str) -> None:
        self._fleet.effects += [Refuse(request, reason, detail) for request in requests]

    def _catch_up(self, now: float) -> None:
        """What was due before this event is decided before it."""
        if now >= self._alarm:
            self._pass_time(now)
            self._turns.settle(now)

    def _pass_time(self, now: float) -> None:
        for model in self._models.values():
            if model.queue.next_alarm() <= now:
                passed = model.queue.pass_time(now)
                self._refused(passed.expired, WAIT_TOO_LONG, "")
                self._turns.serve(model, passed.granted, now)

    def _settle(self, now: float) -> list[Effect]:
        self._turns.settle(now)
        return self._done(now)

    def _done(self, now: float) -> list[Effect]:
        if self._watched:
            self._watched = {request: None for request in self._watched if request.state is WAITING}
            self._fleet.effects += self._estimator.changes(self._watched, now)
        alarm = self._turns.next_alarm(now)
        if alarm != self._alarm:
            self._alarm = alarm
            self._fleet.effects.append(Ring(alarm))
        return self._fleet.take_effects()
