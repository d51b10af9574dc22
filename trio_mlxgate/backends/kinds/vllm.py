"""vLLM, from its documentation, untested: Prometheus' counters at ``/metrics``.

https://docs.vllm.ai/en/latest/usage/metrics.html
"""

from __future__ import annotations

from typing import ClassVar, Final

from trio_mlxgate.backends.kinds import _prometheus as prometheus
from trio_mlxgate.backends.kinds._parsing import Unusable, names
from trio_mlxgate.backends.kinds.base import (
    KnownFrom,
    Looking,
    NoReply,
    ServerKind,
    refusal_of,
    silence_of,
    unanswered,
    unexpected,
)
from trio_mlxgate.core.readings import Health, Reading, Status

_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"


class VllmKind(ServerKind):
    """vLLM's OpenAI server. Several engines in one server are counted together."""

    name: ClassVar[str] = "vllm"
    title: ClassVar[str] = "vLLM"
    reads_load: ClassVar[bool] = True
    known_from: ClassVar[KnownFrom] = "documentation"
    hint: ClassVar[str] = "batches by itself: a capacity well above 1 is for it"

    def look(self) -> Looking:
        reply = yield "/health"
        if isinstance(reply, NoReply):
            return unanswered("/health", reply)
        if reply.status != 200:
            return unexpected("/health", reply)
        metrics = yield "/metrics"
        models: tuple[str, ...] = ()
        status, reason = None, ""
        try:
            if isinstance(metrics, NoReply):
                raise Unusable(silence_of("/metrics", metrics))
            if metrics.status != 200:
                raise Unusable(refusal_of("/metrics", metrics))
            series = prometheus.samples(metrics.body, _RUNNING, _WAITING)
            models = names(*prometheus.label(series, "model_name"))
            waiting = prometheus.total(series, _WAITING)
            status = Status(active_jobs=prometheus.total(series, _RUNNING) + waiting, waiting=waiting)
        except Unusable as problem:
            reason = str(problem)
        return Reading(health=Health.UP, reason=reason, latency=reply.seconds, status=status, models=models)
