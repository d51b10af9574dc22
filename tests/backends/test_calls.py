"""Who is asked, who is asked next, and what is raised: on the virtual clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.backends.pretend import REFUSED, UP, PretendBackend, busy
from trio_mlxgate import Gate, QueueFull, Superseded, WaitTooLong
from trio_mlxgate.backends import BackendRegistry
from trio_mlxgate.errors import (
    AnswerTooSlow,
    BackendRefused,
    BackendUnavailable,
    BackendUnreachable,
    FirstTokenTooSlow,
    MalformedAnswer,
    TruncatedAnswer,
    UnknownModel,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


def registry_of(*backends: PretendBackend) -> Any:
    """For the type checkers anything: what is pretended returns texts, not completions."""
    pretended: Any = list(backends)
    return BackendRegistry({"reasoner": pretended}, jitter=0)


def pair() -> tuple[PretendBackend, PretendBackend]:
    return PretendBackend("macbook"), PretendBackend("macmini")


GOES_ELSEWHERE = [
    BackendUnreachable("refused"),
    BackendRefused("busy", upstream_status=503),
    BackendRefused("slow down", upstream_status=429),
    TruncatedAnswer("cut"),
    MalformedAnswer("garbage"),
    FirstTokenTooSlow("silence"),
    UnknownModel("not here"),
    QueueFull("full"),
    WaitTooLong("too long"),
]
IS_RAISED = [
    BackendRefused("your mistake", upstream_status=400),
    AnswerTooSlow("over"),
    Superseded("newer"),
    KeyError("bug"),
]


def kinds(errors: Iterable[Exception]) -> list[Any]:
    return [pytest.param(error, id=f"{type(error).__name__}-{error}") for error in errors]


async def test_the_preferred_is_asked_and_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    async with registry_of(macbook, macmini) as registry:
        assert await registry.call("reasoner", "hi") == "macbook: yes"
        assert await registry.call("reasoner", "hi", prefer=["macmini"]) == "macmini: yes"
        assert registry.choose("reasoner", prefer=["macmini"]).name == "macmini"
    assert (len(macbook.chats), len(macmini.chats)) == (1, 1)


@pytest.mark.parametrize("error", kinds(GOES_ELSEWHERE))
async def test_what_failed_is_repeated_elsewhere(error: Exception, autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer = error
    async with registry_of(macbook, macmini) as registry:
        assert await registry.call("reasoner", "hi") == "macmini: yes"
        assert macbook.gate.statistics().in_flight == 0


@pytest.mark.parametrize("error", kinds(IS_RAISED))
async def test_what_another_would_say_too_is_raised(error: Exception, autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer = error
    async with registry_of(macbook, macmini) as registry:
        with pytest.raises(type(error)) as caught:
            await registry.call("reasoner", "hi", fallback=never)
        assert caught.value is error
    assert macmini.chats == []


async def never(error: Exception) -> str:
    await trio.lowlevel.checkpoint()
    raise AssertionError("the fallback was asked")


async def test_who_is_down_is_not_asked(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.reading = REFUSED
    async with registry_of(macbook, macmini) as registry:
        await trio.sleep(1)
        assert registry.choose("reasoner").name == "macmini"
        assert await registry.call("reasoner", "hi") == "macmini: yes"
        macbook.reading = UP
        await registry.wait_healthy("reasoner", backend="macbook")
        assert await registry.call("reasoner", "hi") == "macbook: yes"
    assert len(macbook.chats) == 1


async def test_all_are_down(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.reading = macmini.reading = REFUSED
    async with registry_of(macbook, macmini) as registry:
        await trio.sleep(1)
        with pytest.raises(BackendUnavailable, match="nothing listens there") as caught:
            registry.choose("reasoner")
        assert caught.value.retry_after is not None
        assert 1 <= caught.value.retry_after <= 30
        with pytest.raises(BackendUnavailable):
            await registry.call("reasoner", "hi")


async def test_all_fail(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer, macmini.answer = TruncatedAnswer("cut here"), QueueFull("full there", retry_after=0.5)
    async with registry_of(macbook, macmini) as registry:
        with pytest.raises(BackendUnavailable, match="macbook: cut here; macmini: full there") as caught:
            await registry.call("reasoner", "hi")
        assert caught.value.__cause__ is macmini.answer
        assert caught.value.retry_after == 0.5
    alone = PretendBackend("alone", answer=TruncatedAnswer("cut"))
    async with registry_of(alone) as registry:
        with pytest.raises(TruncatedAnswer):  # of one alone it is the error itself
            await registry.call("reasoner", "hi")


async def test_the_fallback_holds_no_slot(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate(1, name="shared")
    macbook, macmini = pair()
    macbook.gate = macmini.gate = gate
    macbook.answer = macmini.answer = BackendUnreachable("gone")
    held: list[int] = []

    async def cloud(error: Exception) -> int:
        assert isinstance(error, BackendUnavailable)
        held.append(gate.statistics().in_flight)
        await trio.sleep(1)
        return 42

    async with registry_of(macbook, macmini) as registry:
        assert await registry.call("reasoner", "hi", fallback=cloud) == 42
    assert held == [0]


async def test_an_error_of_the_fallback_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", answer=BackendUnreachable("gone"))

    async def cloud(error: Exception) -> int:
        await trio.lowlevel.checkpoint()
        raise KeyError("no key")

    async with registry_of(backend) as registry:
        with pytest.raises(KeyError, match="no key") as caught:
            await registry.call("reasoner", "hi", fallback=cloud)
        assert caught.value.__context__ is None


async def test_least_busy(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.reading, macmini.reading = busy(2), busy(0)
    async with registry_of(macbook, macmini) as registry:
        await trio.sleep(1)
        assert registry.choose("reasoner").name == "macbook"
        assert registry.choose("reasoner", strategy="least_busy").name == "macmini"
        macmini.reading = REFUSED
        await registry.load("reasoner", backend="macmini", fresh=True)
        assert registry.choose("reasoner", strategy="least_busy").name == "macbook"


async def test_defer(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    async with registry_of(macbook, macmini) as registry:
        assert await registry.call("reasoner", "hi", on_unavailable="defer") == "macbook: yes"
        macbook.answer = QueueFull("full", retry_after=7)
        with pytest.raises(BackendUnavailable, match="full") as caught:
            await registry.call("reasoner", "hi", on_unavailable="defer")
        assert (caught.value.retry_after, caught.value.backend) == (7, "macbook")
        macbook.reading = REFUSED
        await registry.load("reasoner", fresh=True)
        begun = trio.current_time()
        with pytest.raises(BackendUnavailable, match="nothing listens") as caught:
            await registry.call("reasoner", "hi", on_unavailable="defer")
        assert caught.value.retry_after is not None
        assert trio.current_time() == begun
    assert macmini.chats == []


async def test_wait(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.reading = REFUSED
    async with registry_of(macbook, macmini) as registry:
        await trio.sleep(1)

        async def come_up() -> None:
            await trio.sleep(120)
            macbook.reading = UP

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_up)
            assert await registry.call("reasoner", "hi", on_unavailable="wait") == "macbook: yes"
        assert 121 <= trio.current_time() <= 121 + 30
        macbook.reading = REFUSED
        await registry.load("reasoner", backend="macbook", fresh=True)
        begun = trio.current_time()
        with pytest.raises(BackendUnavailable):
            await registry.call("reasoner", "hi", on_unavailable="wait", max_wait=50)
        assert trio.current_time() == begun + 50
    assert macmini.chats == []


async def test_waiting_asks_again_after_a_pause_what_looks_well_and_can_t_be_reached(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = PretendBackend("one", answer=BackendUnreachable("reset"))

    def recover() -> None:
        if len(backend.chats) == 4:
            backend.answer = "at last"

    backend.on_chat = recover
    async with registry_of(backend) as registry:
        assert await registry.call("reasoner", "hi", on_unavailable="wait") == "one: at last"
    assert [time for time, _ in backend.chats] == [0, 1, 3, 7]


async def test_max_wait_is_for_all_waiting_together(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    async with registry_of(macbook, macmini) as registry:
        for backend in (macbook, macmini):
            backend.gate.acquire_detached_nowait()
        with pytest.raises(BackendUnavailable) as caught:
            await registry.call("reasoner", "hi", max_wait=3)
        assert trio.current_time() == 3  # the second queue was given what was left: nothing
        assert isinstance(caught.value.__cause__, WaitTooLong)


# ---- streams ----


async def test_a_stream_of_whoever_gives_a_first_delta(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer = FirstTokenTooSlow("silence")
    async with registry_of(macbook, macmini) as registry:
        async with registry.stream("reasoner", "hi") as stream:
            assert stream.backend == "macmini"
            assert macbook.gate.statistics().in_flight == 0
            assert [str(delta) async for delta in stream] == ["macmini 1", "macmini 2", "macmini 3"]
        assert macmini.gate.statistics().in_flight == 0


async def test_what_was_seen_is_not_repeated(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer = TruncatedAnswer("cut")
    macbook.answer.at = 3  # type: ignore[attr-defined] # after two deltas
    seen: list[str] = []
    async with registry_of(macbook, macmini) as registry:

        async def read() -> None:
            async with registry.stream("reasoner", "hi") as stream:
                async for delta in stream:
                    seen.append(str(delta))  # noqa: PERF401 - the error comes in between

        with pytest.raises(TruncatedAnswer):
            await read()
        assert macbook.gate.statistics().in_flight == 0
    assert seen == ["macbook 1", "macbook 2"]
    assert macmini.gate.statistics().admitted == 0


async def test_a_stream_that_is_cancelled_anywhere_gives_its_slot_back(autojump_clock: trio.testing.MockClock) -> None:
    for passes in range(12):
        macbook, macmini = pair()
        macbook.answer = BackendUnreachable("gone")
        async with registry_of(macbook, macmini) as registry:

            async def consume(scope: trio.CancelScope, registry: BackendRegistry = registry) -> None:
                with scope:
                    async with registry.stream("reasoner", "hi") as stream:
                        async for _ in stream:
                            await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(consume, scope)
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            assert macbook.gate.statistics().in_flight == macmini.gate.statistics().in_flight == 0


async def test_a_stream_is_used_once(autojump_clock: trio.testing.MockClock) -> None:
    async with registry_of(PretendBackend("one")) as registry:
        stream = registry.stream("reasoner", "hi")
        with pytest.raises(RuntimeError, match="nothing is streamed yet"):
            _ = stream.text
        async with stream:
            pass
        with pytest.raises(RuntimeError, match="used once"):
            await stream.__aenter__()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"on_unavailable": "never"}, ValueError),
        ({"max_wait": -1}, ValueError),
        ({"max_wait": math.nan}, ValueError),
        ({"max_wait": "a"}, TypeError),
        ({"strategy": "worst"}, ValueError),
        ({"prefer": ["who"]}, LookupError),
    ],
)
async def test_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], autojump_clock: trio.testing.MockClock
) -> None:
    async with registry_of(PretendBackend("one")) as registry:
        with pytest.raises(error):
            await registry.call("reasoner", "hi", **arguments)
        with pytest.raises(error):
            registry.stream("reasoner", "hi", **arguments)


# ---- what a review found ----


async def test_a_burst_is_spread_over_the_least_busy(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer_takes = macmini.answer_takes = 0.25  # four steps of an answer: a second
    async with registry_of(macbook, macmini) as registry, trio.open_nursery() as nursery:
        await trio.sleep(1)
        for _ in range(10):
            nursery.start_soon(lambda: registry.call("reasoner", "hi", strategy="least_busy"))
    assert (len(macbook.chats), len(macmini.chats)) == (5, 5)
    assert trio.current_time() == 6


async def test_who_queues_at_one_that_goes_down_is_sent_on_at_once(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer_takes = 100
    async with registry_of(macbook, macmini) as registry:
        await trio.sleep(1)
        answers: list[tuple[str, float]] = []

        async def ask() -> None:
            answers.append((await registry.call("reasoner", "hi"), trio.current_time()))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
            await trio.sleep(1)
            assert macbook.gate.statistics().tasks_waiting == 3
            macbook.reading = REFUSED
            await registry.load("reasoner", backend="macbook", fresh=True)
            await trio.sleep(1)
            # Whoever has a slot keeps it: it is for the server to break that off.
            assert answers == [("macmini: yes", 2)] * 3
            macbook.answer_takes = 0
    assert len(answers) == 4


async def test_a_refused_call_is_down_at_once_though_tokens_came_a_moment_ago(
    autojump_clock: trio.testing.MockClock,
) -> None:
    macbook, macmini = pair()
    async with registry_of(macbook, macmini) as registry:
        await registry.call("reasoner", "hi")
        await trio.sleep(2)
        refused = BackendUnreachable("no connection: Connection refused")
        refused.refused = True
        macbook.answer, macbook.reading = refused, REFUSED
        assert await registry.call("reasoner", "hi") == "macmini: yes"
        assert registry.choose("reasoner").name == "macmini"
        await trio.testing.wait_all_tasks_blocked()
        assert macbook.looks == [0, 2]  # and its next look was due at once


async def test_a_stuck_generation_beside_a_health_that_is_well_is_learnt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    macbook, macmini = pair()
    macbook.answer, macbook.measured = FirstTokenTooSlow("the server was silent for 60 s"), math.inf
    async with registry_of(macbook, macmini) as registry:
        await trio.sleep(1)
        assert await registry.call("reasoner", "hi") == "macmini: yes"
        report = await registry.load("reasoner", backend="macbook")
        assert (report.level.value, report.reason) == ("unknown", "it may be stuck: the server was silent for 60 s")
        await trio.sleep(31)  # one token was asked for, and did not come either
        report = await registry.load("reasoner", backend="macbook")
        assert report.level.value == "down"
        await registry.call("reasoner", "hi")
        assert len(macbook.chats) == 1
        macbook.answer, macbook.measured = "yes", 0.2
        with trio.fail_after(61):
            await registry.wait_healthy("reasoner", backend="macbook")
        assert await registry.call("reasoner", "hi") == "macbook: yes"


@pytest.mark.parametrize(
    "error",
    [
        BackendRefused("Loading model", upstream_status=503),
        BackendRefused("slow down", upstream_status=429, retry_after=3),
        FirstTokenTooSlow("silence"),
        TruncatedAnswer("cut"),
        QueueFull("full", retry_after=3),
    ],
    ids=lambda error: str(error),
)
async def test_waiting_is_for_one_that_refuses_too(error: Exception, autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", answer=error)

    def recover() -> None:
        if len(backend.chats) == 3:
            backend.answer = "at last"

    backend.on_chat = recover
    async with registry_of(backend) as registry:
        assert await registry.call("reasoner", "hi", on_unavailable="wait") == "one: at last"
        again = getattr(error, "retry_after", None) or 0
        assert [time for time, _ in backend.chats] == [0, max(1, again), max(1, again) + max(2, again)]


async def test_waiting_ends_with_max_wait_and_says_so(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", answer=BackendUnreachable("reset"))
    async with registry_of(backend) as registry:
        with pytest.raises(BackendUnavailable, match=r"waited for 2\.5 s \(max_wait\)") as caught:
            await registry.call("reasoner", "hi", on_unavailable="wait", max_wait=2.5)
        assert trio.current_time() == 2.5
        assert isinstance(caught.value.__cause__, BackendUnreachable)


async def test_a_model_that_nobody_has_is_a_mistake_and_no_outage(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.unknown_model = macmini.unknown_model = "typo"
    async with registry_of(macbook, macmini) as registry:
        for policy in ("next", "defer", "wait"):
            with pytest.raises(UnknownModel):
                await registry.call("reasoner", "hi", model="typo", on_unavailable=policy, fallback=never)
        with pytest.raises(UnknownModel):
            registry.stream("reasoner", "hi", model="typo")
        macmini.unknown_model = None
        assert await registry.call("reasoner", "hi", model="typo") == "macmini: yes"


async def test_a_paused_gate_swallows_nobody(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.gate.capacity = 0
    async with registry_of(macbook, macmini) as registry:
        for strategy in ("first", "least_busy"):
            assert await registry.call("reasoner", "hi", strategy=strategy) == "macmini: yes"
        with pytest.raises(BackendUnavailable, match="capacity 0"):
            await registry.call("reasoner", "hi", on_unavailable="defer")

        async def raise_it() -> None:
            await trio.sleep(10)
            macbook.gate.capacity = 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_it)
            assert await registry.call("reasoner", "hi", on_unavailable="wait") == "macbook: yes"
        assert trio.current_time() == 10


async def test_retry_after_is_that_of_the_queues_not_of_the_next_look(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer, macmini.answer = QueueFull("full", retry_after=120), QueueFull("full", retry_after=90)
    async with registry_of(macbook, macmini) as registry:
        with pytest.raises(BackendUnavailable) as caught:
            await registry.call("reasoner", "hi")
    assert caught.value.retry_after == 90
    assert str(caught.value).count("macbook") == 1


async def test_a_deferred_call_names_the_one_that_failed(autojump_clock: trio.testing.MockClock) -> None:
    macbook, macmini = pair()
    macbook.answer = BackendRefused("macbook: no time", upstream_status=503, retry_after=4)
    async with registry_of(macbook, macmini) as registry:
        with pytest.raises(BackendUnavailable, match="no time") as caught:
            await registry.call("reasoner", "hi", on_unavailable="defer", strategy="least_busy")
    assert (caught.value.backend, caught.value.retry_after) == ("macbook", 4)


async def test_going_elsewhere_is_told_in_the_log(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    macbook, macmini = pair()
    macbook.answer = macmini.answer = TruncatedAnswer("cut")

    async def cloud(error: Exception) -> str:
        await trio.lowlevel.checkpoint()
        return "from above"

    async with registry_of(macbook, macmini) as registry:
        assert await registry.call("reasoner", "hi", fallback=cloud) == "from above"
        with pytest.raises(TypeError, match="fallback must be an async function"):
            await registry.call("reasoner", "hi", fallback="cloud")
        with pytest.raises(TypeError, match="returned 'text'"):
            await registry.call("reasoner", "hi", fallback=lambda error: "text")
    assert "backend 'macbook' gave no answer (cut); asking 'macmini'" in caplog.text
    assert "asking the fallback" in caplog.text


async def test_nobody_is_called_where_nobody_watches(autojump_clock: trio.testing.MockClock) -> None:
    registry = registry_of(PretendBackend("one"))
    for ask in (registry.choose, registry.is_healthy, lambda role: registry.stream(role, "hi")):
        with pytest.raises(RuntimeError, match="nobody watches"):
            ask("reasoner")
    with pytest.raises(RuntimeError, match="nobody watches"):
        await registry.call("reasoner", "hi")


async def test_an_option_that_is_none_is_told_with_those_that_are(autojump_clock: trio.testing.MockClock) -> None:
    async with registry_of(PretendBackend("one")) as registry:
        for ask in (registry.call, registry.stream):
            with pytest.raises(
                TypeError, match=r"no option 'timeout'; there are priority, .*hold_timeout, from the grant"
            ):
                await ask("reasoner", "hi", timeout=3)
