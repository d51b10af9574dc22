"""The body of a response as its reader sees it: it holds a slot until it is closed, read to its end, or broken."""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from anyio.lowlevel import checkpoint
from trio.lowlevel import enable_ki_protection

from trio_mlxgate._response_body import ResponseBody

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate._family import Family
    from trio_mlxgate._response_body import ByteStream, Hold

_CLOSED_EARLY: Final = "this response was closed before it was read to its end"


class GatedStream:
    """A response body that holds a slot until it is closed, read to its end, or broken.

    A class and no async generator: an abandoned generator is closed from another task, at some time.
    """

    def __init__(
        self,
        name: str,
        inner: ByteStream,
        hold: Hold,
        family: Family,
        close_timeout: float,
        on_closed: Callable[[GatedStream], None],
    ) -> None:
        self._body = ResponseBody(name, inner, hold, close_timeout)
        self._family = family
        self._ended = False
        self._on_closed = on_closed
        self._peeked: list[bytes] = []
        self.read_timeout = math.inf
        """Seconds that each part of the body may take; usually the inner transport sees to it."""

    # Not weakref.finalize: this costs nothing while the stream lives, and runs once even if one of the generators
    # that go with the stream is handed to the run to be closed, and so revives it. The arguments are for the end of
    # the interpreter, when this module's names are gone.
    def __del__(self, _at_exit: Callable[[], bool] = sys.is_finalizing, _warn: Any = warnings.warn) -> None:
        """Have a response closed that was dropped while it was open."""
        body = self._body
        if body.closed or _at_exit():
            return
        body.close_soon()
        # Last, since it may raise.
        _warn(
            f"the response to {body.name} was dropped before it was closed or read to its end, and kept its slot until "
            "the collector found it; use 'async with client.stream(...)', or close it",
            ResourceWarning,
        )

    def __aiter__(self) -> Self:
        return self

    @enable_ki_protection
    async def __anext__(self) -> bytes:
        """The next part of the body. Always a checkpoint.

        Whatever ends the body here, the end itself or an error or a cancellation, closes it and gives the slot back.
        A body that was closed before its end raises the family's ReadError: it must not look like a whole one.
        """
        body = self._body
        if self._ended:
            raise StopAsyncIteration
        if body.closed:
            raise self._family.read_error(_CLOSED_EARLY)
        if body.reading:
            raise anyio.BusyResourceError("reading from")
        # Who reads is who will give the slot back: see the gate's tied slots.
        body.hold.adopt()
        body.reading = True
        try:
            if body.iterator is None:
                body.iterator = aiter(body.inner)
            with anyio.CancelScope(deadline=min(body.hold.deadline, anyio.current_time() + self.read_timeout)):
                await checkpoint()
                return self._peeked.pop() if self._peeked else await anext(body.iterator)
        except StopAsyncIteration:
            body.reading = False
            if body.closed:
                raise self._family.read_error(_CLOSED_EARLY) from None
            self._ended = True
            await self.aclose()
            raise
        except BaseException:
            body.reading = False
            await self.aclose()
            raise
        finally:
            body.reading = False
        # Only our own scope ends its block without an exception and without a return.
        too_late = anyio.current_time() >= body.hold.deadline
        await self.aclose()
        if not too_late:
            raise self._family.read_timeout(f"nothing came within the client's read timeout of {self.read_timeout:g} s")
        raise self._family.hold_timeout("the response was not read to its end within hold_timeout")

    async def peek(self) -> bool:
        """Read the first part, and keep it for the reader; whether there is one. Always a checkpoint.

        It ends, and raises, as reading does.
        """
        try:
            self._peeked.append(await anext(self))
        except StopAsyncIteration:
            return False  # noqa: ASYNC910 - the end was found by way of a checkpoint
        return True

    @enable_ki_protection
    async def aclose(self) -> None:
        """Close the body and give the slot back, as :meth:`ResponseBody.aclose` says. Always a checkpoint."""
        try:
            await self._body.aclose()
        finally:
            self._on_closed(self)
