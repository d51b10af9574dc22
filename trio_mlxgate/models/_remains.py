"""What is left of a model's server that was killed and hangs in the system: kept in sight, until it has gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio_mlxgate.models.guarded import GuardedProcess


class Remains:
    """At most one process, which was killed and is still there. Its memory may still be taken, so none follows it."""

    def __init__(self) -> None:
        self._server: GuardedProcess | None = None
        self._ending = trio.Lock()

    def __bool__(self) -> bool:
        """Whether there is one, as was seen last."""
        return self._server is not None

    @property
    def pid(self) -> int | None:
        """Its id, and that of its group."""
        return None if self._server is None else self._server.pid

    @property
    def guard_pid(self) -> int | None:
        """The id of its guard, which waits for its end."""
        return None if self._server is None else self._server.guard_pid

    def note(self, server: GuardedProcess) -> None:
        """The block of this one was left: is it still there?"""
        if server.is_left:
            self._server = server

    async def look(self) -> bool:
        """Whether it is still there, now. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        if self._server is None:
            return False
        return self._server.is_there or await self.end()

    async def end(self) -> bool:
        """Kill it again, wait a few seconds, and return whether it is still there. Always a checkpoint."""
        async with self._ending:
            server = self._server
            if server is not None:
                await server.end_again()
                if not server.is_left:
                    self._server = None
        return server is not None and server.is_left

    def take(self) -> GuardedProcess | None:
        """Forget it: whoever takes it lets it go."""
        server, self._server = self._server, None
        return server

    async def let_go(self, server: GuardedProcess) -> None:
        """Nobody looks after it any more. Always a checkpoint, shielded and bounded."""
        with trio.CancelScope(shield=True):
            async with self._ending:
                await server.let_go()
