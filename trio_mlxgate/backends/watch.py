"""One backend under watch: looks at it every now and then, and keeps what ``core/load.py`` makes of that."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import outcome
import trio

from trio_mlxgate.backends.flights import Flight
from trio_mlxgate.core.load import LoadMonitor, LoadReport, LoadSettings
from trio_mlxgate.core.measuring import MeasuringDesk, Served
from trio_mlxgate.core.readings import Health, OwnWork, Reading
from trio_mlxgate.errors import BackendTooSlow, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_mlxgate.core.load import Transition

_logger: Final = logging.getLogger("trio_mlxgate.backends")

TOKENS_ARE_NEWS_FOR: Final = 5.0
"""For so many seconds a token that came is better evidence than a probe would be."""

MEASUREMENT_LIMIT: Final = 30.0
"""Seconds that a measurement may take; one that takes longer counts as that slow."""


class Watchable(Protocol):
    """What is watched; a :class:`ModelAdapter` is one."""

    @property
    def name(self) -> str:
        """What log lines and errors call it."""
        ...

    @property
    def own_work(self) -> OwnWork:
        """What we have under way there."""
        ...

    @property
    def last_token_at(self) -> float:
        """When a token last came from there, by trio's clock; -inf: never."""
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


class Watch:
    """One backend under watch."""

    def __init__(
        self,
        backend: Watchable,
        settings: LoadSettings,
        *,
        jitter: float,
        check_limit: float,
        tell: Callable[[HealthChanged], object],
    ) -> None:
        self.backend = backend
        self._monitor = LoadMonitor(settings)
        self._desk = MeasuringDesk(settings)
        self._jitter = jitter
        self._check_limit = check_limit
        self._tell = tell
        self._wake = trio.Event()
        self._looking: Flight[None] = Flight(self._look)
        self._measuring: Flight[float] = Flight(self._measure)

    # ---- what is known ----

    @property
    def health(self) -> Health:
        """Whether it is well."""
        return self._monitor.health

    def report(self, *, caller: int = 0) -> LoadReport:
        """How busy it is. ``caller``: how many of our requests there are the asking caller's own."""
        return self._monitor.report(trio.current_time(), self.backend.own_work, caller=caller)

    def seconds_to_next_check(self) -> float:
        """How soon it is looked at again; at least one second is told."""
        now = trio.current_time()
        return max(1.0, self._monitor.next_check(now) - now)

    # ---- looking ----

    async def run(self, nursery: trio.Nursery) -> None:
        """Look, and wait, for ever. Always a checkpoint; nothing but a cancellation ends it."""
        while True:
            try:
                # Tokens that come are better evidence than an answer of /health, and cost the server nothing.
                if trio.current_time() - self.backend.last_token_at < TOKENS_ARE_NEWS_FOR:
                    self._note(self._monitor.observe_tokens(trio.current_time()))
                else:
                    await self._looking.join(nursery)
                    if self._wants_measurement():
                        self._measuring.start(nursery)
            except Exception:
                _logger.exception("backend %r: its check failed; it goes on", self.backend.name)
            await self._pause()

    async def look_now(self, nursery: trio.Nursery) -> None:
        """Look at it now, or wait for the look that is under way. Always a checkpoint."""
        await self._looking.join(nursery)

    def look_soon(self) -> None:
        """Something has happened: its next check is due now."""
        self._wake.set()

    async def _pause(self) -> None:
        """Wait until the next check is due, or is asked for. Always a checkpoint."""
        now = trio.current_time()
        delay = max(0.0, self._monitor.next_check(now) - now) * (1 + self._jitter * random.uniform(-1, 1))
        with trio.move_on_after(delay):
            await self._wake.wait()
        self._wake = trio.Event()
        # For a server that fails so fast that its next check would be due at once.
        await trio.lowlevel.checkpoint()

    async def _look(self) -> None:
        """One look at it, whatever happens. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        before = self.backend.own_work
        reading = Reading(health=Health.UNKNOWN, reason=f"its check took longer than {self._check_limit:g} s")
        try:
            with trio.move_on_after(self._check_limit):
                reading = await self.backend.read()
        except Exception as error:
            _logger.exception("backend %r: its check raised; that is a mistake of the check", self.backend.name)
            reading = Reading(health=Health.UNKNOWN, reason=f"its check raised {error!r}")
        after = self.backend.own_work
        # Of what came or went while it looked, nothing is to be taken for the work of others.
        own = OwnWork(in_flight=max(before.in_flight, after.in_flight), waiting=max(before.waiting, after.waiting))
        self._note(self._monitor.observe(reading, trio.current_time(), own))

    def failed(self, reason: str, *, refused: bool) -> None:
        """A call could not reach it."""
        self._note(self._monitor.observe_call_failure(reason, trio.current_time(), refused=refused))
        self.look_soon()

    def _note(self, transition: Transition | None) -> None:
        if transition is not None:
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
        return self._monitor.wants_measurement(now, own) and self._desk.ask(now) == "start"

    async def measure(self, nursery: trio.Nursery) -> float:
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
        result = await self._measuring.join(nursery)
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
        self._desk.started(trio.current_time())
        seconds = MEASUREMENT_LIMIT
        try:
            with trio.move_on_after(MEASUREMENT_LIMIT):
                seconds = await self.backend.measure_inference_latency()
        except BackendTooSlow:
            pass  # that is the outcome
        except Exception as error:
            (self._desk.called_off if isinstance(error, trio.WouldBlock) else self._desk.failed)(trio.current_time())
            raise
        except BaseException:
            self._desk.called_off(trio.current_time())
            raise
        now = trio.current_time()
        self._desk.finished(seconds, now)
        self._monitor.observe_inference(seconds, now)
        return seconds
