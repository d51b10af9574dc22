"""A response that was dropped open is closed in its run, wherever it was found, and gives its slot back once."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_mlxgate.httpx
from trio_mlxgate import Gate
from trio_mlxgate._response_body import ResponseBody
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.transport.conftest import Family

    Drop = Callable[[list[Any]], Awaitable[None]]


def idle(gate: Gate) -> bool:
    seen = gate.statistics()
    return seen.in_flight == seen.tasks_waiting == 0


async def open_response(client: Any, path: str = "/x", **options: float) -> Any:
    request = client.build_request("GET", path, extensions={"mlxgate": options})
    return await client.send(request, stream=True)


def gated(response: Any) -> Any:
    """The gate's stream, inside the one with which the client measures the time."""
    return response.stream._stream


def drop_now(box: list[Any]) -> None:
    box.clear()
    gc.collect()


@pytest.fixture(autouse=True)
def collected_by_hand() -> Iterator[None]:
    """Nothing is collected but where the test says so, and nothing is left of it for the next."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture(params=["trio thread", "worker thread"])
def drop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Drop:
    """Drops what is in a list, the last reference to it, in one kind of thread or the other."""
    in_worker = request.param == "worker thread"
    threads: list[bool] = []
    close_soon = ResponseBody.close_soon

    def noted(body: ResponseBody) -> None:
        threads.append(threading.current_thread() is not threading.main_thread())
        close_soon(body)

    monkeypatch.setattr(ResponseBody, "close_soon", noted)

    async def drop(box: list[Any]) -> None:
        # Twice: a generator that is dropped is handed to the run first, and keeps the response as long as it is closed.
        for _ in range(2):
            if in_worker:
                await trio.to_thread.run_sync(drop_now, box)
            else:
                drop_now(box)
            await wait_all_tasks_blocked()
        assert set(threads) <= {in_worker}

    return drop


@contextmanager
def warned() -> Iterator[list[str]]:
    """The ResourceWarnings of the gate, without those of generators that the clients leave to the collector."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    told += [
        str(warning.message)
        for warning in caught
        if warning.category is ResourceWarning and not str(warning.message).startswith("Async generator")
    ]


# ---- one response, and what becomes of it ----


async def test_it_is_closed_first_and_then_gives_its_slot_back(family: Family, drop: Drop) -> None:
    gate = Gate(1)
    held_at_close = []
    family.script.on_close = lambda: held_at_close.append(gate.statistics().in_flight)
    async with family.client(gate) as client:
        with warned() as told:
            await drop([await open_response(client, "/x?key=secret")])
            await wait_all_tasks_blocked()
        assert idle(gate)
        assert held_at_close == [1]
        (message,) = told
        assert message.startswith("the response to GET http://server/x was dropped before it was closed")
        assert not client._transport._open
        await client.get("/next")
    assert held_at_close == [1, 1]
    assert idle(gate)


@pytest.mark.parametrize("reader", ["client", "gate"])
async def test_one_that_was_read_in_part(family: Family, drop: Drop, reader: str) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        response = await open_response(client)
        parts = response.aiter_raw() if reader == "client" else gated(response)
        assert await anext(parts) == b"one "
        box = [response, parts]
        del response, parts
        with warned() as told:
            await drop(box)
            await wait_all_tasks_blocked()
        # httpx2's generators close the response themselves when the run closes them.
        assert len(told) == (reader == "gate" or family.module is httpx)
        assert len(family.script.closed) == 1
        assert idle(gate)


async def test_one_that_was_closed_is_left_alone(family: Family, drop: Drop) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        with warned() as told:
            response = await open_response(client, "/closed")
            await response.aclose()
            await drop([response, response := None])
            await client.get("/read")
            family.script.read_error = family.module.ReadError("broke")
            with pytest.raises(family.module.ReadError):
                await client.get("/broken")
            await drop([])
            await wait_all_tasks_blocked()
        assert told == []
        assert len(family.script.closed) == 3
    assert idle(gate)


async def test_who_asks_next_waits_until_it_is_closed(family: Family, autojump_clock: MockClock) -> None:
    """And isn't told that its own open response holds the slot: the run closes that one, not this task."""
    gate = Gate(1)
    family.script.close_after = 2.0
    async with family.client(gate) as client:
        box = [await open_response(client)]
        with warned():
            drop_now(box)
        start = trio.current_time()
        response = await open_response(client, "/next")
        assert trio.current_time() - start == 2.0
        await response.aclose()
    assert idle(gate)


