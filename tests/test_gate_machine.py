"""The laws through the trio driver: hypothesis draws events, with and without a scheduler pass between them."""

from __future__ import annotations

import math
import os

from hypothesis import HealthCheck, given, settings, strategies as st

from trio_mlxgate import Gate
from trio_mlxgate.testing.play import Arrive, Cancel, End, Event, SetCapacity, Settle, Sleep, Tick, play

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "1500"))

_indexes = st.integers(0, 30)
_priorities = st.sampled_from([0, 0, 100, 100, 50, -3])
_limits = st.sampled_from([math.inf, math.inf, math.inf, 0.0, 0.5, 2.0])
_single: st.SearchStrategy[Event] = st.one_of(
    st.builds(Arrive, _priorities, _limits, _limits),
    st.builds(Arrive, _priorities),
    st.builds(Arrive, _priorities, nowait=st.just(True), hold_timeout=_limits),
    st.builds(End, _indexes, st.booleans()),
    st.builds(Cancel, _indexes),
    st.builds(SetCapacity, st.integers(0, 4)),
    st.just(Tick()),
    st.just(Tick()),
    st.just(Settle()),
    st.builds(Sleep, st.sampled_from([0.25, 0.5, 1.0, 400.0])),
)
# A waiter that is cancelled just when it is granted a slot: too rare among single events to be left to them.
_handovers: st.SearchStrategy[list[Event]] = st.builds(
    lambda end, passes, cancel: [
        *(Arrive(0), Settle(), Arrive(0), Settle(), End(end)),
        *[Tick()] * passes,
        Cancel(cancel),
    ],
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 5),
)
EVENTS: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(_single.map(lambda event: [event]), _single.map(lambda event: [event]), _handovers), max_size=40
).map(lambda pieces: [event for piece in pieces for event in piece])


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(capacity=st.integers(0, 3), events=EVENTS)
def test_laws_through_the_trio_driver(capacity: int, events: list[Event]) -> None:
    play(lambda capacity: Gate(capacity), capacity, events)
