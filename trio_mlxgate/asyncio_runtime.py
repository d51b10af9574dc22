"""A running asyncio event loop as a gate sees it, whichever loop it is."""

from __future__ import annotations

import asyncio
import math
import sys
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from trio_mlxgate.call_sites import held_in_thread
from trio_mlxgate.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextvars import Context
    from types import FrameType

    import outcome

    from trio_mlxgate.driver import Driver
    from trio_mlxgate.slots import Slot

    Task = asyncio.Task[Any]

# Where asyncio's own deadlines, and those of the package that it took them from, cancel a task.
_TIMEOUTS: Final = frozenset({"asyncio.timeouts", "async_timeout"})
_EXPIRES: Final = "_on_timeout"
# anyio has no public names for these. Where they change, a thread can come to wait for itself; tests watch for that.
_SERVES_THREAD: Final = "task_wrapper"
_SCOPE: Final = "scope"

_holders: Final[ContextVar[tuple[weakref.ref[Task], ...]]] = ContextVar("trio_mlxgate.holders", default=())
"""The tasks that held something of a gate when this context was copied from theirs, and so when a task was started."""


class AsyncioRuntime(Runtime):
    """One event loop of asyncio. To be made while it runs."""

    token: asyncio.AbstractEventLoop

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.token = loop
        self.clock = loop.time
        # The loop itself has only weak references to tasks.
        self._tasks: set[Task] = set()

    def is_over(self) -> bool:
        return self.token.is_closed()

    def is_idle(self) -> bool:
        return not self.token.is_running()

    # ---- waiting ----

    async def checkpoint(self) -> None:
        """Always a checkpoint."""
        await asyncio.sleep(0)

    async def checkpoint_if_cancelled(self) -> None:
        """A checkpoint if the task has been cancelled, by a scope of anyio or by asyncio."""
        # asyncio has no public name for it: a cancellation that was asked for and is still to be delivered.
        if getattr(asyncio.current_task(), "_must_cancel", True):
            await asyncio.sleep(0)
        await checkpoint_if_cancelled()

    async def cancel_shielded_checkpoint(self) -> None:
        """Always a checkpoint. A cancellation is noticed at the next one."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as cancelled:
            _cancel_again(cancelled)

    def waiter(self, task: Task, abort: Callable[[Any], Any]) -> _Waiter:  # noqa: ARG002 - see Runtime
        return _Waiter(abort, self.token)

    async def sleep(self, waiter: _Waiter, abort: Callable[[Any], Any]) -> Any:  # noqa: ARG002 - see Runtime
        """Always a checkpoint."""
        try:
            result = await waiter
        except asyncio.CancelledError as cancelled:
            if waiter.cancelled():
                raise
            # It was woken before, so that it is late: as on trio the next checkpoint is to see it.
            _cancel_again(cancelled)
            result = waiter.result()
        except GeneratorExit:  # the coroutine is thrown away, with its loop
            waiter.cancel()
            raise
        return None if result is None else result.unwrap()

    def wake(self, waiter: _Waiter, result: outcome.Outcome[Any] | None = None) -> None:
        # Errors as values, too: asyncio would complain of one that nobody has come to fetch.
        try:
            waiter.set_result(result)
        except RuntimeError:
            if not self.token.is_closed():
                raise

    def scope(self, *, deadline: float = math.inf) -> anyio.CancelScope:
        return anyio.CancelScope(deadline=deadline)

    def effective_deadline(self) -> float:
        return anyio.current_effective_deadline()

    def expired_timeout(self) -> bool:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == _EXPIRES and frame.f_globals.get("__name__") in _TIMEOUTS:
                return True
            frame = frame.f_back
        return False

    # ---- at another time ----

    def timer(self, deadline: float, ring: Callable[[], float], name: str) -> _Timer:  # noqa: ARG002 - see Runtime
        return _Timer(self.token, deadline, ring)

    def soon(self, function: Callable[[], object], name: str) -> None:  # noqa: ARG002 - see Runtime
        self.token.call_soon(function)

    def soon_from_anywhere(self, function: Callable[[], object]) -> bool:
        try:
            self.token.call_soon_threadsafe(function)
        except RuntimeError:
            if not self.token.is_closed():
                raise
            return False
        return True

    def spawn(
        self, function: Callable[[], Coroutine[Any, Any, object]], name: str, context: Context | None = None
    ) -> Task:
        task = self.token.create_task(function(), name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def when_over(self, task: Task, function: Callable[[], object]) -> None:
        task.add_done_callback(lambda _: function())

    # ---- tasks ----

    def current_task(self) -> Task:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("this is called by a callback of the event loop, and not in a task")
        return _host_of(task) or task

    def owners(self, gate: Driver) -> dict[Task, Slot]:
        return _Owners(gate, self)

    def holds(self, task: Task) -> None:
        # Without those that have ended: in a long chain of tasks, each started by the one before, there is no end.
        alive = [holder for holder in _holders.get() if not _is_over(holder) and holder() is not task]
        _holders.set((*alive, weakref.ref(task)))

    def above(self, task: Task) -> Iterable[Task]:
        if task is asyncio.current_task() or _host_of(asyncio.current_task()) is task:
            holders = _holders.get()
        elif sys.version_info >= (3, 12):
            holders = task.get_context().get(_holders, ())
        else:
            return []  # it can't be seen from here
        found = [holder() for holder in holders]
        return [holder for holder in found if holder is not None and holder is not task]

    def name_of(self, task: Task) -> str:
        return task.get_name()

    def coroutine_of(self, task: Task) -> Any:
        return task.get_coro()

    # ---- threads ----

    def marks_of_served_thread(self) -> tuple[object, ...]:
        task = asyncio.current_task()
        return held_in_thread.get() if task is not None and _serves_thread(task) else ()


class _Waiter(asyncio.Future[Any]):
    """What a task waits for. When the task is cancelled it learns so in the same step: ``Task.cancel()`` cancels it."""

    def __init__(self, abort: Callable[[Any], Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._abort = abort

    def cancel(self, msg: Any = None) -> bool:
        # First this, since a hook that is told of it may raise what is no Exception.
        cancelled = super().cancel(msg)
        if cancelled:
            self._abort(None)
        return cancelled


def _cancel_again(cancelled: asyncio.CancelledError) -> None:
    """Let the current task's next checkpoint see a cancellation that has come at the wrong moment."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel(*cancelled.args)
    # What was asked for once is to count once: asyncio.timeout() and anyio's scopes tell by it whose it was. From Python
    # 3.13 on this drops a cancellation that had been taken back, as asyncio itself would have.
    task.uncancel()


