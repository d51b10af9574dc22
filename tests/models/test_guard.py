"""The guard: no server outlives us, however we end. Real processes, which are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio

from tests.limits import ends_within
from tests.models.process_servers import (
    GRANDCHILD,
    SOON,
    config,
    is_alive,
    open_descriptors,
    server,
    until,
    wait_gone,
    wait_none_with,
    with_token,
)
from trio_mlxgate.models import ModelEvent, ModelFailed, ModelProcess, ModelState, StateChange, _guard

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

GUARD: Final = str(Path(_guard.__file__))


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with ends_within(90):
        yield


@pytest.fixture
def token() -> Iterator[str]:
    """A word for the commands of a test, by which what is left of them is found."""
    word = f"mlxgate-{uuid.uuid4().hex}"
    yield word
    for pid in with_token(word):
        os.kill(pid, signal.SIGKILL)


# ---- we end ----

PROGRAM: Final = """
import json, os, signal, sys, trio
from tests.models.process_servers import config
from trio_mlxgate.models import ModelProcess

command, end = json.loads(sys.argv[1]), sys.argv[2]

async def main():
    async with ModelProcess(config(command, stop_grace=0.3)) as process:
        await process.ensure_ready()
        while "deaf" not in process.output.tail(9):
            await trio.sleep(0.01)
        if end == "fork":
            # A process that holds all that we hold, the end of the pipe too.
            if os.fork() == 0:
                os.close(0); os.close(1); os.close(2)
                import time
                time.sleep(30)
                os._exit(0)
        print(json.dumps([process.pid, process.guard_pid, *process.output.tail(9)]), flush=True)
        if end == "exit":
            os._exit(3)
        if end == "abort":
            os.abort()
        if end == "error":
            raise ValueError("a mistake")
        await trio.sleep(60)

trio.run(main)
"""


def start_program(token: str, end: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A program of ours with a server and a grandchild that is deaf; and the processes below it."""
    command = json.dumps(server(GRANDCHILD, "", token))
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, command, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
        start_new_session=True,
    )
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line, "it did not come so far"
    pid, guard, *said = json.loads(line)
    grandchild = next(int(text.split()[1]) for text in said if text.startswith("grandchild"))
    return program, [pid, guard, grandchild]


@pytest.mark.parametrize("end", ["kill -9", "exit", "abort", "error", "SIGINT", "SIGTERM"])
def test_however_we_end_nobody_is_left(token: str, end: str) -> None:
    program, below = start_program(token, end)
    with program:
        if end == "kill -9":
            assert all(is_alive(pid) for pid in below)
            program.send_signal(signal.SIGKILL)
        elif end in ("SIGINT", "SIGTERM"):
            # To the group, as a terminal does: the guard and the server are in others.
            os.killpg(program.pid, signal.Signals[end])
        program.wait(20)
    wait_gone(*below)
    wait_none_with(token)


def test_a_process_that_we_forked_and_that_holds_the_pipe_holds_nothing_up(token: str) -> None:
    program, below = start_program(token, "fork")
    with program:
        program.send_signal(signal.SIGKILL)
        program.wait(20)
    wait_gone(*below)


# ---- the guard ends ----


async def test_the_guard_is_killed_and_so_is_the_server_which_comes_again(token: str) -> None:
    changes: list[StateChange] = []
    watched = config(server(GRANDCHILD, "", token), restarts=SOON, stop_grace=0.3)
    async with ModelProcess(watched, on_change=changes.append) as process:
        await process.ensure_ready()
        await until(lambda: "deaf" in process.output.tail(9))
        pid, guard, old = process.pid, process.guard_pid, set(with_token(token))
        assert guard is not None
        assert len(old) == 3
        os.kill(guard, signal.SIGKILL)
        await until(lambda: process.state is ModelState.STARTING)
        assert "its guard was killed, and so it was ended" in changes[-1].reason
        await process.ensure_ready()
        assert process.pid != pid
        wait_gone(*old)
    wait_none_with(token)


