"""The herd as a user starts it: a process of its own, real sockets, the embedded server."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trio_mlxgate.commands import run
from trio_mlxgate.commands._stampede import HalfResult, HerdResult, HerdSettings, Request, _half
from trio_mlxgate.priority import Priority

if TYPE_CHECKING:
    from collections.abc import Generator

HERD = [sys.executable, "-m", "trio_mlxgate", "herd"]


def herd(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HERD, *arguments], capture_output=True, text=True, timeout=60, **kwargs)


@pytest.mark.integration
def test_most_time_out_straight_and_all_are_answered_through_the_gate() -> None:
    done = herd("--json", "--service-time", "0.15")
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert done.stderr == ""
    direct, gated = result["direct"], result["gated"]
    assert direct["timed_out"] > 23 / 2
    assert sum(direct[outcome] for outcome in ("answered", "timed_out", "failed")) == 23
    assert (gated["answered"], gated["timed_out"], gated["failed"]) == (23, 0, 0)
    assert gated["order_kept"] is True
    assert gated["foreground"]["answered"] == 5
    assert gated["background"]["answered"] == 18
    # At most one background request was there before the first foreground one.
    assert gated["foreground"]["wait_max"] < gated["background"]["wait_p50"]


@pytest.mark.integration
def test_the_table_says_what_happened_on_a_narrow_terminal() -> None:
    pytest.importorskip("rich")
    done = herd("--requests", "6", "--foreground", "2", "--service-time", "0.1", env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert "an echo, not a model" in done.stdout
    for word in ("straight", "gated", "foreground", "background", "answered", "timed out", "failed", "took p50/max"):
        assert word in done.stdout
    assert "through the gate: 6 of 6" in done.stdout


@pytest.mark.integration
def test_a_request_lost_behind_the_gate_is_status_1() -> None:
    done = herd("--json", "--requests", "3", "--service-time", "0.2", "--timeout", "0.05")
    assert done.returncode == 1
    assert json.loads(done.stdout)["gated"]["timed_out"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "macmini:8080"], "give one such as http://127.0.0.1:8080/v1"),
        (["--url", "http://127.0.0.1:1/v1"], "is the server running"),
        (["--requests", "0"], "'0' is not a whole number >= 1"),
        (["--requests", "2", "--foreground", "3"], "lower it"),
        (["--timeout", "nan"], "not a number of seconds"),
        (["--nonsense"], "unrecognized arguments"),
        (["--url", "http://127.0.0.1:1/v1", "--service-time", "1"], "leave it out beside --url"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = run(["herd", *arguments, "--json"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert message in seen.err
    assert seen.err.count("\n") == 1


class _Teapot(http.server.BaseHTTPRequestHandler):
    answer = b'{"error": {"message": "no such model"}}'
    status = 404

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass


@contextmanager
def teapot(status: int, answer: bytes) -> Generator[str]:
    handler = type("Handler", (_Teapot,), {"status": status, "answer": answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (404, b'{"error": {"message": "no such model"}}', "HTTP 404: no such model; give --url"),
        (404, b'{"error": "Not Found"}', "HTTP 404: Not Found; give --url"),
        (400, b"model: " + 300 * b"x", "x…; name the model with --model"),
        (401, b"<html>who are you</html>", "HTTP 401; set MLXGATE_API_KEY"),
        (500, b"", "HTTP 500; look at the server's log"),
        (200, b"<html>hello</html>", "no chat completion; give --url"),
    ],
)
def test_a_server_that_refuses_is_told_in_one_line(
    status: int, answer: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with teapot(status, answer) as url:
        assert run(["herd", "--url", url, "--json"]) == 2
    seen = capsys.readouterr()
    assert message in seen.err
    assert seen.err.count("\n") == 1


@pytest.mark.integration
def test_a_server_that_never_answers_is_told_within_the_limit_that_was_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_mlxgate.commands._stampede.CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr("trio_mlxgate.commands._stampede.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        assert run(["herd", "--url", url, "--timeout", "0.5", "--json"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "a model may be loading" in lines[0]
    assert "gave no answer within 0.5 s" in lines[-1]


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("ps") is None, reason="looks for processes with ps")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_it_leaves_no_process_behind(stop: signal.Signals) -> None:
    pytest.importorskip("rich")
    process = subprocess.Popen(
        [*HERD, "--service-time", "0.5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("straight"):
                break
        server = _child_of(process.pid)
        process.send_signal(stop)
        error = process.stderr.read()
        process.wait(20)
    if stop is signal.SIGINT:
        assert process.returncode == 130
        assert error.endswith("trio-mlxgate herd: interrupted\n")
        assert "Traceback" not in error
    deadline = time.monotonic() + 10
    while _alive(server):
        assert time.monotonic() < deadline, f"the server {server} outlived the herd"
        time.sleep(0.05)


@pytest.mark.skipif(importlib.util.find_spec("rich") is not None, reason="about life without the extra cli")
def test_without_rich_it_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["herd"]) == 2
    seen = capsys.readouterr()
    assert "pip install 'trio-mlxgate[cli]'" in seen.err
    assert seen.err.count("\n") == 1


def _child_of(pid: int) -> int:
    children = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    found = [int(line.split()[0]) for line in children.splitlines() if int(line.split()[1]) == pid]
    assert len(found) == 1
    return found[0]


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def settings(requests: int, foreground: int) -> HerdSettings:
    return HerdSettings(
        base_url="http://x/v1",
        model=None,
        requests=requests,
        foreground=foreground,
        timeout=None,
        capacity=1,
        max_tokens=8,
        api_key="secret",
    )


@pytest.mark.parametrize("requests", range(1, 30))
def test_the_persons_requests_are_spread_and_as_many_as_asked_for(requests: int) -> None:
    for foreground in range(requests + 1):
        half = _half("direct", settings(requests, foreground))
        assert sum(request.foreground for request in half.requests) == foreground


def test_json_without_anything_answered_and_the_key_in_no_repr() -> None:
    half = HalfResult(half="gated", requests=[Request(number=0, priority=Priority.FOREGROUND, outcome="failed")])
    direct = HalfResult(half="direct", requests=[])
    shown = HerdResult(timeout=1, alone=1, direct=direct, gated=half).as_json()
    assert shown["gated"] == {
        "answered": 0,
        "timed_out": 0,
        "failed": 1,
        "seconds": 0.0,
        "order_kept": True,
        "foreground": {"answered": 0, "wait_p50": None, "wait_max": None},
        "background": {"answered": 0, "wait_p50": None, "wait_max": None},
    }
    assert "secret" not in repr(settings(1, 1))
