"""Which metrics a gate has, and what each event means for them; the libraries that take the numbers come below it."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.instrumentation.details import (
    Abandoned,
    CallDetails,
    Cancelled,
    CapacityChanged,
    Details,
    FellBack,
    GivenUp,
    Granted,
    Orphaned,
    Overdue,
    Queued,
    Rejected,
    Released,
    Starving,
    Superseded,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen
class Metric:
    """One metric, in OpenTelemetry's terms, from which Prometheus's follow."""

    name: str
    """Its name, with dots."""

    unit: str
    """``"s"``, or what is counted, in braces."""

    attributes: tuple[str, ...]
    """The names of its attributes, in the order in which their values are given."""

    description: str
    """One sentence, without the full stop."""


# "error.type", and the wait_time and use_time of a slot, are named as OpenTelemetry's conventions have them (for a pool
# of connections). Its "max" and "count" are not taken over: in Prometheus they would read as aggregations.
_GATE: Final = ("gate",)
_CALL: Final = ("gate", "priority")

CAPACITY: Final = Metric("mlxgate.slot.capacity", "{slot}", _GATE, "How many slots there are")
IN_FLIGHT: Final = Metric("mlxgate.slot.in_flight", "{slot}", _GATE, "How many slots are granted and not given back")
PENDING: Final = Metric("mlxgate.call.pending", "{call}", _CALL, "How many calls wait in the queue")
WAIT_TIME: Final = Metric(
    "mlxgate.slot.wait_time", "s", (*_CALL, "outcome"), "How long a call stood in the queue, until it left it"
)
USE_TIME: Final = Metric("mlxgate.slot.use_time", "s", _CALL, "How long a slot was held, from its grant on")
OUTCOMES: Final = Metric(
    "mlxgate.call.outcomes", "{call}", (*_CALL, "outcome", "error.type"), "How the calls for a slot ended"
)
STARVING: Final = Metric(
    "mlxgate.call.starving", "{call}", _CALL, "How many calls were reported because they waited for too long"
)
OVERDUE: Final = Metric(
    "mlxgate.slot.overdue", "{slot}", _CALL, "How many slots were reported because they were held too long"
)
ORPHANED: Final = Metric(
    "mlxgate.slot.orphaned", "{slot}", _CALL, "How many slots were taken back because their task had ended"
)
ABANDONED: Final = Metric(
    "mlxgate.call.abandoned", "{call}", _CALL, "How many requests were drained because their caller had left"
)
GIVEN_UP: Final = Metric("mlxgate.call.given_up", "{call}", _CALL, "How many of these had no answer within drain_limit")
FALLBACKS: Final = Metric(
    "mlxgate.call.fallbacks", "{call}", (*_CALL, "error.type"), "How many requests went to the fallback"
)

LEVELS: Final = (CAPACITY, IN_FLIGHT, PENDING)
"""What goes up and down."""

TIMES: Final = (WAIT_TIME, USE_TIME)
"""What is distributed; all in seconds."""

COUNTS: Final = (OUTCOMES, STARVING, OVERDUE, ORPHANED, ABANDONED, GIVEN_UP, FALLBACKS)
"""What only goes up."""

BUCKETS: Final = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0),
)
"""The upper bounds of the buckets, in seconds: from a gate that is idle to half an hour's batch.

The usual ones end at 10 seconds, where many a generation has hardly begun.
"""

_OUTCOME: Final[dict[type[Details], str]] = {
    Granted: "granted",
    Cancelled: "cancelled",
    Rejected: "rejected",
    Superseded: "superseded",
}

# Kinds of which no more is to be said than how many there were.
_COUNTED: Final[dict[type[Details], Metric]] = {
    Starving: STARVING,
    Overdue: OVERDUE,
    Orphaned: ORPHANED,
    Abandoned: ABANDONED,
    GivenUp: GIVEN_UP,
}

_KINDS: Final = frozenset({*_OUTCOME, *_COUNTED, Queued, Released, CapacityChanged, FellBack})


def number_as_label(priority: int) -> str:
    """The number itself, also of an enumeration that prints as a name."""
    return str(int(priority))


class MetricsHook(abc.ABC):
    """A hook that turns each event into changes of the metrics above; how those are stored is for its subclass.

    The events are all that it knows: it has no gate, so that nobody who reads the metrics can come to read a gate.
    """

    def __init__(self, priority_label: Callable[[int], str]) -> None:
        self._priority_label = priority_label

    def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
        """Whether any of these kinds changes a metric; the answer never changes."""
        return _always if _KINDS.intersection(kinds) else _never

    def __call__(self, details: Details) -> None:
        """Change the metrics that the event concerns. A kind that is unknown here changes none."""
        kind = type(details)
        if kind not in _KINDS:
            return
        gate = details.gate
        self._set(CAPACITY, details.capacity, gate)
        self._set(IN_FLIGHT, details.in_flight, gate)
        if isinstance(details, FellBack):
            self._add(FALLBACKS, 1, gate, self._priority_label(details.priority), details.reason)
        if not isinstance(details, CallDetails):
            return
        priority = self._priority_label(details.priority)
        outcome = _OUTCOME.get(kind)
        if outcome is not None:
            if details.queued:
                self._add(PENDING, -1, gate, priority)
            # The waits that were given up count too: without them a queue looks the better the more turn away from it.
            # Who was let in at once waited 0 seconds; who was turned away at once did not wait at all.
            if details.queued or kind is Granted:
                self._record(WAIT_TIME, details.waited, gate, priority, outcome)
            self._add(OUTCOMES, 1, gate, priority, outcome, _error_type(details))
        elif kind is Queued:
            self._add(PENDING, 1, gate, priority)
        elif kind is Released:
            self._record(USE_TIME, details.held, gate, priority)
        else:
            self._add(_COUNTED[kind], 1, gate, priority)

    @abc.abstractmethod
    def _set(self, metric: Metric, value: int, *attributes: str) -> None:
        """Let one of the levels have this value from now on."""

    @abc.abstractmethod
    def _add(self, metric: Metric, change: int, *attributes: str) -> None:
        """Change one of the levels or counts. An attribute that is "" is not there."""

    @abc.abstractmethod
    def _record(self, metric: Metric, seconds: float, *attributes: str) -> None:
        """Note one of the times."""


def _error_type(details: CallDetails) -> str:
    """Why the gate refused the call; "" if it did not: a cancellation comes from elsewhere."""
    if isinstance(details, Rejected):
        return details.reason
    return "superseded" if isinstance(details, Superseded) else ""


def _always() -> bool:
    return True


def _never() -> bool:
    return False
