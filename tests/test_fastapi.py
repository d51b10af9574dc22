"""The gate in a FastAPI application: the documentation's example, and what its pages say of dependencies."""

# FastAPI finds what is local to a function in defaults, and not in annotations that are strings.
# ruff: noqa: B008

from __future__ import annotations

import asyncio
import importlib.util
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from tests.loops import echo_server, run_on
from trio_mlxgate import GateRefused, Priority, Slot
from trio_mlxgate.anyio import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.loops import Server

fastapi: Any = pytest.importorskip("fastapi")
uvicorn: Any = pytest.importorskip("uvicorn")
pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "fastapi_app.py"
if not EXAMPLE.exists():
    pytest.skip("the documentation is not here: these are the tests of an installed package", allow_module_level=True)


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PassThrough:
    """Made anew for each application, since Starlette's middleware comes with it."""

    @staticmethod
    def add_to(app: Any) -> None:
        from starlette.middleware.base import BaseHTTPMiddleware

        class Middleware(BaseHTTPMiddleware):
            async def dispatch(self, request: Any, call_next: Any) -> Any:
                return await call_next(request)

        app.add_middleware(Middleware)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The application on a real socket, and a browser."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = app.state.server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20) as browser:
            yield browser
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def in_process(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as browser,
    ):
        yield browser


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with echo_server(service_time=0.2, tokens=8) as running:
        monkeypatch.setenv("MODEL_URL", running.base_url)
        yield running


@pytest.fixture
def slow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with echo_server(service_time=20.0, tokens=200) as running:
        monkeypatch.setenv("MODEL_URL", running.base_url)
        yield running


@pytest.fixture(params=["bare", "behind BaseHTTPMiddleware"])
def example(request: pytest.FixtureRequest) -> Any:
    module = load_example()
    if request.param != "bare":
        PassThrough.add_to(module.app)
    return module


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


# ---- the example ----


@pytest.mark.parametrize("way", [served, in_process])
def test_the_person_goes_first(example: Any, server: Server, way: Any) -> None:
    async def main() -> None:
        ended: list[str] = []
        async with way(example.app) as browser, asyncio.TaskGroup() as group:

            async def digest(number: int) -> None:
                answer = await browser.post("/digest", json={"pages": ["one", "two"]})
                assert answer.status_code == 200
                assert [f"{page}" in text for page, text in zip(["one", "two"], answer.json()["digests"], strict=True)]
                ended.append(f"digest {number}")

            for number in range(3):
                group.create_task(digest(number))
            await until(lambda: example.app.state.gate.statistics().tasks_waiting == 2)
            seen = (await browser.get("/status")).json()
            assert (seen["in_flight"], seen["waiting"]) == (1, {"100": 2})
            answer = await browser.post("/chat", json={"question": "who goes first?"})
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.text.rstrip().endswith("data: [DONE]")
            ended.append("person")
        assert ended[1] == "person"
        seen = example.app.state.gate.statistics()
        assert (seen.in_flight, seen.admitted, seen.ended) == (0, 4, "closed")
        assert (await server.status())["max_active_jobs"] == 1

    run_on("asyncio", main)


def test_a_stream_holds_its_slot_until_its_end_or_the_browser_leaves(example: Any, slow_server: Server) -> None:
    async def main() -> None:
        async with served(example.app) as browser:
            gate = example.app.state.gate
            async with browser.stream("POST", "/chat", json={"question": "one"}) as answer:
                parts = answer.aiter_raw()
                for _ in range(3):
                    await anext(parts)
                assert gate.statistics().in_flight == 1
            await until(lambda: gate.statistics().in_flight == 0)
            await slow_server.comes_to(active_jobs=0, abandoned=1)

    run_on("asyncio", main)


def test_a_browser_that_leaves_in_the_queue_leaves_the_queue(example: Any, slow_server: Server) -> None:
    async def main() -> None:
        async with served(example.app) as browser:
            gate = example.app.state.gate
            holder = await gate.acquire_detached()
            waiting = asyncio.create_task(browser.post("/chat", json={"question": "one"}))
            await until(lambda: gate.statistics().tasks_waiting == 1)
            waiting.cancel()
            await until(lambda: gate.statistics().tasks_waiting == 0)
            assert gate.statistics().cancelled == 1
            holder.release()
            assert (await slow_server.status())["total_requests"] == 0

    run_on("asyncio", main)


