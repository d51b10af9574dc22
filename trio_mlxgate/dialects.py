"""The exceptions that a gate raises in the words of its callers: trio's own, or those of anyio and of Python."""

from __future__ import annotations

from typing import Final

import anyio
import attrs
import trio


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

    run_finished: type[Exception]
    """The run that was asked for something has ended; see :meth:`has_finished`."""

    too_slow: type[Exception]
    """The hold budget has ended."""

    def has_finished(self, message: str) -> Exception:
        """A ``run_finished`` that says so in these words; anyio's takes none."""
        error = self.run_finished.__new__(self.run_finished)
        error.args = (message,)
        return error


TRIO: Final = Dialect(
    name="trio",
    would_block=trio.WouldBlock,
    closed=trio.ClosedResourceError,
    broken=trio.BrokenResourceError,
    busy=trio.BusyResourceError,
    run_finished=trio.RunFinishedError,
    too_slow=trio.TooSlowError,
)


ANYIO: Final = Dialect(
    name="anyio",
    would_block=anyio.WouldBlock,
    closed=anyio.ClosedResourceError,
    broken=anyio.BrokenResourceError,
    busy=anyio.BusyResourceError,
    # Older versions have no name of their own for it.
    run_finished=getattr(anyio, "RunFinishedError", RuntimeError),
    too_slow=TimeoutError,
)
