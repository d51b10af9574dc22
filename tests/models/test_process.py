"""A model's server as a process: started when it is wanted, watched, and started again. Real processes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from tests.limits import ends_within
from tests.models.process_servers import ECHO, SOON, at, config, is_alive, server, until
from trio_mlxgate.models import (
    ModelCrashed,
    ModelEvent,
    ModelFailed,
    ModelProcess,
    ModelStartFailed,
    ModelStartTooSlow,
    ModelState,
    ModelUnloaded,
    PortPool,
    RestartSettings,
    StateChange,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with ends_within(60):
        yield


async def is_told_that_it_was_unloaded(process: ModelProcess, reason: str) -> None:
    with pytest.raises(ModelUnloaded, match=reason):
        await process.ensure_ready()


def events(changes: list[StateChange]) -> list[str]:
    return [change.event.value for change in changes]


async def test_the_echo_server_from_its_start_to_its_end() -> None:
    changes: list[StateChange] = []
    async with ModelProcess(config(ECHO, name="echo"), on_change=changes.append) as process:
        assert at(process) is ModelState.STOPPED
        base_url = await process.ensure_ready()
        assert at(process) is ModelState.READY
        assert process.healthy
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{base_url}/health")).status_code == 200
        assert any(base_url in line for line in process.output.tail(10))
        pid, guard = process.pid, process.guard_pid
        assert pid is not None
        assert guard is not None
        assert os.getpgid(pid) == pid
        assert is_alive(pid)
        assert is_alive(guard)
        await process.stop()
        assert at(process) is ModelState.STOPPED
        assert not is_alive(pid)
        assert not is_alive(guard)
        assert await process.ensure_ready()
        assert process.pid != pid
    assert at(process) is ModelState.SHUT_DOWN
    assert events(changes) == ["start", "answer", "stop", "exit"] * 2 + ["shut down"]
    assert {change.model for change in changes} == {"echo"}


async def test_all_who_ask_at_once_get_one_process() -> None:
    changes: list[StateChange] = []
    urls: list[str] = []
    async with ModelProcess(config(server()), on_change=changes.append) as process:

        async def ask() -> None:
            urls.append(await process.ensure_ready())

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert len(urls) == 20
        assert len(set(urls)) == 1
        assert events(changes) == ["start", "answer"]


async def test_who_asks_and_leaves_stops_nobody() -> None:
    async with ModelProcess(config(server("time.sleep(0.3)"))) as process:
        with trio.move_on_after(0.05) as scope:
            await process.ensure_ready()
        assert scope.cancelled_caught
        assert at(process) is ModelState.STARTING
        await process.ensure_ready()


async def test_who_asks_while_it_is_stopping_gets_the_next_one() -> None:
    slow = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), os._exit(0)))"
    changes: list[StateChange] = []
    async with ModelProcess(config(server(slow)), on_change=changes.append) as process:
        await process.ensure_ready()
        first = process.pid
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.stop)
            await until(lambda: process.state is ModelState.STOPPING)
            for _ in range(3):
                nursery.start_soon(process.ensure_ready)
        assert at(process) is ModelState.READY
        assert process.pid != first
        assert events(changes) == ["start", "answer", "stop", "exit", "start", "answer"]


async def test_who_waits_for_a_start_that_is_stopped_is_told_so() -> None:
    said: list[ModelUnloaded] = []
    async with ModelProcess(config(server("say('loading'); time.sleep(60)"))) as process:

        async def ask() -> None:
            with pytest.raises(ModelUnloaded, match="model 'tiny': it was stopped") as caught:
                await process.ensure_ready()
            said.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await until(lambda: process.output.tail(1) == ("loading",))
            await process.stop()
        assert at(process) is ModelState.STOPPED
    assert [error.output for error in said] == [("loading",)] * 2
    assert said[0] is not said[1], "each has its own traceback"


# ---- it does not come up ----


async def test_a_crash_at_the_start_is_told_with_its_last_words() -> None:
    changes: list[StateChange] = []
    crash = server("say('\\n'.join(f'line {n}' for n in range(50))); sys.exit('no such model')")
    async with ModelProcess(config(crash, name="qwen"), on_change=changes.append) as process:
        with pytest.raises(ModelStartFailed, match=r"model 'qwen': it ended with status 1 (.|\n)*  no such") as caught:
            await process.ensure_ready()
        error = caught.value
        assert (error.model, error.backend, error.exit_status, error.status) == ("qwen", "qwen", 1, 503)
        assert len(error.output) == 20
        assert error.output[-2:] == ("line 49", "no such model")
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 0.5
        assert at(process) is ModelState.FAILED
        # Until it may be tried again, it isn't.
        with pytest.raises(ModelStartFailed, match="no such model"):
            await process.ensure_ready()
        assert events(changes) == ["start", "give up"]
        await trio.sleep(error.retry_after + 0.01)
        with pytest.raises(ModelStartFailed, match="no such model"):
            await process.ensure_ready()
        assert events(changes) == ["start", "give up"] * 2
        # Stopping forgets it.
        await process.stop()
        assert at(process) is ModelState.STOPPED
        with pytest.raises(ModelStartFailed) as caught:
            await process.ensure_ready()
        assert caught.value.retry_after is not None
        assert caught.value.retry_after <= 0.5, "as after the first one"


@pytest.mark.parametrize(
    ("dies", "told"),
    [
        ("time.sleep(0.2); os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL while it was starting"),
        ("time.sleep(0.2); os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV while it was starting"),
        ("os._exit(0)", "ended with status 0 while it was starting"),
    ],
)
async def test_it_dies_while_starting(dies: str, told: str) -> None:
    async with ModelProcess(config(server(dies))) as process:
        with pytest.raises(ModelStartFailed, match=told):
            await process.ensure_ready()
        assert process.pid is None


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"command": "no-such-program-x ${PORT}"}, "'no-such-program-x' can't be executed: No such file or directory"),
        ({"command": "/etc/passwd ${PORT}"}, "can't be executed: Permission denied"),
        ({"cwd": "/no/such/folder"}, "No such file or directory: '/no/such/folder'"),
    ],
)
async def test_what_can_not_be_executed(bad: dict[str, Any], told: str) -> None:
    async with ModelProcess(config(**{"command": server(), **bad})) as process:
        with pytest.raises(ModelStartFailed, match=f"it could not be started: .*{told}"):
            await process.ensure_ready()


async def test_never_ready() -> None:
    deaf = server("say('here'); time.sleep(60)")
    async with ModelProcess(config(deaf, start_timeout=0.4)) as process:
        with pytest.raises(
            ModelStartTooSlow, match=r"not ready within 0.4 s .*; at the last look it doesn't"
        ) as caught:
            await process.ensure_ready()
        assert isinstance(caught.value, trio.TooSlowError)
        assert caught.value.output == ("here",)
        assert caught.value.exit_status is None
        assert process.pid is None


async def test_an_answer_that_is_not_200_is_no_answer() -> None:
    async with ModelProcess(config(server(), check="/nowhere", start_timeout=0.4)) as process:
        with pytest.raises(ModelStartTooSlow, match="at the last look the status of its answer is 404"):
            await process.ensure_ready()


async def test_no_free_port() -> None:
    ports = PortPool(5790, 5790)
    with ports.lent():
        async with ModelProcess(config(server()), ports=ports) as process:
            with pytest.raises(ModelStartFailed, match="no port from 5790 to 5790 is free"):
                await process.ensure_ready()


# ---- ways to be ready ----


@pytest.mark.parametrize("check", ["/other?x=1", "http://127.0.0.1:${PORT}/health", None])
async def test_other_checks(check: str | None) -> None:
    async with ModelProcess(config(server(), check=check)) as process:
        await process.ensure_ready()


async def test_ready_after_300_ms_is_seen_soon() -> None:
    """Within 50 ms, as the tests of the decision show; here the machine's other work counts too."""
    late: list[float] = []
    for _ in range(5):
        seen: list[float] = []

        def note(change: StateChange, seen: list[float] = seen) -> None:
            if change.event is ModelEvent.ANSWER:
                seen.append(time.monotonic())

        async with ModelProcess(
            config(server("time.sleep(0.3)", "say('at', time.monotonic())")), on_change=note
        ) as process:
            await process.ensure_ready()
            await until(lambda process=process: process.output.tail(1))
            listening = float(process.output.tail(1)[0].split()[1])
            late.append(seen[0] - listening)
            await process.stop(now=True)
        if late[-1] < 0.050:
            return
    assert min(late) < 0.3, late


