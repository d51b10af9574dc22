"""One backend under watch: looks at it every now and then, and keeps what ``core/load.py`` makes of that."""

from __future__ import annotations

import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import outcome
import trio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.backends.flights import Flight
from trio_mlxgate.core.load import LoadMonitor, LoadReport, LoadSettings
from trio_mlxgate.core.measuring import MeasuringDesk, Served
from trio_mlxgate.core.readings import Health, OwnWork, Reading
from trio_mlxgate.errors import BackendTooSlow, BackendUnavailable, ConnectTooSlow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextvars import Context

    from trio_mlxgate.core.load import Transition
    from trio_mlxgate.gate import Gate

_logger: Final = logging.getLogger("trio_mlxgate.backends")

TOKENS_ARE_NEWS_FOR: Final = 5.0
"""For so many seconds a token that came is better evidence than a probe would be."""

MEASUREMENT_LIMIT: Final = 30.0
"""Seconds that a measurement may take; one that takes longer counts as that slow."""

_SHORTEST_PAUSE: Final = 1.0
"""Seconds between two looks, at least, unless somebody asks for one: whatever goes wrong, it doesn't spin."""


class Watchable(Protocol):
    """What is watched; a :class:`ModelAdapter` is one."""

    @property
    def name(self) -> str:
        """What log lines and errors call it."""
        ...

    @property
    def endpoint_gate(self) -> Gate:
        """The gate that its requests pass."""
        ...

    @property
    def own_work(self) -> OwnWork:
        """What we have under way there."""
        ...

    @property
    def last_token_at(self) -> float:
        """When a token last came from there, by trio's clock; -inf: never."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it can be used no more in this run."""
        ...

    def read(self) -> Awaitable[Reading]:
        """Look at it, without touching its GPU. A checkpoint."""
        ...

    def measure_inference_latency(self) -> Awaitable[float]:
        """Seconds to the first token; raises trio.WouldBlock while its gate is busy. A checkpoint."""
        ...


@attrs.frozen(kw_only=True)
class HealthChanged:
    """A backend has come up, or gone down, or is known for the first time."""

    backend: str
    """Its name."""

    before: Health
    """What was known until now."""

    after: Health
    """What is known from now on."""

    reason: str
    """Why, for people; empty when it is well."""


@attrs.define(eq=False)
class Caller:
    """One call on its way to a backend."""

    scope: trio.CancelScope
    granted: Callable[[], bool] = lambda: False
    """Whether it has its slot."""


