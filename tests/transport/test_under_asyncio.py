"""The transport under asyncio: as under trio, and nothing is lost through ``Task.cancel()``, which heeds no shield.

In real time, which is short here; what depends on times is shown under trio, by the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest
import trio

import trio_mlxgate
import trio_mlxgate.anyio
from tests.loops import LOOPS, passes, run_on
from trio_mlxgate import EndpointSettings, Fallback, RequestOptions, Superseded, use_options, use_priority
from trio_mlxgate.anyio import EndpointGates, Gate, current_mlx_gate, gate_status

if TYPE_CHECKING:
    from tests.transport.conftest import Family

EVENTS: Final = {"content-type": "text/event-stream"}
PASSES: Final = 30
"""No request here takes so many passes of the loop."""


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest, family: Family) -> str:
    """Each kind of event loop in turn: both families on asyncio's own, one of them on the others."""
    kind: str = request.param
    if kind != "asyncio" and family.module.__name__ != "httpx":
        pytest.skip("what the families don't share knows nothing of event loops")
    return kind


def make_gate(capacity: int = 1, **options: Any) -> Gate:
    return Gate(capacity, name="macmini", **{"outer_deadline": "allow", **options})


def idle(gate: Gate) -> bool:
    seen = gate.statistics()
    return seen.in_flight == seen.tasks_waiting == 0


async def comes_to_rest(gate: Gate) -> None:
    """All slots come back, and soon."""
    # In a task of its own: one that has open responses would wait for itself.
    await asyncio.wait_for(asyncio.create_task(gate.wait_idle()), 10)


async def holding(gate: Gate, seconds: float) -> asyncio.Task[None]:
    """A task that holds a slot, from now on, for so long."""

    async def hold() -> None:
        async with gate.slot(-1):
            held.set()
            await asyncio.sleep(seconds)

    held = asyncio.Event()
    task = asyncio.create_task(hold())
    await held.wait()
    return task


async def opened(client: Any, path: str = "/x", **options: Any) -> Any:
    return await client.send(client.build_request("GET", path, extensions={"mlxgate": options}), stream=True)


# ---- the slot of a response ----


def test_requests_go_out_one_at_a_time_and_the_person_first(family: Family, loop: str) -> None:
    family.script.answer_after = 0.02

    async def main() -> None:
        gate = make_gate()

        async def ask(path: str, priority: int) -> None:
            with use_priority(priority):
                response = await client.get(path)
            assert response.text == "one two three"
            assert response.extensions["mlxgate"]["waited"] > 0

        async with family.client(gate) as client:
            await holding(gate, 0.05)
            async with asyncio.TaskGroup() as group:
                for path, priority in [("/a", 100), ("/b", 100), ("/c", 0), ("/d", 0)]:
                    group.create_task(ask(path, priority))
            assert idle(gate)

    run_on(loop, main)
    assert [path for path, _ in family.script.sent] == ["/c", "/d", "/a", "/b"]
    starts = [when for _, when in family.script.sent]
    assert all(b - a > 0.015 for a, b in itertools.pairwise(starts))


def test_the_slot_is_kept_until_the_body_is_closed(family: Family, loop: str) -> None:
    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            async with client.stream("GET", "/x") as response:
                async for part in response.aiter_raw():
                    assert part in family.script.parts
                    assert gate.statistics().in_flight == 1
                assert idle(gate)
            async with client.stream("GET", "/never-read"):
                assert gate.statistics().in_flight == 1
            assert idle(gate)
            response = await opened(client)
            assert gate.statistics().in_flight == 1
            await response.aclose()
            await response.aclose()
            assert idle(gate)
            left_open = await opened(client)
        assert idle(gate)
        with pytest.raises(family.module.ReadError, match="closed before it was read to its end"):
            await left_open.aread()

    run_on(loop, main)
    assert len(family.script.closed) == len(family.script.sent) == 4


def test_an_error_gives_the_slot_back(family: Family) -> None:
    async def main() -> None:
        gate = make_gate()
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
            family.script.read_error, family.script.close_error = None, family.module.ReadError("would not go")
            with pytest.raises(family.module.ReadError, match="would not go"):
                await (await opened(client)).aclose()
            assert idle(gate)

    run_on("asyncio", main)


