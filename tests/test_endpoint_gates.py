"""One gate for each endpoint: found by every spelling, never a second one, and refusals that say what to change."""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock

from trio_mlxgate import (
    Endpoint,
    EndpointGates,
    EndpointSettings,
    Gate,
    GateRefused,
    Priority,
    RequestOptions,
    UnknownEndpoint,
)
from trio_mlxgate.instrumentation import LoggingHook

if TYPE_CHECKING:
    from collections.abc import Callable

A = "http://a:8080"
B = "http://b:8080"
C = "http://c:8080"


# ---- settings ----


def test_the_settings_are_the_gates_arguments_and_what_requests_ask_for() -> None:
    arguments = {n: p.default for n, p in inspect.signature(Gate).parameters.items() if n != "name"}
    fields = {field.name: getattr(EndpointSettings(), field.name) for field in attrs.fields(EndpointSettings)}
    assert fields == {**arguments, "name": None, "request": RequestOptions()}


def test_every_setting_reaches_the_gate() -> None:
    heard: list[Any] = []

    class Ear(LoggingHook):
        def __call__(self, details: Any) -> None:
            heard.append(details)

        def interest(self, *kinds: Any) -> Callable[[], bool]:
            return lambda: True

    settings = EndpointSettings(
        name="mini",
        capacity=3,
        aging=60.0,
        reserved={Priority.FOREGROUND: 1},
        max_waiting={Priority.BACKGROUND: 5},
        outer_deadline="raise",
        starvation_warning=7.0,
        hooks=[Ear()],
    )
    gate = EndpointGates({A: settings})[A]
    assert (gate.name, gate.capacity, gate.aging, gate.reserved, gate.max_waiting) == (
        "mini",
        3,
        60.0,
        {0: 1},
        {100: 5},
    )

    async def main() -> None:
        with pytest.raises(RuntimeError, match="a deadline of the caller"), trio.fail_after(5):
            await gate.slot().__aenter__()
        async with gate.slot(0), trio.open_nursery() as nursery:
            nursery.start_soon(hold_for, gate, 10.0)
            nursery.start_soon(hold_for, gate, 10.0)
            nursery.start_soon(hold_for, gate, 10.0)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert "Starving" in {type(details).__name__ for details in heard}


