"""The backends of a program by their roles: watched side by side, asked for their load, and chosen among."""

from __future__ import annotations

import contextvars
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.backends.calls import CallPlan, RoleStream, call_role
from trio_mlxgate.backends.watch import HealthChanged, Watch
from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.choosing import Candidate, OnUnavailable, Strategy, available, order
from trio_mlxgate.core.load import LoadSettings
from trio_mlxgate.core.readings import Health
from trio_mlxgate.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from types import TracebackType
    from typing import Self

    from trio_mlxgate.backends.adapter import ModelAdapter
    from trio_mlxgate.core.completions import Completion
    from trio_mlxgate.core.load import LoadReport
    from trio_mlxgate.outer_deadline import OuterDeadline

T = TypeVar("T")

_CLOSING: Final = 10.0
"""Seconds that closing the backends may take; what they close shields itself, and has shorter limits."""

_logger: Final = logging.getLogger("trio_mlxgate.backends")


class BackendRegistry:
    """The backends of a program by their roles, under watch for the time of an ``async with`` block.

    ::

        roles = {"classifier": [macmini], "reasoner": [macbook, macmini]}
        async with BackendRegistry(roles) as registry:
            await registry.wait_healthy("reasoner")
            answer = await registry.call("reasoner", "What is a monad?", priority=Priority.FOREGROUND)

    Or, in a nursery of one's own: ``registry = await nursery.start(BackendRegistry(roles).run)``. Each backend has a
    task that looks at it, by itself: one that is slow delays no other. A backend that serves several roles is watched
    once. Leaving the block ends the watch and closes the backends, which are the registry's; errors of the
    block arrive bare. In the next run it can be entered again. Outside of the block its methods raise RuntimeError, and
    trio.ClosedResourceError once it was left.

    Args:
      roles: for each role the backends that can serve it, best first; one alone need not be in a list.
      settings: how often is looked, and how load is told from what is seen.
      jitter: by which part of itself each pause between two looks is made longer or shorter at random, from 0 up to 1,
        so that many programs don't look in step.
      check_limit: seconds that one look may take, whatever it does.
      hooks: functions that are called with a :class:`HealthChanged` when a backend goes up or down, in the step in
        which that is seen. One that raises is reported, and called again next time.

    Raises:
      TypeError, ValueError: an argument isn't as described; there is no role, or one without backends; or two backends
        have one name.
    """

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

    # ---- the watch ----

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
        self, *, task_status: trio.TaskStatus[BackendRegistry] = trio.TASK_STATUS_IGNORED
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

    # ---- looking ----

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

    def is_healthy(self, role: str) -> bool:
        """Whether a backend of this role is known to be up. Never waits.

        Raises:
          LookupError: there is no such role.
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more.
        """
        return any(self._watch_of(backend.name).health is Health.UP for backend in self._of(role))

    def health_summary(self) -> Mapping[str, Mapping[str, LoadReport]]:
        """For each role what is known of each of its backends, by name. Never waits.

        Raises:
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more.
        """
        return {
            role: {backend.name: self._watch_of(backend.name).report() for backend in backends}
            for role, backends in self._roles.items()
        }

    async def load(self, role: str, *, backend: str | None = None, fresh: bool = False, caller: int = 0) -> LoadReport:
        """How busy the backend is that :meth:`choose` would name for this role. Always a checkpoint.

        Args:
          role: the role.
          backend: one of its backends, if another one is meant.
          fresh: look now, and where the server tells nothing of its load, measure it (one token, in the background,
            only while its gate is idle, at most once in ten seconds; a result serves for thirty). Else what is known.
          caller: how many of our own requests there are the caller's: what is more counts as load.

        Raises:
          LookupError: there is no such role, or it has no such backend.
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more.
        """
        watch = self._watch_of(self._one(role, backend).name)
        if not fresh:
            await trio.lowlevel.checkpoint()
            return watch.report(caller=caller)
        await watch.look_now()
        report = watch.report(caller=caller)
        if report.source == "hybrid" and report.health is Health.UP:
            try:
                await watch.measure()
            except (trio.WouldBlock, BackendUnavailable):
                return watch.report(caller=caller)  # its gate is busy, or it can't be measured: that tells, too
            report = watch.report(caller=caller)
        return report

    async def measure(self, role: str, *, backend: str | None = None) -> float:
        """Seconds to the first token of a one-token request, in the background. Always a checkpoint.

        Who asks while one is under way gets its result; one that is at most thirty seconds old is handed out again.

        Raises:
          LookupError: there is no such role, or it has no such backend.
          trio.WouldBlock: its gate is busy: a measurement would only measure that, and make somebody wait.
          BackendUnavailable: it failed, now or a moment ago.
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more.
        """
        return await self._watch_of(self._one(role, backend).name).measure()

    async def wait_healthy(self, role: str, *, backend: str | None = None) -> ModelAdapter:
        """Wait until a backend of this role (or this one) is known to be up, and return it. Always a checkpoint.

        There is no limit but the caller's own: ``with trio.fail_after(60): await registry.wait_healthy(role)``.

        Raises:
          LookupError: there is no such role, or it has no such backend.
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more.
        """
        wanted = self._of(role) if backend is None else (self._one(role, backend),)
        await trio.lowlevel.checkpoint()
        while True:
            for candidate in wanted:
                if self._watch_of(candidate.name).health is Health.UP:
                    return candidate
            await self.wait_change()

    async def wait_change(self) -> None:
        """Wait until some backend goes up or down. Always a checkpoint.

        Raises:
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more: nothing would ever change.
        """
        self._watching()
        await self._changed.wait()
        self._watching()

    # ---- choosing ----

    def choose(self, role: str, *, prefer: Sequence[str] = (), strategy: Strategy = "first") -> ModelAdapter:
        """The backend of this role that is to be asked now, by what is known. Never waits, and asks nobody.

        Args:
          role: the role.
          prefer: names of backends that go before the others of the role, best first.
          strategy: ``"first"``: the first in that order that is not down; ``"least_busy"``: the least busy one.

        Raises:
          LookupError: there is no such role, or it has no such backend.
          ValueError: there is no such strategy.
          BackendUnavailable: all are down; ``retry_after`` is when the first of them is looked at again.
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more.
        """
        ranked, there = self._rank(role, prefer=prefer, strategy=strategy)
        for name in ranked:
            if name in there:
                return self._backends[name]
        raise self._unavailable(role, ranked)

    def _rank(
        self, role: str, *, prefer: Sequence[str] = (), strategy: Strategy = "first"
    ) -> tuple[tuple[str, ...], frozenset[str]]:
        """The names of all backends of this role in the order in which they are to be asked, and who can be."""
        backends = self._of(role)
        if strategy not in ("first", "least_busy"):
            raise ValueError(f"strategy must be 'first' or 'least_busy', not {strategy!r}")
        if isinstance(prefer, str):
            raise TypeError(f"prefer must be a list of names of backends: [{prefer!r}]")
        for name in prefer:
            self._one(role, name)
        candidates = []
        for backend in backends:
            watch = self._watch_of(backend.name)
            candidates.append(
                Candidate(
                    name=backend.name,
                    health=watch.health,
                    level=watch.report().level,
                    queue=watch.queue,
                    paused=self._is_paused(backend.name),
                )
            )
        return order(candidates, prefer, strategy), available(candidates)

    def _unavailable(self, role: str, names: Iterable[str]) -> BackendUnavailable:
        """The error that says that these can't be asked, and when it is worth trying again."""
        watches = [self._watch_of(name) for name in names]
        told = []
        for watch in watches:
            name = watch.backend.name
            reason = "its gate is paused: capacity 0" if self._is_paused(name) else watch.report().reason
            told.append(f"{name}: {reason}")
        return BackendUnavailable(
            f"no backend of role {role!r} can be asked now ({'; '.join(told)})",
            backend=watches[0].backend.name if len(watches) == 1 else "",
            retry_after=min(watch.seconds_to_next_check() for watch in watches),
        )

    # ---- calling ----

    async def call(
        self,
        role: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        prefer: Sequence[str] = (),
        strategy: Strategy = "first",
        on_unavailable: OnUnavailable = "next",
        max_wait: float | None = None,
        fallback: Callable[[Exception], Awaitable[T]] | None = None,
        priority: int | None = None,
        hold_timeout: float | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Completion | T:
        """One answer of whichever backend of this role can give it. Always a checkpoint.

        Each is asked through the gate of its own endpoint. Whoever is asked and fails (can't be reached, refuses with
        429 or 5xx, has a full queue, takes too long for a sign of life, breaks off) has given nothing to the caller, so
        another one is asked. What another one would answer in the same way is raised: a request that the server finds
        wrong (4xx), an ended ``hold_timeout``, a call that a newer one has superseded. A call that stands in the queue
        of a backend which goes down leaves it.

        Args:
          role: the role.
          messages, priority, hold_timeout, model, temperature, max_tokens, supersede, outer_deadline, extra: as for
            :meth:`ModelAdapter.chat`.
          prefer, strategy: as for :meth:`choose`.
          on_unavailable: when the one that is to be asked first is down, can't be reached, or refuses. ``"next"``: the
            next one is asked, and so on. ``"wait"``: it is waited for until it is up again, or has time. ``"defer"``:
            :class:`BackendUnavailable` is raised at once, with ``retry_after``, for work that can be done later.
          max_wait: seconds for all waiting together, for a backend to come up and in the queues of gates; None: as
            :func:`trio_mlxgate.use_options` or the endpoints' settings say for each queue, else no limit.
          fallback: an async function that is called with the error when nobody here answers, such as one that asks a
            cloud service; the log has a WARNING. No slot is held then. What it returns is returned.

        Raises:
          LookupError, TypeError, ValueError: an argument isn't as described.
          BackendUnavailable: all are down, or all that were asked failed; the last error is its ``__cause__``.
          BackendError, GateRefused: that of the one backend there is, or one that is no reason to ask another.
          UnknownModel: no backend of the role has this model.
          RuntimeError, trio.ClosedResourceError: nobody watches, or the registry was left meanwhile.
        """
        plan = CallPlan(
            role=role,
            messages=messages,
            options={
                "priority": priority,
                "hold_timeout": hold_timeout,
                "model": model,
                "temperature": temperature,
                "max_tokens": max_tokens,
                "supersede": supersede,
                "outer_deadline": outer_deadline,
                "extra": extra,
            },
            prefer=prefer,
            strategy=strategy,
            on_unavailable=on_unavailable,
            max_wait=max_wait,
        )
        return await call_role(self, plan, fallback)

    def stream(
        self,
        role: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        prefer: Sequence[str] = (),
        strategy: Strategy = "first",
        on_unavailable: OnUnavailable = "next",
        max_wait: float | None = None,
        priority: int | None = None,
        hold_timeout: float | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> RoleStream:
        """A streamed answer: ``async with registry.stream(role, ...) as stream: async for delta in stream: ...``.

        As :meth:`call`, up to the first delta: entering waits for it, and until then another backend can take over.
        From then on an error is the caller's, who has seen a part. There is no ``fallback=`` here: where entering
        raises BackendUnavailable no slot is held, and the caller may ask whomever it likes.

        Raises:
          LookupError, TypeError, ValueError: at once, an argument isn't as described.
          UnknownModel: at once, no backend of the role has this model.
          RuntimeError, trio.ClosedResourceError: nobody watches, or not any more.
        """
        plan = CallPlan(
            role=role,
            messages=messages,
            options={
                "priority": priority,
                "hold_timeout": hold_timeout,
                "model": model,
                "temperature": temperature,
                "max_tokens": max_tokens,
                "supersede": supersede,
                "outer_deadline": outer_deadline,
                "extra": extra,
            },
            prefer=prefer,
            strategy=strategy,
            on_unavailable=on_unavailable,
            max_wait=max_wait,
        )
        plan.check(self)
        return RoleStream(self, plan)

    # ---- inside ----

    def _of(self, role: str) -> tuple[ModelAdapter, ...]:
        if role not in self._roles:
            raise LookupError(f"there is no role {role!r}; there are {', '.join(self._roles)}")
        return self._roles[role]

    def _one(self, role: str, backend: str | None) -> ModelAdapter:
        if backend is None:
            ranked, there = self._rank(role)
            return self._backends[next((name for name in ranked if name in there), ranked[0])]
        for candidate in self._of(role):
            if candidate.name == backend:
                return candidate
        names = ", ".join(candidate.name for candidate in self._of(role))
        raise LookupError(f"role {role!r} has no backend {backend!r}; it has {names}")


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
