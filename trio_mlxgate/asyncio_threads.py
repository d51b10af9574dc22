"""What anyio's worker threads need of us under asyncio, where anyio says less of them than trio does."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from trio.lowlevel import enable_ki_protection

from trio_mlxgate.call_sites import held_in_thread
from trio_mlxgate.threads import GateLimiter

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType, FrameType, TracebackType

    from trio_mlxgate.detached_slots import DetachedSlot

    Task = asyncio.Task[Any]

# anyio has no public names for these. Where they change, a thread can come to wait for itself, and one that is
# abandoned gives its slot back too early; tests watch for that.
_STARTS_THREAD: Final = "run_sync_in_worker_thread"
_SCOPE_THERE: Final = "worker_scope"
_CONTEXT: Final = "context"
_SERVES_THREAD: Final = "task_wrapper"
_SCOPE_HERE: Final = "scope"


def serves_thread(task: Task | None) -> bool:
    """Whether this task is nothing but what a worker thread has called, and waits for."""
    code = getattr(None if task is None else task.get_coro(), "cr_code", None)
    return code is not None and code.co_name == _SERVES_THREAD and _is_anyios(code)


def host_of(task: Task | None, candidates: Iterable[Task]) -> Task | None:
    """Of a task that serves a thread: the one of ``candidates`` that has started this thread and waits for it."""
    if task is None or not serves_thread(task):
        return None
    scope = _local(getattr(task.get_coro(), "cr_frame", None), _SCOPE_HERE)
    if scope is None:
        return None
    for candidate in candidates:
        awaited: Any = candidate.get_coro()
        while inspect.iscoroutine(awaited):
            if awaited.cr_code.co_name == _STARTS_THREAD and _is_anyios(awaited.cr_code):
                if _local(awaited.cr_frame, _SCOPE_THERE) is scope:
                    return candidate
                break
            awaited = awaited.cr_await
    return None


LOOK_EVERY: Final = 0.05
"""Seconds after which a thread that was abandoned is looked at: whether it has ended."""


class AnyioLimiter(GateLimiter):
    """The gate's limiter for ``anyio.to_thread.run_sync``.

    Under asyncio that one leaves its limiter when its task is cancelled, although the thread may work on, so that one
    more would be let in beside it. Here a slot that is left so goes back when the thread has ended, a tenth of a
    second later at most.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Of the tasks that wait for threads: what the slot is known by in the thread, and what was known before.
        self._marks: dict[Task, tuple[object, tuple[object, ...]]] = {}

    if not TYPE_CHECKING:  # as in GateLimiter

        @enable_ki_protection
        async def __aenter__(self) -> None:
            """:meth:`acquire`. Always a checkpoint."""
            await self.acquire()
            task = asyncio.current_task()
            if task is not None and sys._getframe(1).f_code.co_name == _STARTS_THREAD:
                before = held_in_thread.get()
                mark = object()
                self._marks[task] = mark, before
                # anyio copies this context for the thread, after this.
                held_in_thread.set((*before, mark))

        @enable_ki_protection
        async def __aexit__(  # noqa: ASYNC910 - like that of anyio's limiter
            self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
        ) -> None:
            """:meth:`release`, or see to it that it comes when the thread has ended. Never a checkpoint."""
            task = asyncio.current_task()
            if task not in self._marks:
                self.release()
                return  # noqa: ASYNC910
            mark, before = self._marks.pop(task)
            held_in_thread.set(before)
            caller = sys._getframe(1)
            context = _local(caller, _CONTEXT) if isinstance(exc, asyncio.CancelledError) else None
            if not isinstance(context, Context):
                self.release()
                return  # noqa: ASYNC910
            slot = self._take(self._current_task())
            slot.mark = mark  # from here on it is the thread's
            _release_after(context, slot)


def _release_after(context: Context, slot: DetachedSlot) -> None:
    """Give the slot back when the thread that works in this context has left it. Nobody tells, so it is looked at."""
    runtime = slot.runtime
    quiet = 0

    def look() -> float:
        nonlocal quiet
        if slot._admission is not slot.gate._admission:
            return math.inf  # the gate serves another run by now
        try:
            context.run(_nothing)
        except RuntimeError:  # one thread at a time may be in a context
            quiet = 0
        else:
            # Twice: a thread that is just about to begin isn't in it yet.
            quiet += 1
        if quiet < 2:
            return runtime.clock() + LOOK_EVERY
        slot.release()
        return math.inf

    runtime.timer(runtime.clock() + LOOK_EVERY, look, f"abandoned thread in a slot of gate {slot.gate.name!r}")


def _nothing() -> None:
    """Run in a context to see whether that is free."""


def _is_anyios(code: CodeType) -> bool:
    return "anyio" in code.co_filename


def _local(frame: FrameType | None, name: str) -> Any:
    return None if frame is None else frame.f_locals.get(name)
