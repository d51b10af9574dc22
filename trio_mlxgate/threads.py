"""The gate for worker threads: as the limiter of ``to_thread.run_sync``, and asked from inside a thread."""

from __future__ import annotations

import math
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, Self

from trio.lowlevel import enable_ki_protection

from trio_mlxgate.call_sites import Asking, asking, held_in_thread
from trio_mlxgate.slots import check_request

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

    from trio_mlxgate.base_gate import BaseGate
    from trio_mlxgate.bridges import Bridge
    from trio_mlxgate.detached_slots import DetachedSlot
    from trio_mlxgate.outer_deadline import OuterDeadline
    from trio_mlxgate.runtime import Runtime, Scope, SomeTask


class GateLimiter:
    """What :meth:`Gate.limiter` returns: the gate with the face of trio's and anyio's ``CapacityLimiter``.

    Each acquire takes a slot of its own, in the name of its borrower. A borrower may have several, and may wait for
    several at once; each release gives back the oldest of them.
    """

    def __init__(
        self,
        gate: BaseGate,
        priority: int,
        max_wait: float,
        supersede: Hashable | None,
        outer_deadline: OuterDeadline | None,
    ) -> None:
        check_request(priority, math.inf, max_wait, supersede, outer_deadline)
        self._gate = gate
        self._priority = priority
        self._max_wait = max_wait
        self._supersede = supersede
        self._outer_deadline: OuterDeadline | None = outer_deadline
        self._borrowed: dict[Any, list[DetachedSlot]] = {}

    def __repr__(self) -> str:
        return f"<limiter of gate {self._gate.name!r}, priority {self._priority}>"

    @property
    def total_tokens(self) -> float:
        """The capacity of the gate; to set it is to set that."""
        return self._gate.capacity

    @total_tokens.setter
    def total_tokens(self, total_tokens: float) -> None:
        self._gate.capacity = total_tokens  # type: ignore[assignment] # it says so if it is no int

    @property
    def borrowed_tokens(self) -> int:
        """How many slots of the gate are held, by whomever."""
        return self._gate.statistics().in_flight

    @property
    def available_tokens(self) -> float:
        """How many slots of the gate are free."""
        now = self._gate.statistics()
        return max(0, now.capacity - now.in_flight)

    def statistics(self) -> Any:
        """A snapshot of the gate, as the library's ``CapacityLimiterStatistics``; the borrowers are this limiter's."""
        now = self._gate.statistics()
        self._forget_the_ended_run()
        return self._gate._limiter_statistics(
            borrowed_tokens=now.in_flight,
            total_tokens=now.capacity,
            borrowers=list(self._borrowed),
            tasks_waiting=now.tasks_waiting,
        )

    @enable_ki_protection
    async def acquire(self) -> None:
        """:meth:`acquire_on_behalf_of` the current task. Always a checkpoint."""
        await self.acquire_on_behalf_of(self._current_task())

    @enable_ki_protection
    def acquire_nowait(self) -> None:
        """:meth:`acquire_on_behalf_of_nowait` the current task."""
        self.acquire_on_behalf_of_nowait(self._current_task())

    @enable_ki_protection
    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for a slot in the name of ``borrower``. Always a checkpoint; if it is cancelled nothing is held.

        Raises:
          RuntimeError: the current task owns a slot of the gate, for which this would wait.
          WaitTooLong, QueueFull, Superseded, ClosedResourceError, BrokenResourceError: as :meth:`Gate.slot`.
        """
        hash(borrower)  # before there is a slot to be lost
        slot = await self._gate.acquire_detached(
            self._priority,
            max_wait=self._max_wait,
            supersede=self._supersede,
            outer_deadline=self._outer_deadline,
            tied=True,
        )
        self._note(borrower, slot)

    @enable_ki_protection
    def acquire_on_behalf_of_nowait(self, borrower: object) -> None:
        """Take a slot in the name of ``borrower`` if one is free for this priority.

        Raises:
          WouldBlock: none is.
          RuntimeError, ClosedResourceError, BrokenResourceError: as :meth:`Gate.slot_nowait`.
        """
        hash(borrower)
        slot = self._gate.acquire_detached_nowait(self._priority, supersede=self._supersede, tied=True)
        self._note(borrower, slot)

    @enable_ki_protection
    def release(self) -> None:
        """:meth:`release_on_behalf_of` the current task."""
        self.release_on_behalf_of(self._current_task())

    @enable_ki_protection
    def release_on_behalf_of(self, borrower: object) -> None:
        """Give back the oldest slot that was taken in the name of ``borrower``. Never a checkpoint.

        Raises:
          RuntimeError: there is none.
        """
        self._take(borrower).release()

    if not TYPE_CHECKING:

        @enable_ki_protection
        async def __aenter__(self) -> None:
            """:meth:`acquire`. Always a checkpoint."""
            await self.acquire()

        @enable_ki_protection
        async def __aexit__(self, *_: object) -> None:  # noqa: ASYNC910 - like that of trio's limiter
            """:meth:`release`. Never a checkpoint."""
            self.release()

    def _take(self, borrower: object) -> DetachedSlot:
        self._forget_the_ended_run()
        slots = self._borrowed.get(borrower)
        if not slots:
            raise RuntimeError(f"{borrower!r} holds no slot that was taken through {self!r}")
        slot = slots.pop(0)
        if not slots:
            del self._borrowed[borrower]
        return slot

    def _note(self, borrower: object, slot: DetachedSlot) -> None:
        self._forget_the_ended_run()
        try:
            self._borrowed.setdefault(borrower, []).append(slot)
        except BaseException:  # the borrower's own trouble: it can't be compared
            slot.release()
            raise
        if borrower is not self._current_task():
            slot.mark = borrower

    def _current_task(self) -> SomeTask:
        self._gate._bind()
        return self._gate._runtime.current_task()

    def _forget_the_ended_run(self) -> None:
        borrowed = self._borrowed
        if borrowed and next(iter(borrowed.values()))[0]._admission is not self._gate._admission:
            borrowed.clear()


class ThreadSlot:
    """What :meth:`Gate.from_thread` returns: ``with`` it once, in a thread; entering gives the slot itself."""

    def __init__(
        self,
        gate: BaseGate,
        priority: int,
        max_wait: float,
        supersede: Hashable | None,
        outer_deadline: OuterDeadline | None,
        bridge: Callable[[], Bridge],
    ) -> None:
        self._inside = False  # __del__ looks at it, also when what follows raises
        check_request(priority, math.inf, max_wait, supersede, outer_deadline)
        self.gate = gate
        """The gate that the slot belongs to."""
        self.priority = priority
        """The priority that was asked for."""
        self._max_wait = max_wait
        self._supersede = supersede
        self._outer_deadline: OuterDeadline | None = outer_deadline
        self._bridge = bridge
        self._entered = False
        # Set by the run when it is asked.
        self._runtime: Runtime | None = None
        # From here on for the thread of the run alone.
        self._scope: Scope | None = None
        self._slot: DetachedSlot | None = None
        self._waited = 0.0
        self._thread = 0
        self._unwanted = False
        # What the slot is known by in the thread; not this object, which is to be collected when it is dropped.
        self._mark = object()

    def __repr__(self) -> str:
        held = "not held" if self._slot is None else "held"
        return f"<thread's slot of gate {self.gate.name!r}, priority {self.priority}, {held}>"

    @property
    def waited(self) -> float:
        """For how many seconds the call stood in the queue; 0.0 before the grant."""
        return self._waited

    def __enter__(self) -> Self:
        """Wait for the slot; blocks the thread.

        Raises:
          trio.Cancelled, asyncio.CancelledError: the task that started this thread was cancelled before the grant.
          RunFinishedError: the run has ended, or does so while this thread waits.
          RuntimeError: this thread, or the task that started it (by way of trio or anyio), holds a slot already, for
            which it would wait; or
            the thread is no worker of a run, and the gate is not in use by one; or this is the run's own thread.
          WaitTooLong, QueueFull, Superseded, ClosedResourceError, BrokenResourceError: as :meth:`Gate.slot`.
        """
        if self._entered:
            raise RuntimeError(f"{self!r} can be used only once; ask the gate for another")
        bridge = self._bridge()
        self._entered = True
        caller = sys._getframe(1)
        site = (caller.f_code.co_filename, caller.f_lineno)
        try:
            bridge.run(self._acquire, threading.get_ident(), bridge.host(), site)
        except BaseException as error:
            if bridge.foreign and isinstance(error, bridge.cancelled):
                # What was cancelled is a task of ours, which asked in the name of this thread.
                over = f"the run ended while a thread waited for {self!r}"
                raise self.gate._dialect.has_finished(over) from None  # noqa: ASYNC104
            # A foreign thread may be interrupted while it waits for the answer: Control-C in the main thread.
            self._unwanted = True
            self._send_back()
            raise
        held_in_thread.set((*held_in_thread.get(), self._mark))
        self._inside = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Give the slot back; if the run has ended there is nothing to give back. Doesn't block."""
        self._inside = False
        held_in_thread.set(tuple(mark for mark in held_in_thread.get() if mark is not self._mark))
        self._send_back()

    def __del__(self, _at_exit: Callable[[], bool] = sys.is_finalizing, _warn: Any = warnings.warn) -> None:
        """Give back the slot of a thread that has ended without doing so."""
        if not self._inside or _at_exit():
            return
        name = self.gate.name
        self._send_back()
        _warn(f"a thread has not given its slot of gate {name!r} back: enter it with 'with'", ResourceWarning)

    if not TYPE_CHECKING:

        async def __aenter__(self):
            """Say how it is done. Never a checkpoint."""
            raise TypeError("from_thread() is for worker threads, with a plain 'with'; in a task use gate.slot()")

        async def __aexit__(self, *_):
            """Never called. Never a checkpoint."""

    def _send_back(self) -> None:
        # Not from_thread.run_sync, which waits for an answer and may be interrupted, too. What this thread asks of the
        # run later comes later.
        if self._runtime is not None:
            self._runtime.soon_from_anywhere(self._give_back)

    # trio runs what a thread asks for unprotected.
    @enable_ki_protection
    async def _acquire(self, thread: int, host: SomeTask | None, site: tuple[str, int]) -> None:
        """In the thread of the run: wait for the slot. Always a checkpoint, unless it raises RuntimeError."""
        gate = self.gate
        gate._bind()
        self._runtime = runtime = gate._runtime
        self._check(thread, host)
        asking.set(Asking(site, host or runtime.current_task()))
        self._scope = scope = runtime.scope()
        if self._unwanted:
            scope.cancel()
        with scope:
            slot = await gate.acquire_detached(
                self.priority,
                max_wait=self._max_wait,
                supersede=self._supersede,
                outer_deadline=self._outer_deadline,
                tied=True,
            )
            if self._unwanted:
                slot.release()
                return
            slot.mark = self._mark
            self._slot = slot
            self._waited = slot.waited
            self._thread = thread
            gate._threads[thread] = slot

    def _check(self, thread: int, host: SomeTask | None) -> None:
        gate = self.gate
        name = gate.name
        if thread in gate._threads:
            raise RuntimeError(
                f"this thread holds a slot of gate {name!r} already; to wait for another would be to wait for itself"
            )
        runtime = gate._runtime
        host = host or runtime.current_host()
        if host is None:
            return
        if host in gate._owners:
            raise RuntimeError(
                f"the task that started this thread owns a slot of gate {name!r} and waits for the thread, so that to "
                "wait for another would be to wait for itself. The thread may work without asking"
            )
        # Of a task that runs for its thread the frames tell, of one that sleeps until the thread ends its coroutine.
        if gate._held_under([runtime.borrower_of_thread(host), *runtime.marks_of_served_thread()]):
            raise RuntimeError(
                f"this thread was started under limiter= of gate {name!r}, so that it runs in a slot already; to wait "
                "for another would be to wait for itself. The thread may work without asking"
            )

    def _give_back(self) -> None:
        """In the thread of the run: the slot is wanted no more, whether it is held or still waited for."""
        self._unwanted = True
        slot, self._slot = self._slot, None
        if slot is None:
            if self._scope is not None:
                self._scope.cancel()
        elif slot._admission is self.gate._admission:  # else the gate serves another run by now
            self.gate._threads.pop(self._thread, None)
            slot.release()
