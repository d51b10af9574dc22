"""The gate in front of a local LLM server: a bound on what runs, and a queue in which a person goes first."""

# Layers, from the bottom; imports flow downwards only, and tests/test_layering.py proves it:
#   L0  errors, priority
#   L1  core                     decides; knows neither trio nor a clock
#   L2  instrumentation, dialects, runtime, call_sites, trio_runtime, asyncio_threads, asyncio_runtime, runs, bridges,
#       parking_lot, slots, loan, detached_slots, onlookers, progress, outer_deadline, ancestors, alarms, ends,
#       threads, refusals, driver, parties, crossings, outposts, portal, base_gate, gate, mlx, anyio, options,
#       endpoint_gates, _response_body, _gated_stream, _family, _rewrite, _fallback, _drain, _transport, httpx,
#       httpx2    act
#   L3  echo_server, backends, models
#   L4  _config_values, config
#   L5  testing, commands, __main__

from __future__ import annotations

from trio_mlxgate._fallback import Fallback as Fallback
from trio_mlxgate._rewrite import rewrite_to as rewrite_to
from trio_mlxgate.base_gate import BaseGate as BaseGate
from trio_mlxgate.core.endpoints import Endpoint as Endpoint
from trio_mlxgate.core.estimates import Outlook as Outlook
from trio_mlxgate.core.statistics import GateStatistics as GateStatistics
from trio_mlxgate.detached_slots import DetachedSlot as DetachedSlot
from trio_mlxgate.endpoint_gates import EndpointGates as EndpointGates, EndpointSettings as EndpointSettings
from trio_mlxgate.errors import (
    AnswerTooSlow as AnswerTooSlow,
    BackendError as BackendError,
    BackendRefused as BackendRefused,
    BackendTooSlow as BackendTooSlow,
    BackendUnavailable as BackendUnavailable,
    BackendUnreachable as BackendUnreachable,
    ConnectTooSlow as ConnectTooSlow,
    FirstTokenTooSlow as FirstTokenTooSlow,
    GateRefused as GateRefused,
    MalformedAnswer as MalformedAnswer,
    PlanRefused as PlanRefused,
    QueueFull as QueueFull,
    Superseded as Superseded,
    TokenGapTooLong as TokenGapTooLong,
    TruncatedAnswer as TruncatedAnswer,
    UnknownEndpoint as UnknownEndpoint,
    UnknownModel as UnknownModel,
    WaitTooLong as WaitTooLong,
)
from trio_mlxgate.gate import Gate as Gate
from trio_mlxgate.mlx import (
    GateStatus as GateStatus,
    acquire_mlx_gate as acquire_mlx_gate,
    configure_mlx_gate as configure_mlx_gate,
    current_mlx_gate as current_mlx_gate,
    gate_status as gate_status,
    get_mlx_gate as get_mlx_gate,
)
from trio_mlxgate.options import (
    RequestOptions as RequestOptions,
    use_options as use_options,
    use_priority as use_priority,
)
from trio_mlxgate.outer_deadline import OuterDeadlineWarning as OuterDeadlineWarning
from trio_mlxgate.parking_lot import (
    PriorityParkingLot as PriorityParkingLot,
    PriorityParkingLotStatistics as PriorityParkingLotStatistics,
)
from trio_mlxgate.portal import Portal as Portal
from trio_mlxgate.priority import DEFAULT_PRIORITY as DEFAULT_PRIORITY, Priority as Priority
from trio_mlxgate.progress import Progress as Progress
from trio_mlxgate.slots import Slot as Slot
from trio_mlxgate.threads import GateLimiter as GateLimiter, ThreadSlot as ThreadSlot
