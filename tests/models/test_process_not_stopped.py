"""A server that was killed and is still there. None can be made so: the signals are kept from it. Real processes."""

from __future__ import annotations

import os
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests.limits import ends_within
from tests.models.process_servers import (
    at,
    config,
    is_alive,
    open_descriptors,
    server,
    until,
    wait_gone,
    with_token,
)
from trio_mlxgate.models import (
    ModelEvent,
    ModelFailed,
    ModelNotStopped,
    ModelProcess,
    ModelState,
    StateChange,
    guarded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

DEAF: Final = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with ends_within(60):
        yield


@pytest.fixture
def token() -> Iterator[str]:
    word = f"mlxgate-{uuid.uuid4().hex}"
    yield word
    for pid in with_token(word):
        os.kill(pid, signal.SIGKILL)


class Hanging:
    """While it is on, what is killed doesn't hear of that: from us, nor from the guard."""

    def __init__(self) -> None:
        self.on = True
        self.kills = 0


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hanging:
    """Servers of this test hang when they are killed."""
    hanging = Hanging()
    program = guarded._GUARD.read_text()
    kill = "os.killpg(group, signal.SIGKILL)"
    assert program.count(kill) == 1
    guard = tmp_path / "guard.py"
    guard.write_text(program.replace(kill, "pass"))
    really = guarded.GuardedProcess._signal

    def send(process: guarded.GuardedProcess, signum: signal.Signals) -> None:
        hanging.kills += signum is signal.SIGKILL
        if not hanging.on:
            really(process, signum)

    monkeypatch.setattr(guarded, "_GUARD", guard)
    monkeypatch.setattr(guarded, "_ENDING", 0.3)
    monkeypatch.setattr(guarded.GuardedProcess, "_signal", send)
    return hanging


def deaf(token: str, **more: Any) -> Any:
    return config(server(DEAF, "", token), **{"stop_grace": 0.1, **more})


async def test_it_is_told_and_stopping_again_kills_it_again(hanging: Hanging, token: str) -> None:
    changes: list[StateChange] = []
    before = open_descriptors()
    async with ModelProcess(deaf(token), on_change=changes.append) as process:
        await process.ensure_ready()
        pid, guard = process.pid, process.guard_pid
        assert pid is not None
        assert guard is not None
        told = rf"model 'tiny': its process was killed and is still there.* \(process {pid}\)"
        for _ in range(2):
            kills = hanging.kills
            start = time.monotonic()
            with pytest.raises(ModelNotStopped, match=told) as caught:
                await process.stop()
            assert 0.3 <= time.monotonic() - start < 5, "bounded"
            assert hanging.kills > kills
            assert (caught.value.code, caught.value.status, caught.value.model) == ("model_not_stopped", 503, "tiny")
            assert at(process) is ModelState.STOPPING
            assert at(process).may_hold_memory
            assert (process.pid, process.guard_pid) == (pid, guard)
        start = time.monotonic()
        with pytest.raises(ModelNotStopped, match=told):
            await process.ensure_ready()
        with pytest.raises(ModelNotStopped, match=told):
            await process.wait_stopped()
        assert time.monotonic() - start < 0.3, "at once"
        hanging.on = False
        await process.stop()
        assert at(process) is ModelState.STOPPED
        assert (process.pid, process.guard_pid) == (None, None)
        assert not is_alive(pid)
        assert not is_alive(guard)
        await process.wait_stopped()
        await process.ensure_ready()
        assert process.pid not in (pid, None)
    assert [change.event.value for change in changes] == [*["start", "answer", "stop", "exit"] * 2, "shut down"]
    assert not with_token(token)
    assert open_descriptors() == before


async def test_all_who_stop_it_at_once_are_told(hanging: Hanging, token: str) -> None:
    told: list[ModelNotStopped] = []
    async with ModelProcess(deaf(token)) as process:
        await process.ensure_ready()

        async def stop() -> None:
            with pytest.raises(ModelNotStopped) as caught:
                await process.stop()
            told.append(caught.value)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(stop)
        hanging.on = False
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(process.stop)
        assert at(process) is ModelState.STOPPED
    assert len(told) == 6


async def test_gone_by_itself_it_is_started_anew_when_somebody_asks(hanging: Hanging, token: str) -> None:
    async with ModelProcess(deaf(token)) as process:
        await process.ensure_ready()
        pid = process.pid
        assert pid is not None
        with pytest.raises(ModelNotStopped):
            await process.stop()
        with trio.move_on_after(0.05):  # who stops it again and leaves has changed nothing
            await process.stop()
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        await process.ensure_ready()
        assert process.pid != pid
        hanging.on = False


async def test_after_a_crash_none_is_started_beside_it(hanging: Hanging, token: str) -> None:
    changes: list[StateChange] = []
    silent = deaf(token, health_interval=0.05, check_timeout=0.1, silence_limit=0.3)
    async with ModelProcess(silent, on_change=changes.append) as process:
        await process.ensure_ready()
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: process.state is ModelState.FAILED)
        assert [change.event for change in changes[-2:]] == [ModelEvent.CRASH, ModelEvent.GIVE_UP]
        assert "still there" in changes[-1].reason
        with pytest.raises(ModelNotStopped):
            await process.ensure_ready()
        with pytest.raises(ModelNotStopped):
            await process.stop()
        assert at(process) is ModelState.FAILED
        hanging.on = False
        await process.stop()
        assert at(process) is ModelState.STOPPED
        await process.ensure_ready()