async def hold_for(gate: Gate, seconds: float) -> None:
    async with gate.slot():
        await trio.sleep(seconds)


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        ({"capacity": -1}, ValueError, "capacity must be >= 0"),
        ({"capacity": "2"}, TypeError, "capacity must be an int"),
        ({"aging": 0}, ValueError, "aging must be"),
        ({"reserved": [1]}, TypeError, "reserved must map"),
        ({"max_waiting": -1}, ValueError, "max_waiting must be"),
        ({"outer_deadline": "no"}, ValueError, "outer_deadline must be"),
        ({"starvation_warning": math.nan}, ValueError, "starvation_warning must be"),
        ({"strict": "yes"}, TypeError, "strict must be"),
        ({"hooks": 1}, TypeError, "hooks must be"),
        ({"hooks": [LoggingHook]}, TypeError, "hooks must be"),
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": 5}, TypeError, "name must be a string"),
        ({"request": {"max_wait": -1}}, ValueError, "max_wait must be"),
        ({"request": {"speed": 1}}, TypeError, "request: there is no 'speed'; there are priority, max_wait"),
        ({"request": 5}, TypeError, r"request must be RequestOptions\(...\), or a mapping"),
        ({"color": 1}, TypeError, "color"),
    ],
)
def test_bad_settings_are_told_at_once(fields: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        EndpointSettings(**fields)
    with pytest.raises(error, match=f"(?s)the settings of 'http://b:8080': .*{told}"):
        EndpointGates({A: {}, "http://user:secret@b:8080?key=secret": fields})


def test_settings_may_come_from_a_file_and_keep_no_tie_to_what_they_were_made_of() -> None:
    fields: dict[str, Any] = {"capacity": 2, "reserved": {0: 1}, "request": {"priority": 0, "hold_timeout": 5.0}}
    gates = EndpointGates({A: fields}, default={"capacity": 3})
    made = gates.settings_for(A)
    fields["reserved"][0] = 7
    assert (made.capacity, made.reserved, made.name) == (2, {0: 1}, "a:8080")
    assert made.request == RequestOptions(priority=0, hold_timeout=5.0)
    assert gates[B].capacity == 3


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"unlisted": "maybe"}, ValueError, "unlisted must be 'gate' or 'refuse', not 'maybe'"),
        ({"loopback": "one"}, ValueError, "loopback must be 'shared' or 'distinct'"),
        ({"endpoints": [A]}, TypeError, "endpoints must be a mapping whose keys are URLs"),
        ({"aliases": [(A, B)]}, TypeError, "aliases must be a mapping whose keys are URLs"),
        ({"endpoints": {"a:8080": {}}}, ValueError, "write 'http://a:8080'"),
        (
            {"endpoints": {A: 2}},
            TypeError,
            r"the settings of 'http://a:8080' must be EndpointSettings\(...\), or a map",
        ),
        ({"endpoints": {8080: {}}}, TypeError, "told by a URL"),
        ({"aliases": {A: 8080}}, TypeError, "told by a URL"),
        ({"aliases": {"a": A}}, ValueError, "write 'http://a'"),
        ({"default": {"name": "x"}}, ValueError, "default names the gate 'x'"),
        ({"default": {"speed": 1}}, TypeError, "default: there is no 'speed'"),
        (
            {"endpoints": {"http://LOCALHOST:8080/v1": {}, "http://u:secret@[::1]:8080": {}}},
            ValueError,
            r"'http://LOCALHOST:8080/v1' and 'http://\[::1\]:8080' are one endpoint, http://127.0.0.1:8080, with one",
        ),
        (
            {"endpoints": {A: {"name": "mini"}, B: {"name": "mini"}}},
            ValueError,
            "'http://b:8080' and http://a:8080 would both have a gate named 'mini': rename one",
        ),
        ({"endpoints": {A: {"name": "b:8080"}, B: {}}}, ValueError, "would both have a gate named 'b:8080'"),
        (
            {"endpoints": {A: {}, B: {}}, "aliases": {A: B}},
            ValueError,
            "'http://a:8080' can't be an alias of 'http://b:8080', since it is listed with a gate of its own",
        ),
        ({"aliases": {A: B, "http://A:8080/": C}}, ValueError, "is an alias of http://b:8080, and can't be one of"),
        ({"aliases": {A: B, B: C, C: A}}, ValueError, "in a circle: http://c:8080 -> http://a:8080 -> http://b"),
        (
            {"endpoints": {B: {}}, "aliases": {A: C}, "unlisted": "refuse"},
            UnknownEndpoint,
            "'http://c:8080' leads to http://c:8080, which is not listed; listed: http://b:8080. List it, or",
        ),
    ],
)
def test_what_contradicts_itself_is_told_at_once(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as raised:
        EndpointGates(**arguments)
    assert "secret" not in str(raised.value)


# ---- finding ----


def test_every_spelling_finds_the_one_gate() -> None:
    gates = EndpointGates({"http://LocalHost:8080/v1": EndpointSettings(capacity=2)})
    gate = gates.gate_for("http://127.0.0.1:8080")
    for url in [
        "http://[::1]:8080/v1/chat?x=1",
        "ws://localhost.:8080",
        "https://u:p@127.1:8080",
        "http://0x7f.1:8080#",
    ]:
        assert gates[url] is gate
        assert url in gates
        assert gates.settings_for(url).capacity == 2
    assert gates[Endpoint.from_url("http://localhost:8080", loopback="distinct")] is gate
    assert (gate.name, gate.capacity) == ("LocalHost:8080", 2)
    assert gates["http://localhost:8081"] is not gate
    assert gates["http://127.0.0.2:8080"] is not gate
    assert [str(endpoint) for endpoint in gates] == [
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "http://127.0.0.2:8080",
    ]


def test_an_unlisted_endpoint_gets_a_gate_when_it_is_asked_for() -> None:
    gates = EndpointGates({A: {}}, default=EndpointSettings(capacity=4))
    assert (len(gates), gates.endpoints) == (1, (Endpoint.from_url(A),))
    assert "http://b" not in gates
    assert (gates.settings_for("http://B/v1").name, len(gates)) == ("b:80", 1)
    gate = gates["http://B/v1"]
    assert (gate.name, gate.capacity, gates["ws://b."], len(gates)) == ("b:80", 4, gate, 2)
    assert gates.settings_for("http://b") == EndpointSettings(capacity=4, name="b:80")
    assert repr(gates) == "<EndpointGates: http://a:8080, http://b>"
    assert repr(EndpointGates()) == "<EndpointGates: none yet>"


def test_the_loopback_may_be_distinct() -> None:
    gates = EndpointGates(loopback="distinct", aliases={"http://localhost:8080": "http://[::1]:8080"})
    assert gates["http://localhost:8080"] is gates["http://[::1]:8080"] is not gates["http://127.0.0.1:8080"]


def test_an_alias_finds_the_gate_at_the_end_of_its_chain() -> None:
    gates = EndpointGates({C: {"capacity": 5}}, aliases={A: B, B: C, "http://C:8080/": C}, unlisted="refuse")
    assert gates[A] is gates[B] is gates[C]
    assert gates.settings_for("http://A:8080/v1").capacity == 5
    assert A in gates
    assert len(gates) == 1


def test_who_refuses_the_unlisted_says_which_are_listed_and_how_to_list_one() -> None:
    gates = EndpointGates({A: {}, B: {}}, unlisted="refuse")
    for ask in (gates.gate_for, gates.settings_for, gates.__getitem__):
        with pytest.raises(UnknownEndpoint) as error:
            ask("https://user:secret@C/v1?key=secret")
        assert str(error.value) == (
            "'https://C/v1' leads to https://c, which is not listed; listed: http://a:8080, http://b:8080. List it, or "
            "call add('https://c', EndpointSettings(...)); if it is another name of one that is listed, make it an "
            "alias: add_alias('https://c', URL)"
        )
        assert (error.value.status, error.value.code, error.value.retry_after) == (404, "unknown_endpoint", None)
    assert not issubclass(UnknownEndpoint, GateRefused)  # who tries again after a refusal must not do so here
    assert len(gates) == 2
    with pytest.raises(UnknownEndpoint, match="listed: none"):
        EndpointGates(unlisted="refuse")[A]
    gates.add("https://c")
    assert gates["https://c/v1"].capacity == 1


@pytest.mark.parametrize("bad", ["a:8080", "", "ftp://a"])
def test_what_is_no_url_finds_nothing(bad: str) -> None:
    gates = EndpointGates()
    for ask in (gates.gate_for, gates.settings_for, gates.__contains__, gates.add):
        with pytest.raises(ValueError, match="write"):
            ask(bad)
        with pytest.raises(TypeError, match=r"str\(url\)"):
            ask(httpx.URL(A))  # type: ignore[arg-type, operator]
    assert len(gates) == 0


# ---- adding ----


def test_adding_says_no_to_a_second_gate() -> None:
    gates = EndpointGates({A: {}}, aliases={B: A}, default={"capacity": 6})
    unlisted = gates["http://localhost:1"]
    before = gates.endpoints
    for url, told in [
        ("HTTP://A:8080/", "'http://a:8080' and 'HTTP://A:8080/' are one endpoint, http://a:8080, with one gate"),
        ("ws://a:8080", "are one endpoint"),
        (
            "http://[::1]:1",
            "has a gate with the default settings, which calls may be using: list it before it is asked",
        ),
        (B, "is an alias of http://a:8080, and has no gate of its own: list http://a:8080"),
    ]:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is looked at
            gates.add(url, {"capacity": 9})
        assert told in str(error.value)
    assert gates.endpoints == before
    assert gates["http://localhost:1"] is unlisted
    assert gates.add(C) is gates[C]
    assert gates[C].capacity == 6
    assert gates.add("http://d:8080", EndpointSettings(capacity=2, name="d")) is gates["http://D:8080"]
    assert gates["http://d:8080"].name == "d"


def test_an_alias_never_leaves_two_gates_before_one_server() -> None:
    gates = EndpointGates({A: {}})
    made = gates[B]
    with pytest.raises(ValueError, match="'http://b:8080' can't be an alias of 'http://a:8080', since it has a gate, "):
        gates.add_alias(B, A)
    with pytest.raises(ValueError, match="since it is listed with a gate of its own: leave out one of the two"):
        gates.add_alias("http://A:8080", B)
    assert gates[B] is made is not gates[A]
    gates.add_alias(A, "http://A:8080/v1")  # says nothing new
    gates.add_alias(C, B)
    gates.add_alias(C, "ws://B:8080")
    assert gates[C] is made
    with pytest.raises(ValueError, match="is an alias of http://b:8080, and can't be one of http://a:8080 too"):
        gates.add_alias(C, A)
    assert gates[C] is made
    gates.add_alias("http://d", "http://e")
    with pytest.raises(ValueError, match="circle"):
        gates.add_alias("http://e", "http://d")
    assert gates["http://d"] is gates["http://e"]


def test_an_alias_may_lead_to_what_is_listed_later() -> None:
    gates = EndpointGates(aliases={A: B})
    gates.add(B, {"capacity": 3})
    assert gates[A].capacity == 3
    strict = EndpointGates(unlisted="refuse")
    with pytest.raises(UnknownEndpoint):
        strict.add_alias(A, B)
    strict.add(B)
    strict.add_alias(A, B)
    assert strict[A] is strict[B]


class Meddler(LoggingHook):
    """A hook that asks for the gate of which it is to be a part."""

    gates: EndpointGates | None = None
    found: Gate | None = None

    def interest(self, *kinds: Any) -> Callable[[], bool]:
        gates, self.gates = self.gates, None
        if gates is not None:
            self.found = gates.gate_for(A)
        return lambda: False


def test_a_gate_that_is_asked_for_while_it_is_made_is_one() -> None:
    hook = Meddler()
    gates = EndpointGates(default=EndpointSettings(hooks=[hook]))
    hook.gates = gates
    assert gates[A] is gates[A] is hook.found


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 7)),
    st.tuples(st.just("add"), st.integers(0, 7)),
    st.tuples(st.just("alias"), st.integers(0, 7), st.integers(0, 7)),
)
SPELLINGS = [
    *(
        "http://localhost:1",
        "http://[::1]:1",
        "ws://127.1:1",
        "http://a:2",
        "http://A.:2/v1",
        "https://b",
        "http://b:443",
    ),
    "http://c:3",
]