async def test_the_environment_the_folder_and_a_port_of_its_own(tmp_path: Any) -> None:
    say = "say(os.environ['WHERE'], os.getcwd(), sorted(os.environ) == sorted(os.environ['KEYS'].split(',')))"
    keys = ",".join({*os.environ, "WHERE", "KEYS"})
    env = {"WHERE": "at ${PORT}, not $${PORT}", "KEYS": keys}
    pool = PortPool(5780, 5789)
    async with ModelProcess(config(server("", say), env=env, cwd=tmp_path), ports=pool) as process:
        base_url = await process.ensure_ready()
        port = base_url.rpartition(":")[2]
        assert 5780 <= int(port) <= 5789
        assert pool.free == 9
        await until(lambda: process.output.count == 1)
        assert process.output.tail(1) == (f"at {port}, not ${{PORT}} {tmp_path} True",)
    assert pool.free == 10
    own = [word.replace("${PORT}", port) for word in server()]
    async with ModelProcess(
        config(own, base_url=f"http://127.0.0.1:{port}/v1/", check=f"{base_url}/health")
    ) as process:
        assert await process.ensure_ready() == f"http://127.0.0.1:{port}/v1"


# ---- it crashes later ----


async def test_killed_in_the_middle_it_is_noticed_at_once_and_started_again() -> None:
    noticed: list[float] = []
    changes: list[StateChange] = []

    def note(change: StateChange) -> None:
        changes.append(change)
        if change.event is ModelEvent.CRASH:
            noticed.append(time.monotonic())

    async with ModelProcess(config(server()), on_change=note) as process:
        await process.ensure_ready()
        pid = process.pid
        assert pid is not None
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: noticed)
        assert noticed[0] - killed < 0.5
        assert at(process) is ModelState.STARTING
        await process.ensure_ready()
        assert process.pid not in (pid, None)
        assert events(changes) == ["start", "answer", "crash", "answer"]
        assert changes[2].reason == "it was killed by SIGKILL while it was ready; it is started again in 0.5 s"
        assert changes[3].at - changes[2].at >= 0.5


