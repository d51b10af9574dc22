"""What the swap scheduler decides about, played without processes: it does what it is told, and checks each step."""

from __future__ import annotations

import heapq
import math
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import attrs

from trio_mlxgate.core.matrix import Matrix
from trio_mlxgate.core.swap import SwapScheduler
from trio_mlxgate.core.swap_effects import (
    AbortLoad,
    DropSwap,
    Effect,
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
from trio_mlxgate.core.swap_options import ModelOptions
from trio_mlxgate.core.swap_queue import SwapRequest
from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.priority import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from trio_mlxgate.core.planning import Planner
    from trio_mlxgate.core.swap_options import SwapOptions


class Places:
    """Which models may be together, by plain sets: each of them, its parts, and any model alone."""

    def __init__(self, *sets: str) -> None:
        self.sets = [frozenset(one) for one in sets]
        self.models = sorted({model for one in self.sets for model in one})

    def permit(self, together: Collection[str]) -> bool:
        return len(together) < 2 or any(one.issuperset(together) for one in self.sets)

    def planner(self, **options: object) -> Planner:
        expressions = {f"s{number}": " & ".join(sorted(one)) for number, one in enumerate(self.sets)}
        return Matrix(expressions, models=self.models, **options)  # type: ignore[arg-type]


@attrs.define(eq=False)
class Process:
    """One process of a model, from the load until it has exited."""

    model: str
    load: int
    ready: bool = False
    stop: int | None = None


class World:
    """Plays the driver of a scheduler. Time stands where it is put; nothing ends unless it is told to.

    Each effect is checked when it comes: whether it may be, by what was told before and by nothing else.
    """

    def __init__(
        self,
        places: Places,
        models: Mapping[str, ModelOptions],
        options: SwapOptions | None = None,
        *,
        ready: Iterable[str] = (),
        planner: Planner | None = None,
    ) -> None:
        self.places = places
        self.options = models
        self.now = 0.0
        self.scheduler = SwapScheduler(planner or places.planner(), models, options, ready=ready)
        self.processes = {model: Process(model, 0, ready=True) for model in ready}
        self.swaps: dict[str, int] = {}
        # Models that are to come, from the decision on.
        self.coming: set[str] = set()
        self.in_flight: dict[str, list[SwapRequest]] = {model: [] for model in models}
        self.requests: list[SwapRequest] = []
        self.fates: dict[SwapRequest, str] = {}
        self.granted_at: dict[SwapRequest, float] = {}
        self.stops_told: list[str] = []
        self.alarm = math.inf
        self.log: list[Effect] = []
        # Models that may be stopped though they are busy.
        self.may_cut: set[str] = set()
        self.used_identities = {0}

    # ---- events ----

    def request(
        self, model: str, priority: int | None = None, *, nowait: bool = False, **options: object
    ) -> SwapRequest:
        request = SwapRequest(model, priority, **options)  # type: ignore[arg-type]
        self.requests.append(request)
        self.play(self.scheduler.on_request(request, self.now, nowait=nowait))
        return request

    def cancel(self, request: SwapRequest) -> None:
        if request.state is TicketState.WAITING:
            self.fates[request] = "cancelled"
        elif request.state is TicketState.GRANTED:
            self.in_flight[request.model].remove(request)
        self.play(self.scheduler.on_cancel(request, self.now))

    def end(self, request: SwapRequest) -> None:
        self.in_flight[request.model].remove(request)
        self.play(self.scheduler.on_serve_done(request, self.now))

    def loaded(self, model: str, error: str = "", *, retry_at: float = -math.inf, is_left: bool = False) -> None:
        """The load that is going on ends."""
        process = self.processes[model]
        identity = self.swaps.pop(model)
        self.coming.discard(model)
        if error and is_left:
            process.ready = False
        elif error:
            del self.processes[model]
        else:
            process.ready = True
            process.load = identity
        self.play(self.scheduler.on_swap_done(identity, self.now, error, retry_at=retry_at, is_left=is_left))

    def stopped(self, model: str, error: str = "") -> None:
        """The stop that is going on ends."""
        process = self.processes[model]
        identity = process.stop
        assert identity is not None
        process.stop = None
        if error:
            process.ready = False
        else:
            del self.processes[model]
        self.play(self.scheduler.on_stopped(identity, self.now, error))

    def exit(self, model: str, error: str = "", *, retry_at: float = -math.inf) -> None:
        process = self.processes[model]
        process.ready = False
        self.play(self.scheduler.on_exit(model, process.load, self.now, error, retry_at=retry_at))

    def unload(self, *models: str, at_once: bool = False) -> None:
        self.may_cut = set(models) if at_once else set()
        self.play(self.scheduler.on_unload(models, self.now, at_once=at_once))
        self.may_cut = set()

    def shut_down(self) -> None:
        self.may_cut = set(self.options)
        self.play(self.scheduler.on_shutdown(self.now))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.play(self.scheduler.on_tick(self.now))

    # ---- what comes of them ----

    def play(self, effects: list[Effect]) -> None:
        self.log += effects
        for effect in effects:
            self.check(effect)

    def check(self, effect: Effect) -> None:
        match effect:
            case Grant(request):
                self.settle_fate(request, "granted")
                process = self.processes[request.model]
                assert process.ready, f"granted before its model is ready: {request}"
                assert process.stop is None, f"granted though its model stops: {request}"
                self.in_flight[request.model].append(request)
                self.granted_at[request] = self.now
                assert len(self.in_flight[request.model]) <= self.options[request.model].slots
            case Refuse(request, reason):
                self.settle_fate(request, reason)
            case StartSwap(identity, model, evict):
                self.new_identity(identity)
                assert model not in evict or not self.processes[model].ready
                self.check_reserved(model)
                self.coming.add(model)
            case LoadModel(identity, model):
                self.swaps[model] = identity
                process = self.processes.setdefault(model, Process(model, identity))
                assert process.stop is None, f"{model} is loaded while it stops"
                assert self.places.permit(list(self.processes)), f"{sorted(self.processes)} may not be together"
            case StopModel(identity, model):
                self.new_identity(identity)
                process = self.processes[model]
                assert process.stop is None, f"{model} is told to stop while it stops"
                if isinstance(effect, AbortLoad):
                    assert self.swaps.pop(model) == effect.load
                    self.coming.discard(model)
                    wanted = [request for request in self.waiting if request.model == model]
                    assert not wanted, f"the load of {model} is given up, and these wait for it: {wanted}"
                if self.in_flight[model]:
                    assert model in self.may_cut or effect.attempt > 1 or not process.ready, f"{model} is busy"
                process.stop = identity
            case ModelStopped(model):
                self.stops_told.append(model)
            case Queued(request, position):
                assert request.watched
                assert position >= 1
            case Evicting(request, models):
                assert request.watched
                assert request.model not in self.swaps, "its load has begun"
                assert set(models) <= set(self.processes), "who goes for it is there"
            case Loading(request):
                assert request.watched
                assert request.model in self.swaps
            case Ring(at):
                self.alarm = at
            case DropSwap(identity, model):
                assert identity in self.used_identities
                self.coming.discard(model)

    def check_reserved(self, model: str) -> None:
        """A swap begins for this model: nobody of a better priority is to wait for a place that it takes."""
        options = self.scheduler.options
        waiting = self.waiting
        if not options.reserve or any(one.arrived_at + options.max_bypass <= self.now for one in waiting):
            return  # there is no such rule, or who was kept for long may go first
        best: dict[str, int] = {}
        for request in waiting:
            best[request.model] = min(best.get(request.model, request.priority), request.priority)
        for other, priority in best.items():
            process = self.processes.get(other)
            served = process is not None and process.ready and process.stop is None
            if priority < best[model] and other not in self.coming and not served:
                assert self.places.permit([model, other]), f"{model} takes the place that {other} waits for"

    def new_identity(self, identity: int) -> None:
        assert identity not in self.used_identities, "an identity comes twice"
        self.used_identities.add(identity)

    def settle_fate(self, request: SwapRequest, fate: str) -> None:
        assert request not in self.fates, f"{request} has two fates: {self.fates[request]}, {fate}"
        self.fates[request] = fate

    # ---- what is going on ----

    @property
    def loading(self) -> list[str]:
        return sorted(self.swaps)

    @property
    def stopping(self) -> list[str]:
        return sorted(model for model, process in self.processes.items() if process.stop is not None)

    @property
    def waiting(self) -> list[SwapRequest]:
        return [request for request in self.requests if request not in self.fates]

    def finish(self) -> None:
        """Let all that is going on end, and all that comes of it."""
        for _ in range(10_000):
            if self.loading:
                self.loaded(self.loading[0])
            elif self.stopping:
                self.stopped(self.stopping[0])
            elif busy := [requests[0] for requests in self.in_flight.values() if requests]:
                self.end(busy[0])
            elif self.waiting or (self.alarm < math.inf and self.has_failed_stops()):
                assert self.alarm < math.inf, f"nothing is going on, and these wait: {self.waiting}"
                self.now = max(self.now, self.alarm)
                self.tick()
            else:
                return
        raise AssertionError("it doesn't come to an end")

    def has_failed_stops(self) -> bool:
        """Whether a process is there that did not stop when it was told to."""
        return any(
            not process.ready and process.stop is None and model not in self.swaps
            for model, process in self.processes.items()
        )


class Timed:
    """A world on a clock of its own: loads, stops and requests take the times that they are told to take."""

    def __init__(self, world: World, times: Callable[[str], float]) -> None:
        self.world = world
        self.times = times
        self.order = count()
        self.happenings: list[tuple[float, int, Callable[[], None]]] = []
        self.known_loads: dict[str, int] = {}
        self.known_stops: dict[str, int] = {}
        self.known: set[SwapRequest] = set()
        self.holds: dict[SwapRequest, float] = {}

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.happenings, (when, next(self.order), what))

    def arrive(self, model: str, priority: int, hold: float) -> None:
        self.holds[self.world.request(model, priority)] = hold

    def look(self) -> None:
        """Put what has begun by now on the clock."""
        world = self.world
        for model, identity in world.swaps.items():
            if self.known_loads.get(model) != identity:
                self.known_loads[model] = identity
                self.at(
                    world.now + self.times("load"),
                    partial(self.load_ends, model, identity),
                )
        for model in world.stopping:
            stop = world.processes[model].stop
            if stop is not None and self.known_stops.get(model) != stop:
                self.known_stops[model] = stop
                self.at(world.now + self.times("stop"), partial(world.stopped, model))
        for requests in world.in_flight.values():
            for request in requests:
                if request not in self.known:
                    self.known.add(request)
                    self.at(world.now + self.holds[request], partial(world.end, request))

    def load_ends(self, model: str, identity: int) -> None:
        if self.world.swaps.get(model) == identity:
            self.world.loaded(model)

    def run(self) -> None:
        world = self.world
        while self.happenings or world.waiting:
            when = self.happenings[0][0] if self.happenings else math.inf
            if world.alarm <= when:
                assert world.alarm < math.inf, f"nothing will happen any more, and these wait: {world.waiting}"
                world.now = max(world.now, world.alarm)
                world.tick()
            else:
                world.now = when
                heapq.heappop(self.happenings)[2]()
            self.look()