@given(st.lists(STEPS, max_size=20))
def test_whatever_is_asked_and_added_a_url_keeps_its_gate(steps: list[tuple[Any, ...]]) -> None:
    gates = EndpointGates()
    found: dict[str, Gate] = {}
    for what, *which in steps:
        urls = [SPELLINGS[number] for number in which]
        if what == "ask":
            found.setdefault(urls[0], gates[urls[0]])
        elif what == "add":
            with contextlib.suppress(ValueError):
                found.setdefault(urls[0], gates.add(urls[0]))
        else:
            try:
                gates.add_alias(*urls)
            except ValueError:
                pass
            else:
                for url in urls:
                    found.setdefault(url, gates[url])
                assert gates[urls[0]] is gates[urls[1]]
        for url, gate in found.items():
            assert gates[url] is gate
    assert len({id(gates[url]) for url in SPELLINGS}) == len(gates)


# ---- in runs ----


async def test_two_tasks_that_ask_at_the_same_moment_get_one_gate(autojump_clock: MockClock) -> None:
    gates = EndpointGates()
    start = trio.current_time()
    ended = []

    async def ask(url: str) -> None:
        async with gates[url].slot():
            await trio.sleep(1)
        ended.append(trio.current_time() - start)

    async with trio.open_nursery() as nursery:
        for url in ["http://localhost:1", "http://127.0.0.1:1/v1", "http://[::1]:1", "http://other:1"]:
            nursery.start_soon(ask, url)
    assert ended == [1.0, 1.0, 2.0, 3.0]


async def test_the_statistics_are_those_of_each_gate() -> None:
    gates = EndpointGates({"http://LOCALHOST:8080/v1": {"capacity": 2}})
    async with gates["http://127.0.0.1:8080"].slot(), gates["https://b"].slot():
        seen = gates.statistics()
    assert {url: (each.capacity, each.in_flight) for url, each in seen.items()} == {
        "http://127.0.0.1:8080": (2, 1),
        "https://b": (1, 1),
    }


def test_a_gate_is_the_same_in_the_next_run_and_empty() -> None:
    gates = EndpointGates({A: {}})
    before = gates[A]

    async def main() -> None:
        assert gates.statistics()[A].in_flight == 0
        await gates[A].acquire_detached()
        assert gates.statistics()[A].in_flight == 1

    for _ in range(2):
        trio.run(main)
    assert gates[A] is before


def test_a_gate_that_is_not_listed_has_a_name_of_its_own() -> None:
    gates = EndpointGates({"http://a:1": EndpointSettings(name="b:2")})
    assert [gates[url].name for url in ("http://a:1", "http://b:2")] == ["b:2", "http://b:2"]
