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
