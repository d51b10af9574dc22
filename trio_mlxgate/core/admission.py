"""Who may call the server next: the state of a gate and every decision about it, without a clock or a task.

The driver (``gate.py``) tells what happened, with the time; each method changes the state and returns whom
the change let in. Nothing here waits, and nothing here knows what a task is.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from types import MappingProxyType
from typing import Final, Generic, TypeVar

import attrs

from trio_mlxgate.core.indexed_heap import IndexedHeap
from trio_mlxgate.core.ordering import PriorityLine
from trio_mlxgate.core.statistics import GateStatistics


class TicketState(enum.Enum):
    """Where a call stands: NEW and ASKING before it arrives; RELEASED, CANCELLED and REJECTED are ends."""

    NEW = "new"
    ASKING = "asking"
    WAITING = "waiting"
    GRANTED = "granted"
    RELEASED = "released"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


WAITING: Final = TicketState.WAITING
GRANTED: Final = TicketState.GRANTED


class Ticket:
    """One call to a gate. Its maker says what is asked for; from its arrival on :class:`Admission` alone changes it.

    A driver makes a subclass of it that keeps what the driver needs, such as the task to be woken.
    """

    # Slots, and no defaults in the class: both make a ticket cheaper, which is made for every call.
    __slots__ = (
        "arrived_at",
        "detached",
        "granted_at",
        "hold_deadline",
        "hold_timeout",
        "max_wait",
        "priority",
        "seq",
        "state",
    )

    def __init__(self, priority: int, *, hold_timeout: float = math.inf, max_wait: float = math.inf) -> None:
        self.priority = priority
        self.hold_timeout = hold_timeout
        self.max_wait = max_wait
        self.state = TicketState.NEW
        self.seq = 0
        self.arrived_at = 0.0
        self.granted_at = 0.0
        self.hold_deadline = math.inf
        self.detached = False

    @property
    def waited(self) -> float:
        """For how many seconds the call stood in the queue; 0.0 before the grant."""
        return self.granted_at - self.arrived_at

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.seq} priority={self.priority} {self.state.value}>"


T = TypeVar("T", bound=Ticket)


@attrs.frozen
class Passed(Generic[T]):
    """What the mere passing of time brought about."""

    granted: list[T]
    """Who was let in."""

    expired: list[T]
    """Waiters whose ``max_wait`` ended; they are out of the queue."""

    starving: list[T]
    """Waiters that have now waited for ``starvation_warning`` seconds; they wait on. Each is named once."""

    overdue: list[T]
    """Detached or lent slots that are still held :data:`OVERDUE_GRACE` seconds beyond their deadline."""


OVERDUE_GRACE: Final = 1.0
"""Seconds after its deadline at which a detached slot is reported: whoever reads its response is interrupted at
the deadline itself and then closes, which is no news."""


class Admission(Generic[T]):
    """A gate's state: how many slots are out, and who waits in which order.

    After each method the state is *settled*: there is no free slot beside a waiter. One function,
    :meth:`_settle`, brings that about; it computes from the state and never from what changed.
    """

    def __init__(self, capacity: int, *, starvation_warning: float = math.inf) -> None:
        self.capacity = capacity
        """How many slots there are. Read it; :meth:`set_capacity` changes it."""
        self.in_flight = 0
        """How many slots are granted and not given back. To be read only."""
        self._starvation_warning = starvation_warning
        self._line: PriorityLine[T] = PriorityLine()
        self._seq = 0
        self._admitted = 0
        self._cancelled = 0
        self._rejected: dict[str, int] = {}
        # Waiters not yet reported as starving, in the order of their arrival.
        self._unreported: OrderedDict[T, None] = OrderedDict()
        # At most one alarm a ticket: the end of max_wait while it waits, being overdue while it holds.
        self._alarms: IndexedHeap[T] = IndexedHeap()

    @property
    def tasks_waiting(self) -> int:
        """How many wait."""
        return self._line.length

    def admits(self) -> bool:
        """Whether a call that arrived now would be granted a slot at once."""
        return self.in_flight < self.capacity and not self._line.length

    # ---- what can happen ----

    def request(self, ticket: T, now: float) -> None:
        """A call arrives. Its state says what became of it: GRANTED, WAITING, or, when it must wait and
        its ``max_wait`` leaves no time for that, REJECTED."""
        self._seq = ticket.seq = self._seq + 1
        ticket.arrived_at = now
        if self.in_flight < self.capacity and not self._line.length:
            # The grant. It stands here and in _settle, not in a function: calls of functions cost the most.
            self.in_flight += 1
            self._admitted += 1
            ticket.state = GRANTED
            ticket.granted_at = now
            if ticket.hold_timeout < math.inf:
                # The hold budget starts at the grant: waiting has used none of it.
                self.set_deadline(ticket, now + ticket.hold_timeout)
        elif ticket.max_wait > 0:
            ticket.state = WAITING
            ticket.granted_at = now
            self._line.add(ticket, ticket.priority)
            if self._starvation_warning < math.inf:
                self._unreported[ticket] = None
            if ticket.max_wait < math.inf:
                self._alarms.push(ticket, now + ticket.max_wait)
        else:
            self._reject(ticket, "wait_too_long")

    def request_nowait(self, ticket: T, now: float) -> bool:
        """A call arrives that will not wait: whether it was granted. If not, that counts as a rejection."""
        if not self.admits():
            self._reject(ticket, "would_block")
            return False
        self.request(ticket, now)
        return True

    def turn_away(self, ticket: T) -> None:
        """A call was cancelled when it asked, before it could arrive: it is counted and nothing else."""
        ticket.state = TicketState.CANCELLED
        self._cancelled += 1

    def cancel(self, ticket: T, now: float) -> list[T]:
        """A waiter is cancelled: it leaves the queue, and with it all traces. Returns whom that let in."""
        self._leave(ticket)
        ticket.state = TicketState.CANCELLED
        self._cancelled += 1
        return self._settle(now)

    def release(self, ticket: T, now: float) -> list[T]:
        """A slot is given back. Returns whom that let in."""
        if ticket.state is not GRANTED:
            raise RuntimeError(f"this slot is not held: {ticket!r}")
        ticket.state = TicketState.RELEASED
        self.in_flight -= 1
        if ticket.detached and ticket in self._alarms:
            self._alarms.remove(ticket)
        return self._settle(now) if self._line.length else []

    def set_capacity(self, capacity: int, now: float) -> list[T]:
        """The bound changes: a raise lets in as many as now fit, a fall lets the holders finish."""
        self.capacity = capacity
        return self._settle(now)

    def set_deadline(self, ticket: T, deadline: float) -> None:
        """The hold deadline of a granted ticket is moved to the absolute time ``deadline``."""
        if ticket.state is not GRANTED:
            raise RuntimeError(f"this slot is not held: {ticket!r}")
        ticket.hold_deadline = deadline
        if ticket.detached:
            if ticket in self._alarms:
                self._alarms.remove(ticket)
            if deadline < math.inf:
                self._alarms.push(ticket, deadline + OVERDUE_GRACE)

    def lend(self, ticket: T, deadline: float) -> None:
        """A held slot serves something that may outlive its holder: from here on it is reported when overdue."""
        ticket.detached = True
        if deadline < math.inf:
            self._alarms.push(ticket, deadline + OVERDUE_GRACE)

    def end_loan(self, ticket: T) -> None:
        """What a slot was lent to has ended."""
        ticket.detached = False
        if ticket in self._alarms:
            self._alarms.remove(ticket)

    def next_alarm(self) -> float:
        """The absolute time at which :meth:`pass_time` next has something to do; inf if never."""
        alarm = self._alarms.first_rank() if self._alarms else math.inf
        if self._unreported:
            alarm = min(alarm, next(iter(self._unreported)).arrived_at + self._starvation_warning)
        return alarm

    def pass_time(self, now: float) -> Passed[T]:
        """It is ``now``: say whose ``max_wait`` has ended, who starves, who is overdue."""
        expired: list[T] = []
        overdue: list[T] = []
        starving: list[T] = []
        while self._alarms and self._alarms.first_rank() <= now:
            ticket = self._alarms.first()
            if ticket.state is WAITING:
                self._leave(ticket)
                self._reject(ticket, "wait_too_long")
                expired.append(ticket)
            else:
                self._alarms.remove(ticket)
                overdue.append(ticket)
        while self._unreported:
            ticket = next(iter(self._unreported))
            if ticket.arrived_at + self._starvation_warning > now:
                break
            del self._unreported[ticket]
            starving.append(ticket)
        return Passed(self._settle(now), expired, starving, overdue)

    def statistics(self, now: float) -> GateStatistics:
        """A snapshot. O(c), c being the number of priorities in use."""
        heads = self._line.heads()
        return GateStatistics(
            capacity=self.capacity,
            in_flight=self.in_flight,
            tasks_waiting=len(self._line),
            waiting_by_priority=MappingProxyType(self._line.sizes()),
            longest_wait=max(0.0, now - min(ticket.arrived_at for ticket in heads)) if heads else 0.0,
            admitted=self._admitted,
            cancelled=self._cancelled,
            rejected=sum(self._rejected.values()),
            rejected_by_reason=MappingProxyType(dict(self._rejected)),
        )

    # ---- how it is decided ----

    def _settle(self, now: float) -> list[T]:
        granted: list[T] = []
        line, unreported = self._line, self._unreported
        while self.in_flight < self.capacity and line.length:
            ticket = line.take_first()
            # As _forget_wait, without the call: this is the path of everybody who waits.
            if ticket in unreported:
                del unreported[ticket]
            if ticket.max_wait < math.inf:
                self._alarms.remove(ticket)
            # The grant, as in request.
            self.in_flight += 1
            self._admitted += 1
            ticket.state = GRANTED
            ticket.granted_at = now
            if ticket.hold_timeout < math.inf:
                self.set_deadline(ticket, now + ticket.hold_timeout)
            granted.append(ticket)
        return granted

    def _leave(self, ticket: T) -> None:
        if ticket.state is not WAITING:
            raise RuntimeError(f"this call does not wait: {ticket!r}")
        self._line.remove(ticket, ticket.priority)
        self._forget_wait(ticket)

    def _forget_wait(self, ticket: T) -> None:
        if ticket in self._unreported:
            del self._unreported[ticket]
        if ticket.max_wait < math.inf:
            self._alarms.remove(ticket)

    def _reject(self, ticket: T, reason: str) -> None:
        ticket.state = TicketState.REJECTED
        self._rejected[reason] = self._rejected.get(reason, 0) + 1