class _Timer:
    def __init__(self, loop: asyncio.AbstractEventLoop, deadline: float, ring: Callable[[], float]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = loop.call_at(deadline, self._due)

    def move(self, deadline: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = self._loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._handle = None
        deadline = self._ring()
        if deadline < math.inf:
            self._handle = self._loop.call_at(deadline, self._due)


class _Owners(dict["Task", "Slot"]):
    """Which owned slot each task holds. A task that ends while it stands here is told to the gate, in the next pass."""

    def __init__(self, gate: Driver, runtime: AsyncioRuntime) -> None:
        super().__init__()
        self._gate = weakref.ref(gate)
        self._runtime = runtime
        self._watched: weakref.WeakSet[Task] = weakref.WeakSet()

    def __setitem__(self, task: Task, slot: Slot) -> None:
        super().__setitem__(task, slot)
        self._runtime.holds(task)
        if task not in self._watched:
            self._watched.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: Task) -> None:
        gate = self._gate()
        if gate is not None and gate._owners is self and task in self:
            gate._task_ended(task)


def _host_of(task: Task | None) -> Task | None:
    """Of a task that runs what a worker thread of anyio's has called: the task that waits for the thread."""
    if task is None or not _serves_thread(task):
        return None
    frame = getattr(task.get_coro(), "cr_frame", None)
    scope = None if frame is None else frame.f_locals.get(_SCOPE)
    # None, too, once the task has abandoned the thread.
    host: Task | None = getattr(scope, "_host_task", None)
    return host


def _serves_thread(task: Task) -> bool:
    coroutine = task.get_coro()
    return (
        getattr(coroutine, "__name__", None) == _SERVES_THREAD
        and getattr(coroutine, "__module__", "anyio").partition(".")[0] == "anyio"
    )


def _is_over(holder: weakref.ref[Task]) -> bool:
    task = holder()
    return task is None or task.done()
