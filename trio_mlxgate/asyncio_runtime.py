"""A running asyncio event loop as a gate sees it, whichever loop it is."""

# Here cancellations are put off and delivered again, and what is a checkpoint on asyncio is none for its linter: that
# is what the noqa comments are for.

from __future__ import annotations

import asyncio
import math
import sys
import weakref
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import outcome
from anyio.lowlevel import checkpoint_if_cancelled

from trio_mlxgate.asyncio_threads import host_of, serves_thread
from trio_mlxgate.call_sites import held_in_thread
from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.detached_slots import DetachedSlot
from trio_mlxgate.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from types import FrameType

    from trio_mlxgate.driver import Driver
    from trio_mlxgate.slots import Slot

    Task = asyncio.Task[Any]

# Where asyncio's own deadlines, and those of the package that it took them from, cancel a task.
_TIMEOUTS: Final = frozenset({"asyncio.timeouts", "async_timeout"})
_EXPIRES: Final = "_on_timeout"

_held: Final[ContextVar[tuple[Slot, ...]]] = ContextVar("trio_mlxgate.held", default=())
"""What the task held, and those above it, when this context was copied from its own, and so when a task was started."""


class AsyncioRuntime(Runtime):
    """One event loop of asyncio. To be made while it runs."""

    token: asyncio.AbstractEventLoop

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.token = loop
        self.clock = loop.time
        # The loop itself has only weak references to tasks.
        self._tasks: set[Task] = set()
        self.late: weakref.WeakSet[Task] = weakref.WeakSet()

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

    async def cancel_shielded_checkpoint(self) -> None:  # noqa: ASYNC910
        """Always a checkpoint. A cancellation is noticed at the next one."""
        # Of a scope of anyio's nothing must be put off: one that has ended meanwhile wouldn't take it back.
        with anyio.CancelScope(shield=True):  # noqa: ASYNC912
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:  # noqa: ASYNC103
                _cancel_again(cancelled)

    async def to_its_end(self, function: Callable[[], Awaitable[object]], name: str) -> None:
        """Always a checkpoint.

        In a task of its own: ``Task.cancel()`` ends what a task awaits, through whatever shield of anyio's.
        """
        begun = False

        async def run() -> None:
            nonlocal begun
            begun = True
            await function()

        task = self.spawn(run, name)
        late: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):  # noqa: ASYNC912
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError as cancelled:  # noqa: ASYNC103
                    late = cancelled
                if task.cancelled() and not begun:  # who cancels all tasks there are has met with it
                    task = self.spawn(run, name)
        if late is None:
            task.result()
            return  # noqa: ASYNC910
        if not task.cancelled() and (error := task.exception()) is not None:
            # The cancellation goes first, or what cancels would not know that it has arrived.
            raise late from error
        raise late

    async def deliver_late(self) -> None:  # noqa: ASYNC910
        """A checkpoint if there is a cancellation still to be delivered."""
        task = asyncio.current_task()
        if task is not None and task in self.late:
            self.late.discard(task)
            if getattr(task, "_must_cancel", False):
                await asyncio.sleep(0)

    async def late_checkpoint(self) -> None:
        """Always a checkpoint. A scope of anyio's doesn't cancel it, ``Task.cancel()`` does."""
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0)

    def waiter(self, task: Task, abort: Callable[[Any], Any], *, put_off: bool = False) -> _Waiter:  # noqa: ARG002
        return _Waiter(abort, self.token, put_off)

    async def sleep(self, waiter: _Waiter, abort: Callable[[Any], Any]) -> Any:  # noqa: ARG002 - see Runtime
        """Always a checkpoint."""
        try:
            result = await waiter
        except asyncio.CancelledError as cancelled:  # noqa: ASYNC103
            if waiter.cancelled() or not waiter.put_off or isinstance(waiter.result(), outcome.Error):
                raise
            # It was woken before, so that this is late: as on trio the next checkpoint is to see it.
            _cancel_again(cancelled)
            self.late.add(cast("Task", asyncio.current_task()))
            result = waiter.result()
        except GeneratorExit:  # the coroutine is thrown away, with its loop
            waiter.cancel()
            raise
        return None if result is None else result.unwrap()  # noqa: ASYNC910

    def wake(self, waiter: _Waiter, result: outcome.Outcome[Any] | None = None) -> None:
        # Errors as values, too: asyncio would complain of one that nobody has come to fetch.
        try:
            waiter.set_result(result)
        except (RuntimeError, asyncio.InvalidStateError):  # the loop is gone, and its tasks are thrown away
            if not waiter.get_loop().is_closed():
                raise

    def scope(self, *, deadline: float = math.inf) -> anyio.CancelScope:
        return anyio.CancelScope(deadline=deadline)

    def effective_deadline(self) -> float:
        return anyio.current_effective_deadline()

    def timed_out(self, waiter: _Waiter) -> bool:
        return waiter.timed_out

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
        coroutine = function()
        try:
            task = self.token.create_task(coroutine, name=name, context=context)
        except BaseException:
            coroutine.close()
            raise
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
        return task if not serves_thread(task) else self.current_host() or task

    def owners(self, gate: Driver) -> dict[Task, Slot]:
        return _Owners(gate, self)

    def holds(self, slot: Slot) -> None:
        # Without those that are held no more: in a chain of tasks, each started by the one before, there is no end.
        _held.set((slot, *(other for other in _held.get() if other.state is TicketState.GRANTED)))

    def above(self, task: Task) -> Iterable[Task]:
        if task is asyncio.current_task() or self.current_host() is task:
            held = _held.get()
        elif sys.version_info >= (3, 12):
            held = task.get_context().get(_held, ())
        else:
            return []  # it can't be seen from here
        return [holder for holder in _holders(held) if holder is not task]

    def name_of(self, task: Task) -> str:
        return task.get_name()

    def coroutine_of(self, task: Task) -> Any:
        return task.get_coro()

    # ---- threads ----

    def current_host(self) -> Task | None:
        task = asyncio.current_task()
        return host_of(task, _holders(_held.get())) if serves_thread(task) else None

    def marks_of_served_thread(self) -> tuple[object, ...]:
        return held_in_thread.get() if serves_thread(asyncio.current_task()) else ()


