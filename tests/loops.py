"""asyncio as programs run it: its own event loop, uvloop, eager tasks; and a server for those who aren't on trio."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs
import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

LOOPS: Final = ("asyncio", "uvloop", "eager")
"""The kinds of event loop; those that are missing here skip their tests."""


def run_on(loop: str, main: Callable[[], Coroutine[Any, Any, Any]], *, limit: float = 60.0) -> Any:
    """``asyncio.run``, on that kind of loop, for so many seconds at most."""
    factory = None
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    elif loop == "eager" and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")

    async def limited() -> Any:
        if loop == "eager":
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        # In a task of its own, so that no deadline lies around what it does.
        task = asyncio.create_task(main())
        try:
            done, _ = await asyncio.wait([task], timeout=limit)
            assert done, f"this took longer than {limit:g} s"
            return task.result()
        finally:
            task.cancel()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(limited())


async def passes(number: int) -> None:
    """Let that many passes of the loop go by."""
    for _ in range(number):
        await asyncio.sleep(0)


@attrs.frozen
class Server:
    """An echo server that runs."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        return self.url + "/v1"

    async def status(self) -> dict[str, Any]:
        """What ``/status`` says now."""
        found: dict[str, Any] = (await anyio.to_thread.run_sync(lambda: httpx.get(self.url + "/status"))).json()
        return found

    async def comes_to(self, **expected: object) -> None:
        """Wait until the status says so; for 5 s at most."""
        status: dict[str, Any] = {}
        for _ in range(100):
            status = await self.status()
            if status.items() >= expected.items():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"expected {expected}, and the server says {status}")


@contextlib.contextmanager
def echo_server(**settings: object) -> Iterator[Server]:
    """`trio_mlxgate.testing.inference_server` for those who aren't on trio."""
    command = [sys.executable, "-P", "-m", "trio_mlxgate", "echo-server", "--until-stdin-closes"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield Server(json.loads(process.stdout.readline())["url"], process)
        finally:
            process.terminate()


def families() -> list[tuple[Any, Any]]:
    """The modules of each family of client that is installed, with its gate's."""
    import trio_mlxgate.httpx

    found: list[tuple[Any, Any]] = [(httpx, trio_mlxgate.httpx)]
    with contextlib.suppress(ImportError):
        found.append((importlib.import_module("httpx2"), importlib.import_module("trio_mlxgate.httpx2")))
    return found
