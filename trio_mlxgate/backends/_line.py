"""What an adapter has in one run, and how all that it does there is ended at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio
from trio.lowlevel import enable_ki_protection

if TYPE_CHECKING:
    from types import TracebackType

    from trio_mlxgate.backends.prober import Prober
    from trio_mlxgate.httpx import GateTransport


def current_run() -> trio.lowlevel.TrioToken:
    """The trio run that this is called in.

    Raises:
      RuntimeError: it is called in none.
    """
    if not trio.lowlevel.in_trio_task():
        raise RuntimeError(
            "backends are for trio: use an adapter inside of trio.run(). On asyncio there are the gate of "
            "trio_mlxgate.anyio and trio_mlxgate.httpx.GateTransport"
        )
    return trio.lowlevel.current_trio_token()


@attrs.define(eq=False)
class _Use:
    """See :meth:`Line.use`. Ctrl-C doesn't strike within its two ends: whoever closes would wait for it in vain."""

    _line: Line
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    @enable_ki_protection
    def __enter__(self) -> None:
        if self._line.closed:
            raise self._line.refusal()
        self._scope.__enter__()
        self._line.running.add(self._scope)

    @enable_ki_protection
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        line = self._line
        line.running.discard(self._scope)
        if line.all_over is not None and not line.running:
            line.all_over.set()
        caught = self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise line.refusal() from None
        return caught


@attrs.define(eq=False)
class Line:
    """What an adapter has in one run."""

    name: str
    """Of the adapter."""

    run: trio.lowlevel.TrioToken
    gated: GateTransport
    prober: Prober
    last_token_at: float = -math.inf
    closed: bool = False
    running: set[trio.CancelScope] = attrs.field(factory=set, init=False)
    all_over: trio.Event | None = attrs.field(default=None, init=False)

    def use(self) -> _Use:
        """A block that waits for the server or for its slot: closing ends it, wherever it is.

        Raises:
          trio.ClosedResourceError: on entering, or out of the middle.
        """
        return _Use(self)

    def refusal(self) -> trio.ClosedResourceError:
        """What is raised once it is closed."""
        return trio.ClosedResourceError(
            f"the adapter {self.name!r} was closed, as a registry does with its own when it is left: in this run it is "
            "not to be used again, so make a new one"
        )

    async def aclose(self) -> None:
        """End all that runs, and close all that is open. Always a checkpoint."""
        self.closed = True
        try:
            await self._end_all()
        finally:
            try:
                await self.gated.aclose()  # noqa: ASYNC102 - what it waits for shields itself and has an end of its own
            finally:
                await self.prober.aclose()  # noqa: ASYNC102 - it has an end of its own

    async def _end_all(self) -> None:
        """End all blocks of :meth:`use`, and return when they are over. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        if self.running:
            if self.all_over is None:
                self.all_over = trio.Event()
            for scope in list(self.running):
                scope.cancel()
            await self.all_over.wait()
