"""Calls that cross between runs: every order of the messages, of cancellations and of ends, over a real core."""

from __future__ import annotations

import itertools
import os
import random
from collections import deque

import attrs
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_mlxgate.core.admission import Admission
from trio_mlxgate.core.crossing import (
    CALLER,
    OPEN,
    OWNER,
    CallerDoes,
    CallerEvent,
    CallerState,
    OwnerDoes,
    OwnerEvent,
    OwnerState,
    caller_step,
    owner_step,
)
from trio_mlxgate.core.ticket import CLOSED, Ticket, TicketState

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "300"))
CALLER_ENDS = {
    *(CallerState.RETURNED, CallerState.LOST, CallerState.GIVEN_UP, CallerState.REFUSED, CallerState.OWNER_GONE),
}
SELDOM = st.sampled_from([False, False, True])
DONE = (TicketState.RELEASED, TicketState.ORPHANED, TicketState.CANCELLED, TicketState.REJECTED)


@attrs.define(eq=False)
class Run:
    """A run of callers, and what is on its way between it and the owner."""

    alive: bool = True
    to_owner: deque[tuple[OwnerEvent | None, Call]] = attrs.field(factory=deque)
    """None is the question itself."""
    to_caller: deque[tuple[CallerEvent, Call]] = attrs.field(factory=deque)


@attrs.define(eq=False)
class Call:
    run: Run
    ticket: Ticket
    caller: CallerState = CallerState.ASKED
    owner: OwnerState = OwnerState.WAITING
    arrived: bool = False
    woken: int = 0
    ended: int = 0
    """How often its slot was given back, or its wait ended."""


class CrossingMachine(RuleBasedStateMachine):
    @initialize(capacity=st.sampled_from([1, 2, 0]), closes=SELDOM, owner_ends=SELDOM, runs_end=SELDOM)
    def start(self, capacity: int, closes: bool, owner_ends: bool, runs_end: bool) -> None:
        self.core: Admission[Ticket] = Admission(capacity)
        # What ends most of the play stands at its beginning: else hardly anything would be played to its end.
        self.closes, self.owner_ends, self.runs_end = closes, owner_ends, runs_end
        self.met: set[object] = set()
        self.runs = [Run(), Run()]
        self.calls: list[Call] = []
        self.owner_alive = True

    # ---- the two sides, as the drivers are to act ----

    def on_caller(self, call: Call, event: CallerEvent) -> None:
        self.met.add((call.caller, event))
        call.caller, does = caller_step(call.caller, event)
        call.woken += does is CallerDoes.WAKE
        says = {
            CallerDoes.SAY_GIVEN_UP: OwnerEvent.HEARS_GIVEN_UP,
            CallerDoes.SAY_RETURNED: OwnerEvent.HEARS_RETURNED,
            CallerDoes.SAY_LOST: OwnerEvent.HEARS_LOST,
        }
        if does in says and self.owner_alive:
            call.run.to_owner.append((says[does], call))

    def on_owner(self, call: Call, event: OwnerEvent) -> None:
        self.met.add((call.owner, event))
        call.owner, does = owner_step(call.owner, event)
        if does is OwnerDoes.SAY_GRANTED:
            if call.run.alive:
                call.run.to_caller.append((CallerEvent.HEARS_GRANT, call))
            else:
                self.on_owner(call, OwnerEvent.SEES_CALLER_GONE)
        elif does is OwnerDoes.SAY_REFUSED:
            call.run.to_caller.append((CallerEvent.HEARS_REFUSAL, call))
        elif does is OwnerDoes.SAY_END:
            call.run.to_caller.append((CallerEvent.HEARS_END, call))
        elif does is OwnerDoes.TAKE_BACK:
            self.core.take_back(call.ticket, 0.0)
            call.ended += 1
        elif does is OwnerDoes.LET_GO:
            if call.ticket.state is TicketState.WAITING:
                assert call.owner is OwnerState.GIVEN_UP
                self.core.cancel(call.ticket, 0.0)
            elif call.ticket.state is not TicketState.REJECTED:  # whose task hasn't gone on to say so
                self.core.release(call.ticket, 0.0)
            call.ended += 1

    # ---- what can happen ----

    def pick(self, data: st.DataObject, *states: CallerState) -> Call | None:
        calls = [call for call in self.calls if call.caller in states]
        return data.draw(st.sampled_from(calls)) if calls else None

    @rule(asking=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0, 100])), min_size=1, max_size=3))
    def ask(self, asking: list[tuple[int, int]]) -> None:
        for run, priority in asking:
            if self.runs[run].alive and self.owner_alive:
                call = Call(self.runs[run], Ticket(priority))
                self.calls.append(call)
                call.run.to_owner.append((None, call))

    @rule(seed=st.integers(0, 2**32 - 1))
    def a_while_passes(self, seed: int) -> None:
        """All that can happen, by chance: single rules alone rarely bring a call from its beginning to its end."""
        chance = random.Random(seed)
        for _ in range(40):
            run = chance.randrange(2)
            happen = chance.choices(
                (
                    *(self.ask_one, self.the_owner_hears_one, self.the_caller_hears_one, self.one_goes_on),
                    *(self.one_ends, self.one_looks),
                ),
                (2, 4, 4, 6, 0.5, 0.5),
            )[0]
            happen(run, chance)

    def ask_one(self, run: int, chance: random.Random) -> None:
        self.ask([(run, chance.choice((0, 100)))])

    def the_owner_hears_one(self, run: int, chance: random.Random) -> None:
        self.the_owner_hears(run, 1)

    def the_caller_hears_one(self, run: int, chance: random.Random) -> None:
        self.the_caller_hears(run, 1)

    def one_goes_on(self, run: int, chance: random.Random) -> None:
        if not self.calls:
            return
        call = chance.choice(self.calls[-8:])
        if call.caller is CallerState.GRANTED and call.run.alive and chance.random() < 0.8:
            self.on_caller(call, CallerEvent.TAKES)
        elif call.caller is CallerState.TAKEN:
            self.on_caller(call, CallerEvent.IS_LOST if chance.random() < 0.2 else CallerEvent.LEAVES)
        elif self.is_woken(call) and chance.random() < 0.8:
            self.go_on(call)
        elif chance.random() < 0.2 and call.caller not in (CallerState.RETURNED, CallerState.LOST):
            self.on_caller(call, CallerEvent.CANCELS)

    def one_ends(self, run: int, chance: random.Random) -> None:
        end = chance.randrange(4)
        if end == 0 and self.runs_end and self.calls:
            self.runs[run].alive = False
        elif end == 1 and self.closes and self.calls:
            self.core.refuse_all(CLOSED)
        elif end == 2 and self.owner_ends and self.calls:
            self.the_owner_ends(chance.random() < 0.5)
        elif end == 3 and self.closes:
            self.a_task_of_the_owners_is_cancelled(chance)

    def one_looks(self, run: int, chance: random.Random) -> None:
        self.the_owner_looks()
        self.the_caller_looks(run)

    def a_task_of_the_owners_is_cancelled(self, chance: random.Random) -> None:
        """Many a program on asyncio cancels all its tasks: the run hasn't ended, but for this call it has."""
        waiting = [call for call in self.calls if call.arrived and call.owner is OwnerState.WAITING]
        if self.owner_alive and waiting:
            call = chance.choice(waiting)
            if call.ticket.state is TicketState.WAITING:
                self.core.cancel(call.ticket, 0.0)
            elif call.ticket.state is TicketState.GRANTED:
                self.core.release(call.ticket, 0.0)
            call.ended += 1
            self.on_owner(call, OwnerEvent.RUN_ENDS)

    @rule(run=st.integers(0, 1), count=st.integers(1, 3))
    def the_owner_hears(self, run: int, count: int) -> None:
        messages = self.runs[run].to_owner
        while self.owner_alive and messages and count:
            event, call = messages.popleft()
            count -= 1
            if event is not None:
                self.on_owner(call, event)
                continue
            call.arrived = True
            self.core.request(call.ticket, 0.0)
            if call.ticket.state is not TicketState.WAITING:
                self.go_on(call)

    @rule(data=st.data())
    def a_task_of_the_owners_goes_on(self, data: st.DataObject) -> None:
        woken = [call for call in self.calls if self.is_woken(call)]
        if woken:
            self.go_on(data.draw(st.sampled_from(woken)))

    def is_woken(self, call: Call) -> bool:
        """Whether its wait has ended, and the task of the owner's that waits for it hasn't gone on yet."""
        waits = call.owner is OwnerState.WAITING
        return self.owner_alive and call.arrived and waits and call.ticket.state is not TicketState.WAITING

    def go_on(self, call: Call) -> None:
        granted = call.ticket.state is TicketState.GRANTED
        if not granted:
            call.ended += 1
        self.on_owner(call, OwnerEvent.CORE_GRANTS if granted else OwnerEvent.CORE_REFUSES)

    @rule(run=st.integers(0, 1), count=st.integers(1, 3))
    def the_caller_hears(self, run: int, count: int) -> None:
        messages = self.runs[run].to_caller
        while self.runs[run].alive and messages and count:
            event, call = messages.popleft()
            count -= 1
            self.on_caller(call, event)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def a_call_is_cancelled(self, data: st.DataObject) -> None:
        """Also of a run that is dropped: the collector throws its coroutines away, at some time."""
        call = self.pick(data, *(set(CallerState) - {CallerState.TAKEN, CallerState.RETURNED, CallerState.LOST}))
        if call is not None:
            self.on_caller(call, CallerEvent.CANCELS)

    @precondition(lambda self: any(call.caller is CallerState.GRANTED for call in self.calls))
    @rule(data=st.data())
    def a_slot_is_taken(self, data: st.DataObject) -> None:
        call = self.pick(data, CallerState.GRANTED)
        if call is not None and call.run.alive:
            self.on_caller(call, CallerEvent.TAKES)

    @precondition(lambda self: any(call.caller is CallerState.TAKEN for call in self.calls))
    @rule(data=st.data(), lost=st.booleans())
    def a_slot_is_left(self, data: st.DataObject, lost: bool) -> None:
        call = self.pick(data, CallerState.TAKEN)
        if call is not None:
            self.on_caller(call, CallerEvent.IS_LOST if lost else CallerEvent.LEAVES)

    @precondition(lambda self: self.calls and self.runs_end)
    @rule(run=st.integers(0, 1))
    def a_run_of_callers_ends(self, run: int) -> None:
        self.runs[run].alive = False

    @rule()
    def the_owner_looks(self) -> None:
        for call in self.calls:
            if self.owner_alive and not call.run.alive and call.arrived and call.owner in OPEN:
                self.on_owner(call, OwnerEvent.SEES_CALLER_GONE)

    @rule(capacity=st.integers(0, 2))
    def the_capacity_changes(self, capacity: int) -> None:
        self.core.set_capacity(capacity, 0.0)

    @precondition(lambda self: self.calls and self.closes)
    @rule()
    def the_gate_is_closed(self) -> None:
        self.core.refuse_all(CLOSED)

    @precondition(lambda self: self.calls and self.owner_ends)
    @rule(says_so=st.booleans())
    def the_owner_ends(self, says_so: bool) -> None:
        if not self.owner_alive:
            return
        self.owner_alive = False
        for call in self.calls:
            if call.arrived and call.owner is OwnerState.WAITING and says_so:
                self.on_owner(call, OwnerEvent.RUN_ENDS)

    @rule(run=st.integers(0, 1))
    def the_caller_looks(self, run: int) -> None:
        for call in self.calls:
            if call.run is self.runs[run] and call.run.alive and not self.owner_alive:
                self.on_caller(call, CallerEvent.HEARS_END)

    # ---- what holds ----

    @invariant()
    def no_slot_is_lost_or_given_back_twice(self) -> None:
        if not hasattr(self, "core"):
            return
        granted = [call for call in self.calls if call.ticket.state is TicketState.GRANTED]
        assert self.core.in_flight == len(granted)
        for call in self.calls:
            assert call.ended <= 1
            if self.owner_alive and call.run.alive and call.caller in (CallerState.GRANTED, CallerState.TAKEN):
                assert call.ticket.state is TicketState.GRANTED, "somebody works without a slot"
            if call.owner not in OPEN and call.owner is not OwnerState.LEFT_ALONE:
                assert call.ticket.state in DONE

    def teardown(self) -> None:
        """Everything comes to rest, in some order: then each call has ended once, on both sides."""
        if not hasattr(self, "core"):
            return
        for run in (0, 1):
            self.the_caller_hears(run, 1000)
        for call in self.calls:
            if call.run.alive and call.owner not in (OwnerState.WAITING, OwnerState.GIVEN_UP):
                assert call.caller is not CallerState.ASKED, "nobody has told the caller"
            if call.run.alive and call.caller in (CallerState.TAKEN, CallerState.REFUSED, CallerState.OWNER_GONE):
                assert call.woken == 1
        for _ in range(3):
            for call in self.calls:
                if call.caller is CallerState.GRANTED and call.run.alive:
                    self.on_caller(call, CallerEvent.TAKES)
                if call.caller is CallerState.TAKEN and call.run.alive:
                    self.on_caller(call, CallerEvent.LEAVES)
                if call.caller is CallerState.ASKED and call.run.alive and self.owner_alive:
                    self.on_caller(call, CallerEvent.CANCELS)
            for run in (0, 1):
                self.the_caller_looks(run)
                self.the_owner_hears(run, 1000)
                self.the_caller_hears(run, 1000)
            for call in self.calls:
                if self.owner_alive and call.arrived and call.owner is OwnerState.WAITING and call.ticket.state in DONE:
                    self.go_on(call)
            self.the_owner_looks()
        for call in self.calls:
            assert call.caller in CALLER_ENDS or not call.run.alive
            if self.owner_alive:
                assert call.owner not in OPEN
                assert call.ended == 1
        if self.owner_alive:
            assert self.core.in_flight == 0
            assert self.core.tasks_waiting == 0