async def test_a_start_that_takes_too_long_is_told_as_such_and_then_what_is_left(hanging: Hanging, token: str) -> None:
    slow = config(server(f"{DEAF}; time.sleep(60)", "", token), start_timeout=0.4, stop_grace=0.1)
    async with ModelProcess(slow) as process:
        with pytest.raises(ModelFailed, match="not ready within"):
            await process.ensure_ready()
        with pytest.raises(ModelNotStopped):
            await process.ensure_ready()
        hanging.on = False
        await process.stop()


@pytest.mark.parametrize("stopped_before", [True, False])
async def test_leaving_the_block_takes_no_longer_and_leaves_it_behind(
    hanging: Hanging, token: str, caplog: pytest.LogCaptureFixture, stopped_before: bool
) -> None:
    before = open_descriptors()
    async with ModelProcess(deaf(token)) as process:
        await process.ensure_ready()
        pid, guard = process.pid, process.guard_pid
        assert pid is not None
        assert guard is not None
        if stopped_before:
            with pytest.raises(ModelNotStopped):
                await process.stop()
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert at(process) is ModelState.SHUT_DOWN
    assert "model 'tiny' is left behind: its process was killed and is still there" in caplog.text
    assert is_alive(pid)
    assert not is_alive(guard)
    assert open_descriptors() == before
    await process.stop()


async def test_the_guard_is_killed_and_the_server_hangs(hanging: Hanging, token: str) -> None:
    async with ModelProcess(deaf(token)) as process:
        await process.ensure_ready()
        pid = process.pid
        assert pid is not None
        assert process.guard_pid is not None
        os.kill(process.guard_pid, signal.SIGKILL)
        await until(lambda: process.state is ModelState.FAILED)
        with pytest.raises(ModelNotStopped):
            await process.stop()
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        await process.stop()
        assert at(process) is ModelState.STOPPED


async def test_one_that_is_dead_and_not_reaped_is_not_there(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Its guard, which would reap it, stands still."""
    monkeypatch.setattr(guarded, "_ENDING", 0.5)
    async with ModelProcess(deaf(token)) as process:
        await process.ensure_ready()
        guard = process.guard_pid
        assert guard is not None
        os.kill(guard, signal.SIGSTOP)
        await process.stop()
        assert at(process) is ModelState.STOPPED
        assert not is_alive(guard)
