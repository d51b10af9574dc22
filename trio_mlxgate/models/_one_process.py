"""One process of a model's server, from its start to its end: read, looked at, and told to go."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import trio

from trio_mlxgate.core.backoff import Pulse, next_look
from trio_mlxgate.core.lifecycle import ModelState
from trio_mlxgate.models.checking import look
from trio_mlxgate.models.errors import ModelCrashed, ModelStartFailed, ModelStartTooSlow
from trio_mlxgate.models.guarded import GuardedProcess, NotStarted
from trio_mlxgate.models.output import Output
from trio_mlxgate.models.settings import filled

if TYPE_CHECKING:
    from trio_mlxgate.models.errors import ModelFailed
    from trio_mlxgate.models.settings import ProcessConfig

_logger: Final = logging.getLogger("trio_mlxgate.models")

_LAST_WORDS: Final = 0.5
"""Seconds that are waited for the end of the output of a process that has gone: one that left its group may hold it."""


class Owner(Protocol):
    """Who is told what becomes of the process; all of these are steps of the life of the model's server."""

    @property
    def state(self) -> ModelState:
        """Where it is."""
        ...

    def answered(self, base_url: str) -> None:
        """It is ready."""
        ...

    def looked(self, problem: str) -> None:
        """It is well again, or is not any more: then there is a problem."""
        ...

    def crashed(self, kind: type[ModelFailed], reason: str, exit_status: int | None) -> None:
        """It has ended by itself, or is being ended since it is of no use."""
        ...

    def left(self) -> None:
        """Nobody runs it any more."""
        ...


class _End(NamedTuple):
    """Why a process is not to be watched any longer."""

    why: Literal["ended", "asked", "late", "silent"]
    reason: str = ""


