"""The error tree is what its drawing says, and each error tells a server what to answer."""

from __future__ import annotations

import re

import pytest

from trio_mlxgate import GateRefused, QueueFull, Superseded, WaitTooLong, errors


def test_the_tree_is_as_drawn() -> None:
    defined = {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    assert errors.__doc__ is not None
    drawn = re.findall(r"(?:└──|├──) (\w+)", errors.__doc__)
    assert sorted(drawn) == sorted(defined)
    for name in ("QueueFull", "Superseded", "WaitTooLong"):
        assert defined[name].__bases__ == (GateRefused,)
    assert GateRefused.__bases__ == (Exception,)


def test_the_drawing_tells_the_right_status() -> None:
    assert errors.__doc__ is not None
    for name, status in re.findall(r"── (\w+) .*\(HTTP (\d+)\)", errors.__doc__):
        assert getattr(errors, name).status == int(status)


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (GateRefused, 503, "gate_refused"),
        (QueueFull, 429, "queue_full"),
        (Superseded, 410, "superseded"),
        (WaitTooLong, 503, "wait_too_long"),
    ],
)
def test_each_carries_status_code_and_retry_after(kind: type[GateRefused], status: int, code: str) -> None:
    error = kind("no", retry_after=2.5)
    assert (error.status, error.code, error.retry_after, str(error)) == (status, code, 2.5, "no")
    assert kind().retry_after is None
    with pytest.raises(TypeError):
        kind("no", 2.5)  # type: ignore[call-arg]


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in (GateRefused, QueueFull, Superseded, WaitTooLong)]
    assert len(set(codes)) == len(codes)
