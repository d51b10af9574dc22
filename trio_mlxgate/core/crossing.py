"""A call that crosses from one run to another: what each of the two sides knows of it, and does at each event.

The *owner* is the run to which the gate is bound; it alone asks the core. The *caller* is any other run. They tell
each other by messages, which arrive in the order in which they were sent; but those of the two directions cross, and
either run may end at any time. So each side has a table of its own: what it hears that is of no use any more stands
there, too, and what doesn't stand there can't happen, and raises.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping


class CallerState(enum.Enum):
    """What the caller's run knows of its call. RETURNED, LOST, GIVEN_UP, REFUSED and OWNER_GONE are ends."""

    ASKED = "asked"
    GRANTED = "granted"
    """The grant is here, and the task has not gone on yet."""

    TAKEN = "taken"
    """The task, or the object, has the slot."""

    RETURNED = "returned"
    LOST = "lost"
    """The task has ended without giving the slot back."""

    GIVEN_UP = "given up"
    REFUSED = "refused"
    OWNER_GONE = "left alone by the owner"


class CallerEvent(enum.Enum):
    """What can happen to a call in the caller's run."""

    HEARS_GRANT = "hear of a grant"
    HEARS_REFUSAL = "hear of a refusal"
    HEARS_END = "hear of the owner's end"
    TAKES = "be taken"
    LEAVES = "be left"
    CANCELS = "be cancelled"
    IS_LOST = "be lost"


class CallerDoes(enum.Enum):
    """What the caller's run does then."""

    NOTHING = "nothing"
    WAKE = "wake the task"
    SAY_GIVEN_UP = "say that it wants the slot no more"
    SAY_RETURNED = "say that the slot is given back"
    SAY_LOST = "say that nobody will give it back"


class OwnerState(enum.Enum):
    """What the owner's run knows of a call. RETURNED, ORPHANED, GIVEN_UP, REFUSED and LEFT_ALONE are ends."""

    WAITING = "waiting"
    GRANTED = "granted"
    RETURNED = "returned"
    ORPHANED = "orphaned"
    """Nobody was left who would have given the slot back: it was taken back."""

    GIVEN_UP = "given up"
    REFUSED = "refused"
    LEFT_ALONE = "left alone"
    """The owner's run has ended while it waited."""


class OwnerEvent(enum.Enum):
    """What can happen to a call in the owner's run."""

    CORE_GRANTS = "be granted"
    CORE_REFUSES = "be refused"
    HEARS_GIVEN_UP = "be given up"
    HEARS_RETURNED = "be given back"
    HEARS_LOST = "be lost"
    SEES_CALLER_GONE = "lose its caller"
    RUN_ENDS = "lose its owner"


class OwnerDoes(enum.Enum):
    """What the owner's run does then."""

    NOTHING = "nothing"
    SAY_GRANTED = "say that it is granted"
    SAY_REFUSED = "say that it is refused"
    SAY_END = "say that the owner's run has ended"
    LET_GO = "leave the queue, or give back what was granted"
    TAKE_BACK = "take the slot back, and report that"


_C, _Ce, _Cd = CallerState, CallerEvent, CallerDoes
_O, _Oe, _Od = OwnerState, OwnerEvent, OwnerDoes

CALLER: Final[Mapping[tuple[CallerState, CallerEvent], tuple[CallerState, CallerDoes]]] = MappingProxyType(
    {
        (_C.ASKED, _Ce.HEARS_GRANT): (_C.GRANTED, _Cd.WAKE),
        (_C.ASKED, _Ce.HEARS_REFUSAL): (_C.REFUSED, _Cd.WAKE),
        (_C.ASKED, _Ce.HEARS_END): (_C.OWNER_GONE, _Cd.WAKE),
        (_C.ASKED, _Ce.CANCELS): (_C.GIVEN_UP, _Cd.SAY_GIVEN_UP),
        (_C.GRANTED, _Ce.TAKES): (_C.TAKEN, _Cd.NOTHING),
        # Its coroutine was thrown away in between.
        (_C.GRANTED, _Ce.CANCELS): (_C.RETURNED, _Cd.SAY_RETURNED),
        (_C.TAKEN, _Ce.LEAVES): (_C.RETURNED, _Cd.SAY_RETURNED),
        (_C.TAKEN, _Ce.IS_LOST): (_C.LOST, _Cd.SAY_LOST),
        # The answers have crossed with the cancellation; who is told of that undoes them.
        (_C.GIVEN_UP, _Ce.HEARS_GRANT): (_C.GIVEN_UP, _Cd.NOTHING),
        (_C.GIVEN_UP, _Ce.HEARS_REFUSAL): (_C.GIVEN_UP, _Cd.NOTHING),
        (_C.GIVEN_UP, _Ce.CANCELS): (_C.GIVEN_UP, _Cd.NOTHING),
        # An answer that was on its way when the caller saw that the owner's run was over.
        (_C.OWNER_GONE, _Ce.HEARS_GRANT): (_C.OWNER_GONE, _Cd.NOTHING),
        (_C.OWNER_GONE, _Ce.HEARS_REFUSAL): (_C.OWNER_GONE, _Cd.NOTHING),
        (_C.OWNER_GONE, _Ce.CANCELS): (_C.OWNER_GONE, _Cd.NOTHING),
        (_C.REFUSED, _Ce.CANCELS): (_C.REFUSED, _Cd.NOTHING),
        # Holders are not interrupted, and who is done is not touched.
        **{
            (state, _Ce.HEARS_END): (state, _Cd.NOTHING)
            for state in (_C.GRANTED, _C.TAKEN, _C.RETURNED, _C.LOST, _C.GIVEN_UP, _C.REFUSED, _C.OWNER_GONE)
        },
    }
)
"""The caller's side."""

