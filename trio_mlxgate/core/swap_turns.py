"""Whose turn it is: the claims of models that somebody waits for, their order, and what each may do now.

All of this is computed from the state, anew after each event. docs/swap.md and :mod:`trio_mlxgate.core.swap` say the
rules in words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from trio_mlxgate.core.planning import PlanRefused
from trio_mlxgate.core.swap_effects import PLAN_REFUSED, Grant, Refuse
from trio_mlxgate.core.swap_state import ModelState, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_mlxgate.core.planning import Plan
    from trio_mlxgate.core.swap_fleet import Fleet
    from trio_mlxgate.core.swap_queue import SwapRequest

OFF, READY, STUCK = Phase.OFF, Phase.READY, Phase.STUCK

Rank: TypeAlias = "tuple[int, float, int]"


class Turns:
    """The deciding half of the scheduler. It changes models only through the fleet, and their queues."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._options = fleet.options
        self._models = fleet.models
        # Nobody closes a ready model: then claims are walked through as they come, ready or not.
        self._closing = self._options.reserve or self._options.max_bypass < math.inf
        # Which ready models nothing has to go for, as long as the same models are considered.
        self._undisturbed: dict[str, bool] = {}
        self._undisturbed_among: list[str] = []
        # What was planned in this step, in which nothing has changed yet.
        self._planned: dict[str, Plan | PlanRefused] = {}

    def settle(self, now: float) -> None:
        """Bring about all that may be brought about now."""
        self._let_go(now)
        while self._step(now):
            pass
        self._fleet.start_loads(now)

    def serve(self, model: ModelState, granted: Iterable[SwapRequest], now: float) -> bool:
        """These were let in by the queue of a model. Whether there were any."""
        count = 0
        for request in granted:
            count += 1
            self._fleet.effects.append(Grant(request))
        if count:
            model.last_grant = now
            model.turn = max(0, model.turn - count)
            if model.cutoff > -math.inf:
                model.kept_since = None
        return count > 0

    def begin_turn(self, model: ModelState, now: float) -> None:
        """A model was loaded: whoever waits for another one, first those are served that it was loaded for."""
        model.kept_since = None
        model.turn = model.waiting
        self.serve(model, model.queue.open(now), now)

    # ---- the claims ----

    def claims(self, now: float) -> list[ModelState]:
        """The models that somebody waits for and no swap brings, best rank first."""
        return sorted(
            (model for model in self._models.values() if model.waiting and model.swap is None and not model.draining),
            key=lambda model: self.rank(model, now),
        )

    def since(self, model: ModelState) -> float:
        """Since when others have kept somebody of a model's queue waiting; inf: nobody is kept."""
        if model.kept_since is None or not model.waiting:
            return math.inf
        return max(model.kept_since, model.queue.oldest_arrival())

    def overdue(self, model: ModelState, now: float) -> bool:
        """Whether somebody of a model's queue has been kept waiting for as long as anybody may be."""
        return self.since(model) + self._options.max_bypass <= now

    def rank(self, model: ModelState, now: float) -> Rank:
        """Where the claim of a model stands that somebody waits for; the least goes first."""
        head = model.queue.head()
        if self.overdue(model, now):
            # From here on by age alone: nobody who comes later gets before it, whatever the priority.
            return (0, self.since(model), head.number)
        return (1, head.priority, head.number)

    def resident(self, model: ModelState, now: float) -> bool:
        """Whether a model has been loaded so recently that it stays, and is in use."""
        return model.phase is READY and now < self.stays_until(model) and model.in_use(now, self._options.in_use_for)

    def stays_until(self, model: ModelState) -> float:
        """Until when a ready model stays if it is in use."""
        residency = self._options.min_residency
        if residency is None:
            residency = model.loads[-1] if model.loads else 0.0
        return model.ready_at + residency

    def undisturbed(self, model: ModelState) -> bool:
        """Whether a model may serve as it is: ready, neither brought nor unloaded, and nothing has to go for it."""
        if model.phase is not READY or model.swap is not None or model.draining:
            return False
        among = self._fleet.considered()
        if among != self._undisturbed_among:
            self._undisturbed = {}
            self._undisturbed_among = among
        answer = self._undisturbed.get(model.name)
        if answer is None:
            try:
                answer = not self._fleet.evictions(model, self._fleet.plan_now(model))
            except PlanRefused:
                # It is there, and what would have to go stays: there is nothing to be done about it.
                answer = True
            self._undisturbed[model.name] = answer
        return answer

    # ---- one step ----

    def _step(self, now: float) -> bool:
        """Serve, or begin swaps. Whether anything was done: then all that was computed is void."""
        self._planned.clear()
        claims = self.claims(now)
        serving = [model for model in self._models.values() if self.undisturbed(model)]
        closers = self._closers([model for model in claims if model not in serving]) if self._closing else {}
        for model in self._models.values():
            if model.phase is READY and model not in serving:
                model.cutoff = -math.inf
                model.queue.shut()
        done = False
        if self._closing:
            for model in serving:
                done |= self._serve(model, closers.get(model.name, ()), now)
        if not done:
            done = self._start(claims, now)
        if not self._closing:
            for model in self._models.values():
                if self.undisturbed(model):
                    self._serve(model, (), now)
        self._note_kept(now)
        return done

    def _serve(self, model: ModelState, closers: Iterable[ModelState], now: float) -> bool:
        """Let in whom a ready model may serve while these want it gone. Whether there was anybody."""
        worst, overdue = self._closed_by(model, closers, now)
        model.cutoff = -math.inf if overdue else worst
        if model.cutoff == math.inf:
            return self.serve(model, model.queue.open(now), now)
        allowed = model.queue.waiting_up_to(worst)
        return self.serve(model, model.queue.let_in(min(allowed, model.turn) if overdue else allowed, now), now)

    def _closers(self, wanting: list[ModelState]) -> dict[str, list[ModelState]]:
        """For each model the claims that want it gone, best rank first."""
        closers: dict[str, list[ModelState]] = {}
        for claim in wanting:
            plan = self._planned[claim.name] = self._plan(claim)
            for name in () if isinstance(plan, PlanRefused) else self._fleet.evictions(claim, plan):
                closers.setdefault(name, []).append(claim)
        return closers

    def evictions(self, claim: ModelState) -> tuple[str, ...] | None:
        """What must go for a claim; None: something would have to that is pinned."""
        plan = self._plan(claim)
        return None if isinstance(plan, PlanRefused) else self._fleet.evictions(claim, plan)

    def _plan(self, claim: ModelState) -> Plan | PlanRefused:
        try:
            return self._fleet.plan_now(claim)
        except PlanRefused as refusal:
            return refusal

    def _closed_by(self, model: ModelState, closers: Iterable[ModelState], now: float) -> tuple[float, bool]:
        """The worst priority that a ready model may serve while these want it gone, and whether its turn ends now."""
        overdue = self.overdue(model, now)
        worst = math.inf
        ends = False
        for claim in closers:
            if self.overdue(claim, now):
                ends = ends or not overdue or self.rank(claim, now) < self.rank(model, now)
            elif self._options.reserve and not overdue and not self.resident(model, now):
                worst = min(worst, claim.queue.head().priority)
        return worst, ends

    def _start(self, claims: list[ModelState], now: float) -> bool:
        """Begin the first swap that may begin. Without reservations: all that may."""
        held: set[str] = set()
        worlds: list[tuple[str, list[str]]] = []
        done = False
        for claim in claims:
            if self.undisturbed(claim):
                done |= not self._closing and self._serve(claim, (), now)
                continue
            plan = self._planned.get(claim.name) or self._plan(claim)
            if isinstance(plan, PlanRefused):
                self._refuse(claim, str(plan))
                return True
            evict = self._fleet.evictions(claim, plan)
            if self._may_start(claim, evict, now) and self._disturbs_nobody(claim, evict, held, worlds):
                self._fleet.begin(claim, plan, evict, now)
                done = True
                if self._closing:
                    return True
            elif self._options.reserve:
                held.update(evict)
                kept = [name for name in self._fleet.committed() if name not in evict and name != claim.name]
                worlds.append((claim.name, sorted([*kept, claim.name])))
        return done

    def _may_start(self, claim: ModelState, evict: tuple[str, ...], now: float) -> bool:
        """Whether what must go for a claim may go now."""
        overdue = self.overdue(claim, now)
        for name in evict:
            model = self._models[name]
            # A process that didn't stop serves nobody, whoever still holds on to it.
            in_flight = model.queue.in_flight and model.phase is not STUCK
            coming = model.swap is not None and (model.waiting or not self._options.abort_unwanted)
            if in_flight or coming or (not overdue and self.resident(model, now)):
                return False
        return self._options.overlap or self._meets_no_swap(claim, evict)

    def _meets_no_swap(self, claim: ModelState, evict: tuple[str, ...]) -> bool:
        """Whether a swap for this claim would stop nothing that others bring or stop, and they wouldn't stop it."""
        for model in self._models.values():
            swap = model.swap
            if swap is not None and (
                model.name in evict or claim.name in swap.evict or not set(evict).isdisjoint(swap.evict)
            ):
                return False
        return True

    def _disturbs_nobody(
        self, claim: ModelState, evict: tuple[str, ...], held: set[str], worlds: list[tuple[str, list[str]]]
    ) -> bool:
        """Whether a swap leaves alone what claims before it wait for: what goes for them, and their place."""
        if not held.isdisjoint(evict):
            return False
        for waiting, world in worlds:
            try:
                plan: Plan = self._fleet.plan(claim.name, world, {waiting})
            except PlanRefused:
                return False
            if waiting in plan.evict or not self._leaves_alone(waiting, world, claim.name):
                return False
        return True

    def _leaves_alone(self, waiting: str, world: list[str], other: str) -> bool:
        """Whether a model that is to come wouldn't put out another one that came before it.

        Planners need not see it the same way from both sides: a group may put out one that doesn't put out it.
        """
        running = sorted({*world, other} - {waiting})
        try:
            return other not in self._fleet.plan(waiting, running, {other}).evict
        except PlanRefused:
            return False

    def _refuse(self, claim: ModelState, detail: str) -> None:
        for request in claim.queue.refuse_waiting(PLAN_REFUSED):
            self._fleet.effects.append(Refuse(request, PLAN_REFUSED, detail))

    # ---- what time brings ----

    def _note_kept(self, now: float) -> None:
        for model in self._models.values():
            if not model.waiting:
                model.kept_since = None
            elif model.kept_since is None and self._keeps_somebody(model):
                model.kept_since = now

    def _keeps_somebody(self, model: ModelState) -> bool:
        """Whether it isn't only the limit of a model that keeps its waiters."""
        return model.cutoff < math.inf and model.queue.waiting_up_to(model.cutoff) < model.waiting

    def _let_go(self, now: float) -> None:
        """Models that are unloaded stop when they have drained, and those that nobody used for their ttl."""
        self._fleet.retry_stops(now)
        for model in self._models.values():
            if model.phase is not READY or model.queue.in_flight or model.swap is not None:
                continue
            if model.draining:
                self._fleet.stop(model, "unloaded", now)
            elif model.ready_at == -math.inf:
                # It was there from the start: its life begins with the first event.
                model.ready_at = now
            elif not model.waiting and self._end_of_life(model) <= now:
                self._fleet.stop(model, "ttl", now)

    def _end_of_life(self, model: ModelState) -> float:
        return model.idle_since + (model.options.ttl or math.inf)

    def next_alarm(self, now: float) -> float:
        """When something is to be decided though nothing happens; inf: never."""
        alarm = self._fleet.next_retry()
        anybody = False
        for model in self._models.values():
            alarm = min(alarm, model.queue.next_alarm())
            if model.waiting:
                anybody = True
                due = self.since(model) + self._options.max_bypass
                if due > now:
                    alarm = min(alarm, due)
            elif model.phase is READY and not model.queue.in_flight and model.swap is None:
                alarm = min(alarm, self._end_of_life(model))
        if anybody:
            for model in self._models.values():
                if self.resident(model, now):
                    alarm = min(alarm, self.stays_until(model))
                    if not model.queue.in_flight and not model.waiting:
                        alarm = min(alarm, model.last_end + self._options.in_use_for)
        return alarm
