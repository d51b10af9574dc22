"""llama-cpp-python's server, measured with llama-cpp-python 0.3: its list of models takes the lock of its model."""

from __future__ import annotations

from typing import ClassVar, Final

from trio_mlxgate.backends.kinds._parsing import member, object_or_nothing
from trio_mlxgate.backends.kinds.base import KnownFrom, Looking, NoReply, Reply, ServerKind, unanswered, unexpected
from trio_mlxgate.core.readings import Health, Reading

_TITLE: Final = "llama.cpp Python API"


class LlamaCppPythonKind(ServerKind):
    """llama-cpp-python's server. Whoever asks it ``/v1/models`` cuts off the stream that it is sending."""

    name: ClassVar[str] = "llama-cpp-python"
    title: ClassVar[str] = "llama-cpp-python's server"
    capacity: ClassVar[int | None] = 1
    known_from: ClassVar[KnownFrom] = "measured"
    hint: ClassVar[str] = (
        "nothing of its load can be asked; capacity must be 1: start it with --interrupt_requests false, "
        "else a request cuts off the stream that runs"
    )

    def look(self) -> Looking:
        # The one thing that it answers without its lock, and so while it is busy.
        reply = yield "/openapi.json"
        if isinstance(reply, NoReply):
            return unanswered("/openapi.json", reply)
        if reply.status != 200:
            return unexpected("/openapi.json", reply)
        if not is_its_schema(reply):
            reason = f"GET /openapi.json should have the title {_TITLE!r}: it is a server of another kind"
            return Reading(health=Health.UNKNOWN, reason=reason, latency=reply.seconds)
        return Reading(health=Health.UP, latency=reply.seconds)


def is_its_schema(reply: Reply) -> bool:
    """Whether an answer is this server's description of itself."""
    title = member(object_or_nothing(reply), "info", "title")
    return reply.status == 200 and isinstance(title, str) and _TITLE in title
