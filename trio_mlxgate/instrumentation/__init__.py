"""Hooks: what a gate tells of each step, as frozen details, to whoever wants to listen. Logging is on by default.

Metrics are one import further, since each needs a library of its own: ``trio_mlxgate.instrumentation.prometheus``
(extra ``prometheus``) and ``trio_mlxgate.instrumentation.opentelemetry`` (extra ``otel``).
"""

from __future__ import annotations

from trio_mlxgate.instrumentation.details import (
    KINDS as KINDS,
    Abandoned as Abandoned,
    CallDetails as CallDetails,
    Cancelled as Cancelled,
    CapacityChanged as CapacityChanged,
    Details as Details,
    Ended as Ended,
    FellBack as FellBack,
    GivenUp as GivenUp,
    Granted as Granted,
    Hook as Hook,
    Orphaned as Orphaned,
    Overdue as Overdue,
    Queued as Queued,
    Rejected as Rejected,
    Released as Released,
    Starving as Starving,
    Superseded as Superseded,
    WaitsForParent as WaitsForParent,
)
from trio_mlxgate.instrumentation.logging import LoggingHook as LoggingHook
