"""Servers behind gates: what each kind speaks, whether it is well, how busy it is, and which one to ask."""

from __future__ import annotations

from trio_mlxgate.backends.adapter import ModelAdapter as ModelAdapter
from trio_mlxgate.backends.calls import RoleStream as RoleStream
from trio_mlxgate.backends.chat_stream import ChatStream as ChatStream
from trio_mlxgate.backends.gates import current_endpoint_gates as current_endpoint_gates
from trio_mlxgate.backends.limits import ChatLimits as ChatLimits
from trio_mlxgate.backends.registry import BackendRegistry as BackendRegistry
from trio_mlxgate.backends.watch import HealthChanged as HealthChanged
from trio_mlxgate.core.completions import (
    Completion as Completion,
    Delta as Delta,
    ToolCall as ToolCall,
    ToolCallDelta as ToolCallDelta,
    Usage as Usage,
)
from trio_mlxgate.core.load import LoadLevel as LoadLevel, LoadReport as LoadReport, LoadSettings as LoadSettings
from trio_mlxgate.core.readings import Health as Health, OwnWork as OwnWork, Reading as Reading, Status as Status