async def test_killed_at_any_moment_of_its_start_it_leaves_nobody(token: str) -> None:
    """Also between the fork and the exec of the server, of which nobody but the server has told then."""
    told: list[str] = []
    for number in range(30):
        ours = ModelProcess(config(server("", "", token), restarts=SOON))
        async with ours as process, trio.open_nursery() as nursery:

            async def ask(process: ModelProcess = process) -> None:
                try:
                    await process.ensure_ready()
                except ModelFailed as error:
                    told.append(str(error))

            nursery.start_soon(ask)
            deadline = time.monotonic() + 5
            guards: list[int] = []
            while not guards and time.monotonic() < deadline:
                await trio.sleep(0.001)
                guards = [int(pid) for pid in children() if GUARD in command_of(pid)]
            await trio.sleep(number * 0.001)
            for pid in guards:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_none_with(token)
    assert all("its guard" in text for text in told), told


def children() -> list[str]:
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False)
    return told.stdout.split()


def command_of(pid: str) -> str:
    return subprocess.run(["ps", "-wwo", "command=", "-p", pid], capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
async def test_the_guard_stays_when_it_is_told_to_go(name: str) -> None:
    async with ModelProcess(config(server())) as process:
        await process.ensure_ready()
        pid, guard = process.pid, process.guard_pid
        assert pid is not None
        assert guard is not None
        assert os.getsid(guard) == guard != os.getsid(0), "no terminal reaches it"
        assert os.getpgid(pid) == pid
        os.kill(guard, signal.Signals[name])
        await trio.sleep(0.1)
        assert await process.ensure_ready()
        assert process.pid == pid
        assert is_alive(guard)


# ---- what the server gets ----


async def test_the_server_gets_nothing_that_it_need_not_have() -> None:
    tell = """
mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
known = [s for s in signal.valid_signals() if isinstance(s, signal.Signals)]
ignored = [s.name for s in known if signal.getsignal(s) == signal.SIG_IGN]
say("fds", sorted(int(fd) for fd in os.listdir("/dev/fd") if int(fd) < 100))
say("stdin", os.readlink("/dev/fd/0") if os.path.islink("/dev/fd/0") else "/dev/null", sys.stdin.read() == "")
say("signals", sorted(ignored), mask)
say("session", os.getsid(0) == os.getppid(), os.getpgid(0) == os.getpid())
"""
    held, spare = os.pipe()
    os.set_inheritable(spare, True)
    try:
        async with ModelProcess(config(server(tell))) as process:
            await process.ensure_ready()
            said = dict(line.split(" ", 1) for line in process.output.tail(9))
            # os.listdir opens one itself.
            assert said["fds"] == "[0, 1, 2, 3]"
            assert said["stdin"] == "/dev/null True"
            # Those that Python ignores itself.
            assert said["signals"] == "['SIGPIPE', 'SIGXFSZ'] set()"
            assert said["session"] == "True True"
    finally:
        os.close(held)
        os.close(spare)


async def test_a_program_that_is_no_python_has_its_signals_as_usual() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc")
    shown = config(["sh", "-c", "cat /proc/self/status; : ${PORT}; sleep 60"], check=None)
    async with ModelProcess(shown) as process:
        await process.ensure_ready()
        await until(lambda: any("SigCgt" in line for line in process.output.tail(99)))
        status = dict(re.findall(r"(Sig\w+):\t(\w+)", "\n".join(process.output.tail(99))))
        assert int(status["SigIgn"], 16) == 0
        assert int(status["SigBlk"], 16) == 0


@pytest.mark.parametrize("locale", [None, "C", "C.UTF-8"])
async def test_the_locale_is_what_it_was(monkeypatch: pytest.MonkeyPatch, locale: str | None) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        # There Python sets LC_CTYPE.
        monkeypatch.delenv(name, raising=False)
    if locale is not None:
        monkeypatch.setenv("LC_CTYPE", locale)
    shown = config(["sh", "-c", ": ${PORT}; echo LC_CTYPE is ${LC_CTYPE-not set}; sleep 60"])
    async with ModelProcess(attrs.evolve(shown, check=None)) as process:
        await process.ensure_ready()
        await until(lambda: process.output.count == 1)
        assert process.output.tail(1) == (f"LC_CTYPE is {locale or 'not set'}",)


def test_the_guard_kills_the_group_at_the_end_of_the_pipe_though_we_live(token: str) -> None:
    report, theirs = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", "import os, time; os.fork(); time.sleep(60)", token]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", GUARD, str(theirs), "", *command], stdin=subprocess.PIPE, pass_fds=(theirs,)
    ) as guard:
        os.close(theirs)
        with open(report) as said:
            assert guard.stdin is not None
            while len(with_token(token)) < 3:
                time.sleep(0.01)
            guard.stdin.close()
            assert guard.wait(20) == 128 + signal.SIGKILL
            assert said.read().endswith("exited -9\n")
    wait_none_with(token)