async def test_a_crash_loop_is_given_up() -> None:
    changes: list[StateChange] = []
    # Ready for 0.1 s, and then it ends.
    dies = server("", "threading.Timer(0.1, lambda: (say('again'), os._exit(3))).start()")
    restarts = RestartSettings(first=0.02, factor=2, most=2, longest=30)
    async with ModelProcess(config(dies, restarts=restarts), on_change=changes.append) as process:
        await process.ensure_ready()
        await until(lambda: process.state is ModelState.FAILED)
        crashes = [change.event.value for change in changes if change.event is not ModelEvent.ANSWER]
        assert crashes == ["start", "crash", "crash", "give up"]
        with pytest.raises(
            ModelCrashed, match=r"ended with status 3 .*; that was crash number 3 .*\n  again"
        ) as caught:
            await process.ensure_ready()
        assert caught.value.exit_status == 3
        assert caught.value.output == ("again",), "what earlier processes wrote is not its"
        await process.wait_stopped()
        await trio.sleep(0.2)
        assert at(process) is ModelState.FAILED, "nobody has asked"


async def test_without_restarts_a_crash_is_a_failure() -> None:
    async with ModelProcess(config(server(), restarts=RestartSettings(most=0, first=0.1))) as process:
        await process.ensure_ready()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait_stopped()
        with pytest.raises(ModelCrashed, match="killed by SIGKILL while it was ready"):
            await process.ensure_ready()
        await trio.sleep(0.15)
        await process.ensure_ready()


async def test_stopped_in_the_pause_before_a_restart() -> None:
    async with ModelProcess(config(server(), restarts=RestartSettings(first=60, longest=60))) as process:
        await process.ensure_ready()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: process.state is ModelState.STARTING and process.pid is None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_told_that_it_was_unloaded, process, "it was stopped")
            await trio.sleep(0.05)
            await process.stop()
        assert at(process) is ModelState.STOPPED
        await process.ensure_ready()


async def test_a_server_that_falls_silent_is_not_well_and_in_the_end_dead() -> None:
    changes: list[StateChange] = []
    silent = config(server(), health_interval=0.05, check_timeout=0.1, silence_limit=0.5, restarts=SOON)
    async with ModelProcess(silent, on_change=changes.append) as process:
        await process.ensure_ready()
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: not process.healthy)
        assert at(process) is ModelState.READY
        os.kill(pid, signal.SIGCONT)
        await until(lambda: process.healthy)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: process.state is ModelState.STARTING)
        assert "no good answer for 0.5 s: it gave no answer within 0.1 s" in changes[-1].reason
        await process.ensure_ready()
        assert process.pid != pid
        assert not is_alive(pid)


# ---- how it is used ----


async def test_it_is_run_once_and_by_somebody() -> None:
    process = ModelProcess(config(server()))
    for call in (process.ensure_ready, process.stop):
        with pytest.raises(RuntimeError, match="nobody runs model 'tiny'"):
            await call()
    async with process:
        with pytest.raises(RuntimeError, match="is run already"):
            await process.__aenter__()
        with pytest.raises(RuntimeError, match="is run already"):
            await process.run()
        await process.stop()
    with pytest.raises(RuntimeError, match="is run already, or was"):
        async with process:
            pass
    with pytest.raises(ModelUnloaded, match="it has been shut down"):
        await process.ensure_ready()
    await process.stop()
    await process.wait_stopped()
    with pytest.raises(TypeError, match="config must be a ProcessConfig"):
        ModelProcess("llama-server")  # type: ignore[arg-type]


