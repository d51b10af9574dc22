"""What the swap scheduler wants done: frozen, in the order in which it was decided. Whoever drives it does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

if TYPE_CHECKING:
    from trio_mlxgate.core.planning import Plan
    from trio_mlxgate.core.swap_queue import SwapRequest

UNKNOWN_MODEL: Final = "unknown_model"
"""Why a request was refused: no such model is configured, or it was taken out while the request waited."""

MODEL_UNLOADED: Final = "model_unloaded"
"""Why a request was refused: somebody unloaded its model while it waited."""

LOAD_FAILED: Final = "load_failed"
"""Why a request was refused: its model did not get ready."""

EVICTION_FAILED: Final = "eviction_failed"
"""Why a request was refused: a model that had to go for it did not stop, however often it was told to."""

PLAN_REFUSED: Final = "plan_refused"
"""Why a request was refused: a pinned model would have to go."""


EXITED: Final = "exited"
"""Why a process is to be stopped: it has ended by itself, and what is left of it is to be cleared away."""


@attrs.frozen
class Grant:
    """The request is in flight from now on, and its model is ready. Its end is told with ``on_serve_done``."""

    request: SwapRequest


@attrs.frozen
class Refuse:
    """The request is out of the queue and will not be served."""

    request: SwapRequest

    reason: str
    """One of this module's reasons, or of :mod:`trio_mlxgate.core.ticket`: ``"queue_full"``, ``"wait_too_long"``,
    ``"superseded"``, ``"would_block"``, ``"closed"`` (after the shutdown)."""

    detail: str = ""
    """More for people, such as the error of a load; "" if there is none."""

    retry_after: float | None = None
    """In how many seconds another try has a real chance; None: that isn't known."""


@attrs.frozen
class Queued:
    """The place of a watched request has changed."""

    request: SwapRequest

    position: int
    """From 1 in the order in which they are to be served; those whose model is being loaded stand in no queue."""

    estimated_wait: float | None
    """In how many seconds it is expected to be served; None while loads or requests have not been measured."""


@attrs.frozen
class Evicting:
    """A swap brings the model of a watched request, and waits until others have gone."""

    request: SwapRequest

    models: tuple[str, ...]
    """The models that go for it, and are still there. Empty: others are on their way out that it doesn't fit beside."""

    estimated_wait: float | None
    """In how many seconds the request is expected to be served; None while that is not measured."""


@attrs.frozen
class Loading:
    """The model of a watched request is being loaded."""

    request: SwapRequest

    estimated_wait: float | None
    """As of :class:`Evicting`."""


@attrs.frozen
class StartSwap:
    """It was decided that a model comes and others go: to be logged, with the plan. What is to be done follows."""

    identity: int
    """The number of this swap; no other swap or stop has it."""

    model: str

    evict: tuple[str, ...]
    """The models that go for it."""

    plan: Plan
    """Why just these."""


@attrs.frozen
class LoadModel:
    """Bring the model's process up until it is ready, then report ``on_swap_done(identity, ...)``.

    All that had to go for it has gone. If the process is up already, that it is so is the report.
    """

    identity: int
    """That of the swap."""

    model: str


@attrs.frozen
class StopModel:
    """Stop the model's process, then report ``on_stopped(identity, ...)`` once nothing is left of it."""

    identity: int
    """The number of this attempt to stop it."""

    model: str

    reason: str
    """``"evicted"``, ``"unwanted"`` (a load that nobody waits for), ``"unloaded"``, ``"ttl"``, ``"closed"``, or
    :data:`EXITED`."""

    attempt: int = 1
    """Which attempt this is; from the second on the ones before have failed."""


@attrs.frozen
class AbortLoad(StopModel):
    """As :class:`StopModel`, of a model that is being loaded: its load is given up, and a report of it is ignored."""

    load: int = 0
    """The identity of the swap whose load that is."""


@attrs.frozen
class DropSwap:
    """A swap ends before its load began. What had to go for it is stopped all the same."""

    identity: int
    model: str


@attrs.frozen
class ModelStopped:
    """The model's process has exited, as it was told to, or there was none: who waits for an unload may go on."""

    model: str

    error: str = ""
    """Not "": it was told to stop as often as it may be, and did not."""


@attrs.frozen
class Ring:
    """From now on ``on_tick`` is to be called at this time, and no longer at the one before."""

    at: float
    """In seconds of the driver's clock; inf: never."""


Effect: TypeAlias = (
    Grant
    | Refuse
    | Queued
    | Evicting
    | Loading
    | StartSwap
    | LoadModel
    | StopModel
    | AbortLoad
    | DropSwap
    | ModelStopped
    | Ring
)
"""All there are."""
