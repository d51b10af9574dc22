"""The laws through each driver: hypothesis draws options and events, with and without a scheduler pass between.

Two witnesses look on: the player, which judges by what a caller can see, and an oracle that plays every event which
the gate tells its hooks once more on plain lists.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.drivers import DRIVERS, dialect_of
from tests.oracle import GRANTED, WAITING, Call, Oracle
from trio_mlxgate import Gate, instrumentation as told
from trio_mlxgate.testing.events import (
    Arrive,
    Cancel,
    Close,
    Drain,
    End,
    Event,
    Options,
    SetCapacity,
    Settle,
    Sleep,
    Tick,
)
from trio_mlxgate.testing.harness import harness
from trio_mlxgate.testing.play import play

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate import Slot
    from trio_mlxgate.testing import Backend
    from trio_mlxgate.testing.harness import Harness

STARVING = 300.0
EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "1500"))


class OracleHook:
    """Plays each event that it is told on the oracle, and sees that nothing else could have happened."""

    def __init__(self, oracle: Oracle, clock: Callable[[], float]) -> None:
        self.oracle = oracle
        self.clock = clock
        self.slots: list[tuple[Slot, dict[str, Any]]] = []
        self.superseded: tuple[Call, Call] | None = None
        self.starving: set[int] = set()
        self.sent_away: list[Call] = []
        self.orphaned: int | None = None
        self.broken: list[str] = []

    def interest(self, *_: type[told.Details]) -> Callable[[], bool]:
        return lambda: True

    def __call__(self, details: told.Details) -> None:
        try:
            self.hear(details)
        except Exception as error:
            # The gate takes out a hook that raises; the test must hear of it.
            self.broken.append(f"{error!r} at {details}")
            raise

    def hear(self, details: told.Details) -> None:
        oracle, now = self.oracle, self.clock()
        if not (isinstance(details, told.Granted) and details.queued):
            assert oracle.next_granted() is None, "somebody should have been granted a slot first"
        if self.superseded is not None:
            assert isinstance(details, told.Superseded), "who was superseded is told right after the newer call"
        match details:
            case told.CapacityChanged(before=before, capacity=capacity):
                assert before == oracle.capacity
                oracle.capacity = capacity
            case told.Superseded():
                assert self.superseded is not None
                older, newer = self.superseded
                assert (details.seq, details.by) == (older.seq, newer.seq)
                assert details.waited == now - older.arrived
                self.superseded = None
            case told.Queued():
                self.arrive(details, WAITING)
            case told.Ended(reason=reason):
                oracle.ended = "closed" if reason == "draining" else reason
                if reason != "draining":
                    self.sent_away += oracle.in_order()
                    oracle.waiting.clear()
            case told.Rejected(queued=True, reason="closed" | "broken"):
                # Best rank first.
                assert self.sent_away.pop(0).seq == details.seq
                assert details.reason == oracle.ended
            case told.Rejected(seq=0, reason="closed" | "broken"):
                assert details.reason == oracle.ended
            case told.Orphaned():
                assert [call.seq for call in oracle.held].count(details.seq) == 1
                self.orphaned = details.seq
            case told.Rejected(reason="would_block"):
                admitted = oracle.eligible(details.priority) and oracle.next_granted() is None
                assert not admitted
            case told.Rejected(queued=True):
                call = self.waiting(details)
                assert details.reason == "wait_too_long"
                assert math.isclose(details.waited, call.max_wait)
                oracle.waiting.remove(call)
            case told.Rejected():
                self.arrive(details, details.reason)
            case told.Granted(queued=False):
                self.arrive(details, GRANTED)
            case told.Granted():
                call = self.waiting(details)
                assert oracle.next_granted() is call
                assert details.waited == now - call.arrived
                oracle.waiting.remove(call)
                oracle.hold(call, now)
            case told.Cancelled(queued=True):
                oracle.waiting.remove(self.waiting(details))
            case told.Starving():
                # To the second, whatever other alarms there are, and once.
                assert math.isclose(details.waited, STARVING)
                assert details.seq not in self.starving
                self.starving.add(details.seq)
            case told.Released():
                (call,) = (call for call in oracle.held if call.seq == details.seq)
                assert self.orphaned in (None, call.seq), "an orphan is given back right away"
                self.orphaned = None
                assert details.held == now - call.granted
                oracle.release(call, now)
        late = [call.seq for call in oracle.waiting if call.seq not in self.starving and now > call.arrived + STARVING]
        assert not late, f"{late} wait for too long, and nobody says so"
        if oracle.next_granted() is None and self.orphaned is None:
            # Those whose time is over are told one by one, when all of them are out of the queue.
            telling = isinstance(details, told.Rejected) and details.queued
            expired = sum(telling and call.arrived + call.max_wait <= now for call in oracle.waiting)
            seen = (details.capacity, details.in_flight, details.queue_length)
            assert seen == (oracle.capacity, len(oracle.held), len(oracle.waiting) - expired)

    def arrive(self, details: told.CallDetails, fate: str) -> None:
        # What was asked for, and not what the slot makes of it.
        (asked,) = (asked for slot, asked in self.slots if slot.seq == details.seq)
        call = Call(details.seq, details.priority, asked.get("supersede"), asked.get("max_wait", math.inf))
        happened, older = self.oracle.arrive(call, self.clock())
        assert happened == fate
        self.superseded = None if older is None else (older, call)

    def waiting(self, details: told.CallDetails) -> Call:
        (call,) = (call for call in self.oracle.waiting if call.seq == details.seq)
        return call


def watched(driver: type[Gate], on: Harness) -> type[Gate]:
    """A gate of this driver whose slots its hook knows."""

    class WatchedGate(driver):  # type: ignore[valid-type, misc]
        def __init__(self, capacity: int, **options: Any) -> None:
            strict = options.pop("strict", False)
            self.oracle_hook = OracleHook(Oracle(capacity, **options), on.now)
            options["strict"] = strict
            super().__init__(capacity, hooks=[self.oracle_hook], outer_deadline="raise", **options)

        def slot(self, *args: Any, **kwargs: Any) -> Any:
            slot = super().slot(*args, **kwargs)
            self.oracle_hook.slots.append((slot, kwargs))
            return slot

        def slot_nowait(self, *args: Any, **kwargs: Any) -> Any:
            slot = super().slot_nowait(*args, **kwargs)
            self.oracle_hook.slots.append((slot, kwargs))
            return slot

    return WatchedGate


_indexes = st.integers(0, 30)
_priorities = st.sampled_from([0, 0, 100, 100, 50, -3])
_limits = st.sampled_from([math.inf, math.inf, math.inf, 0.0, 0.5, 2.0])
_keys = st.sampled_from([None, None, None, "a", "b"])
_single: st.SearchStrategy[Event] = st.one_of(
    st.builds(Arrive, _priorities, _limits, _limits, supersede=_keys),
    st.builds(Arrive, _priorities, supersede=_keys),
    st.builds(Arrive, _priorities, nowait=st.just(True), hold_timeout=_limits, supersede=_keys),
    st.builds(End, _indexes, st.booleans()),
    st.builds(Cancel, _indexes, st.booleans()),
    st.builds(SetCapacity, st.integers(0, 4)),
    st.just(Tick()),
    st.just(Tick()),
    st.just(Settle()),
    st.builds(Sleep, st.sampled_from([0.25, 0.5, 1.0, 200.0, 400.0])),
)
# A waiter that is cancelled just when it is granted a slot: too rare among single events to be left to them.
_handovers: st.SearchStrategy[list[Event]] = st.builds(
    lambda end, passes, cancel, native: [
        *(Arrive(0), Settle(), Arrive(0), Settle(), End(end)),
        *[Tick()] * passes,
        Cancel(cancel, native),
    ],
    st.integers(0, 3),
    # Under asyncio it is one pass to the grant.
    st.sampled_from([1, 1, 0, 2, 3]),
    st.integers(0, 5),
    st.booleans(),
)
# Two calls with one key, the older waiting: the same.
_takeovers: st.SearchStrategy[list[Event]] = st.builds(
    lambda older, newer, passes, cancel, native: [
        *(Arrive(older, supersede="c"), Settle(), Arrive(newer, supersede="c")),
        *[Tick()] * passes,
        *([] if cancel is None else [Cancel(cancel, native)]),
        Settle(),
    ],
    _priorities,
    _priorities,
    st.integers(0, 2),
    st.none() | st.integers(0, 5),
    st.booleans(),
)
# Ranks that lie between each other, as single arrivals rarely have them.
_crowds: st.SearchStrategy[list[Event]] = st.lists(
    st.tuples(st.sampled_from([0, 100, 50]), st.sampled_from([0.0, 0.25, 1.0])), min_size=2, max_size=6
).map(lambda crowd: [event for priority, pause in crowd for event in (Arrive(priority), Sleep(pause))])
EVENTS: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(
        _single.map(lambda event: [event]),
        _single.map(lambda event: [event]),
        st.one_of(_handovers, _takeovers, _crowds),
    ),
    max_size=40,
).map(lambda pieces: [event for piece in pieces for event in piece])
# Tasks that end with a slot in hand; a strict gate breaks at the first.
_forgetful: st.SearchStrategy[list[Event]] = st.builds(
    lambda priority, end, passes, settled: [
        Arrive(priority, forgets=True),
        *([Settle()] if settled else []),
        Arrive(0),
        *[Tick()] * passes,
        *(End(end), Settle()),
    ],
    _priorities,
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)
# The gate ends late, for not much happens afterwards, and mostly not at all.
_END: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(_single, st.just(Close()), st.just(Drain())).map(lambda event: [event]) | _forgetful | _handovers,
    max_size=8,
).map(lambda pieces: [event for piece in pieces for event in piece])
OPTIONS: st.SearchStrategy[Options] = st.builds(
    Options,
    aging=st.sampled_from([None, None, 0.5, 3.0, 1000.0]),
    reserved=st.sampled_from([None, None, {0: 1}, {0: 2}, {-3: 1, 50: 1}, {50: 2}]),
    max_waiting=st.sampled_from([None, None, 0, 1, 3, {100: 1}, {0: 3, 50: 1}]),
    positions=st.just(True),
    strict=st.booleans(),
)


@pytest.mark.parametrize(("driver", "backend"), DRIVERS)
def test_laws_through_the_driver(driver: type[Gate], backend: Backend) -> None:
    # All go through the same core; what is their own is the driver, which on each library is one.
    own = backend == "asyncio" or driver is Gate
    on = harness(backend, dialect_of(driver))
    watched_gate = watched(driver, on)

    @settings(
        max_examples=EXAMPLES if own else EXAMPLES // 3,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(capacity=st.integers(0, 3), options=OPTIONS, events=EVENTS, end=_END)
    def examples(capacity: int, options: Options, events: list[Event], end: list[Event]) -> None:
        gates: list[Any] = []

        def factory(capacity: int, **given: Any) -> Gate:
            gates.append(watched_gate(capacity, **given))
            return cast("Gate", gates[0])

        play(factory, capacity, events + end, options, on)
        (gate,) = gates
        assert not gate.oracle_hook.broken
        assert not gate.oracle_hook.oracle.waiting
        assert not gate.oracle_hook.oracle.held
        assert not gate.oracle_hook.sent_away
        assert gate.oracle_hook.orphaned is None

    examples()