async def test_in_a_nursery_of_ones_own_and_errors_come_bare() -> None:
    async with trio.open_nursery() as nursery:
        process = await nursery.start(ModelProcess(config(server())).run)
        await process.ensure_ready()
        pid = process.pid
        nursery.cancel_scope.cancel()
    assert not is_alive(pid)
    mine = KeyError("mine")

    async def fail() -> None:
        async with ModelProcess(config(server())) as process:
            await process.ensure_ready()
            raise mine

    with pytest.raises(KeyError) as caught:
        await fail()
    assert caught.value is mine
    with pytest.raises(ModelFailed):
        async with ModelProcess(config(server("sys.exit(1)"))) as process:
            await process.ensure_ready()


async def test_who_waits_when_it_is_shut_down_is_told_so() -> None:
    process = ModelProcess(config(server("time.sleep(60)")))
    async with trio.open_nursery() as nursery, process:
        nursery.start_soon(is_told_that_it_was_unloaded, process, "nobody runs it any more")
        await until(lambda: process.pid is not None)


async def test_an_on_change_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: StateChange) -> None:
        raise ValueError("my mistake")

    async with ModelProcess(config(server()), on_change=fail) as process:
        await process.ensure_ready()
    assert "the on_change of model 'tiny' failed" in caplog.text


# ---- a first token before it is ready ----


async def status_of(base_url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        status: dict[str, Any] = (await client.get(f"{base_url}/status")).json()
        return status


async def test_warm_up_asks_for_a_token_before_the_model_is_ready() -> None:
    async with ModelProcess(config([*ECHO[:-1], "0.5"], warm_up=True)) as process:
        base_url = await process.ensure_ready()
        assert (await status_of(base_url))["total_requests"] == 1
    async with ModelProcess(config(ECHO)) as process:
        assert (await status_of(await process.ensure_ready()))["total_requests"] == 0


async def test_a_warm_up_that_is_refused_is_told_and_so_is_one_that_takes_too_long() -> None:
    async with ModelProcess(config(ECHO, warm_up={"messages": "none"}, start_timeout=2.0)) as process:
        with pytest.raises(
            ModelStartTooSlow, match=r"asked for a first token \(warm_up\), the status of its answer is 4"
        ):
            await process.ensure_ready()
    async with ModelProcess(config([*ECHO[:-1], "30"], warm_up=True, start_timeout=2.0)) as process:
        with pytest.raises(ModelStartTooSlow, match=r"at the last look it had not given a first token \(warm_up\)"):
            await process.ensure_ready()


async def test_warm_up_serves_without_a_check() -> None:
    async with ModelProcess(config(ECHO, check=None, warm_up=True)) as process:
        assert (await status_of(await process.ensure_ready()))["total_requests"] == 1


async def test_somebody_else_at_its_address_is_not_taken_for_it() -> None:
    async with ModelProcess(config(server())) as other:
        url = await other.ensure_ready()
        port = url.rpartition(":")[2]
        fixed = [*server()[:-1], port]
        async with ModelProcess(config(fixed, base_url=url)) as process:
            with pytest.raises(ModelStartFailed, match=f"somebody listens at {url} already"):
                await process.ensure_ready()
            await other.stop()
            await process.stop()
            assert await process.ensure_ready() == url


async def test_a_start_that_fails_says_what_to_look_at() -> None:
    async with ModelProcess(config(server(), check="/v1/health", start_timeout=0.5)) as process:
        with pytest.raises(ModelStartTooSlow, match=r"answer is 404 \(http.*/v1/health\); check= names"):
            await process.ensure_ready()
    async with ModelProcess(config(server(), cwd="/nowhere/at/all")) as process:
        with pytest.raises(ModelStartFailed, match=r"its folder can't be entered \(cwd\): .*'/nowhere/at/all'"):
            await process.ensure_ready()
    async with ModelProcess(config([*server()[:4], "pass", "${PORT}"])) as process:
        with pytest.raises(ModelStartFailed, match=r"status 0 while it was starting; one that goes into the b"):
            await process.ensure_ready()
    async with (
        ModelProcess(config(server()), ports=PortPool(5899, 5899)) as first,
        ModelProcess(config(server()), ports=PortPool(5899, 5899)) as second,
    ):
        await first.ensure_ready()
        with pytest.raises(ModelStartFailed, match=r"could not be started: no port from 5899 to 5899 is free"):
            await second.ensure_ready()