class _Waiter(asyncio.Future[Any]):
    """What a task waits for. When the task is cancelled it learns so in the same step: ``Task.cancel()`` cancels it."""

    def __init__(self, abort: Callable[[Any], Any], loop: asyncio.AbstractEventLoop, put_off: bool) -> None:
        super().__init__(loop=loop)
        self._abort = abort
        self.put_off = put_off
        self.timed_out = False
        """Whether a timeout of asyncio's has cancelled it."""

    def cancel(self, msg: Any = None) -> bool:
        # First this, since a hook that is told of it may raise what is no Exception.
        if self.done():
            return False
        try:
            return super().cancel(msg)
        finally:  # on a closed loop it raises, and is cancelled all the same
            if self.cancelled():
                self.timed_out = _is_called_by_a_timeout()
                self._abort(None)


def _is_called_by_a_timeout() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == _EXPIRES and frame.f_globals.get("__name__") in _TIMEOUTS:
            return True
        frame = frame.f_back
    return False


def _cancel_again(cancelled: asyncio.CancelledError) -> None:
    """Let the current task's next checkpoint see a cancellation that has come at the wrong moment."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel(*cancelled.args)
    # What was asked for once is to count once: asyncio.timeout() and anyio's scopes tell by it whose it was. From
    # Python 3.13 on this drops a cancellation that had been taken back, as asyncio itself would have.
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
        try:
            deadline = self._ring()
        except BaseException:  # of a hook, and no Exception: the loop goes on, and so must this
            self._handle = self._loop.call_at(self._loop.time(), self._due)
            raise
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
        self._runtime.holds(slot)
        if task not in self._watched:
            self._watched.add(task)
            # In a context of its own: in this one there is the slot, and so the gate.
            task.add_done_callback(self._ended, context=Context())

    def _ended(self, task: Task) -> None:
        gate = self._gate()
        if gate is not None and gate._owners is self and task in self:
            gate._task_ended(task)


def _holders(slots: Iterable[Slot]) -> list[Task]:
    """The tasks that hold these still, whether they own them or have them tied."""
    held = [slot for slot in slots if slot.state is TicketState.GRANTED]
    found = [slot.holder if isinstance(slot, DetachedSlot) else slot.task for slot in held]
    return list(dict.fromkeys(task for task in found if task is not None))
