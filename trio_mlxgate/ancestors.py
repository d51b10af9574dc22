"""A task that waits for a slot which one of the tasks above it owns: it is told, once for each place in the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_mlxgate.call_sites import asking, call_site, site_of
from trio_mlxgate.instrumentation import details

if TYPE_CHECKING:
    from trio_mlxgate.driver import Driver
    from trio_mlxgate.runtime import SomeTask
    from trio_mlxgate.slots import Slot


class Ancestors:
    """What one gate knows of those who wait for their parents' slots."""

    def __init__(self, gate: Driver) -> None:
        self._gate = gate
        self._reported: set[tuple[str, int]] = set()

    def look(self, slot: Slot, task: SomeTask, *, current: bool = True) -> None:
        """The call of ``task`` waits: tell it, if tasks above it hold all the slots that it could have.

        ``current`` says whether it is the current task. Held is what they own, and what their open responses do.

        It is no error: those above may let go first. If their blocks can't end before this task does, all hang.

        Looked at are the first calls of a run, whoever waits alone, some of all others, and who starves: so that a hang
        is told of at some time, and a queue that moves pays little.
        """
        gate = self._gate
        # Of a thread that asks, those above the task that waits for the thread count.
        in_thread = asking.get()
        owner, held = self.held_above(task if in_thread is None else in_thread.host)
        if owner is None or not gate._admission.blocked_by(held, slot.priority):
            return
        runtime = gate._runtime
        self.report(slot, runtime.name_of(owner), call_site(runtime) if current else site_of(runtime, task))

    def held_above(self, task: SomeTask) -> tuple[SomeTask | None, list[Slot]]:
        """The nearest task above this one that holds something of the gate, and all that those above hold."""
        gate = self._gate
        held: list[Slot] = []
        owner = None
        for above in gate._runtime.above(task):
            if above in gate._owners:
                owner = owner or above
                held.append(gate._owners[above])
            if gate._tied:
                open_responses = gate._tied_to(above)
                owner = owner or (above if open_responses else None)
                held += open_responses
        return owner, held

    def report(self, slot: Slot, parent: str, site: tuple[str, int]) -> None:
        """A call of this place waits for what the task ``parent`` holds: tell it, the first time."""
        if site not in self._reported:
            self._reported.add(site)
            self._gate._tell(details.WaitsForParent, slot, parent=parent, site=f"{site[0]}:{site[1]}")
