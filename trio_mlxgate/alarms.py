"""What a gate must do at a time, with nobody calling: end waits, report who starves and which slots are overdue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import outcome

from trio_mlxgate.instrumentation import details

if TYPE_CHECKING:
    from trio_mlxgate.core.admission import Passed
    from trio_mlxgate.driver import Driver
    from trio_mlxgate.runtime import Timer
    from trio_mlxgate.slots import Slot


class Alarms:
    """The alarms of one gate in one run, heard by a timer that lives while there are any.

    It rings at the earliest alarm that was ever set; if that one is gone by then, it is set anew or ends.
    So a queue that fills and empties all the time costs nothing here.
    """

    def __init__(self, gate: Driver) -> None:
        self._gate = gate
        self._timer: Timer | None = None
        self.until = math.inf
        """When the timer rings; inf while there is none."""

    def watch(self) -> None:
        """See to it that the next alarm of the core is heard."""
        alarm = self._gate._admission.next_alarm()
        if self._timer is None:
            if alarm < math.inf:
                self._timer = self._gate._runtime.timer(alarm, self._ring, f"watch of gate {self._gate.name!r}")
                self.until = alarm
        elif alarm < self.until:
            self._timer.move(alarm)
            self.until = alarm

    def _ring(self) -> float:
        """Hear the alarms that are due. Returns when the next one is."""
        if self._gate._alarms is not self:
            return math.inf  # the gate is at home elsewhere by now
        admission = self._gate._admission
        self._act_on(admission.pass_time(self._gate._clock()))
        self.until = admission.next_alarm()
        if self.until == math.inf:
            self._timer = None
        return self.until

    def _act_on(self, passed: Passed[Slot]) -> None:
        gate = self._gate
        # One look at the queue for each priority, however many expire at once.
        expected: dict[int, float | None] = {}
        for ticket in passed.expired:
            # A call of another run is in the queue before its task here waits: that sees for itself.
            if ticket.waiter is not None:
                gate._runtime.wake(ticket.waiter, outcome.Error(gate._refusal(ticket, expected)))
        gate._wake(passed.granted)
        for ticket in passed.expired:
            gate._refused(ticket)
        gate._tell_granted(passed.granted)
        for ticket in passed.starving:
            gate._tell(details.Starving, ticket)
            if ticket.waiter is not None:
                gate._ancestors.look(ticket, ticket.asker, current=False)
        for ticket in passed.overdue:
            gate._tell(details.Overdue, ticket)
