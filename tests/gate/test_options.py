"""Options of the gate beyond what the battery checks: bad arguments, messages, retry_after, runs, odd moments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, holder, job
from trio_mlxgate import Gate, QueueFull, Superseded, WaitTooLong
from trio_mlxgate.instrumentation import Details, Granted, Queued

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("aging", 0, ValueError),
        ("aging", -1.0, ValueError),
        ("aging", math.inf, ValueError),
        ("aging", math.nan, ValueError),
        ("aging", True, TypeError),
        ("aging", "60", TypeError),
        ("reserved", 1, TypeError),
        ("reserved", {"foreground": 1}, TypeError),
        ("reserved", {True: 1}, TypeError),
        ("reserved", {0: -1}, ValueError),
        ("reserved", {0: 1.5}, TypeError),
        ("reserved", {10**7: 1}, ValueError),
        ("max_waiting", -1, ValueError),
        ("max_waiting", 2.0, TypeError),
        ("max_waiting", True, TypeError),
        ("max_waiting", {100: None}, TypeError),
        ("max_waiting", {0.5: 3}, TypeError),
        ("max_waiting", [3], TypeError),
        ("outer_deadline", "ignore", ValueError),
        ("outer_deadline", None, ValueError),
    ],
)
def test_a_bad_option_is_refused_when_the_gate_is_made(option: str, value: object, error: type[Exception]) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(error, match=option):
        Gate(1, **options)


@pytest.mark.parametrize("how", ["slot", "slot_nowait", "acquire_detached"])
async def test_a_bad_option_of_a_call_is_refused_at_once(how: str) -> None:
    gate: Any = Gate(1)

    async def ask(**options: Any) -> None:
        if how == "acquire_detached":
            await gate.acquire_detached(**options)
        else:
            getattr(gate, how)(**options)

    with pytest.raises(TypeError, match="unhashable"):
        await ask(supersede=["page 1"])
    if how != "slot_nowait":
        with pytest.raises(ValueError, match="outer_deadline"):
            await ask(outer_deadline="never")
    assert gate.statistics().admitted == gate.statistics().rejected == 0


def test_options_are_copied() -> None:
    reserved = {int(FOREGROUND): 1}
    gate = Gate(2, reserved=reserved)
    reserved[0] = 5
    assert gate._admission.admits(BACKGROUND)


def test_a_gate_keeps_its_options_in_the_next_run() -> None:
    gate = Gate(2, aging=60, reserved={FOREGROUND: 1}, max_waiting=1)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            end = trio.Event()
            await nursery.start(holder, gate, end)
            nursery.start_soon(holder, gate, end)
            await wait_all_tasks_blocked()
            assert (gate.statistics().in_flight, gate.statistics().tasks_waiting) == (1, 1)
            with pytest.raises(QueueFull):
                await gate.acquire_detached()
            assert gate.aging == 60
            end.set()

    for _ in range(2):
        trio.run(main)


async def test_refusals_say_when_another_attempt_has_a_chance(autojump_clock: MockClock) -> None:
    gate, end = Gate(1, name="macmini", max_waiting=2), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(holder, gate, end)
        await wait_all_tasks_blocked()
        nursery.start_soon(holder, gate, end)
        await wait_all_tasks_blocked()
        # Nothing is measured yet.
        with pytest.raises(
            QueueFull, match=r"the queue of gate 'macmini' is full .*2 wait.*max_waiting allows 2$"
        ) as full:
            await gate.acquire_detached()
        assert (full.value.retry_after, full.value.status, full.value.code) == (None, 429, "queue_full")
        nursery.cancel_scope.cancel()
    async with gate.slot():
        await trio.sleep(10)
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        await trio.sleep(4)
        for _ in range(2):
            nursery.start_soon(holder, gate, end)
            await wait_all_tasks_blocked()
        # The holder has been at it for 4 s of 10 (its class's mean is (0 + 10) / 2), and two wait.
        with pytest.raises(QueueFull, match=r"try again in 11 s$") as full:
            await gate.acquire_detached()
        assert full.value.retry_after == 1 + 2 * 5
        with pytest.raises(WaitTooLong, match=r"max_wait=0 leaves no time to wait; try again in 1 s$") as late:
            await gate.acquire_detached(FOREGROUND, max_wait=0)
        assert late.value.retry_after == 1
        end.set()
    gate = Gate(1)
    async with trio.open_nursery() as nursery:
        async with gate.slot():
            await trio.sleep(10)
        end = trio.Event()
        await nursery.start(holder, gate, end)
        errors: list[WaitTooLong] = []

        async def impatient(priority: int) -> None:
            with pytest.raises(WaitTooLong) as caught:
                await gate.acquire_detached(priority, max_wait=3)
            errors.append(caught.value)

        nursery.start_soon(holder, gate, end)
        for priority in (FOREGROUND, BACKGROUND, FOREGROUND):
            nursery.start_soon(impatient, priority)
        await trio.sleep(4)
        assert sorted(error.retry_after or 0 for error in errors) == [7, 7, 17]
        gate.capacity = 0
        with pytest.raises(WaitTooLong) as paused:
            await gate.acquire_detached(max_wait=0)
        assert paused.value.retry_after is None
        gate.capacity = 1
        end.set()


async def test_retrying_after_the_time_that_was_told_finds_a_slot(autojump_clock: MockClock) -> None:
    """Ten callers at once, of whom the queue takes two; each that is refused comes again when it was told to."""
    gate, log = Gate(1, max_waiting=2), Log()
    async with gate.slot():
        await trio.sleep(5)
    attempts = 0

    async def client(number: int) -> None:
        nonlocal attempts
        while True:
            attempts += 1
            try:
                await job(gate, log, str(number), BACKGROUND, 5)
                return
            except QueueFull as full:
                await trio.sleep(full.retry_after or math.nan)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(client, number)
    # The server was never idle, and nobody was refused more than twice.
    assert [when for when, _ in log.of("+")] == [5.0 * n for n in range(1, 11)]
    assert attempts <= 10 + 7 + 4 + 1


async def test_a_superseded_call_is_told_at_once_and_a_checkpoint(autojump_clock: MockClock) -> None:
    gate, end = Gate(1), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)

        async def older() -> None:
            with pytest.raises(Superseded, match="supersede='page 1'") as caught, assert_checkpoints():
                await gate.acquire_detached(supersede="page 1")
            assert (caught.value.status, caught.value.code, caught.value.retry_after) == (410, "superseded", None)

        nursery.start_soon(older)
        await wait_all_tasks_blocked()
        slot = gate.slot(supersede="page 1", max_wait=2)
        with pytest.raises(WaitTooLong, match="waited 2 s"):
            await slot.__aenter__()
        assert gate.statistics().rejected_by_reason == {"superseded": 1, "wait_too_long": 1}
        end.set()


async def test_of_a_hundred_with_one_key_the_last_is_answered(autojump_clock: MockClock) -> None:
    gate, log = Gate(1), Log()
    superseded = 0

    async def keystroke(number: int) -> None:
        nonlocal superseded
        await trio.sleep(number * 0.01)
        try:
            async with gate.slot(FOREGROUND, supersede="search"):
                log(f"+{number}")
                await trio.sleep(0.5)
        except Superseded:
            superseded += 1

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(keystroke, number)
    assert log.of("+") == [(0, "0"), (0.5, "49"), (1.0, "99")] or log.of("+") == [(0, "0"), (0.5, "50"), (1.0, "99")]
    assert superseded == 97
    assert not gate._admission._keys


class FickleKey:
    """A supersede key whose hash changes, and that can't be compared."""

    def __init__(self, hashed: int) -> None:
        self.hashed = hashed

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")


