"""Public helpers for tests, of this library and of programs that use it.

`inference_server` starts a server that runs one inference at a time and answers with an echo, as a process of
its own: what a gate stands in front of, without a model. `run_virtual` runs a program on virtual time, on trio and on
asyncio's loops. `check_gate` puts any implementation of a gate through the laws. `PlayedModels` are the servers of a
router that has none.
"""

from __future__ import annotations

from trio_mlxgate.echo_server import (
    ECHO_MODEL as ECHO_MODEL,
    EchoSettings as EchoSettings,
    EchoStatus as EchoStatus,
    InferenceServer as InferenceServer,
    JobStatus as JobStatus,
    inference_server as inference_server,
)
from trio_mlxgate.testing.backends import (
    BACKENDS as BACKENDS,
    Backend as Backend,
    run_virtual as run_virtual,
    settle as settle,
)
from trio_mlxgate.testing.battery import OPTIONS as OPTIONS, check_gate as check_gate
from trio_mlxgate.testing.events import GateLike as GateLike, LawBroken as LawBroken
from trio_mlxgate.testing.played_models import PlayedModels as PlayedModels
from trio_mlxgate.testing.virtual_time import EverybodyWaits as EverybodyWaits
