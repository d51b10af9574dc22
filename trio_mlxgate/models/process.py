"""A model's server as a process of ours: started when it is wanted, watched, started again, and never left behind."""

from __future__ import annotations

import logging
import math
import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trio_mlxgate.core.backoff import Restarts
from trio_mlxgate.core.checks import check_bool
from trio_mlxgate.core.lifecycle import Lifecycle, ModelEvent, ModelState, StateChange
from trio_mlxgate.models._blocks import RunInBlock
from trio_mlxgate.models._one_process import OneProcess
from trio_mlxgate.models._remains import Remains
from trio_mlxgate.models._start import Failure, Start
from trio_mlxgate.models.checking import listens
from trio_mlxgate.models.errors import ModelCrashed, ModelNotStopped, ModelStartFailed, ModelUnloaded
from trio_mlxgate.models.guarded import NotStarted
from trio_mlxgate.models.output import Output
from trio_mlxgate.models.ports import NoFreePort, PortPool, current_port_pool
from trio_mlxgate.models.settings import ProcessConfig, filled, needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.models.errors import ModelError, ModelFailed

_logger: Final = logging.getLogger("trio_mlxgate.models")

LAST_LINES: Final = 20
"""Lines of output that an error tells."""

_LEFT: Final = "nobody runs it any more"
_HANGS: Final = "its process was killed and is still there: it hangs in the system, so its memory may still be taken"


