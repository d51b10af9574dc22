"""Public helpers for tests, of this library and of programs that use it.

`inference_server` starts a server that runs one inference at a time and answers with an echo, as a process of
its own: what a gate stands in front of, without a model.
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
from trio_mlxgate.testing.battery import OPTIONS as OPTIONS, check_gate as check_gate
from trio_mlxgate.testing.events import GateLike as GateLike, LawBroken as LawBroken