# ---- scenarios ----

ONE_PLACE = Places("a", "b", "c", "d")
TWO_PLACES = Places("ab", "ac", "ad", "bc", "bd", "cd")
FOREGROUND, BACKGROUND = Priority.FOREGROUND, Priority.BACKGROUND


def world_of(
    places: Places = ONE_PLACE,
    options: SwapOptions | None = None,
    *,
    ready: Iterable[str] = (),
    **models: ModelOptions,
) -> World:
    return World(places, {name: models.get(name, ModelOptions()) for name in places.models}, options, ready=ready)


def fates(*requests: SwapRequest) -> list[str]:
    return [request.state.value for request in requests]


def is_waiting(request: SwapRequest) -> bool:
    return request.state is TicketState.WAITING


def is_granted(request: SwapRequest) -> bool:
    return request.state is TicketState.GRANTED


def is_refused(request: SwapRequest) -> bool:
    return request.state is TicketState.REJECTED


def kinds(world: World) -> list[str]:
    """What was told since this was last asked, without the alarms."""
    told = [effect for effect in world.log if not isinstance(effect, Ring | Queued | Evicting | Loading)]
    world.log.clear()
    words = []
    for effect in told:
        if isinstance(effect, Grant | Refuse):
            words.append(f"{type(effect).__name__} {effect.request.model}")
        else:
            words.append(f"{type(effect).__name__} {effect.model}")
    return words
