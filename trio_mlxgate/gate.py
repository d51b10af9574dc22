"""The gate on trio."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import trio
from trio.lowlevel import TrioToken, current_trio_token

from trio_mlxgate.base_gate import BaseGate
from trio_mlxgate.bridges import TrioBridge
from trio_mlxgate.dialects import TRIO
from trio_mlxgate.priority import DEFAULT_PRIORITY
from trio_mlxgate.threads import GateLimiter, ThreadSlot
from trio_mlxgate.trio_runtime import TrioRuntime

if TYPE_CHECKING:
    from collections.abc import Hashable

    from trio_mlxgate.outer_deadline import OuterDeadline


class Gate(BaseGate):
    """A capacity limiter with priorities: at most ``capacity`` bodies run, and the best waiter goes next.

    ::

        gate = Gate(1, name="macmini")
        async with gate.slot(Priority.FOREGROUND, hold_timeout=30) as slot:
            ...

    Strict priority: a waiter is passed by every later one of a better (lower) priority, and by nobody
    else; within a priority the order is first come, first served. What runs is never interrupted by who
    waits. Make one gate for each endpoint and send every call to that endpoint through it.

    A gate may be made anywhere, at module level too: it binds to the trio run that first uses it, and
    when that run has ended to the next, where it starts empty. The same gate for asyncio, and for programs that are
    written on anyio, is :class:`trio_mlxgate.anyio.Gate`.
    """

    _dialect = TRIO
    _current_run = staticmethod(current_trio_token)
    _runtime_of = TrioRuntime
    _limiter_statistics = trio.CapacityLimiterStatistics
    _outside = (
        "works inside trio.run(); outside of it it can't, and for asyncio there is trio_mlxgate.anyio.Gate. In a "
        "thread write 'with gate.from_thread():'"
    )

    def limiter(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
    ) -> trio.CapacityLimiter:
        """The gate as a limiter: ``await trio.to_thread.run_sync(work, limiter=gate.limiter(priority))``.

        It is a :class:`GateLimiter`. It has the face of trio's own limiter, and for type checkers it is one, since
        they would not let it pass as ``limiter=`` otherwise.

        The thread runs in a slot of the gate, which goes back when the thread has really ended, also if its task was
        cancelled and has abandoned it. There is no ``hold_timeout``: nothing can interrupt a thread, and to give its
        slot back while it runs would let one more in beside it.

        Args:
          priority, max_wait, supersede, outer_deadline: as for :meth:`slot`.

        Raises:
          TypeError, ValueError: an argument isn't as described.
        """
        return cast("trio.CapacityLimiter", GateLimiter(self, priority, max_wait, supersede, outer_deadline))

    def from_thread(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        trio_token: TrioToken | None = None,
    ) -> ThreadSlot:
        """A slot to be used once by a worker thread, with a plain ``with``; entering blocks the thread.

        Any thread may ask. One that trio has started (``trio.to_thread.run_sync``) is asked for by the task that waits
        for it, and leaves the queue when that task is cancelled (but not if the task abandons it). Others ask the trio
        run that uses the gate, or the one of ``trio_token``, and can't be cancelled. There is no ``hold_timeout``:
        nothing can interrupt a thread, and to give its slot back while it runs would let one more in beside it.

        Args:
          priority, max_wait, supersede, outer_deadline: as for :meth:`slot`.
          trio_token: the run to be asked, by a thread that trio has not started, if no run uses the gate yet.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          Exception: on entering, see :meth:`ThreadSlot.__enter__`.
        """
        if trio_token is not None and not isinstance(trio_token, TrioToken):
            raise TypeError(f"trio_token must be trio.lowlevel.current_trio_token() of a run, not {trio_token!r}")
        return ThreadSlot(self, priority, max_wait, supersede, outer_deadline, lambda: self._bridge(trio_token))

    def _bridge(self, given: TrioToken | None) -> TrioBridge:
        """The way into the run that is to be asked by the current thread."""
        if trio.lowlevel.in_trio_run():
            raise RuntimeError("from_thread() is for worker threads; in a task use 'async with gate.slot():'")
        bridge = TrioBridge(given) if given is not None else TrioBridge.of_this_worker()
        if bridge is not None:
            return bridge
        token = self._runtime.token
        if token is None:
            raise RuntimeError(
                f"this thread was not started by trio, and no trio run uses gate {self.name!r} yet: "
                "say which run is to be asked, with trio_token=trio.lowlevel.current_trio_token()"
            )
        return TrioBridge(cast("TrioToken", token))
