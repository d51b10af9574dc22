"""Servers that tell their load at ``/status``: our embedded one, our gateway, and proxies that do likewise."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trio_mlxgate.backends.kinds._parsing import Unusable, count, count_or_none, object_of
from trio_mlxgate.backends.kinds.base import KnownFrom, Looking, NoReply, ServerKind, unanswered, unexpected
from trio_mlxgate.core.readings import Health, Reading, Status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class StatusKind(ServerKind):
    """A server whose ``/status`` says ``{"active_jobs": 1, "total_requests": 7}``."""

    name: ClassVar[str] = "status"
    title: ClassVar[str] = "a server with /status"
    reads_load: ClassVar[bool] = True
    known_from: ClassVar[KnownFrom] = "measured"
    hint: ClassVar[str] = "its active_jobs are what its load is told by"

    def look(self) -> Looking:
        reply = yield "/status"
        if isinstance(reply, NoReply):
            return unanswered("/status", reply)
        if reply.status != 200:
            return unexpected("/status", reply)
        try:
            answer = object_of("/status", reply)
        except Unusable as problem:
            return Reading(health=Health.UNKNOWN, reason=str(problem), latency=reply.seconds)
        try:
            status = status_in(answer)
        except Unusable as problem:
            # It answers as it should, and only counts badly.
            return Reading(health=Health.UP, reason=str(problem), latency=reply.seconds)
        return Reading(health=Health.UP, latency=reply.seconds, status=status)


def status_in(answer: Mapping[str, Any]) -> Status:
    """What such an answer says.

    Raises:
      Unusable: its ``active_jobs`` are no count.
    """
    active = count("active_jobs of GET /status", answer.get("active_jobs"))
    try:
        total = count_or_none("total_requests of GET /status", answer.get("total_requests"))
    except Unusable:
        total = None  # nothing is decided by it
    return Status(active_jobs=active, total_requests=total)
