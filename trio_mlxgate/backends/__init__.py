"""Servers behind gates: what each kind speaks, whether it is well, how busy it is, and which one to ask."""

from __future__ import annotations

from trio_mlxgate.backends.registry import BackendRegistry as BackendRegistry
from trio_mlxgate.backends.watch import HealthChanged as HealthChanged
from trio_mlxgate.core.load import LoadLevel as LoadLevel, LoadReport as LoadReport, LoadSettings as LoadSettings