@pytest.mark.parametrize(
    ("code", "status", "reported"),
    [
        ("raise SystemExit(7)", 7, "exited 7"),
        ("import os; os.kill(os.getpid(), 9)", 137, "exited -9"),
        ("", 0, "exited 0"),
    ],
)
def test_it_passes_on_the_exit_status(code: str, status: int, reported: str) -> None:
    ended, said = run_guard([sys.executable, "-I", "-S", "-c", code])
    assert ended == status
    assert re.fullmatch(rf"pid \d+\n(begun\n)?{reported}\n", said)


def test_what_can_not_be_executed_is_told() -> None:
    ended, said = run_guard(["no-such-program-x"])
    assert ended == 127
    assert re.fullmatch(r"pid \d+\nerror No such file or directory\n(begun\n)?exited 127\n", said)


def run_guard(command: list[str]) -> tuple[int, str]:
    report, theirs = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", GUARD, str(theirs), "", *command], stdin=subprocess.PIPE, pass_fds=(theirs,)
    ) as guard:
        os.close(theirs)
        with open(report) as said:
            return guard.wait(20), said.read()


def test_it_imports_next_to_nothing() -> None:
    code = f"import sys; exec(open({GUARD!r}).read(), {{'__name__': 'guard'}}); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"subprocess", "threading", "socket", "re", "typing", "asyncio", "trio", "selectors", "logging", "json"}
    assert not heavy & set(told.split())


# ---- cancelled at any moment ----


async def test_cancelled_at_any_moment_nobody_and_nothing_is_left(token: str) -> None:
    """From before the start until after it is ready, and while it is stopped, restarted and looked at."""
    descriptors: set[str] = set()
    for number in range(60):
        if number == 2:
            descriptors = open_descriptors()
        process = ModelProcess(config(server("", "", token), restarts=SOON, stop_grace=0.5))
        with trio.move_on_after(number * 0.004):
            async with process:
                await process.ensure_ready()
                assert process.pid is not None
                if number % 3 == 1:
                    os.kill(process.pid, signal.SIGKILL)
                elif number % 3 == 2:
                    await process.stop()
                    await process.ensure_ready()
                await trio.sleep(60)
        assert process.state in (ModelState.SHUT_DOWN, ModelState.STOPPED)
        assert process.pid is None
    assert not with_token(token), "when the block is left, they have gone"
    assert open_descriptors() == descriptors


async def test_cancelled_at_every_checkpoint_nobody_is_left(token: str) -> None:
    """Not by time, but by steps of the run: of each of the first so many."""
    for steps in [*range(40), *range(40, 400, 20)]:
        process = ModelProcess(config(server("", "", token), stop_grace=0.5))
        async with trio.open_nursery() as nursery:

            async def count(steps: int = steps, nursery: trio.Nursery = nursery) -> None:
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

            async def use(process: ModelProcess = process) -> None:
                async with process:
                    await process.ensure_ready()
                    await process.stop()
                    await process.ensure_ready()

            nursery.start_soon(use)
            nursery.start_soon(count)
        assert process.pid is None
    assert not with_token(token)


async def test_cancelled_while_it_stops_it_is_stopped_within_its_grace(token: str) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    stopping: list[StateChange] = []

    def note(change: StateChange) -> None:
        if change.event is ModelEvent.STOP:
            stopping.append(change)

    start = 0.0
    with trio.CancelScope() as scope:
        async with ModelProcess(config(server(deaf, "", token), stop_grace=0.5), on_change=note) as process:
            await process.ensure_ready()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.stop)
                await until(lambda: stopping)
                await trio.sleep(0.1)
                start = time.monotonic()
                scope.cancel()
    assert time.monotonic() - start < 4
    assert not with_token(token)
