"""Small servers for the tests of processes, and what is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import trio

from trio_mlxgate.models import ModelProcess, ModelState, ProcessConfig, RestartSettings

ECHO: Final = [sys.executable, "-m", "trio_mlxgate", "echo-server", "--port", "${PORT}", "--service-time", "0.05"]

SOON: Final = RestartSettings(first=0.05, most=3)

_SERVER: Final = """
import os, signal, socket, subprocess, sys, threading, time
port = int(sys.argv[1])
def say(*words):
    print(*words, flush=True)
{before}
listening = socket.create_server(("127.0.0.1", port), backlog=50)
{then}
while True:
    client, _ = listening.accept()
    with client:
        asked = client.recv(65536).split()[1].decode()
        status = "200 OK" if asked in ("/health", "/other?x=1") else "404 Not Found"
        client.sendall(f"HTTP/1.1 {{status}}\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
"""


def server(before: str = "", then: str = "", *more: str) -> list[str]:
    """The command of a server that starts in some 20 ms: what it does before it listens, and then."""
    code = _SERVER.format(before=before, then=then)
    return [sys.executable, "-I", "-S", "-c", code, "${PORT}", *more]


GRANDCHILD: Final = """
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", '''
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
''', *sys.argv[2:]])
say("grandchild", child.pid)
"""
"""Starts a process that ignores what processes can ignore."""


def config(command: list[str] | str, **more: Any) -> ProcessConfig:
    return ProcessConfig(**{"name": "tiny", "command": command, "start_timeout": 20.0, "stop_grace": 5.0, **more})


def is_alive(pid: int) -> bool:
    """Whether it runs: one that is dead and not yet reaped doesn't."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(told.strip()) and not told.strip().startswith("Z")


def with_token(token: str) -> dict[int, str]:
    """The processes whose command has this word."""
    told = subprocess.run(["ps", "-axwwo", "pid=,stat=,command="], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in told.splitlines():
        pid, status, command = line.split(maxsplit=2)
        if token in command and not status.startswith("Z"):
            found[int(pid)] = command
    return found


def wait_gone(*pids: int, within: float = 10.0) -> None:
    end = time.monotonic() + within
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < end, f"still there after {within:g} s: {alive}"
        time.sleep(0.02)


def wait_none_with(token: str, within: float = 10.0) -> None:
    end = time.monotonic() + within
    while found := with_token(token):
        assert time.monotonic() < end, f"still there after {within:g} s: {found}"
        time.sleep(0.02)


def at(process: ModelProcess) -> ModelState:
    """Its state, of which mypy doesn't think that it stays what it was."""
    return process.state


async def until(condition: Any, within: float = 10.0) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - it can only be looked at
            await trio.sleep(0.005)


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/dev/fd").iterdir() if entry.name.isdigit()}
