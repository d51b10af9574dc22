"""What a gate tells its hooks, and what a hook is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen(kw_only=True)
class Details:
    """What each kind of details has: the gate, as it was after the step that is told."""

    gate: str
    """The name of the gate."""

    capacity: int
    """How many slots there are."""

    in_flight: int
    """How many slots are granted and not given back."""

    queue_length: int
    """How many calls wait."""


@attrs.frozen(kw_only=True)
class CallDetails(Details):
    """What the details of one call's step have besides."""

    priority: int
    """The priority of the call."""

    seq: int
    """The number of the call, counting up from 1 for the first that arrived at this gate; 0 if it never arrived."""

    queued: bool
    """Whether the call stands, or has stood, in the queue."""

    waited: float
    """For how many seconds the call has stood in the queue, so far or in all."""

    held: float
    """For how many seconds it has held its slot, so far or in all; 0.0 before the grant."""


@attrs.frozen(kw_only=True)
class Queued(CallDetails):
    """A call must wait and stands in the queue now."""


@attrs.frozen(kw_only=True)
class Granted(CallDetails):
    """A call was granted a slot."""


@attrs.frozen(kw_only=True)
class Released(CallDetails):
    """A slot was given back."""


@attrs.frozen(kw_only=True)
class Cancelled(CallDetails):
    """A call was cancelled before it was granted a slot: in the queue, or (``queued`` is false) when it asked."""


@attrs.frozen(kw_only=True)
class Rejected(CallDetails):
    """A call was refused."""

    reason: str
    """Why: ``"wait_too_long"``, ``"queue_full"``, ``"would_block"``, ``"closed"`` or ``"broken"``."""


@attrs.frozen(kw_only=True)
class Superseded(CallDetails):
    """A waiter was refused because a newer call came with the same ``supersede`` key."""

    by: int
    """The ``seq`` of that newer call, which was queued or granted just before."""


@attrs.frozen(kw_only=True)
class Starving(CallDetails):
    """A call has waited for the gate's ``starvation_warning`` seconds, and waits on."""


@attrs.frozen(kw_only=True)
class Overdue(CallDetails):
    """A detached slot is still held although its deadline has passed: nobody reads or closes its response."""


@attrs.frozen(kw_only=True)
class WaitsForParent(CallDetails):
    """A call waits, and all slots that it could have are owned by tasks above its own: told once for each call site.

    It goes on if the one above lets go first; if that waits for this task, both hang.
    """

    parent: str
    """The name of the nearest task above that owns a slot."""

    site: str
    """The place in the code that asked, as ``file:line``."""


@attrs.frozen(kw_only=True)
class Orphaned(CallDetails):
    """A task that owned a slot has ended without giving it back, and it was taken back, which is told next.

    If an open response has the slot on loan, it is taken back when that is closed.
    """

    task: str
    """The name of that task."""


@attrs.frozen(kw_only=True)
class Ended(Details):
    """The gate lets no newcomers in any more."""

    reason: str
    """``"draining"``: who waits is still served; ``"closed"`` and ``"broken"``: they were refused, which follows."""


@attrs.frozen(kw_only=True)
class Abandoned(CallDetails):
    """The caller of a request has left; the request is drained, and keeps its slot until its answer is there."""


@attrs.frozen(kw_only=True)
class GivenUp(CallDetails):
    """An abandoned request had no answer within its ``drain_limit``, or its transport had to be closed. Its slot is
    given back; the server may well work on."""


@attrs.frozen(kw_only=True)
class CapacityChanged(Details):
    """The capacity was set to another value; the calls that this let in, already counted here, follow."""

    before: int
    """The capacity until now."""


@attrs.frozen(kw_only=True)
class FellBack(Details):
    """A request goes to the fallback of its transport now: what it holds leaves for another server."""

    priority: int
    """The priority that the request had at the gate."""

    reason: str
    """Why: ``"unreachable"``, ``"wait_too_long"``, ``"queue_full"`` or ``"hold_timeout"``."""

    to: str
    """Where it goes, as ``https://api.example.com:8443``: no path, no secrets."""

    waited: float
    """For how many seconds it stood in the queue of the gate."""


KINDS: Final[tuple[type[Details], ...]] = (
    *(Queued, Granted, Released, Cancelled, Rejected, Superseded, Starving, Overdue, WaitsForParent, Orphaned),
    *(Abandoned, GivenUp, Ended, CapacityChanged, FellBack),
)
"""Every kind of details that a gate gives."""


class Hook(Protocol):
    """Who wants to be told. Called synchronously in the step that it tells of, so it must be quick and must not wait.

    It may use the gate (change the capacity, say): what comes of that is told afterwards, to all hooks in the same
    order. A hook that raises an :class:`Exception` is reported once through ``logging`` and not called again; the gate
    goes on. Anything else that it raises (SystemExit) comes out wherever the gate was at work.
    """

    def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
        """A function that says, at an event, whether this hook wants to be called for any of these kinds now.

        Asked for when the gate is made, once for each kind and for some together; what it returns is called at
        each event, so that a hook which wants nothing now costs one call.
        """
        ...

    def __call__(self, details: Details) -> None:
        """Take the details of one event."""
        ...
