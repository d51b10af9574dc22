"""The process-wide gate: one for each trio run, for programs that talk to one local server."""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
from typing import TYPE_CHECKING, Final, TypedDict

import trio

from trio_mlxgate.core.checks import check_capacity
from trio_mlxgate.gate import Gate
from trio_mlxgate.priority import DEFAULT_PRIORITY, Priority

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.slots import AsyncSlot

CAPACITY_VARIABLE: Final = "MLXGATE_CAPACITY"
"""The environment variable that says how many slots the gate of a run has, if the program doesn't say."""

# A RunVar, so that every run starts with a gate of its own and no test needs a reset.
_run_gate: Final[trio.lowlevel.RunVar[Gate]] = trio.lowlevel.RunVar("trio_mlxgate.gate")
# What was configured outside of a run, for the runs that are started from that context.
_configured_capacity: Final[contextvars.ContextVar[int | None]] = contextvars.ContextVar(
    "trio_mlxgate.capacity", default=None
)


class GateStatus(TypedDict):
    """What :func:`gate_status` returns."""

    inflight: int
    """How many slots are granted and not given back."""

    waiters: int
    """How many calls stand in the queue."""


def current_mlx_gate() -> Gate:
    """The gate of this trio run; made when it is first asked for.

    Its capacity is what :func:`configure_mlx_gate` said, else the environment's ``MLXGATE_CAPACITY``, else 1.

    Raises:
      ValueError: ``MLXGATE_CAPACITY`` is not a whole number >= 0.
      RuntimeError: this is not called inside of a trio run.
    """
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "the gate of a run is asked for inside trio.run(); outside there is none, and for asyncio there is "
            "trio_mlxgate.anyio.current_mlx_gate(). A worker thread gets it from its run: "
            "gate = trio.from_thread.run_sync(current_mlx_gate)"
        )
    try:
        return _run_gate.get()
    except LookupError:
        gate = Gate(initial_capacity(), name="mlx")
        _run_gate.set(gate)
        return gate


def acquire_mlx_gate(
    priority: int = DEFAULT_PRIORITY,
    *,
    hold_timeout: float = math.inf,
    max_wait: float = math.inf,
    supersede: Hashable | None = None,
    outer_deadline: OuterDeadline | None = None,
) -> AsyncSlot:
    """A slot of this run's gate, for ``async with``; arguments and errors are those of :meth:`Gate.slot`."""
    return current_mlx_gate().slot(
        priority, hold_timeout=hold_timeout, max_wait=max_wait, supersede=supersede, outer_deadline=outer_deadline
    )


def get_mlx_gate() -> AsyncSlot:
    """The oldest face of the gate: ``async with get_mlx_gate(): ...``, always in the background."""
    return acquire_mlx_gate(Priority.BACKGROUND)


def configure_mlx_gate(*, capacity: int) -> None:
    """Set the capacity of the process-wide gate; it goes before the environment's ``MLXGATE_CAPACITY``.

    Inside a run it is set for this run, at once and also with a queue. Outside it holds for the runs that are started
    from here: the value is kept in a context variable, which a new thread does not inherit.

    Raises:
      TypeError, ValueError: ``capacity`` is not an int >= 0; nothing is changed.
    """
    check_capacity(capacity)
    if not trio.lowlevel.in_trio_run():
        _configured_capacity.set(capacity)
        return
    try:
        gate = _run_gate.get()
    except LookupError:
        _run_gate.set(Gate(capacity, name="mlx"))
    else:
        gate.capacity = capacity


def gate_status() -> GateStatus:
    """How busy this run's gate is. Outside of a run, and before the first call, zeros. Never waits.

    Raises:
      RuntimeError: this is called under asyncio, whose gate is another module's.
    """
    try:
        gate = _run_gate.get()
    except LookupError:  # no gate in this run yet
        return {"inflight": 0, "waiters": 0}
    except RuntimeError:  # no run
        if _in_asyncio():
            raise RuntimeError("under asyncio it is trio_mlxgate.anyio.gate_status()") from None
        return {"inflight": 0, "waiters": 0}
    statistics = gate.statistics()
    return {"inflight": statistics.in_flight, "waiters": statistics.tasks_waiting}


def _in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def initial_capacity() -> int:
    """The capacity with which the gate of a new run begins."""
    configured = _configured_capacity.get()
    if configured is not None:
        return configured
    text = os.environ.get(CAPACITY_VARIABLE)
    if text is None:
        return 1
    try:
        return check_capacity(int(text))
    except ValueError:
        raise ValueError(
            f"the environment variable {CAPACITY_VARIABLE} is {text!r}; set it to a whole number >= 0, or unset it"
        ) from None
