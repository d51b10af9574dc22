"""The backends of a program by their roles: watched side by side, asked for their load, and chosen among."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from trio_mlxgate.backends.calls import CallPlan, RoleStream, call_role
from trio_mlxgate.backends.watch import HealthChanged, Watch
from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.choosing import Candidate, OnUnavailable, Strategy, available, order
from trio_mlxgate.core.load import LoadSettings
from trio_mlxgate.core.readings import Health
from trio_mlxgate.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from trio_mlxgate.backends.adapter import ModelAdapter
    from trio_mlxgate.core.completions import Completion
    from trio_mlxgate.core.load import LoadReport

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
    block arrive bare. In the next run it can be entered again.

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
        if not 0 < check_limit < float("inf"):
            raise ValueError(f"check_limit must be above 0 and finite, since a look may hang, not {check_limit!r}")
        kept = settings or LoadSettings()
        self._watches: dict[str, Watch] = {}
        self._backends: dict[str, ModelAdapter] = {}
        for backend in (backend for backends in self._roles.values() for backend in backends):
            known = self._backends.setdefault(backend.name, backend)
            if known is not backend:
                raise ValueError(f"two backends are named {backend.name!r}: rename one, or list the same object twice")
            if backend.name not in self._watches:
                self._watches[backend.name] = Watch(
                    backend, kept, jitter=jitter, check_limit=check_limit, tell=self._tell
                )
        self._nursery_manager: Any = None
        self._nursery: trio.Nursery | None = None
        self._left_in: trio.lowlevel.TrioToken | None = None
        self._changed = trio.Event()

    def __repr__(self) -> str:
        told = "; ".join(f"{role}: {', '.join(b.name for b in backends)}" for role, backends in self._roles.items())
        return f"<BackendRegistry {told}>"

    # ---- the watch ----

    async def __aenter__(self) -> Self:
        """Begin to watch. Always a checkpoint. The first look at each backend is under way when the block begins.

        Raises:
          RuntimeError: the watch is on already, or was left in this run: its backends are closed.
        """
        await trio.lowlevel.checkpoint()
        if self._nursery is not None:
            raise RuntimeError("this registry is under watch already: enter it once, and hand it around")
        if self._left_in is trio.lowlevel.current_trio_token():
            raise RuntimeError(
                "this registry was left, and its backends are closed: make another one, of other backends"
            )
        self._nursery_manager = trio.open_nursery()
        nursery = self._nursery = await self._nursery_manager.__aenter__()
        for watch in self._watches.values():
            nursery.start_soon(watch.run, nursery, name=f"watch of backend {watch.backend.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the watch, and close the connections. Always a checkpoint, shielded; what it waits for ends at once."""
        assert self._nursery is not None
        # The error of the block is not the nursery's: it would come out in a group. And a cancellation from outside
        # would come out instead of it.
        self._nursery.cancel_scope.shield = True
        self._nursery.cancel_scope.cancel()
        manager, self._nursery_manager, self._nursery = self._nursery_manager, None, None
        self._left_in = trio.lowlevel.current_trio_token()
        try:
            await manager.__aexit__(None, None, None)  # noqa: ASYNC102 - shielded by its own scope, and cancelled
        finally:
            with trio.move_on_after(_CLOSING, shield=True):
                await trio.lowlevel.checkpoint()
                for backend in self._backends.values():
                    await backend.aclose()

    async def run(  # noqa: ASYNC114 - what it starts is a value, to be used after it
        self, *, task_status: trio.TaskStatus[BackendRegistry] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled: ``registry = await nursery.start(registry.run)``. Always a checkpoint.

        Raises:
          RuntimeError: the watch is on already.
        """
        async with self:
            task_status.started(self)
            await trio.sleep_forever()

    def _watching(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("nobody watches: use it inside 'async with BackendRegistry(...) as registry'")
        return self._nursery

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
        """
        return any(self._watches[backend.name].health is Health.UP for backend in self._of(role))

    def health_summary(self) -> Mapping[str, Mapping[str, LoadReport]]:
        """For each role what is known of each of its backends, by name. Never waits."""
        return {
            role: {backend.name: self._watches[backend.name].report() for backend in backends}
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
          RuntimeError: nobody watches, and ``fresh`` was asked for.
        """
        watch = self._watches[self._one(role, backend).name]
        if not fresh:
            await trio.lowlevel.checkpoint()
            return watch.report(caller=caller)
        nursery = self._watching()
        await watch.look_now(nursery)
        report = watch.report(caller=caller)
        if report.source == "hybrid" and report.health is Health.UP:
            try:
                await watch.measure(nursery)
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
          RuntimeError: nobody watches.
        """
        return await self._watches[self._one(role, backend).name].measure(self._watching())

    async def wait_healthy(self, role: str, *, backend: str | None = None) -> ModelAdapter:
        """Wait until a backend of this role (or this one) is known to be up, and return it. Always a checkpoint.

        There is no limit but the caller's own: ``with trio.fail_after(60): await registry.wait_healthy(role)``.

        Raises:
          LookupError: there is no such role, or it has no such backend.
          RuntimeError: nobody watches.
        """
        self._watching()
        wanted = self._of(role) if backend is None else (self._one(role, backend),)
        await trio.lowlevel.checkpoint()
        while True:
            for candidate in wanted:
                if self._watches[candidate.name].health is Health.UP:
                    return candidate
            await self._changed.wait()

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
        """
        ranked, there = self.rank(role, prefer=prefer, strategy=strategy)
        for name in ranked:
            if name in there:
                return self._backends[name]
        raise self.unavailable(role, ranked)

    def rank(
        self, role: str, *, prefer: Sequence[str] = (), strategy: Strategy = "first"
    ) -> tuple[tuple[str, ...], frozenset[str]]:
        """The names of all backends of this role in the order in which they are to be asked, and who is not down.

        Raises:
          LookupError, ValueError, TypeError: as :meth:`choose`.
        """
        backends = self._of(role)
        if strategy not in ("first", "least_busy"):
            raise ValueError(f"strategy must be 'first' or 'least_busy', not {strategy!r}")
        if isinstance(prefer, str):
            raise TypeError(f"prefer must be a list of names of backends: [{prefer!r}]")
        for name in prefer:
            self._one(role, name)
        candidates = []
        for backend in backends:
            report = self._watches[backend.name].report()
            candidates.append(
                Candidate(
                    name=backend.name,
                    health=report.health,
                    level=report.level,
                    queue=report.own.in_flight + report.own.waiting,
                )
            )
        return order(candidates, prefer, strategy), available(candidates)

    def unavailable(self, role: str, names: Iterable[str]) -> BackendUnavailable:
        """The error that says that these are down, and when it is worth trying again."""
        watches = [self._watches[name] for name in names]
        told = "; ".join(f"{watch.backend.name}: {watch.report().reason}" for watch in watches)
        return BackendUnavailable(
            f"no backend of role {role!r} can be asked now ({told})",
            backend=watches[0].backend.name if len(watches) == 1 else "",
            retry_after=min(watch.seconds_to_next_check() for watch in watches),
        )

    def call_failed(self, name: str, reason: str, *, refused: bool) -> None:
        """A call could not reach this backend: that tells as much as a look, and the next look is due now."""
        self._watches[name].failed(reason, refused=refused)

    async def wait_change(self) -> None:
        """Wait until some backend goes up or down. Always a checkpoint.

        Raises:
          RuntimeError: nobody watches: nothing would ever change.
        """
        self._watching()
        await self._changed.wait()

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
        **options: Any,
    ) -> Completion | T:
        """One answer of whichever backend of this role can give it. Always a checkpoint.

        Each is asked through the gate of its own endpoint. Whoever is asked and fails (can't be reached, refuses with
        429 or 5xx, has a full queue, takes too long for a sign of life, breaks off) has given nothing to the caller, so
        another one is asked. What another one would answer in the same way is raised: a request that the server finds
        wrong (4xx), an ended ``hold_timeout``, a call that a newer one has superseded.

        Args:
          role: the role.
          messages: what :meth:`ModelAdapter.chat` takes, as are all ``options`` (``priority=``, ``model=``, ...).
          prefer, strategy: as for :meth:`choose`.
          on_unavailable: when the one that is to be asked first is down, can't be reached, or refuses. ``"next"``: the
            next one is asked, and so on. ``"wait"``: it is waited for until it is up again. ``"defer"``:
            :class:`BackendUnavailable` is raised at once, with ``retry_after``, for work that can be done later.
          max_wait: seconds for all waiting together, for a backend to come up and in the queues of gates; None: as
            :func:`trio_mlxgate.use_options` or the endpoints' settings say for each queue, else no limit.
          fallback: an async function that is called with the error when nobody here answers, such as one that asks a
            cloud service. No slot is held then. What it returns is returned.

        Raises:
          LookupError, TypeError, ValueError: an argument isn't as described.
          BackendUnavailable: all are down, or all that were asked failed; the last error is its ``__cause__``.
          BackendError, GateRefused: that of the one backend there is, or one that is no reason to ask another.
        """
        plan = CallPlan(role=role, prefer=prefer, strategy=strategy, on_unavailable=on_unavailable, max_wait=max_wait)
        return await call_role(self, plan, messages, options, fallback)

    def stream(
        self,
        role: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        prefer: Sequence[str] = (),
        strategy: Strategy = "first",
        on_unavailable: OnUnavailable = "next",
        max_wait: float | None = None,
        **options: Any,
    ) -> RoleStream:
        """A streamed answer: ``async with registry.stream(role, ...) as stream: async for delta in stream: ...``.

        As :meth:`call`, up to the first delta: entering waits for it, and until then another backend can take over.
        From then on an error is the caller's, who has seen a part. There is no ``fallback=`` here: where entering
        raises BackendUnavailable no slot is held, and the caller may ask whomever it likes.

        Raises:
          LookupError, TypeError, ValueError: at once, an argument isn't as described.
        """
        plan = CallPlan(role=role, prefer=prefer, strategy=strategy, on_unavailable=on_unavailable, max_wait=max_wait)
        self.rank(role, prefer=prefer, strategy=strategy)
        return RoleStream(self, plan, messages, options)

    # ---- inside ----

    def _of(self, role: str) -> tuple[ModelAdapter, ...]:
        if role not in self._roles:
            raise LookupError(f"there is no role {role!r}; there are {', '.join(self._roles)}")
        return self._roles[role]

    def _one(self, role: str, backend: str | None) -> ModelAdapter:
        if backend is None:
            ranked, there = self.rank(role)
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
        checked[role] = listed
    return checked
