"""The event loops that a test is run on, and the gates."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Final

import pytest

from trio_mlxgate import Gate
from trio_mlxgate.anyio import Gate as AnyioGate
from trio_mlxgate.dialects import ANYIO, TRIO
from trio_mlxgate.testing import BACKENDS

if TYPE_CHECKING:
    from trio_mlxgate.dialects import Dialect
    from trio_mlxgate.testing import Backend

_SKIPPED: Final = {
    "asyncio+uvloop": pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not here"),
    "asyncio+eager": pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python has no eager tasks"),
}


def on_backend(backend: Backend, *more: object, name: str = "") -> object:
    """A parameter of a test, ``(*more, backend)``, which is skipped where there is no such backend."""
    marks = [_SKIPPED[backend]] if backend in _SKIPPED else []
    return pytest.param(*more, backend, marks=marks, id=f"{name}{backend}")


ASYNCIO: Final = [on_backend(backend) for backend in BACKENDS if backend != "trio"]
"""Each of asyncio's backends."""

ALL: Final = [on_backend("trio"), *ASYNCIO]
"""Each backend."""

DRIVERS: Final = [
    on_backend("trio", Gate, name="Gate-"),
    *(on_backend(backend, AnyioGate, name="anyio.Gate-") for backend in BACKENDS),
]
"""Each driver of the gate, on each backend that it is for."""

FEW_DRIVERS: Final = pytest.mark.parametrize(
    ("driver", "backend"),
    [
        on_backend("trio", Gate, name="Gate-"),
        on_backend("asyncio", AnyioGate, name="anyio.Gate-"),
    ],
)
"""One on trio and one on asyncio, for tests that look for what all have in common."""


def dialect_of(driver: type[Gate]) -> Dialect:
    """In whose words a gate of this class raises errors."""
    return TRIO if driver is Gate else ANYIO