def test_refusals_are_of_both_families_and_of_asyncios_kinds(family: Family, loop: str) -> None:
    async def main() -> None:
        gate = make_gate(max_waiting=1)
        async with family.client(gate) as client:
            holder = await holding(gate, 10)
            waiting = asyncio.create_task(opened(client))
            await passes(5)
            with pytest.raises(family.module.ConnectError) as full:
                await client.get("/x")
            assert isinstance(full.value, trio_mlxgate.QueueFull)
            waiting.cancel()
            await asyncio.wait([waiting])
            with pytest.raises(family.module.PoolTimeout) as late:
                await client.get("/x", extensions={"mlxgate": {"max_wait": 0.02}})
            assert isinstance(late.value, trio_mlxgate.WaitTooLong)
            assert family.script.sent == []
            holder.cancel()
            await asyncio.wait([holder])
            for phase in "answer_after", "part_after":
                setattr(family.script, phase, 10.0)
                with pytest.raises(family.gated.HoldTimeout) as ended:
                    await client.get("/x", extensions={"mlxgate": {"hold_timeout": 0.02}})
                for kind in (TimeoutError, trio.TooSlowError, family.module.ReadTimeout):
                    assert isinstance(ended.value, kind)
                setattr(family.script, phase, 0.0)
            assert idle(gate)
            await gate.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await client.get("/x")

    run_on(loop, main)


def test_nobody_reading_is_nobody_interrupted(family: Family) -> None:
    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            response = await opened(client, hold_timeout=0.02)
            await asyncio.sleep(0.05)
            assert gate.statistics().in_flight == 1
            with pytest.raises(family.gated.HoldTimeout):
                await response.aread()
            assert idle(gate)

    run_on("asyncio", main)


def test_latest_wins(family: Family) -> None:
    family.script.answer_after = 0.02

    async def main() -> list[str]:
        gate, ended = make_gate(), list[str]()

        async def ask(path: str) -> None:
            try:
                with use_options(supersede="search"):
                    await client.get(path)
                ended.append(path)
            except Superseded:
                ended.append(f"{path} superseded")

        async with family.client(gate) as client, asyncio.TaskGroup() as group:
            for path in "/a", "/b", "/c":
                group.create_task(ask(path))
                await passes(3)
        assert idle(gate)
        return ended

    assert run_on("asyncio", main) == ["/b superseded", "/a", "/c"]


def test_a_task_with_a_slot_passes_and_waiting_for_oneself_is_refused(family: Family, loop: str) -> None:
    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            async with gate.slot():
                await client.get("/one")
                first = await opened(client, "/first")
                with pytest.raises(RuntimeError, match=r"GET http://server/first is still open"):
                    await client.get("/second")
            assert gate.statistics().in_flight == 1
            with pytest.raises(RuntimeError, match="wait for itself"):
                await client.get("/second")

            # Read by another task it is that one's.
            async def read() -> None:
                async for _ in first.aiter_raw():
                    await asyncio.sleep(0.01)

            reading = asyncio.create_task(read())
            await passes(5)
            await client.get("/third")
            await reading
            assert idle(gate)

    run_on(loop, main)


def test_each_loop_has_its_own_gate_if_none_is_named(family: Family) -> None:
    client = family.client()
    gates: list[object] = []

    async def main() -> None:
        async with client.stream("GET", "/x"):
            assert gate_status() == {"inflight": 1, "waiters": 0}
        gates.append(current_mlx_gate())

    run_on("asyncio", main)
    run_on("asyncio", main)
    assert gates[0] is not gates[1]


def test_redirects_go_through_the_gate_of_where_they_lead(family: Family) -> None:
    family.script.location = "http://other/there"

    async def main() -> None:
        gates = EndpointGates({"http://other": EndpointSettings(request=RequestOptions(hold_timeout=5))})
        async with family.client(gates) as client:
            here, there = gates.gate_for("http://server/x"), gates.gate_for("http://other/x")
            family.script.on_send = lambda path: seen.append(
                (path, here.statistics().in_flight, there.statistics().in_flight)
            )
            response = await client.get("/moved", follow_redirects=True)
            assert response.url.host == "other"
            assert (here.statistics().admitted, there.statistics().admitted) == (1, 1)
            assert idle(here)
            assert idle(there)

    seen: list[tuple[str, int, int]] = []
    run_on("asyncio", main)
    assert seen == [("/moved", 1, 0), ("/there", 0, 1)]


