"""Requests whose callers leave: the slot is given back at once, or stays until the server is done with them."""

from __future__ import annotations

import functools
import gc
import logging
import signal
import socket
from contextlib import AsyncExitStack, ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import attrs
import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_mlxgate.httpx
from tests.gate.helpers import Recorder
from trio_mlxgate import EndpointGates, EndpointSettings, Fallback, Gate, RequestOptions, WaitTooLong, use_options
from trio_mlxgate.instrumentation import Abandoned, Granted, Released
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.transport.conftest import Family

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


def make_gate(*hooks: Any, **options: Any) -> Gate:
    return Gate(1, name="macmini", outer_deadline="allow", hooks=hooks, **options)


def draining(family: Family, gate: Gate, **options: Any) -> Any:
    return family.client(gate, abandoned="drain", **options)


async def leave_after(client: Any, seconds: float, path: str = "/left", **options: Any) -> None:
    """Ask, and leave after so many seconds; it must return at once then."""
    start = trio.current_time()
    with trio.move_on_after(seconds) as scope:
        await client.get(path, **options)
    assert scope.cancelled_caught
    assert trio.current_time() - start == seconds


# ---- an answer in one piece ----


@pytest.mark.parametrize("leave_at", [0.25, 0.75, 1.25])
async def test_the_slot_stays_until_the_whole_answer_is_there(
    family: Family, autojump_clock: MockClock, leave_at: float
) -> None:
    family.script.answer_after = family.script.part_after = 0.5
    family.script.close_after = 0.125
    hook = Recorder()
    gate, start = make_gate(hook), trio.current_time()
    async with draining(family, gate) as client:
        await leave_after(client, leave_at)
        assert gate.statistics().in_flight == 1
        response = await client.get("/next")
        # The head, three parts, and the closing.
        assert response.extensions["mlxgate"]["waited"] == 2.125 - leave_at
        assert [(path, time - start) for path, time in family.script.sent] == [("/left", 0), ("/next", 2.125)]
    assert [path for path, _ in family.script.closed] == ["/left", "/next"]
    assert family.script.cut == []
    abandoned, released = hook.details[1], next(each for each in hook.details if isinstance(each, Released))
    assert isinstance(abandoned, Abandoned)
    assert (abandoned.seq, abandoned.held, abandoned.in_flight) == (1, leave_at, 1)
    assert (released.seq, released.held) == (1, 2.125)
    assert gate.statistics().in_flight == 0


