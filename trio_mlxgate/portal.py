"""The door of a gate for the other event loops and trio runs of a program: :meth:`Gate.portal`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import anyio.from_thread
import trio
from anyio.lowlevel import checkpoint
from trio.lowlevel import TrioToken, enable_ki_protection

from trio_mlxgate.bridges import AsyncioBridge, TrioBridge, bridge_into
from trio_mlxgate.outposts import (
    AsyncioOutpost,
    Outpost,
    PortalDetachedSlot,
    PortalSlot,
    Question,
    TrioOutpost,
)
from trio_mlxgate.parties import Owner
from trio_mlxgate.priority import DEFAULT_PRIORITY
from trio_mlxgate.runs import current_run
from trio_mlxgate.threads import ThreadSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

    from trio_mlxgate.base_gate import BaseGate
    from trio_mlxgate.bridges import Bridge
    from trio_mlxgate.core.statistics import GateStatistics
    from trio_mlxgate.detached_slots import DetachedSlot
    from trio_mlxgate.instrumentation import Details
    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.slots import AsyncSlot, Slot


class Portal:
    """What :meth:`Gate.portal` returns: the same gate for the other event loops and trio runs of the program.

    ::

        portal = gate.portal()  # in the run that owns the gate
        async with portal.slot(Priority.FOREGROUND, hold_timeout=30) as slot:  # in any other
            ...

    It may be handed to any thread, and used in any number of event loops of asyncio and of runs of trio. Who asks
    through it waits in the gate's own queue, by the same rules, and the gate's bound holds for all together. What is
    raised is called as the library of the caller calls it: ``trio.TooSlowError`` in a trio run, ``TimeoutError`` under
    asyncio. Hooks are called in the gate's run. There is no ``slot_nowait()``: whether a slot is free is known in the
    gate's run alone, and to hear of it is to wait; ``slot(max_wait=0)`` waits for the answer and not in the queue.

    It holds for the run in which it was made. When that ends, who waits gets RunFinishedError, and so does who comes;
    who holds a slot is not interrupted, and a warning is logged when it leaves, since nobody has kept the bound.

    When a caller's run ends, its calls leave the queue and its slots go back, reported as those of a task that has
    ended; of a run that was not ended but just dropped this is seen within about two seconds of its loop being closed,
    or of its thread's end. A loop that is stopped, and neither closed nor its thread at its end, may go on, and keeps
    what it has.
    """

    def __init__(self, gate: BaseGate) -> None:
        self._owner = Owner(gate)
        self._outposts: dict[object, Outpost] = {}

    def __repr__(self) -> str:
        return f"<portal of gate {self.name!r}>"

    @property
    def name(self) -> str:
        """The name of the gate."""
        return self._owner.gate.name

    @property
    def gate(self) -> BaseGate:
        """The gate, which must be used in its own run only."""
        return self._owner.gate

    # ---- asking ----

    def slot(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
    ) -> AsyncSlot:
        """A slot to be used once, with ``async with``, in the current run: as :meth:`Gate.slot`, with its arguments.

        In the gate's own run it is that. In another run, entering is always a checkpoint, and leaving never is, nor
        does it wait for the gate's run. If entering is cancelled it ends at once, and the call leaves the queue as soon
        as the gate's run hears of it; if it was granted meanwhile, the slot goes back. ``hold_timeout`` starts at the
        grant, and ``slot.deadline`` is a time on the clock of the current run. Keys of ``supersede`` are compared in
        the gate's run.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          RuntimeError: at once, if this is not called in a run; on entering, if this task owns a slot of this gate
            already, or if its own open responses hold all slots.
          RunFinishedError: on entering, the gate's run has ended, before or meanwhile.
          WaitTooLong, QueueFull, Superseded, ClosedResourceError, BrokenResourceError: on entering, as
            :meth:`Gate.slot`.
          TooSlowError, TimeoutError: on leaving, ``hold_timeout`` ended.
        """
        outpost = self._here()
        if outpost is None:
            return self.gate.slot(
                priority,
                hold_timeout=hold_timeout,
                max_wait=max_wait,
                supersede=supersede,
                outer_deadline=outer_deadline,
            )
        here = cast("BaseGate", outpost)
        return PortalSlot(here, priority, hold_timeout, max_wait, supersede, outer_deadline)

    @enable_ki_protection
    async def acquire_detached(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        tied: bool = False,
    ) -> DetachedSlot:
        """Wait for a slot that belongs to no task, as :meth:`Gate.acquire_detached`; to be released in the same run.

        Always a checkpoint; if it is cancelled nothing is held. Raises what :meth:`slot` does.
        """
        outpost = self._here()
        if outpost is None:
            return await self.gate.acquire_detached(
                priority,
                hold_timeout=hold_timeout,
                max_wait=max_wait,
                supersede=supersede,
                outer_deadline=outer_deadline,
                tied=tied,
            )
        here = cast("BaseGate", outpost)
        slot = PortalDetachedSlot(here, priority, hold_timeout, max_wait, supersede, outer_deadline, tied)
        return await slot._acquire()

    def owned_slot(self) -> Slot | None:
        """The slot of this gate that the current task owns, or None. Must be called inside a run."""
        outpost = self._here()
        if outpost is None:
            return self.gate.owned_slot()
        return outpost._owners.get(outpost._runtime.current_task())

    def from_thread(
        self,
        priority: int = DEFAULT_PRIORITY,
        *,
        max_wait: float = math.inf,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
    ) -> ThreadSlot:
        """A slot to be used once by a thread, with a plain ``with``; entering blocks the thread.

        As :meth:`Gate.from_thread`, for threads of any run and of none. One that another run than the gate's has
        started can't be cancelled while it waits.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          RunFinishedError: on entering, the gate's run has ended, or does so while this thread waits.
          RuntimeError: on entering, if the task that started this thread and waits for it owns a slot.
          Exception: on entering, as :meth:`ThreadSlot.__enter__`.
        """
        return ThreadSlot(self.gate, priority, max_wait, supersede, outer_deadline, self._bridge)

    # ---- looking ----

    async def statistics(self) -> GateStatistics:
        """A snapshot, as :meth:`Gate.statistics`, made in the gate's run. Always a checkpoint.

        Raises:
          RunFinishedError: the gate's run has ended.
        """
        outpost = self._here()
        if outpost is None:
            await self._owner.runtime.checkpoint()
            return self.gate.statistics()
        return await Question(outpost, self.gate.statistics).answer()

    # ---- for the rest of the package ----

    def _tell_of_gate(self, kind: type[Details], **more: Any) -> None:
        """Have the hooks told, in the gate's run."""
        outpost = self._here()
        (self.gate if outpost is None else outpost)._tell_of_gate(kind, **more)

    def _here(self) -> Outpost | None:
        """What stands for the gate in the current run; None: this is the gate's own."""
        try:
            token = current_run()
        except RuntimeError:
            raise RuntimeError(
                f"{self!r} is used inside a running event loop, of asyncio or of trio; in a thread write "
                "'with portal.from_thread():'"
            ) from None
        if token is self._owner.runtime.token:
            return None
        outpost = self._outposts.get(token)
        if outpost is None:
            # Loops that have come and gone.
            for other, gone in list(self._outposts.items()):
                if gone.party.is_gone():
                    self._outposts.pop(other, None)
            made = (TrioOutpost if isinstance(token, TrioToken) else AsyncioOutpost)(self._owner, token)
            outpost = self._outposts.setdefault(token, made)
        outpost.party.is_here()
        return outpost

    def _bridge(self) -> Bridge:
        """The way of the current thread into the gate's run."""
        try:
            current_run()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("from_thread() is for worker threads; in a task use 'async with portal.slot():'")
        if self._owner.is_gone():
            raise self.gate._dialect.has_finished(f"the run to which gate {self.name!r} belongs has ended")
        token = self._owner.runtime.token
        started_by: Any = None
        host: Any = None
        worker: Bridge | None = TrioBridge.of_this_worker()
        if worker is not None:
            started_by = trio.from_thread.run_sync(trio.lowlevel.current_trio_token)
            host = worker.host()
        else:
            worker = AsyncioBridge.of_this_worker()
            if worker is not None:
                started_by, host = anyio.from_thread.run(self._who_started_this_thread)
        if worker is not None:
            if started_by is token:
                return worker
            outpost = self._outposts.get(started_by)
            if outpost is not None and host in outpost._owners:
                raise RuntimeError(
                    f"the task that started this thread owns a slot of gate {self.name!r} and waits for the thread, so "
                    "that to wait for another would be to wait for itself. The thread may work without asking"
                )
        return _ForeignBridge(token, self._owner.is_gone)

    async def _who_started_this_thread(self) -> tuple[object, object]:
        """In a loop of asyncio, called by a worker thread. Always a checkpoint."""
        await checkpoint()
        token = current_run()
        outpost = self._outposts.get(token)
        return token, None if outpost is None else outpost._runtime.current_host()


class _ForeignBridge:
    """Into the gate's run, for a thread with which that run has nothing to do."""

    foreign = True

    def __init__(self, token: Any, is_gone: Callable[[], bool]) -> None:
        self._bridge = bridge_into(token, is_gone)

    @property
    def cancelled(self) -> type[BaseException]:
        return self._bridge.cancelled

    def run(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        self._bridge.run(function, *args)

    def host(self) -> None:
        """Whichever task waits for this thread is none of that run's."""
