"""Who may call the server next: the state of a gate and every decision about it, without a clock or a task.

The driver (``gate.py``) tells what happened, with the time; each method changes the state and returns whom
the change let in. Nothing here waits, and nothing here knows what a task is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import attrs

from trio_mlxgate.core.checks import check_aging, check_max_waiting, check_reserved
from trio_mlxgate.core.estimates import Forecast, Holds, Outlook
from trio_mlxgate.core.headroom import Headroom
from trio_mlxgate.core.indexed_heap import IndexedHeap
from trio_mlxgate.core.ordering import AgingLine, PriorityLine, aged_place
from trio_mlxgate.core.statistics import GateStatistics
from trio_mlxgate.core.ticket import (
    CLOSED,
    GRANTED,
    QUEUE_FULL,
    SUPERSEDED,
    WAIT_TOO_LONG,
    WAITING,
    WOULD_BLOCK,
    SupersedeKey,
    Ticket,
    TicketState,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from trio_mlxgate.priority import Priority

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


class _Line(Protocol[T]):
    """What the two kinds of queue have in common; each has its own kind of place."""

    length: int

    def __iter__(self) -> Iterator[T]: ...
    def add(self, place: Any, item: T, priority: int) -> None: ...
    def take_over(self, place: Any, item: T, priority: int) -> None: ...
    def remove(self, place: Any, priority: int) -> None: ...
    def take_first(self) -> T: ...
    def take_first_up_to(self, worst: float) -> T | None: ...
    def sizes(self) -> dict[int, int]: ...
    def ahead_of(self, place: Any, priority: int) -> dict[int, int]: ...


class Admission(Generic[T]):
    """A gate's state: how many slots are out, and who waits in which order.

    After each method the state is *settled*: there is no free slot beside an eligible waiter. One function,
    :meth:`_settle`, brings that about; it computes from the state and never from what changed.

    Args:
      capacity: how many slots there are.
      starvation_warning: seconds of waiting after which a waiter is reported.
      aging: None is strict priority; else the queue is ordered by ``arrival + aging * priority / 100``.
      reserved: how many slots are kept free of priorities worse than each key; see :class:`Headroom`.
      max_waiting: how many may wait, in all or, for each key, of that priority and worse ones.

    Raises:
      TypeError, ValueError: an argument isn't as described.
    """

    def __init__(
        self,
        capacity: int,
        *,
        starvation_warning: float = math.inf,
        aging: float | None = None,
        reserved: Mapping[int, int] | Mapping[Priority, int] | None = None,
        max_waiting: int | Mapping[int, int] | Mapping[Priority, int] | None = None,
    ) -> None:
        self.capacity = capacity
        """How many slots there are. Read it; :meth:`set_capacity` changes it."""
        self.in_flight = 0
        """How many slots are granted and not given back. To be read only."""
        self._starvation_warning = starvation_warning
        self.aging = check_aging(aging)
        self.reserved = check_reserved(reserved)
        self._max_waiting = check_max_waiting(max_waiting)
        self._headroom = Headroom(self.reserved) if self.reserved else None
        self.ended: str | None = None
        """Why newcomers are refused, as a reason of :mod:`trio_mlxgate.core.ticket`; None: they are not. To be read
        only; :meth:`refuse_newcomers` and :meth:`refuse_all` set it, for good."""
        # Whether a free slot without waiters is anybody's: one look for the path of every call.
        self._simple = self._headroom is None
        self._line: _Line[T] = PriorityLine() if self.aging is None else AgingLine(list(self.reserved))
        self._seq = 0
        self._admitted = 0
        self._cancelled = 0
        self._rejected: dict[str, int] = {}
        # The holders in no order; each knows its index. A dict whose one entry comes and goes is resized all the time.
        self._held: list[T] = []
        self._holds = Holds()
        self._latest_holds = self._holds.classes
        # The waiter of each supersede key.
        self._keys: dict[SupersedeKey, T] = {}
        # All waiters in the order of their arrival; those that were reported as starving came first and stand apart.
        self._unreported: OrderedDict[T, None] = OrderedDict()
        self._starving: OrderedDict[T, None] = OrderedDict()
        # At most one alarm a ticket: the end of max_wait while it waits, being overdue while it holds.
        self._alarms: IndexedHeap[T, float] = IndexedHeap()

    def anew(self) -> Admission[T]:
        """An empty one with the same capacity and options, of which nothing has been measured."""
        return Admission(
            self.capacity,
            starvation_warning=self._starvation_warning,
            aging=self.aging,
            reserved=self.reserved,
            max_waiting=self._max_waiting,
        )

    @property
    def tasks_waiting(self) -> int:
        """How many wait."""
        return self._line.length

    def admits(self, priority: int) -> bool:
        """Whether a call of this priority that arrived now would be granted a slot at once."""
        if self.in_flight >= self.capacity or self.ended is not None:
            return False
        if self._headroom is None:
            return not self._line.length
        # The state is settled: whoever waits beside a free slot is not eligible, and is not passed but passed over.
        return priority <= self._headroom.worst_eligible(self.capacity)

    def blocked_by(self, tickets: Collection[T], priority: int) -> bool:
        """Whether a call of this priority could not be let in as long as these slots are held, if all others ended.

        At capacity 0 nobody is let in, whoever holds what, until it is raised, to who knows what: nobody is blocked.
        """
        if len(tickets) >= self.capacity:
            return self.capacity > 0
        held = [ticket.priority for ticket in tickets]
        return self._headroom is not None and self._headroom.closed_by(held, priority, self.capacity)

    # ---- what can happen ----

    def request(self, ticket: T, now: float) -> T | None:
        """A call arrives. Its state says what became of it: GRANTED, WAITING, or REJECTED.

        It is rejected if the gate has ended, and if it must wait, and its ``max_wait`` leaves no time for that or the
        queue is full. Returns the waiter that it superseded, which is out of the queue, or None.
        """
        if self.in_flight < self.capacity and not self._line.length and self._simple:
            # The grant. It stands here and in _grant, since calls of functions cost the most.
            self._seq = ticket.seq = self._seq + 1
            ticket.arrived_at = now
            self.in_flight += 1
            self._admitted += 1
            ticket.held_at = len(self._held)
            self._held.append(ticket)
            ticket.state = GRANTED
            ticket.granted_at = now
            if ticket.hold_timeout < math.inf:
                # The hold budget starts at the grant: waiting has used none of it.
                self.set_deadline(ticket, now + ticket.hold_timeout)
            return None
        key = ticket.supersede
        # First of all, since a key of the caller's may fail to be compared.
        older = None if key is None else self._keys.get(key)
        self._seq = ticket.seq = self._seq + 1
        ticket.arrived_at = now
        if self.ended is not None:
            self._reject(ticket, self.ended)
            return None
        if self._headroom is not None and self.admits(ticket.priority):
            if older is not None:
                self._leave(older)
                self._reject(older, SUPERSEDED)
            self._grant(ticket, now)
            return older
        if ticket.max_wait <= 0:
            self._reject(ticket, WAIT_TOO_LONG)
            return None
        if older is not None and older.priority == ticket.priority:
            self._forget_wait(older)
            self._reject(older, SUPERSEDED)
            ticket.place = older.place
            self._line.take_over(ticket.place, ticket, ticket.priority)
        else:
            if self._max_waiting and self.fullness(ticket.priority, older) is not None:
                self._reject(ticket, QUEUE_FULL)
                return None
            if older is not None:
                self._leave(older)
                self._reject(older, SUPERSEDED)
            aging = self.aging
            ticket.place = ticket.seq if aging is None else aged_place(aging, ticket.seq, now, ticket.priority)
            self._line.add(ticket.place, ticket, ticket.priority)
        ticket.state = WAITING
        ticket.granted_at = now
        self._unreported[ticket] = None
        if key is not None:
            self._keys[key] = ticket
        if ticket.max_wait < math.inf:
            self._alarms.push(ticket, now + ticket.max_wait)
        return older

    def request_nowait(self, ticket: T, now: float) -> tuple[bool, T | None]:
        """A call arrives that will not wait: whether it was granted, and whom it superseded.

        If it isn't granted, that counts as a rejection, and nobody is superseded.
        """
        if not self.admits(ticket.priority):
            self._reject(ticket, self.ended or WOULD_BLOCK)
            return False, None
        return True, self.request(ticket, now)

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
        # The last of the holders moves to where this one was.
        last = self._held.pop()
        if last is not ticket:
            last.held_at = ticket.held_at
            self._held[last.held_at] = last
        if self._headroom is not None:
            self._headroom.released(ticket.priority)
        try:
            self._latest_holds[ticket.priority].append(now - ticket.granted_at)
        except KeyError:
            self._holds.begin(ticket.priority, now - ticket.granted_at)
        if ticket.detached and ticket in self._alarms:
            self._alarms.remove(ticket)
        return self._settle(now) if self._line.length else []

    def take_back(self, ticket: T, now: float) -> list[T]:
        """Who held this slot is gone and will not give it back. Returns whom that let in."""
        granted = self.release(ticket, now)
        ticket.state = TicketState.ORPHANED
        return granted

    def refuse_newcomers(self, reason: str = CLOSED) -> None:
        """From here on nobody else arrives: who waits is let in as before. The first reason given stands."""
        self.ended = self.ended or reason
        self._simple = False

    def refuse_all(self, reason: str) -> list[T]:
        """From here on nobody is let in any more. Returns who waited, best rank first: they are refused, too.

        Who has been refused for a reason keeps it, and newcomers are refused for the last one that was given.
        """
        self.ended = reason
        self._simple = False
        refused = list(self._line)
        for ticket in refused:
            self._leave(ticket)
            self._reject(ticket, reason)
        return refused

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
            self._report_after(ticket, deadline)

    def lend(self, ticket: T, deadline: float) -> None:
        """A held slot serves something that may outlive its holder: from here on it is reported when overdue."""
        ticket.detached = True
        self._report_after(ticket, deadline)

    def end_loan(self, ticket: T) -> None:
        """What a slot was lent to has ended."""
        ticket.detached = False
        if ticket in self._alarms:
            self._alarms.remove(ticket)

    def next_alarm(self) -> float:
        """The absolute time at which :meth:`pass_time` next has something to do; inf if never."""
        alarm = self._alarms.first_rank() if self._alarms else math.inf
        if self._unreported and self._starvation_warning < math.inf:
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
                self._reject(ticket, WAIT_TOO_LONG)
                expired.append(ticket)
            else:
                self._alarms.remove(ticket)
                overdue.append(ticket)
        while self._unreported:
            ticket = next(iter(self._unreported))
            if ticket.arrived_at + self._starvation_warning > now:
                break
            del self._unreported[ticket]
            self._starving[ticket] = None
            starving.append(ticket)
        return Passed(self._settle(now), expired, starving, overdue)

    def outlook(self, ticket: T, now: float) -> Outlook | None:
        """Where a call stands in the queue and what it has before it, or None if it doesn't wait.

        O(c + the waiters of its class before it), c being the number of priorities in use; with aging O(all before it).
        """
        if ticket.state is not WAITING:
            return None
        ahead = self._line.ahead_of(ticket.place, ticket.priority)
        return Outlook(1 + sum(ahead.values()), self._forecast(now).wait(ahead))

    def outlooks(self, tickets: Collection[T], now: float) -> dict[T, Outlook]:
        """:meth:`outlook` for many at once, by one walk through the queue to the last of them."""
        forecast = self._forecast(now)
        missing = sum(ticket.state is WAITING for ticket in tickets)
        found: dict[T, Outlook] = {}
        ahead: dict[int, int] = {}
        for position, ticket in enumerate(self._line if missing else (), 1):
            if ticket in tickets:
                found[ticket] = Outlook(position, forecast.wait(ahead))
                if len(found) == missing:
                    break
            ahead[ticket.priority] = ahead.get(ticket.priority, 0) + 1
        return found

    def fullness(self, priority: int, leaving: T | None = None) -> tuple[int, int, int] | None:
        """Of the limit that keeps a call of this priority out: its key, how many it counts, and how many it allows.

        None: the call finds a place. Counted is as if the waiter ``leaving`` had left the queue.
        """
        sizes = self._line.sizes()
        if leaving is not None:
            sizes[leaving.priority] -= 1
        for key, limit in sorted(self._max_waiting.items()):
            waiting = sum(size for other, size in sizes.items() if other >= key)
            if key <= priority and waiting >= limit:
                return key, waiting, limit
        return None

    def expected_wait(self, priority: int, now: float) -> float | None:
        """How many seconds a call of this priority would wait that came now; None as in :class:`Outlook`.

        Not less than a tenth of a mean hold: a holder that takes longer than the mean has not ended yet, and who asks
        again at once finds it there.
        """
        aging = self.aging
        last = self._seq + 1 if aging is None else aged_place(aging, self._seq + 1, now, priority)
        ahead = self._line.ahead_of(last, priority)
        wait = self._forecast(now).wait(ahead)
        return None if wait is None else max(wait, (self._holds.mean(priority) or 0.0) / 10) or None

    def statistics(self, now: float) -> GateStatistics:
        """A snapshot. O(c), c being the number of priorities in use."""
        # Starving waiters came before all others.
        oldest = next(iter(self._starving or self._unreported), None)
        return GateStatistics(
            capacity=self.capacity,
            in_flight=self.in_flight,
            tasks_waiting=self._line.length,
            waiting_by_priority=MappingProxyType(self._line.sizes()),
            longest_wait=0.0 if oldest is None else max(0.0, now - oldest.arrived_at),
            admitted=self._admitted,
            cancelled=self._cancelled,
            rejected=sum(self._rejected.values()),
            rejected_by_reason=MappingProxyType(dict(self._rejected)),
            ended=self.ended,
        )

    # ---- how it is decided ----

    def _settle(self, now: float) -> list[T]:
        granted: list[T] = []
        line, headroom = self._line, self._headroom
        while self.in_flight < self.capacity and line.length:
            if headroom is None:
                ticket = line.take_first()
            else:
                eligible = line.take_first_up_to(headroom.worst_eligible(self.capacity))
                if eligible is None:
                    break
                ticket = eligible
            # As _forget_wait, without the call: this is the path of everybody who waits.
            if ticket in self._unreported:
                del self._unreported[ticket]
            else:
                del self._starving[ticket]
            if ticket.supersede is not None:
                del self._keys[ticket.supersede]
            if ticket.max_wait < math.inf:
                self._alarms.remove(ticket)
            # As _grant.
            self.in_flight += 1
            self._admitted += 1
            ticket.held_at = len(self._held)
            self._held.append(ticket)
            if headroom is not None:
                headroom.granted(ticket.priority)
            ticket.state = GRANTED
            ticket.granted_at = now
            if ticket.hold_timeout < math.inf:
                self.set_deadline(ticket, now + ticket.hold_timeout)
            granted.append(ticket)
        return granted

    def _grant(self, ticket: T, now: float) -> None:
        self.in_flight += 1
        self._admitted += 1
        ticket.held_at = len(self._held)
        self._held.append(ticket)
        if self._headroom is not None:
            self._headroom.granted(ticket.priority)
        ticket.state = GRANTED
        ticket.granted_at = now
        if ticket.hold_timeout < math.inf:
            self.set_deadline(ticket, now + ticket.hold_timeout)

    def _leave(self, ticket: T) -> None:
        if ticket.state is not WAITING:
            raise RuntimeError(f"this call does not wait: {ticket!r}")
        self._line.remove(ticket.place, ticket.priority)
        self._forget_wait(ticket)

    def _forget_wait(self, ticket: T) -> None:
        """What is kept of a waiter beside its place."""
        if ticket in self._unreported:
            del self._unreported[ticket]
        else:
            del self._starving[ticket]
        if ticket.supersede is not None:
            del self._keys[ticket.supersede]
        if ticket.max_wait < math.inf:
            self._alarms.remove(ticket)

    def _report_after(self, ticket: T, deadline: float) -> None:
        """Let a slot that is held beyond ``deadline`` be reported as overdue."""
        if ticket in self._alarms:
            self._alarms.remove(ticket)
        if deadline < math.inf:
            self._alarms.push(ticket, deadline + OVERDUE_GRACE)

    def _forecast(self, now: float) -> Forecast:
        holders = [(ticket.priority, now - ticket.granted_at) for ticket in self._held]
        return Forecast(self._holds, self.capacity, holders)

    def _reject(self, ticket: T, reason: str) -> None:
        ticket.state = TicketState.REJECTED
        ticket.refusal = reason
        self._rejected[reason] = self._rejected.get(reason, 0) + 1
