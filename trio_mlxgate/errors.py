"""What the gate raises of its own; everything else is trio's.

::

    Exception
     ├── UnknownEndpoint       EndpointGates refuse what isn't listed (HTTP 404)
     └── GateRefused           the gate did not let this call in; nothing ran, nothing is held
          ├── QueueFull        too many wait already (HTTP 429)
          ├── Superseded       a newer call came with the same ``supersede`` key (HTTP 410)
          └── WaitTooLong      max_wait ended before a slot was granted (HTTP 503)

Beside these the gate raises what trio's own primitives raise: :class:`trio.TooSlowError` when a
``hold_timeout`` ended, :class:`trio.WouldBlock` from ``*_nowait``, :class:`RuntimeError` for misuse.
The modules ``trio_mlxgate.httpx`` and ``trio_mlxgate.httpx2`` raise subclasses that are also exceptions
of that HTTP client's family.
"""

from __future__ import annotations

from typing import ClassVar


class GateRefused(Exception):
    """The gate did not let a call in. Nothing of it ran and no slot is held: trying again later is safe."""

    status: ClassVar[int] = 503
    """The HTTP status with which a server would pass this refusal on."""

    code: ClassVar[str] = "gate_refused"
    """A short word for programs, as in OpenAI's ``error.code``."""

    retry_after: float | None
    """Seconds after which trying again has a real chance; None when the gate can't tell."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(GateRefused):
    """The queue holds as many waiters as the gate's ``max_waiting`` allows; the call was refused at once.

    ``retry_after`` is how long the call would have waited at the end of the queue: who comes again then, finds
    that all who stood before it have had their turn.
    """

    status: ClassVar[int] = 429
    code: ClassVar[str] = "queue_full"


class Superseded(GateRefused):
    """A newer call came with the same ``supersede`` key, so that this one's answer is wanted no more.

    Trying again would push out the newer call in turn. So it is never an exception of an HTTP client's family, its
    status is none that clients retry, and ``retry_after`` is always None.
    """

    status: ClassVar[int] = 410
    code: ClassVar[str] = "superseded"


class WaitTooLong(GateRefused):
    """The call waited for ``max_wait`` seconds and no slot was granted to it."""

    code: ClassVar[str] = "wait_too_long"


class UnknownEndpoint(LookupError):
    """The endpoint isn't listed with :class:`EndpointGates` that refuse what isn't. Nothing was sent.

    The program or its configuration must change: trying again is of no use.
    """

    status: ClassVar[int] = 404
    """The HTTP status with which a server would pass this on."""

    code: ClassVar[str] = "unknown_endpoint"
    """A short word for programs, as in OpenAI's ``error.code``."""

    retry_after: ClassVar[None] = None
    """Always None."""