async def test_to_release_is_the_default_and_cuts_it(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 1.0
    gate = make_gate()
    async with family.client(gate) as client:
        await leave_after(client, 0.25)
        assert gate.statistics().in_flight == 0
        assert len(family.script.cut) == 1


async def test_who_stays_gets_the_answer_and_the_slot_is_free(family: Family, autojump_clock: MockClock) -> None:
    gate, start = make_gate(), trio.current_time()
    family.script.answer_after = family.script.part_after = 0.5
    async with draining(family, gate) as client:
        async with client.stream("GET", "/x") as response:
            assert trio.current_time() - start == 2.0
            assert gate.statistics().in_flight == 0
            assert [part async for part in response.aiter_raw()] == [b"one two three"]
        response = await client.post("/x", json={"a": 1})
    assert response.text == "one two three"
    assert response.extensions == {"http_version": b"HTTP/1.1", "mlxgate": {"waited": 0}}
    assert [path for path, _ in family.script.closed] == ["/x", "/x"]


async def test_a_response_that_is_here_already(family: Family) -> None:
    gate = make_gate()
    inner = family.module.MockTransport(lambda request: family.module.Response(200, text=f"{request.content!r}"))
    transport = family.gated.GateTransport(gate, inner, abandoned="drain")
    async with family.module.AsyncClient(transport=transport) as client:
        assert (await client.post("http://server", content=b"yes")).text == "b'yes'"
        assert gate.statistics().in_flight == 0


async def test_drain_limit_ends_it(family: Family, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="trio_mlxgate.gate")
    family.script.answer_after = 1000.0
    gate, start = Gate(1, name="macmini", outer_deadline="allow"), trio.current_time()
    async with draining(family, gate, drain_limit=60.0) as client:
        await leave_after(client, 0.5)
        await trio.sleep(59.75)
        assert gate.statistics().in_flight == 1
        await trio.sleep(0.5)
        assert gate.statistics().in_flight == 0
    assert [(path, time - start) for path, time in family.script.cut] == [("/left", 60.5)]
    assert [(record.levelname, record.getMessage()) for record in caplog.records[1:]] == [
        ("INFO", "abandon gate=macmini priority=100 seq=1 duration_ms=500.0"),
        ("WARNING", "give_up gate=macmini priority=100 seq=1 duration_ms=60500.0"),
    ]


async def test_drain_limit_ends_a_body_that_does_not(family: Family, autojump_clock: MockClock) -> None:
    family.script.part_after = 1000.0
    gate = make_gate()
    async with draining(family, gate) as client:
        start = trio.current_time()
        await leave_after(client, 0.5, extensions={"mlxgate": {"drain_limit": 2.0}})
        async with gate.slot():
            assert trio.current_time() - start == 2.5
    assert [(path, time - start) for path, time in family.script.closed] == [("/left", 2.5)]


class CancelAtGrant(Recorder):
    """Cancels a scope as soon as the gate tells of a grant."""

    def __init__(self) -> None:
        super().__init__(Granted, Released, Abandoned)
        self.scope = trio.CancelScope()

    def __call__(self, details: Any) -> None:
        super().__call__(details)
        self.scope.cancel()


async def test_what_nobody_wants_any_more_is_not_sent(family: Family) -> None:
    hook = CancelAtGrant()
    gate = make_gate(hook)
    async with draining(family, gate) as client:
        with hook.scope:
            await client.get("/left")
        assert hook.scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert gate.statistics().in_flight == 0
    assert family.script.sent == []
    assert [type(details) for details in hook.details] == [Granted, Released]


# ---- streams ----


async def test_a_stream_is_handed_over_and_ends_with_its_reader(family: Family, autojump_clock: MockClock) -> None:
    family.script.headers = EVENTS
    family.script.part_after = 1.0
    gate, start = make_gate(), trio.current_time()
    async with draining(family, gate) as client:
        async with client.stream("GET", "/x", timeout=5) as response:
            assert trio.current_time() == start
            assert response.extensions["mlxgate"] == {"waited": 0}
            assert gate.statistics().in_flight == 1
            parts = response.aiter_raw()
            assert await anext(parts) == b"one "
            with trio.move_on_after(0.5):
                await anext(parts)
            assert gate.statistics().in_flight == 0
            assert [path for path, _ in family.script.closed] == ["/x"]
        response = await client.get("/x", timeout=5)
        assert response.text == "one two three"
        assert gate.statistics().in_flight == 0


@pytest.mark.parametrize("kind", ["application/x-ndjson", "Application/JSONL", "application/json-seq;x=y"])
async def test_other_kinds_of_streams(family: Family, kind: str) -> None:
    family.script.headers = {"content-type": kind}
    gate = make_gate()
    async with draining(family, gate) as client, client.stream("GET", "/x"):
        assert gate.statistics().in_flight == 1


async def test_a_stream_whose_caller_left_before_it_began_is_closed(family: Family, autojump_clock: MockClock) -> None:
    family.script.headers = EVENTS
    family.script.answer_after, family.script.part_after = 2.0, 100.0
    gate, start = make_gate(), trio.current_time()
    async with draining(family, gate) as client:
        await leave_after(client, 0.5)
        async with gate.slot():
            assert trio.current_time() - start == 2.0
    assert [(path, time - start) for path, time in family.script.closed] == [("/left", 2.0)]


async def test_the_budgets_hold_for_a_stream(family: Family, autojump_clock: MockClock) -> None:
    family.script.headers = EVENTS
    family.script.part_after = 2.0
    gate = make_gate()
    async with draining(family, gate) as client:
        start = trio.current_time()
        with pytest.raises(family.module.ReadTimeout, match="client's read timeout of 1 s") as slow:
            await client.get("/x")
        assert not isinstance(slow.value, trio.TooSlowError)
        assert trio.current_time() - start == 1.0
        assert gate.statistics().in_flight == 0
        with pytest.raises(family.gated.HoldTimeout), use_options(hold_timeout=3.0):
            await client.get("/x", timeout=None)
        assert trio.current_time() - start == 4.0
        assert gate.statistics().in_flight == 0


async def test_a_dropped_stream_gives_its_slot_back(family: Family) -> None:
    family.script.headers = EVENTS
    gate = make_gate()
    async with draining(family, gate) as client:
        box = [await client.send(client.build_request("GET", "/x"), stream=True)]
        assert gate.statistics().in_flight == 1
        with pytest.warns(ResourceWarning, match="GET http://server/x was dropped"):
            drop(box)
        await wait_all_tasks_blocked()
        assert gate.statistics().in_flight == 0
        assert [path for path, _ in family.script.closed] == ["/x"]


def drop(box: list[Any]) -> None:
    box.clear()
    gc.collect()


# ---- limits of time ----


async def test_the_clients_read_timeout_ends_the_wait_and_not_the_request(
    family: Family, autojump_clock: MockClock
) -> None:
    family.script.answer_after = 10.0
    gate, start = make_gate(), trio.current_time()
    async with draining(family, gate) as client:
        request = client.build_request("GET", "/x", extensions={"timeout": {"read": 2.0, "connect": 3.0}})
        with pytest.raises(
            family.module.ReadTimeout, match="read timeout of 2 s; the request is being drained"
        ) as slow:
            await client.send(request)
        assert slow.value.request.url.path == "/x"
        assert trio.current_time() - start == 2.0
        assert gate.statistics().in_flight == 1
        async with gate.slot():
            assert trio.current_time() - start == 10.0
    assert family.script.requests[0].extensions["timeout"] == {"read": None, "connect": 3.0}
    assert request.extensions["timeout"] == {"read": 2.0, "connect": 3.0}
    assert family.script.cut == []


async def test_the_read_timeout_counts_from_the_last_sign(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = family.script.part_after = 0.75
    gate, start = make_gate(), trio.current_time()
    async with draining(family, gate) as client:
        assert (await client.get("/x")).text == "one two three"
        assert trio.current_time() - start == 3.0
        family.script.part_after = 5.0
        with pytest.raises(family.module.ReadTimeout):
            await client.get("/x")
        assert trio.current_time() - start == 3.0 + 0.75 + 1.0


@pytest.mark.parametrize("phase", ["answer_after", "part_after"])
@pytest.mark.parametrize("owned", [False, True])
async def test_the_hold_budget_ends_the_wait_and_not_the_request(
    family: Family, autojump_clock: MockClock, phase: str, owned: bool
) -> None:
    setattr(family.script, phase, 10.0)
    family.script.parts = (b"one",)
    hook = Recorder()
    gate, start = make_gate(hook), trio.current_time()

    async def ask() -> None:
        with pytest.raises(family.gated.HoldTimeout, match="being drained"), use_options(hold_timeout=3.0):
            await client.get("/x", timeout=None)
        assert trio.current_time() - start == 3.0

    async with draining(family, gate) as client:
        if owned:
            async with gate.slot():
                await ask()
        else:
            await ask()
        async with gate.slot():
            assert trio.current_time() - start == 10.0
    assert family.script.cut == []
    assert len(family.script.closed) == 1
    if not owned:
        # It is not reported as overdue while it is drained.
        assert [type(details).__name__ for details in hook.details] == [
            *("Granted", "Abandoned", "Queued", "Released", "Granted", "Released")
        ]


async def test_who_opened_a_stream_does_not_wait_for_itself(family: Family) -> None:
    family.script.headers = EVENTS
    gate = make_gate()
    async with draining(family, gate) as client:
        async with client.stream("GET", "/x"):
            with pytest.raises(RuntimeError, match="held by open responses of this task"):
                await client.get("/y")
        assert gate.statistics().in_flight == 0


# ---- errors ----


class Quits(SystemExit):
    """As a program may have it."""


@pytest.mark.parametrize("error", [ValueError, Quits, KeyboardInterrupt])
@pytest.mark.parametrize("left", [False, True])
async def test_what_the_task_raises_is_the_callers_or_nobodys(
    family: Family,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
    left: bool,
) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_mlxgate")
    gate, raised = make_gate(), error("no")

    class Inner(type(family.transport())):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            await trio.sleep(1)
            raise raised

    transport = family.gated.GateTransport(gate, Inner(), abandoned="drain")
    async with family.module.AsyncClient(transport=transport, base_url="http://server") as client:
        if left:
            await leave_after(client, 0.5)
            await trio.sleep(1)
            (record,) = [record for record in caplog.records if record.name == "trio_mlxgate._drain"]
            assert record.levelno == (logging.DEBUG if error is ValueError else logging.ERROR)
        else:
            with pytest.raises(error) as got:
                await client.get("/x")
            assert got.value is raised
    assert gate.statistics().in_flight == 0


async def test_a_body_that_breaks_is_the_callers_error(family: Family) -> None:
    family.script.read_error = family.module.RemoteProtocolError("incomplete")
    gate = make_gate()
    async with draining(family, gate) as client:
        with pytest.raises(family.module.RemoteProtocolError, match="incomplete") as broken:
            await client.get("/x")
        assert broken.value.request.url.path == "/x"
        assert gate.statistics().in_flight == 0


async def test_a_hook_that_quits_ends_no_run(family: Family, autojump_clock: MockClock) -> None:
    class Quitting(Recorder):
        def __call__(self, details: Any) -> None:
            raise Quits

    family.script.answer_after = 1.0
    gate = make_gate(Quitting(Released))
    async with draining(family, gate) as client:
        await leave_after(client, 0.5)
        await trio.sleep(1)
        assert gate.statistics().in_flight == 0


# ---- the ends of clients and runs ----


async def test_closing_the_client_cuts_no_drain(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 5.0
    gate, start = Gate(2, outer_deadline="allow"), trio.current_time()
    async with draining(family, gate) as client, trio.open_nursery() as nursery:
        nursery.start_soon(leave_after, client, 0.5)
        await trio.sleep(0.25)
        await leave_after(client, 0.5)
    assert trio.current_time() - start == 0.75
    assert family.script.transport_closed == []
    assert gate.statistics().in_flight == 2
    await gate.wait_idle()
    assert trio.current_time() - start == 5.25
    await wait_all_tasks_blocked()
    assert [time - start for time in family.script.transport_closed] == [5.25]
    assert family.script.cut == []
    assert gate.statistics().in_flight == 0
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("/x")


async def test_a_transport_that_fails_to_close_at_last_harms_nobody(
    family: Family, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_mlxgate._drain")
    family.script.answer_after = 5.0

    class Inner(type(family.transport())):  # type: ignore[misc]
        async def aclose(self) -> None:
            raise Quits("no")

    transport = family.gated.GateTransport(make_gate(), Inner(), abandoned="drain")
    async with family.module.AsyncClient(transport=transport, base_url="http://server") as client:
        await leave_after(client, 0.5)
    await trio.sleep(5)
    assert "closing the transport failed" in caplog.text


async def test_an_answer_that_comes_when_the_client_is_closed(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 1.0
    for headers, gets_it in [({}, True), (EVENTS, False)]:
        family.script.headers = headers
        gate = make_gate()
        client = draining(family, gate)
        async with trio.open_nursery() as nursery:

            async def ask(client: Any = client, gets_it: bool = gets_it) -> None:
                if gets_it:
                    assert (await client.get("/x", timeout=5)).text == "one two three"
                else:
                    with pytest.raises(family.module.ReadError, match="client was closed"):
                        await client.get("/x", timeout=5)

            nursery.start_soon(ask)
            await trio.sleep(0.5)
            await client.aclose()
        assert gate.statistics().in_flight == 0


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_ends_cleanly_while_one_drains(
    family: Family, closed: bool, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_mlxgate._drain")
    family.script.answer_after = 1000.0
    gate = make_gate()
    client = draining(family, gate)

    async def main() -> float:
        start = trio.current_time()
        await leave_after(client, 0.5)
        if closed:
            await client.aclose()
        return start

    start = trio.run(main, clock=MockClock(autojump_threshold=0))
    gc.collect()
    assert [time - start for _, time in family.script.cut] == [0.5]
    assert len(family.script.transport_closed) == closed
    assert gate.statistics().in_flight == 0
    assert caplog.records == []
    assert list(recwarn) == []


def test_control_c_while_the_caller_waits(family: Family) -> None:
    family.script.answer_after = 2.0
    gate, seen = make_gate(), []

    class Inner(type(family.transport())):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            signal.raise_signal(signal.SIGINT)
            return await super().handle_async_request(request)

    transport = family.gated.GateTransport(gate, Inner(), abandoned="drain")

    async def main() -> None:
        async with family.module.AsyncClient(transport=transport, base_url="http://server") as client:
            with pytest.raises(KeyboardInterrupt):
                await client.get("/x")
            seen.append(gate.statistics().in_flight)
            await trio.sleep(3)
            seen.append(gate.statistics().in_flight)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert seen == [1, 0]
    assert family.script.cut == []


# ---- the slot ----


PASSES = 40


@pytest.mark.parametrize("abandoned", ["release", "drain"])
@pytest.mark.parametrize("kind", ["plain", "events", "fallback"])
def test_cancelled_at_any_scheduler_pass_no_slot_is_lost(
    family: Family, abandoned: Literal["release", "drain"], kind: str
) -> None:
    """Through the head and the body, each after a few passes; and what was opened is closed."""
    if kind == "events":
        family.script.headers = EVENTS
    ends: set[str] = set()
    opened = 0

    class Inner(type(family.transport())):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            nonlocal opened
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            if kind == "fallback":
                raise family.module.ConnectError("gone")
            response = await super().handle_async_request(request)
            opened += 1
            return response

    async def main(passes: int) -> None:
        hook = Recorder(Granted, Released)
        gate = make_gate(hook)
        fallback = Fallback(family.transport())
        transport = family.gated.GateTransport(gate, Inner(), fallback=fallback, abandoned=abandoned)
        client = family.module.AsyncClient(transport=transport, base_url="http://server", timeout=5)

        async def ask() -> None:
            response = await client.get("/x")
            assert response.text == "one two three"
            ends.add("answered")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            for _ in range(passes):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        if nursery.cancel_scope.cancelled_caught:
            ends.add("cancelled")
        await trio.sleep(1)
        assert gate.statistics().in_flight == 0
        granted = sum(isinstance(details, Granted) for details in hook.details)
        assert len(hook.details) == 2 * granted
        if granted:
            async with gate.slot():
                pass
        await client.aclose()

    for passes in range(PASSES):
        trio.run(main, passes, clock=MockClock(autojump_threshold=0))
        if kind != "fallback":
            assert len(family.script.closed) == opened, passes
    assert ends == {"answered", "cancelled"}


async def test_a_task_may_queue_behind_its_own_drain(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 2.0
    gate, start = make_gate(), trio.current_time()
    async with draining(family, gate) as client:
        await leave_after(client, 0.5)
        family.script.answer_after = 0.0
        await client.get("/x")
        assert trio.current_time() - start == 2.0


async def test_a_loan_lasts_as_long_as_the_drain(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 2.0
    gate, start = make_gate(), trio.current_time()
    async with draining(family, gate) as client:
        async with gate.slot():
            await leave_after(client, 0.5)
        assert gate.statistics().in_flight == 1
        async with gate.slot():
            assert trio.current_time() - start == 2.0
            # One more in the same slot comes after what was left there.
            await leave_after(client, 0.5)
            with pytest.raises(
                family.module.PoolTimeout, match=r"GET http://server/left, which was abandoned"
            ) as error:
                await client.get("/x", extensions={"mlxgate": {"max_wait": 1.0}})
            assert isinstance(error.value, WaitTooLong)
            assert trio.current_time() - start == 3.5
            await client.get("/x", timeout=5)
            assert trio.current_time() - start == 6.0
    assert [(path, time - start) for path, time in family.script.sent] == [("/left", 0), ("/left", 2), ("/x", 4)]
    assert gate.statistics().in_flight == 0


async def test_a_loan_that_nobody_used(family: Family) -> None:
    gate = make_gate()
    async with draining(family, gate) as client, gate.slot():
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.get("/left")
            await client.get("/x")
    assert [path for path, _ in family.script.sent] == ["/x"] * 20


# ---- what is sent, and with what ----


async def test_the_task_has_the_context_of_the_caller(family: Family) -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    seen = []

    def answer(request: Any) -> Any:
        seen.append(who.get())
        return family.module.Response(200)

    transport = family.gated.GateTransport(make_gate(), family.module.MockTransport(answer), abandoned="drain")
    async with family.module.AsyncClient(transport=transport) as client:
        who.set("me")
        await client.get("http://server")
    assert seen == ["me"]


async def test_the_request_is_sent_as_it_is(family: Family) -> None:
    async def upload() -> AsyncIterator[bytes]:  # noqa: ASYNC124
        yield b"part"

    async with draining(family, make_gate()) as client:
        for content in [b"body", upload()]:
            request = client.build_request("POST", "/x?a=b", content=content, headers={"X-Own": "1"})
            request.extensions["trace"] = None
            await client.send(request)
            sent = family.script.requests[-1]
            assert (sent.method, sent.url, sent.headers.raw) == ("POST", request.url, request.headers.raw)
            theirs = request.extensions | {"timeout": {**request.extensions["timeout"], "read": None}}
            del theirs["trace"]  # there was none
            assert sent.extensions == theirs
    assert family.script.requests[0].content == b"body"
    assert b"".join([part async for part in family.script.requests[1].stream]) == b"part"


# ---- with a fallback ----


async def test_the_fallback_is_asked_while_the_slot_drains(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 10.0
    held: list[int] = []

    def answer(request: Any) -> Any:
        held.append(gate.statistics().in_flight)
        return family.module.Response(200, text=f"from the cloud, within {request.extensions['timeout']['read']} s")

    gate, start = make_gate(), trio.current_time()
    fallback = Fallback(family.module.MockTransport(answer), on=["hold_timeout"])
    async with draining(family, gate, fallback=fallback) as client:
        response = await client.get("/x")
        assert trio.current_time() - start == 1.0
        assert response.text == "from the cloud, within 1.0 s"
        async with gate.slot():
            assert trio.current_time() - start == 10.0
    assert held == [1]


async def test_an_answer_in_one_piece_that_breaks_has_given_nothing(family: Family) -> None:
    family.script.read_error = family.module.ReadError("gone")
    fallback = Fallback(family.module.MockTransport(lambda _: family.module.Response(200, text="from the cloud")))
    gate = make_gate()
    async with draining(family, gate, fallback=fallback) as client:
        assert (await client.get("/x")).text == "from the cloud"
        family.script.headers = EVENTS
        with pytest.raises(family.module.ReadError):
            await client.get("/x")
        assert gate.statistics().in_flight == 0


# ---- saying it ----


async def test_each_request_can_say_it(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 2.0
    ways: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
        ("release", {"abandoned": "drain"}, {}, True),
        ("release", {}, {"abandoned": "drain"}, True),
        ("drain", {"abandoned": "release"}, {"abandoned": "drain"}, False),
        ("drain", {}, {"drain_limit": 1.0}, True),
    ]
    for of_transport, extension, block, drains in ways:
        gate, start = make_gate(), trio.current_time()
        async with family.client(gate, abandoned=of_transport) as client:
            with use_options(**block):
                await leave_after(client, 0.5, extensions={"mlxgate": extension})
            assert gate.statistics().in_flight == drains
            async with gate.slot():
                assert trio.current_time() - start == (0.5 if not drains else 1.5 if block.get("drain_limit") else 2.0)


async def test_an_endpoint_can_say_it(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 2.0
    request = RequestOptions(abandoned="drain", outer_deadline="allow")
    gates = EndpointGates({"http://server": EndpointSettings(request=request), "http://other": EndpointSettings()})
    async with family.client(gates) as client:
        await leave_after(client, 0.5)
        assert gates.gate_for("http://server").statistics().in_flight == 1
        with use_options(outer_deadline="allow"):
            await leave_after(client, 0.5, "http://other/x")
        assert gates.gate_for("http://other").statistics().in_flight == 0


def test_bad_options(family: Family) -> None:
    gate = Gate(1)
    makers: list[Callable[..., object]] = [
        functools.partial(family.gated.GateTransport, gate, family.transport()),
        lambda **options: use_options(**options).__enter__(),
    ]
    for make in makers:
        refuses(make, "abandoned", ["keep", True, 5], "must be 'release' or 'drain'")
        refuses(make, "drain_limit", [0, -1, float("inf"), float("nan"), True, "5"], "finite number of seconds > 0")


def refuses(make: Callable[..., object], name: str, values: list[object], told: str) -> None:
    for value in values:
        with pytest.raises((TypeError, ValueError), match=told):
            make(**{name: value})


# ---- a real server that doesn't notice ----


@attrs.frozen
class Outcome:
    overlaps: int
    most: int
    seconds: float
    answered: int


async def forty_requests_every_second_of_them_left(abandoned: Any) -> Outcome:
    gate = Gate(1, outer_deadline="allow")
    answered = 0
    service_time = 0.4
    async with inference_server(service_time=service_time, plain_on_disconnect="finish") as server:
        transport = trio_mlxgate.httpx.GateTransport(gate, abandoned=abandoned)
        async with httpx.AsyncClient(transport=transport, base_url=server.base_url, timeout=60) as client:

            async def ask(number: int) -> None:
                nonlocal answered
                body = {"messages": [{"role": "user", "content": f"question {number}"}]}
                # 0.3 s from the grant, in the middle of the inference: a hold_timeout would raise, this only leaves.
                with trio.CancelScope() as scope:
                    if number % 2:
                        trace = functools.partial(leave_later, scope)
                        await client.post("chat/completions", json=body, extensions={"trace": trace})
                    else:
                        response = await client.post("chat/completions", json=body)
                        assert f"question {number}" in response.text
                        answered += 1

            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(ask, number)
            async with gate.slot():
                took = trio.current_time() - start
        status = await server.status()
        assert status["total_requests"] == 40
    return Outcome(status["overlaps"], status["max_active_jobs"], took, answered)


async def leave_later(scope: trio.CancelScope, event: str, _: object) -> None:  # noqa: ASYNC124
    if event.endswith("send_request_headers.started"):
        scope.deadline = min(scope.deadline, trio.current_time() + 0.3)


@pytest.mark.integration
async def test_with_drain_no_two_inferences_ever_overlap() -> None:
    seen: dict[str, Outcome] = {}

    async def ask(abandoned: str) -> None:
        seen[abandoned] = await forty_requests_every_second_of_them_left(abandoned)

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "release")
            nursery.start_soon(ask, "drain")
    print(seen)
    release, drain = seen["release"], seen["drain"]
    assert release.answered == drain.answered == 20
    assert release.overlaps > 0
    assert release.most > 1
    assert (drain.overlaps, drain.most) == (0, 1)


@pytest.mark.integration
async def test_the_connection_stays_open_after_the_client_was_closed(family: Family) -> None:
    gate = Gate(1, outer_deadline="allow")
    with trio.fail_after(30):
        async with inference_server(service_time=1.0, plain_on_disconnect="stop") as server:
            transport = family.gated.GateTransport(gate, abandoned="drain")
            with trio.move_on_after(0.3):
                async with family.module.AsyncClient(transport=transport, base_url=server.base_url) as client:
                    await client.post("completions", json={"prompt": "one two three"})
            assert gate.statistics().in_flight == 1
            async with gate.slot():
                status = await server.status()
            assert (status["completed"], status["abandoned"]) == (1, 0)


@pytest.mark.integration
async def test_a_server_that_takes_no_connection_is_unreachable_and_not_slow(family: Family) -> None:
    """A machine that is switched off: all of the client's timeouts are equal, and that for connecting counts."""
    gate = Gate(1, outer_deadline="allow")
    cloud = family.module.MockTransport(lambda _: family.module.Response(200, text="from the cloud"))
    with trio.fail_after(30), socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # The queue of connections is filled; what comes then is not answered.
        for _ in range(4):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        await trio.sleep(0.1)
        transport = family.gated.GateTransport(gate, abandoned="drain", fallback=Fallback(cloud))
        async with family.module.AsyncClient(transport=transport, timeout=0.5) as client:
            response = await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            assert response.extensions["mlxgate"]["fallback"] == "unreachable"
            assert gate.statistics().in_flight == 0


@pytest.mark.integration
async def test_the_read_timeout_counts_from_when_the_request_is_out(family: Family) -> None:
    gate = Gate(1, outer_deadline="allow")
    events: list[str] = []

    async def trace(event: str, _: object) -> None:
        events.append(event)
        if event.endswith("connect_tcp.started"):
            await trio.sleep(0.6)  # a slow connection

    with trio.fail_after(30):
        async with inference_server(service_time=0.1) as server:
            transport = family.gated.GateTransport(gate, abandoned="drain")
            timeout = family.module.Timeout(5.0, read=0.4)
            async with family.module.AsyncClient(
                transport=transport, base_url=server.base_url, timeout=timeout
            ) as client:
                answer = await client.post("completions", json={"prompt": "one"}, extensions={"trace": trace})
                assert answer.status_code == 200
                long = {"prompt": "one", "max_tokens": 8}
                async with inference_server(service_time=3.0) as slow:
                    start = trio.current_time()
                    with pytest.raises(family.module.ReadTimeout):
                        await client.post(slow.base_url + "/completions", json=long, extensions={"trace": trace})
                    assert 1.0 <= trio.current_time() - start < 2.5
    assert any(event.endswith("send_request_body.complete") for event in events)


async def test_a_transport_that_must_be_left_by_who_entered_it_is(family: Family, autojump_clock: MockClock) -> None:
    """One that has a nursery open: what is drained in it is given up when the client is closed."""
    gate, seen = make_gate(), []

    class Inner(family.module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        async def __aenter__(self) -> Any:
            self.stack = AsyncExitStack()
            await self.stack.enter_async_context(trio.open_nursery())
            return self

        async def __aexit__(self, *exc: object) -> None:
            seen.append((trio.current_time() - start, gate.statistics().in_flight))
            await self.stack.aclose()

        async def handle_async_request(self, request: Any) -> Any:
            await trio.sleep(5)
            return family.module.Response(200, text="x")

    start = trio.current_time()
    transport = family.gated.GateTransport(gate, Inner(), abandoned="drain")

    async def ask(client: Any) -> None:
        with pytest.raises(family.module.ReadError, match="the client was closed before the answer was there"):
            await client.get("http://server/y", extensions={"mlxgate": {"hold_timeout": 60}})

    async with trio.open_nursery() as nursery:
        async with family.module.AsyncClient(transport=transport, timeout=None) as client:
            with trio.move_on_after(1):
                await client.get("http://server/x")
            assert gate.statistics().in_flight == 1
        assert seen == [(1, 0)]
        transport = family.gated.GateTransport(gate, Inner(), abandoned="drain")
        async with family.module.AsyncClient(transport=transport, timeout=None) as client:
            nursery.start_soon(ask, client)  # noqa: ASYNC111 - to be closed under it
            await trio.sleep(1)
    assert seen == [(1, 0), (2, 0)]


@pytest.mark.parametrize(("method", "status"), [("GET", 101), ("CONNECT", 200)])
async def test_a_connection_for_another_protocol_is_handed_over(family: Family, method: str, status: int) -> None:
    module = family.module
    gate = make_gate()

    class Socket(module.AsyncByteStream):  # type: ignore[misc, name-defined]
        async def __aiter__(self) -> Any:
            if response.status_code == status:
                raise AssertionError("it has no body")
            yield b""

    cloud = module.MockTransport(lambda _: module.Response(200))
    for abandoned, fallback in (("drain", None), ("release", Fallback(cloud)), ("drain", Fallback(cloud))):
        inner = module.MockTransport(lambda _: module.Response(status, stream=Socket()))
        transport = family.gated.GateTransport(gate, inner, abandoned=abandoned, fallback=fallback)
        response = await transport.handle_async_request(module.Request(method, "http://server/socket"))
        assert response.status_code == status
        assert gate.statistics().in_flight == 1
        await response.aclose()
        assert gate.statistics().in_flight == 0


async def test_a_read_timeout_that_is_no_number_is_said_before_anything_is_sent(family: Family) -> None:
    gate = make_gate()
    async with draining(family, gate) as client:
        with pytest.raises(TypeError, match="the client's read timeout must be a number of seconds"):
            await client.get("/x", extensions={"timeout": {"read": "5"}})
    assert not family.script.sent
    assert gate.statistics().in_flight == 0
