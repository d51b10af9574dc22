"""Hooks: what a gate tells of each step, as frozen details, to whoever wants to listen. Logging is on by default."""

from __future__ import annotations

from trio_mlxgate.instrumentation.details import (
    KINDS as KINDS,
    Details as Details,
    Granted as Granted,
    Hook as Hook,
    Overdue as Overdue,
    Queued as Queued,
    Released as Released,
    Starving as Starving,
)
from trio_mlxgate.instrumentation.logging import LoggingHook as LoggingHook