class Watch:
    """One backend under watch, for the time in which a registry is entered."""

    def __init__(
        self,
        backend: Watchable,
        settings: LoadSettings,
        nursery: trio.Nursery,
        context: Context,
        *,
        jitter: float,
        check_limit: float,
        tell: Callable[[HealthChanged], object],
    ) -> None:
        self.backend = backend
        self._settings = settings
        self._monitor = LoadMonitor(settings)
        self._desk = MeasuringDesk(settings)
        self._jitter = jitter
        self._check_limit = check_limit
        self._tell = tell
        self._wake = trio.Event()
        # Somebody has asked for a look: tokens that came before don't answer that.
        self._wanted = False
        self._failed_at = -float("inf")
        self._tried_at = -float("inf")
        self._looking: Flight[None] = Flight(self._look, nursery, context)
        self._measuring: Flight[float] = Flight(self._measure, nursery, context)
        self._callers: set[Caller] = set()

    # ---- what is known ----

    @property
    def health(self) -> Health:
        """Whether it is well."""
        return Health.DOWN if self.backend.closed else self._monitor.health

    def report(self, *, caller: int = 0) -> LoadReport:
        """How busy it is. ``caller``: how many of our requests there are the asking caller's own."""
        return self._monitor.report(trio.current_time(), self.backend.own_work, caller=caller)

    @property
    def queue(self) -> int:
        """How many calls of ours stand before one that comes now: those on their way to the gate, too."""
        own = self.backend.own_work
        return max(own.in_flight + own.waiting, len(self._callers))

    def seconds_to_next_check(self) -> float:
        """How soon it is looked at again; at least one second is told."""
        now = trio.current_time()
        return max(1.0, self._monitor.next_check(now) - now)

    # ---- looking ----

    @enable_ki_protection
    async def run(self) -> None:
        """Look, and wait, for ever. Always a checkpoint; nothing but a cancellation ends it."""
        while True:
            try:
                wanted, self._wanted = self._wanted, False
                if not wanted and self._tokens_tell():
                    self._note(self._monitor.observe_tokens(trio.current_time()))
                else:
                    await self._looking.join()
                    if self._wants_measurement():
                        self._measuring.start()
            except trio.ClosedResourceError:
                # The look was broken off, since the registry is being left: the pause will be cancelled.
                pass
            except Exception:
                _logger.exception("backend %r: its watch failed; it goes on", self.backend.name)
            await self._pause()

    async def look_now(self) -> None:
        """Look at it now, or wait for the look that is under way. Always a checkpoint."""
        await self._looking.join()
        self._wake.set()  # what it has shown may have moved the next one

    def _look_soon(self) -> None:
        self._wanted = True
        self._wake.set()

    def _tokens_tell(self) -> bool:
        """Whether tokens that came are evidence: better than an answer of /health, and it costs the server nothing."""
        token_at = self.backend.last_token_at
        fresh = trio.current_time() - token_at < TOKENS_ARE_NEWS_FOR
        return fresh and token_at > self._failed_at and self._monitor.heeds_tokens

    async def _pause(self) -> None:
        """Wait until the next check is due, or is asked for. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self._wanted:
            now = trio.current_time()
            delay = (self._monitor.next_check(now) - now) * (1 + self._jitter * random.uniform(-1, 1))
            shortest = min(_SHORTEST_PAUSE, self._settings.recheck)
            with trio.move_on_after(max(shortest, delay)) as scope:
                await self._wake.wait()
            if scope.cancelled_caught:
                return
            self._wake = trio.Event()

    async def _look(self) -> None:
        """One look at it, whatever happens. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        own = OwnWork()
        reading = Reading(health=Health.UNKNOWN, reason=f"its check took longer than {self._check_limit:g} s")
        try:
            before = self.backend.own_work
            if self.backend.closed:
                reading = Reading(health=Health.DOWN, reason="its adapter was closed", refused=True)
            else:
                with trio.move_on_after(self._check_limit):
                    reading = await self.backend.read()
            after = self.backend.own_work
            # Of what came or went while it looked, nothing is to be taken for the work of others.
            own = OwnWork(in_flight=max(before.in_flight, after.in_flight), waiting=max(before.waiting, after.waiting))
        except Exception as error:
            _logger.exception("backend %r: its check raised; that is a mistake of the check", self.backend.name)
            reading = Reading(health=Health.UNKNOWN, reason=f"its check raised {error!r}")
        self._note(self._monitor.observe(reading, trio.current_time(), own))

    # ---- calls ----

    @contextlib.contextmanager
    def calling(self) -> Iterator[Caller]:
        """A call on its way: it counts, and leaves the queue of the gate if the backend goes down meanwhile.

        Raises:
          BackendUnavailable: it did.
        """
        with trio.CancelScope() as scope:
            caller = Caller(scope)
            self._callers.add(caller)
            try:
                yield caller
            finally:
                self._callers.discard(caller)
        if scope.cancelled_caught:
            raise BackendUnavailable(
                f"backend {self.backend.name!r} went down while this call stood in its queue",
                backend=self.backend.name,
                retry_after=self.seconds_to_next_check(),
            )

    def call_failed(self, reason: str, *, refused: bool) -> None:
        """A call could not reach it, or was broken off."""
        now = self._failed_at = trio.current_time()
        self._note(self._monitor.observe_call_failure(reason, now, refused=refused))
        self._look_soon()

    def call_got_no_token(self, reason: str) -> None:
        """A call was taken, and got no token in time: whatever it says of its health, it may be stuck."""
        now = self._failed_at = trio.current_time()
        self._note(self._monitor.observe_silence(reason, now))
        self._look_soon()

    def _note(self, transition: Transition | None) -> None:
        if transition is None:
            return
        if transition.after is Health.DOWN:
            for caller in tuple(self._callers):
                if not caller.granted():
                    caller.scope.cancel()
        self._tell(
            HealthChanged(
                backend=self.backend.name,
                before=transition.before,
                after=transition.after,
                reason=transition.reason,
            )
        )

    # ---- measuring ----

    def _wants_measurement(self) -> bool:
        now, own = trio.current_time(), self.backend.own_work
        if self.backend.closed:
            return False
        if self._monitor.silent:
            # It takes a token to know better, and nobody else will ask one that is down.
            due = not self._desk.running and now >= self._tried_at + self._settings.interval
            return due and not (own.in_flight or own.waiting)
        return self._monitor.wants_measurement(now, own) and self._desk.ask(now) == "start"

    async def measure(self) -> float:
        """Seconds to the first token of a request of one token, at most so old as a result serves. Always a checkpoint.

        Raises:
          trio.WouldBlock: its gate is busy.
          BackendUnavailable: it failed, now or a moment ago.
        """
        now = trio.current_time()
        answer = self._desk.ask(now)
        if isinstance(answer, Served):
            await trio.lowlevel.checkpoint()
            return answer.seconds
        if answer == "cooling":
            await trio.lowlevel.checkpoint()
            raise BackendUnavailable(
                f"backend {self.backend.name!r}: a measurement failed a moment ago, and is not to be tried again yet",
                backend=self.backend.name,
                retry_after=self._desk.ready_at - now,
            )
        result = await self._measuring.join()
        if isinstance(result, outcome.Value):
            return result.value
        if isinstance(result.error, trio.WouldBlock):
            raise trio.WouldBlock(f"the gate of backend {self.backend.name!r} is busy")
        raise BackendUnavailable(
            f"backend {self.backend.name!r} could not be measured: {result.error}",
            backend=self.backend.name,
            retry_after=self.seconds_to_next_check(),
        ) from result.error

    async def _measure(self) -> float:
        """Measure it, and note the outcome. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        begun = self._tried_at = trio.current_time()
        self._desk.started(begun)
        slow = ""
        seconds = 0.0
        try:
            with trio.move_on_after(MEASUREMENT_LIMIT) as scope:
                seconds = await self.backend.measure_inference_latency()
            if scope.cancelled_caught:
                slow = f"no token within {MEASUREMENT_LIMIT:g} s, asked for one"
            self._measured(trio.current_time() - begun if slow else seconds, slow)
        except BackendTooSlow as error:
            if isinstance(error, ConnectTooSlow):
                self._not_measured(error)
                raise
            seconds = trio.current_time() - begun
            self._measured(seconds, str(error))
            return seconds
        except Exception as error:
            self._not_measured(error)
            raise
        except BaseException:
            self._desk.called_off(trio.current_time())
            raise
        return trio.current_time() - begun if slow else seconds

    def _measured(self, seconds: float, slow: str) -> None:
        """It has taken so long; ``slow``: to no token at all, and why."""
        now = trio.current_time()
        self._monitor.observe_inference(seconds, now)
        self._desk.finished(seconds, now)
        if not slow:
            self._note(self._monitor.observe_tokens(now))
        elif self._monitor.silent:
            self._note(self._monitor.observe_silence(slow, now))

    def _not_measured(self, error: Exception) -> None:
        """It gave no figure."""
        now = trio.current_time()
        if isinstance(error, trio.WouldBlock):
            self._desk.called_off(now)
            return
        if self._desk.running:
            self._desk.failed(now)
        self._monitor.forget_inference()
        _logger.warning("backend %r could not be measured: %s", self.backend.name, str(error) or repr(error))
