"""What each kind of server is asked, and what is made of its answers."""

from __future__ import annotations

from typing import Any, Final

import attrs
import pytest

from tests.backends import answers
from tests.backends.answers import Site, page, play
from trio_mlxgate.backends.detecting import KINDS, kind_named
from trio_mlxgate.backends.kinds.base import NoReply, Reply
from trio_mlxgate.core.readings import Health, Reading, Status

UP: Final = Health.UP
DOWN: Final = Health.DOWN
UNKNOWN: Final = Health.UNKNOWN

HARMLESS: Final = {
    *("/", "/health", "/status", "/metrics", "/props", "/slots", "/openapi.json"),
    *("/version", "/api/version", "/api/ps", "/api/v0/models"),
}
"""Each was measured, or read to be, harmless to every kind that is asked it. /v1/models is not."""


def look(site: Site, kind: str = "", **silent: NoReply) -> tuple[Reading, list[str]]:
    reading, asked = play(kind_named(kind or site.kind).look(), site, **silent)
    assert set(asked) <= HARMLESS
    return reading, asked


def with_page(site: Site, path: str, reply: Reply) -> Site:
    return attrs.evolve(site, pages={**site.pages, path: reply})


@pytest.mark.parametrize(
    ("site", "health", "status", "models", "asked"),
    [
        (answers.ECHO, UP, Status(active_jobs=2, total_requests=5), (), ["/status"]),
        (answers.PROXY, UP, Status(active_jobs=0, total_requests=1041), (), ["/status"]),
        (answers.MLX_LM, UP, None, (), ["/health"]),
        (answers.MLX_LM_DEAD, DOWN, None, (), ["/health"]),
        (
            answers.MLX_VLM,
            UP,
            Status(active_jobs=3, waiting=1, total_requests=40),
            ("mlx-community/Qwen2-VL-2B-Instruct-4bit",),
            ["/health", "/metrics"],
        ),
        (
            answers.LLAMA_CPP,
            UP,
            Status(active_jobs=3, slots=4),
            ("models/qwen2.5-7b-q4.gguf",),
            ["/health", "/props", "/metrics", "/slots"],
        ),
        (
            answers.LLAMA_CPP_METRICS,
            UP,
            Status(active_jobs=6, waiting=2, slots=4),
            ("models/qwen2.5-7b-q4.gguf",),
            ["/health", "/props", "/metrics"],
        ),
        (
            answers.LLAMA_CPP_SLEEPING,
            UP,
            Status(active_jobs=0, waiting=0, slots=1),
            ("small",),
            ["/health", "/props"],
        ),
        (answers.LLAMA_CPP_LOADING, DOWN, None, (), ["/health"]),
        (answers.LLAMA_CPP_PYTHON, UP, None, (), ["/openapi.json"]),
        (
            answers.VLLM,
            UP,
            Status(active_jobs=6, waiting=1),
            ("unsloth/Llama-3.2-1B-Instruct",),
            ["/health", "/metrics"],
        ),
        (answers.OLLAMA, UP, None, ("gemma3",), ["/api/ps"]),
        (answers.LM_STUDIO, UP, None, ("meta-llama-3.1-8b-instruct",), ["/api/v0/models"]),
        (answers.OTHER, UP, None, (), ["/"]),
    ],
    ids=lambda value: value.name if isinstance(value, Site) else "",
)
def test_a_look(site: Site, health: Health, status: Status | None, models: tuple[str, ...], asked: list[str]) -> None:
    reading, paths = look(site)
    assert paths == asked
    assert (reading.health, reading.status, reading.models) == (health, status, models)
    assert reading.latency == 0.004
    assert not reading.refused
    if health is not UP:
        assert reading.reason


def test_why_a_server_is_down_and_what_to_do() -> None:
    assert "start it anew" in look(answers.MLX_LM_DEAD)[0].reason
    assert "loads its model" in look(answers.LLAMA_CPP_LOADING)[0].reason
    assert "sleeps" in look(answers.LLAMA_CPP_SLEEPING)[0].reason


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
@pytest.mark.parametrize("why", ["refused", "timeout", "broken"])
def test_no_answer_at_all(kind: str, why: Any) -> None:
    looking = kind_named(kind).look()
    next(looking)
    with pytest.raises(StopIteration) as ended:
        looking.send(NoReply(why=why, text="so it was", seconds=1))
    reading = ended.value.value
    assert reading.health is (DOWN if why == "refused" else UNKNOWN)
    assert reading.refused is (why == "refused")
    assert "so it was" in reading.reason
    assert (reading.latency, reading.status) == (None, None)


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
@pytest.mark.parametrize("status", [204, 302, 401, 404, 429, 500, 502])
def test_another_status_is_told_with_what_to_do(kind: str, status: int) -> None:
    site = Site(name="", known="memory", kind=kind, pages={}, otherwise=page(status, "<html>"))
    reading, asked = look(site)
    assert len(asked) == 1
    if kind == "openai" and status < 500:
        assert reading.health is UP
        return
    assert reading.health is UNKNOWN
    assert str(status) in reading.reason
    assert ("key" in reading.reason) is (status == 401)
    assert ("redirect" in reading.reason) is (status == 302)


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind.name not in ("openai", "vllm")])
@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"status": 1e400}', b"1" * 5000]
)
def test_a_good_status_with_a_body_of_another_kind_is_unknown(kind: str, body: bytes) -> None:
    site = Site(name="", known="memory", kind=kind, pages={}, otherwise=page(200, body))
    reading, _ = look(site)
    if kind == "status" and body in (b"{}", b'{"status": 1e400}'):
        assert reading.health is UP  # an object, as it should be, that counts nothing
    else:
        assert reading.health is UNKNOWN
    assert reading.status is None
    assert len(reading.reason) < 300


