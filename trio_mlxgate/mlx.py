"""The process-wide gate: one for each run, for programs that talk to one local server; here for trio."""

from __future__ import annotations

import contextvars
import math
import os
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypedDict, TypeVar

import trio

from trio_mlxgate.base_gate import BaseGate
from trio_mlxgate.core.checks import check_capacity
from trio_mlxgate.gate import Gate
from trio_mlxgate.priority import DEFAULT_PRIORITY, Priority
from trio_mlxgate.runs import current_run

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.slots import AsyncSlot

CAPACITY_VARIABLE: Final = "MLXGATE_CAPACITY"
"""The environment variable that says how many slots the gate of a run has, if the program doesn't say."""

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


GateT = TypeVar("GateT", bound=BaseGate)


class RunVariable(Protocol[GateT]):
    """A RunVar, of trio or of anyio: so every run starts with a gate of its own, and no test needs a reset."""

    def get(self) -> GateT: ...
    def set(self, value: GateT, /) -> object: ...


class RunGate(Generic[GateT]):
    """The gate of the current run, of the kind that its library has. To be asked for inside a run."""

    def __init__(self, variable: RunVariable[GateT], kind: type[GateT]) -> None:
        self._variable = variable
        self._kind = kind

    def get(self) -> GateT:
        """The gate; made when it is first asked for."""
        try:
            return self._variable.get()
        except LookupError:
            gate = self._kind(_initial_capacity(), name="mlx")
            self._variable.set(gate)
            return gate

    def configure(self, capacity: int) -> None:
        """Set its capacity; it need not exist yet."""
        try:
            gate = self._variable.get()
        except LookupError:
            self._variable.set(self._kind(capacity, name="mlx"))
        else:
            gate.capacity = capacity

    def status(self) -> GateStatus:
        """How busy it is; zeros if it doesn't exist yet."""
        try:
            statistics = self._variable.get().statistics()
        except LookupError:
            return nobody()
        return {"inflight": statistics.in_flight, "waiters": statistics.tasks_waiting}


def nobody() -> GateStatus:
    """The status of a gate that nobody uses."""
    return {"inflight": 0, "waiters": 0}


_run_gate: Final = RunGate(trio.lowlevel.RunVar[Gate]("trio_mlxgate.gate"), Gate)


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
    return _run_gate.get()


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
    _run_gate.configure(capacity)


def gate_status() -> GateStatus:
    """How busy this run's gate is. Outside of a run, and before the first call, zeros. Never waits.

    Raises:
      RuntimeError: this is called under asyncio, whose gate is another module's.
    """
    if trio.lowlevel.in_trio_run():
        return _run_gate.status()
    try:
        current_run()
    except RuntimeError:
        return nobody()
    raise RuntimeError("under asyncio it is trio_mlxgate.anyio.gate_status()")


def _initial_capacity() -> int:
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
