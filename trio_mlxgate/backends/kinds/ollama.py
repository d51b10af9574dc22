"""Ollama, from its documentation, untested: it tells which models are loaded, and nothing of its load.

https://docs.ollama.com/api/ps
"""

from __future__ import annotations

from typing import ClassVar

from trio_mlxgate.backends.kinds._parsing import Unusable, names, object_of, shown
from trio_mlxgate.backends.kinds.base import KnownFrom, Looking, NoReply, ServerKind, unanswered, unexpected
from trio_mlxgate.core.readings import Health, Reading


class OllamaKind(ServerKind):
    """Ollama."""

    name: ClassVar[str] = "ollama"
    title: ClassVar[str] = "Ollama"
    known_from: ClassVar[KnownFrom] = "documentation"
    hint: ClassVar[str] = "says which models are loaded, not how busy it is; capacity as its OLLAMA_NUM_PARALLEL"

    def look(self) -> Looking:
        reply = yield "/api/ps"
        if isinstance(reply, NoReply):
            return unanswered("/api/ps", reply)
        if reply.status != 200:
            return unexpected("/api/ps", reply)
        try:
            listed = object_of("/api/ps", reply).get("models")
            if not isinstance(listed, list):
                raise Unusable(f"GET /api/ps should list models, not give {shown(reply.body)}")
        except Unusable as problem:
            return Reading(health=Health.UNKNOWN, reason=str(problem), latency=reply.seconds)
        models = names(*(model.get("name") or model.get("model") for model in listed if isinstance(model, dict)))
        return Reading(health=Health.UP, latency=reply.seconds, models=models)
