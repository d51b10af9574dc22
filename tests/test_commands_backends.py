"""``trio-mlxgate backends``: what it prints of real servers, its exit status, and the live table in a terminal."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from trio.testing import MockClock

from trio_mlxgate.backends.detecting import kind_named
from trio_mlxgate.commands import run
from trio_mlxgate.commands._looks import Row, Target, Watch
from trio_mlxgate.core.load import LoadMonitor
from trio_mlxgate.core.readings import Health, Reading, Status
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKENDS: Final = [sys.executable, "-m", "trio_mlxgate", "backends"]
SECRET: Final = "s3cr3t-key"
LIMIT: Final = 20.0

has_rich = pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="needs the extra cli")


@pytest.fixture
def dead_url() -> Iterator[str]:
    """A URL at which nobody listens, and nobody will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


async def call(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run the command; its status, output and errors."""
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            [*BACKENDS, *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, **environ},
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.integration
async def test_json_of_a_server_that_is_well_and_of_one_that_is_not_there(dead_url: str) -> None:
    async with inference_server() as server:
        status, out, error = await call("--json", server.base_url, dead_url)
        assert (status, error) == (1, "")
        up, down = json.loads(out)["backends"]
        assert up.pop("latency") > 0
        assert up == {
            "name": server.base_url,
            "url": server.base_url,
            "kind": "status",
            "health": "up",
            "level": "idle",
            "source": "status",
            "reason": "no active jobs",
            "models": [],
            "active_jobs": 0,
            "waiting": None,
            "slots": None,
            "total_requests": 0,
            "hint": kind_named("status").hint,
        }
        assert (down["kind"], down["health"], down["level"], down["latency"]) == (None, "down", "down", None)
        assert "refused" in down["reason"].lower()
        # Only what isn't well makes the status 1.
        assert (await call("--json", server.base_url))[0] == 0


@pytest.mark.integration
async def test_a_file_gives_names_kinds_models_and_keys(tmp_path: Path, dead_url: str) -> None:
    file = tmp_path / "mlxgate.toml"
    async with inference_server() as server:
        file.write_text(
            f'[backends.mini]\nurl = "{server.base_url}"\nkind = "mlx-lm"\nmodel = "m"\napi_key_env = "KEY"\n'
            f'[backends.book]\nurl = "{dead_url}"\n'
        )
        status, out, error = await call("-c", str(file), "--json", KEY=SECRET)
        assert (status, error) == (1, "")
        mini, book = json.loads(out)["backends"]
        assert (mini["name"], mini["url"], mini["kind"], mini["models"]) == ("mini", server.base_url, "mlx-lm", ["m"])
        assert mini["health"] == "up"  # its /health is as that of mlx_lm.server
        assert (book["name"], book["health"]) == ("book", "down")
        assert SECRET not in out
        status, out, error = await call("-c", str(file), "--json", KEY="")
        assert (status, out) == (2, "")
        assert error == (
            f"trio-mlxgate backends: {file}: backends.mini.api_key_env: "
            "the environment has no KEY; set it to the key, or drop this line\n"
        )


@pytest.mark.integration
async def test_a_server_that_hangs_is_not_well_and_holds_up_no_other() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        status, out, _ = await call("--json", "--timeout", "0.5", *[url] * 8)
        assert time.monotonic() - start < 3
    rows = json.loads(out)["backends"]
    assert status == 1
    assert len(rows) == 8
    assert {(row["health"], row["level"]) for row in rows} == {("unknown", "unknown")}
    assert "no answer in time" in rows[0]["reason"]
    assert "in a row" not in rows[0]["reason"]


@has_rich
@pytest.mark.integration
async def test_the_table_is_printed_once_where_there_is_no_terminal(dead_url: str) -> None:
    async with inference_server() as server:
        status, out, error = await call(server.base_url, dead_url)
    assert (status, error) == (1, "")
    lines = out.splitlines()
    assert "health" in lines[1]
    assert out.count("backend") == 1
    (up,) = (line for line in lines if server.base_url in line)
    assert " up " in up
    assert " idle " in up
    (down,) = (line for line in lines if dead_url in line)
    assert " down " in down
    assert "\x1b" not in out


@has_rich
@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
async def test_on_a_terminal_it_is_live_until_interrupted() -> None:
    import pty

    seen = b""

    def read_until(word: bytes, since: int) -> int:
        """Wait until ``word`` has been drawn after that place; where it ends."""
        nonlocal seen
        deadline = time.monotonic() + LIMIT
        while word not in seen[since:]:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        return seen.index(word, since) + len(word)

    ours, theirs = pty.openpty()
    async with inference_server() as server:
        process = subprocess.Popen(  # noqa: ASYNC220
            [*BACKENDS, "--interval", "0.2", server.base_url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "40"},
        )
        try:
            at = await trio.to_thread.run_sync(read_until, b"idle", 0)
            at = await trio.to_thread.run_sync(read_until, b"idle", at)  # drawn anew
            server.kill()
            at = await trio.to_thread.run_sync(read_until, b"down", at)
            process.send_signal(signal.SIGINT)
            at = await trio.to_thread.run_sync(read_until, b"interrupted", at)
            assert await trio.to_thread.run_sync(process.wait, LIMIT) == 130
        finally:
            process.kill()
            process.wait()
            os.close(theirs)
            os.close(ours)
    assert b"Traceback" not in seen
    assert seen.rstrip().endswith(b"trio-mlxgate backends: interrupted")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give either URLs, or a configuration file with -c FILE"),
        (["-c", "x.toml", "http://a"], "give either URLs, or a configuration file with -c FILE"),
        (["-c", "/no/such/file.toml"], "/no/such/file.toml: it can't be read: No such file or directory"),
        (["127.0.0.1:8080"], "'127.0.0.1:8080' is no base URL; give a base URL such as http://127.0.0.1:8080/v1"),
        (["http://a/?key=s3cr3t-key"], "'http://a/' is no base URL; give a base URL"),
        (["http:/me:s3cr3t-key@a"], "'a' is no base URL; give a base URL"),
        (["http://me:s3cr3t-key@a/v1"], "a URL holds a user or a password; leave it out"),
    ],
)
def test_bad_usage_is_told_in_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backends", "--json", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"trio-mlxgate backends: {told}")
    assert said.err.count("\n") == 1
    assert SECRET not in said.err


@pytest.mark.parametrize("arguments", [["--interval", "0"], ["--interval", "x"], ["--timeout", "inf"], ["--colour"]])
def test_bad_options_end_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["backends", "http://a", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_key_that_no_header_may_have(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXGATE_API_KEY", f"{SECRET}\n")
    assert run(["backends", "--json", "http://a"]) == 2
    said = capsys.readouterr().err
    assert "the environment's MLXGATE_API_KEY has characters that no HTTP header may have" in said
    assert SECRET not in said


@pytest.mark.skipif(importlib.util.find_spec("rich") is not None, reason="about life without the extra cli")
def test_without_rich_it_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backends", "http://a"]) == 2
    seen = capsys.readouterr()
    assert "pip install 'trio-mlxgate[cli]'" in seen.err
    assert "or run it with --json" in seen.err
    assert seen.err.count("\n") == 1


# ---- rows ----


def row(reading: Reading | None, *, kind_found: str = "llama.cpp", once: bool = False, **target: Any) -> Row:
    monitor = LoadMonitor()
    if reading is not None:
        monitor.observe(reading, 10.0)
    fields = {"name": "mini", "url": "http://mini/v1", **target}
    report = monitor.report(11.0)
    return Row(target=Target(**fields), kind=kind_named(kind_found), reading=reading, report=report, once=once)


def test_what_a_row_says() -> None:
    busy = row(Reading(health=Health.UP, latency=0.01, status=Status(active_jobs=5, waiting=1, slots=4)))
    assert busy.as_json()["level"] == "very_busy"
    asleep = row(
        Reading(health=Health.UP, latency=0.01, status=Status(active_jobs=0), reason="it sleeps"), model="wanted"
    )
    assert asleep.why == "no active jobs; it sleeps"
    assert asleep.models == ("wanted",)
    assert row(Reading(health=Health.UP, models=("loaded",)), model="wanted").models == ("loaded",)
    # One look that failed settles nothing; but it is not well.
    failed = row(Reading(health=Health.UNKNOWN, reason="HTTP 500"))
    assert failed.health is Health.UNKNOWN
    assert failed.why.count("HTTP 500") == 1
    # But what it says itself is told, though the monitor waits for more.
    loading = row(Reading(health=Health.DOWN, reason="it loads its model"))
    assert (loading.as_json()["health"], loading.as_json()["level"]) == ("down", "down")
    assert row(None).health is Health.UNKNOWN
    assert row(None).as_json()["latency"] is None


def test_what_was_found_by_elimination_says_so() -> None:
    answers = Reading(health=Health.UP, latency=0.01)
    told = "answers, but as none of the kinds known here: is the URL right?"
    assert row(answers, kind_found="openai").why.endswith(f"; {told}")
    assert told not in row(answers, kind_found="openai", kind=kind_named("openai")).why  # who names it knows
    assert told not in row(answers).why


def test_one_look_is_no_count_of_failures() -> None:
    hangs = Reading(health=Health.UNKNOWN, reason="no answer in time")
    assert "failures in a row: 1" in row(hangs).why
    assert row(hangs, once=True).why == "no answer in time"
    assert row(Reading(health=Health.UNKNOWN), once=True).why == "no good answer"


@pytest.mark.integration
async def test_json_on_an_output_that_is_not_utf_8(tmp_path: Path) -> None:
    async with inference_server() as server:
        file = tmp_path / "mlxgate.toml"
        file.write_text(f'[backends."맥미니"]\nurl = "{server.base_url}"\n', "utf-8")
        status, out, error = await call("-c", str(file), "--json", PYTHONIOENCODING="ascii")
    assert (status, error) == (0, "")
    assert json.loads(out)["backends"][0]["name"] == "맥미니"


@has_rich
def test_the_table_takes_nothing_for_markup_and_leaves_no_key() -> None:
    from rich.console import Console

    from trio_mlxgate.commands._backends_view import table

    rows = [
        row(
            Reading(health=Health.UP, status=Status(active_jobs=3, waiting=1, slots=4), models=("[bold]m[/]",)),
            headers={"Authorization": SECRET},
        ),
        row(Reading(health=Health.DOWN, reason="[red]why[/nothing]"), name="[b]"),
        row(None),
    ]
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(table(rows))
    text = console.export_text()
    assert "[bold]m[/]" in text
    assert "[red]why[/nothing]" in text
    assert "[b]" in text
    assert SECRET not in text + repr(rows)
    first = next(line for line in text.splitlines() if "[bold]" in line)
    assert first.split()[-3:] == ["3", "1", "4"]
    assert "..." in text  # the first look is under way


# ---- the watch, on a virtual clock ----


def test_each_is_looked_at_every_interval_and_a_slow_one_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[tuple[float, str]] = []

    async def read(self: Any) -> Reading:
        looks.append((trio.current_time() - start, self._root.host))
        await trio.sleep(7.0 if self._root.host == "slow" else 0.5)
        return Reading(health=Health.UP, latency=0.01, status=Status(active_jobs=1))

    monkeypatch.setattr("trio_mlxgate.backends.prober.Prober.read", read)
    start = 0.0
    shown: list[list[Row]] = []

    async def main() -> None:
        nonlocal start
        start = trio.current_time()
        targets = [Target(name=host, url=f"http://{host}/v1") for host in ("quick", "slow")]
        watch = Watch(targets, timeout=2.0, interval=5.0)
        with trio.move_on_after(21):
            await watch.keep_looking(shown.append)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [time for time, host in looks if host == "quick"] == [0, 5, 10, 15, 20]
    # One that takes longer than the interval is looked at again at once, never twice at a time.
    assert [time for time, host in looks if host == "slow"] == [0, 7, 14]
    assert [entry.health for entry in shown[0]] == [Health.UNKNOWN, Health.UNKNOWN]
    assert [entry.health for entry in shown[1]] == [Health.UP, Health.UNKNOWN]
    assert [entry.health for entry in shown[-1]] == [Health.UP, Health.UP]
