"""The hooks of one gate: who wants to hear what, and what becomes of one that fails."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.instrumentation.details import KINDS, Granted, Released
from trio_mlxgate.instrumentation.logging import LoggingHook

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.instrumentation.details import Details, Hook

_logger: Final = logging.getLogger(__name__)


_TOGETHER: Final[tuple[type[Details], ...]] = (Released, Granted)
"""What is told of a handover: asked for together, so that one question will do."""


@attrs.frozen(eq=False)
class _Listener:
    hook: Hook
    interests: dict[tuple[type[Details], ...], Callable[[], bool]]
    """Whether it wants to hear of these kinds now."""


class Listeners:
    """The hooks of one gate: each is asked once for what it wants to hear, and told everything in order.

    What happens while hooks are being told (one of them may use the gate) is told after that, as it was when it
    happened.
    """

    def __init__(self, gate_name: str) -> None:
        self._gate_name = gate_name
        self._listeners: tuple[_Listener, ...] = ()
        self._news: deque[tuple[Details, list[_Listener]]] = deque()
        self._telling = False

    def add(self, hook: Hook, *, first: bool = False) -> None:
        """Tell this hook, too, after all others or before them.

        Raises:
          TypeError: it is no hook.
          Exception: what its ``interest()`` raises; then it is not added.
        """
        # Callers without a type checker may give anything.
        given: object = hook
        if isinstance(given, type) or not callable(given) or not callable(getattr(given, "interest", None)):
            raise TypeError(f"hooks must be objects such as LoggingHook(), and no classes or functions, not {hook!r}")
        groups: list[tuple[type[Details], ...]] = [*((kind,) for kind in KINDS), _TOGETHER]
        interests = {kinds: hook.interest(*kinds) for kinds in groups}
        listener = _Listener(hook, interests)
        self._listeners = (listener, *self._listeners) if first else (*self._listeners, listener)

    def drop(self, gone: Hook) -> None:
        """Call this hook no more."""
        self._listeners = tuple(listener for listener in self._listeners if listener.hook is not gone)

    def __contains__(self, hook: object) -> bool:
        return any(listener.hook is hook for listener in self._listeners)

    def wanted(self, *kinds: type[Details]) -> Callable[[], bool]:
        """A function that says whether any hook may want to be called for these kinds now. It never raises.

        ``kinds`` is one kind, or Released and Granted. It holds until a hook is added or dropped.
        """
        interests = tuple(listener.interests[kinds] for listener in self._listeners)
        if not interests:
            return bool  # false without arguments, and the quickest callable there is
        if len(interests) == 1 and _is_plain_logging(self._listeners[0].hook):
            return interests[0]  # ours, which doesn't raise

        def any_wants() -> bool:
            try:
                return any(interested() for interested in interests)
            except Exception:  # noqa: BLE001 - tell will meet it again, and take the hook out
                return True

        return any_wants

    def tell(self, kind: type[Details], describe: Callable[[], Details]) -> bool:
        """Tell the hooks that want to know; one that raises is logged and taken out. Whether one was."""
        interested = []
        before = self._listeners
        for listener in before:
            try:
                if listener.interests[kind,]():
                    interested.append(listener)
            except Exception:  # noqa: BLE001 - it is logged
                self._take_out(listener)
        if interested:
            self._news.append((describe(), interested))
            if not self._telling:
                self._tell_all()
        return self._listeners is not before

    def _tell_all(self) -> None:
        self._telling = True
        try:
            while self._news:
                details, interested = self._news.popleft()
                for listener in interested:
                    if listener in self._listeners:
                        try:
                            listener.hook(details)
                        except Exception:  # noqa: BLE001 - it is logged
                            self._take_out(listener)
        finally:
            # Not empty only if something raised that is no Exception, as SystemExit: then nobody is to be told more.
            self._news.clear()
            self._telling = False

    def _take_out(self, listener: _Listener) -> None:
        self._listeners = tuple(other for other in self._listeners if other is not listener)
        _logger.exception("hook %r of gate %r failed and is not called any more", listener.hook, self._gate_name)


def _is_plain_logging(hook: Hook) -> bool:
    return type(hook) is LoggingHook and type(hook.logger) is logging.Logger
