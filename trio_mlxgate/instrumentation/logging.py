"""The gate's log lines: enqueue and release at DEBUG, dispatch at INFO, what needs a look at WARNING."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.instrumentation.details import (
    Abandoned,
    CallDetails,
    Cancelled,
    CapacityChanged,
    Details,
    Ended,
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
    WaitsForParent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGER_NAME: Final = "trio_mlxgate.gate"
"""The logger that :class:`LoggingHook` writes to by default."""


@attrs.frozen(kw_only=True)
class _Line:
    level: int
    event: str
    wait_ms: bool = False
    queue_length: bool = False
    duration_ms: bool = False
    more: tuple[str, ...] = ()


_LINES: Final[dict[type[Details], _Line]] = {
    Queued: _Line(level=logging.DEBUG, event="enqueue", queue_length=True),
    Granted: _Line(level=logging.INFO, event="dispatch", wait_ms=True, queue_length=True),
    Released: _Line(level=logging.DEBUG, event="release", duration_ms=True),
    Cancelled: _Line(level=logging.INFO, event="cancel", wait_ms=True, queue_length=True),
    Rejected: _Line(level=logging.INFO, event="reject", wait_ms=True, queue_length=True, more=("reason",)),
    Superseded: _Line(level=logging.INFO, event="supersede", wait_ms=True, queue_length=True, more=("by",)),
    Starving: _Line(level=logging.WARNING, event="starving", wait_ms=True, queue_length=True),
    Overdue: _Line(level=logging.WARNING, event="overdue", duration_ms=True),
    WaitsForParent: _Line(level=logging.WARNING, event="waits_for_parent", more=("parent", "site")),
    Orphaned: _Line(level=logging.ERROR, event="orphan", duration_ms=True, more=("task",)),
    Ended: _Line(level=logging.INFO, event="end", queue_length=True, more=("reason",)),
    Abandoned: _Line(level=logging.INFO, event="abandon", duration_ms=True),
    GivenUp: _Line(level=logging.WARNING, event="give_up", duration_ms=True),
    CapacityChanged: _Line(level=logging.INFO, event="capacity", queue_length=True, more=("before", "capacity")),
    FellBack: _Line(level=logging.WARNING, event="fallback", wait_ms=True, more=("reason", "to")),
}


class LoggingHook:
    """Writes each event to a logger of the standard library; a level that is off costs one look-up.

    The numbers are also attributes of the log record, under the names that stand in the message.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger if logger is not None else logging.getLogger(LOGGER_NAME)
        """The logger that is written to."""

    def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
        """Whether the logger lets the level of any of these kinds through, asked anew at each event."""
        enabled, level = self.logger.isEnabledFor, max(_LINES[kind].level for kind in kinds)

        # Not functools.partial: the interpreter calls a Python function from another one without leaving its loop.
        def interested() -> bool:
            return enabled(level)

        return interested

    def __call__(self, details: Details) -> None:
        """Write one line."""
        line = _LINES[type(details)]
        fields: dict[str, object] = {"gate": details.gate}
        if isinstance(details, CallDetails | FellBack):
            fields["priority"] = details.priority
            if isinstance(details, CallDetails):
                fields["seq"] = details.seq
            if line.wait_ms:
                fields["wait_ms"] = round(details.waited * 1000, 1)
            if isinstance(details, CallDetails) and line.duration_ms:
                fields["duration_ms"] = round(details.held * 1000, 1)
        if line.queue_length:
            fields["queue_length"] = details.queue_length
        for name in line.more:
            fields[name] = getattr(details, name)
        text = " ".join(f"{name}=%s" for name in fields)
        # Who was cancelled when it asked has left no gap anywhere; who stood in the queue has waited in vain.
        quiet = isinstance(details, Cancelled) and not details.queued
        self.logger.log(logging.DEBUG if quiet else line.level, f"{line.event} {text}", *fields.values(), extra=fields)
