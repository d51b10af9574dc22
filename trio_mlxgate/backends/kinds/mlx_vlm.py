"""mlx-vlm's server, read in the source of mlx-vlm 0.7: counts in JSON at ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trio_mlxgate.backends.kinds._parsing import Unusable, count, count_or_none, member, names, object_of, shown
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
    from collections.abc import Mapping


class MlxVlmKind(ServerKind):
    """mlx-vlm's server."""

    name: ClassVar[str] = "mlx-vlm"
    title: ClassVar[str] = "mlx-vlm's server"
    reads_load: ClassVar[bool] = True
    known_from: ClassVar[KnownFrom] = "source"
    hint: ClassVar[str] = "with --api-key it wants the key for its health, too: give it in the headers"

    def look(self) -> Looking:
        reply = yield "/health"
        if isinstance(reply, NoReply):
            return unanswered("/health", reply)
        if reply.status != 200:
            return unexpected("/health", reply)
        try:
            health = object_of("/health", reply)
            if health.get("status") != "healthy":
                raise Unusable(f"GET /health should say that it is healthy, not {shown(reply.body)}")
        except Unusable as problem:
            return Reading(health=Health.UNKNOWN, reason=str(problem), latency=reply.seconds)
        models = names(health.get("loaded_model"), health.get("loaded_models"))
        metrics = yield "/metrics"
        status, reason = None, ""
        try:
            status = _status(metrics)
        except Unusable as problem:
            reason = str(problem)
        return Reading(health=Health.UP, reason=reason, latency=reply.seconds, status=status, models=models)


def _status(reply: Reply | NoReply) -> Status:
    """What ``/metrics`` says.

    Raises:
      Unusable: no count of what is under way.
    """
    if isinstance(reply, NoReply):
        raise Unusable(silence_of("/metrics", reply))
    if reply.status != 200:
        raise Unusable(refusal_of("/metrics", reply))
    answer: Mapping[str, Any] = object_of("/metrics", reply)
    return Status(
        active_jobs=count("summary.in_flight of GET /metrics", member(answer, "summary", "in_flight")),
        waiting=count_or_none(
            "server.request_queue_depth of GET /metrics", member(answer, "server", "request_queue_depth")
        ),
        total_requests=count_or_none(
            "summary.requests_started of GET /metrics", member(answer, "summary", "requests_started")
        ),
    )