def test_refusals_are_statuses_that_say_when_to_come_again(example: Any, server: Server) -> None:
    async def main() -> None:
        async with in_process(example.app) as browser:
            gate = example.app.state.gate
            await browser.post("/chat", json={"question": "so that there is a mean"})
            gate.capacity = 0
            waiting = [asyncio.create_task(browser.post("/digest", json={"pages": []})) for _ in range(50)]
            await until(lambda: gate.statistics().tasks_waiting == 50)
            full = await browser.post("/digest", json={"pages": []})
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            gate.capacity = 1
            assert [(await task).status_code for task in waiting] == [200] * 50
            holder = await gate.acquire_detached()
            waiting = [asyncio.create_task(browser.post("/digest", json={"pages": []})) for _ in range(50)]
            await until(lambda: gate.statistics().tasks_waiting == 50)
            full = await browser.post("/digest", json={"pages": []})
            assert full.status_code == 429
            assert int(full.headers["Retry-After"]) >= 1
            holder.release()
            await asyncio.wait(waiting)
            await gate.aclose()
            closed = await browser.post("/chat", json={"question": "too late"})
            assert (closed.status_code, closed.json()["error"]["code"]) == (503, "shutting_down")

    run_on("asyncio", main)


def test_on_shutdown_who_was_let_in_is_served(example: Any, server: Server) -> None:
    async def main() -> None:
        async with served(example.app) as browser:
            gate = example.app.state.gate
            answers = [asyncio.create_task(browser.post("/digest", json={"pages": ["one"]})) for _ in range(3)]
            await until(lambda: gate.statistics().tasks_waiting == 2)
            example.app.state.server.should_exit = True
            assert [(await answer).status_code for answer in answers] == [200] * 3
            await until(lambda: gate.statistics().ended == "closed")

    run_on("asyncio", main)


# ---- the page ----


def test_the_ten_lines(server: Server) -> None:
    page = (EXAMPLE.parent.parent / "anyio.md").read_text()
    (code,) = [block.partition("```")[0] for block in page.split("```python\n") if "app = FastAPI()" in block]
    code = code.replace("http://127.0.0.1:8080/v1", server.base_url)
    names: dict[str, Any] = {}
    exec(
        "import httpx\n"
        "from typing import Annotated\n"
        "from fastapi import Body, FastAPI, Request\n"
        "from fastapi.responses import JSONResponse\n"
        "from trio_mlxgate import GateRefused, Priority, use_options\n"
        "from trio_mlxgate.anyio import Gate\n"
        "from trio_mlxgate.httpx import GateTransport\n" + code,
        names,
    )

    async def main() -> None:
        async with names["client"], in_process(names["app"]) as browser:
            answer = await browser.post("/digest", json={"page": "one two"})
            assert "one two" in answer.text
            await names["gate"].drain()
            with pytest.raises(anyio.ClosedResourceError):  # of which those lines make no status
                await browser.post("/digest", json={"page": "one"})

    run_on("asyncio", main)


# ---- what the page says of dependencies ----


class World:
    """An application whose routes have slots in every way."""

    def __init__(self, *, middleware: bool) -> None:
        from fastapi.responses import JSONResponse, StreamingResponse

        gate = self.gate = Gate(1, name="macmini")
        tasks = self.tasks = {}  # type: ignore[var-annotated]
        app = self.app = fastapi.FastAPI()

        def me() -> Any:
            return asyncio.current_task()

        async def slot() -> AsyncIterator[Slot]:
            tasks["enters"] = me()
            async with gate.slot(Priority.FOREGROUND) as held:
                yield held  # noqa: ASYNC119 - FastAPI makes a context manager of it
            tasks["leaves"] = me()

        async def short() -> AsyncIterator[Slot]:
            async with gate.slot(hold_timeout=0.2) as held:
                yield held  # noqa: ASYNC119

        async def impatient() -> AsyncIterator[Slot]:
            async with gate.slot(max_wait=0.05) as held:
                yield held  # noqa: ASYNC119

        def of_a_thread() -> Iterator[object]:
            with gate.from_thread(Priority.FOREGROUND) as held:
                yield held  # noqa: ASYNC119

        def in_flight() -> int:
            return gate.statistics().in_flight

        async def look() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield str(in_flight()).encode()
                await asyncio.sleep(0.02)

        depends = fastapi.Depends

        async def plain(held: Any = depends(slot)) -> Any:  # noqa: ASYNC124
            tasks["works"] = me()
            return in_flight()

        def sync(held: Any = depends(slot)) -> Any:
            return in_flight()

        async def stream(held: Any = depends(slot)) -> Any:  # noqa: ASYNC124
            return StreamingResponse(look())

        async def early(held: Any = depends(slot, scope="function")) -> Any:  # noqa: ASYNC124
            return StreamingResponse(look())

        async def inner(held: Any = depends(slot)) -> Any:  # noqa: ASYNC124
            async def ask() -> AsyncIterator[bytes]:
                tasks["streams"] = me()
                try:
                    async with gate.slot(max_wait=0.2):
                        yield b"let in"  # noqa: ASYNC119
                except GateRefused:
                    yield b"it waited for its own request"

            return StreamingResponse(ask())

        async def slow_stream(held: Any = depends(short)) -> Any:  # noqa: ASYNC124
            async def never_ends() -> AsyncIterator[bytes]:
                while True:
                    yield b"x"
                    await asyncio.sleep(0.02)

            return StreamingResponse(never_ends())

        async def slow(held: Any = depends(short)) -> Any:
            await asyncio.sleep(10)

        async def refused(held: Any = depends(impatient)) -> Any:  # noqa: ASYNC124
            return None

        def thread() -> Any:
            with gate.from_thread(Priority.FOREGROUND):
                return in_flight()

        async def thread_dependency(held: Any = depends(of_a_thread)) -> Any:
            await asyncio.sleep(0.1)
            return in_flight()

        for function in plain, sync, stream, early, inner, slow, slow_stream, refused, thread, thread_dependency:
            app.get(f"/{function.__name__}")(function)

        async def say(request: Any, error: Any) -> Any:  # noqa: ASYNC124
            return JSONResponse(getattr(error, "code", "hold_timeout"), getattr(error, "status", 504))

        app.exception_handler(GateRefused)(say)
        app.exception_handler(TimeoutError)(say)
        if middleware:
            PassThrough.add_to(app)


