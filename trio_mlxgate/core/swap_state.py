"""What the swap scheduler knows of each model, and the snapshots that it gives of it."""

from __future__ import annotations

import enum
import math
from collections import deque
from math import fsum
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trio_mlxgate.core.planning import Plan
    from trio_mlxgate.core.swap_options import ModelOptions
    from trio_mlxgate.core.swap_queue import ModelQueue

MEMORY: Final = 16
"""A mean is that of so many loads, or stops, of a model."""


class Phase(enum.Enum):
    """What the process of a model does, as far as it was told. All but OFF take memory."""

    OFF = "off"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    STUCK = "stuck"
    """It was told to stop as often as it may be, and did not."""


@attrs.define(eq=False)
class Swap:
    """A model that is to come, from the decision until it is ready or given up."""

    identity: int
    model: str
    evict: tuple[str, ...]
    plan: Plan
    loading_since: float | None = None
    """When its load began; None: what must go for it has not gone yet."""


@attrs.define(eq=False)
class Stop:
    """A process that was told to stop."""

    identity: int
    reason: str
    began: float
    attempt: int = 1
    retry_at: float = math.inf
    """When the next attempt is due; inf while one runs."""


@attrs.define(eq=False)
class ModelState:
    """One model. The scheduler alone changes it."""

    name: str
    options: ModelOptions
    queue: ModelQueue
    phase: Phase = Phase.OFF
    swap: Swap | None = None
    """The swap that brings it, if there is one. It may be ready all the while, if others have to go for it."""
    stop: Stop | None = None
    loaded_by: int = 0
    """The identity of the swap that loaded the process that is there; 0: it was there from the start."""
    draining: bool = False
    """Somebody unloads it: it stops when its last request has ended."""
    cutoff: float = -math.inf
    """The worst priority that it serves now; inf: it is open to all, -inf: to none."""
    turn: int = 0
    """How many of those who waited when it was loaded it has still to serve before it goes for an overdue claim."""
    kept_since: float | None = None
    """Since when other models have kept somebody of its queue waiting; None: nobody is kept."""
    ready_at: float = -math.inf
    last_grant: float = -math.inf
    last_end: float = -math.inf
    removed: bool = False
    barred_until: float = -math.inf
    """Until then it can't be loaded, since it has failed so often: who asks for it is refused."""
    barred_why: str = ""
    loads: deque[float] = attrs.field(factory=lambda: deque(maxlen=MEMORY))
    stops: deque[float] = attrs.field(factory=lambda: deque(maxlen=MEMORY))

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return self.queue.tasks_waiting

    @property
    def busy(self) -> bool:
        """Whether it must not be stopped: it has requests in flight, or is brought for somebody who waits."""
        return self.queue.in_flight > 0 or (self.swap is not None and self.waiting > 0)

    @property
    def idle_since(self) -> float:
        """Since when a ready model has had nothing to do."""
        return max(self.ready_at, self.last_end)

    def in_use(self, now: float, in_use_for: float) -> bool:
        """Whether somebody uses it: now, or so shortly before that it may well go on."""
        return self.queue.in_flight > 0 or self.waiting > 0 or now < self.last_end + in_use_for

    def used_at(self) -> float:
        """When it was last used. Of a busy one the last grant counts: so one that drains grows older while it does."""
        return self.last_grant if self.queue.in_flight else max(self.last_end, self.last_grant)


def mean(times: Collection[float]) -> float | None:
    """The mean of what was measured; None: nothing was."""
    return fsum(times) / len(times) if times else None


@attrs.frozen(kw_only=True)
class ModelStatistics:
    """A snapshot of one model. ``admitted + cancelled + rejected + waiting`` is the number of requests so far."""

    phase: Phase
    """What its process does."""

    swap: int | None
    """The identity of the swap that brings it; None: there is none."""

    in_flight: int
    """How many requests it serves."""

    waiting: int
    """How many requests wait for it."""

    draining: bool
    """Whether it is being unloaded and still serves."""

    admitted: int
    """How many requests have been granted."""

    cancelled: int
    """How many requests were cancelled before that."""

    rejected_by_reason: Mapping[str, int]
    """How many requests were refused for each reason."""

    mean_load: float | None
    """Seconds that it takes to load, the mean of the latest; None: not measured."""

    mean_stop: float | None
    """Seconds that it takes to stop, likewise."""


@attrs.frozen(kw_only=True)
class SwapStatistics:
    """A snapshot of all models."""

    models: Mapping[str, ModelStatistics]
    """Each model's."""

    waiting: int
    """How many requests wait, for all models."""

    in_flight: int
    """How many requests are served, by all models."""

    unknown: int
    """How many requests were refused that named no model of these."""

    loads: int
    """How many loads have begun."""

    stops: int
    """How many models were stopped, or their load given up, whatever for."""

    evictions: int
    """How many of these stops made room for another model."""
