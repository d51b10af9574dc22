"""The gate for programs on asyncio, and for libraries on anyio: the same laws, face and options, other exceptions.

Under asyncio, whichever event loop runs it, and under trio by way of anyio. Where :class:`trio_mlxgate.Gate` raises
what is trio's, this raises what is anyio's and Python's: ``TimeoutError`` when a hold budget ends,
``anyio.WouldBlock``, ``anyio.ClosedResourceError`` and so on.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
from anyio.lowlevel import RunVar
from trio.lowlevel import TrioToken

from trio_mlxgate import mlx
from trio_mlxgate.asyncio_threads import AnyioLimiter
from trio_mlxgate.base_gate import BaseGate
from trio_mlxgate.bridges import AsyncioBridge, TrioBridge, bridge_into
from trio_mlxgate.core.checks import check_capacity
from trio_mlxgate.dialects import ANYIO
from trio_mlxgate.endpoint_gates import BaseEndpointGates
from trio_mlxgate.priority import DEFAULT_PRIORITY, Priority
from trio_mlxgate.runs import current_run, runtime_of
from trio_mlxgate.threads import ThreadSlot

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.bridges import Bridge
    from trio_mlxgate.mlx import GateStatus
    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.slots import AsyncSlot


def _limiter_statistics(*, borrowers: list[object], **more: Any) -> anyio.CapacityLimiterStatistics:
    return anyio.CapacityLimiterStatistics(borrowers=tuple(borrowers), **more)


class Gate(BaseGate):
    """A capacity limiter with priorities: at most ``capacity`` bodies run, and the best waiter goes next.

    ::

        gate = Gate(1, name="macmini")
        async with gate.slot(Priority.FOREGROUND, hold_timeout=30) as slot:
            ...

    :class:`trio_mlxgate.Gate` for programs on asyncio, whichever event loop runs it, and for those on anyio, with the
    same laws and options, and the exceptions of anyio and Python. It binds to the event loop, or the trio run, that
    first uses it, and when that is closed to the next, where it starts empty.

    A waiter that is cancelled, be it by a scope of anyio or by ``Task.cancel()``, has left the queue in the same
    step. One that was granted its slot before the cancellation came enters its block, whose first ``await`` sees it:
    what stands in a ``finally`` there runs.
    """

    _dialect = ANYIO
    _current_run = staticmethod(current_run)
    _runtime_of = staticmethod(runtime_of)
    _limiter_statistics = staticmethod(_limiter_statistics)
    _outside = "works inside a running event loop, of asyncio or of trio; in a thread write 'with gate.from_thread():'"

    def limiter(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
    ) -> anyio.CapacityLimiter:
        """The gate as a limiter: ``await anyio.to_thread.run_sync(work, limiter=gate.limiter(priority))``.

        It is a :class:`trio_mlxgate.GateLimiter`. It has the face of anyio's own limiter, and for type checkers it is
        one, since they would not let it pass as ``limiter=`` otherwise.

        The thread runs in a slot of the gate, which goes back when the thread has really ended, also if its task was
        cancelled and has abandoned it. There is no ``hold_timeout``: nothing can interrupt a thread, and to give its
        slot back while it runs would let one more in beside it.

        Args:
          priority, max_wait, supersede, outer_deadline: as for :meth:`slot`.

        Raises:
          TypeError, ValueError: an argument isn't as described.
        """
        limiter: object = AnyioLimiter(self, priority, max_wait, supersede, outer_deadline)
        return cast("anyio.CapacityLimiter", limiter)

    def from_thread(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> ThreadSlot:
        """A slot to be used once by a worker thread, with a plain ``with``; entering blocks the thread.

        Any thread may ask. One that anyio has started (``anyio.to_thread.run_sync``) is asked for by the task that
        waits for it, and leaves the queue when that task is cancelled (but not if the task abandons it, as it does when
        ``Task.cancel()`` ends its wait). Others, such as those of ``asyncio.to_thread``, ask the run that uses the
        gate, or ``loop``, and can't be cancelled. There is no ``hold_timeout``: nothing can interrupt a thread, and to
        give its slot back while it runs would let one more in beside it.

        Args:
          priority, max_wait, supersede, outer_deadline: as for :meth:`slot`.
          loop: the event loop to be asked, by a thread that anyio has not started, if nothing uses the gate yet.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          Exception: on entering, see :meth:`trio_mlxgate.ThreadSlot.__enter__`.
        """
        if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
            raise TypeError(f"loop must be asyncio.get_running_loop() of a running program, not {loop!r}")
        return ThreadSlot(self, priority, max_wait, supersede, outer_deadline, lambda: self._bridge(loop))

    def _bridge(self, given: asyncio.AbstractEventLoop | None) -> Bridge:
        """The way into the run that is to be asked by the current thread."""
        if self._is_in_a_run():
            raise RuntimeError("from_thread() is for worker threads; in a task use 'async with gate.slot():'")
        if given is not None:
            return AsyncioBridge(given)
        bridge = TrioBridge.of_this_worker() or AsyncioBridge.of_this_worker()
        if bridge is not None:
            return bridge
        token = self._runtime.token
        if token is None:
            raise RuntimeError(
                f"this thread was not started by anyio, and nothing uses gate {self.name!r} yet: say which event loop "
                "is to be asked, with loop=asyncio.get_running_loop()"
            )
        return bridge_into(token)


class EndpointGates(BaseEndpointGates[Gate]):
    """:class:`trio_mlxgate.EndpointGates` whose gates are those of this module."""

    _gate_class = Gate


# ---- the gate of a run ----

_run_gate: Final = mlx.RunGate(RunVar[Gate]("trio_mlxgate.anyio.gate"), Gate)


def current_mlx_gate() -> BaseGate:
    """The gate of this event loop, or of this trio run; made when it is first asked for.

    In a trio run it is that of :func:`trio_mlxgate.current_mlx_gate`, since there must not be two; its own methods
    raise what is trio's there, while :func:`acquire_mlx_gate` of this module raises what is anyio's. Its capacity is
    what :func:`configure_mlx_gate` said, else the environment's ``MLXGATE_CAPACITY``, else 1.

    Raises:
      ValueError: ``MLXGATE_CAPACITY`` is not a whole number >= 0.
      RuntimeError: this is not called inside of a run.
    """
    if isinstance(_run(), TrioToken):
        return mlx.current_mlx_gate()
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
    slot = current_mlx_gate().slot(
        priority, hold_timeout=hold_timeout, max_wait=max_wait, supersede=supersede, outer_deadline=outer_deadline
    )
    slot.dialect = ANYIO
    return slot


def get_mlx_gate() -> AsyncSlot:
    """The oldest face of the gate: ``async with get_mlx_gate(): ...``, always in the background."""
    return acquire_mlx_gate(Priority.BACKGROUND)


def configure_mlx_gate(*, capacity: int) -> None:
    """Set the capacity of the run's gate; it goes before the environment's ``MLXGATE_CAPACITY``.

    Inside a run it is set for this run, at once and also with a queue. Outside it holds for the runs that are started
    from here: the value is kept in a context variable, which a new thread does not inherit.

    Raises:
      TypeError, ValueError: ``capacity`` is not an int >= 0; nothing is changed.
    """
    check_capacity(capacity)
    try:
        in_trio = isinstance(current_run(), TrioToken)
    except RuntimeError:
        in_trio = True  # nor in any other run: kept where trio's is
    if in_trio:
        mlx.configure_mlx_gate(capacity=capacity)
    else:
        _run_gate.configure(capacity)


def gate_status() -> GateStatus:
    """How busy this run's gate is. Outside of a run, and before the first call, zeros. Never waits."""
    try:
        in_trio = isinstance(current_run(), TrioToken)
    except RuntimeError:
        return mlx.nobody()
    return mlx.gate_status() if in_trio else _run_gate.status()


def _run() -> object:
    try:
        return current_run()
    except RuntimeError:
        raise RuntimeError(
            "the gate of a run is asked for inside a running event loop, of asyncio or of trio; outside there is "
            "none. A worker thread gets it from its run: gate = anyio.from_thread.run_sync(current_mlx_gate)"
        ) from None
