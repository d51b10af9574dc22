"""The echo server's book of jobs: who is next, who has gone, and what is counted.

Without a socket, a clock or a task: ``now`` is always an argument, in seconds since the server started.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypedDict

import attrs

if TYPE_CHECKING:
    from trio_mlxgate._echo_protocol import EchoSettings, InferenceRequest

_KEPT_IN_ORDER = 1000


class JobStatus(TypedDict):
    """One job in the order of /status; times in seconds since the server started, None if not (yet)."""

    number: int
    label: str
    stream: bool
    tokens: int
    """Tokens made so far."""
    accepted: float
    started: float | None
    ended: float | None
    left: float | None
    """When its client was seen to have gone."""


class EchoStatus(TypedDict):
    """The body of /status."""

    active_jobs: int
    """Accepted and not ended: waiting or generating, ghosts included."""
    total_requests: int
    """Inferences accepted since the start."""
    generating: int
    """0 or 1."""
    max_active_jobs: int
    """The most that were ever active at once."""
    completed: int
    """Jobs whose client was there when the last token was made."""
    abandoned: int
    """Jobs whose client had gone before that."""
    ghost_jobs: int
    """Active jobs whose client has gone."""
    overlaps: int
    """How many times a job was accepted while another was active."""
    uptime: float
    """Seconds since the server started: the clock of the times below."""
    order: list[JobStatus]
    """The last 1000 jobs that started, in the order of their starts."""


@attrs.define(eq=False, kw_only=True)
class Job:
    """One inference. Only the `JobBook` that made it changes it."""

    number: int
    label: str
    stream: bool
    tokens: int
    accepted: float
    made: int = 0
    started: float | None = None
    ended: float | None = None
    left: float | None = None

    @property
    def over(self) -> bool:
        """True once it has made its last token or was stopped."""
        return self.ended is not None

    def status(self) -> JobStatus:
        """This job as /status shows it."""
        return JobStatus(
            number=self.number,
            label=self.label,
            stream=self.stream,
            tokens=self.made,
            accepted=self.accepted,
            started=self.started,
            ended=self.ended,
            left=self.left,
        )


class JobBook:
    """Who is next, how far the running job is, and what is counted. One job runs at a time, in order of arrival."""

    def __init__(self, settings: EchoSettings) -> None:
        self._settings = settings
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._running: Job | None = None
        self._order: deque[Job] = deque(maxlen=_KEPT_IN_ORDER)
        self._total = self._max_active = self._completed = self._abandoned = self._ghosts = self._overlaps = 0

    @property
    def active(self) -> int:
        """Jobs that wait or run."""
        return len(self._waiting) + (self._running is not None)

    @property
    def running(self) -> Job | None:
        """The job that makes tokens now."""
        return self._running

    def accept(self, request: InferenceRequest, now: float) -> Job:
        """A new job at the end of the queue."""
        if self.active:
            self._overlaps += 1
        self._total += 1
        job = Job(
            number=self._total,
            label=request.label,
            stream=request.stream,
            tokens=request.tokens(self._settings),
            accepted=now,
        )
        self._waiting[job.number] = job
        self._max_active = max(self._max_active, self.active)
        return job

    def start_next(self, now: float) -> Job | None:
        """Start the job that has waited longest; None if nobody waits. Not to be called while one runs."""
        if self._running is not None:
            raise RuntimeError(f"job {self._running.number} is still running")
        if not self._waiting:
            return None
        _, job = self._waiting.popitem(last=False)
        job.started = now
        self._running = job
        self._order.append(job)
        return job

    def next_token_due(self, job: Job) -> float:
        """When a started job's next token is due: counted from its start, so that lateness never adds up."""
        if job.started is None:
            raise RuntimeError(f"job {job.number} has not started")
        return job.started + (job.made + 1) * self._settings.service_time / self._settings.tokens

    def make_token(self, job: Job, now: float) -> None:
        """The running job has one more token; with the last one it is over. A job that doesn't run gets none."""
        if job is not self._running:
            return
        job.made += 1
        if job.made == job.tokens:
            job.ended = now
            self._running = None
            if job.left is None:
                self._completed += 1
            else:
                self._ghosts -= 1

    def leave(self, job: Job, now: float) -> None:
        """The job's client has gone: by the settings the job is over now, or goes on as a ghost.

        Of a job that is over, or whose client has gone already, nothing changes.
        """
        if job.over or job.left is not None:
            return
        job.left = now
        self._abandoned += 1
        settings = self._settings
        if (settings.stream_on_disconnect if job.stream else settings.plain_on_disconnect) == "finish":
            self._ghosts += 1
            return
        job.ended = now
        if job is self._running:
            self._running = None
        else:
            del self._waiting[job.number]

    def status(self, now: float) -> EchoStatus:
        """The body of /status."""
        return EchoStatus(
            active_jobs=self.active,
            total_requests=self._total,
            generating=int(self._running is not None),
            max_active_jobs=self._max_active,
            completed=self._completed,
            abandoned=self._abandoned,
            ghost_jobs=self._ghosts,
            overlaps=self._overlaps,
            uptime=now,
            order=[job.status() for job in self._order],
        )