OWNER: Final[Mapping[tuple[OwnerState, OwnerEvent], tuple[OwnerState, OwnerDoes]]] = MappingProxyType(
    {
        (_O.WAITING, _Oe.CORE_GRANTS): (_O.GRANTED, _Od.SAY_GRANTED),
        (_O.WAITING, _Oe.CORE_REFUSES): (_O.REFUSED, _Od.SAY_REFUSED),
        (_O.WAITING, _Oe.HEARS_GIVEN_UP): (_O.GIVEN_UP, _Od.LET_GO),
        (_O.WAITING, _Oe.SEES_CALLER_GONE): (_O.GIVEN_UP, _Od.LET_GO),
        (_O.WAITING, _Oe.RUN_ENDS): (_O.LEFT_ALONE, _Od.SAY_END),
        (_O.GRANTED, _Oe.HEARS_RETURNED): (_O.RETURNED, _Od.LET_GO),
        # The grant has crossed with the cancellation.
        (_O.GRANTED, _Oe.HEARS_GIVEN_UP): (_O.GIVEN_UP, _Od.LET_GO),
        (_O.GRANTED, _Oe.HEARS_LOST): (_O.ORPHANED, _Od.TAKE_BACK),
        (_O.GRANTED, _Oe.SEES_CALLER_GONE): (_O.ORPHANED, _Od.TAKE_BACK),
        # The caller was seen to be gone, and something of it comes late: the collector has found its coroutines.
        (_O.GIVEN_UP, _Oe.HEARS_GIVEN_UP): (_O.GIVEN_UP, _Od.NOTHING),
        (_O.ORPHANED, _Oe.HEARS_GIVEN_UP): (_O.ORPHANED, _Od.NOTHING),
        (_O.ORPHANED, _Oe.HEARS_RETURNED): (_O.ORPHANED, _Od.NOTHING),
        (_O.ORPHANED, _Oe.HEARS_LOST): (_O.ORPHANED, _Od.NOTHING),
        # The cancellation has crossed with the answer.
        (_O.REFUSED, _Oe.HEARS_GIVEN_UP): (_O.REFUSED, _Od.NOTHING),
        (_O.LEFT_ALONE, _Oe.HEARS_GIVEN_UP): (_O.LEFT_ALONE, _Od.NOTHING),
    }
)
"""The owner's side."""

_S = TypeVar("_S", CallerState, OwnerState)
_E = TypeVar("_E", CallerEvent, OwnerEvent)
_D = TypeVar("_D", CallerDoes, OwnerDoes)


def caller_step(state: CallerState, event: CallerEvent) -> tuple[CallerState, CallerDoes]:
    """The next state of the caller's side, and what it does. RuntimeError: that can't happen."""
    return _step(CALLER, state, event)


def owner_step(state: OwnerState, event: OwnerEvent) -> tuple[OwnerState, OwnerDoes]:
    """The next state of the owner's side, and what it does. RuntimeError: that can't happen."""
    return _step(OWNER, state, event)


def _step(table: Mapping[tuple[_S, _E], tuple[_S, _D]], state: _S, event: _E) -> tuple[_S, _D]:
    try:
        return table[state, event]
    except KeyError:
        raise RuntimeError(f"a call that is {state.value} can't {event.value}") from None


OPEN: Final = frozenset({OwnerState.WAITING, OwnerState.GRANTED})
"""The states of the owner's side that are no ends."""
