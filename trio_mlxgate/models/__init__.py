"""Models that take turns: a router that leases them, and their servers as processes that never outlive us."""

from __future__ import annotations

from trio_mlxgate.core.backoff import RestartSettings as RestartSettings
from trio_mlxgate.core.groups import Group as Group
from trio_mlxgate.core.lifecycle import ModelEvent as ModelEvent, ModelState as ModelState, StateChange as StateChange
from trio_mlxgate.core.planning import Plan as Plan, Planner as Planner
from trio_mlxgate.core.swap_options import SwapOptions as SwapOptions
from trio_mlxgate.models.errors import (
    EvictionFailed as EvictionFailed,
    ModelCrashed as ModelCrashed,
    ModelError as ModelError,
    ModelFailed as ModelFailed,
    ModelNotStopped as ModelNotStopped,
    ModelStartFailed as ModelStartFailed,
    ModelStartTooSlow as ModelStartTooSlow,
    ModelUnloaded as ModelUnloaded,
)
from trio_mlxgate.models.lease import (
    AsyncLease as AsyncLease,
    Lease as Lease,
    LeaseProgress as LeaseProgress,
    LeaseStage as LeaseStage,
    SyncLease as SyncLease,
)
from trio_mlxgate.models.output import Output as Output, OutputLine as OutputLine, OutputReader as OutputReader
from trio_mlxgate.models.ports import NoFreePort as NoFreePort, PortPool as PortPool
from trio_mlxgate.models.process import ModelProcess as ModelProcess
from trio_mlxgate.models.router import ModelRouter as ModelRouter
from trio_mlxgate.models.router_config import ModelConfig as ModelConfig, RouterConfig as RouterConfig
from trio_mlxgate.models.settings import ProcessConfig as ProcessConfig
