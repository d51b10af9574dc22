"""A request has its slot from before it is sent until its body is closed, on every path."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_mlxgate
from tests.gate.helpers import in_a_task_of_its_own
from trio_mlxgate import Gate, Priority, Superseded, use_options

if TYPE_CHECKING:
    from tests.transport.conftest import Family


def idle(gate: Gate) -> bool:
    seen = gate.statistics()
    return seen.in_flight == seen.tasks_waiting == 0


async def test_requests_go_out_one_at_a_time_and_the_person_first(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 1.0
    gate = Gate(1)
    start = trio.current_time()
    waited: dict[str, float] = {}

    async def ask(path: str, priority: int) -> None:
        response = await client.get(path, extensions={"mlxgate": {"priority": priority}})
        assert response.text == "one two three"
        assert response.extensions["http_version"] == b"HTTP/1.1"
        waited[path] = response.extensions["mlxgate"]["waited"]

    async with family.client(gate) as client, trio.open_nursery() as nursery:
        for path, priority in [("/a", 100), ("/b", 100), ("/c", 0), ("/d", 0)]:
            nursery.start_soon(ask, path, priority)
            await wait_all_tasks_blocked()
    assert [(path, time - start) for path, time in family.script.sent] == [("/a", 0), ("/c", 1), ("/d", 2), ("/b", 3)]
    assert waited == {"/a": 0, "/c": 1, "/d": 2, "/b": 3}
    assert idle(gate)


async def test_the_slot_is_kept_until_the_body_is_closed(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        async with client.stream("GET", "/x") as response:
            assert gate.statistics().in_flight == 1
            async for part in response.aiter_raw():
                assert part in family.script.parts
                assert gate.statistics().in_flight == 1
            assert idle(gate)
        assert len(family.script.closed) == 1
        async with client.stream("GET", "/never-read"):
            assert gate.statistics().in_flight == 1
        assert idle(gate)
        async with client.stream("GET", "/read-to-its-end") as response:
            await response.aread()
            assert idle(gate)
        response = await client.send(client.build_request("GET", "/closed"), stream=True)
        assert gate.statistics().in_flight == 1
        await response.aclose()
        await response.aclose()
        assert idle(gate)


async def test_an_error_gives_the_slot_back(family: Family) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        family.script.send_error = family.module.ConnectError("no server")
        with pytest.raises(family.module.ConnectError, match="no server"):
            await client.get("/x")
        assert idle(gate)
        family.script.send_error = None
        family.script.read_error = family.module.ReadError("broke")
        with pytest.raises(family.module.ReadError, match="broke"):
            await client.get("/x")
        assert idle(gate)
        assert len(family.script.closed) == 1


@pytest.mark.parametrize("when", [0.5, 1.0, 1.5, 2.5, 3.5])
async def test_cancelled_anywhere_it_closes_first_and_then_gives_the_slot_back(
    family: Family, autojump_clock: MockClock, when: float
) -> None:
    gate = Gate(1, outer_deadline="allow")
    family.script.answer_after = family.script.part_after = 1.0
    family.script.close_after = 0.25
    held_at_close = []
    family.script.on_close = lambda: held_at_close.append(gate.statistics().in_flight)
    async with family.client(gate) as client:
        with trio.move_on_after(when) as scope:
            await client.get("/x")
        assert scope.cancelled_caught
        assert idle(gate)
        assert held_at_close == ([1] if when > 1.0 else [])


async def test_closing_cannot_be_cancelled_but_has_an_end(
    family: Family, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(1)
    family.script.close_after = 100.0
    async with family.client(gate, close_timeout=2.0) as client:
        start = trio.current_time()
        response = await client.send(client.build_request("GET", "/x"), stream=True)
        with trio.CancelScope() as scope:
            scope.cancel()
            await response.aclose()
        assert trio.current_time() - start == 2.0
        assert idle(gate)
        assert "not closed within 2 s" in caplog.text


async def test_closing_the_client_closes_what_was_left_open(family: Family) -> None:
    gate = Gate(2)
    async with family.client(gate) as client:
        responses = [await client.send(client.build_request("GET", f"/{n}"), stream=True) for n in range(2)]
        assert gate.statistics().in_flight == 2
    assert idle(gate)
    assert len(family.script.closed) == len(responses)


async def test_another_task_may_close_while_one_reads(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    family.script.part_after = 5.0
    async with family.client(gate) as client, trio.open_nursery() as nursery:
        response = await client.send(client.build_request("GET", "/x"), stream=True)

        async def read() -> None:
            async for _ in response.aiter_raw():
                raise AssertionError("nothing was there to be read")

        nursery.start_soon(read)
        await trio.sleep(1)
        await response.aclose()
        assert idle(gate)
        nursery.cancel_scope.cancel()
    assert idle(gate)


async def test_redirects_and_bodiless_answers_need_one_slot(family: Family) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        response = await client.get("/moved", follow_redirects=True)
        assert [path for path, _ in family.script.sent] == ["/moved", "/there"]
        assert response.status_code == 200
        await client.head("/x")
        assert idle(gate)


async def test_a_response_that_is_here_already_holds_no_slot(family: Family) -> None:
    """As those of a MockTransport: nobody reads or closes its stream."""

    def answer(request: Any) -> Any:
        assert gate.statistics().in_flight == 1
        return family.module.Response(200, text="yes", extensions={"http_version": b"HTTP/1.1"})

    gate = Gate(1)
    transport = family.gated.GateTransport(gate, family.module.MockTransport(answer))
    async with family.module.AsyncClient(transport=transport, base_url="http://server") as client:
        for _ in range(3):
            response = await client.get("/x")
            assert response.text == "yes"
            assert response.extensions["mlxgate"] == {"waited": 0}
            assert response.extensions["http_version"] == b"HTTP/1.1"
            assert idle(gate)
        async with gate.slot():
            assert (await client.get("/x")).text == "yes"
            assert (await client.get("/x")).text == "yes"
        async with client.stream("GET", "/x") as response:
            assert await response.aread() == b"yes"
    assert idle(gate)


async def test_latest_wins_and_the_older_gets_what_no_client_retries(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    family.script.answer_after = 1.0
    ended: list[str] = []

    async def ask(path: str, **options: object) -> None:
        with use_options(supersede="search"):
            try:
                await client.get(path, extensions={"mlxgate": options})
            except (family.module.HTTPError, family.module.InvalidURL) as error:
                ended.append(f"{path} may be tried again: {error!r}")
            except Superseded:
                ended.append(f"{path} superseded")
            else:
                ended.append(path)

    async with family.client(gate) as client, trio.open_nursery() as nursery:
        for path, options in (("/a", {}), ("/b", {}), ("/c", {}), ("/d", {"supersede": "other"})):
            nursery.start_soon(functools.partial(ask, path, **options))
            await wait_all_tasks_blocked()
    assert ended == ["/b superseded", "/a", "/c", "/d"]
    assert [path for path, _ in family.script.sent] == ["/a", "/c", "/d"]
    assert idle(gate)


async def test_a_full_queue_of_the_gate_is_a_connect_error_that_says_when(
    family: Family, autojump_clock: MockClock
) -> None:
    gate = Gate(1, max_waiting=0)
    async with family.client(gate) as client:
        async with gate.slot():
            await trio.sleep(3)

        async def refused() -> None:
            with pytest.raises(family.gated.QueueFull, match="try again in 3 s") as full:
                await client.get("/y")
            assert isinstance(full.value, family.module.ConnectError)
            assert full.value.retry_after == 3

        async with client.stream("GET", "/x"):
            await in_a_task_of_its_own(refused)
    assert len(family.script.sent) == 1


async def test_the_timeouts_of_the_client_do_not_run_in_the_queue(family: Family, autojump_clock: MockClock) -> None:
    # The script would know nothing of timeouts; tests/transport/test_openai.py shows this on real sockets.
    gate = Gate(1)
    async with family.client(gate) as client, trio.open_nursery() as nursery:
        await nursery.start(hold, gate, 60.0)
        response = await client.get("/x")
        assert response.extensions["mlxgate"] == {"waited": 60.0}


async def hold(gate: Gate, seconds: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    async with gate.slot(Priority.FOREGROUND):
        task_status.started()
        await trio.sleep(seconds)


async def test_refusals_are_of_both_families(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    async with family.client(gate) as client, trio.open_nursery() as nursery:
        await nursery.start(hold, gate, 60.0)
        start = trio.current_time()
        with pytest.raises(family.module.PoolTimeout) as refused:
            await client.get("/x", extensions={"mlxgate": {"max_wait": 2.0}})
        assert trio.current_time() - start == 2.0
        assert isinstance(refused.value, trio_mlxgate.WaitTooLong)
        assert (refused.value.status, refused.value.code) == (503, "wait_too_long")
        assert refused.value.request.url.path == "/x"  # type: ignore[attr-defined]
        assert family.script.sent == []
        nursery.cancel_scope.cancel()


async def test_a_full_queue_is_a_connect_error(family: Family) -> None:
    class FullGate(Gate):
        async def acquire_detached(self, *args: object, **kwargs: object) -> trio_mlxgate.DetachedSlot:
            raise trio_mlxgate.QueueFull("10 are waiting", retry_after=7.5)

    async with family.client(FullGate(1)) as client:
        with pytest.raises(family.module.ConnectError) as refused:
            await client.get("/x")
    assert isinstance(refused.value, trio_mlxgate.QueueFull)
    assert (refused.value.status, refused.value.retry_after) == (429, 7.5)


async def test_the_hold_budget_starts_at_the_grant_and_ends_sending_and_reading(
    family: Family, autojump_clock: MockClock
) -> None:
    gate = Gate(1)
    family.script.part_after = 1.0
    async with family.client(gate) as client, trio.open_nursery() as nursery:
        await nursery.start(hold, gate, 60.0)
        with trio_mlxgate.use_options(hold_timeout=2.5):
            start = trio.current_time()
            with pytest.raises(family.module.ReadTimeout) as ended:
                await client.get("/reading")
            assert isinstance(ended.value, trio.TooSlowError)
            assert trio.current_time() - start == 62.5
            assert idle(gate)
            family.script.answer_after = 10.0
            start = trio.current_time()
            with pytest.raises(family.gated.HoldTimeout):
                await client.get("/sending")
            assert trio.current_time() - start == 2.5
        assert idle(gate)


async def test_nobody_reading_is_nobody_interrupted_but_reported(
    family: Family, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    gate = Gate(1)
    async with family.client(gate) as client:
        request = client.build_request("GET", "/x", extensions={"mlxgate": {"hold_timeout": 5.0}})
        response = await client.send(request, stream=True)
        await trio.sleep(5.9)
        assert "overdue" not in caplog.text
        assert gate.statistics().in_flight == 1
        await trio.sleep(0.2)
        assert caplog.text.count("overdue") == 1
        assert gate.statistics().in_flight == 1
        with pytest.raises(family.gated.HoldTimeout):
            await response.aread()
        assert idle(gate)
        await trio.sleep(100)
        assert caplog.text.count("overdue") == 1


async def test_a_task_with_a_slot_passes_with_one_open_response_at_a_time(
    family: Family, autojump_clock: MockClock
) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        async with gate.slot():
            assert (await client.get("/one")).extensions["mlxgate"] == {"waited": 0.0}
            first = await client.send(client.build_request("GET", "/first?key=secret"), stream=True)
            with pytest.raises(RuntimeError, match=r"GET http://server/first is still open"):
                await client.get("/second")
            await first.aclose()
            await client.get("/third")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.get, "/child")
                await wait_all_tasks_blocked()
                assert gate.statistics().tasks_waiting == 1
                nursery.cancel_scope.cancel()
        assert idle(gate)
        assert [path for path, _ in family.script.sent] == ["/one", "/first", "/third"]


async def test_a_response_that_outlives_the_slot_it_passed_with_keeps_it(family: Family) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        async with gate.slot():
            response = await client.send(client.build_request("GET", "/x"), stream=True)
        assert gate.statistics().in_flight == 1
        with pytest.raises(RuntimeError, match="wait for itself"):
            await client.get("/y")
        await response.aread()
        assert idle(gate)
        await client.get("/y")


async def test_the_budget_of_a_slot_holds_for_what_passes_with_it(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    family.script.answer_after = 10.0
    async with family.client(gate) as client:
        async with gate.slot():
            with pytest.raises(family.gated.HoldTimeout):
                await client.get("/x", extensions={"mlxgate": {"hold_timeout": 3.0}})
        start = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            async with gate.slot(hold_timeout=2.0):
                await client.get("/x")
        assert trio.current_time() - start == 2.0
        assert idle(gate)


async def test_waiting_for_ones_own_open_responses_is_refused(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(2)
    async with family.client(gate) as client:
        responses = [await client.send(client.build_request("GET", f"/{n}"), stream=True) for n in range(2)]
        with pytest.raises(RuntimeError, match="held by open responses of this task"):
            await client.get("/x")

        # Read by another task, it is that task's to give back: waiting for it is no hang.
        async def read(response: object) -> None:
            async for _ in response.aiter_raw():  # type: ignore[attr-defined]
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, responses[0])
            await wait_all_tasks_blocked()
            await client.get("/y")
        await responses[1].aclose()
        assert idle(gate)


def test_a_client_made_at_import_time_uses_the_gate_of_each_run(family: Family) -> None:
    client = family.client()
    gates = []

    async def main() -> None:
        async with client.stream("GET", "/x"):
            assert trio_mlxgate.gate_status() == {"inflight": 1, "waiters": 0}
        gates.append(trio_mlxgate.current_mlx_gate())

    trio.run(main)
    trio.run(main)
    assert gates[0] is not gates[1]


async def test_bad_arguments_are_told_before_anything_is_sent(family: Family) -> None:
    gate = Gate(1)
    for bad in [{"prio": 1}, {"priority": "high"}, {"max_wait": -1}, 5, {"hold_timeout": True}]:
        async with family.client(gate) as client:
            with pytest.raises((TypeError, ValueError)):
                await client.get("/x", extensions={"mlxgate": bad})
    assert family.script.sent == []
    with pytest.raises(TypeError, match="first argument is a Gate"):
        family.gated.GateTransport(family.transport())
    with pytest.raises(TypeError, match="inner transport"):
        family.gated.GateTransport(gate, family.module.HTTPTransport())
    for timeout in [float("inf"), -1, "5"]:
        with pytest.raises((TypeError, ValueError), match="close_timeout"):
            family.gated.GateTransport(gate, family.transport(), close_timeout=timeout)
    with pytest.raises(TypeError):
        family.gated.GateTransport(gate, family.transport(), priorities={0: "best"})
    assert idle(gate)


def test_under_asyncio_and_in_a_client_of_the_other_family_it_says_what_is_wrong(family: Family) -> None:
    gate = Gate(1)

    async def under_asyncio() -> None:
        async with family.client(gate) as client:
            await client.get("/x")

    with pytest.raises(RuntimeError, match=r"inside trio\.run"):
        asyncio.run(under_asyncio())

    async def in_the_other_client() -> None:
        other = type("Request", (), {})
        other.__module__ = "other._models"
        with pytest.raises(TypeError, match=f"is for clients of {family.module.__name__}; a client of other"):
            await family.gated.GateTransport(gate, family.transport()).handle_async_request(other())

    trio.run(in_the_other_client)
    assert idle(gate)
