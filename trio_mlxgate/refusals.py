"""The error that each refusal of the core becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_mlxgate.core.ticket import BROKEN, CLOSED, QUEUE_FULL, SUPERSEDED
from trio_mlxgate.errors import QueueFull, Superseded, WaitTooLong
from trio_mlxgate.priority import MAX_PRIORITY

if TYPE_CHECKING:
    from trio_mlxgate.slots import Slot


def refusal(
    gate: str, ticket: Slot, *, waited: float, full: tuple[int, int, int] | None, retry_after: float | None
) -> Exception:
    """The error for a rejected call, which says what to do.

    Args:
      gate: the name of the gate.
      ticket: the call.
      waited: for how many seconds it waited.
      full: of a full queue the limit: from which priority on it counts, how many wait, how many may.
      retry_after: in how many seconds another attempt has a chance; None: not known.
    """
    if ticket.refusal == SUPERSEDED:
        return Superseded(
            f"a newer call to gate {gate!r} with supersede={ticket.supersede!r} came while this one waited"
        )
    if ticket.refusal == CLOSED:
        return ticket.dialect.closed(f"gate {gate!r} is closed, and lets nobody in any more")
    if ticket.refusal == BROKEN:
        return ticket.dialect.broken(
            f"gate {gate!r} is strict, and a task ended without giving its slot back: see its log for the task's name"
        )
    again = "" if retry_after is None else f"; try again in {retry_after:.3g} s"
    if ticket.refusal == QUEUE_FULL:
        message = f"the queue of gate {gate!r} is full for a call of priority {ticket.priority}"
        if full is not None:
            key, waiting, limit = full
            whom = "" if key == -MAX_PRIORITY else f" of priority {key} or worse"
            message += f": {waiting}{whom} wait, and max_waiting allows {limit}"
        return QueueFull(message + again, retry_after=retry_after)
    if ticket.max_wait:
        message = f"no slot of gate {gate!r} within max_wait: waited {waited:.3g} s{again}"
    else:
        message = f"no slot of gate {gate!r} is free, and max_wait=0 leaves no time to wait{again}"
    return WaitTooLong(message, retry_after=retry_after)
