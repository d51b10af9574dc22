"""What a gate tells its hooks, and what a hook is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen(kw_only=True)
class Details:
    """What each kind of details has."""

    gate: str
    """The name of the gate."""

    priority: int
    """The priority of the call."""

    seq: int
    """The number of the call, counting up from 1 for the first that arrived at this gate."""

    queue_length: int
    """How many wait, after the step that is told."""

    waited: float
    """For how many seconds the call has stood in the queue, so far or in all."""

    held: float
    """For how many seconds it has held its slot, so far or in all; 0.0 before the grant."""


@attrs.frozen(kw_only=True)
class Queued(Details):
    """A call must wait and stands in the queue now."""


@attrs.frozen(kw_only=True)
class Granted(Details):
    """A call was granted a slot."""


@attrs.frozen(kw_only=True)
class Released(Details):
    """A slot was given back."""


@attrs.frozen(kw_only=True)
class Starving(Details):
    """A call has waited for the gate's ``starvation_warning`` seconds, and waits on."""


@attrs.frozen(kw_only=True)
class Overdue(Details):
    """A detached slot is still held although its deadline has passed: nobody reads or closes its response."""


KINDS: Final[tuple[type[Details], ...]] = (Queued, Granted, Released, Starving, Overdue)
"""Every kind of details that a gate gives."""


class Hook(Protocol):
    """Who wants to be told. Called synchronously in the step that it tells of, so it must be quick and must not wait.

    A hook that raises an :class:`Exception` is reported once through ``logging`` and not called again; the
    gate goes on.
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
