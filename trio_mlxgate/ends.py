"""How a gate comes to rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from trio.lowlevel import enable_ki_protection

from trio_mlxgate.onlookers import Onlooker

if TYPE_CHECKING:
    from trio_mlxgate.driver import Driver
    from trio_mlxgate.instrumentation import Details


class Idleness(Onlooker):
    """Those who wait until one gate is idle, in one run: no slot is held, and nobody waits for one.

    While there are any, it is one of the gate's hooks, so that a gate for which nobody waits pays nothing.
    """

    def __init__(self, gate: Driver) -> None:
        super().__init__(gate)
        self._event: anyio.Event | None = None
        self._waiting = 0

    def check(self) -> None:
        """See that the current task may wait.

        Raises:
          RuntimeError: it would wait for itself.
        """
        gate = self._gate
        task = gate._runtime.current_task()
        if task in gate._owners or gate._tied_to(task) or gate._held_by_served_thread():
            raise RuntimeError(
                f"this task holds a slot of gate {gate.name!r} itself; give it back before you wait until it is idle"
            )

    @enable_ki_protection
    async def wait(self) -> None:
        """Wait until it is so at some moment. Always a checkpoint."""
        runtime = self._gate._runtime
        if self._is_idle():
            await runtime.checkpoint()
            return
        await runtime.checkpoint_if_cancelled()
        self.attach()
        if self._event is None:
            self._event = anyio.Event()
        self._waiting += 1
        try:
            await self._event.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.detach()

    def look(self) -> None:
        """Something has changed: let them go on if the gate is idle now."""
        if self._event is not None and self._is_idle():
            self._event.set()
            self._event = None

    def _is_idle(self) -> bool:
        admission = self._gate._admission
        return not (admission.in_flight or admission.tasks_waiting)

    def __call__(self, details: Details) -> None:  # noqa: ARG002 - what counts is how the gate is now
        self.look()
