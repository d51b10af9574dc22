"""A process that never outlives this one: started through the guard, told and ended through its process group."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trio_mlxgate.models._guard import is_gone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

_GUARD: Final = Path(__file__).with_name("_guard.py")
_RECEIVE_SIZE: Final = 65536
_ENDING: Final = 5.0
"""Seconds that a killed process and its guard may take to go. What takes longer hangs in the system."""
_REAPING: Final = 1.0
_LOOK: Final = 0.01
_BEGINNING: Final = 30.0
"""Seconds from the guard's start until the command runs, or is known not to."""


class NotStarted(Exception):
    """A command could not be executed, or the guard could not be started; the text says why, for people."""


class GuardedProcess:
    """A command that runs in a process group of its own, for the time of an ``async with`` block.

    However the block ends, so does the process, and all of its group; and if our own process ends in whichever way,
    the guard ends them. Only a process that left the group (with setsid, as daemons do) escapes.

    Leaving the block is bounded, and so something may be left that was killed and hangs in the system. With
    ``keeps_left`` its guard is kept then: see :attr:`is_left`, :meth:`end_again`, and at last :meth:`let_go`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None = None,
        keeps_left: bool = False,
    ) -> None:
        self._command = list(command)
        self._env = dict(env)
        self._cwd = cwd
        self._guard: trio.Process | None = None
        self._lifeline = -1
        self._reports: trio.lowlevel.FdStream | None = None
        self._begun_report = b""
        self._output: trio.lowlevel.FdStream | None = None
        self._group = 0
        self._status: int | None = None
        self._has_begun = False
        self._has_gone = False
        self._problem = ""
        self._keeps_left = keeps_left
        self._is_left = False

    @property
    def pid(self) -> int:
        """The id of the process, and of its group; 0 if it never came so far."""
        return self._group

    @property
    def guard_pid(self) -> int:
        """The id of the guard's process."""
        assert self._guard is not None
        return self._guard.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None: it runs, or its guard was killed and nobody knows."""
        return self._status

    async def __aenter__(self) -> Self:
        """Start it. Always a checkpoint; when it is cancelled, nothing is left.

        Raises:
          NotStarted: the command can't be executed, or the guard can't be started.
        """
        await trio.lowlevel.checkpoint()
        started = False
        try:
            try:
                await self._start()
            except (OSError, ValueError) as error:
                if self._cwd is not None and isinstance(error, OSError) and error.filename == self._cwd:
                    raise NotStarted(f"its folder can't be entered (cwd): {error.strerror}: {self._cwd!r}") from error
                raise NotStarted(str(error)) from error
            with trio.move_on_after(_BEGINNING):
                await self._wait_begun()
            if not self._has_begun:
                raise NotStarted("its guard did not come up, or was killed at once")
            if self._problem:
                raise NotStarted(f"{self._command[0]!r} can't be executed: {self._problem}")
            started = True
        finally:
            if not started:
                self._keeps_left = False
                with trio.move_on_after(2 * _ENDING, shield=True):
                    await self._end()
        return self

    async def _start(self) -> None:
        """Start the guard, and close what is its own. Always a checkpoint. Raises OSError."""
        if not sys.executable:
            raise FileNotFoundError("sys.executable is empty: there is no Python that could run the guard")
        theirs: list[int] = []
        try:
            lifeline, self._lifeline = os.pipe()
            theirs.append(lifeline)
            reports, report = os.pipe()
            theirs.append(report)
            self._reports = trio.lowlevel.FdStream(reports)
            output, out = os.pipe()
            theirs.append(out)
            self._output = trio.lowlevel.FdStream(output)
            # -I -S: nothing of the user's Python, and nothing that is installed, is looked at.
            command = [sys.executable, "-I", "-S", str(_GUARD), str(report), self._env.get("LC_CTYPE", "")]
            self._guard = await trio.lowlevel.open_process(
                [*command, *self._command],
                stdin=lifeline,
                stdout=out,
                stderr=out,
                pass_fds=(report,),
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    async def _wait_begun(self) -> None:
        """Wait until the command runs, or is known not to. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self._has_begun and not self._has_gone:
            await self._next_report()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it and all of its group at once, and wait until that is done. Always a checkpoint, shielded, bounded."""
        with trio.move_on_after(2 * _ENDING, shield=True):
            await self._end()

    async def _end(self) -> None:
        """Kill all, and close all. Always a checkpoint; the caller shields and bounds it."""
        await trio.lowlevel.checkpoint()
        try:
            if self._lifeline >= 0:
                lifeline, self._lifeline = self._lifeline, -1
                os.close(lifeline)
            if self._guard is not None:
                await self._end_group()
        finally:
            if self._output is not None:
                self._output.close()
            if not (self._is_left and self._keeps_left):
                await self.let_go()  # noqa: ASYNC102 - the caller shields and bounds it

    async def _end_group(self) -> None:
        """Kill all, and see whether something is left. Always a checkpoint."""
        self.kill()
        with trio.move_on_after(_ENDING):
            await self.wait_gone()
            # If the guard was killed, this is what ends the server: only now it is certain which one that is.
            self.kill()
            while self.is_there:  # noqa: ASYNC110 - it can only be looked at
                await trio.sleep(_LOOK)
        self._is_left = self.is_there

    @property
    def is_there(self) -> bool:
        """Whether somebody of its group is alive, as it is now; the dead that nobody has reaped don't count."""
        return self._group != 0 and not is_gone(self._group)

    @property
    def is_left(self) -> bool:
        """Whether the block was left, or :meth:`end_again` has returned, and somebody of its group was still alive."""
        return self._is_left

    async def end_again(self) -> None:
        """Kill what is left again, and wait until it has gone, but not for long. Always a checkpoint; one at a time.

        Cancelled, it can be called again. Of a guard that was killed nobody keeps the number of the group: then it is
        only looked whether something is there. It was killed, and what is killed dies as soon as it can.
        """
        await trio.lowlevel.checkpoint()
        if not self._has_gone:
            await self._end_group()
        else:
            self._is_left = self.is_there
        if not self._is_left:
            with trio.CancelScope(shield=True):
                await self.let_go()

    async def let_go(self) -> None:
        """End the guard, whatever is left. Always a checkpoint, and bounded; the caller shields it, if need be."""
        await trio.lowlevel.checkpoint()
        try:
            if self._guard is not None and self._guard.returncode is None:
                if self._has_gone:
                    with trio.move_on_after(_REAPING):
                        await self._guard.wait()
                if self._guard.returncode is None:
                    self._guard.kill()
                    with trio.move_on_after(_REAPING):
                        await self._guard.wait()
        finally:
            if self._reports is not None:
                self._reports.close()

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, or its guard has."""
        return self._status is not None or self._has_gone

    async def wait_ended(self) -> None:
        """Wait until the process has ended, or its guard has. Always a checkpoint; one task at a time.

        What may be left of the group is being killed by then; leaving the block waits for it.
        """
        await trio.lowlevel.checkpoint()
        while not self.has_ended:
            await self._next_report()

    async def wait_gone(self) -> None:
        """Wait until all of its group have gone, and the guard. Always a checkpoint; one task at a time."""
        await trio.lowlevel.checkpoint()
        while not self._has_gone:
            await self._next_report()

    async def receive_output(self) -> bytes:
        """What it wrote to stdout and stderr next; b"" when all who could write have gone. Always a checkpoint."""
        assert self._output is not None
        await trio.lowlevel.checkpoint()
        try:
            return bytes(await self._output.receive_some(_RECEIVE_SIZE))
        except trio.BrokenResourceError:
            return b""

    def terminate(self) -> None:
        """Ask it and its group to go (SIGTERM)."""
        self.expect_end()
        self.kill(signal.SIGTERM)

    def expect_end(self) -> None:
        """It is told to go: when it has ended, the rest of its group gets time to go too, until the block is left."""
        if self._lifeline >= 0:
            with suppress(OSError):  # the guard may have gone
                os.write(self._lifeline, b"t")

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Kill it and its group."""
        # When the guard has gone after the end that it told, the number may be somebody else's one day. If it was
        # killed, nothing is told, and this is what ends the server.
        if self._status is None or not self._has_gone:
            self._signal(signum)

    def _signal(self, signum: signal.Signals) -> None:
        if self._group == 0:
            return
        # It may have gone; on macOS PermissionError says that only its remains are there.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signum)

    async def _next_report(self) -> None:
        """Wait for what the guard says next, or for its end. Always a checkpoint."""
        assert self._reports is not None
        await trio.lowlevel.checkpoint()
        more = await self._reports.receive_some(_RECEIVE_SIZE)
        self._has_gone = not more
        *lines, self._begun_report = (self._begun_report + more).split(b"\n")
        for line in lines:
            self._note(line.decode(errors="replace"))

    def _note(self, report: str) -> None:
        word, _, rest = report.partition(" ")
        if word == "pid":
            self._group = int(rest)
        elif word == "error":
            self._problem = rest
        elif word == "begun":
            self._has_begun = True
        elif word == "exited":
            self._has_begun = True
            self._status = int(rest)
