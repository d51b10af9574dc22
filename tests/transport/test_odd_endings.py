"""Responses that end in odd ways: closed by others, read by two, failing to close."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_mlxgate import Gate

if TYPE_CHECKING:
    from tests.transport.conftest import Family


def idle(gate: Gate) -> bool:
    seen = gate.statistics()
    return seen.in_flight == seen.tasks_waiting == 0


async def open_response(client: Any, path: str = "/x", **options: float) -> Any:
    request = client.build_request("GET", path, extensions={"mlxgate": options})
    return await client.send(request, stream=True)


async def test_a_body_that_another_task_closes_does_not_look_whole(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        stream = (await open_response(client)).stream
        async with aclosing(aiter(stream)) as parts:
            assert await anext(parts) == b"one "
            await client.aclose()
            with pytest.raises(family.module.ReadError, match="before it was read to its end"):
                await anext(parts)
    assert idle(gate)


async def test_a_second_reader_is_refused_and_takes_no_slot_away(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    family.script.part_after = 1.0
    async with family.client(gate) as client, trio.open_nursery() as nursery:
        stream = gated(await open_response(client))
        nursery.start_soon(anext, stream)
        await wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await anext(stream)
        assert gate.statistics().in_flight == 1
        assert family.script.closed == []
        await trio.sleep(2)
        assert gate.statistics().in_flight == 1
        await stream.aclose()
    assert idle(gate)


def gated(response: Any) -> Any:
    """The gate's stream, inside the one with which the client measures the time."""
    return response.stream._stream


async def test_a_generator_that_fails_to_close_does_not_keep_the_connection_open(family: Family) -> None:
    gate = Gate(1)
    family.script.iterator_close_error = ValueError("no end")
    async with family.client(gate) as client:
        stream = gated(await open_response(client))
        await anext(stream)
        with pytest.raises(ValueError, match="no end"):
            await stream.aclose()
        assert len(family.script.closed) == 1
        assert idle(gate)


async def test_no_closed_response_is_kept_in_memory(family: Family) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        for _ in range(3):
            await client.get("/x")
        assert not client._transport._open


async def test_one_that_fails_to_close_stops_no_other(family: Family) -> None:
    gate = Gate(3)
    client = family.client(gate)
    kept = [await open_response(client, f"/{number}") for number in range(3)]
    family.script.close_error = family.module.ReadError("broke")
    with pytest.raises(family.module.ReadError, match="broke"):
        await client.aclose()
    assert len(family.script.closed) == len(kept)
    assert idle(gate)


async def test_responses_that_hang_are_closed_all_at_once(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(3)
    family.script.close_after = 100.0
    start = trio.current_time()
    async with family.client(gate) as client:
        kept = [await open_response(client, f"/{number}") for number in range(3)]
    assert trio.current_time() - start == 5.0
    assert idle(gate)
    del kept


async def test_closing_has_what_is_left_of_the_budget_and_a_second_at_least(
    family: Family, autojump_clock: MockClock
) -> None:
    gate = Gate(1)
    family.script.close_after = 100.0
    async with family.client(gate) as client:
        for hold_timeout, took in [(3.0, 3.0), (0.5, 1.0)]:
            response = await open_response(client, hold_timeout=hold_timeout)
            start = trio.current_time()
            await response.aclose()
            assert trio.current_time() - start == took
            assert idle(gate)


async def test_each_response_read_by_a_task_started_for_it(family: Family, autojump_clock: MockClock) -> None:
    gate = Gate(1)
    family.script.part_after = 1.0
    for _ in range(20):
        async with family.client(gate) as client, trio.open_nursery() as nursery:
            for number in range(3):
                response = await open_response(client, f"/{number}")
                nursery.start_soon(response.aread)
        assert idle(gate)


async def test_a_slot_of_ones_own_behind_ones_own_open_responses_is_refused(family: Family) -> None:
    gate = Gate(1)
    async with family.client(gate) as client:
        response = await open_response(client)
        with pytest.raises(RuntimeError, match="held by open responses of this task"):
            async with gate.slot():
                raise AssertionError("it would have waited for itself")
        await response.aclose()
        async with gate.slot():
            pass
    assert idle(gate)


async def test_a_refusal_at_once_is_a_checkpoint(family: Family) -> None:
    gate = Gate(0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with family.client(gate) as client, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(50):
            with pytest.raises(family.module.PoolTimeout):
                await client.get("/x", extensions={"mlxgate": {"max_wait": 0}})
        assert turns >= 40
        nursery.cancel_scope.cancel()


async def test_a_request_whose_client_is_closed_while_it_waits_is_not_sent(family: Family) -> None:
    gate = Gate(0)
    client = family.client(gate)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(RuntimeError, match="GET http://server/x was not sent"):
                await client.get("/x")

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await client.aclose()
        gate.capacity = 1
    assert family.script.sent == []
    assert idle(gate)
