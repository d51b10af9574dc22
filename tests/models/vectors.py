"""Outcomes that were recorded from llama-swap, and how to read them.

The file is the project's own, or what the environment variable MLXGATE_VECTORS names: more of the same kinds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

OWN: Final = Path(__file__).with_name("llama_swap.json")
FILE: Final = Path(os.environ.get("MLXGATE_VECTORS") or OWN)

Vector: TypeAlias = "dict[str, Any]"
"""One recorded case, as its file has it."""


def load(file: Path = FILE) -> dict[str, list[Vector]]:
    """All cases by kind."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return {kind: cases for kind, cases in document.items() if kind != "meta"}


def vectors(kind: str) -> list[Vector]:
    """The cases of a kind; none, if the file has none of them."""
    return load().get(kind, [])


def each(kind: str) -> pytest.MarkDecorator:
    """Run a test for each case of a kind, as its argument ``vector``."""
    return pytest.mark.parametrize("vector", [pytest.param(case, id=case["name"]) for case in vectors(kind)])


def with_note(kind: str, word: str) -> list[str]:
    """The names of the cases in the note of which a word stands."""
    return [case["name"] for case in vectors(kind) if word in (case.get("note") or "")]