class ModelProcess(RunInBlock):
    """A model's server, which has a process while somebody wants it::

        async with ModelProcess(config) as process:
            base_url = await process.ensure_ready()

    or, in a nursery of yours, ``process = await nursery.start(ModelProcess(config).run)``. When the block is left, or
    the nursery cancelled, the server is stopped, and then there is no process any more.

    Args:
      config: how it is run.
      ports: where its port comes from; None: the pool of this trio run.
      on_change: is called at each step of its life, in the same moment; it must not wait. Its errors are logged.
      restarts: whether it is started again by itself after a crash. If not, it is when somebody asks for it, after the
        same pause.
    """

    def __init__(
        self,
        config: ProcessConfig,
        *,
        ports: PortPool | None = None,
        on_change: Callable[[StateChange], object] | None = None,
        restarts: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(config, ProcessConfig):
            raise TypeError(f"config must be a ProcessConfig, not {config!r}")
        self.config = config
        """How it is run."""
        self._ports = ports
        self._on_change = on_change
        self._life = Lifecycle(config.name)
        self._restarts = Restarts(config.restarts)
        self._output = Output(lines=config.output_lines)
        self._first_line = 0
        self._restarts_itself = check_bool("restarts", restarts)
        self._wanted = trio.Event()
        self._stop_asked = trio.Event()
        self._kill_asked = trio.Event()
        self._gone = trio.Event()
        self._gone.set()
        self._coming = Start()
        self._failure: Failure | None = None
        self._remains = Remains()
        self._next_start = -math.inf
        self._has_served = False
        self._healthy = False
        self._pid: int | None = None
        self._guard_pid: int | None = None
        self._base_url = ""

    # ---- what is known ----

    @property
    def state(self) -> ModelState:
        """Where it is, to be shown; what is to be done is decided by the calls."""
        return self._life.state

    @property
    def pid(self) -> int | None:
        """The id of the server's process, which is that of its process group too; None: it has none."""
        return self._pid or self._remains.pid

    @property
    def guard_pid(self) -> int | None:
        """The id of the process that ends the server if this one dies; None: there is no server."""
        return self._guard_pid or self._remains.guard_pid

    @property
    def healthy(self) -> bool:
        """Whether it is ready and answered the last look. Many servers don't answer while they work."""
        return self._healthy and self.state is ModelState.READY

    @property
    def retry_at(self) -> float:
        """Until when nobody gets it, since it has failed too often; -inf: it may be had."""
        return self._failure.at if self._failure is not None and self.state is ModelState.FAILED else -math.inf

    @property
    def next_start(self) -> float:
        """Before that it is not started, since it has just crashed; a time that has passed, or -inf: it may be."""
        return max(self._next_start, self.retry_at)

    @property
    def first_line(self) -> int:
        """The number of the first line of output of its process, or of the last one it had."""
        return self._first_line

    @property
    def output(self) -> Output:
        """What it writes, over all restarts."""
        return self._output

    # ---- what can be asked ----

    async def ensure_ready(self) -> str:
        """Return the server's base URL when it is ready: started if it is stopped, waited for if it is starting, and
        so on. Always a checkpoint. Cancelled, it leaves the server to those who want it still: it goes on starting.

        Raises:
          ModelFailed: it did not come up, or crashed too often. Until the error's ``retry_after`` has passed, that is
            told to all who ask; who asks later starts it anew.
          ModelNotStopped: its last process was killed and is still there, so its memory may still be taken. It is
            looked at anew by each who asks.
          ModelUnloaded: it was stopped while this waited, or nobody runs it any more.
          RuntimeError: nobody runs it yet.
        """
        await trio.lowlevel.checkpoint()
        while True:  # noqa: ASYNC913 - each turn waits, returns, raises, or starts it, which the next one waits for
            self._check_runs()
            match self.state:
                case ModelState.READY:
                    return self._base_url
                case ModelState.STARTING:
                    await self._coming.wait()
                case ModelState.SHUT_DOWN:
                    raise self._unloaded("it has been shut down")
                case _ if not self._gone.is_set():
                    await self._gone.wait()
                case _ if self._remains:
                    if await self._remains.look():
                        raise self._not_stopped()
                    self._went()
                case ModelState.FAILED if self._failure and trio.current_time() < self._failure.at:
                    raise self._failed(self._failure, self._lines())
                case _:
                    self._begin()

    async def stop(self, *, now: bool = False, forget: bool = True) -> None:
        """Stop the server, and return when its process has gone; at once if there is none. Always a checkpoint.

        It is told to go (SIGTERM to its process group, or ``cmd_stop``), and killed when it hasn't within
        ``stop_grace`` seconds. ``now``: it is killed at once, even if it is being stopped already. Who waits for it to
        be ready gets ModelUnloaded. ``forget``: that it failed, or crashed, is forgotten. Cancelled, it is stopped
        all the same.

        Raises:
          ModelNotStopped: it was killed, and is still there after some seconds: it hangs in the system. It stays
            STOPPING, or FAILED if it had crashed. Stopping it again kills it again, and waits as long again.
          RuntimeError: nobody runs it yet.
        """
        await trio.lowlevel.checkpoint()
        self._check_runs()
        if self._remains:
            if await self._remains.end():
                raise self._not_stopped()
            self._went()
        gone = self._gone
        if self.state in (ModelState.STARTING, ModelState.READY):
            self._told_to_stop("it was stopped")
        if forget:
            self.forget()
        self._stop_asked.set()
        if now:
            self._kill_asked.set()
        await gone.wait()
        if self._remains:
            raise self._not_stopped()

    def forget(self) -> None:
        """Forget that it failed, or crashed: who asks for it next gets it started at once."""
        if self.state is ModelState.FAILED:
            self._step(ModelEvent.STOP)
        self._restarts.forget()
        self._next_start = -math.inf

    async def wait_stopped(self) -> None:
        """Wait until it has no process: it was stopped, has failed, or was shut down. Always a checkpoint.

        Between two starts after a crash there is none either, but another one will come: that is waited for.

        Raises:
          ModelNotStopped: nothing more is done to end it, but a process that was killed was still there when it was
            looked at last. :meth:`stop` tries again.
        """
        await trio.lowlevel.checkpoint()
        await self._gone.wait()
        if self._remains:
            raise self._not_stopped()

    def _check_runs(self) -> None:
        if not self._entered:
            advice = "use it inside 'async with process', or nursery.start(process.run)"
            raise RuntimeError(f"nobody runs model {self.config.name!r}: {advice}")

    # ---- its life ----

    async def run(  # noqa: ASYNC114 - what it starts is a value, to be used after it
        self, *, task_status: trio.TaskStatus[ModelProcess] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run it until cancelled: ``process = await nursery.start(process.run)``. Always a checkpoint.

        When it is cancelled, the server is stopped, in the time that ``stop_grace`` and 15 s bound.

        Raises:
          RuntimeError: it runs already, or did: each is run once.
        """
        self._begin_to_run()
        try:
            await trio.lowlevel.checkpoint()
            task_status.started(self)
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                await self._live()
        finally:
            left = self._remains.take()
            self._leave()
            self._step(ModelEvent.SHUT_DOWN)
            self._output.close()
            if left is not None:
                _logger.error("model %r is left behind: %s (process %s)", self.config.name, _HANGS, left.pid)
                await self._remains.let_go(left)  # noqa: ASYNC102 - it shields itself, and is bounded

    def _run_once(self) -> str:
        return f"model {self.config.name!r} is run already, or was: make another ModelProcess"

    def _begin(self) -> None:
        """Somebody wants it, and nothing is left of an earlier life."""
        assert self._gone.is_set()
        self._gone = trio.Event()
        self._stop_asked = trio.Event()
        self._kill_asked = trio.Event()
        self._coming = Start()
        self._has_served = False
        self._failure = None
        self._step(ModelEvent.START)
        self._wanted.set()

    async def _live(self) -> None:
        """Run one process after the other, until it is stopped, or given up. Always a checkpoint."""
        try:
            await trio.lowlevel.checkpoint()
            while self.state is ModelState.STARTING:
                with trio.move_on_at(self._next_start):
                    await self._stop_asked.wait()
                if not self._stop_asked.is_set():
                    await self._serve()
                if self._remains and self.state is ModelState.STARTING:
                    # A next one beside it could be one too many for the memory.
                    self._coming.settle(self._not_stopped)
                    self._step(ModelEvent.GIVE_UP, _HANGS)
        finally:
            self._leave()

    def _leave(self) -> None:
        """No process is left, but for what remains. What it was told to do, or what became of it, is done."""
        if self.state in (ModelState.STARTING, ModelState.READY):
            self._told_to_stop(_LEFT)
        if self.state is ModelState.STOPPING and not self._remains:
            self._step(ModelEvent.EXIT)
        # That it failed is told now that all its output is there; it may be stopped, and so forgotten, already.
        if self._failure is not None:
            self._coming.settle(partial(self._failed, self._failure, self._lines()))
        self._gone.set()

    def _went(self) -> None:
        """What remained of the last life has gone; others may have seen that before, and begun another one."""
        if self.state is ModelState.STOPPING and self._gone.is_set():
            self._step(ModelEvent.EXIT)

    def _told_to_stop(self, reason: str) -> None:
        self._step(ModelEvent.STOP, reason)
        self._coming.settle(partial(self._unloaded, reason, self._lines()))

    def _step(self, event: ModelEvent, reason: str = "", exit_status: int | None = None) -> None:
        change = self._life.apply(event, trio.current_time(), reason, exit_status=exit_status)
        level = logging.WARNING if event in (ModelEvent.CRASH, ModelEvent.GIVE_UP) else logging.INFO
        told = f": {reason}" if reason else ""
        _logger.log(level, "model %r is %s (%s)%s", self.config.name, change.after.value, event.value, told)
        if self._on_change is not None:
            try:
                self._on_change(change)
            except Exception:
                _logger.exception("the on_change of model %r failed with %r", self.config.name, change)

    # ---- one process ----

    async def _serve(self) -> None:
        """Run one process, from its start until nothing is left of it. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        config = self.config
        self._first_line = self._output.count
        with ExitStack() as lent:
            try:
                port = lent.enter_context((self._ports or current_port_pool()).lent()) if config.needs_port else 0
                env = {**os.environ, **{name: filled(text, {"PORT": port}) for name, text in config.env.items()}}
                where = config.url(port)
                if not needs(config.base_url, "PORT") and await listens(where):
                    raise NotStarted(f"somebody listens at {where} already; end that, or give this one another port")
                one = OneProcess(
                    self,
                    config,
                    self._output,
                    port=port,
                    env=env,
                    stop_asked=self._stop_asked,
                    kill_asked=self._kill_asked,
                )
                guarded = one.start()
                try:
                    async with guarded as server:
                        self._pid, self._guard_pid = server.pid, server.guard_pid
                        await one.tend(server)
                finally:
                    self._remains.note(guarded)
            except (NoFreePort, NotStarted) as error:
                if not self._stop_asked.is_set():
                    told = error.strerror if isinstance(error, NoFreePort) else error
                    self.crashed(ModelStartFailed, f"it could not be started: {told}", None)
            finally:
                self._pid = self._guard_pid = None
                self._healthy = False

    def answered(self, base_url: str) -> None:
        """Its check was answered as it should be."""
        self._base_url = base_url
        self._has_served = self._healthy = True
        self._step(ModelEvent.ANSWER)
        self._coming.settle()

    def looked(self, problem: str) -> None:
        """It is well again, or is not any more: then there is a problem."""
        self._healthy = not problem
        _logger.info("model %r %s", self.config.name, f"is not well: {problem}" if problem else "is well again")

    def left(self) -> None:
        """Nobody runs it any more."""
        self._told_to_stop(_LEFT)

    def crashed(self, kind: type[ModelFailed], reason: str, exit_status: int | None) -> None:
        """Its process has ended, or never began: there will be another one, or not."""
        now = trio.current_time()
        if self._has_served:
            kind = ModelCrashed
        verdict = self._restarts.crashed(now, has_served=self._has_served)
        if verdict.restart and not self._restarts_itself:
            self._next_start = verdict.at
            self._step(ModelEvent.GIVE_UP, reason, exit_status)
            return
        if verdict.restart:
            if self.state is ModelState.READY:
                self._coming = Start()
            self._next_start = verdict.at
            self._step(ModelEvent.CRASH, f"{reason}; it is started again in {verdict.at - now:g} s", exit_status)
            return
        if self._has_served and verdict.crashes > 1:
            reason += f"; that was crash number {verdict.crashes} within {self.config.restarts.window:g} s"
        self._failure = Failure(kind=kind, reason=reason, exit_status=exit_status, at=verdict.at)
        self._step(ModelEvent.GIVE_UP, reason, exit_status)

    # ---- errors ----

    def _lines(self) -> tuple[str, ...]:
        return self._output.tail(LAST_LINES, since=self._first_line)

    def _unloaded(self, why: str, lines: tuple[str, ...] = ()) -> ModelError:
        name = self.config.name
        return ModelUnloaded(f"model {name!r}: {why}", model=name, output=lines)

    def _not_stopped(self) -> ModelError:
        name = self.config.name
        return ModelNotStopped(f"model {name!r}: {_HANGS} (process {self.pid})", model=name, output=self._lines())

    def _failed(self, failure: Failure, lines: tuple[str, ...]) -> ModelError:
        name = self.config.name
        return failure.kind(
            f"model {name!r}: {failure.reason}",
            model=name,
            retry_after=max(0.0, failure.at - trio.current_time()),
            output=lines,
            exit_status=failure.exit_status,
        )
