"""A limit for tests that could hang in ways that no event loop can end."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """End the block after so many seconds of real time, with TimeoutError, in whichever way that is possible."""

    def end(*_: object) -> None:
        raise TimeoutError(f"this test took {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
