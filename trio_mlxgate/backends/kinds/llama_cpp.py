"""llama.cpp's llama-server, read in its source: slots, and what waits for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from trio_mlxgate.backends.kinds import _prometheus as prometheus
from trio_mlxgate.backends.kinds._parsing import (
    Unusable,
    count,
    json_of,
    member,
    names,
    object_of,
    object_or_nothing,
    shown,
)
from trio_mlxgate.backends.kinds.base import (
    KnownFrom,
    Looking,
    NoReply,
    Reply,
    ServerKind,
    refusal_of,
    silence_of,
    unanswered,
    unexpected,
)
from trio_mlxgate.core.readings import Health, Reading, Status

if TYPE_CHECKING:
    from collections.abc import Generator

_PROCESSING: Final = "llamacpp:requests_processing"
_DEFERRED: Final = "llamacpp:requests_deferred"


class LlamaCppKind(ServerKind):
    """llama-server. ``/props`` first: it answers without the queue, and says whether the model sleeps.

    ``/slots`` and ``/metrics`` are tasks in the server's queue, answered between two steps, and would wake it.
    """

    name: ClassVar[str] = "llama.cpp"
    title: ClassVar[str] = "llama.cpp's llama-server"
    reads_load: ClassVar[bool] = True
    known_from: ClassVar[KnownFrom] = "source"
    hint: ClassVar[str] = (
        "start it with --metrics, so that it tells what waits, too; capacity as its --parallel; "
        "with --sleep-idle-seconds, looks at its load may keep it awake: name it kind 'openai' there"
    )

    def look(self) -> Looking:
        reply = yield "/health"
        if isinstance(reply, NoReply):
            return unanswered("/health", reply)
        if is_loading(reply):
            return Reading(health=Health.DOWN, reason="it loads its model", latency=reply.seconds)
        if reply.status != 200:
            return unexpected("/health", reply)
        if object_or_nothing(reply).get("status") != "ok":
            reason = f"GET /health should say that it is ok, not {shown(reply.body)}"
            return Reading(health=Health.UNKNOWN, reason=reason, latency=reply.seconds)
        models: tuple[str, ...] = ()
        status, reason = None, ""
        try:
            props = object_of("/props", _good("/props", (yield "/props")))
            models = names(props.get("model_alias")) or names(props.get("model_path"))
            slots = total_slots(props)
            if props.get("is_sleeping") is True:
                status, reason = Status(active_jobs=0, waiting=0, slots=slots), "it sleeps until the next request"
            else:
                status = yield from self._jobs(slots)
        except Unusable as problem:
            reason = str(problem)
        return Reading(health=Health.UP, reason=reason, latency=reply.seconds, status=status, models=models)

    def _jobs(self, slots: int) -> Generator[str, Reply | NoReply, Status]:
        metrics = yield "/metrics"
        if isinstance(metrics, NoReply):
            raise Unusable(silence_of("/metrics", metrics))  # the other would take as long
        try:
            if metrics.status != 200:
                raise Unusable(refusal_of("/metrics", metrics))
            series = prometheus.samples(metrics.body, _PROCESSING, _DEFERRED)
            deferred = prometheus.total(series, _DEFERRED)
            return Status(active_jobs=prometheus.total(series, _PROCESSING) + deferred, waiting=deferred, slots=slots)
        except Unusable:
            # Without --metrics there are none; what waits for a slot remains unknown then.
            listed = json_of("/slots", _good("/slots", (yield "/slots")))
        if not isinstance(listed, list) or not all(isinstance(_is_busy(slot), bool) for slot in listed):
            raise Unusable(f"GET /slots should list slots with is_processing, not give {shown(listed)}")
        return Status(active_jobs=sum(_is_busy(slot) is True for slot in listed), slots=slots)


def is_loading(reply: Reply) -> bool:
    """Whether it says that its model is being loaded, as all its paths do meanwhile."""
    return reply.status == 503 and member(object_or_nothing(reply), "error", "message") == "Loading model"


def total_slots(props: object) -> int:
    """How many slots its ``/props`` tell.

    Raises:
      Unusable: they tell none.
    """
    return count("total_slots of GET /props", member(props, "total_slots") if isinstance(props, dict) else None)


def _is_busy(slot: object) -> bool | None:
    """Whether a slot is busy; None where it doesn't say."""
    busy = slot.get("is_processing") if isinstance(slot, dict) else None
    return busy if isinstance(busy, bool) else None


def _good(path: str, reply: Reply | NoReply) -> Reply:
    if isinstance(reply, NoReply):
        raise Unusable(silence_of(path, reply))
    if reply.status != 200:
        raise Unusable(refusal_of(path, reply))
    return reply
