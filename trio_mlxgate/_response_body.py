"""An open response body and the slot that it holds: closed by who has it, or in its run when nobody has it any more.

It knows nothing of the stream that users see, so that it can outlive that one.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint
from trio.lowlevel import enable_ki_protection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_mlxgate.runtime import Runtime, SomeTask

LEAST_CLOSE_TIMEOUT: Final = 1.0
"""Seconds that closing a response gets even if its hold budget is used up: a connection must be told to go."""

_logger: Final = logging.getLogger(__name__)


class Hold(Protocol):
    """What a response keeps until it is closed: a detached slot, a loan, or an exchange that has one of these."""

    @property
    def deadline(self) -> float:
        """The time on the run's clock at which the response is to be over; inf for none."""
        ...

    @property
    def runtime(self) -> Runtime:
        """The run that it belongs to."""
        ...

    def adopt(self, task: SomeTask | None = None) -> None:
        """The current task, or this one, is the one that will give it back."""
        ...

    def release(self) -> None:
        """Give it back. Never a checkpoint."""
        ...


class ByteStream(Protocol):
    """What both families take for a body."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class ResponseBody:
    """The inner transport's stream, its iterator once reading has begun, and the slot that both hold.

    To be made in the run of the slot. What changes here changes in that run alone, whatever thread drops the response.
    """

    def __init__(self, name: str, inner: ByteStream, hold: Hold, close_timeout: float) -> None:
        self.name = name
        """The request, for messages: without a password, and without a query."""
        self.inner = inner
        self.hold = hold
        self.iterator: AsyncIterator[bytes] | None = None
        self.reading = False
        """Whether a task is inside the iterator."""
        self.closed = False
        """Whether closing has begun; the slot is given back, or about to be."""
        self._close_timeout = close_timeout
        self._given_back = False
        self._runtime = hold.runtime

    @enable_ki_protection
    async def aclose(self) -> None:
        """Close the body, then give the slot back, in that order: the server is free when the next request comes.

        Always a checkpoint, and can't be cancelled. It is given up after ``close_timeout`` seconds, or when the hold
        budget is used up, but not before :data:`LEAST_CLOSE_TIMEOUT` seconds. The second time it does nothing else.
        """
        # First this, and without a checkpoint, since a task of asyncio's can be cancelled at each.
        again, self.closed = self.closed, True
        if again:
            await cancel_shielded_checkpoint()
        else:
            await self._runtime.to_its_end(self._close_all, f"close response to {self.name}")

    @enable_ki_protection
    async def close_dropped(self) -> None:  # noqa: ASYNC910 - also where closing fails it has gone by one
        """As :meth:`aclose`, for a response that nobody has any more: what fails is logged, since nobody would see it.

        Always a checkpoint. The iterator is left to who closes all dropped generators, the run: the collector may be
        handing it over at this moment, in another thread, and of two who close it one fails.
        """
        again, self.closed = self.closed, True
        try:
            try:
                await cancel_shielded_checkpoint()
            finally:
                if not again:
                    await self._close(None)  # noqa: ASYNC102 - has an end of its own
        except Exception:
            _logger.warning("the response to %s was dropped, and closing it failed", self.name, exc_info=True)

    async def _close_all(self) -> None:
        try:
            await checkpoint()
        finally:
            # A generator that another task is running can't be closed; closing the stream ends it.
            await self._close(None if self.reading else self.iterator)  # noqa: ASYNC102 - has an end of its own

    async def _close(self, iterator: AsyncIterator[bytes] | None) -> None:
        start = anyio.current_time()
        least = start + min(LEAST_CLOSE_TIMEOUT, self._close_timeout)
        last = max(least, min(start + self._close_timeout, self.hold.deadline))
        try:
            closer = getattr(iterator, "aclose", None)
            if closer is not None:
                # Half of the time at most: the stream itself, which has the connection, must get its turn.
                with anyio.CancelScope(shield=True, deadline=start + (last - start) / 2):
                    await closer()
        finally:
            try:
                with anyio.CancelScope(shield=True, deadline=last) as scope:
                    await self.inner.aclose()
                if scope.cancelled_caught:
                    took = anyio.current_time() - start
                    _logger.warning("a response was not closed within %.3g s; its slot is given back", took)
            finally:
                self._give_back()

    def _give_back(self) -> None:
        if not self._given_back:
            self._given_back = True
            self.hold.release()

    def close_soon(self) -> None:
        """Have the run of the slot close this body, if it still runs. From any thread, at any time; raises nothing."""
        self._runtime.soon_from_anywhere(self._close_in_a_system_task)

    def _close_in_a_system_task(self) -> None:
        _logger.warning("the response to %s was dropped while it was open; it is closed now", self.name)
        # It may be refused at the very end of a run, with which all of its slots go.
        with suppress(RuntimeError):
            closer = self._runtime.spawn(self.close_dropped, f"close dropped response to {self.name}")
            # Whose request it was isn't the one to close it now, and may wait for the slot like anybody else.
            self.hold.adopt(closer)
            # Under asyncio it may be cancelled before it has begun, by who cancels all tasks there are.
            self._runtime.when_over(closer, self._give_back)
