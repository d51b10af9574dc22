"""An adapter whose server does as it is told, on the virtual clock."""

from __future__ import annotations

import math
from typing import Any, Final, Self

import pytest
import trio

from tests.backends.scripted_server import Answer, ScriptedTransport
from trio_mlxgate import BackendError
from trio_mlxgate.backends import ModelAdapter
from trio_mlxgate.core.readings import OwnWork

URL: Final = "http://macmini.test:8080/v1"


def adapter(*answers: Answer, **more: Any) -> tuple[ModelAdapter, ScriptedTransport]:
    script = ScriptedTransport(list(answers))
    return ModelAdapter(base_url=URL, name="mini", transport=script, **more), script


class Timed:
    """How many seconds it takes until a block ends."""

    def __enter__(self) -> Self:
        self._start = trio.current_time()
        self.seconds = math.nan
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = trio.current_time() - self._start


async def fails(model: ModelAdapter, kind: type[BackendError], after: float, **more: Any) -> BackendError:
    """Ask, and see that it fails so, then, and leaves nothing behind."""
    with Timed() as timed, pytest.raises(BackendError) as caught:
        await model.chat("hi", **more)
    assert type(caught.value) is kind
    assert timed.seconds == pytest.approx(after, abs=1e-9)
    assert caught.value.backend == "mini"
    assert str(caught.value).startswith("mini: ")
    assert model.own_work == OwnWork()
    assert isinstance(model.transport, ScriptedTransport)
    assert model.transport.open == 0
    return caught.value
