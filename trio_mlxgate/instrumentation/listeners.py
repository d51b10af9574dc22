"""The hooks of one gate: who wants to hear what, and what becomes of one that fails."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from trio_mlxgate.instrumentation.details import KINDS
from trio_mlxgate.instrumentation.logging import LoggingHook

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.instrumentation.details import Details, Hook

_logger: Final = logging.getLogger(__name__)


class Listeners:
    """The hooks of one gate, asked once for what they want to hear."""

    def __init__(self, gate_name: str, hooks: tuple[Hook, ...]) -> None:
        self._gate_name = gate_name
        self.hooks = hooks
        """Those that have not failed."""
        self._listening = {kind: tuple((hook, hook.interest(kind)) for hook in hooks) for kind in KINDS}

    def wanted(self, *kinds: type[Details]) -> Callable[[], bool]:
        """A function that says whether any hook may want to be called for these kinds now. It never raises."""
        interests = tuple(hook.interest(*kinds) for hook in self.hooks)
        if not interests:
            return bool  # false without arguments, and the quickest callable there is
        if len(interests) == 1 and type(self.hooks[0]) is LoggingHook:
            return interests[0]  # ours, which doesn't raise

        def any_wants() -> bool:
            try:
                return any(interested() for interested in interests)
            except Exception:  # noqa: BLE001 - tell will meet it again, and take the hook out
                return True

        return any_wants

    def tell(self, kind: type[Details], describe: Callable[[], Details]) -> None:
        """Tell the hooks that want to know; one that raises is logged and taken out."""
        for hook, interested in self._listening[kind]:
            try:
                if interested():
                    hook(describe())
            except Exception:
                self.drop(hook)
                _logger.exception("hook %r of gate %r failed and is not called any more", hook, self._gate_name)

    def drop(self, gone: Hook) -> None:
        """Call this hook no more."""
        self.hooks = tuple(hook for hook in self.hooks if hook is not gone)
        self._listening = {
            kind: tuple(listener for listener in listening if listener[0] is not gone)
            for kind, listening in self._listening.items()
        }
