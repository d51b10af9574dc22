"""Work that is done once for all who ask for it meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import outcome
import trio
from trio.lowlevel import enable_ki_protection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

T = TypeVar("T")


class _Landing(Generic[T]):
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.result: outcome.Value[T] | outcome.Error | None = None


class Flight(Generic[T]):
    """Runs ``work`` in a nursery, once for all who ask until it has ended; who asks and leaves stops nobody.

    It runs in ``context``, and not in that of whoever happens to ask first: what is said around a call is said of that
    call alone. A Ctrl-C strikes the main task, and not the work: that may be in the middle of an import, as httpx makes
    them late, where Python ignores what a callback raises, and the interrupt would be lost.
    """

    def __init__(self, work: Callable[[], Awaitable[T]], nursery: trio.Nursery, context: Context) -> None:
        self._work = work
        self._nursery = nursery
        self._context = context
        self._landing: _Landing[T] | None = None

    def start(self) -> _Landing[T]:
        """See to it that it runs. Never a checkpoint."""
        if self._landing is None:
            self._landing = _Landing()
            self._context.copy().run(self._nursery.start_soon, self._fly, self._landing)
        return self._landing

    async def join(self) -> outcome.Value[T] | outcome.Error:
        """Wait for its end, and return how it ended, to be looked at and not to be unwrapped. Always a checkpoint.

        Raises:
          trio.ClosedResourceError: the nursery was cancelled meanwhile.
        """
        landing = self.start()
        await landing.landed.wait()
        if landing.result is None:
            raise trio.ClosedResourceError("the registry was left meanwhile")
        return landing.result

    @enable_ki_protection
    async def _fly(self, landing: _Landing[T]) -> None:  # noqa: ASYNC910 - as the work is
        try:
            try:
                landing.result = outcome.Value(await self._work())
            except Exception as error:  # noqa: BLE001 - whoever waits looks at it
                landing.result = outcome.Error(error)
        finally:
            self._landing = None
            landing.landed.set()
