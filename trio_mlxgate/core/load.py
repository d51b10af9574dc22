"""How well and how busy one server is, from all that was seen of it.

Two questions are kept apart. *Health* is settled: it changes when there is reason enough, and each change is told
once. *Level* is what may be said now: it rests on the newest evidence, and expires with it.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final

from trio_mlxgate.core.baseline import Baseline
from trio_mlxgate.core.levels import (
    DEFAULT_SETTINGS,
    LoadLevel as LoadLevel,
    LoadSettings as LoadSettings,
    SchmittTrigger,
    level_of_jobs,
)
from trio_mlxgate.core.load_report import NO_WORK, LoadReport as LoadReport, Transition as Transition, duration
from trio_mlxgate.core.measuring import check_measured
from trio_mlxgate.core.readings import Health, OwnWork, Reading

if TYPE_CHECKING:
    from trio_mlxgate.core.readings import Status

_LATENCY_LEVELS: Final = (LoadLevel.IDLE, LoadLevel.NORMAL, LoadLevel.BUSY)
_INFERENCE_LEVELS: Final = (LoadLevel.IDLE, LoadLevel.BUSY, LoadLevel.VERY_BUSY)
_WITNESSES: Final = 3
"""The level goes by the median of so many latencies."""


class LoadMonitor:
    """Everything that is known of one server. ``now`` is in seconds of one clock, and never falls.

    Health:

    - One good answer makes it UP, and so does a token of a stream of ours.
    - A refused connection makes it DOWN at once. Tokens don't make that UP again, only an answer does: a server that
      shuts down refuses newcomers while it ends its streams.
    - A request that got no token in time outweighs every answer of its health, which is as good beside a stuck
      generation: only a token ends that, or a restart. The second in a row makes it DOWN.
    - Other failures make it DOWN when :attr:`LoadSettings.down_after` came in a row; until then it is what it was.
      While tokens come, an answer that is late or senseless is no failure. Calls that fail together are one failure.

    Level: the newest evidence decides. A failure voids what was known before, so that the level is UNKNOWN from the
    first one on: a server that hangs is not idle, and who can't tell says so.
    """

    __slots__ = (
        *("_baseline", "_failed_at", "_failures", "_good", "_good_at", "_good_own", "_health"),
        *("_inference", "_inference_at", "_inference_trigger", "_latencies", "_latencies_at", "_latency_trigger"),
        *("_looked_at", "_reason", "_refused", "_settings", "_silence", "_token_at", "_unsettled"),
    )

    def __init__(self, settings: LoadSettings = DEFAULT_SETTINGS) -> None:
        self._settings = settings
        self._health = Health.UNKNOWN
        self._reason = ""
        self._baseline = Baseline(settings)
        self._looked_at = -inf
        self._token_at = -inf
        self._failures = 0
        self._failed_at = -inf
        self._refused = False
        # Why it is thought to generate nothing, whatever it says of its health; empty: it isn't.
        self._silence = ""
        # The latest good reading, with our own work at that time; None since a failure.
        self._good: Reading | None = None
        self._good_at = -inf
        self._good_own = NO_WORK
        self._latencies: deque[float] = deque(maxlen=_WITNESSES)
        self._latencies_at = -inf
        self._latency_trigger = SchmittTrigger(settings.leave_at)
        self._unsettled = False
        self._inference: float | None = None
        self._inference_at = -inf
        self._inference_trigger = SchmittTrigger(settings.leave_at)

    # ---- what is seen ----

    def observe(self, reading: Reading, now: float, own: OwnWork = NO_WORK) -> Transition | None:
        """Somebody has looked at the server.

        Args:
          reading: what the look told.
          now: when it ended.
          own: what we had under way there at that time.
        """
        self._looked_at = now
        if reading.health is Health.UP and self._silence:
            self._unsettled = False
            return None
        if reading.health is Health.UP:
            self._good, self._good_at, self._good_own = reading, now, own
            if reading.latency is not None and 0 <= reading.latency < inf:
                self._learn_latency(reading.latency, now, exact=reading.status is not None)
            else:
                self._unsettled = False
            return self._up(reading.reason, now)
        if reading.health is Health.UNKNOWN and self._tokens_within(self._settings.recheck, now):
            return None
        return self._fail(reading.reason or "no good answer", now, refused=reading.refused)

    def observe_tokens(self, now: float) -> Transition | None:
        """A stream of ours delivers tokens. Cheap enough for each of them."""
        if self._refused:
            return None
        self._token_at = now
        self._silence = ""
        return self._up("" if self._failures or self._health is not Health.UP else self._reason, now)

    def observe_inference(self, seconds: float, now: float) -> None:
        """A measurement had its first token after so many seconds. Says nothing of health: its tokens do.

        Raises:
          TypeError, ValueError: ``seconds`` is no duration.
        """
        check_measured(seconds)
        if not self._inference_is_fresh(now):
            self._inference_trigger.step = 0
        self._inference, self._inference_at = seconds, now
        self._inference_trigger.step = self._inference_trigger.next_step(seconds, self._inference_thresholds())

    def forget_inference(self) -> None:
        """A measurement has failed: what was measured before it is true no more."""
        self._inference = None
        self._inference_at = -inf
        self._inference_trigger.step = 0

    def observe_silence(self, reason: str, now: float) -> Transition | None:
        """A request of ours was taken, and got no token in time, or none after one.

        Args:
          reason: what was seen, for people.
          now: when.
        """
        if self._tokens_within(self._settings.recheck, now):
            return None  # others get theirs: this one was slow
        again = bool(self._silence)
        transition = self._fail(reason, now, refused=False, settled=again)
        self._silence = reason
        return transition

    def observe_call_failure(self, reason: str, now: float, *, refused: bool) -> Transition | None:
        """A real call could not reach it.

        Args:
          reason: what was seen, for people.
          now: when.
          refused: nothing listens there.
        """
        if not refused:
            # A burst overflows a server's backlog, and all are reset at once: that is one sign, not twenty.
            together = self._failures and now < self._failed_at + self._settings.recheck
            if together or self._tokens_within(self._settings.recheck, now):
                return None
        return self._fail(reason, now, refused=refused)

    # ---- what is known ----

    @property
    def health(self) -> Health:
        """The settled health. It doesn't expire: see the report for how old it is."""
        return self._health

    @property
    def reason(self) -> str:
        """Why it is not UP, or what is odd though it is; for people."""
        return self._reason

    @property
    def heeds_tokens(self) -> bool:
        """Whether tokens are evidence now: not after a refused connection, until it answers again."""
        return not self._refused

    @property
    def silent(self) -> bool:
        """Whether a request of ours got no token, and nobody has got one since: it takes a token to know better."""
        return bool(self._silence)

    @property
    def baseline(self) -> float:
        """The health latency that is usual for this server, in seconds."""
        return self._baseline.seconds

    def wants_measurement(self, now: float, own: OwnWork = NO_WORK) -> bool:
        """Whether the latency asks for a measurement that isn't there, and none of our own work explains it."""
        latency = self._fresh_latency(now)
        good = self._fresh_reading(now)
        if latency is None or good is None or good.status is not None or self._health is not Health.UP:
            return False
        if own.in_flight or own.waiting or len(self._latencies) < 2:
            return False
        measured = now <= self._inference_at + self._settings.measurement_serves
        return not measured and latency > self._settings.measure_ratio * self.baseline

    def next_check(self, now: float) -> float:
        """When to look again, on the clock of ``now``; ``now`` itself: at once.

        It moves on while a stream delivers tokens, unless the server fails: they are the better evidence.
        """
        wait = self._settings.recheck
        if self._health is not Health.UP or self._failures or self._unsettled:
            return max(now, self._looked_at + wait)
        # Without a good reading nobody knows how busy it is: a look is due as soon as the tokens end.
        return max(now, self._looked_at + (self._settings.interval if self._good else wait), self._token_at + wait)

    def report(self, now: float, own: OwnWork = NO_WORK, *, caller: int = 0) -> LoadReport:
        """How busy it is now.

        Args:
          now: the time.
          own: what we have under way there now.
          caller: how many of these are jobs of who asks, which are not in their own way.
        """
        good = self._fresh_reading(now)
        known: dict[str, Any] = {
            "health": self._health,
            "baseline": self.baseline,
            "own": own,
            "age": None if self._looked_at == -inf else now - self._looked_at,
        }
        if self._health is Health.DOWN:
            return LoadReport(level=LoadLevel.DOWN, reason=self._reason, **known)
        if good is not None:
            known.update(age=now - self._good_at, models=good.models, latency=self._fresh_latency(now))
        if self._inference_is_fresh(now):
            known.update(inference_latency=self._inference, inference_age=now - self._inference_at)
        if good is not None and good.status is not None:
            return self._from_status(good.status, own, caller, known)
        return self._from_signs(now, own, caller, good, known)

    # ---- the level ----

    def _from_status(self, status: Status, own: OwnWork, caller: int, known: dict[str, Any]) -> LoadReport:
        # What others have there is known from the look. What we have there is known now: the count of a look half a
        # minute ago would still hold our calls that have ended, and miss those that have begun.
        foreign = max(0, status.active_jobs - self._good_own.in_flight)
        jobs = foreign + own.in_flight
        whose = f", {foreign} of others" if foreign and own.in_flight else " of others" if foreign else ""
        reason = f"{_jobs(jobs)}{whose}"
        level = level_of_jobs(jobs, self._settings)
        queue = own.waiting - caller
        if queue > 0 and level <= LoadLevel.NORMAL:
            level, reason = _one_more(level), f"{reason}; in our queue: {queue}"
        return LoadReport(
            level=level,
            source="status",
            reason=reason,
            active_jobs=status.active_jobs,
            foreign_jobs=foreign,
            **known,
        )

    def _from_signs(
        self, now: float, own: OwnWork, caller: int, good: Reading | None, known: dict[str, Any]
    ) -> LoadReport:
        signs: list[tuple[LoadLevel, str]] = []
        latency = known.get("latency")
        if latency is not None:
            ratio = latency / self.baseline
            signs.append(
                (
                    _LATENCY_LEVELS[self._latency_trigger.step],
                    f"health latency {duration(latency)} is {ratio:.1f} times the {self._baseline.word}",
                )
            )
        if known.get("inference_latency") is not None:
            level = _INFERENCE_LEVELS[self._inference_trigger.step]
            signs.append((level, f"first token after {duration(known['inference_latency'])}"))
        if good is None:
            # A stream says that it is well, and not how well: whatever else was seen, it isn't idle.
            if not self._tokens_within(self._settings.fresh_for, now):
                return LoadReport(level=LoadLevel.UNKNOWN, reason=self._why_unknown(now), **known)
            signs.append((LoadLevel.NORMAL, "a stream delivers tokens"))
        if not signs:
            reason = "it answers, but nothing tells how busy it is"
            return LoadReport(level=LoadLevel.UNKNOWN, reason=_and(reason, self._reason), **known)
        level, reason = max(signs, key=lambda sign: sign[0])
        # Where a stream is all that is known, the level tells of it already.
        others = own.in_flight + own.waiting - caller - (good is None)
        if others > 0 and level <= LoadLevel.NORMAL:
            level = _one_more(level)
            reason = f"our own jobs besides: {others}; {reason}"
        return LoadReport(level=level, source="hybrid", reason=_and(reason, self._reason), **known)

    def _why_unknown(self, now: float) -> str:
        if self._silence:
            return f"it may be stuck: {self._silence}"
        if self._failures:
            return f"{self._reason} (failures in a row: {self._failures}; down after {self._settings.down_after})"
        if self._looked_at == self._token_at == -inf:
            return "not looked at yet"
        return f"nothing was seen of it for {now - max(self._looked_at, self._token_at):.0f} s"

    # ---- latencies ----

    def _learn_latency(self, latency: float, now: float, *, exact: bool) -> None:
        self._baseline.learn(latency, now)
        if now > self._latencies_at + self._settings.fresh_for:
            self._forget_latencies()
        self._latencies.append(latency)
        self._latencies_at = now
        trigger, thresholds = self._latency_trigger, self._latency_thresholds()
        trigger.step = trigger.next_step(self._median(), thresholds)
        if len(self._latencies) == 1:
            # One slow answer may be a cold start: a second one has to confirm that it is BUSY.
            trigger.step = min(trigger.step, 1)
        # Another look tells whether this was chance. Of three latencies the newest soon is the median: this ends.
        self._unsettled = not exact and trigger.next_step(latency, thresholds) != trigger.step

    def _forget_latencies(self) -> None:
        self._latencies.clear()
        self._latencies_at = -inf
        self._latency_trigger.step = 0

    def _median(self) -> float:
        # Of two the lower one: what is slow needs two witnesses.
        return sorted(self._latencies)[(len(self._latencies) - 1) // 2]

    def _latency_thresholds(self) -> tuple[float, ...]:
        baseline = self.baseline
        return self._settings.normal_ratio * baseline, self._settings.busy_ratio * baseline

    def _inference_thresholds(self) -> tuple[float, ...]:
        return self._settings.busy_inference, self._settings.very_busy_inference

    # ---- what is young enough ----

    def _fresh_reading(self, now: float) -> Reading | None:
        return self._good if now <= self._good_at + self._settings.fresh_for else None

    def _fresh_latency(self, now: float) -> float | None:
        return self._median() if now <= self._latencies_at + self._settings.fresh_for else None

    def _inference_is_fresh(self, now: float) -> bool:
        return now <= self._inference_at + self._settings.fresh_for

    def _tokens_within(self, seconds: float, now: float) -> bool:
        return now <= self._token_at + seconds

    # ---- health ----

    def _up(self, reason: str, now: float) -> Transition | None:
        self._failures = 0
        self._refused = False
        return self._become(Health.UP, reason, now)

    def _fail(self, reason: str, now: float, *, refused: bool, settled: bool = False) -> Transition | None:
        self._failures += 1
        self._failed_at = now
        # What answers in whatever way listens again, so that tokens that come now are its own.
        self._refused = refused
        if refused:
            self._silence = ""  # what comes up there next is another process
        self._good = None
        self._token_at = -inf
        enough = refused or settled or self._failures >= self._settings.down_after
        if not enough and self._health is not Health.DOWN:
            self._reason = reason
            return None
        # Whatever comes up there next begins anew; but it is the same machine, whose baseline holds.
        self._forget_latencies()
        self._unsettled = False
        self._inference = None
        self._inference_at = -inf
        return self._become(Health.DOWN, reason, now)

    def _become(self, health: Health, reason: str, now: float) -> Transition | None:
        before, self._health, self._reason = self._health, health, reason
        return None if before is health else Transition(before, health, reason, now)


def _jobs(count: int) -> str:
    return f"{count} active job{'s' if count > 1 else ''}" if count else "no active jobs"


def _one_more(level: LoadLevel) -> LoadLevel:
    """What our own queue makes of a level, and no more than that."""
    return LoadLevel.NORMAL if level is LoadLevel.IDLE else LoadLevel.BUSY


def _and(reason: str, more: str) -> str:
    return f"{reason}; {more}" if more else reason
