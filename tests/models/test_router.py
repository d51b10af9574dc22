"""The router: leases, who gets them when, and what its callers are told. Played processes, exact times."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log as AnyLog
from tests.models.played import Servers, model, router
from trio_mlxgate import GateRefused, QueueFull, Superseded, WaitTooLong
from trio_mlxgate.core.swap_state import Phase
from trio_mlxgate.errors import PlanRefused, UnknownModel
from trio_mlxgate.models import (
    EvictionFailed,
    LeaseProgress,
    LeaseStage,
    ModelCrashed,
    ModelNotStopped,
    ModelRouter,
    ModelStartFailed,
    ModelState,
    ModelUnloaded,
    Plan,
    RestartSettings,
    SwapOptions,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Log(AnyLog):
    """What happened, and when."""

    def progress(self, step: LeaseProgress) -> None:
        more = step.position if step.position is not None else "+".join(step.evicting)
        self(f"{step.stage.value} {more}".strip())


async def use(
    router: ModelRouter, log: Log, name: str, model: str, seconds: float = 1.0, priority: int | None = None, **more: Any
) -> None:
    async with router.lease(model, priority, **more):
        log(f"+{name}")
        await trio.sleep(seconds)
        log(f"-{name}")


async def fail(
    router: ModelRouter, model: str, error: Exception, before: Callable[[], object] = int, after: float = 0.0
) -> None:
    """Lease a model, do something, and fail some seconds later."""
    async with router.lease(model):
        before()
        if after:
            await trio.sleep(after)
        raise error


async def told(error: type[BaseException], text: str, function: Callable[[], Awaitable[object]]) -> BaseException:
    with pytest.raises(error, match=text) as caught:
        await function()
    return caught.value


# ---- the way of a lease ----


async def test_a_lease_from_the_queue_to_the_model(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed, trio.open_nursery() as nursery:
        log = Log()
        nursery.start_soon(use, routed, log, "a", "a", 3.0)
        await trio.sleep(1.0)
        async with routed.lease("b", on_progress=log.progress) as lease:
            assert lease.base_url == "http://b.test"
            assert lease.model == "b"
            assert lease.priority == BACKGROUND
            assert lease.waited == 7.0
            log("served")
        # a: load to 2, served to 5, stop to 6; b: load to 8.
        assert log.lines == [
            (1.0, "queued 1"),
            (2.0, "+a"),
            (5.0, "-a"),
            (5.0, "evicting a"),
            (6.0, "loading"),
            (8.0, "ready"),
            (8.0, "served"),
        ]
        assert routed.statistics().evictions == 1
        assert servers.running == {"b"}
    assert servers.running == set()


async def test_progress_carries_estimates_once_all_is_measured(autojump_clock: MockClock) -> None:
    steps: list[LeaseProgress] = []
    async with router(Servers(), model("a", limit=1), "b") as routed:
        log = Log()
        await use(routed, log, "warm", "a")
        await use(routed, log, "warm", "b")
        await use(routed, log, "warm", "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, routed, log, "first", "a")
            await wait_all_tasks_blocked()
            nursery.start_soon(use, routed, log, "second", "a")
            await wait_all_tasks_blocked()
            async with routed.lease("a", on_progress=steps.append):
                pass
            async with routed.lease("b", on_progress=steps.append):
                pass
    assert steps == [
        LeaseProgress(model="a", stage=LeaseStage.QUEUED, position=2, estimated_wait=2.0),
        LeaseProgress(model="a", stage=LeaseStage.QUEUED, position=1, estimated_wait=1.0),
        LeaseProgress(model="a", stage=LeaseStage.READY, estimated_wait=0.0),
        LeaseProgress(model="b", stage=LeaseStage.EVICTING, evicting=("a",), estimated_wait=3.0),
        LeaseProgress(model="b", stage=LeaseStage.LOADING, estimated_wait=2.0),
        LeaseProgress(model="b", stage=LeaseStage.READY, estimated_wait=0.0),
    ]


async def test_entering_is_a_checkpoint_and_leaving_is_none(autojump_clock: MockClock) -> None:
    async with router(Servers()) as routed:
        async with routed.lease("a"):
            pass
        lease = routed.lease("a")
        with assert_checkpoints():
            await lease.__aenter__()
        with assert_no_checkpoints():
            await lease.__aexit__(None, None, None)
        with assert_no_checkpoints(), routed.lease_nowait("a"):
            pass
        with assert_checkpoints():
            await routed.unload("b")
        gone = routed.lease("a")
        with trio.CancelScope() as scope:
            scope.cancel()
            await gone.__aenter__()
        assert scope.cancelled_caught
        assert routed.statistics().models["a"].admitted == 3, "who is cancelled already never asks"


async def test_at_most_limit_bodies_run_and_the_others_go_by_priority(autojump_clock: MockClock) -> None:
    async with router(Servers(), model("a", limit=2)) as routed, trio.open_nursery() as nursery:
        log = Log()
        for name in ("digest 1", "digest 2", "digest 3", "digest 4"):
            nursery.start_soon(use, routed, log, name, "a")
            await wait_all_tasks_blocked()
        nursery.start_soon(use, routed, log, "person", "a", 1.0, FOREGROUND)
        await trio.sleep(10.0)
        order = [what for _, what in log.lines if what.startswith("+")]
        # Two at a time; who of the two goes on first is chance.
        assert [set(order[:2]), set(order[2:4]), order[4:]] == [
            {"+person", "+digest 1"},
            {"+digest 2", "+digest 3"},
            ["+digest 4"],
        ]
        running = 0
        for _, what in log.lines:
            running += 1 if what.startswith("+") else -1
            assert running <= 2


async def test_thirty_requests_for_two_models_make_one_eviction(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed, trio.open_nursery() as nursery:
        log = Log()
        for number in range(30):
            nursery.start_soon(use, routed, log, f"{number}", "ab"[number % 2], 0.05)
            await trio.sleep(0.004)
    assert servers.starts == ["a", "b"]
    assert routed.statistics().evictions == 1
    assert routed.statistics().models["a"].admitted == routed.statistics().models["b"].admitted == 15


async def test_the_hold_timeout_runs_from_the_grant(autojump_clock: MockClock) -> None:
    async with router(Servers(load=50.0)) as routed:
        log = Log()
        with pytest.raises(trio.TooSlowError, match="'a' was held for longer than its hold_timeout of 3 s"):
            await use(routed, log, "a", "a", 10.0, hold_timeout=3.0)
        assert trio.current_time() - log.start == 53.0
        async with routed.lease("a", hold_timeout=3.0) as lease:
            assert lease.deadline == trio.current_time() + 3.0
            lease.deadline += 10.0
            await trio.sleep(12.0)
        assert lease.waited == 0.0
        with routed.lease_nowait("a", hold_timeout=2.0) as quick:
            assert quick.deadline == trio.current_time() + 2.0
            with pytest.raises(ValueError, match=r"trio.current_time\(\) \+ 30"):
                quick.deadline = math.nan
        with pytest.raises(RuntimeError, match="is not held, so it has no server"):
            _ = lease.base_url
        with pytest.raises(RuntimeError, match="is not held, so it has no deadline"):
            routed.lease("a").deadline = 3.0


async def test_one_b_beside_endless_a_is_served_within_its_bound(autojump_clock: MockClock) -> None:
    async with router(Servers(), swap=SwapOptions(max_bypass=10.0)) as routed, trio.open_nursery() as nursery:
        log = Log()

        async def traffic() -> None:
            while True:
                nursery.start_soon(use, routed, log, "a", "a", 3.0)
                await trio.sleep(1.0)

        nursery.start_soon(traffic)
        await trio.sleep(7.5)
        async with routed.lease("b") as lease:
            # max_bypass, then the rest of what runs, a stop and a load.
            assert lease.waited <= 10.0 + 3.0 + 1.0 + 2.0
            assert lease.waited > 10.0
        nursery.cancel_scope.cancel()


# ---- leaving the wait ----


async def test_who_leaves_the_wait_leaves_it_at_once(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed, trio.open_nursery() as nursery:
        log = Log()
        nursery.start_soon(use, routed, log, "a", "a", 5.0)
        await trio.sleep(3.0)
        with trio.CancelScope() as scope:
            nursery.start_soon(use, routed, log, "behind", "b")
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as inner:
                inner.start_soon(use, routed, log, "never", "b", 1.0, FOREGROUND)
                await wait_all_tasks_blocked()
                assert routed.statistics().models["b"].waiting == 2
                scope.cancel()
        assert routed.statistics().models["b"].waiting == 1
        assert routed.statistics().models["b"].cancelled == 1
    assert [what for _, what in log.lines] == ["+a", "-a", "+behind", "-behind"]


async def test_a_load_that_nobody_waits_for_is_given_up_for_another(autojump_clock: MockClock) -> None:
    servers = Servers(load=60.0)
    async with router(servers) as routed:
        log = Log()
        with trio.move_on_after(5.0):
            async with routed.lease("a", outer_deadline="allow"):
                raise AssertionError("it takes a minute")
        assert servers.running == {"a"}
        async with routed.lease("b"):
            assert trio.current_time() - log.start == 5.0 + 1.0 + 60.0


async def test_cancelled_in_any_pass_nothing_is_lost() -> None:
    """A waiter and a holder are cancelled after each number of passes; then the models are served as ever."""

    def play(passes: int) -> bool:
        in_time = False

        async def main() -> None:
            nonlocal in_time
            servers = Servers(load=0.0, stop=0.0, clearing=0.0)
            async with router(servers, model("a", limit=1), model("b", limit=1)) as routed:
                bodies: list[str] = []

                async def body(name: str) -> None:
                    async with routed.lease(name, outer_deadline="allow"):
                        assert servers.running == {name}
                        bodies.append(name)
                        await trio.lowlevel.checkpoint()

                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        for name in ("a", "b", "a"):
                            nursery.start_soon(body, name)
                        for _ in range(passes):
                            await trio.lowlevel.checkpoint()
                        in_time = len(bodies) < 3
                        scope.cancel()
                statistics = routed.statistics()
                assert statistics.in_flight == statistics.waiting == 0
                with trio.fail_after(1.0):
                    await body("b")
                    await body("a")

        trio.run(main, clock=MockClock(autojump_threshold=0))
        return in_time

    def play_all() -> None:
        in_time = [play(passes) for passes in range(60)]
        assert in_time[0]
        assert not play(200)

    await trio.to_thread.run_sync(play_all)


# ---- refusals ----


async def test_what_is_refused_says_why(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with (
        router(servers, model("qwen", limit=1, max_waiting=1), "llama", pinned=["llama"]) as routed,
        trio.open_nursery() as nursery,
    ):
        log = Log()
        error = await told(UnknownModel, "no model 'qwem'; did you mean 'qwen'", lambda: use(routed, log, "x", "qwem"))
        assert isinstance(error, LookupError)
        nursery.start_soon(use, routed, log, "q", "qwen", 10.0)
        await trio.sleep(3.0)
        error = await told(
            WaitTooLong, "waited 0.5 s", lambda: use(routed, log, "x", "qwen", max_wait=0.5, outer_deadline="allow")
        )
        await told(WaitTooLong, "not to be had at once", lambda: use(routed, log, "x", "qwen", max_wait=0))

        async def older() -> None:
            await told(Superseded, "supersede='k' came", lambda: use(routed, log, "x", "qwen", supersede="k"))

        nursery.start_soon(older)
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(use, routed, log, "newer", "qwen", supersede="k"))
        await wait_all_tasks_blocked()
        error = await told(QueueFull, "as many are with model 'qwen'", lambda: use(routed, log, "x", "qwen"))
        assert isinstance(error, GateRefused)
        nursery.cancel_scope.cancel()


async def test_a_pinned_model_is_not_stopped_for_another(autojump_clock: MockClock) -> None:
    async with router(Servers(), "llama", "qwen", pinned=["llama"]) as routed:
        log = Log()
        await use(routed, log, "l", "llama")
        error = await told(PlanRefused, "'llama', which is pinned", lambda: use(routed, log, "q", "qwen"))
        assert isinstance(error, PlanRefused)
        assert error.target == "qwen"
        await routed.unload("llama")
        await use(routed, log, "q", "qwen")


async def test_bad_arguments_are_told_at_once() -> None:
    routed = router(Servers())
    with pytest.raises(TypeError, match="model must be the name of a model"):
        routed.lease(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hold_timeout must be a number of seconds"):
        routed.lease("a", hold_timeout="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_wait must be >= 0"):
        routed.lease("a", max_wait=-1)
    with pytest.raises(TypeError, match="supersede must be hashable"):
        routed.lease("a", supersede=[])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outer_deadline must be 'warn', 'raise' or 'allow'"):
        routed.lease("a", outer_deadline="never")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_progress must be a plain function"):
        routed.lease("a", on_progress=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="priority"):
        routed.lease("a", "high")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config must be a RouterConfig"):
        ModelRouter({})  # type: ignore[arg-type]
    for wrong in (routed.lease("a").__enter__, routed.lease("a").__await__):  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="entered with 'async with'"):
            wrong()
    with pytest.raises(TypeError, match="entered with a plain 'with'"):
        await routed.lease_nowait("a").__aenter__()  # type: ignore[attr-defined]


async def test_a_deadline_around_the_wait_is_reported(autojump_clock: MockClock) -> None:
    from trio_mlxgate import OuterDeadlineWarning

    async with router(Servers()) as routed:
        log = Log()
        with (
            trio.move_on_after(30.0),
            pytest.warns(OuterDeadlineWarning, match="for a lease of model 'a': the wait, and"),
        ):
            await use(routed, log, "a", "a")
        with trio.move_on_after(30.0):
            await use(routed, log, "a", "a", outer_deadline="allow")
            strict = partial(use, routed, log, "a", "a", outer_deadline="raise")
            await told(RuntimeError, "runs while this call waits", strict)


# ---- what a task may hold ----


async def test_a_task_does_not_wait_for_itself(autojump_clock: MockClock) -> None:
    async with router(Servers(), "a", "b") as routed, trio.open_nursery() as nursery:
        log = Log()
        async with routed.lease("a") as lease:
            await told(RuntimeError, "holds a lease of model 'a' already", lambda: use(routed, log, "x", "a"))
            await told(RuntimeError, "'a', which has to go before 'b'", lambda: use(routed, log, "x", "b"))
            await told(RuntimeError, "would wait for its own end", lambda: routed.unload("a"))
            await told(RuntimeError, "used only once", lease.__aenter__)
            nursery.start_soon(use, routed, log, "child", "a")
            await trio.sleep(3.0)
            assert log.lines[-1][1] == "-child"
        await use(routed, log, "later", "a")
        await use(routed, log, "later", "b")


async def test_a_child_that_waits_for_the_task_above_it_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with router(Servers(), model("a", limit=1), "b") as routed, routed.lease("a"):
        for name in ("a", "b"):
            caplog.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(use, routed, Log(), "child", name))  # noqa: ASYNC112 - it is about a child
                await trio.sleep(10.0)
                nursery.cancel_scope.cancel()
            lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert len(lines) == 1
            assert lines[0].startswith(f"a lease of model {name!r} waits for what the task ")
            assert "test_router.py:" in lines[0]


async def test_models_that_may_be_together_are_leased_together(autojump_clock: MockClock) -> None:
    servers = Servers(lambda there: set(there) <= {"a", "b"} or set(there) <= {"c"})
    async with router(servers, "a", "b", "c", sets={"pair": "a & b"}) as routed:
        async with routed.lease("a"), routed.lease("b"):
            assert servers.running == {"a", "b"}
        async with routed.lease("c"):
            assert servers.running == {"c"}


async def test_lease_nowait_is_served_at_once_or_not_at_all(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers, model("a", limit=1), "b") as routed, trio.open_nursery() as nursery:
        log = Log()
        with pytest.raises(trio.WouldBlock), routed.lease_nowait("a"):
            raise AssertionError("it isn't loaded")
        assert servers.running == set()
        await use(routed, log, "a", "a")
        with routed.lease_nowait("a") as lease:
            assert lease.base_url == "http://a.test"

            async def another() -> None:
                await trio.lowlevel.checkpoint()
                with pytest.raises(trio.WouldBlock), routed.lease_nowait("a"):
                    raise AssertionError("its slot is taken")
                log("would block")

            nursery.start_soon(another)
            await wait_all_tasks_blocked()
            assert log.lines[-1][1] == "would block"
        assert routed.statistics().models["a"].in_flight == 0


# ---- a server that ends ----


async def test_a_lost_connection_is_blamed_on_the_server_that_ended(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed:
        with pytest.raises(ModelCrashed, match="model 'a': it was killed by SIGKILL") as caught:
            await fail(routed, "a", ConnectionResetError("the other end has gone"), partial(servers.kill, "a"), 0.1)
        assert caught.value.model == "a"
        assert caught.value.exit_status == -9
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        start = trio.current_time()
        async with routed.lease("a"):
            # What is left of it goes, the pause after a crash, and the load of a new process.
            assert trio.current_time() - start == 0.5 - 0.1 + 2.0
        assert servers.starts == ["a", "a"]


async def test_the_connection_is_lost_before_the_process_is_known_to_have_ended(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed, trio.open_nursery() as nursery:

        async def die() -> None:
            await trio.sleep(0.5)
            servers.kill("a")

        with pytest.raises(ModelCrashed):
            await fail(
                routed,
                "a",
                ExceptionGroup("of a nursery", [trio.BrokenResourceError()]),
                partial(nursery.start_soon, die),
            )
        await use(routed, Log(), "again", "a")
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await fail(routed, "a", trio.BrokenResourceError())
        assert trio.current_time() - start == 1.0, "no news: it is what it is"
        with pytest.raises(TimeoutError):
            await fail(routed, "a", TimeoutError())
        with pytest.raises(KeyError):
            await fail(routed, "a", KeyError())
        assert trio.current_time() - start == 1.0


async def test_a_body_that_succeeds_or_fails_by_itself_is_left_alone(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed:
        async with routed.lease("a"):
            servers.kill("a")
            await trio.sleep(5.0)
        with pytest.raises(KeyError):
            await fail(routed, "a", KeyError(), partial(servers.kill, "a"), 5.0)


async def test_who_crashes_too_often_is_refused_and_nobody_goes_for_it(autojump_clock: MockClock) -> None:
    servers = Servers()
    again = RestartSettings(first=30.0, most=2, window=1000.0)
    async with router(servers, model("a", restarts=again), "b") as routed:
        log = Log()
        for _ in range(3):
            async with routed.lease("a"):
                servers.kill("a")
                await trio.sleep(0.1)
        await use(routed, log, "b", "b", 0.0)
        error = await told(ModelCrashed, "crash number 3", lambda: use(routed, log, "a", "a"))
        assert isinstance(error, ModelCrashed)
        assert error.retry_after is not None
        assert error.retry_after == 30.0 - 0.25 - 2.0
        assert servers.running == {"b"}
        await trio.sleep(error.retry_after)
        await use(routed, log, "a", "a")


async def test_a_model_that_does_not_start_is_told_to_all_who_wait(autojump_clock: MockClock) -> None:
    servers = Servers()
    servers.broken.add("a")
    errors: list[BaseException] = []
    async with router(servers) as routed:
        log = Log()

        async def fails() -> None:
            errors.append(
                await told(
                    ModelStartFailed,
                    "model .a.: it ended with status 1 while it was starting",
                    lambda: use(routed, log, "a", "a"),
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(fails)
        assert errors[0] is not errors[1]
        await fails()
        await routed.unload("a")
        servers.broken.clear()
        await use(routed, log, "a", "a")


async def test_a_crash_in_the_moment_in_which_something_is_due_strands_nobody(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers, model("a", limit=2), "b") as routed, trio.open_nursery() as nursery:
        log = Log()
        nursery.start_soon(use, routed, log, "holder", "a", 20.0)
        await trio.sleep(5.0)

        async def leaves() -> None:
            with pytest.raises(WaitTooLong):
                await use(routed, log, "b", "b", 1.0, FOREGROUND, max_wait=2.0)

        nursery.start_soon(leaves)
        await wait_all_tasks_blocked()
        nursery.start_soon(use, routed, log, "waiter", "a")
        await wait_all_tasks_blocked()
        # The loop is busy while the time of the one who waits for b passes; then the crash is what is seen first.
        autojump_clock.jump(2.5)
        servers.kill("a")
        await trio.sleep(10.0)
        assert "+waiter" in [what for _, what in log.lines]


async def test_evictions_make_no_crash_forgotten(autojump_clock: MockClock) -> None:
    servers = Servers()
    again = RestartSettings(first=0.5, most=2, window=1000.0)
    async with router(servers, model("a", restarts=again), "b") as routed:
        log = Log()
        for _ in range(2):
            async with routed.lease("a"):
                servers.kill("a")
            await use(routed, log, "a", "a", 0.0)
            await use(routed, log, "b", "b", 0.0)
        async with routed.lease("a"):
            servers.kill("a")
        await told(ModelCrashed, "crash number 3", lambda: use(routed, log, "a", "a"))


async def test_the_lines_of_the_error_are_those_of_the_server_that_ended(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers, model("a", limit=2)) as routed, trio.open_nursery() as nursery:
        caught: list[ModelCrashed] = []

        async def loses() -> None:
            with pytest.raises(ModelCrashed) as error:
                await fail(routed, "a", ConnectionResetError(), after=10.0)
            caught.append(error.value)

        output = routed.processes["a"].output
        output.feed(b"of one before\n")
        nursery.start_soon(loses)
        await trio.sleep(1.0)
        output.feed(b"it begins\n")
        await trio.sleep(4.0)
        output.feed(b"no memory\n")
        servers.kill("a")
        await trio.sleep(0.1)
        output.feed(b"the end\n")
        await use(routed, Log(), "next", "a", 0.0)
        output.feed(b"another one begins\n")
        await trio.sleep(10.0)
        assert caught[0].output == ("it begins", "no memory", "the end")


async def test_the_address_of_a_server_that_has_ended_is_not_given_out(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed, routed.lease("a") as lease:
        assert lease.base_url
        servers.kill("a")
        with pytest.raises(ModelCrashed, match="model 'a': it was killed"):
            _ = lease.base_url


async def test_an_error_that_has_nothing_to_do_with_connections_is_left_alone(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed:
        await use(routed, Log(), "a", "a")
        start = trio.current_time()
        for error in (FileNotFoundError(2, "no file"), EOFError(), PermissionError(13, "no"), OSError("all failed")):
            with pytest.raises(type(error)):
                await fail(routed, "a", error)
        assert trio.current_time() == start
        with pytest.raises(FileNotFoundError):
            await fail(routed, "a", FileNotFoundError(2, "no file"), partial(servers.kill, "a"), 1.0)


# ---- unload, ttl, the end ----


async def test_unload_lets_what_runs_end(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers, model("a", limit=1), "b") as routed, trio.open_nursery() as nursery:
        log = Log()
        nursery.start_soon(use, routed, log, "a", "a", 5.0)
        await trio.sleep(3.0)

        async def waits() -> None:
            await told(ModelUnloaded, "was unloaded while this waited", lambda: use(routed, log, "x", "a"))
            log("told")

        nursery.start_soon(waits)
        await wait_all_tasks_blocked()
        await routed.unload("a")
        log("gone")
        assert servers.running == set()
        # Served from 2 to 7, stopped at 8.
        assert log.lines == [(2.0, "+a"), (3.0, "told"), (7.0, "-a"), (8.0, "gone")]


async def test_unload_now_stops_what_runs_and_its_lease_says_so(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed, trio.open_nursery() as nursery:

        async def loses() -> None:
            with pytest.raises(ModelUnloaded, match="was stopped while it was in use"):
                await fail(routed, "a", ConnectionResetError(), after=5.0)

        nursery.start_soon(loses)
        await trio.sleep(3.0)
        start = trio.current_time()
        await routed.unload(now=True)
        assert trio.current_time() - start == 1.0
        assert routed.processes["a"].state is ModelState.STOPPED


async def test_an_unload_that_is_not_waited_for_goes_on(autojump_clock: MockClock) -> None:
    servers = Servers(stop=10.0)
    async with router(servers) as routed:
        await use(routed, Log(), "a", "a")
        with trio.move_on_after(1.0):
            await routed.unload("a")
        assert servers.running == {"a"}
        await trio.sleep(9.5)
        assert servers.running == set()
        await told(UnknownModel, "no model 'z'", lambda: routed.unload("a", "z"))


async def test_a_model_that_nobody_uses_goes(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers, model("a", ttl=60.0)) as routed:
        await use(routed, Log(), "a", "a")
        await trio.sleep(59.5)
        assert servers.running == {"a"}
        assert routed.statistics().models["a"].phase is Phase.READY
        await trio.sleep(1.0)
        assert routed.processes["a"].state is ModelState.STOPPING
        await trio.sleep(1.0)
        assert servers.running == set()


async def test_the_end_refuses_who_waits_and_who_comes(autojump_clock: MockClock) -> None:
    servers = Servers()
    log = Log()
    with pytest.raises(RuntimeError, match="nobody runs this router"):
        await use(router(servers), log, "x", "a")
    async with trio.open_nursery() as outside, trio.open_nursery() as nursery:
        routed = await nursery.start(router(servers, model("a", limit=1), "b").run)

        async def waits() -> None:
            await told(trio.ClosedResourceError, "the router has ended", lambda: use(routed, log, "x", "a"))
            log("told")

        outside.start_soon(use, routed, log, "holder", "a", 20.0)
        await trio.sleep(3.0)
        outside.start_soon(routed.unload, "a")
        await wait_all_tasks_blocked()
        outside.start_soon(waits)
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert log.lines[-1][1] == "told", "at once, before the servers have gone"
            assert servers.running == {"a"}
    assert servers.running == set()
    await told(trio.ClosedResourceError, "the router has ended", lambda: use(routed, log, "x", "a"))
    await told(trio.ClosedResourceError, "the router has ended", routed.unload)
    await told(RuntimeError, "make another ModelRouter", routed.run)
    await told(RuntimeError, "make another ModelRouter", routed.__aenter__)
    assert routed.statistics().in_flight == 0


async def test_an_error_of_the_block_comes_out_bare(autojump_clock: MockClock) -> None:
    servers = Servers()

    async def block() -> None:
        async with router(servers) as routed:
            await use(routed, Log(), "a", "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await block()
    assert servers.running == set()


def test_asyncio_is_told_so() -> None:
    async def main() -> None:
        async with router(Servers()):
            raise AssertionError("it can't work")

    with pytest.raises(RuntimeError, match="ModelRouter works under trio alone"):
        asyncio.run(main())


async def test_a_thread_is_told_so(autojump_clock: MockClock) -> None:
    async with router(Servers()) as routed:

        def work() -> None:
            with routed.lease_nowait("a"):
                raise AssertionError("it can't work")

        with pytest.raises(RuntimeError, match="asked by tasks of the trio run that runs it, not by threads"):
            await trio.to_thread.run_sync(work)


async def test_another_run_is_told_so(autojump_clock: MockClock) -> None:
    async with router(Servers()) as routed:

        async def main() -> None:
            await told(RuntimeError, "run by another trio run", lambda: use(routed, Log(), "x", "a"))

        await trio.to_thread.run_sync(trio.run, main)


async def test_unload_takes_names(autojump_clock: MockClock) -> None:
    async with router(Servers()) as routed:
        for wrong in (["a", "b"], None, 1):
            with pytest.raises(TypeError, match=r"unload\(\) takes names of models"):
                await routed.unload(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="now must be True or False"):
            await routed.unload("a", now="no")  # type: ignore[arg-type]


async def test_a_lease_of_a_task_that_has_ended_is_taken_back(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with router(Servers(), model("a", limit=1), "b") as routed, trio.open_nursery() as nursery:
        kept: list[Any] = []

        async def forgets() -> None:
            lease = routed.lease("a", hold_timeout=5.0)
            kept.append(lease)
            await lease.__aenter__()

        with caplog.at_level(logging.ERROR, logger="trio_mlxgate.models"):
            nursery.start_soon(forgets, name="forgetful")
            await trio.sleep(10.0)
        assert [record.getMessage() for record in caplog.records] == [
            "task 'forgetful' has ended without leaving its lease of model 'a'; use async with"
        ]
        assert routed.statistics().in_flight == 0
        await use(routed, Log(), "b", "b")
        assert kept[0].state.value == "released"


class Moody:
    """A planner that fails when it is told to."""

    def __init__(self) -> None:
        self.mood = ""

    def evictions(self, target: str, running: Any, busy: Any = (), last_used: Any = None) -> Any:
        if self.mood == "raises":
            raise KeyError(target)
        if self.mood == "nonsense":
            return None
        others = tuple(sorted(name for name in running if name != target))
        evict = ("z",) if self.mood == "strange" else others
        return Plan(target=target, evict=evict, target_set=(target,), set_name="", expression="", cost=len(evict))


@pytest.mark.parametrize("mood", ["raises", "nonsense", "strange"])
async def test_a_planner_that_fails_refuses_and_breaks_nothing(
    mood: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    planner = Moody()
    async with router(Servers(), "a", "b", planner=planner) as routed, trio.open_nursery() as nursery:
        log = Log()
        nursery.start_soon(use, routed, log, "a", "a", 5.0)
        await trio.sleep(3.0)
        scope = trio.CancelScope()

        async def leaves() -> None:
            with scope:
                await use(routed, log, "b", "b")

        async def waits() -> None:
            await told(PlanRefused, "the planner", lambda: use(routed, log, "b", "b"))

        nursery.start_soon(waits)
        nursery.start_soon(leaves)
        await wait_all_tasks_blocked()
        planner.mood = mood
        scope.cancel()
        await trio.sleep(10.0)
        planner.mood = ""
        caplog.clear()
        await use(routed, log, "later", "b")
        assert not caplog.records or "planner" not in caplog.text


async def test_a_key_that_can_not_be_shown_keeps_nobody_waiting(autojump_clock: MockClock) -> None:
    class Key:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    async with router(Servers()) as routed, trio.open_nursery() as nursery:
        key = Key()

        async def older() -> None:
            with pytest.raises(ZeroDivisionError):
                await use(routed, Log(), "x", "a", supersede=key)

        nursery.start_soon(older)
        await wait_all_tasks_blocked()
        await use(routed, Log(), "x", "a", supersede=key)


async def test_three_models_that_do_not_fit_together_are_not_leased_by_one_task(autojump_clock: MockClock) -> None:
    servers = Servers(lambda there: len(there) < 3)
    async with (
        router(servers, "a", "b", "c", sets={"two": "(a & b) | (a & c) | (b & c)"}) as routed,
        routed.lease("a"),
        routed.lease("b"),
    ):
        await told(RuntimeError, "has to go before 'c' can come", lambda: use(routed, Log(), "x", "c"))


# ---- who watches ----


async def test_an_error_of_on_progress_goes_to_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(step: LeaseProgress) -> None:
        raise ValueError(step.stage.value)

    async with router(Servers()) as routed:
        with caplog.at_level(logging.ERROR, logger="trio_mlxgate.models"):
            await use(routed, Log(), "a", "a", on_progress=fails)
    assert [record.getMessage()[:18] for record in caplog.records] == ["on_progress failed"] * 2


async def test_on_progress_may_cancel_another_one_who_waits(autojump_clock: MockClock) -> None:
    async with router(Servers(), model("a", limit=2)) as routed, trio.open_nursery() as nursery:
        log = Log()
        scope = trio.CancelScope()

        async def other() -> None:
            with scope:
                await use(routed, log, "other", "a", 1.0, BACKGROUND)

        def cancel(step: LeaseProgress) -> None:
            if step.stage is LeaseStage.READY:
                scope.cancel()

        nursery.start_soon(partial(use, routed, log, "first", "a", 1.0, FOREGROUND, on_progress=cancel))
        nursery.start_soon(partial(use, routed, log, "second", "a", 1.0, FOREGROUND))
        nursery.start_soon(other)
        await trio.sleep(10.0)
        assert sorted(log.lines) == [(2.0, "+first"), (2.0, "+second"), (3.0, "-first"), (3.0, "-second")]
        assert routed.statistics().models["a"].cancelled == 1


async def test_on_progress_asks_for_no_lease_itself(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with router(Servers()) as routed:

        def asks(step: LeaseProgress) -> None:
            with routed.lease_nowait("b"):
                raise AssertionError("it isn't there")

        with caplog.at_level(logging.ERROR, logger="trio_mlxgate.models"):
            await use(routed, Log(), "a", "a", on_progress=asks)
        assert "on_progress must not ask for a lease itself" in caplog.text
        assert routed.statistics().in_flight == 0


async def test_what_ends_the_program_comes_out_of_the_router_if_it_struck_in_a_cancellation(
    autojump_clock: MockClock,
) -> None:
    def ends(step: LeaseProgress) -> None:
        if step.position == 1:
            raise SystemExit(3)

    async def main() -> None:
        async with router(Servers(), model("a", limit=1)) as routed, trio.open_nursery() as nursery:
            log = Log()
            nursery.start_soon(use, routed, log, "holder", "a", 50.0)
            await trio.sleep(3.0)
            scope = trio.CancelScope()

            async def leaves() -> None:
                with scope:
                    await use(routed, log, "first", "a")

            nursery.start_soon(leaves)
            await wait_all_tasks_blocked()
            nursery.start_soon(partial(use, routed, log, "second", "a", on_progress=ends))
            await wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep(1.0)

    struck = False
    try:
        await main()
    except* SystemExit:
        struck = True
    assert struck


async def test_a_server_that_on_progress_ends_strands_nobody(autojump_clock: MockClock) -> None:
    servers = Servers()
    async with router(servers) as routed, trio.open_nursery() as nursery:
        log = Log()

        def kill(step: LeaseProgress) -> None:
            if step.stage is LeaseStage.READY and servers.starts == ["a"]:
                servers.kill("a")

        nursery.start_soon(partial(use, routed, log, "first", "a", on_progress=kill))
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(use, routed, log, "second", "a"))
        await trio.sleep(10.0)
        assert sorted(what for _, what in log.lines) == ["+first", "+second", "-first", "-second"]
        await use(routed, log, "third", "a")


async def test_what_ends_the_program_in_on_progress_loses_no_slot(autojump_clock: MockClock) -> None:
    def ends(step: LeaseProgress) -> None:
        raise SystemExit

    async with router(Servers(), model("a", limit=1)) as routed:
        await use(routed, Log(), "a", "a")
        with pytest.raises(SystemExit):
            await use(routed, Log(), "a", "a", on_progress=ends)
        statistics = routed.statistics()
        assert statistics.in_flight == statistics.waiting == 0
        await use(routed, Log(), "a", "a")


async def test_a_process_that_does_not_stop_is_told(autojump_clock: MockClock) -> None:
    class Stuck(Servers):
        def __call__(self, config: Any, **more: Any) -> Any:
            process = super().__call__(config, **more)

            async def stop(*, now: bool = False, forget: bool = True) -> None:
                await trio.sleep(1.0)
                raise ModelNotStopped("process 7 hangs", model=config.name)

            process.stop = stop  # type: ignore[method-assign]
            return process

    async with router(Stuck()) as routed:
        await use(routed, Log(), "a", "a")
        start = trio.current_time()
        error = await told(
            EvictionFailed, "no place for model 'b': a does not stop: process 7", lambda: use(routed, Log(), "b", "b")
        )
        assert isinstance(error, EvictionFailed)
        assert error.model == "b"
        # Three attempts of a second, a second apart.
        assert trio.current_time() - start == 5.0
        await told(EvictionFailed, "model 'a' does not stop", routed.unload)
