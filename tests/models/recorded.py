"""Plays what was recorded of llama-swap's scheduler to ours: in its way, in parity mode, and in our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.models.vectors import OWN, load, vectors
from trio_mlxgate.core.groups import Group, Groups
from trio_mlxgate.core.matrix import Matrix
from trio_mlxgate.core.planning import Plan, Planner
from trio_mlxgate.core.swap import SwapScheduler
from trio_mlxgate.core.swap_effects import Grant, LoadModel, Refuse, StartSwap, StopModel
from trio_mlxgate.core.swap_options import ModelOptions, SwapOptions
from trio_mlxgate.core.swap_queue import SwapRequest
from trio_mlxgate.core.ticket import TicketState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tests.models.vectors import Vector
    from trio_mlxgate.core.matrix import Ties
    from trio_mlxgate.core.swap_effects import Effect


class Fixed:
    """The planner of the recordings that says the same whatever runs."""

    def __init__(self, evict: Mapping[str, Sequence[str]]) -> None:
        self.evict = evict

    def evictions(
        self,
        target: str,
        running: Sequence[str],
        busy: Collection[str] = (),
        last_used: Mapping[str, float] | None = None,
    ) -> Plan:
        return Plan(
            target=target,
            evict=tuple(self.evict.get(target, ())),
            target_set=(target,),
            set_name="",
            expression="",
            cost=0,
        )


def planner_of(vector: Vector, ties: Ties = "definition") -> tuple[Planner, set[str]]:
    """The planner of a recording, and all models that it knows."""
    told = vector["planner"]
    models = {*vector["initial_states"], *(step["model"] for step in vector["steps"] if step["do"] == "swap_done")}
    if told["type"] == "fixed":
        named = {name for target, evict in told["evict"].items() for name in [target, *evict]}
        return Fixed(told["evict"]), models | named
    if told["type"] == "matrix":
        models |= set(told["models"])
        sets = {one["name"]: one["dsl"] for one in told["sets"]}
        known = list(dict.fromkeys([*told["models"], *sorted(models)]))
        options = {"vars": told["vars"]} if "vars" in told else {}
        return Matrix(sets, models=known, evict_costs=told["evict_costs"], ties=ties, **options), models
    groups = {name: Group(**fields) for name, fields in told["groups"].items()}
    models |= {member for group in groups.values() for member in group.members}
    return Groups(groups, models=sorted(models)), models


class Recorded:
    """Plays one recording, and tells what ours does in its words."""

    def __init__(self, vector: Vector) -> None:
        planner, models = planner_of(vector)
        limits = vector["concurrency_limits"]
        self.priorities = vector["priority"]
        self.gone = {model for model, delivered in vector["serve_delivered"].items() if not delivered}
        self.scheduler = SwapScheduler(
            planner,
            {model: ModelOptions(limit=limits.get(model, 0), max_waiting=0) for model in sorted(models)},
            SwapOptions.parity(),
            ready=[model for model, state in vector["initial_states"].items() if state == "ready"],
        )
        self.ids: dict[SwapRequest, str] = {}
        self.requests: dict[str, SwapRequest] = {}
        self.swaps: dict[str, StartSwap] = {}

    def play(self, step: dict[str, Any]) -> list[dict[str, Any]]:
        """Play a step. Raises RuntimeError where llama-swap panics."""
        told = [told for effect in self.effects(step) for told in self.words(effect, step)]
        if step["do"] == "request" and {"effect": "reject", "id": step["id"]} not in told:
            told.insert(0, {"effect": "admit", "id": step["id"]})
        if step["do"] == "unload":
            told.append({"effect": "stop_processes", "models": step["models"]})
        return told

    def effects(self, step: dict[str, Any]) -> list[Effect]:
        scheduler = self.scheduler
        effects: list[Effect] = []
        for model, state in step.get("world", {}).items():
            if state == "absent":
                effects += scheduler.on_removed(model, 0.0)
        match step["do"]:
            case "request":
                request = SwapRequest(step["model"], -self.priorities.get(step["model"], 0))
                self.ids[request] = step["id"]
                self.requests[step["id"]] = request
                effects += scheduler.on_request(request, 0.0)
            case "cancel":
                effects += scheduler.on_cancel(self.requests[step["id"]], 0.0)
            case "swap_done":
                identity = scheduler.statistics(0.0).models[step["model"]].swap
                if identity is not None:
                    undelivered = self.gone_from(step["model"]) if "error" not in step else []
                    effects += scheduler.on_swap_done(identity, 0.0, step.get("error", ""))
                    effects = [*undelivered, *effects]
            case "serve_done":
                served = [request for request in self.in_state(TicketState.GRANTED) if request.model == step["model"]]
                effects += scheduler.on_serve_done(served[0] if served else SwapRequest(step["model"]), 0.0)
            case "unload":
                effects += scheduler.on_unload(step["models"], 0.0, at_once=True)
            case "shutdown":
                effects += scheduler.on_shutdown(0.0)
            case other:
                raise AssertionError(f"a kind of step that this adapter doesn't know: {other}")
        for effect in list(effects):
            if (
                isinstance(effect, Grant)
                and effect.request.model in self.gone
                and effect.request.state is TicketState.GRANTED
            ):
                # Nobody is there any more: what was granted ends at once.
                effects += scheduler.on_serve_done(effect.request, 0.0)
        return effects

    def gone_from(self, model: str) -> list[Effect]:
        """Callers that are gone are never granted anything here: they were cancelled. There they are, to nobody."""
        if model not in self.gone:
            return []
        gone = [request for request in self.in_state(TicketState.WAITING) if request.model == model]
        for request in gone:
            assert self.scheduler.on_cancel(request, 0.0) == []
        return [Grant(request) for request in gone]

    def words(self, effect: Effect, step: dict[str, Any]) -> list[dict[str, Any]]:
        if isinstance(effect, Grant):
            model = effect.request.model
            told = {"effect": "grant_serve", "id": self.ids[effect.request], "model": model}
            return [{**told, "delivered": model not in self.gone}]
        if isinstance(effect, Refuse):
            name = self.ids[effect.request]
            if step["do"] == "request" and name == step["id"]:
                return [{"effect": "reject", "id": name}]
            return [{"effect": "grant_error", "id": name, "model": effect.request.model}]
        if isinstance(effect, StartSwap):
            self.swaps[effect.model] = effect
            return [{"effect": "start_swap", "model": effect.model, "evict": list(effect.evict)}]
        return []

    def in_state(self, state: TicketState) -> list[SwapRequest]:
        found = [request for request in self.ids if request.state is state]
        return sorted(found, key=lambda request: (request.priority, request.number))

    def state(self) -> dict[str, Any]:
        models = self.scheduler.statistics(0.0).models
        positions = self.scheduler.positions(0.0)
        waiting = self.in_state(TicketState.WAITING)
        return {
            "queue": [self.ids[request] for request in positions],
            "positions": {self.ids[request]: position for request, position in positions.items()},
            "active": {
                name: {
                    "evict": list(self.swaps[name].evict),
                    "waiters": [self.ids[request] for request in waiting if request.model == name],
                }
                for name, model in models.items()
                if model.swap is not None
            },
            "in_flight": {name: model.in_flight for name, model in models.items() if model.in_flight},
            "reserved": {
                name: model.in_flight + model.waiting
                for name, model in models.items()
                if model.in_flight + model.waiting
            },
        }


def without_texts(effects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The recorded effects, with error or no error, but not which, nor the time that a stop may take."""
    return [{key: value for key, value in effect.items() if key not in {"error", "timeout_s"}} for effect in effects]


