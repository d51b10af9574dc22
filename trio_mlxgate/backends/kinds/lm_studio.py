"""LM Studio, from its documentation, untested: it tells which models are loaded, and nothing of its load.

https://lmstudio.ai/docs/developer/rest/endpoints
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trio_mlxgate.backends.kinds._parsing import Unusable, names, object_of, shown
from trio_mlxgate.backends.kinds.base import KnownFrom, Looking, NoReply, Reply, ServerKind, unanswered, unexpected
from trio_mlxgate.core.readings import Health, Reading

if TYPE_CHECKING:
    from collections.abc import Mapping


class LmStudioKind(ServerKind):
    """LM Studio's server."""

    name: ClassVar[str] = "lm-studio"
    title: ClassVar[str] = "LM Studio"
    known_from: ClassVar[KnownFrom] = "documentation"
    hint: ClassVar[str] = "says which models are loaded, not how busy it is; it answers unknown paths with 200"

    def look(self) -> Looking:
        reply = yield "/api/v0/models"
        if isinstance(reply, NoReply):
            return unanswered("/api/v0/models", reply)
        if reply.status != 200:
            return unexpected("/api/v0/models", reply)
        try:
            listed = models_in(reply)
        except Unusable as problem:
            return Reading(health=Health.UNKNOWN, reason=str(problem), latency=reply.seconds)
        loaded = names(*(model.get("id") for model in listed if model.get("state") == "loaded"))
        return Reading(health=Health.UP, latency=reply.seconds, models=loaded)


def models_in(reply: Reply) -> list[Mapping[str, Any]]:
    """The models that ``/api/v0/models`` lists, loaded or not.

    Raises:
      Unusable: it isn't such a list.
    """
    listed = object_of("/api/v0/models", reply).get("data")
    if not isinstance(listed, list) or not all(isinstance(model, dict) and "state" in model for model in listed):
        raise Unusable(f"GET /api/v0/models should list models with their state, not give {shown(reply.body)}")
    return listed