@pytest.fixture(params=[False, True], ids=["bare", "behind BaseHTTPMiddleware"])
def world(request: pytest.FixtureRequest) -> World:
    return World(middleware=request.param)


@pytest.mark.parametrize("path", ["plain", "sync", "thread"])
@pytest.mark.parametrize("way", [served, in_process])
def test_a_route_has_its_slot_while_it_works(world: World, path: str, way: Any) -> None:
    async def main() -> None:
        async with way(world.app) as browser:
            for _ in range(3):
                answers = [asyncio.create_task(browser.get(f"/{path}")) for _ in range(5)]
                assert [(await answer).json() for answer in answers] == [1] * 5
            await until(lambda: world.gate.statistics().in_flight == 0)
        assert world.gate.statistics().admitted == 15
        if path == "plain":
            assert world.tasks["enters"] is world.tasks["works"] is world.tasks["leaves"]

    run_on("asyncio", main)


def test_a_slot_of_a_dependency_lasts_as_long_as_the_stream_or_with_scope_function_does_not(world: World) -> None:
    async def main() -> None:
        async with served(world.app) as browser:
            assert (await browser.get("/stream")).text == "11111"
            await until(lambda: world.gate.statistics().in_flight == 0)
            assert (await browser.get("/early")).text == "00000"
            async with browser.stream("GET", "/stream") as answer:
                async for _ in answer.aiter_raw():
                    break
            await until(lambda: world.gate.statistics().in_flight == 0)

    run_on("asyncio", main)


def test_the_stream_itself_runs_in_a_child_task_which_queues(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with served(world.app) as browser:
            assert (await browser.get("/inner")).text == "it waited for its own request"
            assert world.tasks["streams"] is not world.tasks["enters"]
            await until(lambda: world.gate.statistics().in_flight == 0)
        assert "waits_for_parent" in caplog.text

    run_on("asyncio", main)


def test_what_a_dependency_raises_is_a_status(world: World) -> None:
    async def main() -> None:
        async with served(world.app) as browser:
            answer = await browser.get("/slow")
            assert (answer.status_code, answer.json()) == (504, "hold_timeout")
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(world.gate.slot())
                answer = await browser.get("/refused")
            assert (answer.status_code, answer.json()) == (503, "wait_too_long")
            await until(lambda: world.gate.statistics().in_flight == 0)

    run_on("asyncio", main)


def test_a_hold_timeout_cuts_a_response_that_has_begun(world: World) -> None:
    async def main() -> None:
        async with served(world.app) as browser:
            try:
                assert set((await browser.get("/slow_stream")).text) == {"x"}
            except httpx.RemoteProtocolError:
                pass
            else:
                assert world.app.user_middleware  # which may make a whole of it
            await until(lambda: world.gate.statistics().in_flight == 0)

    run_on("asyncio", main)


def test_a_dependency_that_is_no_coroutine_leaves_its_thread_with_the_slot(world: World) -> None:
    """The thread goes back to the pool; the next request that it is given to is refused."""

    async def main() -> None:
        async with served(world.app) as browser:
            first = asyncio.create_task(browser.get("/thread_dependency"))
            await until(lambda: world.gate.statistics().in_flight == 1)
            assert (await browser.get("/thread_dependency")).status_code == 500
            assert (await first).json() == 1
            await until(lambda: world.gate.statistics().in_flight == 0)

    run_on("asyncio", main)


def test_waiting_routes_of_threads_leave_none_for_others(world: World) -> None:
    """Priorities can't help a thread that has not started."""

    async def main() -> None:
        async with in_process(world.app) as browser:
            holder = await world.gate.acquire_detached()
            limit = anyio.to_thread.current_default_thread_limiter()
            limit.total_tokens = 2
            try:
                waiting = [asyncio.create_task(browser.get("/thread")) for _ in range(3)]
                await until(lambda: limit.borrowed_tokens == 2)
                await asyncio.sleep(0.1)
                assert world.gate.statistics().tasks_waiting == 2
            finally:
                limit.total_tokens = 40
            holder.release()
            assert [(await task).json() for task in waiting] == [1, 1, 1]

    run_on("asyncio", main)
