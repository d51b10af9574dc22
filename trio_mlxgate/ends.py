"""How a gate comes to rest, and what becomes of a slot whose task is gone."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Final

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled, current_task, enable_ki_protection

from trio_mlxgate.onlookers import Onlooker

if TYPE_CHECKING:
    from trio.lowlevel import Task

    from trio_mlxgate.driver import Driver
    from trio_mlxgate.instrumentation import Details


class Idleness(Onlooker):
    """Those who wait until one gate is idle, in one run: no slot is held, and nobody waits for one.

    While there are any, it is one of the gate's hooks, so that a gate for which nobody waits pays nothing.
    """

    def __init__(self, gate: Driver) -> None:
        super().__init__(gate)
        self._lot = trio.lowlevel.ParkingLot()

    def check(self) -> None:
        """See that the current task may wait.

        Raises:
          RuntimeError: it would wait for itself.
        """
        gate, task = self._gate, current_task()
        if task in gate._owners or gate._tied_to(task) or gate._held_by_served_thread():
            raise RuntimeError(
                f"this task holds a slot of gate {gate.name!r} itself; give it back before you wait until it is idle"
            )

    @enable_ki_protection
    async def wait(self) -> None:
        """Wait until it is so at some moment. Always a checkpoint."""
        if self._is_idle():
            await checkpoint()
            return
        await checkpoint_if_cancelled()
        self.attach()
        try:
            await self._lot.park()
        finally:
            if not self._lot:
                self.detach()

    def look(self) -> None:
        """Something has changed: let them go on if the gate is idle now."""
        if self._is_idle():
            self._lot.unpark_all()

    def _is_idle(self) -> bool:
        admission = self._gate._admission
        return not (admission.in_flight or admission.tasks_waiting)

    def __call__(self, details: Details) -> None:  # noqa: ARG002 - what counts is how the gate is now
        self.look()


class _Exits(trio.abc.Instrument):
    """Tells the gates of one run of each task that has ended, in the step in which it ends."""

    def __init__(self) -> None:
        self._gates: dict[weakref.ref[Driver], None] = {}

    def add(self, gate: Driver) -> None:
        self._gates[weakref.ref(gate, self._drop)] = None

    def _drop(self, gone: weakref.ref[Driver]) -> None:
        self._gates.pop(gone, None)

    def task_exited(self, task: Task) -> None:
        # A copy: the collector may drop a gate meanwhile.
        for reference in tuple(self._gates):
            gate = reference()
            if gate is None or task not in gate._owners:
                continue
            try:
                gate._task_ended(task)
            # Of a hook, and no Exception. If it came out here, trio would log it and tell us of no more tasks.
            except BaseException as error:  # noqa: BLE001, ASYNC103
                with contextlib.suppress(RuntimeError):  # the run is at its very end
                    trio.lowlevel.spawn_system_task(_raise, error)


async def _raise(error: BaseException) -> None:  # noqa: ASYNC124, ASYNC910 - a task is a coroutine
    raise error


_exits: Final[trio.lowlevel.RunVar[_Exits]] = trio.lowlevel.RunVar("trio_mlxgate.exits")


def watch_exits(gate: Driver) -> None:
    """From here on, in this run, the gate hears of each task that ends: of one that owns a slot still."""
    try:
        exits = _exits.get()
    except LookupError:
        exits = _Exits()
        _exits.set(exits)
        trio.lowlevel.add_instrument(exits)
    exits.add(gate)