BAD_COUNTS: Final = ["true", "-1", "1.5", "1.0", '"3"', "null", "NaN", "Infinity", "1e400", "[]", "9" * 30, "9" * 5000]


@pytest.mark.parametrize("number", BAD_COUNTS)
@pytest.mark.parametrize(
    ("site", "path", "body"),
    [
        (answers.ECHO, "/status", '{"active_jobs": %s, "total_requests": 1}'),
        (answers.MLX_VLM, "/metrics", '{"summary": {"in_flight": %s}}'),
        (answers.LLAMA_CPP, "/props", '{"total_slots": %s}'),
        (answers.LLAMA_CPP, "/slots", '[{"is_processing": true}, {"is_processing": %s}]'),
    ],
    ids=["status", "mlx-vlm", "llama.cpp", "slots"],
)
def test_what_is_no_count_is_not_believed(site: Site, path: str, body: str, number: str) -> None:
    if path == "/slots" and number == "true":
        return  # there it is one
    reading, _ = look(with_page(site, path, page(200, body % number)))
    assert reading.status is None
    # A number of 5000 digits is no JSON for Python.
    assert reading.health is (UNKNOWN if path == "/status" and len(number) == 5000 else UP)
    assert reading.reason


@pytest.mark.parametrize("number", ["NaN", "+Inf", "-Inf", "-1", "0.5", "1e400", "1e300", "", "x", "0x1"])
@pytest.mark.parametrize("name", ["vllm:num_requests_running", "vllm:num_requests_waiting"])
def test_what_is_no_count_in_prometheus_format_is_not_believed(name: str, number: str) -> None:
    good = {"vllm:num_requests_running": "1", "vllm:num_requests_waiting": "1"} | {name: number}
    text = "".join(f'{metric}{{model_name="m"}} {value}\n' for metric, value in good.items())
    reading, _ = look(with_page(answers.VLLM, "/metrics", page(200, text)))
    assert (reading.health, reading.status) == (UP, None)
    assert name in reading.reason


def test_prometheus_format_in_all_its_forms() -> None:
    text = (
        "\r\n# TYPE vllm:num_requests_running gauge\n"
        "vllm:num_requests_running 1 1700000000000\n"  # with a time
        '  vllm:num_requests_running { model_name = "a \\"}\\\\ b" , x="1", } +2.0e0 # {trace_id="1"} 1\n'
        'vllm:num_requests_running_by_reason{reason="x"} 7\n'  # another metric
        "vllm:num_requests_running{unfinished 9\n"
        "vllm:num_requests_waiting\t1E+1\n"
        "# vllm:num_requests_waiting 5\n"
    )
    reading, _ = look(with_page(answers.VLLM, "/metrics", page(200, text)))
    assert reading.status == Status(active_jobs=13, waiting=10)
    assert reading.models == ('a "}\\ b',)


@pytest.mark.parametrize("why", ["timeout", "broken", "refused"])
@pytest.mark.parametrize("site", [answers.MLX_VLM, answers.LLAMA_CPP, answers.VLLM], ids=lambda site: site.name)
def test_well_though_its_load_could_not_be_asked(site: Site, why: Any) -> None:
    for name in ("metrics", "props", "slots"):
        if f"/{name}" not in site.pages:
            continue
        silent = {name: NoReply(why=why, seconds=2)}
        reading, asked = look(site, site.kind, **silent)
        assert (reading.health, reading.status, reading.latency) == (UP, None, 0.004)
        assert f"/{name}" in reading.reason
        assert asked[-1] == f"/{name}"  # what comes after it would not be answered either


def test_a_sleeping_server_is_not_woken() -> None:
    _, asked = look(answers.LLAMA_CPP_SLEEPING)
    assert not {"/slots", "/metrics"} & set(asked)


def test_names_are_cut_to_what_can_be_shown() -> None:
    listed = {"models": [{"name": "a\x1b[31m\n"}, {"model": "b" * 1000}, {"name": 3}, 7, {"name": "c"}, {"name": "c"}]}
    reading, _ = look(with_page(answers.OLLAMA, "/api/ps", page(200, listed)))
    assert reading.models == ("a?[31m?", "b" * 197 + "...", "c")
    many = {"models": [{"name": f"m{number}"} for number in range(1000)]}
    assert len(look(with_page(answers.OLLAMA, "/api/ps", page(200, many)))[0].models) == 64


def test_every_kind_says_what_it_is() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
    for kind in KINDS:
        assert kind_named(kind.name) is kind
        assert kind.title
        assert kind.hint
        assert kind.known_from in ("measured", "source", "documentation")
        assert kind.name in repr(kind)
    assert kind_named("llama-cpp-python").capacity == 1
    assert not kind_named("mlx-lm").keeps_connections
    assert {kind.name for kind in KINDS if kind.reads_load} == {"status", "mlx-vlm", "llama.cpp", "vllm"}
    with pytest.raises(ValueError, match=r"no kind of server 'lama'; there are status, mlx-lm"):
        kind_named("lama")