async def test_a_key_whose_hash_changes_or_that_fails_to_be_compared_harms_nobody() -> None:
    gate, end = Gate(1), trio.Event()
    key = FickleKey(1)
    entered = 0

    async def wait(key: object) -> None:
        nonlocal entered
        async with gate.slot(supersede=key):
            entered += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(wait, key)
        await wait_all_tasks_blocked()
        with pytest.raises(ValueError, match="not to be compared"):
            await gate.acquire_detached(supersede=FickleKey(1))
        assert gate.statistics().tasks_waiting == 1
        key.hashed = 2
        nursery.start_soon(wait, "page 1")
        await wait_all_tasks_blocked()
        end.set()
    assert entered == 2
    seen = gate.statistics()
    assert (seen.in_flight, seen.tasks_waiting, seen.admitted, seen.rejected) == (0, 0, 3, 0)
    assert not gate._admission._keys


async def test_a_paused_gate_refuses_nobody_as_waiting_for_itself(autojump_clock: MockClock) -> None:
    gate = Gate(2)
    tied = await gate.acquire_detached(tied=True)
    gate.capacity = 0
    with pytest.raises(WaitTooLong):
        await gate.acquire_detached(max_wait=5, tied=True)
    gate.capacity = 1
    with pytest.raises(WaitTooLong):
        await gate.acquire_detached(max_wait=0, tied=True)
    with pytest.raises(RuntimeError, match="wait"):
        await gate.acquire_detached(tied=True)
    tied.release()


