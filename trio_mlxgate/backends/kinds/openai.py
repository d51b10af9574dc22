"""Any server of OpenAI's API of which nothing more is known: that it answers at all."""

from __future__ import annotations

from typing import ClassVar

from trio_mlxgate.backends.kinds.base import KnownFrom, Looking, NoReply, ServerKind, refusal_of, unanswered, unexpected
from trio_mlxgate.core.readings import Health, Reading


class OpenAIKind(ServerKind):
    """A server of which nothing is known. Asked is ``/`` alone: a list of models can cost a lock, a health a call."""

    name: ClassVar[str] = "openai"
    title: ClassVar[str] = "a server of OpenAI's API"
    known_from: ClassVar[KnownFrom] = "measured"
    hint: ClassVar[str] = "only that it answers is known of it"

    def look(self) -> Looking:
        reply = yield "/"
        if isinstance(reply, NoReply):
            return unanswered("/", reply)
        if reply.status in (401, 403):
            # Its front page may be closed to those whom its API serves.
            return Reading(health=Health.UP, reason=refusal_of("/", reply), latency=reply.seconds)
        if reply.status >= 500:
            return unexpected("/", reply)
        return Reading(health=Health.UP, latency=reply.seconds)
