"""What the checks and the player need of an event loop beyond what anyio has: one pass, rest, a run on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import attrs
import trio
import trio.testing

from trio_mlxgate.dialects import ANYIO, TRIO
from trio_mlxgate.testing.backends import Backend, run_on_loop, run_virtual, settle
from trio_mlxgate.testing.events import LawBroken
from trio_mlxgate.testing.virtual_time import EverybodyWaits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from contextlib import AbstractContextManager

    from trio_mlxgate.dialects import Dialect

_NEVER: Final = 1e6
"""Virtual seconds after which a run is taken to hang."""


class Tasks(Protocol):
    """What a task group has, whichever library it is of."""

    def start_soon(self, run: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> object:
        """Start a task."""
        ...

    def cancel(self) -> None:
        """Cancel all tasks."""
        ...


@attrs.frozen(repr=False)
class Harness:
    """One backend to check gates on, and the words in which they raise errors there."""

    backend: Backend
    dialect: Dialect

    def __repr__(self) -> str:
        return f"harness({self.backend!r}, {self.dialect.name.upper()})"

    @property
    def is_asyncio(self) -> bool:
        """Whether it is one of asyncio's."""
        return self.backend != "trio"

    def run(self, main: Callable[[], Awaitable[object]]) -> None:
        """Run ``main`` on a virtual clock. A hang is an error, and so is what nobody could hear of.

        Raises:
          LawBroken: somebody waits who should not, or a callback has failed.
        """
        if not self.is_asyncio:
            run_virtual(_limited, main, backend="trio")
            return
        unheard: list[dict[str, Any]] = []
        try:
            run_on_loop(main, backend=self.backend, longest=_NEVER, complain=unheard.append)
        except EverybodyWaits as error:
            raise LawBroken(f"somebody waits who should not: {error}") from error
        if unheard:
            cause = unheard[0].get("exception")
            raise LawBroken(f"nobody could hear of it: {unheard[0]['message']}: {cause!r}") from cause

    async def settle(self) -> None:
        """Wait until everything that can run has run. Always a checkpoint."""
        await settle()

    async def tick(self) -> None:
        """One pass of the scheduler. Always a checkpoint."""
        if self.is_asyncio:
            await asyncio.sleep(0)
        else:
            await trio.lowlevel.checkpoint()

    def now(self) -> float:
        """The time, also in a callback of the loop, where anyio doesn't know it."""
        return asyncio.get_running_loop().time() if self.is_asyncio else trio.current_time()

    def assert_checkpoints(self) -> AbstractContextManager[None]:
        """See that the block has a checkpoint: under asyncio, that other callbacks of the loop come to run."""
        return _assert_others_run(True) if self.is_asyncio else trio.testing.assert_checkpoints()

    def assert_no_checkpoints(self) -> AbstractContextManager[None]:
        """See that the block has none."""
        return _assert_others_run(False) if self.is_asyncio else trio.testing.assert_no_checkpoints()

    @contextlib.asynccontextmanager
    async def tasks(self, *, native: bool = False) -> AsyncIterator[Tasks]:
        """A group of tasks: anyio's or, with ``native`` and where tasks are eager, asyncio's own. A checkpoint.

        anyio takes a task that was cancelled by ``Task.cancel()`` for a reason to cancel its group, asyncio doesn't.
        And anyio's tasks are never eager.
        """
        if self.is_asyncio and (native or self.backend == "asyncio+eager"):
            async with asyncio.TaskGroup() as native_group:
                yield _NativeTasks(native_group)
        else:
            async with anyio.create_task_group() as group:
                yield _AnyioTasks(group)


def harness(backend: Backend, dialect: Dialect | None = None) -> Harness:
    """The harness of a backend; the dialect is trio's on trio, and else anyio's, unless it is said."""
    return Harness(backend, dialect or (TRIO if backend == "trio" else ANYIO))


class _AnyioTasks:
    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self._group = group

    def start_soon(self, run: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        self._group.start_soon(run, *args)

    def cancel(self) -> None:
        self._group.cancel_scope.cancel()


class _NativeTasks:
    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._started: list[asyncio.Task[object]] = []

    def start_soon(self, run: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> asyncio.Task[object]:
        task: asyncio.Task[object] = self._group.create_task(run(*args))
        self._started.append(task)
        return task

    def cancel(self) -> None:
        for task in self._started:
            task.cancel()


@contextlib.contextmanager
def _assert_others_run(expected: bool) -> Iterator[None]:
    ran: list[bool] = []
    handle = asyncio.get_running_loop().call_soon(ran.append, True)
    try:
        yield
    finally:
        handle.cancel()
        if bool(ran) is not expected:
            raise LawBroken(f"the block has {'no' if expected else 'a'} checkpoint")


async def _limited(main: Callable[[], Awaitable[object]]) -> None:  # a checkpoint
    async def watch(scope: trio.CancelScope) -> None:  # a checkpoint
        await trio.sleep(_NEVER)
        scope.cancel()

    # No deadline around it all: a gate would report it as one around its waits.
    ended = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        await main()
        ended = True
        nursery.cancel_scope.cancel()
    if not ended:
        raise LawBroken("somebody waits who should not")
