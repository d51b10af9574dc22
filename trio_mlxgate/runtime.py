"""What a gate needs of the library that runs its tasks; ``trio_runtime.py`` and ``asyncio_runtime.py`` have it.

One object for each run that a gate is bound to. Everything above this knows neither trio nor asyncio.
"""

# The methods that do nothing are there to be overridden.
# ruff: noqa: ARG002

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from contextvars import Context
    from types import TracebackType

    import outcome

    from trio_mlxgate.driver import Driver
    from trio_mlxgate.slots import Slot

SomeTask: TypeAlias = Any
"""A task of trio's or of asyncio's: an object that can be hashed, and is known by its identity."""

Waiter: TypeAlias = Any
"""What is to be woken: of trio the task, of asyncio the future for which it waits."""


class Scope(Protocol):
    """A cancel scope, of trio or of anyio."""

    @property
    def cancelled_caught(self) -> bool: ...
    @property
    def deadline(self) -> float: ...
    @deadline.setter
    def deadline(self, value: float) -> None: ...
    def cancel(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None, /
    ) -> bool | None: ...


class Timer(Protocol):
    """A function that is to be called at a time."""

    def move(self, deadline: float) -> None:
        """Let it be called at another time."""
        ...


class Runtime:
    """One run of a library, as a gate sees it. This one stands for none: nothing can wait in it."""

    token: Any = None
    """What the run is known by."""

    clock: Callable[[], float] = staticmethod(lambda: 0.0)
    """The run's clock, in seconds. Without a run nothing has happened yet."""

    def is_over(self) -> bool:
        """Whether the run has ended. From any thread."""
        return True

    def is_idle(self) -> bool:
        """Whether the run stands still, so that a gate which nobody uses may serve another one."""
        return True

    # ---- waiting ----

    async def checkpoint(self) -> None:
        """Let others run, and notice a cancellation. Always a checkpoint."""
        raise NotImplementedError

    async def checkpoint_if_cancelled(self) -> None:
        """A checkpoint if the task has been cancelled, else none."""
        raise NotImplementedError

    async def cancel_shielded_checkpoint(self) -> None:
        """Let others run; a cancellation is noticed at the next checkpoint."""
        raise NotImplementedError

    async def to_its_end(self, function: Callable[[], Awaitable[object]], name: str) -> None:
        """Run it to its end, whatever cancels the current task meanwhile, which is noticed afterwards.

        A checkpoint if the function is one. Where it must run in a task of its own, that has the name. To be used for
        what has an end.
        """
        raise NotImplementedError

    late: Any = ()
    """The tasks whose cancellation was put off by :meth:`sleep`, on asyncio."""

    async def deliver_late(self) -> None:
        """Let the current task see such a cancellation now, if it hasn't yet: then it is a checkpoint."""

    async def late_checkpoint(self) -> None:
        """Let others run, after what has happened can't be undone by a cancellation. Always a checkpoint.

        On trio it can't be cancelled. On asyncio it can, since a task that is cancelled and returns loses its value.
        """
        raise NotImplementedError

    def waiter(self, task: SomeTask, abort: Callable[[Any], Any], *, put_off: bool = False) -> Waiter:
        """What the current task is to be woken by. For one :meth:`sleep`.

        ``abort`` is called, in the very step of the cancellation, if the sleep is cancelled before it is ended.
        """
        raise NotImplementedError

    def sleep(self, waiter: Waiter, abort: Callable[[Any], Any]) -> Awaitable[Any]:
        """Sleep until :meth:`wake`; gives the value of its outcome. Always a checkpoint.

        On trio, a cancellation that comes after the wake is noticed at the next checkpoint and not here. On asyncio so,
        too, if ``put_off`` was said and the outcome is a value; else the cancellation is raised, and the outcome lost.
        """
        raise NotImplementedError

    def wake(self, waiter: Waiter, result: outcome.Outcome[Any] | None = None) -> None:
        """Let a sleeping task go on, with the outcome of its sleep. Once for each."""
        raise NotImplementedError

    def scope(self, *, deadline: float = math.inf) -> Scope:
        """A cancel scope with that deadline."""
        raise NotImplementedError

    def effective_deadline(self) -> float:
        """When the current task will be cancelled, as far as the library tells; -inf: it is already."""
        raise NotImplementedError

    def timed_out(self, waiter: Waiter) -> bool:
        """Whether the sleep was cancelled by a deadline that :meth:`effective_deadline` couldn't tell of."""
        return False

    # ---- at another time ----

    def timer(self, deadline: float, ring: Callable[[], float], name: str) -> Timer:
        """Call ``ring`` at that time, and again at the time that it returns; inf: no more."""
        raise NotImplementedError

    def soon(self, function: Callable[[], object], name: str) -> None:
        """Call ``function`` in the next pass of the scheduler."""
        raise NotImplementedError

    def soon_from_anywhere(self, function: Callable[[], object]) -> bool:
        """Call ``function`` in the run at the next occasion. From any thread; whether the run is still there."""
        return False

    def spawn(
        self, function: Callable[[], Coroutine[Any, Any, object]], name: str, context: Context | None = None
    ) -> SomeTask:
        """Start a task that belongs to the run and to nobody in it. It is cancelled when the run ends."""
        raise NotImplementedError

    def when_over(self, task: SomeTask, function: Callable[[], object]) -> None:
        """Call ``function`` when a task of :meth:`spawn` has ended, if that may be before it has begun."""

    # ---- tasks ----

    def current_task(self) -> SomeTask:
        """The task that runs; of a call that a worker thread has made, the task that waits for the thread."""
        raise NotImplementedError

    def owners(self, gate: Driver) -> dict[SomeTask, Slot]:
        """A new table of which owned slot each task of the gate holds, whose tasks are watched: see :meth:`watch`."""
        return {}

    def watch(self, gate: Driver) -> None:
        """From here on, let the gate hear of each task that ends and owns a slot still: ``gate._task_ended(task)``."""

    def holds(self, slot: Slot) -> None:
        """The current task has been granted this: those that it starts are to know of it, see :meth:`above`."""

    def above(self, task: SomeTask) -> Iterable[SomeTask]:
        """The tasks above this one that may wait for its end and may hold something."""
        return ()

    def name_of(self, task: SomeTask) -> str:
        """The name of a task."""
        return str(task)

    def coroutine_of(self, task: SomeTask) -> Any:
        """The coroutine of a task."""
        return None

    # ---- threads ----

    def current_host(self) -> SomeTask | None:
        """Of a task that runs what a thread has called: the task that waits for the thread, if it holds anything."""
        return None

    def marks_of_served_thread(self) -> tuple[object, ...]:
        """The marks of the slots that a worker thread runs in for which the current task is running this; or ()."""
        return ()

    def borrower_of_thread(self, host: SomeTask) -> object | None:
        """In whose name the limiter was asked for the thread for which ``host`` waits; None if it waits for none."""
        return None


NO_RUNTIME: Final = Runtime()
"""Of a gate that no run has used yet."""
