"""The laws of the gate as a battery: :func:`check_gate` puts any implementation of the gate's face through them."""

from __future__ import annotations

import inspect
import math
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import trio
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_mlxgate.errors import WaitTooLong
from trio_mlxgate.priority import Priority
from trio_mlxgate.testing.play import (
    Arrive,
    Cancel,
    End,
    Event,
    GateLike,
    LawBroken,
    SetCapacity,
    Settle,
    Sleep,
    Tick,
    play,
)

GateFactory = Callable[[int], GateLike]
Check = Callable[[GateFactory], None]

_NEVER: Final = 1e6
"""Virtual seconds after which a check is taken to hang."""


def check_gate(factory: GateFactory, *, rounds: int = 300, seed: int = 0) -> None:
    """Put an implementation of the gate through the laws. Not to be called inside a trio run; it starts its own.

    First come the checks of :data:`CHECKS`, one law each; then ``rounds`` random sequences of events, in which
    calls arrive, end, fail and are cancelled and the capacity changes, at every point of the scheduler's work.

    Args:
      factory: makes a gate of a given capacity; called anew for each check and each sequence.
      rounds: how many random sequences are played.
      seed: where the sequences start from. (trio shuffles its tasks by itself, so that even one seed is never
        quite the same run twice.)

    Raises:
      LawBroken: the message names the law and, if a random sequence broke it, that sequence, shortened.
    """
    for check in CHECKS:
        _put_through(check, factory)
    source = random.Random(seed)
    for number in range(rounds):
        capacity = source.randrange(4)
        events = random_events(source)
        error = _failure(factory, capacity, events)
        if error is not None:
            events, error = _shrink(factory, capacity, events, error)
            listing = "".join(f"    {event!r},\n" for event in events)
            raise LawBroken(
                f"{_said(error)}\n(round {number} of seed {seed}) play(factory, {capacity}, [\n{listing}])"
            ) from error


def random_events(source: random.Random) -> list[Event]:
    """A random sequence of up to some 100 events for :func:`trio_mlxgate.testing.play.play`."""
    limits = (math.inf, math.inf, math.inf, 0.0, 0.5, 2.0)
    priorities = (0, 0, 100, 100, 50, -3)

    def index() -> int:
        return source.randrange(30)

    makers: tuple[Callable[[], Event], ...] = (
        lambda: Arrive(source.choice(priorities), source.choice(limits), source.choice(limits)),
        lambda: Arrive(source.choice(priorities)),
        lambda: Arrive(source.choice(priorities), nowait=True, hold_timeout=source.choice(limits)),
        lambda: End(index(), source.random() < 0.5),
        lambda: Cancel(index()),
        lambda: SetCapacity(source.randrange(5)),
        Tick,
        Tick,
        Settle,
        lambda: Sleep(source.choice((0.25, 0.5, 1.0, 400.0))),
    )
    events: list[Event] = []
    for _ in range(source.randint(1, 60)):
        if source.random() < 0.1:
            # A waiter that is cancelled just when it is granted a slot: too rare to be left to single events.
            ticks = [Tick()] * source.randrange(4)
            events += [Arrive(0), Settle(), Arrive(0), Settle(), End(index()), *ticks, Cancel(source.randrange(6))]
        else:
            events.append(source.choice(makers)())
    return events


# ---- the random sequences ----


def _failure(factory: GateFactory, capacity: int, events: list[Event]) -> Exception | None:
    try:
        play(factory, capacity, events)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the gate's, and is told with its events
        return error
    return None


def _shrink(
    factory: GateFactory, capacity: int, events: list[Event], error: Exception
) -> tuple[list[Event], Exception]:
    """Leave out events while it still fails: first large pieces, then single ones."""
    size = len(events) // 2
    while size:
        start = 0
        while start < len(events):
            shorter = events[:start] + events[start + size :]
            # trio shuffles the tasks of a pass, so that a failure may need more than one attempt to show again.
            found = next(filter(None, (_failure(factory, capacity, shorter) for _ in range(4))), None)
            if found is None:
                start += size
            else:
                events, error = shorter, found
        size //= 2
    return events, error


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, LawBroken) else f"a call failed by itself: {error!r}"


