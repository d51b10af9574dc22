"""Who hears of a gate's events for a while, as one of its hooks: so that nobody who looks on costs a gate nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.driver import Driver
    from trio_mlxgate.instrumentation import Details


class Onlooker:
    """A hook of a gate between :meth:`attach` and :meth:`detach`, for all kinds of events."""

    def __init__(self, gate: Driver) -> None:
        self._gate = gate
        self._attached = False

    def attach(self) -> None:
        """Hear of all events, before all others do; or go on hearing of them."""
        if self._attached:
            return
        # The first: a hook that raises what is no Exception keeps the news from those behind it.
        self._gate._listeners.add(self, first=True)
        self._gate._listen()
        self._attached = True

    def detach(self) -> None:
        """Hear of no more events."""
        self._attached = False
        self._gate._listeners.drop(self)
        self._gate._listen()

    def interest(self, *_: type[Details]) -> Callable[[], bool]:
        return _always

    def __call__(self, details: Details) -> None:
        raise NotImplementedError


def _always() -> bool:
    return True
