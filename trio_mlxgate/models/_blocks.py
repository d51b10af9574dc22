"""``async with`` for what a task runs: it runs for as long as the block does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Any, Self


class RunInBlock:
    """Something that is run once, by ``await nursery.start(it.run)``, or for the time of ``async with it:``."""

    def __init__(self) -> None:
        self._entered = False
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._own_nursery: trio.Nursery | None = None

    async def run(  # noqa: ASYNC114 - what it starts is a value, to be used after it
        self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run it until cancelled. Always a checkpoint."""
        raise NotImplementedError

    def _run_once(self) -> str:
        """What to say to who runs it a second time."""
        raise NotImplementedError

    def _begin_to_run(self) -> None:
        """It is to be run now. Raises RuntimeError if that is not the first time, or not in trio."""
        self._check_first_run()
        self._entered = True

    def _check_first_run(self) -> None:
        if self._entered:
            raise RuntimeError(self._run_once())
        if not trio.lowlevel.in_trio_run():
            raise RuntimeError(f"{type(self).__name__} works under trio alone: run it inside of trio.run()")

    async def __aenter__(self) -> Self:
        """Begin to run it. Always a checkpoint, unless it raises RuntimeError.

        Raises:
          RuntimeError: it runs already, or did: each is run once; or this is not in trio.
        """
        self._check_first_run()
        self._manager = trio.open_nursery()
        nursery = self._own_nursery = await self._manager.__aenter__()
        try:
            await nursery.start(self.run)
        except BaseException:
            await self.__aexit__(None, None, None)  # noqa: ASYNC102, ASYNC120 - shielded by its own scope, cancelled
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it, and wait until it has ended. Always a checkpoint, shielded, and bounded as its end is."""
        assert self._manager is not None
        assert self._own_nursery is not None
        # The error of the block is not the nursery's: it would come out in a group.
        self._own_nursery.cancel_scope.shield = True
        self._own_nursery.cancel_scope.cancel()
        manager, self._manager, self._own_nursery = self._manager, None, None
        await manager.__aexit__(None, None, None)  # noqa: ASYNC102 - shielded by its own scope, and cancelled
