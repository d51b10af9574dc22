"""The backends of a program by their roles: asked for their load, chosen among, and called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import trio

from trio_mlxgate.backends.calls import CallPlan, ChatOptions, RoleStream, call_role
from trio_mlxgate.backends.watching import Watching
from trio_mlxgate.core.choosing import Candidate, OnUnavailable, Strategy, available, order
from trio_mlxgate.core.readings import Health
from trio_mlxgate.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from trio_mlxgate.backends.adapter import ModelAdapter
    from trio_mlxgate.core.completions import Completion
    from trio_mlxgate.core.load import LoadReport

T = TypeVar("T")


class BackendRegistry(Watching):
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

    # ---- looking ----

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
        **options: Unpack[ChatOptions],
    ) -> Completion | T:
        """One answer of whichever backend of this role can give it. Always a checkpoint.

        Each is asked through the gate of its own endpoint. Whoever is asked and fails (can't be reached, refuses with
        429 or 5xx, has a full queue, takes too long for a sign of life, breaks off) has given nothing to the caller, so
        another one is asked. What another one would answer in the same way is raised: a request that the server finds
        wrong (4xx), an ended ``hold_timeout``, a call that a newer one has superseded. A call that stands in the queue
        of a backend which goes down leaves it.

        Args:
          role: the role.
          messages: as for :meth:`ModelAdapter.chat`, and so are ``options``: ``priority``, ``hold_timeout``, ``model``,
            ``temperature``, ``max_tokens``, ``supersede``, ``outer_deadline``, ``extra``.
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
            options=options,
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
        **options: Unpack[ChatOptions],
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
            options=options,
            prefer=prefer,
            strategy=strategy,
            on_unavailable=on_unavailable,
            max_wait=max_wait,
        )
        plan.check(self)
        return RoleStream(self, plan)

    # ---- inside ----

    def _one(self, role: str, backend: str | None) -> ModelAdapter:
        if backend is None:
            ranked, there = self._rank(role)
            return self._backends[next((name for name in ranked if name in there), ranked[0])]
        for candidate in self._of(role):
            if candidate.name == backend:
                return candidate
        names = ", ".join(candidate.name for candidate in self._of(role))
        raise LookupError(f"role {role!r} has no backend {backend!r}; it has {names}")
