"""What a gate must do at a time, with nobody calling: end waits, report who starves and which slots are overdue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import outcome
import trio
from trio.lowlevel import reschedule

from trio_mlxgate.instrumentation import details

if TYPE_CHECKING:
    from trio_mlxgate.core.admission import Passed
    from trio_mlxgate.driver import Driver
    from trio_mlxgate.slots import Slot


class Alarms:
    """The alarms of one gate in one run, heard by a system task that lives while there are any.

    It sleeps until the earliest alarm that was ever set; if that one is gone when it wakes, it sleeps on
    or ends. So a queue that fills and empties all the time costs nothing here.
    """

    def __init__(self, gate: Driver) -> None:
        self._gate = gate
        self._scope: trio.CancelScope | None = None
        self.until = math.inf
        """Until when the task sleeps; inf while there is none."""

    def watch(self) -> None:
        """See to it that the next alarm of the core is heard."""
        alarm = self._gate._admission.next_alarm()
        if self._scope is None:
            if alarm < math.inf:
                scope = trio.CancelScope(deadline=alarm)
                trio.lowlevel.spawn_system_task(self._keep_watch, scope, name=f"watch of gate {self._gate.name!r}")
                self._scope = scope
                self.until = alarm
        elif alarm < self.until:
            self._scope.deadline = self.until = alarm

    async def _keep_watch(self, scope: trio.CancelScope) -> None:
        """Hear the alarms until there are none. Always a checkpoint."""
        gate = self._gate
        admission = gate._admission
        try:
            while True:
                with scope:
                    await trio.sleep_forever()
                self._act_on(admission.pass_time(gate._clock()))
                alarm = admission.next_alarm()
                if alarm == math.inf:
                    return
                scope = self._scope = trio.CancelScope(deadline=alarm)
                self.until = alarm
        finally:
            self._scope = None
            self.until = math.inf

    def _act_on(self, passed: Passed[Slot]) -> None:
        gate = self._gate
        # One look at the queue for each priority, however many expire at once.
        expected: dict[int, float | None] = {}
        for ticket in passed.expired:
            assert ticket.waiter is not None
            reschedule(ticket.waiter, outcome.Error(gate._refusal(ticket, expected)))
        gate._wake(passed.granted)
        for ticket in passed.expired:
            gate._refused(ticket)
        gate._tell_granted(passed.granted)
        for ticket in passed.starving:
            gate._tell(details.Starving, ticket)
            if ticket.waiter is not None:
                gate._ancestors.look(ticket, ticket.waiter)
        for ticket in passed.overdue:
            gate._tell(details.Overdue, ticket)
