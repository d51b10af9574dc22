"""An event loop of asyncio on a virtual clock: time passes only when nothing else is left to do, and then at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextvars import Context

    _Loop = asyncio.SelectorEventLoop
else:
    _Loop = asyncio.AbstractEventLoop  # which one it is, the other base class says

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

PASSES_AT_ONE_TIME: Final = 1_000_000
"""So many passes of the loop may go by while the virtual time stands still."""

PATIENCE: Final = 5.0
"""Real seconds for which other threads are waited for when nothing else is left that could happen."""

_CANCELLED_TIMERS: Final = 100
_OURS: Final = ("asyncio.", "anyio.", "trio_mlxgate.")
_NOT_OURS: Final = "trio_mlxgate.testing"


class EverybodyWaits(RuntimeError):
    """All tasks of a run on virtual time wait, no timer is set, and so none of them would ever go on.

    Or the run never comes to rest, so that time can't pass. The message says where each task waits.
    """


class VirtualTime(_Loop):
    """What makes a loop virtual; to stand before the class of a real loop among the bases.

    It keeps the timers itself. One callback, the pump, runs in every pass of the loop and counts what else was
    scheduled: if nothing was since it ran last, everything that can run has run. Then it wakes those who wait for that
    (:meth:`settled`), and if there are none it moves the clock to the next timer.
    """

    def __init__(self, *, longest: float = math.inf) -> None:
        self._now = 0.0
        self._longest = longest
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_numbers = itertools.count()
        self._cancelled_timers = 0
        self._scheduled_callbacks = 0
        self._seen = -1
        self._passes = 0
        self._settlers: list[asyncio.Future[None]] = []
        self._in_executors = 0
        self._ends = False
        self._threads = set(threading.enumerate())
        self._bored_since: float | None = None
        self.stuck: EverybodyWaits | None = None
        """Why the run was given up, if it was."""
        super().__init__()
        super().call_soon(self._pump)

    # ---- what the loop's users call ----

    def time(self) -> float:
        """The virtual time, in seconds since the loop was made."""
        return self._now

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self._scheduled_callbacks += 1
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        def called() -> None:
            # Not when another thread asks: two would count at once.
            self._scheduled_callbacks += 1
            callback(*args)

        return super().call_soon_threadsafe(called, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if when <= self._now:
            self.call_soon(_run_timer, handle)
        else:
            heapq.heappush(self._timers, (when, next(self._timer_numbers), handle))
        return handle

    def run_in_executor(self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        # Time stands still while the thread works.
        self._in_executors += 1
        future.add_done_callback(self._back_from_executor)
        return future

    def _back_from_executor(self, _: object) -> None:
        self._in_executors -= 1

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Wait for the threads in real time. A checkpoint if there are any."""
        self._in_executors += 1  # there is a time limit, which would be over at once
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._in_executors -= 1

    def run_forever(self) -> None:
        self._ends = False
        super().run_forever()

    def stop(self) -> None:
        self._ends = True
        super().stop()

    async def settled(self) -> None:
        """Return when everything that can run has run, without time passing. Always a checkpoint."""
        future: asyncio.Future[None] = self.create_future()
        self._settlers.append(future)
        await future

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        # asyncio's handles tell their loop. Most timers are cancelled long before they are due.
        self._cancelled_timers += 1
        if self._cancelled_timers > _CANCELLED_TIMERS and self._cancelled_timers > len(self._timers) // 2:
            self._timers = [entry for entry in self._timers if not entry[2].cancelled() and entry[2] is not handle]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    # ---- the pump ----

    def _pump(self) -> None:
        if not self._ends:
            self._passes += 1
            if self._scheduled_callbacks == self._seen:
                self._rest()
            else:
                self._bored_since = None
                if self._passes > PASSES_AT_ONE_TIME:
                    self._give_up(f"the run never comes to rest: {self._passes} passes at the time {self._now:g}")
        self._seen = self._scheduled_callbacks
        super().call_soon(self._pump)

    def _rest(self) -> None:
        """Everything that can run has run."""
        settlers, self._settlers = self._settlers, []
        settlers = [future for future in settlers if not future.done()]
        if settlers:
            for future in settlers:
                future.set_result(None)
        elif self._in_executors:
            time.sleep(0.0005)
        else:
            timers = self._timers
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                self._nothing_left()
            elif timers[0][0] > self._longest:
                self._give_up(f"the run goes on after {self._longest:g} s")
            else:
                self._jump(timers[0][0])

    def _jump(self, now: float) -> None:
        self._now, self._passes = now, 0
        while self._timers and self._timers[0][0] <= now:
            self.call_soon(_run_timer, heapq.heappop(self._timers)[2])

    def _nothing_left(self) -> None:
        others = any(thread not in self._threads for thread in threading.enumerate())
        if others and self._bored_since is None:
            self._bored_since = time.monotonic()
        if others and time.monotonic() < (self._bored_since or 0.0) + PATIENCE:
            time.sleep(0.0005)  # one of them may still have something to tell
        else:
            self._give_up("everybody waits, and no timer is set (virtual time has no sockets and no processes)")

    def _give_up(self, why: str) -> None:
        places = "".join(f"\n  {task.get_name()} waits at {_place(task)}" for task in asyncio.all_tasks(self))
        self.stuck = self.stuck or EverybodyWaits(why + places)
        self.stop()


def _run_timer(handle: asyncio.TimerHandle) -> None:
    if not handle.cancelled():
        handle._run()


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: the innermost line that is not the loop's own, anyio's, or the gate's."""
    inner: Any = task.get_coro()
    place = f"{inner!r}"
    while inner is not None:
        frame = getattr(inner, "cr_frame", None)
        module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
        if frame is not None and (module.startswith(_NOT_OURS) or not module.startswith(_OURS)):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
        inner = getattr(inner, "cr_await", None)
    return place


class VirtualLoop(VirtualTime, asyncio.SelectorEventLoop):
    """asyncio's own loop on a virtual clock."""