# ---- the single checks ----


def _put_through(check: Check, factory: GateFactory) -> None:
    law = (inspect.getdoc(check) or "").splitlines()[0]
    try:
        check(factory)
    except Exception as error:
        found = _only(error)
        raise LawBroken(f"{law} [{check.__name__}]: {found if str(found) else repr(found)}") from error


def _only(error: BaseException) -> BaseException:
    """What a group of one holds: a check's nursery wraps what fails inside."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise LawBroken(what)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    """Run ``main`` on a virtual clock; a hang of it is an error."""

    async def limited() -> None:  # a checkpoint
        with trio.move_on_after(_NEVER) as scope:
            await main()
        await trio.lowlevel.checkpoint()
        _require(not scope.cancelled_caught, "somebody waits who should not")

    trio.run(limited, clock=MockClock(autojump_threshold=0))


class _Holder:
    """A task that holds one slot until :meth:`end`, and says of itself where it is."""

    def __init__(
        self,
        gate: GateLike,
        priority: int = Priority.BACKGROUND,
        *,
        hold_timeout: float = math.inf,
        max_wait: float = math.inf,
    ) -> None:
        self._gate = gate
        self._slot = gate.slot(priority, hold_timeout=hold_timeout, max_wait=max_wait)
        self._end = trio.Event()
        self.scope = trio.CancelScope()
        self.inside = False
        self.entered_at = math.nan
        self.over = False

    def end(self) -> None:
        self._end.set()

    async def run(self) -> None:
        """Ask, hold, end. A checkpoint."""
        with self.scope:
            async with self._slot:
                self.inside = True
                self.entered_at = trio.current_time()
                try:
                    await self._end.wait()
                finally:
                    self.inside = False
        self.over = True

    async def started(self, nursery: trio.Nursery) -> _Holder:
        """Start it and let everything run that can. A checkpoint."""
        nursery.start_soon(self.run)
        await wait_all_tasks_blocked()
        return self


async def _empty(gate: GateLike) -> None:
    """The gate is as new: nothing is held, nobody waits, and all slots can be had. A checkpoint."""
    await wait_all_tasks_blocked()
    now = gate.statistics()
    _require(now.in_flight == 0, f"slots are held by nobody: {now}")
    _require(now.tasks_waiting == 0 and not now.waiting_by_priority, f"nobody waits, yet some are counted: {now}")
    async with trio.open_nursery() as nursery:
        holders = [_Holder(gate) for _ in range(gate.capacity)]
        for holder in holders:
            nursery.start_soon(holder.run)
        await wait_all_tasks_blocked()
        inside = sum(holder.inside for holder in holders)
        _require(inside == gate.capacity, f"of {gate.capacity} slots {inside} are left")
        for holder in holders:
            holder.end()


def entering_is_a_checkpoint_and_leaving_is_none(factory: GateFactory) -> None:
    """Law 5: entering is always a checkpoint; giving back is one step, with a waiter and without."""

    async def main() -> None:
        gate = factory(1)
        slot = gate.slot()
        with assert_checkpoints():
            await slot.__aenter__()
        with assert_no_checkpoints():
            await slot.__aexit__(None, None, None)
        async with trio.open_nursery() as nursery:
            slot = gate.slot(hold_timeout=5)
            await slot.__aenter__()
            waiter = await _Holder(gate).started(nursery)
            with assert_no_checkpoints():
                await slot.__aexit__(None, None, None)
            _require(gate.statistics().in_flight == 1, "the slot was not handed over in the step that gave it back")
            _require(gate.statistics().tasks_waiting == 0, "who was granted a slot is still counted as waiting")
            waiter.end()
        with gate.slot_nowait(), assert_no_checkpoints():
            pass
        await _empty(gate)

    _run(main)


def asking_twice_is_an_error_at_once(factory: GateFactory) -> None:
    """Law 17: a task that owns a slot and asks again gets RuntimeError at once; its child queues like anybody."""

    async def main() -> None:
        gate = factory(2)
        async with gate.slot():
            await _refused(gate)
            _require(gate.statistics().in_flight == 1, "a refused call holds a slot")
        with gate.slot_nowait():
            await _refused(gate)
        gate.capacity = 1
        async with trio.open_nursery() as nursery:
            async with gate.slot():
                child = await _Holder(gate).started(nursery)
                _require(gate.statistics().tasks_waiting == 1, "the child of a holder must queue")
            child.end()
        await _empty(gate)

    async def _refused(gate: GateLike) -> None:  # noqa: ASYNC910 - refusing is no checkpoint
        begun = trio.current_time()
        try:
            async with gate.slot(max_wait=5):
                raise LawBroken("the task that owns a slot was given a second one")
        except RuntimeError:
            pass
        try:
            with gate.slot_nowait():
                raise LawBroken("the task that owns a slot was given a second one by slot_nowait")
        except RuntimeError:
            pass
        except trio.WouldBlock:
            raise LawBroken("slot_nowait raised WouldBlock where RuntimeError is due") from None
        _require(trio.current_time() == begun, "the task waited before it was refused")

    _run(main)


def a_slot_is_used_once(factory: GateFactory) -> None:
    """Law 2: a slot is one object for one use; entered again, it is a RuntimeError and holds nothing."""

    async def main() -> None:
        gate = factory(1)
        slot = gate.slot()
        async with slot:
            pass
        try:
            async with slot:
                raise LawBroken("a slot was entered a second time")
        except RuntimeError:
            pass
        plain = gate.slot_nowait()
        with plain:
            pass
        try:
            with plain:
                raise LawBroken("a slot of slot_nowait was entered a second time")
        except RuntimeError:
            pass
        await _empty(gate)

    _run(main)


def a_raise_grants_as_many_as_fit(factory: GateFactory) -> None:
    """Law 8: a raise from 1 to 4 with a queue runs four at once, in the same step."""

    async def main() -> None:
        gate = factory(1)
        async with trio.open_nursery() as nursery:
            holders = [await _Holder(gate).started(nursery) for _ in range(6)]
            gate.capacity = 4
            _require(gate.statistics().in_flight == 4, f"after the raise to 4: {gate.statistics()}")
            await wait_all_tasks_blocked()
            inside = [holder.inside for holder in holders]
            _require(inside == [True] * 4 + [False] * 2, f"after the raise to 4, inside are {inside}")
            for holder in holders:
                holder.end()
        await _empty(gate)

    _run(main)


def a_fall_drains(factory: GateFactory) -> None:
    """Law 9: a fall from 4 to 1 interrupts nobody and lets nobody in until fewer than 1 are inside."""

    async def main() -> None:
        gate = factory(4)
        async with trio.open_nursery() as nursery:
            holders = [await _Holder(gate).started(nursery) for _ in range(6)]
            gate.capacity = 1
            for ended in range(6):
                await wait_all_tasks_blocked()
                inside = sum(holder.inside for holder in holders)
                _require(inside == max(1, 4 - ended), f"{inside} are inside after {ended} of 4 ended")
                next(holder for holder in holders if holder.inside).end()
        await _empty(gate)

    _run(main)


def capacity_0_pauses(factory: GateFactory) -> None:
    """Law 9: capacity 0 lets nobody in, from the start or later, and a raise resumes."""

    async def main() -> None:
        gate = factory(0)
        async with trio.open_nursery() as nursery:
            first, second = [await _Holder(gate).started(nursery) for _ in range(2)]
            await trio.sleep(1000)
            _require(not first.inside and not second.inside, "somebody is inside at capacity 0")
            try:
                with gate.slot_nowait():
                    raise LawBroken("slot_nowait entered at capacity 0")
            except trio.WouldBlock:
                pass
            gate.capacity = 1
            await wait_all_tasks_blocked()
            _require(first.inside and not second.inside, "the raise from 0 to 1 must let the first in")
            gate.capacity = 0
            first.end()
            await wait_all_tasks_blocked()
            _require(not second.inside, "somebody was let in at capacity 0")
            gate.capacity = 1
            second.end()
        await _empty(gate)

    _run(main)


def a_bad_capacity_changes_nothing(factory: GateFactory) -> None:
    """Law 9: what is no int >= 0 (a bool isn't one) is a TypeError or ValueError, and the last good value binds."""

    async def main() -> None:
        gate = factory(2)
        bad: tuple[object, ...] = (True, False, 1.5, math.nan, -1, "2", None)
        async with trio.open_nursery() as nursery:
            holders = [await _Holder(gate).started(nursery) for _ in range(3)]
            for value in bad:
                before = gate.statistics()
                try:
                    gate.capacity = value  # type: ignore[assignment]
                except (TypeError, ValueError):
                    pass
                else:
                    raise LawBroken(f"the capacity {value!r} was accepted")
                _require(gate.capacity == 2, f"after the refused capacity {value!r} it is {gate.capacity!r}")
                _require(gate.statistics() == before, f"the refused capacity {value!r} changed the gate")
            for holder in holders:
                holder.end()
        for value in bad:
            try:
                factory(value)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                pass
            else:
                raise LawBroken(f"a gate of capacity {value!r} could be made")
        await _empty(gate)

    _run(main)


def the_better_priority_goes_first_and_equals_in_order(factory: GateFactory) -> None:
    """Law 11: strict priority, first come first served within one, and nobody who runs is interrupted."""

    async def main() -> None:
        gate = factory(1)
        priorities = [100, 0, 100, 50, 0, -3, 7]
        async with trio.open_nursery() as nursery:
            running = await _Holder(gate, 1000).started(nursery)
            waiters = [await _Holder(gate, priority).started(nursery) for priority in priorities]
            _require(running.inside, "who runs was interrupted by who waits")
            order = []
            running.end()
            for _ in waiters:
                await wait_all_tasks_blocked()
                (now,) = (index for index, waiter in enumerate(waiters) if waiter.inside)
                order.append(now)
                waiters[now].end()
        expected = [5, 1, 4, 6, 3, 0, 2]
        _require(order == expected, f"calls of the priorities {priorities} came in as {order}, not {expected}")
        await _empty(gate)

    _run(main)


def nobody_barges(factory: GateFactory) -> None:
    """Law 12: a slot that was given back is its waiter's at once, no newcomer's, by slot_nowait or not."""

    async def main() -> None:
        gate = factory(1)
        async with trio.open_nursery() as nursery:
            async with gate.slot():
                waiter = await _Holder(gate).started(nursery)
            # In the very step in which a slot was given back, before its waiter could run:
            try:
                with gate.slot_nowait(Priority.FOREGROUND):
                    raise LawBroken("slot_nowait went past a waiter")
            except trio.WouldBlock:
                pass
            newcomer = await _Holder(gate, Priority.FOREGROUND).started(nursery)
            _require(waiter.inside and not newcomer.inside, "a newcomer took the slot that was a waiter's already")
            waiter.end()
            newcomer.end()
        await _empty(gate)

    _run(main)


def who_is_cancelled_when_it_asks_never_enters(factory: GateFactory) -> None:
    """Law 15: a call that is cancelled when it asks never enters, although a slot is free, and holds nothing."""

    async def main() -> None:
        gate = factory(1)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with gate.slot():
                raise LawBroken("a cancelled call entered a free gate")
        await _empty(gate)
        before = gate.statistics()
        async with trio.open_nursery() as nursery:
            holder = await _Holder(gate).started(nursery)
            with trio.CancelScope() as scope:
                scope.cancel()
                async with gate.slot(Priority.FOREGROUND):
                    raise LawBroken("a cancelled call entered a busy gate")
            now = gate.statistics()
            _require(now.cancelled == before.cancelled + 1, f"the cancelled call is not counted: {now}")
            _require(now.tasks_waiting == 0, f"the cancelled call is counted as waiting: {now}")
            holder.end()
        await _empty(gate)

    _run(main)


def a_cancel_after_the_grant_loses_nothing(factory: GateFactory) -> None:
    """Law 3: a waiter that is cancelled just before, or just after it was granted a slot, takes none with it."""

    async def main() -> None:
        gate = factory(1)
        async with trio.open_nursery() as nursery:
            first = gate.slot()
            await first.__aenter__()
            second = await _Holder(gate).started(nursery)
            third = await _Holder(gate).started(nursery)
            # Granted and cancelled in one step: no cancellation comes between the grant and the body.
            await first.__aexit__(None, None, None)
            second.scope.cancel()
            await wait_all_tasks_blocked()
            _require(not math.isnan(second.entered_at), "who was granted a slot was cancelled before its body")
            _require(second.over and third.inside, "the slot of a cancelled holder did not go to the next")
            fourth = await _Holder(gate).started(nursery)
            fifth = await _Holder(gate).started(nursery)
            # Cancelled and only then passed by the grant, in one step.
            fourth.scope.cancel()
            third.end()
            await wait_all_tasks_blocked()
            _require(math.isnan(fourth.entered_at), "a cancelled waiter entered")
            _require(fifth.inside, "behind a cancelled waiter nobody comes in")
            fifth.end()
        now = gate.statistics()
        _require((now.admitted, now.cancelled) == (4, 1), f"4 calls were admitted and 1 was cancelled: {now}")
        await _empty(gate)

    _run(main)


class _Special(BaseException):
    """Not even an Exception."""


def the_bodys_exception_passes_bare(factory: GateFactory) -> None:
    """Law 2: whatever the body raises comes out as it is, and the slot is back."""

    async def main() -> None:
        gate = factory(1)
        for timeout in (math.inf, 5.0):
            for error in (ValueError("body"), trio.TooSlowError("body"), _Special()):
                try:
                    async with gate.slot(hold_timeout=timeout):
                        raise error
                except type(error) as caught:
                    _require(caught is error, f"the body raised {error!r}, out came {caught!r}")
                else:
                    _never(error)
                try:
                    with gate.slot_nowait(hold_timeout=timeout):
                        raise error
                except type(error) as caught:
                    _require(caught is error, f"the body raised {error!r}, out came {caught!r}")
                else:
                    _never(error)
                _require(gate.statistics().in_flight == 0, "the slot of a body that failed is still held")
        await _empty(gate)

    def _never(error: BaseException) -> NoReturn:
        raise LawBroken(f"the body raised {error!r}, and nothing came out")

    _run(main)


def the_hold_budget_starts_at_the_grant(factory: GateFactory) -> None:
    """Law 14: hold_timeout runs from the grant, ends the body with TooSlowError, and the wait uses none of it."""

    async def main() -> None:
        gate = factory(1)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            holder = await _Holder(gate).started(nursery)

            async def end_later() -> None:
                await trio.sleep(10)
                holder.end()

            nursery.start_soon(end_later)
            try:
                async with gate.slot(hold_timeout=3):
                    _require(trio.current_time() == start + 10, "the waiter entered at another time than the grant")
                    await trio.sleep_forever()
            except trio.TooSlowError:
                ended = trio.current_time() - start
                _require(ended == 13, f"granted after 10 s, hold_timeout=3 ended the body after {ended} s")
        try:
            with gate.slot_nowait(hold_timeout=3):
                await trio.sleep_forever()
        except trio.TooSlowError:
            _require(trio.current_time() == start + 16, "hold_timeout of slot_nowait ended at another time")
        async with gate.slot(hold_timeout=3):
            await trio.sleep(2)
        async with gate.slot(hold_timeout=3):
            # What nothing could interrupt was not interrupted: that is no TooSlowError.
            with trio.CancelScope(shield=True):
                await trio.sleep(4)
        await _empty(gate)

    _run(main)


def max_wait_covers_the_queue_alone(factory: GateFactory) -> None:
    """Law 14: max_wait ends the wait with WaitTooLong and uses nothing of the body's time; 0: only if free."""

    async def main() -> None:
        gate = factory(1)
        start = trio.current_time()
        async with gate.slot(max_wait=1):
            await trio.sleep(5)
        async with gate.slot(max_wait=0):
            pass
        async with trio.open_nursery() as nursery:
            holder = await _Holder(gate).started(nursery)
            for max_wait, ended in ((0, 5), (2, 7)):
                try:
                    async with gate.slot(max_wait=max_wait):
                        raise LawBroken("a second one is inside")
                except WaitTooLong:
                    now = trio.current_time() - start
                    _require(now == ended, f"max_wait={max_wait} ended at {now} s, not at {ended} s")
            rejected = gate.statistics().rejected
            _require(rejected == 2, f"2 calls were refused, {rejected} are counted")
            waiter = await _Holder(gate, max_wait=2).started(nursery)
            await trio.sleep(1)
            holder.end()
            await trio.sleep(10)
            _require(waiter.inside, "max_wait ended a body")
            waiter.end()
        await _empty(gate)

    _run(main)


def one_run_at_a_time(factory: GateFactory) -> None:
    """Law 18: a second run gets RuntimeError while the first is alive; after its end the gate starts empty."""
    gate = factory(1)
    outcomes: list[str] = []

    async def intrude() -> None:  # noqa: ASYNC910 - being refused is no checkpoint
        try:
            async with gate.slot():
                outcomes.append("slot entered")
        except RuntimeError:
            outcomes.append("refused")
        try:
            with gate.slot_nowait():
                outcomes.append("slot_nowait entered")
        except RuntimeError:
            outcomes.append("refused")
        except trio.WouldBlock:
            outcomes.append("slot_nowait raised WouldBlock")
        try:
            gate.capacity = 5
        except RuntimeError:
            outcomes.append("refused")
        else:
            outcomes.append("the capacity was changed")

    def second_run() -> None:
        try:
            _run(intrude)
        except Exception as error:  # noqa: BLE001 - told below, in the thread that can
            outcomes.append(repr(_only(error)))

    async def first_run() -> None:
        async with gate.slot():
            thread = threading.Thread(target=second_run, daemon=True)
            thread.start()
            # This run stands still meanwhile: whoever is refused at once needs nothing of it.
            thread.join(30)
            _require(outcomes == ["refused"] * 3, f"in a second run: {outcomes or 'a hang'}")
            _require(gate.statistics().in_flight == 1, f"a second run changed the gate: {gate.statistics()}")
        # Held to the end of the run, and never given back.
        await gate.slot().__aenter__()
        _require(gate.statistics().in_flight == 1, "the slot is held")

    async def next_run() -> None:
        now = gate.statistics()
        _require((now.capacity, now.in_flight) == (1, 0), f"in the next run the gate starts with {now}")
        await _empty(gate)

    _run(first_run)
    _run(next_run)


def who_cancels_leaves_nothing_behind(factory: GateFactory) -> None:
    """Law 16: 2000 calls that queue and are cancelled count nowhere, and the next waiter is let in as ever."""

    async def main() -> None:
        gate = factory(1)
        async with trio.open_nursery() as nursery:
            holder = await _Holder(gate).started(nursery)
            async with trio.open_nursery() as crowd:
                for number in range(2000):
                    crowd.start_soon(_Holder(gate, number % 3).run)
                await wait_all_tasks_blocked()
                now = gate.statistics()
                _require(now.tasks_waiting == 2000, f"2000 wait: {now}")
                _require(sum(now.waiting_by_priority.values()) == 2000, f"2000 wait: {now}")
                crowd.cancel_scope.cancel()
            now = gate.statistics()
            _require(now.tasks_waiting == 0 and not now.waiting_by_priority, f"all were cancelled: {now}")
            _require(now.longest_wait == 0, f"nobody waits: {now}")
            _require((now.admitted, now.cancelled) == (1, 2000), f"1 was admitted, 2000 were cancelled: {now}")
            waiter = await _Holder(gate).started(nursery)
            holder.end()
            await wait_all_tasks_blocked()
            _require(waiter.inside, "after a crowd that left, nobody comes in")
            waiter.end()
        await _empty(gate)

    _run(main)


CHECKS: Final[tuple[Check, ...]] = (
    entering_is_a_checkpoint_and_leaving_is_none,
    asking_twice_is_an_error_at_once,
    a_slot_is_used_once,
    a_raise_grants_as_many_as_fit,
    a_fall_drains,
    capacity_0_pauses,
    a_bad_capacity_changes_nothing,
    the_better_priority_goes_first_and_equals_in_order,
    nobody_barges,
    who_is_cancelled_when_it_asks_never_enters,
    a_cancel_after_the_grant_loses_nothing,
    the_bodys_exception_passes_bare,
    the_hold_budget_starts_at_the_grant,
    max_wait_covers_the_queue_alone,
    one_run_at_a_time,
    who_cancels_leaves_nothing_behind,
)
"""The single checks of :func:`check_gate`; each takes the factory alone, and its docstring names its law."""
