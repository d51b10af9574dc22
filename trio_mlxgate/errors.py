"""What the gate raises of its own; everything else is trio's.

::

    Exception
     ├── UnknownEndpoint       EndpointGates refuse what isn't listed (HTTP 404)
     ├── GateRefused           the gate did not let this call in; nothing ran, nothing is held
     │    ├── PlanRefused      a pinned model would have to go for the one that is asked for (HTTP 503)
     │    ├── QueueFull        too many wait already (HTTP 429)
     │    ├── Superseded       a newer call came with the same ``supersede`` key (HTTP 410)
     │    └── WaitTooLong      max_wait ended before a slot was granted (HTTP 503)
     └── BackendError          a server behind a gate gave no good answer (HTTP 502)
          ├── BackendUnavailable    nobody is there now who could be asked (HTTP 503)
          ├── BackendUnreachable    no connection, or it broke before the first byte of an answer
          ├── BackendRefused        the server answered with an error
          ├── UnknownModel          a model that this server doesn't have; it was not asked (HTTP 404)
          ├── MalformedAnswer       the answer is not what such a server sends
          ├── TruncatedAnswer       the answer ended before its end
          └── BackendTooSlow        a limit ended; also a trio.TooSlowError (HTTP 504)
               ├── ConnectTooSlow       that of the connection
               ├── FirstTokenTooSlow    that of the silence before the first token
               ├── TokenGapTooLong      that of the silence between two tokens
               └── AnswerTooSlow        that of the whole: ``hold_timeout``

Those of models that are started and stopped are in :mod:`trio_mlxgate.models.errors`, and are BackendErrors.

Beside these the gate raises what trio's own primitives raise: :class:`trio.TooSlowError` when a
``hold_timeout`` ended, :class:`trio.WouldBlock` from ``*_nowait``, :class:`RuntimeError` for misuse.
The modules ``trio_mlxgate.httpx`` and ``trio_mlxgate.httpx2`` raise subclasses that are also exceptions
of that HTTP client's family.
"""

from __future__ import annotations

from typing import ClassVar

import trio


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


class PlanRefused(GateRefused):
    """A pinned model would have to go for the one that is asked for. Nothing was stopped.

    Trying again has a chance once somebody has unloaded the pinned model by hand; ``retry_after`` is None.
    """

    code: ClassVar[str] = "plan_refused"

    target: str
    """The model that was asked for."""

    reason: str
    """Why not, in a sentence."""

    pinned: tuple[str, ...]
    """The pinned models that are in its way."""

    def __init__(self, reason: str = "", *, target: str = "", pinned: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.target = target
        self.pinned = pinned


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


class BackendError(Exception):
    """A server behind a gate gave no good answer. The slot of the call has been given back."""

    status: ClassVar[int] = 502
    """The HTTP status with which a server would pass this on."""

    code: ClassVar[str] = "backend_error"
    """A short word for programs, as in OpenAI's ``error.code``."""

    backend: str
    """The name of the backend."""

    retry_after: float | None
    """Seconds after which trying again has a real chance; None when nothing is known."""

    def __init__(self, message: str = "", *, backend: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.backend = backend
        self.retry_after = retry_after


class BackendUnavailable(BackendError):
    """Nobody is there now who could be asked: all that could serve are down, or refuse. Nothing was sent."""

    status: ClassVar[int] = 503
    code: ClassVar[str] = "backend_unavailable"


class BackendUnreachable(BackendError):
    """There is no connection to the server, or it broke before the first byte of an answer."""

    code: ClassVar[str] = "backend_unreachable"

    refused: bool = False
    """Nothing listens there, or its name leads nowhere: there never was a connection."""


class BackendRefused(BackendError):
    """The server answered with an error."""

    code: ClassVar[str] = "backend_refused"

    upstream_status: int
    """The HTTP status of the server's answer."""

    upstream_message: str
    """What the server said, cut to a readable length."""

    def __init__(
        self,
        message: str = "",
        *,
        backend: str = "",
        retry_after: float | None = None,
        upstream_status: int = 0,
        upstream_message: str = "",
    ) -> None:
        super().__init__(message, backend=backend, retry_after=retry_after)
        self.upstream_status = upstream_status
        self.upstream_message = upstream_message


class UnknownModel(BackendError, LookupError):
    """The request names a model that isn't this backend's. The server was not asked: it might drop its own for it."""

    status: ClassVar[int] = 404
    code: ClassVar[str] = "unknown_model"


class MalformedAnswer(BackendError):
    """What the server sent is not what servers of OpenAI's API send."""

    code: ClassVar[str] = "malformed_answer"


class TruncatedAnswer(BackendError):
    """The answer ended before its end: no ``finish_reason`` came, whatever HTTP says."""

    code: ClassVar[str] = "truncated_answer"

    text: str
    """What had come until then."""

    def __init__(
        self, message: str = "", *, backend: str = "", retry_after: float | None = None, text: str = ""
    ) -> None:
        super().__init__(message, backend=backend, retry_after=retry_after)
        self.text = text


class BackendTooSlow(BackendError, trio.TooSlowError, TimeoutError):
    """A limit of time ended, all of which lie inside the slot: waiting for it uses none of them."""

    status: ClassVar[int] = 504
    code: ClassVar[str] = "backend_too_slow"

    text: str
    """What had come until then; empty before the first token."""

    def __init__(
        self, message: str = "", *, backend: str = "", retry_after: float | None = None, text: str = ""
    ) -> None:
        super().__init__(message, backend=backend, retry_after=retry_after)
        self.text = text


class ConnectTooSlow(BackendTooSlow):
    """No connection within :attr:`ChatLimits.connect`: the machine is off, or far too busy."""

    code: ClassVar[str] = "connect_too_slow"


class FirstTokenTooSlow(BackendTooSlow):
    """The server was silent for :attr:`ChatLimits.first_token` seconds before its first token."""

    code: ClassVar[str] = "first_token_too_slow"


class TokenGapTooLong(BackendTooSlow):
    """The server was silent for :attr:`ChatLimits.gap` seconds after a token."""

    code: ClassVar[str] = "token_gap_too_long"


class AnswerTooSlow(BackendTooSlow):
    """``hold_timeout`` ended before the answer did."""

    code: ClassVar[str] = "answer_too_slow"