class OneProcess:
    """One process.

    Args:
      owner: is told what becomes of it.
      config: how it is run.
      output: keeps what it writes.
      port: the port that it got; 0: none.
      env: its environment.
      stop_asked: is set when it is to go.
      kill_asked: is set when it is to go at once.
    """

    def __init__(
        self,
        owner: Owner,
        config: ProcessConfig,
        output: Output,
        *,
        port: int,
        env: dict[str, str],
        stop_asked: trio.Event,
        kill_asked: trio.Event,
    ) -> None:
        self._owner = owner
        self._config = config
        self._output = output
        self._port = port
        self._env = env
        self._stop_asked = stop_asked
        self._kill_asked = kill_asked

    def start(self) -> GuardedProcess:
        """The process, which runs inside of ``async with``. If it is left after that, its guard is kept."""
        words = [filled(word, {"PORT": self._port}) for word in self._config.words]
        return GuardedProcess(words, env=self._env, cwd=self._config.cwd, keeps_left=True)

    async def tend(self, server: GuardedProcess) -> None:
        """Read what it writes, watch it, and stop it. Always a checkpoint."""
        silent = trio.Event()
        # Shielded: also one that is stopped because we are cancelled writes, and would block if nobody read.
        reading = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, server, self._output, silent, reading)
            end = _End("asked")
            try:
                end = await self._watch(server)
            finally:
                if self._owner.state in (ModelState.STARTING, ModelState.READY) and end.why == "asked":
                    self._owner.left()
                with trio.CancelScope(shield=True):
                    if end.why in ("asked", "late"):
                        await self._stop(server)
                    server.kill()
                    with trio.move_on_after(_LAST_WORDS):
                        await silent.wait()
                reading.cancel()
                self._output.end_line()
            if end.why == "late" and self._owner.state is ModelState.STARTING:
                self._owner.crashed(ModelStartTooSlow, end.reason, None)

    async def _watch(self, server: GuardedProcess) -> _End:
        """Wait until it has ended, or is to be ended. Always a checkpoint."""
        found: list[_End] = []

        async def ended() -> None:
            """Always a checkpoint."""
            await server.wait_ended()
            # It is known at once, before anything is waited for.
            if not self._stop_asked.is_set() and not found:
                self._ended(server)
            done(_End("ended"))

        async def asked() -> None:
            """Always a checkpoint."""
            await self._stop_asked.wait()
            done(_End("asked"))

        async def looked() -> None:
            """Always a checkpoint."""
            done(await self._look_after(server))

        def done(end: _End) -> None:
            found.append(end)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended)
            nursery.start_soon(asked)
            nursery.start_soon(looked)
        # A stop that was asked for is no crash.
        return next((end for end in found if end.why == "asked"), found[0])

    async def _look_after(self, server: GuardedProcess) -> _End:
        """Look whether it is ready, then whether it is well, until it isn't. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        config, url = self._config, self._config.check_url(self._port)
        started, problem = trio.current_time(), ""
        with trio.move_on_at(started + config.start_timeout):
            await trio.lowlevel.checkpoint()
            while url is not None and (problem := await look(url, config.check_timeout)):  # noqa: ASYNC110 - as it is
                await trio.sleep_until(next_look(started, trio.current_time()))
            if config.first_request is not None:
                problem = "it had not given a first token (warm_up)"
                where = config.warm_up_url(self._port)
                while found := await look(where, config.start_timeout, config.first_request):
                    problem = f"asked for a first token (warm_up), {found}"
                    await trio.sleep_until(next_look(started, trio.current_time()))
                problem = ""
            self._answered(server)
        if problem or self._owner.state is ModelState.STARTING:
            told = ""
            if problem:
                told = f"; at the last look {problem}" + (f" ({url})" if url else "")
                told += "; check= names another path" if problem.endswith("404") else ""
            return _End("late", f"it was not ready within {config.start_timeout:g} s (start_timeout){told}")
        if url is None:
            await trio.sleep_forever()
        pulse = Pulse(trio.current_time(), config.silence_limit)
        while True:
            await trio.sleep(config.health_interval)
            problem = await look(url, config.check_timeout)
            if pulse.looked(not problem, trio.current_time()):
                self._owner.looked(problem)
            if pulse.dead(trio.current_time()):
                # What is dead gets no grace: it is killed, and is no longer ready from now on.
                if self._owner.state is ModelState.READY and not server.has_ended:
                    self._owner.crashed(
                        ModelCrashed, f"it gave no good answer for {config.silence_limit:g} s: {problem}", None
                    )
                return _End("silent")

    def _answered(self, server: GuardedProcess) -> None:
        # Somebody else may have answered at the port, or it may have been told to go in this moment.
        if self._owner.state is ModelState.STARTING and not server.has_ended:
            self._owner.answered(self._config.url(self._port))

    def _ended(self, server: GuardedProcess) -> None:
        status = server.exit_status
        if status is None:
            how = "its guard was killed, and so it was ended"
        elif status < 0:
            how = f"it was killed by {_signal_name(-status)}"
        else:
            how = f"it ended with status {status}"
        when = "while it was starting" if self._owner.state is ModelState.STARTING else "while it was ready"
        if status == 0 and self._owner.state is ModelState.STARTING:
            when += "; one that goes into the background has to be told to stay in the foreground"
        kind = ModelStartFailed if self._owner.state is ModelState.STARTING else ModelCrashed
        self._owner.crashed(kind, f"{how} {when}", status)

    # ---- stopping ----

    async def _stop(self, server: GuardedProcess) -> None:
        """Tell it to go, and return when it has, or its time is over. Always a checkpoint; the caller shields it."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self._config.stop_grace):
            async with trio.open_nursery() as nursery:

                async def no_longer() -> None:
                    """Always a checkpoint."""
                    await self._kill_asked.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(no_longer)
                told = trio.Event()
                nursery.start_soon(self._tell_to_go, server, told)
                await server.wait_gone()
                # What tells it to go may have something to say at the end.
                with trio.move_on_after(_LAST_WORDS):
                    await told.wait()
                nursery.cancel_scope.cancel()

    async def _tell_to_go(self, server: GuardedProcess, told: trio.Event) -> None:
        """SIGTERM, or the command for it; SIGTERM too if that fails. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        config = self._config
        if not config.stop_words:
            server.terminate()
            told.set()
            return
        server.expect_end()
        words = [filled(word, {"PORT": self._port, "PID": server.pid}) for word in config.stop_words]
        # Another pipe: its lines must not come into the middle of the server's.
        said = Output(lines=self._config.output_lines)
        try:
            async with GuardedProcess(words, env=self._env, cwd=config.cwd) as command, trio.open_nursery() as nursery:
                silent = trio.Event()
                nursery.start_soon(_read, command, said, silent, trio.CancelScope())
                await command.wait_ended()
                with trio.move_on_after(_LAST_WORDS):
                    await silent.wait()
                nursery.cancel_scope.cancel()
            problem = "" if command.exit_status == 0 else f"it ended with status {command.exit_status}"
        except NotStarted as error:
            problem = str(error)
        finally:
            self._output.add_lines(said.tail(self._config.output_lines))
        if problem:
            _logger.warning("model %r: its cmd_stop failed: %s; SIGTERM instead", config.name, problem)
            server.terminate()
        told.set()


async def _read(server: GuardedProcess, output: Output, silent: trio.Event, scope: trio.CancelScope) -> None:
    """Keep what a process writes, until nobody can write any more, within a scope. Always a checkpoint."""
    with scope:
        await trio.lowlevel.checkpoint()
        while data := await server.receive_output():
            output.feed(data)
        silent.set()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
