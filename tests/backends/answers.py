"""What servers answer to GETs, as far as we know; each says from where.

recorded: from the server named, run here. source: written after its source, which was read. documentation: after the
example in its documentation. memory: as it is remembered, unchecked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import attrs

from trio_mlxgate.backends.kinds.base import NoReply, Reply

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

ResultT = TypeVar("ResultT")

JSON: Final = "application/json"


@attrs.frozen(kw_only=True)
class Site:
    """A server in some state: what it answers to each path."""

    name: str
    known: Literal["recorded", "source", "documentation", "memory"]
    kind: str
    pages: Mapping[str, Reply]
    otherwise: Reply

    def answer(self, path: str) -> Reply:
        return self.pages.get(path, self.otherwise)


def play(looking: Generator[str, Reply | NoReply, ResultT], site: Site, **silent: NoReply) -> tuple[ResultT, list[str]]:
    """Let something look at a site; what it found, and what it asked. ``silent``: ends of paths without answer."""
    asked = [next(looking)]
    while True:
        path = asked[-1]
        try:
            asked.append(looking.send(silent.get(path.rpartition("/")[2]) or site.answer(path)))
        except StopIteration as end:
            return end.value, asked


def page(status: int, body: Any, server: str = "", kind: str = JSON, http_version: str = "HTTP/1.1") -> Reply:
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    headers = {"content-type": kind} | ({"server": server} if server else {})
    return Reply(status=status, headers=headers, body=data, http_version=http_version, seconds=0.004)


# ---- ours: recorded from `trio-mlxgate echo-server` ----


def _echo(status: int, body: Any) -> Reply:
    return page(status, body, "trio-mlxgate-echo")


_ECHO_404: Final = _echo(
    404,
    {
        "error": {
            "message": "there is no '/props' here; this server knows /v1/chat/completions, /v1/completions, "
            "/v1/models, /health, /status",
            "type": "invalid_request_error",
            "param": None,
            "code": "not_found",
        }
    },
)
ECHO: Final = Site(
    name="echo",
    known="recorded",
    kind="status",
    pages={
        "/health": _echo(200, {"status": "ok"}),
        "/status": _echo(
            200,
            {
                "active_jobs": 2,
                "total_requests": 5,
                "generating": 1,
                "max_active_jobs": 2,
                "completed": 3,
                "abandoned": 0,
                "ghost_jobs": 0,
                "overlaps": 1,
                "uptime": 1.6781500840152148,
                "order": [],
            },
        ),
    },
    otherwise=_ECHO_404,
)
# The original's proxy in front of its MLX server: of its answer only these two are known. It may have no /health.
PROXY: Final = Site(
    name="proxy",
    known="memory",
    kind="status",
    pages={"/status": page(200, {"active_jobs": 0, "total_requests": 1041})},
    otherwise=page(404, {"detail": "Not Found"}, "uvicorn"),
)

# ---- mlx_lm.server: recorded from mlx-lm 0.32.2 with a tiny model, Python 3.11.7 ----


def _mlx_lm(status: int, body: Any) -> Reply:
    return page(status, body, "BaseHTTP/0.6 Python/3.11.7", http_version="HTTP/1.0")


_MLX_LM_404: Final = _mlx_lm(404, "Not Found")
MLX_LM: Final = Site(
    name="mlx-lm",
    known="recorded",
    kind="mlx-lm",
    pages={"/health": _mlx_lm(200, '{"status": "ok"}')},
    otherwise=_MLX_LM_404,
)
# Started with a directory that holds no model: so it goes on for ever.
MLX_LM_DEAD: Final = Site(
    name="mlx-lm dead",
    known="recorded",
    kind="mlx-lm",
    pages={"/health": _mlx_lm(503, '{"status": "unavailable"}')},
    otherwise=_MLX_LM_404,
)

# ---- mlx-vlm 0.7 ----

MLX_VLM: Final = Site(
    name="mlx-vlm",
    known="source",
    kind="mlx-vlm",
    pages={
        "/health": page(
            200,
            {
                "status": "healthy",
                "loaded_model": "mlx-community/Qwen2-VL-2B-Instruct-4bit",
                "loaded_models": ["mlx-community/Qwen2-VL-2B-Instruct-4bit"],
                "loaded_context_size": 32768,
                "effective_context_limit": 32768,
                "continuous_batching_enabled": True,
            },
            "mlx_vlm/0.7.10",
        ),
        "/metrics": page(
            200,
            {
                "server": {"request_queue_depth": 1},
                "summary": {
                    "in_flight": 3,
                    "requests_started": 40,
                    "requests_completed": 36,
                    "requests_failed": 1,
                    "avg_request_time_s": 2.25,
                    "avg_decode_tok_s": 31.0,
                },
            },
            "mlx_vlm/0.7.10",
        ),
    },
    otherwise=page(404, {"detail": "Not Found"}, "mlx_vlm/0.7.10"),
)

# ---- llama.cpp's llama-server ----


def _llama(status: int, body: Any, kind: str = JSON) -> Reply:
    return page(status, body, "llama.cpp", kind)


def _llama_error(status: int, message: str, what: str) -> Reply:
    return _llama(status, {"error": {"code": status, "message": message, "type": what}})


_LLAMA_404: Final = _llama_error(404, "File Not Found", "not_found_error")
_LLAMA_HEALTH: Final = _llama(200, {"status": "ok"})
_LLAMA_PROPS: Final = _llama(
    200,
    {
        "default_generation_settings": {"n_ctx": 4096},
        "total_slots": 4,
        "model_path": "models/qwen2.5-7b-q4.gguf",
        "chat_template": "...",
        "is_sleeping": False,
    },
)
_NO_METRICS: Final = _llama_error(
    501, "This server does not support metrics endpoint. Start it with `--metrics`", "not_supported_error"
)
LLAMA_CPP: Final = Site(
    name="llama.cpp",
    known="source",
    kind="llama.cpp",
    pages={
        "/health": _LLAMA_HEALTH,
        "/props": _LLAMA_PROPS,
        "/metrics": _NO_METRICS,
        "/slots": _llama(
            200, [{"id": number, "n_ctx": 4096, "is_processing": number < 3, "id_task": 7} for number in range(4)]
        ),
    },
    otherwise=_LLAMA_404,
)
LLAMA_CPP_METRICS: Final = Site(
    name="llama.cpp --metrics",
    known="source",
    kind="llama.cpp",
    pages={
        **LLAMA_CPP.pages,
        "/metrics": _llama(
            200,
            "# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.\n"
            "# TYPE llamacpp:prompt_tokens_total counter\n"
            "llamacpp:prompt_tokens_total 1234\n"
            "# HELP llamacpp:requests_processing Number of requests processing.\n"
            "# TYPE llamacpp:requests_processing gauge\n"
            "llamacpp:requests_processing 4\n"
            "# HELP llamacpp:requests_deferred Number of requests deferred.\n"
            "# TYPE llamacpp:requests_deferred gauge\n"
            "llamacpp:requests_deferred 2\n",
            "text/plain; version=0.0.4",
        ),
    },
    otherwise=_LLAMA_404,
)
LLAMA_CPP_SLEEPING: Final = Site(
    name="llama.cpp asleep",
    known="source",
    kind="llama.cpp",
    pages={
        "/health": _LLAMA_HEALTH,
        "/props": _llama(200, {"total_slots": 1, "model_alias": "small", "is_sleeping": True}),
    },
    otherwise=_LLAMA_404,
)
LLAMA_CPP_LOADING: Final = Site(
    name="llama.cpp loading",
    known="source",
    kind="llama.cpp",
    pages={},
    otherwise=_llama_error(503, "Loading model", "unavailable_error"),
)

# ---- llama-cpp-python: its answers to these were seen when 0.3.36 was run; the text is written after that ----

LLAMA_CPP_PYTHON: Final = Site(
    name="llama-cpp-python",
    known="source",
    kind="llama-cpp-python",
    pages={
        "/openapi.json": page(
            200,
            {"openapi": "3.1.0", "info": {"title": "🦙 llama.cpp Python API", "version": "0.3.36"}, "paths": {}},
            "uvicorn",
        )
    },
    otherwise=page(404, {"detail": "Not Found"}, "uvicorn"),
)

# ---- from documentation ----

VLLM: Final = Site(
    name="vllm",
    known="documentation",
    kind="vllm",
    pages={
        "/health": page(200, "", "uvicorn"),
        "/version": page(200, {"version": "0.9.1"}, "uvicorn"),
        "/metrics": page(
            200,
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 3.0\n'
            'vllm:num_requests_running{engine="1",model_name="unsloth/Llama-3.2-1B-Instruct"} 2.0\n'
            "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            'vllm:num_requests_waiting{engine="0",model_name="unsloth/Llama-3.2-1B-Instruct"} 0.0\n'
            'vllm:num_requests_waiting{engine="1",model_name="unsloth/Llama-3.2-1B-Instruct"} 1.0\n'
            'vllm:iteration_tokens_total_bucket{le="1.0",model_name="unsloth/Llama-3.2-1B-Instruct"} 3.0\n',
            "uvicorn",
            "text/plain; version=0.0.4; charset=utf-8",
        ),
    },
    otherwise=page(404, {"detail": "Not Found"}, "uvicorn"),
)
OLLAMA: Final = Site(
    name="ollama",
    known="documentation",
    kind="ollama",
    pages={
        "/": page(200, "Ollama is running", kind="text/plain; charset=utf-8"),
        "/api/version": page(200, {"version": "0.12.6"}),
        "/api/ps": page(
            200,
            {
                "models": [
                    {
                        "name": "gemma3",
                        "model": "gemma3",
                        "size": 6591830464,
                        "details": {"format": "gguf", "family": "gemma3", "parameter_size": "4.3B"},
                        "expires_at": "2025-10-17T16:47:07.93355-07:00",
                        "size_vram": 5333539264,
                        "context_length": 4096,
                    }
                ]
            },
        ),
    },
    otherwise=page(404, "404 page not found", kind="text/plain"),
)
LM_STUDIO: Final = Site(
    name="lm-studio",
    known="documentation",
    kind="lm-studio",
    pages={
        "/api/v0/models": page(
            200,
            {
                "object": "list",
                "data": [
                    {"id": "qwen2-vl-7b-instruct", "object": "model", "type": "vlm", "state": "not-loaded"},
                    {"id": "meta-llama-3.1-8b-instruct", "object": "model", "type": "llm", "state": "loaded"},
                ],
            },
        )
    },
    # Any other path has this answer, with status 200.
    otherwise=page(200, {"error": "Unexpected endpoint or method. (GET /health)"}),
)
OTHER: Final = Site(
    name="something else",
    known="memory",
    kind="openai",
    pages={"/": page(200, "<html>Welcome</html>", "nginx", "text/html")},
    otherwise=page(404, "<html>404</html>", "nginx", "text/html"),
)

SITES: Final = (
    ECHO,
    PROXY,
    MLX_LM,
    MLX_LM_DEAD,
    MLX_VLM,
    LLAMA_CPP,
    LLAMA_CPP_METRICS,
    LLAMA_CPP_SLEEPING,
    LLAMA_CPP_LOADING,
    LLAMA_CPP_PYTHON,
    VLLM,
    OLLAMA,
    LM_STUDIO,
    OTHER,
)