@pytest.mark.parametrize(("options", "took"), [({}, 5.0), ({"hold_timeout": 3.0}, 3.0), ({"hold_timeout": 0.5}, 1.0)])
async def test_closing_it_has_an_end(
    family: Family,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, float],
    took: float,
) -> None:
    gate = Gate(1)
    family.script.close_after = 100.0
    async with family.client(gate) as client:
        box = [await open_response(client, "/x", **options)]
        start = trio.current_time()
        with warned():
            drop_now(box)
        async with gate.slot():
            assert trio.current_time() - start == took
    assert f"not closed within {took:g} s" in caplog.text


async def test_what_fails_in_closing_is_logged_and_ends_no_run(
    family: Family, drop: Drop, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(1)
    family.script.close_error = family.module.ReadError("would not go")
    async with family.client(gate) as client:
        with warned():
            await drop([await open_response(client, "/x?key=secret")])
            await wait_all_tasks_blocked()
        assert idle(gate)
    first, record = [record for record in caplog.records if record.name.startswith("trio_mlxgate")]
    assert first.levelno == record.levelno == logging.WARNING
    assert first.getMessage() == "the response to GET http://server/x was dropped while it was open; it is closed now"
    assert record.getMessage() == "the response to GET http://server/x was dropped, and closing it failed"
    assert "would not go" in caplog.text


async def test_its_generator_that_fails_keeps_nothing_open(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(1)
    family.script.iterator_close_error = ValueError("no end")
    async with family.client(gate) as client:
        box = [gated(await open_response(client))]
        await anext(box[0])
        with warned():
            drop_now(box)
            await wait_all_tasks_blocked()
        assert "no end" in caplog.text
        assert len(family.script.closed) == 1
        assert idle(gate)


# ---- under a slot of one's own ----


async def test_the_loan_ends_and_the_slot_stays_with_its_task(family: Family, drop: Drop) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        async with gate.slot():
            with warned() as told:
                await drop([await open_response(client)])
                await wait_all_tasks_blocked()
            assert len(told) == len(family.script.closed) == 1
            assert gate.statistics().in_flight == 1
            await client.get("/next")
        assert idle(gate)


async def test_a_slot_that_has_ended_goes_with_the_loan(family: Family, drop: Drop) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        async with gate.slot():
            box = [await open_response(client)]
        assert gate.statistics().in_flight == 1
        with warned():
            await drop(box)
            await wait_all_tasks_blocked()
        assert idle(gate)


# ---- together with a client that is closed ----


async def test_while_it_is_closed_the_client_is_too(family: Family, drop: Drop, autojump_clock: MockClock) -> None:
    gate = Gate(2)
    family.script.close_after = 1.0
    client = family.client(gate)
    kept = await open_response(client, "/kept")
    box = [await open_response(client, "/dropped")]
    with warned() as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            await drop(box)
        await trio.sleep(2)
    assert sorted(path for path, _ in family.script.closed) == ["/dropped", "/kept"]
    assert len(told) <= 1
    assert idle(gate)
    del kept


@pytest.mark.parametrize("first", ["finaliser", "client"])
async def test_found_by_the_client_in_the_middle_of_being_dropped(family: Family, first: str) -> None:
    """A finaliser in another thread goes on while this one still finds the stream."""
    gate = Gate(1)
    client = family.client(gate)
    stream = gated(await open_response(client))
    with warned() as told:
        for step in ("finaliser", "client") if first == "finaliser" else ("client", "finaliser"):
            if step == "client":
                await client.aclose()
            else:
                stream.__del__()
        await wait_all_tasks_blocked()
    assert len(told) == (first == "finaliser")
    assert len(family.script.closed) == 1
    assert idle(gate)


async def test_many_dropped_by_many_threads(family: Family) -> None:
    gate = Gate(5)
    # What was there before need not be looked at each time: after some thousand tests it is much.
    gc.collect()
    gc.freeze()
    async with family.client(gate) as client, trio.open_nursery() as nursery:
        with warned() as told:

            async def one(number: int) -> None:
                box = [await open_response(client, f"/{number}")]
                if number % 2:
                    await anext(gated(box[0]))
                await trio.to_thread.run_sync(drop_now, box)

            with trio.fail_after(100):
                async with trio.open_nursery() as inner:
                    for number in range(100):
                        inner.start_soon(one, number)
                    while gate.statistics().admitted < 100:  # noqa: ASYNC110 - the last wait for the collector
                        await trio.sleep(0.01)
                        gc.collect()
                gc.collect()
                await wait_all_tasks_blocked()
        assert len(told) == len(family.script.closed) == 100
        assert idle(gate)
        nursery.cancel_scope.cancel()
    gc.unfreeze()


# ---- when the run is over, or nearly ----


def test_after_its_run_there_is_nothing_to_do(family: Family) -> None:
    box = []
    gate = Gate(1)
    client = family.client(gate)

    async def leave_open() -> None:
        box.append(await open_response(client))

    async def drop_here() -> None:
        drop_now(box)
        await wait_all_tasks_blocked()
        assert gate.statistics().in_flight == 0
        await client.get("/next")

    with warned() as told:
        trio.run(leave_open)
        drop_now(box)
        trio.run(leave_open)
        trio.run(drop_here)
    assert len(told) == 2
    assert len(family.script.closed) == 1
    assert gate.statistics().in_flight == 0


@pytest.mark.parametrize("passes", range(6))
def test_in_the_last_moments_of_its_run(family: Family, passes: int) -> None:
    """Some are closed, others found too late. The run ends within the limit of a closing, and with no error."""
    family.script.close_after = 100.0

    async def main() -> None:
        gate = Gate(1)
        box = [await open_response(family.client(gate))]
        drop_now(box)
        for _ in range(passes):
            await trio.lowlevel.checkpoint()

    clock = MockClock(autojump_threshold=0)
    with warned() as told:
        trio.run(main, clock=clock)
    assert len(told) == 1
    assert clock.current_time() <= 5.0


def test_at_the_very_end_of_its_run(family: Family) -> None:
    """By the generator of a run that is closed last, when no system task can be started any more."""
    kept = []

    async def main() -> None:
        box = [await open_response(family.client(Gate(1)))]

        async def last() -> AsyncIterator[None]:
            await trio.lowlevel.checkpoint()
            try:
                yield
            finally:
                drop_now(box)

        kept.append(last())
        await anext(kept[0])

    with warned() as told:
        trio.run(main)
    assert len(told) == 1


AT_EXIT = """
import sys, trio, httpx
from trio_mlxgate import Gate
from trio_mlxgate.httpx import GateTransport

class Body(httpx.AsyncByteStream):
    async def __aiter__(self):
        yield b"one"
        yield b"two"
    async def aclose(self): pass

class Inner(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        return httpx.Response(200, stream=Body())

async def main():
    client = httpx.AsyncClient(transport=GateTransport(Gate(2), Inner()))
    sys.kept = [await client.send(client.build_request("GET", "http://server/x"), stream=True) for _ in range(2)]
    await anext(sys.kept[0].stream._stream)
    globals()["also_kept"] = sys.kept[1]

if sys.argv[1] == "in a thread":
    import threading
    async def for_ever():
        await main()
        started.set()
        await trio.sleep_forever()
    started = threading.Event()
    threading.Thread(target=trio.run, args=[for_ever], daemon=True).start()
    started.wait()
else:
    trio.run(main)
"""


@pytest.mark.integration
@pytest.mark.parametrize("where", ["in a thread", "in this thread"])
def test_at_the_exit_of_the_interpreter(where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_EXIT, where], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- a real server ----


@pytest.mark.integration
async def test_the_server_sees_the_client_leave_and_the_next_request_proceeds(drop: Drop) -> None:
    gate = Gate(1, outer_deadline="allow")
    question = {"messages": [{"role": "user", "content": "one two"}], "stream": True}
    with trio.fail_after(30):
        async with (
            inference_server(service_time=20.0, tokens=200) as server,
            httpx.AsyncClient(base_url=server.base_url, transport=trio_mlxgate.httpx.GateTransport(gate)) as client,
        ):
            for number in range(1, 3):
                request = client.build_request("POST", "chat/completions", json=question)
                response = await client.send(request, stream=True)
                parts = response.aiter_raw()
                await anext(parts)
                box = [response, parts]
                del response, parts
                with warned() as told:
                    await drop(box)
                    with trio.fail_after(2):
                        async with gate.slot():
                            pass
                    with trio.fail_after(2):
                        while (await server.status())["active_jobs"]:  # noqa: ASYNC110 - the server tells no event
                            await trio.sleep(0.02)
                assert len(told) == 1
                assert (await server.status())["abandoned"] == number
