"""Random cancellations lose nothing, in a few thousand of them; ``python -m tests.cancellations`` takes a million."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests import cancellations
from trio_mlxgate.core.admission import Admission
from trio_mlxgate.gate import Gate
from trio_mlxgate.slots import AsyncSlot, Slot

if TYPE_CHECKING:
    import pytest

FEW = ["--cancellations", "3000"]


def test_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    status = cancellations.main(FEW)
    output = capsys.readouterr().out
    assert status == 0, output
    assert "nothing was lost" in output
    for place in (
        cancellations.BEFORE_ASKING,
        cancellations.ASKING,
        cancellations.WAITING,
        cancellations.JUST_GRANTED,
        cancellations.IN_THE_BODY,
        cancellations.WATCHING,
    ):
        assert f" {place}\n" in output


def test_a_checkpoint_between_the_grant_and_the_body_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def enter(slot: AsyncSlot) -> Slot:
        await Slot._acquire(slot)
        await trio.lowlevel.checkpoint()
        return slot

    monkeypatch.setattr(AsyncSlot, "__aenter__", enter)
    assert cancellations.main(FEW) == 1
    assert "LOST" in capsys.readouterr().out


def test_a_waiter_that_is_never_woken_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wake = Gate._wake

    def wake_one(gate: Gate, granted: list[Slot]) -> None:
        wake(gate, granted[:1])

    monkeypatch.setattr(Gate, "_wake", wake_one)
    assert cancellations.main(FEW) == 1
    assert "LOST: calls wait for ever" in capsys.readouterr().out


def test_a_call_that_is_not_counted_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def turn_away(admission: Admission[Slot], ticket: Slot) -> None:
        pass

    monkeypatch.setattr(Admission, "turn_away", turn_away)
    assert cancellations.main(FEW) == 1
    assert "LOST: fates" in capsys.readouterr().out


def test_memory_that_grows_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[object] = []
    turn_away = Admission.turn_away

    def keep(admission: Admission[Slot], ticket: Slot) -> None:
        kept.append([len(kept)])
        turn_away(admission, ticket)

    monkeypatch.setattr(Admission, "turn_away", keep)
    monkeypatch.setattr(cancellations, "ALLOWED", 100)
    assert cancellations.main(FEW) == 1
    assert "LOST: memory" in capsys.readouterr().out
