"""The backends of a program under watch: who is there, from entering a block to leaving it."""

from __future__ import annotations

import contextvars
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.backends.watch import HealthChanged, Watch
from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.load import LoadSettings
from trio_mlxgate.core.readings import Health

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from trio_mlxgate.backends.adapter import ModelAdapter

_CLOSING: Final = 10.0
"""Seconds that closing the backends may take; what they close shields itself, and has shorter limits."""

_logger: Final = logging.getLogger("trio_mlxgate.backends")


class Watching:
    """The watch over the backends of all roles: what a registry is entered and left for."""

    def __init__(
        self,
        roles: Mapping[str, ModelAdapter | Sequence[ModelAdapter]],
        *,
        settings: LoadSettings | None = None,
        jitter: float = 0.1,
        check_limit: float = 10.0,
        hooks: Iterable[Callable[[HealthChanged], object]] = (),
    ) -> None:
        self._roles = _checked_roles(roles)
        self._hooks = tuple(hooks)
        for hook in self._hooks:
            if not callable(hook):
                raise TypeError(f"hooks must be functions that take a HealthChanged, not {hook!r}")
        if isinstance(jitter, bool) or not isinstance(jitter, int | float):
            raise TypeError(f"jitter must be a number from 0 up to 1, not {jitter!r}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be a number from 0 up to 1, not {jitter!r}")
        check_seconds("check_limit", check_limit)
        if not 0 < check_limit < math.inf:
            raise ValueError(f"check_limit must be above 0 and finite, since a look may hang, not {check_limit!r}")
        given: object = settings
        if given is not None and not isinstance(given, LoadSettings):
            raise TypeError(f"settings must be LoadSettings(...), not {settings!r}")
        self._settings = settings or LoadSettings()
        self._jitter = jitter
        self._check_limit = check_limit
        self._backends: dict[str, ModelAdapter] = {}
        for backend in (backend for backends in self._roles.values() for backend in backends):
            known = self._backends.setdefault(backend.name, backend)
            if known is not backend:
                raise ValueError(f"two backends are named {backend.name!r}: rename one, or list the same object twice")
        # All of this is of one run: its nursery, and what is known by its clock.
        self._watches: dict[str, Watch] = {}
        self._nursery_manager: Any = None
        self._nursery: trio.Nursery | None = None
        self._entered_in: trio.lowlevel.TrioToken | None = None
        self._left_in: trio.lowlevel.TrioToken | None = None
        self._changed = trio.Event()

    def __repr__(self) -> str:
        told = "; ".join(f"{role}: {', '.join(b.name for b in backends)}" for role, backends in self._roles.items())
        return f"<BackendRegistry {told}>"

    @property
    def roles(self) -> Mapping[str, tuple[ModelAdapter, ...]]:
        """The backends of each role, best first."""
        return MappingProxyType(self._roles)

    def backend(self, name: str) -> ModelAdapter:
        """The backend of this name.

        Raises:
          LookupError: there is none.
        """
        if name not in self._backends:
            raise LookupError(f"there is no backend {name!r}; there are {', '.join(self._backends)}")
        return self._backends[name]

    # ---- from entering to leaving ----

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Begin to watch. Always a checkpoint. The first look at each backend is under way when the block begins.

        Raises:
          RuntimeError: the watch is on already, or was left in this run: its backends are closed. Or this is asyncio.
          UnknownEndpoint: a backend's gates refuse its endpoint.
        """
        if not trio.lowlevel.in_trio_run():
            raise RuntimeError("backends are for trio; on asyncio there are trio_mlxgate.anyio.Gate and GateTransport")
        await trio.lowlevel.checkpoint()
        token = trio.lowlevel.current_trio_token()
        if self._nursery is not None and self._entered_in is token:
            raise RuntimeError("this registry is under watch already: enter it once, and hand it around")
        if self._left_in is token:
            raise RuntimeError(
                "this registry was left, and its backends are closed: make another one, of other backends"
            )
        for backend in self._backends.values():
            _ = backend.endpoint_gate  # one that has none says so now, and not at each look
        self._entered_in = token
        self._changed = trio.Event()
        self._nursery_manager = trio.open_nursery()
        nursery = self._nursery = await self._nursery_manager.__aenter__()
        context = contextvars.copy_context()
        self._watches = {
            name: Watch(
                backend,
                self._settings,
                nursery,
                context,
                jitter=self._jitter,
                check_limit=self._check_limit,
                tell=self._tell,
            )
            for name, backend in self._backends.items()
        }
        for name, watch in self._watches.items():
            nursery.start_soon(watch.run, name=f"watch of backend {name}")
        return self

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the watch, and close the backends. Always a checkpoint, shielded, within seconds.

        Whoever waits for something of it gets trio.ClosedResourceError, and so do calls that are under way.
        """
        assert self._nursery is not None
        manager, nursery, self._nursery_manager, self._nursery = self._nursery_manager, self._nursery, None, None
        self._left_in = trio.lowlevel.current_trio_token()
        self._changed.set()
        # The error of the block is not the nursery's: it would come out in a group. And a cancellation from outside
        # would come out instead of it.
        nursery.cancel_scope.shield = True
        nursery.cancel_scope.cancel()
        try:
            await manager.__aexit__(None, None, None)  # noqa: ASYNC102 - shielded by its own scope, and cancelled
        finally:
            failed = await self._close_backends()  # noqa: ASYNC102 - it shields itself
        if failed and error is None:
            raise failed[0]

    async def _close_backends(self) -> list[Exception]:
        """Close all of them side by side, within a limit; returns what they raised. Always a checkpoint."""
        failed: list[Exception] = []

        @enable_ki_protection
        async def close(backend: ModelAdapter) -> None:
            await trio.lowlevel.checkpoint()
            try:
                await backend.aclose()
            except Exception as error:
                _logger.exception("backend %r could not be closed", backend.name)
                failed.append(error)

        with trio.move_on_after(_CLOSING, shield=True):
            async with trio.open_nursery() as nursery:
                for backend in self._backends.values():
                    nursery.start_soon(close, backend)
        return failed

    async def run(  # noqa: ASYNC114 - what it starts is a value, to be used after it
        self, *, task_status: trio.TaskStatus[Watching] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled: ``registry = await nursery.start(registry.run)``. Always a checkpoint.

        Raises:
          RuntimeError, UnknownEndpoint: as on entering.
        """
        async with self:
            task_status.started(self)
            await trio.sleep_forever()

    def _watching(self) -> None:
        """Raise RuntimeError if nobody watches, trio.ClosedResourceError if that is since the registry was left."""
        here = trio.lowlevel.current_trio_token() if trio.lowlevel.in_trio_run() else None
        if here is not None and self._entered_in is here:
            if self._nursery is not None:
                return
            raise trio.ClosedResourceError("the registry was left, and its backends are closed")
        raise RuntimeError("nobody watches: use it inside 'async with BackendRegistry(...) as registry'")

    def _watch_of(self, name: str) -> Watch:
        self._watching()
        return self._watches[name]

    def _is_watching(self, watch: Watch) -> bool:
        return self._nursery is not None and self._watches.get(watch.backend.name) is watch

    def _is_paused(self, name: str) -> bool:
        return self._backends[name].endpoint_gate.capacity == 0

    def _tell(self, change: HealthChanged) -> None:
        level = logging.WARNING if change.after is Health.DOWN else logging.INFO
        told = f": {change.reason}" if change.reason else ""
        _logger.log(level, "backend %r is %s%s", change.backend, change.after.value, told)
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        for hook in self._hooks:
            try:
                hook(change)
            except Exception:
                _logger.exception("a hook failed with %r", change)

    # ---- looking on ----

    async def wait_change(self) -> None:
        """Wait until some backend goes up or down. Always a checkpoint.

        Raises:
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more: nothing would ever change.
        """
        self._watching()
        await self._changed.wait()
        self._watching()

    def _of(self, role: str) -> tuple[ModelAdapter, ...]:
        if role not in self._roles:
            raise LookupError(f"there is no role {role!r}; there are {', '.join(self._roles)}")
        return self._roles[role]


def _checked_roles(roles: object) -> dict[str, tuple[Any, ...]]:
    if not isinstance(roles, Mapping):
        raise TypeError(f"roles must be a mapping of roles to backends, best first, not {roles!r}")
    if not roles:
        raise ValueError('roles is empty: name one at least, as {"reasoner": [backend]}')
    checked = {}
    for role, backends in roles.items():
        if not isinstance(role, str) or not role:
            raise TypeError(f"a role is a name, not {role!r}")
        listed = tuple(backends) if isinstance(backends, Sequence) else (backends,)
        if not listed:
            raise ValueError(f"role {role!r} has no backends: list one at least, or leave it out")
        for backend in listed:
            if isinstance(backend, type | str) or not callable(getattr(backend, "read", None)):
                raise TypeError(f"role {role!r} must list backends such as ModelAdapter(...), not {backend!r}")
        if len({id(backend) for backend in listed}) < len(listed):
            raise ValueError(f"role {role!r} lists a backend twice: leave one of them out")
        checked[role] = listed
    return checked
