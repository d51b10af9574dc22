"""The exceptions that a gate raises in the words of its callers: trio's own, or those of anyio and of Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen(kw_only=True)
class Dialect:
    """What each of these events is called by the library that a program is written on."""

    name: str
    """The name of that library."""

    would_block: type[Exception]
    """No slot is free, and the caller will not wait."""

    closed: type[Exception]
    """The gate was closed, or is being drained."""

    broken: type[Exception]
    """The gate was broken by the loss of a slot, or its run has ended."""

    busy: type[Exception]
    """Another task is doing what only one may do at a time."""

    run_finished: Callable[[str], Exception]
    """Makes the error for a run that was asked for something and has ended."""

    too_slow: type[Exception]
    """The hold budget has ended."""


TRIO: Final = Dialect(
    name="trio",
    would_block=trio.WouldBlock,
    closed=trio.ClosedResourceError,
    broken=trio.BrokenResourceError,
    busy=trio.BusyResourceError,
    run_finished=trio.RunFinishedError,
    too_slow=trio.TooSlowError,
)


def _run_finished(message: str) -> Exception:
    # It takes no message of ours, and older versions of anyio have no name of their own for it.
    kind: type[Exception] = getattr(anyio, "RunFinishedError", RuntimeError)
    error = kind()
    error.args = (message,)
    return error


ANYIO: Final = Dialect(
    name="anyio",
    would_block=anyio.WouldBlock,
    closed=anyio.ClosedResourceError,
    broken=anyio.BrokenResourceError,
    busy=anyio.BusyResourceError,
    run_finished=_run_finished,
    too_slow=TimeoutError,
)
