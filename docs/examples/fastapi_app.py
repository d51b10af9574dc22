"""A web application before one model server: a person's chat goes before the digests, and streams.

``MODEL_URL=http://127.0.0.1:8080/v1 uvicorn fastapi_app:app --workers 1`` serves it; as a program it shows itself.
"""

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import anyio
import httpx
import uvicorn
from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from trio_mlxgate import GateRefused, Priority, Slot, use_options
from trio_mlxgate.anyio import Gate
from trio_mlxgate.httpx import GateTransport


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    gate = app.state.gate = Gate(1, name="macmini", max_waiting={Priority.BACKGROUND: 50})
    url = os.environ.get("MODEL_URL", "http://127.0.0.1:8080/v1")
    # Every request of this client passes the gate, and holds its slot until its answer is read or closed.
    async with httpx.AsyncClient(transport=GateTransport(gate), base_url=url, timeout=60) as app.state.client:
        yield
        # The server has stopped to listen: serve who waits still, but not for ever.
        with anyio.move_on_after(10):
            await gate.drain()
        await gate.aclose()


app = FastAPI(lifespan=lifespan)


# ---- what routes ask for ----


def get_gate(request: Request) -> Gate:
    gate: Gate = request.app.state.gate
    return gate


def get_client(request: Request) -> httpx.AsyncClient:
    client: httpx.AsyncClient = request.app.state.client
    return client


async def background_slot(gate: Annotated[Gate, Depends(get_gate)]) -> AsyncIterator[Slot]:  # noqa: ASYNC900
    """A slot for as long as the route works, until its response is sent and its background tasks are done."""
    async with gate.slot(Priority.BACKGROUND, hold_timeout=120, max_wait=600) as slot:
        yield slot  # noqa: ASYNC119 - FastAPI makes a context manager of it


async def until_sent() -> AsyncIterator[AsyncExitStack]:  # noqa: ASYNC900
    """What is entered on this stack is left when the response has been sent, or can't be: the browser has left."""
    async with AsyncExitStack() as stack:
        yield stack  # noqa: ASYNC119


async def unless_gone(request: Request, wait: Callable[[], Awaitable[Any]]) -> Any:
    """Wait, but leave the queue when the browser leaves. (Its request must have been read.)"""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    watcher = None
    with anyio.CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            return await wait()
        finally:
            watcher.cancel()
    raise HTTPException(499, "the browser has left")  # nobody will see it


# ---- the routes ----


@app.post("/chat")
async def chat(
    request: Request,
    question: Annotated[str, Body(embed=True)],
    client: Annotated[httpx.AsyncClient, Depends(get_client)],
    stack: Annotated[AsyncExitStack, Depends(until_sent)],
) -> Response:
    """A person waits: in front of all digests, for a minute at most. The slot is held until the stream has ended."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True}
    with use_options(priority=Priority.FOREGROUND, max_wait=60):
        # Opened here, where a refusal can still become a status, and read by the response.
        opening = client.stream("POST", "chat/completions", json=body)
        answer = await unless_gone(request, lambda: stack.enter_async_context(opening))
    return StreamingResponse(
        answer.aiter_bytes(), status_code=answer.status_code, media_type=answer.headers.get("content-type")
    )


@app.post("/digest")
async def digest(
    pages: Annotated[list[str], Body(embed=True)],
    client: Annotated[httpx.AsyncClient, Depends(get_client)],
    slot: Annotated[Slot, Depends(background_slot)],
) -> dict[str, Any]:
    """Several calls in one slot: the requests of a task that owns a slot pass with it, one after the other."""
    digests = []
    for page in pages:
        answer = await client.post("chat/completions", json={"messages": [{"role": "user", "content": page}]})
        digests.append(answer.raise_for_status().json()["choices"][0]["message"]["content"])
    return {"digests": digests, "waited": slot.waited}  # noqa: ASYNC910


@app.get("/status")
async def status(gate: Annotated[Gate, Depends(get_gate)]) -> dict[str, Any]:  # noqa: ASYNC124, ASYNC910
    seen = gate.statistics()
    return {  # noqa: ASYNC910
        "capacity": seen.capacity,
        "in_flight": seen.in_flight,
        "waiting": dict(seen.waiting_by_priority),
        "longest_wait": seen.longest_wait,
        "admitted": seen.admitted,
        "cancelled": seen.cancelled,
        "rejected": dict(seen.rejected_by_reason),
    }


# ---- what the gate raises, as HTTP ----


async def say_why(_: Request, error: Exception) -> JSONResponse:  # noqa: ASYNC124, ASYNC910 - as Starlette wants it
    status, code, retry_after = 503, "shutting_down", None  # anyio.ClosedResourceError: the gate is closed
    if isinstance(error, httpx.TransportError) and not isinstance(error, GateRefused | TimeoutError):
        status, code = 502, "model_unreachable"
    elif isinstance(error, TimeoutError):
        status, code = 504, "hold_timeout"
    elif isinstance(error, GateRefused):
        status, code, retry_after = error.status, error.code, error.retry_after  # 429 or 503
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    return JSONResponse({"error": {"code": code, "message": str(error)}}, status, headers)  # noqa: ASYNC910


for kind in (GateRefused, TimeoutError, anyio.ClosedResourceError, httpx.TransportError):
    app.add_exception_handler(kind, say_why)


# ---- it shows itself ----


async def demo() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as browser:

        async def digest_pages(number: int) -> None:
            answer = await browser.post("/digest", json={"pages": ["one", "two"]}, timeout=60)
            print(f"digest {number}: HTTP {answer.status_code}, {len(answer.json()['digests'])} pages")

        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(digest_pages(number))
            await asyncio.sleep(0.2)
            print("status:", (await browser.get("/status")).json())
            async with browser.stream("POST", "/chat", json={"question": "Who goes first?"}) as answer:
                pieces = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
            print(f"person: HTTP {answer.status_code}, {len(pieces)} pieces")
    server.should_exit = True
    await serving


def main() -> None:
    """Run the application for some requests, before the embedded echo server."""
    command = [sys.executable, "-m", "trio_mlxgate", "echo-server", "--until-stdin-closes", "--service-time=0.2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.environ["MODEL_URL"] = json.loads(process.stdout.readline())["url"] + "/v1"
        asyncio.run(demo())
        process.terminate()


if __name__ == "__main__":
    main()
