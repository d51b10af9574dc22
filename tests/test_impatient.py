"""Impatient clients lose no slot, in a second or two; ``python -m tests.impatient`` takes a minute."""

from __future__ import annotations

import functools
import sys

import pytest

from tests import impatient
from tests.naive_gate import NaiveGate, NaiveSlot
from tests.testing.test_native_cancels import CountsTheCancelTwice, LosesTheGrant


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_nothing_is_lost(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    status = impatient.main(["--seconds", "1.5", "--loop", loop])
    output = capsys.readouterr().out
    assert status == 0, output
    assert output.endswith("0 slots lost\n")
    for way in ("by_cancel", "by_timeout", "by_wait_for", "by_scope"):
        assert f" {way}, of which" in output
        assert f" {way}, of which 0 gave up" not in output


@pytest.mark.parametrize(
    ("slot", "said"),
    [(LosesTheGrant, "LOST: "), (CountsTheCancelTwice, "a cancellation is left")],
)
def test_what_breaks_a_gate_is_noticed(
    slot: type[NaiveSlot], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(impatient, "ALIVE", 0.5)
    assert impatient.main(["--seconds", "10"], functools.partial(NaiveGate, 2, slot=slot)) == 1
    assert said in capsys.readouterr().out


@pytest.mark.skipif(sys.version_info < (3, 13), reason="there a naive gate lets cancellations out after their timeouts")
def test_a_gate_that_is_not_broken_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert impatient.main(["--seconds", "0.5"], functools.partial(NaiveGate, 2)) == 0
