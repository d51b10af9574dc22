"""Which kind a server is, and what it is asked for that."""

from __future__ import annotations

from typing import Any, Final

import attrs
import pytest

from tests.backends import answers
from tests.backends.answers import SITES, Site, page, play
from trio_mlxgate.backends.detecting import KINDS, detect
from trio_mlxgate.backends.kinds.base import NoReply

ASKED_OF_STRANGERS: Final = {
    "/health",
    "/status",
    "/props",
    "/version",
    "/openapi.json",
    "/api/version",
    "/api/v0/models",
}
"""Harmless to every kind of server. /slots and /metrics, which wake a llama-server, are not among them."""


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_every_known_server_is_found_out(site: Site) -> None:
    detected, asked = play(detect(), site)
    assert detected.kind is not None
    assert detected.kind.name == site.kind
    assert detected.reason
    assert detected.is_certain is (site.kind != "openai")
    assert set(asked) <= ASKED_OF_STRANGERS
    assert len(set(asked)) == len(asked)


def test_there_is_a_server_for_every_kind() -> None:
    assert {site.kind for site in SITES} == {kind.name for kind in KINDS}


def test_llama_cpp_python_is_asked_nothing_that_takes_its_lock() -> None:
    _, asked = play(detect(), answers.LLAMA_CPP_PYTHON)
    assert asked == ["/health", "/status", "/openapi.json"]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
@pytest.mark.parametrize("why", ["refused", "timeout", "broken"])
def test_a_server_that_falls_silent_is_not_taken_for_another(site: Site, why: Any) -> None:
    _, asked = play(detect(), site)
    for number in range(len(asked)):
        looking = detect()
        path = next(looking)
        for _ in range(number):
            path = looking.send(site.answer(path))
        silence = NoReply(why=why, text="so it was")
        with pytest.raises(StopIteration) as ended:
            looking.send(silence)
        detected = ended.value.value
        assert (detected.kind, detected.silence) == (None, silence)
        assert path in detected.reason
        assert "so it was" in detected.reason


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_only_fails_is_not_taken_for_any(status: int) -> None:
    site = Site(name="", known="memory", kind="", pages={}, otherwise=page(status, "Bad Gateway", "nginx"))
    detected, asked = play(detect(), site)
    assert detected.kind is None
    assert asked == ["/health", "/status"]
    assert str(status) in detected.reason


def test_a_llama_server_is_known_with_and_without_its_header() -> None:
    bare = {path: attrs.evolve(reply, headers={}) for path, reply in answers.LLAMA_CPP.pages.items()}
    site = attrs.evolve(answers.LLAMA_CPP, pages=bare)
    detected, asked = play(detect(), site)
    assert detected.kind is not None
    assert detected.kind.name == "llama.cpp"
    assert asked[-1] == "/props"
    # With a key on all paths but /health.
    closed = attrs.evolve(site, pages={"/health": answers.LLAMA_CPP.pages["/health"]}, otherwise=page(401, "{}"))
    detected, _ = play(detect(), closed)
    assert detected.kind is not None
    assert detected.kind.name == "llama.cpp"


def test_a_proxy_that_adds_a_status_to_mlx_lm_is_asked_for_it() -> None:
    site = attrs.evolve(answers.MLX_LM, pages={**answers.MLX_LM.pages, **answers.PROXY.pages})
    detected, _ = play(detect(), site)
    assert detected.kind is not None
    assert detected.kind.name == "status"


def test_mlx_vlm_that_wants_a_key_is_known_by_its_header() -> None:
    site = attrs.evolve(answers.MLX_VLM, pages={}, otherwise=page(401, {"detail": "no key"}, "mlx_vlm/0.7.10"))
    detected, asked = play(detect(), site)
    assert detected.kind is not None
    assert (detected.kind.name, asked) == ("mlx-vlm", ["/health"])
