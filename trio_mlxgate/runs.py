"""Which run the current code is in, of trio or of asyncio, and what stands for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import trio
from trio.lowlevel import TrioToken, current_trio_token

from trio_mlxgate.asyncio_runtime import AsyncioRuntime
from trio_mlxgate.trio_runtime import TrioRuntime

if TYPE_CHECKING:
    from trio_mlxgate.runtime import Runtime


def current_run() -> TrioToken | asyncio.AbstractEventLoop:
    """What the current run is known by. Raises RuntimeError outside of one."""
    # In trio's guest mode both are there, and a trio task is one of trio's.
    if trio.lowlevel.in_trio_task():
        return current_trio_token()
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return current_trio_token()


def runtime_of(run: object) -> Runtime:
    """What stands for the run of a token, to be asked for inside of it."""
    return TrioRuntime(run) if isinstance(run, TrioToken) else AsyncioRuntime(cast("asyncio.AbstractEventLoop", run))
