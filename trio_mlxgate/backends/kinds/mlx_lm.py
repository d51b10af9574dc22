"""mlx_lm.server, measured with mlx-lm 0.32: it tells whether its generation thread lives, and nothing of its load."""

from __future__ import annotations

from typing import ClassVar

from trio_mlxgate.backends.kinds._parsing import object_or_nothing, shown
from trio_mlxgate.backends.kinds.base import KnownFrom, Looking, NoReply, ServerKind, unanswered, unexpected
from trio_mlxgate.core.readings import Health, Reading


class MlxLmKind(ServerKind):
    """mlx_lm.server."""

    name: ClassVar[str] = "mlx-lm"
    title: ClassVar[str] = "mlx_lm.server"
    keeps_connections: ClassVar[bool] = False
    known_from: ClassVar[KnownFrom] = "measured"
    hint: ClassVar[str] = (
        "says nothing of its load, and is well before its model is loaded; capacity 1, or up to 8 if tokens per second "
        "grow with it; name its model in one spelling, since another drops the one that is loaded"
    )

    def look(self) -> Looking:
        reply = yield "/health"
        if isinstance(reply, NoReply):
            return unanswered("/health", reply)
        said = object_or_nothing(reply).get("status")
        if reply.status == 503 and said == "unavailable":
            reason = "its generation thread is dead, or could not load the model: see its log, and start it anew"
            return Reading(health=Health.DOWN, reason=reason, latency=reply.seconds)
        if reply.status != 200:
            return unexpected("/health", reply)
        if said != "ok":
            reason = f"GET /health should say that it is ok, not {shown(reply.body)}"
            return Reading(health=Health.UNKNOWN, reason=reason, latency=reply.seconds)
        return Reading(health=Health.UP, latency=reply.seconds)
