"""A real mlx_lm.server with a model that counts, for the tests that have mlx_lm."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import httpx
import pytest

from tests.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT: Final = 60.0
"""Seconds that the server may take to give its first answer, and each test to end."""


@attrs.frozen
class MlxServer:
    """A running server."""

    base_url: str
    process: subprocess.Popen[bytes]
    model: Path


def chat(question: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, **more}


@contextmanager
def started_mlx_server(directory: Path, model: Path, *options: str) -> Iterator[MlxServer]:
    """An mlx_lm.server that has just been started, and may not listen yet."""
    (directory / "cache" / "hub").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "HF_HOME": str(directory / "cache"),
        "HF_HUB_OFFLINE": "1",
        # No compiler is needed then, and nothing is kept outside the directory.
        "MLX_DISABLE_COMPILE": "1",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port), *options]
    with (directory / "server.log").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield MlxServer(f"http://127.0.0.1:{port}/v1/", process, model)
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_mlx_server(directory: Path) -> Iterator[MlxServer]:
    """An mlx_lm.server with a slow tiny model. 48 tokens take it about a second."""
    model = build_tiny_model(directory / "model", layers=48)
    deadline = time.monotonic() + LIMIT
    while True:
        # One at a time, as a large model on a small machine goes best; such a tiny one would gain from batches.
        with started_mlx_server(directory, model, "--decode-concurrency", "1", "--prompt-concurrency", "1") as server:
            # It ends by itself if somebody has taken the port meanwhile.
            if wait_until_it_answers(server, deadline, directory / "server.log"):
                yield server
                return


def wait_until_it_answers(server: MlxServer, deadline: float, log: Path) -> bool:
    """Whether it has answered; it listens, and says that it is well, before the model is loaded."""
    while server.process.poll() is None:
        try:
            reply = httpx.post(server.base_url + "chat/completions", json=chat("ready?", 1), timeout=LIMIT)
            if reply.status_code == 200:
                return True
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if time.monotonic() > deadline:
        pytest.fail(f"mlx_lm.server gave no answer within {LIMIT:g} s; it said:\n{log.read_text()[-2000:]}")
    return False
