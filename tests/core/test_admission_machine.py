"""The core against an oracle that is nothing but a plain list, event by event."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_mlxgate.core.admission import OVERDUE_GRACE, Admission, Ticket, TicketState

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "1500"))
STARVING = 300.0


class AdmissionMachine(RuleBasedStateMachine):
    """The model: a list of the waiting tickets and a list of the held ones. All else is computed by looking at all."""

    def __init__(self) -> None:
        super().__init__()
        self.core: Admission[Ticket] = Admission(1, starvation_warning=STARVING)
        self.now = 0.0
        self.capacity = 1
        self.waiting: list[Ticket] = []
        self.held: list[Ticket] = []
        self.reported: set[int] = set()
        self.overdue: set[int] = set()
        self.fates = {"admitted": 0, "cancelled": 0, "rejected": 0}

    # The model's rules, as slow and plain as can be.

    def expect_granted(self) -> list[Ticket]:
        granted = []
        while self.waiting and len(self.held) < self.capacity:
            best = min(self.waiting, key=lambda ticket: (ticket.priority, ticket.seq))
            self.waiting.remove(best)
            self.held.append(best)
            self.fates["admitted"] += 1
            granted.append(best)
        return granted

    def check_granted(self, granted: list[Ticket]) -> None:
        assert granted == self.expect_granted()
        for ticket in granted:
            assert ticket.state is TicketState.GRANTED
            assert ticket.granted_at == self.now
            assert ticket.waited == self.now - ticket.arrived_at
            assert ticket.hold_deadline == self.now + ticket.hold_timeout

    # What can happen.

    @rule(
        priority=st.sampled_from([0, 100, 100, 7, -1]),
        max_wait=st.sampled_from([math.inf, math.inf, 0.0, 1.0, 500.0]),
        hold_timeout=st.sampled_from([math.inf, 0.0, 2.0]),
        detached=st.booleans(),
    )
    def arrive(self, priority: int, max_wait: float, hold_timeout: float, detached: bool) -> None:
        ticket = Ticket(priority, hold_timeout=hold_timeout, max_wait=max_wait)
        ticket.detached = detached
        assert self.core.admits() == (len(self.held) < self.capacity)
        self.core.request(ticket, self.now)
        if len(self.held) < self.capacity or max_wait > 0:
            self.waiting.append(ticket)
            self.check_granted([ticket] if ticket.state is TicketState.GRANTED else [])
        else:
            assert ticket.state is TicketState.REJECTED
            self.fates["rejected"] += 1

    @rule(priority=st.sampled_from([0, 100]))
    def arrive_nowait(self, priority: int) -> None:
        ticket = Ticket(priority)
        if self.core.request_nowait(ticket, self.now):
            self.waiting.append(ticket)
            self.check_granted([ticket])
        else:
            assert len(self.held) >= self.capacity
            self.fates["rejected"] += 1

    @rule()
    def turn_away(self) -> None:
        self.core.turn_away(Ticket(0))
        self.fates["cancelled"] += 1

    @precondition(lambda self: self.waiting)
    @rule(index=st.integers(0, 30))
    def cancel(self, index: int) -> None:
        ticket = self.waiting.pop(index % len(self.waiting))
        self.fates["cancelled"] += 1
        self.check_granted(self.core.cancel(ticket, self.now))
        assert ticket.state is TicketState.CANCELLED

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 30))
    def release(self, index: int) -> None:
        ticket = self.held.pop(index % len(self.held))
        self.overdue.discard(ticket.seq)
        self.check_granted(self.core.release(ticket, self.now))
        with pytest.raises(RuntimeError):
            self.core.release(ticket, self.now)

    @rule(capacity=st.integers(0, 4))
    def set_capacity(self, capacity: int) -> None:
        self.capacity = capacity
        self.check_granted(self.core.set_capacity(capacity, self.now))

    @precondition(lambda self: self.waiting)
    @rule(index=st.integers(0, 30), more=st.integers(1, 3))
    def cancel_settles_from_the_state(self, index: int, more: int) -> None:
        # Whatever made a place free, the next removal of a waiter must notice it: settling looks at the state.
        self.capacity = self.core.capacity = self.capacity + more
        self.cancel(index)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 30), seconds=st.sampled_from([0.0, 5.0, math.inf]))
    def move_deadline(self, index: int, seconds: float) -> None:
        ticket = self.held[index % len(self.held)]
        self.core.set_deadline(ticket, self.now + seconds)
        self.overdue.discard(ticket.seq)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 300.0, 501.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        alarm = self.core.next_alarm()
        passed = self.core.pass_time(self.now)
        expired = [ticket for ticket in self.waiting if ticket.arrived_at + ticket.max_wait <= self.now]
        assert sorted(passed.expired, key=lambda ticket: ticket.seq) == expired
        for ticket in expired:
            assert ticket.state is TicketState.REJECTED
            self.waiting.remove(ticket)
            self.fates["rejected"] += 1
        starving = [
            ticket
            for ticket in self.waiting
            if ticket.arrived_at + STARVING <= self.now and ticket.seq not in self.reported
        ]
        assert passed.starving == starving
        self.reported.update(ticket.seq for ticket in starving)
        overdue = [
            ticket
            for ticket in self.held
            if ticket.detached and ticket.hold_deadline + OVERDUE_GRACE <= self.now and ticket.seq not in self.overdue
        ]
        assert sorted(passed.overdue, key=lambda ticket: ticket.seq) == sorted(overdue, key=lambda ticket: ticket.seq)
        self.overdue.update(ticket.seq for ticket in overdue)
        self.check_granted(passed.granted)
        assert (alarm <= self.now) == bool(expired or starving or overdue)
        assert self.core.next_alarm() > self.now

    # What must hold after each.

    @invariant()
    def settled(self) -> None:
        assert self.core.in_flight == len(self.held)
        assert self.core.tasks_waiting == len(self.waiting)
        assert not (self.core.in_flight < self.core.capacity and self.core.tasks_waiting)

    @invariant()
    def statistics_are_exact(self) -> None:
        seen = self.core.statistics(self.now)
        assert seen.capacity == self.capacity
        assert seen.in_flight == len(self.held)
        assert seen.tasks_waiting == len(self.waiting)
        assert list(seen.waiting_by_priority) == sorted({ticket.priority for ticket in self.waiting})
        for priority, count in seen.waiting_by_priority.items():
            assert count == sum(ticket.priority == priority for ticket in self.waiting)
        assert seen.longest_wait == max((self.now - ticket.arrived_at for ticket in self.waiting), default=0.0)
        assert (seen.admitted, seen.cancelled, seen.rejected) == tuple(self.fates.values())
        assert sum(seen.rejected_by_reason.values()) == seen.rejected

    def teardown(self) -> None:
        """Whoever leaves, leaves nothing behind."""
        for ticket in list(self.waiting):
            self.core.cancel(ticket, self.now)
        for ticket in list(self.held):
            self.core.release(ticket, self.now)
        assert self.core.next_alarm() == math.inf
        assert not self.core._line._classes
        assert not len(self.core._line._priorities)


AdmissionMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAdmission = AdmissionMachine.TestCase
