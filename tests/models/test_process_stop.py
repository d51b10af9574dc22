"""A server is told to go, gets its time, and is killed: with all that it started. Real processes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.limits import ends_within
from tests.models.process_servers import GRANDCHILD, at, config, is_alive, server, until, wait_gone
from trio_mlxgate.models import ModelProcess, ModelState

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

DEAF: Final = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
"""It has not even a hook."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with ends_within(60):
        yield


async def pid_of(process: ModelProcess) -> int:
    await process.ensure_ready()
    assert process.pid is not None
    return process.pid


async def grandchild_of(process: ModelProcess) -> int:
    """Its process id, when it ignores signals already."""
    await process.ensure_ready()
    await until(lambda: {"deaf"} <= set(process.output.tail(9)))
    return next(int(line.split()[1]) for line in process.output.tail(9) if line.startswith("grandchild"))


async def test_told_to_go_it_has_its_time_and_says_good_bye() -> None:
    bye = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), os.write(1, b'bye'), os._exit(0)))"
    async with ModelProcess(config(server(bye))) as process:
        pid = await pid_of(process)
        await process.stop()
        assert not is_alive(pid)
        assert process.output.tail(1) == ("bye",)


async def test_one_that_ignores_it_is_killed_after_its_grace() -> None:
    async with ModelProcess(config(server(DEAF), stop_grace=0.4)) as process:
        pid = await pid_of(process)
        start = time.monotonic()
        await process.stop()
        assert 0.4 <= time.monotonic() - start < 5
        assert not is_alive(pid)


async def test_leaving_the_block_stops_it_in_the_same_way() -> None:
    async with ModelProcess(config(server(DEAF), stop_grace=0.4)) as process:
        pid = await pid_of(process)
        start = time.monotonic()
    assert 0.4 <= time.monotonic() - start < 5
    assert not is_alive(pid)


async def test_now_means_at_once_also_when_it_is_being_stopped_already() -> None:
    async with ModelProcess(config(server(DEAF), stop_grace=50.0)) as process:
        await process.ensure_ready()
        start = time.monotonic()
        await process.stop(now=True)
        assert time.monotonic() - start < 5
        await process.ensure_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.stop)
            await until(lambda: process.state is ModelState.STOPPING)
            await trio.sleep(0.1)
            assert at(process) is ModelState.STOPPING
            await process.stop(now=True)
        assert time.monotonic() - start < 10


async def test_who_stops_it_and_leaves_has_stopped_it() -> None:
    async with ModelProcess(config(server(DEAF), stop_grace=0.3)) as process:
        pid = await pid_of(process)
        with trio.move_on_after(0.05):
            await process.stop()
        assert at(process) is ModelState.STOPPING
        await process.wait_stopped()
        assert at(process) is ModelState.STOPPED
        assert not is_alive(pid)


async def test_a_grandchild_that_ignores_everything_is_killed_with_the_group() -> None:
    async with ModelProcess(config(server(GRANDCHILD), stop_grace=0.3)) as process:
        grandchild = await grandchild_of(process)
        assert is_alive(grandchild)
        await process.stop()
        wait_gone(grandchild, within=1)


async def test_a_grandchild_of_a_server_that_crashes_is_killed_at_once() -> None:
    async with ModelProcess(config(server(GRANDCHILD))) as process:
        grandchild = await grandchild_of(process)
        assert process.pid is not None
        start = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: process.state is ModelState.STARTING)
        wait_gone(grandchild)
        assert time.monotonic() - start < 3


async def test_a_grandchild_has_its_time_too_after_the_server_has_gone() -> None:
    """As the real server behind a script does, which goes at once when it is told to."""
    script = """
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", '''
import os, signal, time
def go(*_):
    time.sleep(0.5)
    os.write(1, b"all saved")  # print() may be interrupted in the middle of itself
    os._exit(0)
signal.signal(signal.SIGTERM, go)
print("armed", flush=True)
time.sleep(60)
'''])
"""
    async with ModelProcess(config(server(script))) as process:
        await process.ensure_ready()
        await until(lambda: process.output.tail(1) == ("armed",))
        await process.stop()
        assert process.output.tail(1) == ("all saved",)


async def test_one_that_left_the_group_holds_nothing_up() -> None:
    daemon = """
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(4)"], start_new_session=True)
say("daemon", child.pid)
"""
    async with ModelProcess(config(server(daemon))) as process:
        await process.ensure_ready()
        start = time.monotonic()
        await process.stop()
        assert time.monotonic() - start < 3
        daemon_pid = int(process.output.tail(1)[0].split()[1])
    os.kill(daemon_pid, signal.SIGKILL)


# ---- cmd_stop ----

HEARS_USR1: Final = f"{DEAF}; signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b'usr1'), os._exit(0)))"


async def test_a_command_of_its_own_to_stop() -> None:
    stopped = config(server(HEARS_USR1), cmd_stop="sh -c 'echo stopping ${PID} at ${PORT}; kill -USR1 ${PID}'")
    async with ModelProcess(stopped) as process:
        pid = await pid_of(process)
        await process.stop()
        # Two pipes: their order is anybody's guess.
        command, told = sorted(process.output.tail(2))
        assert command.startswith(f"stopping {pid} at 5")
        assert told == "usr1"


@pytest.mark.parametrize("bad", ["false", "no-such-program-x ${PID}"])
async def test_sigterm_if_that_fails(bad: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ModelProcess(config(server(), cmd_stop=bad)) as process:
        pid = await pid_of(process)
        start = time.monotonic()
        await process.stop()
        assert time.monotonic() - start < 4, "it had not to be killed"
        assert not is_alive(pid)
    assert "its cmd_stop failed" in caplog.text


async def test_one_that_hangs_has_no_longer_than_the_grace() -> None:
    async with ModelProcess(config(server(), cmd_stop="sleep 61.25", stop_grace=0.4)) as process:
        pid = await pid_of(process)
        start = time.monotonic()
        await process.stop()
        assert time.monotonic() - start < 4
        assert not is_alive(pid)
