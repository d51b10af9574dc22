"""Which kind of server is this? Asked by GETs that harm none of them, in an order in which each is known early.

Never asked is ``/v1/models``: llama-cpp-python's server takes the lock of its model for it, and cuts off the stream
that it is sending. What comes first is what a busy server answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.backends.kinds._parsing import Unusable, member, object_or_nothing
from trio_mlxgate.backends.kinds.base import NoReply, Reply, ServerKind, refusal_of, silence_of
from trio_mlxgate.backends.kinds.llama_cpp import LlamaCppKind, is_loading, total_slots
from trio_mlxgate.backends.kinds.llama_cpp_python import LlamaCppPythonKind, is_its_schema
from trio_mlxgate.backends.kinds.lm_studio import LmStudioKind, models_in
from trio_mlxgate.backends.kinds.mlx_lm import MlxLmKind
from trio_mlxgate.backends.kinds.mlx_vlm import MlxVlmKind
from trio_mlxgate.backends.kinds.ollama import OllamaKind
from trio_mlxgate.backends.kinds.openai import OpenAIKind
from trio_mlxgate.backends.kinds.status import StatusKind, status_in
from trio_mlxgate.backends.kinds.vllm import VllmKind

if TYPE_CHECKING:
    from collections.abc import Generator

_STATUS: Final = StatusKind()
_MLX_LM: Final = MlxLmKind()
_MLX_VLM: Final = MlxVlmKind()
_LLAMA_CPP: Final = LlamaCppKind()
_LLAMA_CPP_PYTHON: Final = LlamaCppPythonKind()
_VLLM: Final = VllmKind()
_OLLAMA: Final = OllamaKind()
_LM_STUDIO: Final = LmStudioKind()
_OPENAI: Final = OpenAIKind()

KINDS: Final[tuple[ServerKind, ...]] = (
    _STATUS,
    _MLX_LM,
    _MLX_VLM,
    _LLAMA_CPP,
    _LLAMA_CPP_PYTHON,
    _VLLM,
    _OLLAMA,
    _LM_STUDIO,
    _OPENAI,
)
"""All kinds; the last is what a server is taken for that answers and is none of the others."""


def kind_named(name: str) -> ServerKind:
    """The kind of that name.

    Raises:
      ValueError: there is none.
    """
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise ValueError(f"there is no kind of server {name!r}; there are {', '.join(kind.name for kind in KINDS)}")


@attrs.frozen(kw_only=True)
class Detected:
    """Which kind a server is of, as far as it told."""

    kind: ServerKind | None
    """None: it gave no answer, or only that it can't serve. Ask again later."""

    reason: str
    """What it was known by, or why it was not."""

    silence: NoReply | None = None
    """What came instead of the answer that was missing; None: nothing was missing."""

    @property
    def is_certain(self) -> bool:
        """Whether it was known by something, and not for want of it."""
        return self.kind is not None and self.kind is not _OPENAI


def detect() -> Generator[str, Reply | NoReply, Detected]:
    """Find out what a server is: yields paths to GET, is sent what came, and returns the kind. Raises nothing."""
    health = yield "/health"
    if isinstance(health, NoReply):
        return _silent("/health", health)
    server = health.headers.get("server", "").lower()
    answer = object_or_nothing(health)
    if server.startswith("mlx_vlm"):
        return Detected(kind=_MLX_VLM, reason="its header Server says mlx_vlm")
    if answer.get("status") == "healthy" and "loaded_model" in answer:
        return Detected(kind=_MLX_VLM, reason="its /health says healthy, and which model is loaded")
    if is_loading(health):
        return Detected(kind=_LLAMA_CPP, reason="its /health says that it loads its model")

    # Before the others: a proxy in front of one of them may add it, and it tells the most.
    status = yield "/status"
    if isinstance(status, NoReply):
        return _silent("/status", status)
    if _tells_jobs(status):
        return Detected(kind=_STATUS, reason="its /status tells active_jobs")
    if health.http_version == "HTTP/1.0" and server.startswith("basehttp/") and answer.get("status") in _MLX_LM_SAYS:
        return Detected(kind=_MLX_LM, reason="its /health answers as mlx_lm.server does, by HTTP/1.0 and BaseHTTP")
    if health.status >= 500:
        return Detected(kind=None, reason=refusal_of("/health", health))

    if server.startswith("llama.cpp"):
        return Detected(kind=_LLAMA_CPP, reason="its header Server says llama.cpp")
    if answer.get("status") == "ok":
        props = yield "/props"
        if isinstance(props, NoReply):
            return _silent("/props", props)
        if _has_slots(props):
            return Detected(kind=_LLAMA_CPP, reason="its /props tell total_slots")
    if health.status == 200 and not health.body.strip():
        version = yield "/version"
        if isinstance(version, NoReply):
            return _silent("/version", version)
        if _has_version(version):
            return Detected(kind=_VLLM, reason="its /health is empty, and it has a /version")

    schema = yield "/openapi.json"
    if isinstance(schema, NoReply):
        return _silent("/openapi.json", schema)
    if is_its_schema(schema):
        return Detected(kind=_LLAMA_CPP_PYTHON, reason="its /openapi.json has llama-cpp-python's title")
    version = yield "/api/version"
    if isinstance(version, NoReply):
        return _silent("/api/version", version)
    if _has_version(version):
        return Detected(kind=_OLLAMA, reason="it has an /api/version")
    models = yield "/api/v0/models"
    if isinstance(models, NoReply):
        return _silent("/api/v0/models", models)
    if _lists_models(models):
        return Detected(kind=_LM_STUDIO, reason="its /api/v0/models tell the state of models")
    return Detected(kind=_OPENAI, reason="it answers, but as none of the known kinds")


_MLX_LM_SAYS: Final = ("ok", "unavailable")


def _silent(path: str, silence: NoReply) -> Detected:
    return Detected(kind=None, reason=silence_of(path, silence), silence=silence)


def _tells_jobs(reply: Reply) -> bool:
    try:
        status_in(object_or_nothing(reply))
    except Unusable:
        return False
    return reply.status == 200


def _has_slots(reply: Reply) -> bool:
    try:
        total_slots(object_or_nothing(reply))
    except Unusable:
        return False
    return reply.status == 200


def _has_version(reply: Reply) -> bool:
    return reply.status == 200 and isinstance(member(object_or_nothing(reply), "version"), str)


def _lists_models(reply: Reply) -> bool:
    try:
        models_in(reply)
    except Unusable:
        return False
    return reply.status == 200
