"""A trio run as a gate sees it."""

# That a class attribute is as good as a method is not seen by
# pyright: reportAssignmentType=false

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from trio.lowlevel import current_trio_token

from trio_mlxgate.call_sites import held_in_thread
from trio_mlxgate.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable
    from contextvars import Context
    from types import FrameType

    from trio.lowlevel import Task, TrioToken

    from trio_mlxgate.driver import Driver

_MESSENGER: Final = "trio._threads"
# trio has no public names for these. Where they change, a thread can come to wait for itself; tests watch for that.
_STARTS_THREAD: Final = "to_thread_run_sync"
_BORROWER: Final = "placeholder"


class TrioRuntime(Runtime):
    """One run of trio. To be made inside of it."""

    token: TrioToken

    # What nearly every call uses is trio's own function, without one of ours around it.
    checkpoint = staticmethod(trio.lowlevel.checkpoint)
    checkpoint_if_cancelled = staticmethod(trio.lowlevel.checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(trio.lowlevel.cancel_shielded_checkpoint)
    late_checkpoint = staticmethod(trio.lowlevel.cancel_shielded_checkpoint)
    wake = staticmethod(trio.lowlevel.reschedule)  # type: ignore[assignment] # its parameters have other names
    current_task = staticmethod(trio.lowlevel.current_task)
    effective_deadline = staticmethod(trio.current_effective_deadline)
    scope = trio.CancelScope

    def __init__(self, token: TrioToken) -> None:
        self.token = token
        self.clock = trio.lowlevel.current_clock().current_time

    def is_over(self) -> bool:
        try:
            self.token.run_sync_soon(_nothing, idempotent=True)
        except trio.RunFinishedError:
            return True
        return False

    def is_idle(self) -> bool:
        return False

    async def to_its_end(self, function: Callable[[], Awaitable[object]], name: str) -> None:  # noqa: ARG002
        """A checkpoint if the function is one, which can't be cancelled."""
        with trio.CancelScope(shield=True):
            await function()

    def waiter(self, task: Task, abort: Callable[[Any], Any], *, put_off: bool = False) -> Task:  # noqa: ARG002
        return task

    def sleep(self, waiter: Task, abort: Callable[[Any], Any]) -> Awaitable[Any]:  # noqa: ARG002 - see Runtime
        return trio.lowlevel.wait_task_rescheduled(abort)  # noqa: ASYNC105 - it is awaited by who calls this

    def timer(self, deadline: float, ring: Callable[[], float], name: str) -> _Timer:
        return _Timer(deadline, ring, name)

    def soon(self, function: Callable[[], object], name: str) -> None:
        async def run() -> None:  # noqa: ASYNC124, ASYNC910 - a system task, which is a coroutine by trio's wish alone
            function()

        trio.lowlevel.spawn_system_task(run, name=name)

    def soon_from_anywhere(self, function: Callable[[], object]) -> bool:
        try:
            self.token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True

    def spawn(
        self, function: Callable[[], Coroutine[Any, Any, object]], name: str, context: Context | None = None
    ) -> Task:
        return trio.lowlevel.spawn_system_task(function, name=name, context=context)

    def watch(self, gate: Driver) -> None:
        self.watch_owners(gate)

    def watch_owners(self, keeper: Keeper) -> None:
        """Tell this one of each of its owners that has ended."""
        try:
            exits = _exits.get()
        except LookupError:
            exits = _Exits()
            _exits.set(exits)
            trio.lowlevel.add_instrument(exits)
        exits.add(keeper)

    def above(self, task: Task) -> Iterable[Task]:
        nursery = task.parent_nursery
        while nursery is not None:
            yield nursery.parent_task
            nursery = nursery.parent_task.parent_nursery

    def name_of(self, task: Task) -> str:
        return task.name

    def coroutine_of(self, task: Task) -> Any:
        return task.coro

    def marks_of_served_thread(self) -> tuple[object, ...]:
        """The thread waits for the outcome: that sets this apart from a task that was started by such a one."""
        frame: FrameType | None = sys._getframe(1)
        serves = False
        while frame is not None:
            if frame.f_globals.get("__name__") == _MESSENGER:
                if frame.f_code.co_name != _STARTS_THREAD:
                    serves = True
                elif serves:
                    return (*held_in_thread.get(), frame.f_locals.get(_BORROWER))
            frame = frame.f_back
        return held_in_thread.get() if serves else ()

    def borrower_of_thread(self, host: Task) -> object | None:
        awaited: Any = host.coro
        borrower = None
        while inspect.iscoroutine(awaited) and awaited.cr_frame is not None:
            frame = awaited.cr_frame
            if frame.f_code.co_name == _STARTS_THREAD and frame.f_globals.get("__name__") == _MESSENGER:
                borrower = frame.f_locals.get(_BORROWER)
            awaited = awaited.cr_await
        return borrower


def current_trio_run() -> TrioToken:
    """The token of the current run. Raises RuntimeError outside of one."""
    return current_trio_token()


class _Timer:
    """A system task that lives until there is nothing more to ring for."""

    def __init__(self, deadline: float, ring: Callable[[], float], name: str) -> None:
        self._ring = ring
        self._scope = trio.CancelScope(deadline=deadline)
        trio.lowlevel.spawn_system_task(self._run, name=name)

    def move(self, deadline: float) -> None:
        self._scope.deadline = deadline

    async def _run(self) -> None:
        """Sleep and ring, until there is nothing more to ring for. Always a checkpoint."""
        while True:
            with self._scope:
                await trio.sleep_forever()
            deadline = self._ring()
            if deadline == math.inf:
                return
            self._scope = trio.CancelScope(deadline=deadline)


class Keeper(Protocol):
    """A gate, or what leases models: it keeps what tasks own."""

    @property
    def _owners(self) -> Container[Any]: ...

    def _task_ended(self, task: Any) -> None: ...


class _Exits(trio.abc.Instrument):
    """Tells the gates of one run of each task that has ended, in the step in which it ends."""

    def __init__(self) -> None:
        self._gates: dict[weakref.ref[Keeper], None] = {}

    def add(self, gate: Keeper) -> None:
        self._gates[weakref.ref(gate, self._drop)] = None

    def _drop(self, gone: weakref.ref[Keeper]) -> None:
        self._gates.pop(gone, None)

    def task_exited(self, task: Task) -> None:
        # A copy: the collector may drop a gate meanwhile.
        for reference in tuple(self._gates):
            gate = reference()
            if gate is None or task not in gate._owners:
                continue
            try:
                gate._task_ended(task)
            # Of a hook, and no Exception. If it came out here, trio would log it and tell us of no more tasks.
            except BaseException as error:  # noqa: BLE001, ASYNC103
                with contextlib.suppress(RuntimeError):  # the run is at its very end
                    trio.lowlevel.spawn_system_task(_raise, error)


async def _raise(error: BaseException) -> None:  # noqa: ASYNC124, ASYNC910 - a task is a coroutine
    raise error


_exits: Final[trio.lowlevel.RunVar[_Exits]] = trio.lowlevel.RunVar("trio_mlxgate.exits")


def _nothing() -> None:
    """Called in a run to see whether it is alive."""