# ---- cancelled at every pass ----


class Ways:
    """How a task is made to give up."""

    @staticmethod
    async def once(task: asyncio.Task[Any], step: int) -> None:
        """``Task.cancel()``."""
        await passes(step)
        task.cancel()

    @staticmethod
    async def twice(task: asyncio.Task[Any], step: int) -> None:
        """The second one comes while the first is being heeded."""
        await passes(step // 6)
        task.cancel()
        await passes(step % 6)
        task.cancel()

    @staticmethod
    async def again_and_again(task: asyncio.Task[Any], step: int) -> None:
        await passes(step)
        while not task.done():
            task.cancel()
            await passes(1)


WAYS: Final = (Ways.once, Ways.twice, Ways.again_and_again)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("abandoned", ["release", "drain"])
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("kind", ["plain", "event stream"])
def test_no_slot_is_lost_wherever_the_task_is_cancelled(
    family: Family, loop: str, way: Any, abandoned: Any, fallback: bool, owned: bool, kind: str
) -> None:
    if kind == "event stream":
        family.script.headers = EVENTS
    inner = family.transport()

    async def main() -> None:
        gate = make_gate()
        options: dict[str, Any] = {"fallback": Fallback(inner)} if fallback else {}
        client = family.client(gate, abandoned=abandoned, **options)

        async def ask() -> None:
            if owned:
                async with gate.slot(), client.stream("GET", "/x") as response:
                    await response.aread()
            else:
                async with client.stream("GET", "/x") as response:
                    async for _ in response.aiter_raw():
                        await asyncio.sleep(0)

        async with client:
            for busy in (False, True):
                for step in range(PASSES):
                    release = None
                    if busy:
                        release = await gate.acquire_detached()
                    task = asyncio.create_task(ask())
                    if release is not None:
                        # Granted in the middle.
                        asyncio.get_running_loop().call_soon(release.release)
                    await way(task, step)
                    await asyncio.wait([task])
                    if not task.cancelled():
                        task.result()
                    await comes_to_rest(gate)
                    # Nobody is cancelled who comes now.
                    following = asyncio.create_task(client.get("/next"))
                    assert (await following).text == "one two three"
                    await comes_to_rest(gate)
        assert len(family.script.closed) == len(family.script.sent) - len(family.script.cut)

    run_on(loop, main)


@pytest.mark.parametrize("way", ["move_on_after", "timeout", "wait_for", "task group"])
def test_deadlines_of_every_kind_lose_none(family: Family, loop: str, way: str) -> None:
    family.script.answer_after = family.script.part_after = family.script.close_after = 0.001
    held: list[int] = []

    async def main() -> None:
        gate = make_gate(2)
        family.script.on_send = lambda path: held.append(gate.statistics().in_flight)
        async with family.client(gate) as client:

            async def impatient(number: int) -> None:
                for turn in range(12):
                    patience = (number * 7 + turn * 3) % 20 / 1000
                    if way == "move_on_after":
                        with anyio.move_on_after(patience):
                            await client.get("/x")
                    elif way == "timeout":
                        try:
                            async with asyncio.timeout(patience):
                                await client.get("/x")
                        except TimeoutError:
                            pass
                    elif way == "wait_for":
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(client.get("/x"), patience)
                    else:
                        async with anyio.create_task_group() as group:
                            group.start_soon(client.get, "/x")
                            await asyncio.sleep(patience)
                            group.cancel_scope.cancel()
                    task = asyncio.current_task()
                    assert task is not None
                    assert task.cancelling() == 0

            async with asyncio.TaskGroup() as group:
                for number in range(10):
                    group.create_task(impatient(number))
            await comes_to_rest(gate)
            assert gate.statistics().admitted > 0
        assert len(family.script.closed) == len(family.script.sent) - len(family.script.cut)
        assert set(held) == {1, 2}

    run_on(loop, main)


@pytest.mark.parametrize("scope", [False, True])
def test_closing_is_not_cut_short_and_what_cancelled_it_hears_of_it(family: Family, loop: str, scope: bool) -> None:
    family.script.close_after = 0.1

    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            response = await opened(client)
            start = asyncio.get_running_loop().time()
            if scope:
                with anyio.move_on_after(0.02) as limit:
                    await response.aclose()
                    await asyncio.sleep(1)
                assert limit.cancelled_caught
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await response.aclose()
            assert asyncio.get_running_loop().time() - start >= 0.09
            assert idle(gate)
        assert len(family.script.closed) == 1

    run_on(loop, main)


def test_who_fails_to_close_and_is_cancelled_is_cancelled(family: Family) -> None:
    family.script.close_after, family.script.close_error = 0.05, family.module.ReadError("would not go")

    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            response = await opened(client)
            task = asyncio.create_task(response.aclose())
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert idle(gate)

    run_on("asyncio", main)


def test_closing_has_an_end(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    family.script.close_after = 100.0

    async def main() -> None:
        gate = make_gate()
        async with family.client(gate, close_timeout=0.05) as client:
            response = await opened(client)
            task = asyncio.create_task(response.aclose())
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task], timeout=5)
            assert task.cancelled()
            assert idle(gate)

    run_on("asyncio", main)
    assert "a response was not closed within 0.0" in caplog.text


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_closing_the_client_closes_all_wherever_it_is_cancelled(family: Family, loop: str, way: Any) -> None:
    async def main() -> None:
        for step in range(20):
            gate = make_gate(3)
            client = family.client(gate)
            responses = [await opened(client) for _ in range(3)]
            task = asyncio.create_task(client.aclose())
            await passes(1)  # one that was cancelled before it began has closed nothing
            await way(task, step)
            await asyncio.wait([task])
            await comes_to_rest(gate)
            assert len(family.script.closed) == len(responses) * (step + 1)

    run_on(loop, main)