def check(vector: Vector) -> None:
    recorded = Recorded(vector)
    for step in vector["steps"]:
        expect = step["expect"]
        if "panic" in expect:
            with pytest.raises(RuntimeError, match="not in flight"):
                recorded.play(step)
            continue
        effects, expected = recorded.play(step), without_texts(expect["effects"])
        if expect.get("effects_unordered"):
            effects, expected = sorted(effects, key=repr_of), sorted(expected, key=repr_of)
        assert effects == expected, step
        state = recorded.state()
        assert state["in_flight"] == {model: count for model, count in expect["in_flight"].items() if count}
        assert state["reserved"] == {model: count for model, count in expect["reserved"].items() if count}
        if step["do"] == "shutdown":
            # There llama-swap's loop has ended: what is left in its lists, and what would come of it, isn't reached.
            break
        assert state["queue"] == expect["queue"], step
        assert state["active"] == expect["active"], step
        if "positions" in expect:
            assert state["positions"] == expect["positions"], step


def repr_of(effect: dict[str, Any]) -> str:
    return repr(sorted(effect.items()))


class Ours:
    """Plays the steps of a recording to the scheduler as it is by default, with a second between them."""

    def __init__(self, vector: Vector) -> None:
        planner, models = planner_of(vector, "usage")
        limits = vector["concurrency_limits"]
        self.priorities = vector["priority"]
        self.scheduler = SwapScheduler(
            planner,
            {model: ModelOptions(limit=limits.get(model, 0)) for model in sorted(models)},
            ready=[model for model, state in vector["initial_states"].items() if state == "ready"],
        )
        self.requests: dict[str, SwapRequest] = {}
        self.loads: dict[str, int] = {}
        self.stops: dict[str, int] = {}
        self.now = 0.0

    def tell(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, LoadModel):
                self.loads[effect.model] = effect.identity
            elif isinstance(effect, StopModel):
                self.stops[effect.model] = effect.identity
                self.loads.pop(effect.model, None)

    def request(self, name: str, model: str) -> SwapRequest:
        request = self.requests[name] = SwapRequest(model, -self.priorities.get(model, 0))
        self.tell(self.scheduler.on_request(request, self.now))
        return request

    def end(self, request: SwapRequest) -> None:
        self.tell(self.scheduler.on_serve_done(request, self.now))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.tell(self.scheduler.on_tick(self.now))

    def play(self, vector: Vector) -> None:
        """Play what doesn't depend on what was decided before: requests, cancels, and ends of those in flight."""
        for step in vector["steps"]:
            match step["do"]:
                case "request":
                    self.request(step["id"], step["model"])
                case "cancel":
                    self.tell(self.scheduler.on_cancel(self.requests[step["id"]], self.now))
                case "serve_done":
                    served = [request for request in self.in_flight() if request.model == step["model"]]
                    if served:
                        self.end(served[0])
            self.tick(1.0)

    def in_flight(self) -> list[SwapRequest]:
        return [request for request in self.requests.values() if request.state is TicketState.GRANTED]

    def work(self) -> None:
        """Let stops and loads end."""
        while self.stops or self.loads:
            while self.stops:
                self.tell(self.scheduler.on_stopped(self.stops.popitem()[1], self.now))
            while self.loads:
                self.tell(self.scheduler.on_swap_done(self.loads.popitem()[1], self.now))


def named(name: str) -> Vector:
    """The recording of that name, from the project's own file if the one that is read doesn't have it."""
    everything = [*vectors("fifo"), *vectors("fifo_random")]
    own = load(OWN)
    return next(case for case in [*everything, *own["fifo"], *own["fifo_random"]] if case["name"] == name)
