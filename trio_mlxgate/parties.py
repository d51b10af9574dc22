"""The two sides of calls that cross between runs, as each knows the other, and how it sees that the other is gone."""

from __future__ import annotations

import contextvars
import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from trio.lowlevel import TrioToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.base_gate import BaseGate
    from trio_mlxgate.crossings import Crossing
    from trio_mlxgate.outposts import Outpost
    from trio_mlxgate.runtime import Runtime, Timer

LOOK_EVERY: Final = 1.0
"""Seconds after which each side looks whether the other is still there: a loop that is closed tells nobody."""


class Party:
    """A run as the other side sees it. To be made inside of that run."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._thread = threading.current_thread()

    def is_here(self) -> None:
        """This is called in that run: note in which thread it is, since an event loop may move to another."""
        self._thread = threading.current_thread()

    def is_gone(self) -> bool:
        """Whether nothing will ever run there again. From any thread."""
        return self._has_no_thread() or self.runtime.is_over()

    def tell(self, function: Callable[[], object]) -> bool:
        """Call ``function`` over there, after all that was told before. From any thread; False: it is gone."""
        return not self._has_no_thread() and self.runtime.soon_from_anywhere(function)

    def _has_no_thread(self) -> bool:
        # An event loop that only stands still may go on.
        return self.runtime.is_idle() and not self._thread.is_alive()


class Lookout:
    """Looks in one run, as long as there is a reason to, whether the other side is still there."""

    def __init__(self, runtime: Runtime, look: Callable[[], bool], name: str) -> None:
        self._runtime = runtime
        self._look = look
        self._name = name
        self._timer: Timer | None = None

    def watch(self) -> None:
        """Look from now on, until the look says that there is no reason any more."""
        if self._timer is None:
            self._timer = self._runtime.timer(self._runtime.clock() + LOOK_EVERY, self._ring, self._name)

    def _ring(self) -> float:
        if self._look():
            return self._runtime.clock() + LOOK_EVERY
        self._timer = None
        return math.inf


class Owner(Party):
    """The run that a gate is bound to, and the calls that have come to it from others."""

    def __init__(self, gate: BaseGate) -> None:
        super().__init__(gate._runtime)
        self.gate = gate
        self.admission = gate._admission
        # The owner's alone.
        self._calls: dict[Outpost, set[Crossing]] = {}
        self._lookout = Lookout(self.runtime, self._look, f"callers of gate {gate.name!r}")

    def is_gone(self) -> bool:
        # A gate can be taken over from a loop that stands still.
        return super().is_gone() or not self.has_gate()

    def has_gate(self) -> bool:
        """Whether the gate is still bound to this run. To be asked there."""
        return self.gate._admission is self.admission

    def context(self) -> contextvars.Context | None:
        """The context for what is done in a caller's name: asyncio hands on that of the thread that calls."""
        return None if isinstance(self.runtime.token, TrioToken) else contextvars.Context()

    def add(self, crossing: Crossing) -> None:
        self.is_here()
        self._calls.setdefault(crossing._outpost, set()).add(crossing)
        # It is refused at the very end of a run, where there is nothing to be guarded any more.
        with suppress(RuntimeError):
            self._lookout.watch()

    def forget(self, crossing: Crossing) -> None:
        calls = self._calls.get(crossing._outpost)
        if calls is not None:
            calls.discard(crossing)
            if not calls:
                del self._calls[crossing._outpost]

    def _look(self) -> bool:
        for outpost, calls in list(self._calls.items()):
            if outpost.party.is_gone():
                for crossing in list(calls):
                    crossing.see_caller_gone()
        return bool(self._calls)
