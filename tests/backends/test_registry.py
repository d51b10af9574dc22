"""The registry on the virtual clock: who is looked at when, what is told of it, and that nothing ends it silently."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.backends.pretend import REFUSED, UP, PretendBackend, busy
from trio_mlxgate import Gate, RequestOptions, use_options
from trio_mlxgate.backends import BackendRegistry, HealthChanged
from trio_mlxgate.core.load import LoadLevel
from trio_mlxgate.core.readings import Health, Reading
from trio_mlxgate.errors import BackendUnavailable, FirstTokenTooSlow
from trio_mlxgate.options import current_options

if TYPE_CHECKING:
    from collections.abc import Mapping


def registry_of(roles: Mapping[str, Any], **more: Any) -> BackendRegistry:
    return BackendRegistry(roles, **{"jitter": 0, **more})


# ---- looking ----


async def test_every_backend_is_looked_at_at_once_and_every_thirty_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one, other = PretendBackend("one"), PretendBackend("other")
    async with registry_of({"classifier": one, "reasoner": [other, one]}):
        await trio.sleep(95)
    assert one.looks == other.looks == [0, 30, 60, 90]
    assert (one.closings, other.closings) == (1, 1)


async def test_a_slow_backend_delays_no_other(autojump_clock: trio.testing.MockClock) -> None:
    slow, quick = PretendBackend("slow", look_takes=9), PretendBackend("quick")
    async with registry_of({"reasoner": [slow, quick]}) as registry:
        await registry.wait_healthy("reasoner", backend="quick")
        assert trio.current_time() == 0
        await trio.sleep(65)
    assert quick.looks == [0, 30, 60]


async def test_a_look_that_hangs_is_ended_and_never_idle(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", reading=busy(0))
    async with registry_of({"reasoner": backend}) as registry:
        await trio.sleep(1)
        assert (await registry.load("reasoner")).level is LoadLevel.IDLE
        backend.look_takes = math.inf
        reports = []
        for _ in range(200):
            await trio.sleep(1)
            reports.append((trio.current_time(), await registry.load("reasoner")))
        assert LoadLevel.IDLE not in {report.level for time, report in reports if time > 80}
        assert reports[-1][1].health is Health.DOWN
        backend.look_takes = 0
        await registry.wait_healthy("reasoner")
        assert (await registry.load("reasoner")).level is LoadLevel.IDLE


async def test_a_check_that_raises_is_reported_and_goes_on(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    backend = PretendBackend("one", reading=ZeroDivisionError("a mistake"))
    async with registry_of({"reasoner": backend}) as registry:
        await trio.sleep(3)
        report = await registry.load("reasoner")
        assert report.level is LoadLevel.UNKNOWN
        assert "a mistake" in report.reason
        assert "a mistake" in caplog.text
        backend.reading = UP
        await registry.wait_healthy("reasoner")
    assert len(backend.looks) >= 2


async def test_transitions_are_logged_once_and_hooked(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_mlxgate.backends")
    told: list[HealthChanged] = []

    def broken(change: HealthChanged) -> None:
        raise RuntimeError("this hook is broken")

    backend = PretendBackend("one")
    async with registry_of({"reasoner": backend}, hooks=[broken, told.append]):
        await trio.sleep(100)
        backend.reading = REFUSED
        await trio.sleep(300)
        backend.reading = UP
        await trio.sleep(100)
    assert [(change.before, change.after) for change in told] == [
        (Health.UNKNOWN, Health.UP),
        (Health.UP, Health.DOWN),
        (Health.DOWN, Health.UP),
    ]
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("backend 'one' is")]
    assert lines == [
        "backend 'one' is up",
        "backend 'one' is down: nothing listens there",
        "backend 'one' is up",
    ]
    assert "this hook is broken" in caplog.text


async def test_no_probe_while_tokens_come(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one")
    async with registry_of({"reasoner": backend}) as registry:
        await trio.sleep(1)
        for _ in range(100):
            backend.last_token_at = trio.current_time()
            await trio.sleep(1)
        assert backend.looks == [0]
        assert registry.is_healthy("reasoner")
        await trio.sleep(60)
        assert len(backend.looks) > 1


# ---- the block ----


async def test_an_error_of_the_block_arrives_bare(autojump_clock: trio.testing.MockClock) -> None:
    async def fail() -> None:
        async with registry_of({"reasoner": PretendBackend("one", look_takes=1)}):
            await trio.sleep(0.5)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()


async def test_a_cancellation_of_the_block_is_one(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", look_takes=5)
    with trio.move_on_after(1) as scope:
        async with registry_of({"reasoner": backend}):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert backend.closings == 1

    async def fail() -> None:
        with trio.CancelScope() as scope:
            async with registry_of({"reasoner": backend}):
                scope.cancel()
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):  # an error beside a cancellation is not lost
        await fail()


async def test_run_is_for_a_nursery_of_ones_own(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one")
    async with trio.open_nursery() as nursery:
        registry = await nursery.start(registry_of({"reasoner": backend}).run)
        await registry.wait_healthy("reasoner")
        with pytest.raises(RuntimeError, match="under watch already"):
            await registry.__aenter__()
        nursery.cancel_scope.cancel()
    assert backend.closings == 1


def test_a_registry_can_be_entered_again_in_the_next_run() -> None:
    registry = registry_of({"reasoner": PretendBackend("one")})

    async def main() -> None:
        async with registry:
            await registry.wait_healthy("reasoner")
        with pytest.raises(trio.ClosedResourceError, match="was left"):
            await registry.wait_healthy("reasoner")
        with pytest.raises(trio.ClosedResourceError, match="was left"):
            await registry.load("reasoner", fresh=True)
        with pytest.raises(RuntimeError, match="was left"):
            await registry.__aenter__()

    for _ in range(2):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# ---- measuring ----


async def test_who_asks_meanwhile_shares_one_measurement(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", measured=2.0)
    results: list[tuple[float, float]] = []

    async def ask() -> None:
        results.append((await registry.measure("reasoner"), trio.current_time()))

    async with registry_of({"reasoner": backend}) as registry:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            with trio.move_on_after(1):  # who leaves stops nobody
                await registry.measure("reasoner")
        assert results == [(2.0, 2.0)] * 10
        await trio.sleep(29)
        assert await registry.measure("reasoner") == 2.0
        assert backend.measurements == [0]
        await trio.sleep(2)
        assert await registry.measure("reasoner") == 2.0
        assert backend.measurements == [0, 33]


async def test_after_a_failed_measurement_there_is_a_pause(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", measured=BackendUnavailable("gone"))
    async with registry_of({"reasoner": backend}) as registry:
        with pytest.raises(BackendUnavailable, match="gone"):
            await registry.measure("reasoner")
        await trio.sleep(4)
        with pytest.raises(BackendUnavailable, match="a moment ago") as caught:
            await registry.measure("reasoner")
        assert caught.value.retry_after == 6
        await trio.sleep(6)
        backend.measured = 0.5
        assert await registry.measure("reasoner") == 0.5
    assert backend.measurements == [0, 10]


async def test_a_measurement_at_a_busy_gate_is_none(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", measured=trio.WouldBlock())
    async with registry_of({"reasoner": backend}) as registry:
        with pytest.raises(trio.WouldBlock, match="busy"):
            await registry.measure("reasoner")
        # Nothing was found out, and nothing cost: it may be asked again at once.
        backend.measured = 0.5
        assert await registry.measure("reasoner") == 0.5


async def test_a_measurement_that_ends_at_a_limit_says_how_slow_it_is(autojump_clock: trio.testing.MockClock) -> None:
    for slow, after, told in ((math.inf, 0, 30), (FirstTokenTooSlow("nothing for 10 s"), 10, 10)):
        backend = PretendBackend("one", measured=slow, measuring_takes=after)
        async with registry_of({"reasoner": backend}) as registry:
            assert await registry.measure("reasoner") == told
            assert (await registry.load("reasoner")).level is LoadLevel.VERY_BUSY


async def test_a_health_answer_that_is_slow_asks_for_a_measurement(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", reading=Reading(health=Health.UP, latency=0.05), measured=9.0)
    async with registry_of({"reasoner": backend}) as registry:
        await trio.sleep(1000)
        assert backend.measurements == []
        assert (await registry.load("reasoner")).level is LoadLevel.IDLE
        backend.reading = Reading(health=Health.UP, latency=0.2)
        await trio.sleep(130)
        assert len(backend.measurements) >= 1
        assert (await registry.load("reasoner")).level is LoadLevel.VERY_BUSY


async def test_fresh_looks_now_and_measures_what_has_no_status(autojump_clock: trio.testing.MockClock) -> None:
    silent, talking = PretendBackend("silent", measured=5.0), PretendBackend("talking", reading=busy(2))
    async with registry_of({"classifier": silent, "reasoner": talking}) as registry:
        await trio.sleep(10)
        report = await registry.load("classifier", fresh=True)
        assert (report.level, report.source, report.inference_latency) == (LoadLevel.BUSY, "hybrid", 5.0)
        report = await registry.load("reasoner", fresh=True)
        assert (report.level, report.source, report.active_jobs, report.age) == (LoadLevel.BUSY, "status", 2, 0)
        assert talking.looks == [0, 15]
        assert talking.measurements == []


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"roles": {}}, ValueError, "empty"),
        ({"roles": []}, TypeError, "mapping"),
        ({"roles": {"a": []}}, ValueError, "no backends"),
        ({"roles": {"a": "macmini"}}, TypeError, "ModelAdapter"),
        ({"roles": {"a": [PretendBackend("x"), PretendBackend("x")]}}, ValueError, "named 'x'"),
        ({"jitter": 1}, ValueError, "jitter"),
        ({"jitter": "a"}, TypeError, "jitter"),
        ({"check_limit": math.inf}, ValueError, "check_limit"),
        ({"check_limit": 0}, ValueError, "check_limit"),
        ({"hooks": ["x"]}, TypeError, "HealthChanged"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    given: dict[str, Any] = {"roles": {"reasoner": PretendBackend("one")}, **arguments}
    with pytest.raises(error, match=told):
        BackendRegistry(given.pop("roles"), **given)


async def test_unknown_roles_and_names(autojump_clock: trio.testing.MockClock) -> None:
    async with registry_of({"reasoner": PretendBackend("one")}) as registry:
        for ask in (registry.is_healthy, registry.choose):
            with pytest.raises(LookupError, match="no role 'poet'; there are reasoner"):
                ask("poet")
        with pytest.raises(LookupError, match="has no backend 'two'; it has one"):
            registry.choose("reasoner", prefer=["two"])
        with pytest.raises(TypeError, match=r"\['one'\]"):
            registry.choose("reasoner", prefer="one")
        with pytest.raises(ValueError, match="strategy"):
            registry.choose("reasoner", strategy="best")  # type: ignore[arg-type]
        with pytest.raises(LookupError, match="no backend 'two'"):
            registry.backend("two")
        await wait_all_tasks_blocked()
        summary = registry.health_summary()
        assert summary["reasoner"]["one"].health is Health.UP


# ---- what must not happen ----


async def test_whoever_waits_is_told_when_the_registry_is_left(autojump_clock: trio.testing.MockClock) -> None:
    registry = registry_of({"reasoner": PretendBackend("one", reading=REFUSED)})
    ends: list[str] = []

    async def wait(what: Any) -> None:
        with pytest.raises(trio.ClosedResourceError, match="was left"):
            await what()
        ends.append("told")

    async with trio.open_nursery() as nursery, registry:
        await trio.sleep(1)
        nursery.start_soon(wait, lambda: registry.wait_healthy("reasoner"))
        nursery.start_soon(wait, registry.wait_change)
        nursery.start_soon(wait, lambda: registry.call("reasoner", "hi", on_unavailable="wait"))
        await trio.sleep(1)
    assert ends == ["told"] * 3
    assert trio.current_time() < 10


def test_what_was_known_by_the_clock_of_another_run_is_forgotten() -> None:
    backend = PretendBackend("one", measured=2.0)
    registry = registry_of({"reasoner": backend})

    async def first() -> None:
        async with registry:
            await trio.sleep(1000)
            backend.last_token_at = trio.current_time()
            await trio.sleep(100)
            assert await registry.measure("reasoner") == 2.0

    async def second() -> None:
        backend.last_token_at = -math.inf  # as an adapter has it in a new run
        backend.measured = 0.5
        async with registry:
            assert (await registry.load("reasoner")).level is LoadLevel.UNKNOWN
            assert await registry.measure("reasoner") == 0.5
            await trio.sleep(100)

    trio.run(first, clock=trio.testing.MockClock(autojump_threshold=0))
    backend.looks.clear()
    trio.run(second, clock=trio.testing.MockClock(autojump_threshold=0))
    assert backend.looks == [0, 30, 60, 90]


async def test_a_backend_that_is_broken_in_any_way_is_not_asked_without_a_pause(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = PretendBackend("one")

    def broken(_: object) -> None:
        asked.append(trio.current_time())
        raise ZeroDivisionError

    asked: list[float] = []
    async with registry_of({"reasoner": backend}):
        monkeypatch.setattr(PretendBackend, "own_work", property(broken))
        await trio.sleep(100)
        monkeypatch.undo()
    assert 3 < len(asked) < 60


async def test_tokens_after_a_refused_connection_keep_nobody_from_looking(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = PretendBackend("one", reading=REFUSED)
    async with registry_of({"reasoner": backend}) as registry:
        await trio.sleep(1)
        for _ in range(60):
            backend.last_token_at = trio.current_time()
            await trio.sleep(1)
        assert 10 < len(backend.looks) < 20
        backend.reading = UP
        with trio.fail_after(6):
            await registry.wait_healthy("reasoner")


async def test_one_that_can_t_be_closed_keeps_no_other_open(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn(PretendBackend):
        async def aclose(self) -> None:
            await super().aclose()
            if self.name == "hangs":
                await trio.sleep_forever()
            raise OSError(f"{self.name} can't be closed")

    async def use(error: Exception | None) -> None:
        backends = [Stubborn("hangs"), Stubborn("fails"), PretendBackend("well")]
        try:
            async with registry_of({"reasoner": backends}):
                await trio.lowlevel.checkpoint()
                if error is not None:
                    raise error
        finally:
            assert [backend.closings for backend in backends] == [1, 1, 1]

    with pytest.raises(OSError, match="fails can't be closed"):
        await use(None)
    with pytest.raises(KeyError, match="mine"):
        await use(KeyError("mine"))
    assert trio.current_time() == 20


async def test_between_two_steps_no_control_c_comes_in(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def protected(_: object) -> Gate:
        seen.append(trio.lowlevel.currently_ki_protected())
        return gate

    gate = Gate(1, name="looked at")
    async with registry_of({"reasoner": PretendBackend("one")}) as registry:
        pass
    monkeypatch.setattr(PretendBackend, "endpoint_gate", property(protected))
    registry = registry_of({"reasoner": PretendBackend("one")})
    async with registry:
        assert seen == [True]
        seen.clear()
        backend: Any = registry.backend("one")
        backend.on_chat = lambda: seen.append(trio.lowlevel.currently_ki_protected())
        async with registry.stream("reasoner", "hi"):
            assert seen[-1]
    assert not trio.lowlevel.currently_ki_protected()


async def test_a_measurement_has_nothing_of_who_asks_first(autojump_clock: trio.testing.MockClock) -> None:
    options = []

    class Spy(PretendBackend):
        async def measure_inference_latency(self) -> float:
            options.append(current_options())
            return await super().measure_inference_latency()

    async with registry_of({"reasoner": Spy("one")}) as registry:
        with use_options(hold_timeout=0.1, priority=0):
            assert await registry.measure("reasoner") == 0.3
    assert options == [RequestOptions()]


@pytest.mark.parametrize("measured", [TypeError("a mistake"), math.nan])
async def test_a_measurement_that_is_none_is_reported_and_not_the_last(
    measured: Any, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(PretendBackend):
        async def measure_inference_latency(self) -> float:
            await trio.lowlevel.checkpoint()
            if isinstance(measured, Exception):
                raise measured
            return float(measured)

    async with registry_of({"reasoner": Odd("one")}) as registry:
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="could not be measured"):
                await registry.measure("reasoner")
            await trio.sleep(11)
    assert caplog.text.count("could not be measured") == 2


async def test_a_failed_measurement_voids_the_last(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one", measured=5.0)
    async with registry_of({"reasoner": backend}) as registry:
        await registry.measure("reasoner")
        assert (await registry.load("reasoner")).level is LoadLevel.BUSY
        await trio.sleep(31)
        backend.measured = BackendUnavailable("gone")
        with pytest.raises(BackendUnavailable):
            await registry.measure("reasoner")
        assert (await registry.load("reasoner")).inference_latency is None


async def test_what_a_fresh_look_shows_moves_the_next_one(autojump_clock: trio.testing.MockClock) -> None:
    backend = PretendBackend("one")
    async with registry_of({"reasoner": backend}) as registry:
        await trio.sleep(2)
        backend.reading = REFUSED
        await registry.load("reasoner", fresh=True)
        await trio.sleep(5.5)
        assert backend.looks == [0, 2, 7]


async def test_one_whose_adapter_was_closed_elsewhere_is_down_and_not_asked(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    shared, other = PretendBackend("shared"), PretendBackend("other")
    async with registry_of({"reasoner": [shared, other]}) as registry:
        await trio.sleep(1)
        async with registry_of({"reasoner": shared}):
            pass
        assert registry.choose("reasoner").name == "other"
        await trio.sleep(60)
        assert (await registry.load("reasoner", backend="shared")).reason == "its adapter was closed"
    assert "Traceback" not in caplog.text