async def test_another_attempt_is_never_asked_for_at_once(autojump_clock: MockClock) -> None:
    gate, end = Gate(1, max_waiting=0), trio.Event()
    async with gate.slot():
        await trio.sleep(10)
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        await trio.sleep(60)
        with pytest.raises(QueueFull, match="try again in 1 s") as full:
            await gate.acquire_detached()
        assert full.value.retry_after == 1
        end.set()


def test_what_a_gate_was_made_with_can_be_read_and_not_changed() -> None:
    gate = Gate(2, aging=60, reserved={FOREGROUND: 1}, max_waiting={BACKGROUND: 5})
    assert (gate.aging, gate.reserved, gate.max_waiting) == (60, {0: 1}, {100: 5})
    assert (Gate(1).aging, Gate(1).reserved, Gate(1).max_waiting) == (None, {}, None)
    for name in ("aging", "reserved", "max_waiting"):
        with pytest.raises(AttributeError, match=name):
            setattr(gate, name, None)


async def test_a_held_back_call_is_superseded_by_one_that_need_not_wait() -> None:
    gate, end = Gate(2, reserved={FOREGROUND: 1}), trio.Event()
    refused = trio.Event()

    async def digest() -> None:
        with pytest.raises(Superseded):
            async with gate.slot(supersede="page 1"):
                pass
        refused.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(digest)
        await wait_all_tasks_blocked()
        assert gate.statistics().tasks_waiting == 1
        with gate.slot_nowait(FOREGROUND, supersede="page 1"):
            await refused.wait()
        end.set()


async def test_a_hook_that_asks_with_the_key_of_the_call_that_it_is_told_of() -> None:
    """The call is superseded before its task sleeps."""

    class Asking:
        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            return lambda: Queued in kinds

        def __call__(self, details: Details) -> None:
            gate.capacity = 3
            gate.capacity = 2

    class Superseding(Asking):
        def __call__(self, details: Details) -> None:
            with gate.slot_nowait(FOREGROUND, supersede="page 1"):
                pass

    gate, end = Gate(2, reserved={FOREGROUND: 1}, hooks=[Superseding()]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        with pytest.raises(Superseded), assert_checkpoints():
            await gate.acquire_detached(supersede="page 1")
        seen = gate.statistics()
        assert (seen.in_flight, seen.tasks_waiting, seen.rejected_by_reason) == (1, 0, {"superseded": 1})
        end.set()
    gate, end = Gate(2, reserved={FOREGROUND: 1}, hooks=[Asking()]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        slot = await gate.acquire_detached()
        assert gate.statistics().in_flight == 2
        slot.release()
        end.set()


async def test_a_task_whose_own_responses_leave_it_no_slot_beside_the_reserved_ones() -> None:
    """Others hold slots, too; but when they end, the background's share is still held by the task that asks."""
    gate = Gate(3, reserved={FOREGROUND: 1}, outer_deadline="allow")
    mine = [await gate.acquire_detached(tied=True) for _ in range(2)]
    others = await gate.acquire_detached(FOREGROUND)
    with trio.fail_after(5), pytest.raises(RuntimeError, match="wait"):
        await gate.acquire_detached(tied=True)
    with trio.move_on_after(0.01):
        await gate.acquire_detached(FOREGROUND, tied=True)  # the reserved slot will be free
    others.release()
    for slot in mine:
        slot.release()
    assert gate.statistics().in_flight == 0


async def test_the_capacity_is_lowered_below_what_is_reserved(autojump_clock: MockClock) -> None:
    gate, log = Gate(4, reserved={FOREGROUND: 2}), Log()
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(job, gate, log, f"digest {number}", BACKGROUND, 10)
        await trio.sleep(1)
        assert gate.statistics().in_flight == 2
        gate.capacity = 2
        nursery.start_soon(job, gate, log, "person", FOREGROUND, 3)
        await trio.sleep(10)
        # At capacity 2 the background has max(1, 2 - 2) slots.
        assert gate.statistics().in_flight == 2
        gate.capacity = 6
        assert gate.statistics().in_flight == 4 + 1
    assert log.of("+person") == [(10, "")]


async def test_granted_details_are_told_once_each(autojump_clock: MockClock) -> None:
    told: list[int] = []

    class Counting:
        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            return lambda: Granted in kinds

        def __call__(self, details: Details) -> None:
            assert isinstance(details, Granted)
            told.append(details.seq)

    gate, log = Gate(2, aging=3, reserved={FOREGROUND: 1}, hooks=[Counting()]), Log()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(job, gate, log, str(number), (FOREGROUND, BACKGROUND)[number % 2], 1, number * 0.1)
    assert sorted(told) == list(range(1, 21))
