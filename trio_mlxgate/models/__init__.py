"""Models that are started and stopped: their servers as processes that never outlive us."""

from __future__ import annotations

from trio_mlxgate.core.backoff import RestartSettings as RestartSettings
from trio_mlxgate.core.lifecycle import ModelEvent as ModelEvent, ModelState as ModelState, StateChange as StateChange
from trio_mlxgate.models.errors import (
    ModelCrashed as ModelCrashed,
    ModelError as ModelError,
    ModelFailed as ModelFailed,
    ModelNotStopped as ModelNotStopped,
    ModelStartFailed as ModelStartFailed,
    ModelStartTooSlow as ModelStartTooSlow,
    ModelUnloaded as ModelUnloaded,
)
from trio_mlxgate.models.output import Output as Output, OutputLine as OutputLine, OutputReader as OutputReader
from trio_mlxgate.models.ports import NoFreePort as NoFreePort, PortPool as PortPool
from trio_mlxgate.models.process import ModelProcess as ModelProcess
from trio_mlxgate.models.settings import ProcessConfig as ProcessConfig
