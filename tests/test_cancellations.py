"""Random cancellations lose nothing, in a few thousand of them; ``python -m tests.cancellations`` takes a million."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests import cancellations

if TYPE_CHECKING:
    from collections.abc import Mapping

FEW: Final = ["--cancellations", "3000"]

BREAKS: Final[Mapping[str, tuple[str, str]]] = {
    "a checkpoint between the grant and the body": (
        """
async def enter(slot):
    await Slot._acquire(slot)
    await trio.lowlevel.checkpoint()
    return slot
AsyncSlot.__aenter__ = enter
""",
        "LOST",
    ),
    "a waiter that is never woken": (
        """
wake = Gate._wake
Gate._wake = lambda gate, granted: wake(gate, granted[:1])
""",
        "LOST",
    ),
    "a call that is not counted": (
        """
Admission.turn_away = lambda admission, ticket: None
""",
        "LOST: fates",
    ),
    "memory that grows": (
        """
kept = []
turn_away = Admission.turn_away
def keep(admission, ticket):
    kept.append([len(kept)])
    turn_away(admission, ticket)
Admission.turn_away = keep
cancellations.ALLOWED = 100
""",
        "LOST: memory",
    ),
}
"""What breaks the gate, and what is said then."""


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


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_the_gate_is_noticed(name: str) -> None:
    # In a process of its own: what a broken gate leaves behind would turn up in tests that come later. With a limit: a
    # gate that raises in the middle of a cancellation may leave trio with tasks that nobody can end any more.
    how, said = BREAKS[name]
    program = f"""
import sys
import trio
from tests import cancellations
from tests.limits import ends_within
from trio_mlxgate.core.admission import Admission
from trio_mlxgate.gate import Gate
from trio_mlxgate.slots import AsyncSlot, Slot
{how}
with ends_within(40):
    status = cancellations.main({FEW!r})
sys.exit(status)
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout
