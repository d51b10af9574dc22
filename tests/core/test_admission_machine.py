"""The core against an oracle that is nothing but plain lists, event by event, with every combination of options."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.oracle import GRANTED, WAITING, Call, Oracle
from trio_mlxgate.core.admission import OVERDUE_GRACE, Admission
from trio_mlxgate.core.ticket import Ticket, TicketState

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "1500"))
STARVING = 300.0

PRIORITIES = st.sampled_from([0, 100, 100, 7, -1])
AGING = st.sampled_from([None, None, 0.5, 2.0, 300.0, 1e300])
RESERVED = st.sampled_from([None, None, {0: 1}, {0: 2}, {7: 1}, {0: 1, 7: 1}, {-1: 1, 50: 0}, {100: 3}])
MAX_WAITING = st.sampled_from([None, None, 0, 1, 3, {100: 1}, {7: 2}, {0: 2, 100: 1}, {-5: 3}])
KEYS = st.sampled_from([None, None, "a", "a", "b", ("c", 1)])


class AdmissionMachine(RuleBasedStateMachine):
    """Plays the same events to the core and to the oracle."""

    @initialize(
        capacity=st.integers(0, 3),
        aging=AGING,
        reserved=RESERVED,
        max_waiting=MAX_WAITING,
        measured=st.booleans(),
        ends=st.sampled_from([False, False, True]),
    )
    def start(
        self,
        capacity: int,
        aging: float | None,
        reserved: Mapping[int, int] | None,
        max_waiting: int | Mapping[int, int] | None,
        measured: bool,
        ends: bool,
    ) -> None:
        options: dict[str, Any] = {"aging": aging, "reserved": reserved, "max_waiting": max_waiting}
        self.core: Admission[Ticket] = Admission(capacity, starvation_warning=STARVING, **options)
        self.oracle = Oracle(capacity, **options)
        self.now = 0.0
        self.ends = ends
        self.tickets: dict[int, Ticket] = {}
        self.reported: set[int] = set()
        self.overdue: set[int] = set()
        self.fates = {"admitted": 0, "cancelled": 0, "rejected": 0}
        if measured and capacity:
            # A hold that has ended, so that there are estimates from the start.
            self.arrive(0, math.inf, math.inf, False, None)
            self.pass_time(2.0)
            self.release(0)

    def ticket_of(self, call: Call) -> Ticket:
        return self.tickets[call.seq]

    def check_granted(self, granted: list[Ticket]) -> None:
        expected = self.oracle.settle(self.now)
        assert granted == [self.ticket_of(call) for call in expected]
        self.fates["admitted"] += len(expected)
        for ticket in granted:
            self.check_one_granted(ticket)

    def check_one_granted(self, ticket: Ticket) -> None:
        assert ticket.state is TicketState.GRANTED
        assert ticket.granted_at == self.now
        assert ticket.waited == self.now - ticket.arrived_at
        assert ticket.hold_deadline == self.now + ticket.hold_timeout

    # What can happen.

    @rule(
        priority=PRIORITIES,
        max_wait=st.sampled_from([math.inf, math.inf, 0.0, 1.0, 500.0]),
        hold_timeout=st.sampled_from([math.inf, 0.0, 2.0]),
        detached=st.booleans(),
        key=KEYS,
    )
    def arrive(self, priority: int, max_wait: float, hold_timeout: float, detached: bool, key: Any) -> None:
        ticket = Ticket(priority, hold_timeout=hold_timeout, max_wait=max_wait, supersede=key)
        ticket.detached = detached
        admits = self.core.admits(priority)
        superseded = self.core.request(ticket, self.now)
        self.tickets[ticket.seq] = ticket
        fate, older = self.oracle.arrive(Call(ticket.seq, priority, key, max_wait), self.now)
        assert admits == (fate == GRANTED)
        assert superseded is (None if older is None else self.ticket_of(older))
        if superseded is not None:
            assert superseded.state is TicketState.REJECTED
            assert superseded.refusal == "superseded"
            self.fates["rejected"] += 1
        if fate == GRANTED:
            self.check_one_granted(ticket)
            self.fates["admitted"] += 1
        elif fate == WAITING:
            assert ticket.state is TicketState.WAITING
        else:
            assert ticket.state is TicketState.REJECTED
            assert ticket.refusal == fate
            self.fates["rejected"] += 1

    @rule(capacity=st.integers(1, 3), priorities=st.lists(st.sampled_from([0, 100, 100, 7]), max_size=6))
    def fill(self, capacity: int, priorities: list[int]) -> None:
        # Some hold and some wait: from here on the options have something to decide.
        self.set_capacity(capacity)
        for priority in priorities:
            self.arrive(priority, math.inf, math.inf, False, None)

    @rule(
        older=PRIORITIES, newer=PRIORITIES, pause=st.sampled_from([0.0, 1.0]), max_wait=st.sampled_from([math.inf, 5.0])
    )
    def two_with_one_key(self, older: int, newer: int, pause: float, max_wait: float) -> None:
        self.arrive(older, max_wait, math.inf, False, "k")
        self.pass_time(pause)
        self.arrive(newer, math.inf, math.inf, False, "k")

    @precondition(lambda self: self.oracle.reserved)
    @rule(holder=st.sampled_from([50, 100]), older=st.sampled_from([50, 100]), newer=st.sampled_from([-1, 0]))
    def one_held_back_is_superseded_by_one_that_is_not(self, holder: int, older: int, newer: int) -> None:
        while self.oracle.held:
            self.release(0)
        self.set_capacity(2)
        self.arrive(holder, math.inf, math.inf, False, None)
        self.arrive(older, math.inf, math.inf, False, "held back")
        self.arrive(newer, math.inf, math.inf, False, "held back")

    @rule(crowd=st.lists(st.tuples(st.sampled_from([0, 100, 7]), st.sampled_from([0.0, 0.1, 1.0])), max_size=6))
    def a_crowd_arrives(self, crowd: list[tuple[int, float]]) -> None:
        # Ranks that lie between each other, as single arrivals rarely have them.
        for priority, pause in crowd:
            self.arrive(priority, math.inf, math.inf, False, None)
            self.pass_time(pause)

    @rule(priority=PRIORITIES, key=KEYS)
    def arrive_nowait(self, priority: int, key: Any) -> None:
        ticket = Ticket(priority, supersede=key)
        if self.oracle.ended is not None:
            assert self.core.request_nowait(ticket, self.now) == (False, None)
            assert ticket.refusal == self.oracle.ended
            self.fates["rejected"] += 1
        elif self.oracle.eligible(priority):
            entered, superseded = self.core.request_nowait(ticket, self.now)
            self.tickets[ticket.seq] = ticket
            assert entered
            fate, older = self.oracle.arrive(Call(ticket.seq, priority, key), self.now)
            assert fate == GRANTED
            assert superseded is (None if older is None else self.ticket_of(older))
            self.check_one_granted(ticket)
            self.fates["admitted"] += 1
            self.fates["rejected"] += older is not None
        else:
            assert self.core.request_nowait(ticket, self.now) == (False, None)
            assert ticket.refusal == "would_block"
            self.fates["rejected"] += 1

    @rule()
    def turn_away(self) -> None:
        self.core.turn_away(Ticket(0))
        self.fates["cancelled"] += 1

    @precondition(lambda self: self.oracle.waiting)
    @rule(index=st.integers(0, 30))
    def cancel(self, index: int) -> None:
        call = self.oracle.waiting.pop(index % len(self.oracle.waiting))
        self.fates["cancelled"] += 1
        ticket = self.ticket_of(call)
        self.check_granted(self.core.cancel(ticket, self.now))
        assert ticket.state is TicketState.CANCELLED

    @precondition(lambda self: self.oracle.held)
    @rule(index=st.integers(0, 30))
    def release(self, index: int) -> None:
        call = self.oracle.held[index % len(self.oracle.held)]
        self.oracle.release(call, self.now)
        self.overdue.discard(call.seq)
        ticket = self.ticket_of(call)
        self.check_granted(self.core.release(ticket, self.now))
        with pytest.raises(RuntimeError):
            self.core.release(ticket, self.now)

    @precondition(lambda self: self.oracle.held)
    @rule(index=st.integers(0, 30))
    def take_back(self, index: int) -> None:
        call = self.oracle.held[index % len(self.oracle.held)]
        self.oracle.release(call, self.now)
        self.overdue.discard(call.seq)
        ticket = self.ticket_of(call)
        self.check_granted(self.core.take_back(ticket, self.now))
        assert ticket.state is TicketState.ORPHANED

    @precondition(lambda self: self.ends)
    @rule(reason=st.sampled_from(["closed", "broken"]))
    def refuse_newcomers(self, reason: str) -> None:
        self.oracle.ended = self.oracle.ended or reason
        self.core.refuse_newcomers(reason)

    @precondition(lambda self: self.ends)
    @rule(reason=st.sampled_from(["closed", "broken"]))
    def refuse_all(self, reason: str) -> None:
        self.oracle.ended = reason
        waiting = [self.ticket_of(call) for call in self.oracle.in_order()]
        self.oracle.waiting.clear()
        assert self.core.refuse_all(reason) == waiting
        for ticket in waiting:
            assert ticket.state is TicketState.REJECTED
            assert ticket.refusal == reason
        self.fates["rejected"] += len(waiting)

    @rule(capacity=st.integers(0, 5))
    def set_capacity(self, capacity: int) -> None:
        self.oracle.capacity = capacity
        self.check_granted(self.core.set_capacity(capacity, self.now))

    @precondition(lambda self: self.oracle.waiting)
    @rule(index=st.integers(0, 30), more=st.integers(1, 3))
    def cancel_settles_from_the_state(self, index: int, more: int) -> None:
        # Whatever made a place free, the next removal of a waiter must notice it: settling looks at the state.
        self.oracle.capacity = self.core.capacity = self.core.capacity + more
        self.cancel(index)

    @precondition(lambda self: self.oracle.held)
    @rule(index=st.integers(0, 30), seconds=st.sampled_from([0.0, 5.0, math.inf]))
    def move_deadline(self, index: int, seconds: float) -> None:
        call = self.oracle.held[index % len(self.oracle.held)]
        self.core.set_deadline(self.ticket_of(call), self.now + seconds)
        self.overdue.discard(call.seq)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 300.0, 501.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        alarm = self.core.next_alarm()
        passed = self.core.pass_time(self.now)
        expired = [call for call in self.oracle.waiting if call.arrived + call.max_wait <= self.now]
        assert {ticket.seq for ticket in passed.expired} == {call.seq for call in expired}
        for call in expired:
            assert self.ticket_of(call).state is TicketState.REJECTED
            assert self.ticket_of(call).refusal == "wait_too_long"
            self.oracle.waiting.remove(call)
            self.fates["rejected"] += 1
        starving = [
            call.seq
            for call in sorted(self.oracle.waiting, key=lambda call: call.seq)
            if call.arrived + STARVING <= self.now and call.seq not in self.reported
        ]
        assert [ticket.seq for ticket in passed.starving] == starving
        self.reported.update(starving)
        overdue = {
            call.seq
            for call in self.oracle.held
            if self.ticket_of(call).detached and self.ticket_of(call).hold_deadline + OVERDUE_GRACE <= self.now
        } - self.overdue
        assert {ticket.seq for ticket in passed.overdue} == overdue
        assert len(passed.overdue) == len(overdue)
        self.overdue |= overdue
        self.check_granted(passed.granted)
        assert (alarm <= self.now) == bool(expired or starving or overdue)
        assert self.core.next_alarm() > self.now

    # What must hold after each.

    @invariant()
    def settled(self) -> None:
        assert self.core.in_flight == len(self.oracle.held)
        assert self.core.tasks_waiting == len(self.oracle.waiting)
        assert self.oracle.next_granted() is None

    @invariant()
    def positions_and_estimates_are_exact(self) -> None:
        order = self.oracle.in_order()
        for priority in (0, 50, 100):
            rank = (priority if self.oracle.aging is None else self.now + self.oracle.aging * priority / 100, math.inf)
            expected = self.oracle.estimated_wait([call for call in order if call.rank < rank], self.now)
            if expected is not None:
                expected = max(expected, (self.oracle.mean_hold(priority) or 0.0) / 10) or None
            assert self.core.expected_wait(priority, self.now) == (
                None if expected is None else pytest.approx(expected)
            )
        tickets = {self.ticket_of(call) for call in order}
        outlooks = self.core.outlooks(tickets, self.now)
        assert set(outlooks) == tickets
        for index, call in enumerate(order):
            outlook = self.core.outlook(self.ticket_of(call), self.now)
            assert outlook == outlooks[self.ticket_of(call)]
            assert outlook is not None
            assert outlook.position == index + 1
            expected = self.oracle.estimated_wait(order[:index], self.now)
            assert outlook.estimated_wait == (None if expected is None else pytest.approx(expected))
        for call in self.oracle.held:
            assert self.core.outlook(self.ticket_of(call), self.now) is None
        assert not self.core.outlooks({self.ticket_of(call) for call in self.oracle.held}, self.now)

    @invariant()
    def a_slot_is_out_of_reach_if_it_is_when_all_others_end(self) -> None:
        for mine in (self.oracle.held[:1], self.oracle.held[1:], self.oracle.held):
            alone = Oracle(self.oracle.capacity, reserved=self.oracle.reserved)
            alone.held = list(mine)
            for priority in (0, 8, 100):
                blocked = self.core.blocked_by([self.ticket_of(call) for call in mine], priority)
                assert blocked == (alone.capacity > 0 and not alone.eligible(priority))

    @invariant()
    def statistics_are_exact(self) -> None:
        seen = self.core.statistics(self.now)
        waiting = self.oracle.waiting
        assert seen.capacity == self.oracle.capacity
        assert seen.ended == self.oracle.ended
        assert seen.in_flight == len(self.oracle.held)
        assert seen.tasks_waiting == len(waiting)
        assert list(seen.waiting_by_priority) == sorted({call.priority for call in waiting})
        for priority, count in seen.waiting_by_priority.items():
            assert count == sum(call.priority == priority for call in waiting)
        assert seen.longest_wait == max((self.now - call.arrived for call in waiting), default=0.0)
        assert (seen.admitted, seen.cancelled, seen.rejected) == tuple(self.fates.values())
        assert sum(seen.rejected_by_reason.values()) == seen.rejected

    def teardown(self) -> None:
        """Whoever leaves, leaves nothing behind."""
        if not hasattr(self, "core"):
            return  # hypothesis ended before the start
        while self.oracle.waiting:
            self.cancel(0)
        while self.oracle.held:
            self.release(0)
        core: Any = self.core
        assert core.next_alarm() == math.inf
        assert not core._line._classes
        assert not any((core._held, core._keys, core._unreported, core._starving, len(core._alarms)))
        assert core.admits(10**6) == (core.capacity > 0 and core.ended is None)


AdmissionMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAdmission = AdmissionMachine.TestCase