def test_another_task_may_close_while_one_reads(family: Family) -> None:
    family.script.part_after = 0.2

    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            response = await opened(client)
            reading = asyncio.create_task(response.aread())
            await asyncio.sleep(0.02)
            await response.aclose()
            assert idle(gate)
            reading.cancel()
            await asyncio.wait([reading])
            assert idle(gate)

    run_on("asyncio", main)


# ---- requests whose callers leave ----


def test_a_drained_request_keeps_its_slot_until_its_answer_is_there(family: Family, loop: str) -> None:
    family.script.answer_after = 0.1

    async def main() -> None:
        gate = make_gate()
        async with family.client(gate, abandoned="drain") as client:
            start = asyncio.get_running_loop().time()
            task = asyncio.create_task(client.get("/left"))
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.wait([task])
            assert asyncio.get_running_loop().time() - start < 0.09
            assert gate.statistics().in_flight == 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client.get("/never-sent")
            assert (await client.get("/next")).text == "one two three"
        assert [path for path, _ in family.script.closed] == ["/left", "/next"]
        assert family.script.cut == []

    run_on(loop, main)


def test_a_drain_has_an_end_and_the_clients_timeout_is_one_to_leave_by(family: Family) -> None:
    family.script.answer_after = 10.0

    async def main() -> None:
        gate = make_gate()
        async with family.client(gate, abandoned="drain", drain_limit=0.05) as client:
            with pytest.raises(family.module.ReadTimeout):
                await client.get("/x", timeout=0.02)
            assert gate.statistics().in_flight == 1
            await comes_to_rest(gate)
            with pytest.raises(family.gated.HoldTimeout):
                await client.get("/x", extensions={"mlxgate": {"hold_timeout": 0.02}})
            await comes_to_rest(gate)

    run_on("asyncio", main)
    assert [path for path, _ in family.script.cut] == ["/x", "/x"]


def test_closing_the_client_waits_for_nobody_who_is_drained(family: Family) -> None:
    family.script.answer_after = 0.1

    async def main() -> None:
        gate = make_gate()
        client = family.client(gate, abandoned="drain")
        with anyio.move_on_after(0.02):
            await client.get("/left")
        await client.aclose()
        assert gate.statistics().in_flight == 1
        assert family.script.transport_closed == []
        await comes_to_rest(gate)
        await passes(3)
        assert len(family.script.transport_closed) == 1

    run_on("asyncio", main)
    assert [path for path, _ in family.script.closed] == ["/left"]


