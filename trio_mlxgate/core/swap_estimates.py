"""Where who waits for a model stands, and how long it will wait: from measured loads, stops and requests."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from trio_mlxgate.core.swap_effects import Evicting, Loading, Queued
from trio_mlxgate.core.swap_state import Phase, mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from trio_mlxgate.core.swap_fleet import Fleet
    from trio_mlxgate.core.swap_queue import SwapRequest
    from trio_mlxgate.core.swap_state import ModelState
    from trio_mlxgate.core.swap_turns import Rank, Turns


class Estimator:
    """Answers from the settled state. An answer is None when a time is needed that was never measured.

    It takes the turns one after the other: where two models load side by side, it says too much. It takes what is in
    flight to be all that a ready model will serve before it goes: where newcomers are still let in, it says too little.
    """

    def __init__(self, fleet: Fleet, turns: Turns) -> None:
        self._models = fleet.models
        self._fleet = fleet
        self._turns = turns

    def in_order(self, now: float) -> list[SwapRequest]:
        """All who stand in a queue, in the order in which they are to be served."""
        keyed: list[tuple[Rank, int, SwapRequest]] = []
        for model in self._models.values():
            if model.waiting and model.swap is None:
                overdue = self._turns.rank(model, now) if self._turns.overdue(model, now) else None
                keyed += [
                    (overdue or (1, request.priority, request.number), place, request)
                    for place, request in enumerate(model.queue.waiters())
                ]
        return [request for _, _, request in sorted(keyed, key=lambda entry: entry[:2])]

    def changes(self, watched: Collection[SwapRequest], now: float) -> Iterator[Queued | Evicting | Loading]:
        """What is news to the watched waiters: their position, or what is done to bring their model."""
        if not watched:
            return
        for request in watched:
            swap = self._models[request.model].swap
            told_of = None if swap is None else (swap.identity, swap.loading_since is not None)
            if swap is not None:
                request.position = 0
                if request.told_of != told_of:
                    wait = self.wait(request, now)
                    if swap.loading_since is not None:
                        yield Loading(request, wait)
                    else:
                        there = tuple(name for name in swap.evict if self._models[name].phase is not Phase.OFF)
                        yield Evicting(request, there, wait)
            request.told_of = told_of
        for position, request in enumerate(self.in_order(now), 1):
            if request.watched and request.position != position:
                request.position = position
                yield Queued(request, position, self.wait(request, now))

    def wait(self, request: SwapRequest, now: float) -> float | None:
        """In how many seconds a waiter is expected to be served."""
        model = self._models[request.model]
        return _total([self._until_open(model, now), model.queue.wait_inside(request, now)])

    def retry_after(self, model: ModelState, priority: int, now: float) -> float | None:
        """In how many seconds one would be served who came now, at the end of the queue."""
        return _total([self._until_open(model, now), model.queue.wait_at_end(priority, now)]) or None

    # ---- the parts ----

    def _until_open(self, model: ModelState, now: float) -> float | None:
        """In how many seconds a model begins to serve who waits for it."""
        if model.swap is not None:
            return self._until_ready(model, now)
        if not model.waiting and model.phase is Phase.READY:
            return 0.0
        if self._turns.undisturbed(model) and model.kept_since is None:
            return 0.0
        claims = [claim for claim in self._turns.claims(now) if not self._turns.undisturbed(claim) or claim is model]
        ahead = claims[: claims.index(model)] if model in claims else claims
        first = next(iter(ahead), model)
        parts = [self._until_gone(first, now)]
        for claim in ahead:
            parts += [self._change(claim), self._hold(claim)]
        return _total([*parts, self._change(model)])

    def _until_ready(self, model: ModelState, now: float) -> float | None:
        """In how many seconds the swap that is under way for a model is over."""
        swap = model.swap
        assert swap is not None, "only of a model that is brought"
        load = self._mean_load(model)
        if swap.loading_since is not None:
            return None if load is None else max(0.0, load - (now - swap.loading_since))
        left: list[float | None] = [load]
        for name in swap.evict:
            other = self._models[name]
            if other.stop is not None:
                stop = self._mean_stop(other)
                left.append(None if stop is None else max(0.0, stop - (now - other.stop.began)))
        # They stop side by side.
        return None if None in left else (load or 0.0) + max((part or 0.0 for part in left[1:]), default=0.0)

    def _until_gone(self, claim: ModelState, now: float) -> float | None:
        """In how many seconds all that is in the way of a claim has ended."""
        parts: list[float | None] = [0.0]
        for name in self._evictions(claim):
            model = self._models[name]
            if model.swap is not None and model.waiting:
                parts.append(_total([self._until_ready(model, now), self._hold(model)]))
            else:
                parts.append(model.queue.remaining(now))
        return None if None in parts else max(part for part in parts if part is not None)

    def _change(self, claim: ModelState) -> float | None:
        """How long it takes to stop what must go for a claim, and to load it."""
        stops: list[float | None] = [0.0, *(self._mean_stop(self._models[name]) for name in self._evictions(claim))]
        if None in stops:
            return None
        return _total([max(stop for stop in stops if stop is not None), self._mean_load(claim)])

    def _evictions(self, claim: ModelState) -> tuple[str, ...]:
        return self._turns.evictions(claim) or ()

    def _hold(self, model: ModelState) -> float | None:
        """How long the requests take that a model serves first."""
        return model.queue.service(model.queue.head().priority, 1) if model.waiting else 0.0

    def _mean_load(self, model: ModelState) -> float | None:
        return mean(model.loads or list(chain.from_iterable(other.loads for other in self._models.values())))

    def _mean_stop(self, model: ModelState) -> float | None:
        return mean(model.stops or list(chain.from_iterable(other.stops for other in self._models.values())))


def _total(parts: Iterable[float | None]) -> float | None:
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total
