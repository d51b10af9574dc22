"""How a thread has something run in the run of a gate, and waits for it: over trio, and over anyio's asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import anyio.from_thread
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from trio.lowlevel import TrioToken

    from trio_mlxgate.runtime import SomeTask


_PATIENCE: Final = 1.0
"""Seconds after which a waiting thread looks whether the loop is still there: one that is closed tells nobody."""


class Bridge(Protocol):
    """The way from the current thread into a run."""

    foreign: bool
    """Whether the run has not started this thread, so that nobody in it waits for the thread."""

    @property
    def cancelled(self) -> type[BaseException]:
        """What :meth:`run` raises if what it runs is cancelled."""
        ...

    def run(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run an async function over there, and wait for its end."""
        ...

    def host(self) -> SomeTask | None:
        """The task that has started this thread and waits for it; None if it doesn't any more, or isn't known."""
        ...


class TrioBridge:
    """Into a trio run: the one of a token, or None: that which has started this thread."""

    cancelled = trio.Cancelled

    def __init__(self, token: TrioToken | None) -> None:
        self._token = token
        self.foreign = token is not None

    @staticmethod
    def of_this_worker() -> TrioBridge | None:
        """Into the run that has started this thread; None: none of trio's has. Cancelled, if its task is."""
        try:
            trio.from_thread.check_cancelled()
        except RuntimeError:
            return None
        return TrioBridge(None)

    def run(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        trio.from_thread.run(function, *args, trio_token=self._token)

    def host(self) -> SomeTask | None:
        # trio has no public name for it. Where it isn't known, a thread that may be abandoned can come to wait for
        # itself.
        data = getattr(getattr(trio, "_threads", None), "PARENT_TASK_DATA", None)
        register = getattr(data, "task_register", None)
        return register[0] if register else None


class AsyncioBridge:
    """Into an event loop: the one that is given, or None: that which has started this thread by way of anyio."""

    cancelled = concurrent.futures.CancelledError

    def __init__(self, loop: asyncio.AbstractEventLoop | None, is_gone: Callable[[], bool] = lambda: False) -> None:
        self._loop = loop
        self._is_gone = is_gone
        self.foreign = loop is not None

    @staticmethod
    def of_this_worker() -> AsyncioBridge | None:
        """Into the loop that has started this thread by way of anyio; None: none has. Cancelled, if its task is."""
        try:
            anyio.from_thread.check_cancelled()
        except RuntimeError:
            return None
        return AsyncioBridge(None)

    def run(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        if self._loop is None:
            anyio.from_thread.run(function, *args)
        else:
            coroutine = function(*args)
            try:
                future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            except RuntimeError:
                coroutine.close()
                raise
            while not future.done():
                concurrent.futures.wait([future], _PATIENCE)
                if (self._loop.is_closed() or self._is_gone()) and not future.done():
                    raise concurrent.futures.CancelledError
            future.result()

    def host(self) -> SomeTask | None:
        return None  # it can be seen over there: Runtime.current_host


def bridge_into(token: object, is_gone: Callable[[], bool] = lambda: False) -> TrioBridge | AsyncioBridge:
    """Into the run of a token, whichever library's it is, for a thread that this run has not started."""
    if isinstance(token, trio.lowlevel.TrioToken):
        return TrioBridge(token)
    return AsyncioBridge(cast("asyncio.AbstractEventLoop", token), is_gone)