TestCrossingMachine = CrossingMachine.TestCase
TestCrossingMachine.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)


def test_long_plays_meet_every_entry_of_the_tables_and_lose_nothing() -> None:
    met: set[object] = set()
    for seed in range(max(EXAMPLES, 2000)):
        chance = random.Random(seed)
        machine = CrossingMachine()
        machine.start(chance.choice((1, 2, 2)), *(chance.random() < 0.5 for _ in range(3)))
        for _ in range(chance.randrange(1, 6)):
            machine.a_while_passes(chance.randrange(2**32))
            machine.no_slot_is_lost_or_given_back_twice()
        machine.teardown()
        met |= machine.met
    assert met == set(CALLER) | set(OWNER)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(CallerState, CallerEvent)), ids=str)
def test_what_is_not_in_the_callers_table_raises(state: CallerState, event: CallerEvent) -> None:
    if (state, event) in CALLER:
        assert caller_step(state, event) == CALLER[state, event]
    else:
        with pytest.raises(RuntimeError, match=f"a call that is {state.value} can't {event.value}"):
            caller_step(state, event)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(OwnerState, OwnerEvent)), ids=str)
def test_what_is_not_in_the_owners_table_raises(state: OwnerState, event: OwnerEvent) -> None:
    if (state, event) in OWNER:
        assert owner_step(state, event) == OWNER[state, event]
    else:
        with pytest.raises(RuntimeError, match=f"a call that is {state.value} can't {event.value}"):
            owner_step(state, event)


def test_an_end_is_never_left_and_each_state_can_be_reached() -> None:
    for (caller, _), (caller_after, _) in CALLER.items():
        assert caller not in CALLER_ENDS or caller_after is caller
    for (owner, _), (owner_after, _) in OWNER.items():
        assert owner in OPEN or owner_after is owner
    assert {after for after, _ in CALLER.values()} | {CallerState.ASKED} == set(CallerState)
    assert {after for after, _ in OWNER.values()} | {OwnerState.WAITING} == set(OwnerState)
    assert {does for _, does in CALLER.values()} == set(CallerDoes)
    assert {does for _, does in OWNER.values()} == set(OwnerDoes)