@pytest.mark.parametrize("abandoned", ["release", "drain"])
def test_the_end_of_the_loop_ends_what_runs(family: Family, loop: str, abandoned: Any) -> None:
    """Of a program that returns, or is stopped, in the middle of requests; the next one starts clean."""
    family.script.answer_after = 10.0
    gate = make_gate()
    kept: list[Any] = []

    async def main() -> None:
        client = family.client(gate, abandoned=abandoned)
        kept.extend([asyncio.create_task(client.get("/x")), asyncio.create_task(client.get("/y"))])
        await asyncio.sleep(0.02)
        kept[0].cancel()
        await passes(3)

    async def next_one() -> None:
        family.script.answer_after = 0.0
        async with family.client(gate) as client:
            assert (await client.get("/next")).text == "one two three"
            assert gate.statistics().admitted == 1

    run_on(loop, main)
    assert idle(gate)
    run_on(loop, next_one)
    assert kept[0].cancelled()
    assert kept[1].cancelled()


# ---- the other server ----


def test_the_fallback_is_asked_and_holds_no_slot(family: Family, loop: str) -> None:
    other = type(family)(family.module, family.gated)
    other.script.parts = (b"from the other",)

    async def main() -> None:
        gate = make_gate()
        other.script.on_send = lambda path: held.append(gate.statistics().in_flight)
        fallback = Fallback(other.transport(), on=["unreachable", "wait_too_long", "hold_timeout"])
        async with family.client(gate, fallback=fallback) as client:
            family.script.send_error = family.module.ConnectError("gone")
            assert (await client.get("/x")).text == "from the other"
            family.script.send_error = None
            family.script.part_after = 10.0
            response = await client.get("/x", extensions={"mlxgate": {"hold_timeout": 0.02}})
            assert response.extensions["mlxgate"]["fallback"] == "hold_timeout"
            holder = await holding(gate, 10)
            response = await client.get("/x", extensions={"mlxgate": {"max_wait": 0.02}})
            assert response.extensions["mlxgate"]["fallback"] == "wait_too_long"
            holder.cancel()
            await asyncio.wait([holder])
            assert idle(gate)

    held: list[int] = []
    run_on(loop, main)
    assert held == [0, 0, 1]


# ---- responses that nobody has any more ----


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_dropped_response_is_closed_in_its_loop(
    family: Family, loop: str, read: bool, in_thread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            box = [await opened(client)]
            if read:
                box.append(box[0].aiter_raw())
                await anext(box[1])
            assert gate.statistics().in_flight == 1
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                for _ in range(2):
                    if in_thread:
                        thread = threading.Thread(target=drop, args=[box])
                        thread.start()
                        thread.join()
                    else:
                        drop(box)
                    await passes(5)
                # Who asks next isn't told to wait for itself.
                assert (await client.get("/next")).text == "one two three"
            # httpx2's generators close the response themselves when the loop closes them.
            ours = [each for each in told if "was dropped" in str(each.message)]
            assert len(ours) == (family.module.__name__ == "httpx" or not read)
            assert idle(gate)
        assert [path for path, _ in family.script.closed] == ["/x", "/next"]

    gc.collect()
    with caplog.at_level(logging.WARNING):
        run_on(loop, main)
    assert not [record for record in caplog.records if record.name == "asyncio"]


def drop(box: list[Any]) -> None:
    box.clear()
    gc.collect()


def test_who_asks_next_waits_until_a_dropped_one_is_closed(family: Family) -> None:
    family.script.close_after = 0.05

    async def main() -> None:
        gate = make_gate()
        async with family.client(gate) as client:
            box = [await opened(client)]
            with pytest.warns(ResourceWarning, match="GET http://server/x was dropped"):
                drop(box)
            response = await client.get("/next")
            assert response.extensions["mlxgate"]["waited"] >= 0.04
            assert idle(gate)

    run_on("asyncio", main)


def test_a_response_that_outlives_its_loop_has_nothing_to_close(family: Family) -> None:
    gate, box = make_gate(), list[Any]()

    async def main() -> None:
        box.append(await opened(family.client(gate)))

    run_on("asyncio", main)
    with pytest.warns(ResourceWarning, match="was dropped"):
        drop(box)
    assert family.script.closed == []

    async def next_one() -> None:
        async with family.client(gate) as client:
            await client.get("/next")

    run_on("asyncio", next_one)


# ---- misuse ----


def test_a_gate_of_trios_says_what_is_wrong(family: Family) -> None:
    async def main() -> None:
        async with family.client(trio_mlxgate.Gate(1)) as client:
            with pytest.raises(RuntimeError, match=r"inside trio\.run"):
                await client.get("/x")

    run_on("asyncio", main)
