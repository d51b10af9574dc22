"""A client of several servers: the gate is chosen by each request's URL, and so are the options that nobody named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_mlxgate import (
    EndpointGates,
    EndpointSettings,
    Gate,
    Priority,
    RequestOptions,
    Superseded,
    UnknownEndpoint,
    WaitTooLong,
    use_options,
)
from trio_mlxgate.testing import inference_server

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.transport.conftest import Family
    from trio_mlxgate.testing import InferenceServer

ONE = "http://one:8080"
TWO = "http://two:8080"


async def test_each_endpoint_has_a_queue_of_its_own(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 1.0
    gates = EndpointGates({TWO: EndpointSettings(capacity=2)})
    start = trio.current_time()

    async with family.client(gates) as client, trio.open_nursery() as nursery:
        for url in [f"{ONE}/a", "http://One.:8080/b", f"{TWO}/c", "http://TWO:8080/d", f"{TWO}/e?x=1"]:
            nursery.start_soon(client.get, url)
            await wait_all_tasks_blocked()
    sent = {path: time - start for path, time in family.script.sent}
    assert sent == {"/a": 0, "/b": 1, "/c": 0, "/d": 0, "/e": 1}
    assert {url: each.admitted for url, each in gates.statistics().items()} == {TWO: 3, ONE: 2}
    assert all(each.in_flight == each.tasks_waiting == 0 for each in gates.statistics().values())


async def test_all_spellings_of_the_loopback_stand_in_one_queue(family: Family, autojump_clock: MockClock) -> None:
    family.script.answer_after = 1.0
    gates = EndpointGates()
    async with family.client(gates) as client, trio.open_nursery() as nursery:
        for url in [
            "http://127.0.0.1:8080",
            "http://localhost:8080/v1",
            "http://[::1]:8080",
            "http://u:p@0.0.0.0:8080",
        ]:
            nursery.start_soon(client.get, url)
        await wait_all_tasks_blocked()
        (seen,) = gates.statistics().values()
        assert (seen.in_flight, seen.tasks_waiting) == (1, 3)


async def test_an_alias_chooses_the_gate_and_not_the_server(family: Family) -> None:
    asked: list[str] = []

    class Inner(family.module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            await trio.lowlevel.checkpoint()
            asked.append(str(request.url))
            return family.module.Response(200)

    gates = EndpointGates({ONE: {}}, aliases={TWO: ONE}, unlisted="refuse")
    async with family.module.AsyncClient(transport=family.gated.GateTransport(gates, Inner())) as client:
        await client.get(f"{TWO}/v1")
    assert asked == [f"{TWO}/v1"]
    assert gates[ONE].statistics().admitted == 1


@pytest.mark.parametrize("full", [ONE, TWO])
async def test_a_redirect_takes_the_gate_of_where_it_leads(
    family: Family, autojump_clock: MockClock, full: str
) -> None:
    gates = EndpointGates()
    family.script.location = f"{TWO}/there"
    family.script.answer_after = 1.0
    in_flight: list[tuple[str, int, int]] = []
    family.script.on_send = lambda path: in_flight.append(
        (path, gates[ONE].statistics().in_flight, gates[TWO].statistics().in_flight)
    )
    start = trio.current_time()
    async with family.client(gates) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            response = await client.get(f"{ONE}/moved", follow_redirects=True)
            assert response.text == "one two three"
            assert str(response.url) == f"{TWO}/there"

        async with gates[full].slot():
            nursery.start_soon(ask)
            await trio.sleep(5)
    # The slot of the first server is given back before the second is waited for.
    if full == ONE:
        assert in_flight == [("/moved", 1, 0), ("/there", 0, 1)]
        assert [time - start for _, time in family.script.sent] == [5, 6]
    else:
        assert in_flight == [("/moved", 1, 1), ("/there", 0, 1)]
        assert [time - start for _, time in family.script.sent] == [0, 5]
    assert all(each.in_flight == 0 for each in gates.statistics().values())


async def test_while_a_redirect_waits_for_its_second_server_the_first_is_free(
    family: Family, autojump_clock: MockClock
) -> None:
    gates = EndpointGates()
    family.script.location = f"{TWO}/there"
    async with family.client(gates) as client, trio.open_nursery() as nursery, gates[TWO].slot():
        nursery.start_soon(lambda: client.get(f"{ONE}/moved", follow_redirects=True))
        await trio.sleep(1)
        assert gates[TWO].statistics().tasks_waiting == 1
        assert gates[ONE].statistics().in_flight == 0
        with gates[ONE].slot_nowait():
            pass


# ---- what requests ask for ----


class Spy(Gate):
    """A gate that notes what it is asked for."""

    asked: list[tuple[Any, ...]]

    async def acquire_detached(self, priority: int = 100, **options: Any) -> Any:
        self.asked.append(
            (priority, options["max_wait"], options["hold_timeout"], options["supersede"], options["outer_deadline"])
        )
        return await super().acquire_detached(priority, **options)


INF = float("inf")


@pytest.mark.parametrize(
    ("extension", "header", "context", "expected"),
    [
        (None, None, {}, (7, 5.0, 9.0, "key", "allow")),
        (None, "u=1", {}, (0, 5.0, 9.0, "key", "allow")),
        (None, "i", {}, (7, 5.0, 9.0, "key", "allow")),
        (None, None, {"priority": 3, "max_wait": 1.0}, (3, 1.0, 9.0, "key", "allow")),
        ({"hold_timeout": INF}, None, {"hold_timeout": 2.0}, (7, 5.0, INF, "key", "allow")),
        ({"priority": 1}, "u=7", {"priority": 2, "supersede": "other"}, (1, 5.0, 9.0, "other", "allow")),
        ({"outer_deadline": "raise"}, None, {}, (7, 5.0, 9.0, "key", "raise")),
    ],
)
async def test_the_endpoints_defaults_lie_under_all_that_a_request_says(
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
    extension: Any,
    header: str | None,
    context: dict[str, Any],
    expected: object,
) -> None:
    monkeypatch.setattr(EndpointGates, "_gate_class", Spy)
    monkeypatch.setattr(Spy, "asked", [], raising=False)
    request = RequestOptions(priority=7, max_wait=5.0, hold_timeout=9.0, supersede="key", outer_deadline="allow")
    gates = EndpointGates({ONE: EndpointSettings(request=request)}, default={"request": {"priority": 42}})
    extensions = {} if extension is None else {"mlxgate": extension}
    headers = {} if header is None else {"Priority": header}
    async with family.client(gates) as client:
        with use_options(**context):
            await client.get(f"{ONE}/x", headers=headers, extensions=extensions)
        await client.get(f"{TWO}/x")
    assert Spy.asked == [expected, (42, INF, INF, None, None)]


async def test_the_options_of_an_endpoint_work(family: Family, autojump_clock: MockClock) -> None:
    gates = EndpointGates({ONE: {"request": {"max_wait": 2.0}}, TWO: {"request": {"supersede": "latest"}}})
    async with family.client(gates) as client:
        start = trio.current_time()
        async with gates[ONE].slot(), trio.open_nursery() as nursery:

            async def refused() -> None:
                with pytest.raises(family.gated.WaitTooLong, match="'one:8080'") as error:
                    await client.get(f"{ONE}/x")
                assert isinstance(error.value, WaitTooLong)

            nursery.start_soon(refused)
        assert trio.current_time() - start == 2.0
        async with gates[TWO].slot(), trio.open_nursery() as nursery:

            async def ousted() -> None:
                with pytest.raises(Superseded):
                    await client.get(f"{TWO}/older")
                nursery.cancel_scope.cancel()

            nursery.start_soon(ousted)
            await wait_all_tasks_blocked()
            nursery.start_soon(lambda: client.get(f"{TWO}/newer"))
    assert family.script.sent == []


async def test_a_task_that_owns_a_slot_passes_at_that_endpoint_alone(family: Family, autojump_clock: MockClock) -> None:
    gates = EndpointGates()
    async with family.client(gates) as client, gates[ONE].slot(Priority.FOREGROUND):
        await client.get("http://ONE.:8080/lent")
        assert gates[ONE].statistics().admitted == 1
        await client.get(f"{TWO}/x")
        assert gates[TWO].statistics().admitted == 1


# ---- refusals ----


async def test_what_is_not_listed_is_not_sent(family: Family) -> None:
    gates = EndpointGates({ONE: {}}, unlisted="refuse")
    family.script.location = f"{TWO}/there"
    async with family.client(gates) as client:
        with pytest.raises(UnknownEndpoint, match="'http://two:8080/x' leads to http://two:8080, which is not listed"):
            await client.get(f"{TWO}/x?key=secret")
        with pytest.raises(UnknownEndpoint, match="add_alias"):
            await client.get(f"{ONE}/moved", follow_redirects=True)
    assert [path for path, _ in family.script.sent] == ["/moved"]
    assert gates[ONE].statistics().in_flight == 0
    assert len(gates) == 1


async def test_a_request_to_no_endpoint_is_not_sent(family: Family) -> None:
    async with family.client(EndpointGates()) as client:
        with pytest.raises(ValueError, match="scheme 'ftp'"):
            await client.get("ftp://one/x")
    assert family.script.sent == []


@pytest.mark.parametrize("wrong", [EndpointGates, {ONE: {}}, "http://one:8080"])
def test_what_is_neither_a_gate_nor_gates_is_told(family: Family, wrong: Any) -> None:
    with pytest.raises(TypeError, match="is a Gate, a Portal, EndpointGates, or None for the gate of the run, not"):
        family.client(wrong)


# ---- real servers ----


@pytest.mark.integration
async def test_two_servers_and_one_client(family: Family) -> None:
    with trio.fail_after(60):
        async with inference_server(service_time=0.3) as one, inference_server(service_time=0.3) as two:
            gates = EndpointGates({one.url: {}, two.url: {}}, unlisted="refuse", default={"outer_deadline": "allow"})
            transport = family.gated.GateTransport(gates)
            both = 0

            async def ask(server: InferenceServer, host: str) -> None:
                nonlocal both
                url = f"{server.base_url.replace('127.0.0.1', host)}/chat/completions"
                body = {"messages": [{"role": "user", "content": "hello"}]}
                with use_options(outer_deadline="allow"):
                    async with client.stream("POST", url, json=body) as response:
                        both += sum(each.in_flight for each in gates.statistics().values()) == 2
                        await response.aread()
                        assert response.status_code == 200

            async with (
                family.module.AsyncClient(transport=transport, timeout=30) as client,
                trio.open_nursery() as nursery,
            ):
                for host in ["127.0.0.1", "localhost", "127.1", "LocalHost"]:
                    for server in (one, two):
                        nursery.start_soon(ask, server, host)
            for server in (one, two):
                status = await server.status()
                assert (status["completed"], status["max_active_jobs"]) == (4, 1)
                assert gates[server.url].statistics().admitted == 4
            # At the moments at which one answered, the other was busy too.
            assert both
