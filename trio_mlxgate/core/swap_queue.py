"""The requests of one model: a gate's own core, opened and shut by the scheduler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trio_mlxgate.core.admission import Admission
from trio_mlxgate.core.estimates import Forecast
from trio_mlxgate.core.ticket import SUPERSEDED, Ticket
from trio_mlxgate.priority import DEFAULT_PRIORITY, check_priority

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.core.swap_options import ModelOptions


class SwapRequest(Ticket):
    """One request for a model. Its maker says what is asked for; from its arrival on the scheduler alone changes it.

    A driver may make a subclass of it that keeps what the driver needs, such as the task to be woken.

    Args:
      model: the model's name.
      priority: None is that of the model's options.
      hold_timeout, max_wait, supersede: as of a gate; the key of ``supersede`` holds among the requests of the model.
      watched: whether its progress is told: :class:`~trio_mlxgate.core.swap_effects.Queued`,
        :class:`~trio_mlxgate.core.swap_effects.Evicting` and :class:`~trio_mlxgate.core.swap_effects.Loading`.

    Raises:
      TypeError, ValueError: the priority is none.
    """

    __slots__ = ("model", "number", "own_priority", "position", "told_of", "watched")

    def __init__(
        self,
        model: str,
        priority: int | None = None,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        watched: bool = False,
    ) -> None:
        super().__init__(
            DEFAULT_PRIORITY if priority is None else check_priority(priority),
            hold_timeout=hold_timeout,
            max_wait=max_wait,
            supersede=supersede,
        )
        self.model = model
        self.own_priority = priority is not None
        self.watched = watched
        self.number = 0
        """The number of its arrival, among those of all models."""
        self.position = 0
        """The position that was last told; 0: none was, or it stands in no queue."""
        self.told_of: tuple[int, bool] | None = None
        """Of which swap it was last told, and whether that was loading; None: none brings its model."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} for {self.model} priority={self.priority} {self.state.value}>"


class ModelQueue(Admission[SwapRequest]):
    """The admission of one model: what it serves, and who waits for it, whether or not it is loaded.

    It is *open* when its capacity is the model's limit, and *shut* at capacity 0: then those who are in flight go on
    and all others wait. In between, :meth:`let_in` serves some of them. So there is no other queue than this one.
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(0)
        self.limit = options.slots
        self._bound = math.inf if options.max_waiting is None else options.slots + options.max_waiting

    def full_for(self, request: SwapRequest) -> bool:
        """Whether as many are with the model as may be, in flight and waiting; one that it supersedes doesn't count."""
        older = None if request.supersede is None else self._keys.get(request.supersede)
        return self.in_flight + self._line.length - (older is not None) >= self._bound

    def head(self) -> SwapRequest:
        """The waiter that goes first. Raises StopIteration if nobody waits."""
        return next(iter(self._line))

    def waiters(self) -> list[SwapRequest]:
        """All who wait, in the order in which they are to be served."""
        return list(self._line)

    def oldest_arrival(self) -> float:
        """When that waiter came that came first. Raises StopIteration if nobody waits."""
        return next(iter(self._unreported)).arrived_at

    def waiting_up_to(self, cutoff: float) -> int:
        """How many wait at the head of the line before the first whose priority is worse than ``cutoff``."""
        if cutoff == math.inf or not self._line.length:
            return self._line.length
        return sum(size for priority, size in self._line.sizes().items() if priority <= cutoff)

    def serve_at_once(self, request: SwapRequest, now: float) -> SwapRequest | None:
        """A request arrives and is served, whoever waits: all of them are to wait on. Returns whom it superseded."""
        older = None if request.supersede is None else self._keys.get(request.supersede)
        if older is not None:
            self._leave(older)
            self._reject(older, SUPERSEDED)
        self._seq = request.seq = self._seq + 1
        request.arrived_at = now
        self._grant(request, now)
        return older

    def open(self, now: float) -> list[SwapRequest]:
        """From now on all are served, as many at once as the limit allows. Returns whom that let in."""
        return self.set_capacity(self.limit, now) if self.capacity != self.limit or self._line.length else []

    def let_in(self, count: int, now: float) -> list[SwapRequest]:
        """Serve so many from the head of the line, as far as the limit allows; the others wait on. Returns them."""
        allowed = min(self.limit, self.in_flight + count)
        granted = self.set_capacity(allowed, now) if allowed > self.in_flight else []
        self.capacity = 0
        return granted

    def shut(self) -> None:
        """From now on nobody is served any more, until somebody opens it."""
        self.capacity = 0

    def turn_down(self, request: SwapRequest, reason: str, now: float) -> None:
        """A request arrives and is refused."""
        request.arrived_at = now
        self._reject(request, reason)

    def refuse_waiting(self, reason: str) -> list[SwapRequest]:
        """All who wait are refused; who comes later isn't. Returns them, best rank first."""
        refused = list(self._line)
        for request in refused:
            self._leave(request)
            self._reject(request, reason)
        return refused

    def remaining(self, now: float) -> float | None:
        """In how many seconds all that is in flight is expected to have ended; None: nothing is measured."""
        if not self._held:
            return 0.0
        left = 0.0
        for request in self._held:
            mean = self._holds.mean(request.priority)
            if mean is None:
                return None
            left = max(left, mean - (now - request.granted_at))
        return left

    def service(self, priority: int, waiters: int) -> float | None:
        """How many seconds the model takes for so many requests of a priority; None: nothing is measured."""
        mean = self._holds.mean(priority)
        return None if mean is None else mean * math.ceil(waiters / self.limit)

    def wait_inside(self, request: SwapRequest, now: float) -> float | None:
        """In how many seconds a waiter would be served if the model were open from now on; None: nothing is measured.

        Who has a slot waiting for it is served at once, whatever is measured.
        """
        return self._wait_behind(self._line.ahead_of(request.place, request.priority), now)

    def wait_at_end(self, priority: int, now: float) -> float | None:
        """As :meth:`wait_inside`, for one who would come now."""
        return self._wait_behind({other: size for other, size in self._line.sizes().items() if other <= priority}, now)

    def _wait_behind(self, ahead: dict[int, int], now: float) -> float | None:
        if sum(ahead.values()) < self.limit - self.in_flight:
            return 0.0
        holders = [(holder.priority, now - holder.granted_at) for holder in self._held]
        return Forecast(self._holds, self.limit, holders).wait(ahead)
