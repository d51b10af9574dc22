"""Where a waiting call stands, told while it waits: one walk through the queue serves all who watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import outcome
from trio.lowlevel import Abort, enable_ki_protection

from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.onlookers import Onlooker

if TYPE_CHECKING:
    from trio_mlxgate.core.estimates import Outlook
    from trio_mlxgate.driver import Driver
    from trio_mlxgate.instrumentation import Details
    from trio_mlxgate.runtime import Waiter
    from trio_mlxgate.slots import Slot

_TO_COME: Final = (TicketState.NEW, TicketState.ASKING)


class Progress:
    """What :meth:`Gate.progress` returns: ``async for`` gives an :class:`Outlook` for each change, while a call waits.

    Coalesced: whoever is slow gets the latest alone. An item comes first when the call has joined the queue, then
    when its position changes and when an estimate becomes possible or impossible. The loop ends when the call
    waits no more, whatever the reason. A class and no async generator: it may be dropped at any time, and holds nothing
    between two items.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._latest: Outlook | None = None
        self._watcher: Waiter | None = None

    def __aiter__(self) -> Self:
        return self

    @enable_ki_protection
    async def __anext__(self) -> Outlook:
        """The next change. Always a checkpoint; cancelled, it has lost nothing.

        Raises:
          BusyResourceError: another task waits for the next change of this object.
          RuntimeError: this is called from outside the gate's run.
        """
        gate = self._slot.gate
        gate._bind()
        runtime = gate._runtime
        if self._watcher is not None:
            raise gate._dialect.busy("another task waits for the next change; ask the gate for one object each")
        await runtime.checkpoint_if_cancelled()
        board = gate._board
        if self._slot.state is TicketState.WAITING or self._slot.state in _TO_COME:

            def abort(_: object) -> Abort:
                self._watcher = None
                board.leave(self)
                return Abort.SUCCEEDED

            self._watcher = runtime.waiter(runtime.current_task(), abort)
            board.watch(self)
            try:
                outlook: Outlook | None = await runtime.sleep(self._watcher, abort)
            except BaseException:
                self._latest = None  # on asyncio it may be lost: to be told again
                raise
            if outlook is not None:
                return outlook
        else:
            await runtime.cancel_shielded_checkpoint()
        raise StopAsyncIteration

    def wake(self, outlook: Outlook | None) -> None:
        """Give the watcher its next item; None: there is none any more."""
        watcher, self._watcher = self._watcher, None
        self._latest = outlook
        assert watcher is not None
        self._slot.gate._runtime.wake(watcher, outcome.Value(outlook))

    def is_news(self, outlook: Outlook) -> bool:
        """Whether this differs from what was given last."""
        last = self._latest
        return (
            last is None
            or last.position != outlook.position
            or (last.estimated_wait is None) != (outlook.estimated_wait is None)
        )


class ProgressBoard(Onlooker):
    """Those who watch the queue of one gate in one run.

    While there are any, it is one of the gate's hooks; an event makes it look at the queue once, in the next
    scheduler pass, however many events come until then.
    """

    def __init__(self, gate: Driver) -> None:
        super().__init__(gate)
        self._watching: dict[Progress, None] = {}
        self._will_look = False

    def watch(self, progress: Progress) -> None:
        self._watching[progress] = None
        self.attach()
        self.changed()

    def leave(self, progress: Progress) -> None:
        del self._watching[progress]

    def __call__(self, details: Details) -> None:  # noqa: ARG002 - whatever it was, the next look will see it
        self.changed()

    def changed(self) -> None:
        """Something has changed that watchers may see."""
        if self._will_look:
            return
        if self._watching:
            self._gate._runtime.soon(self._look, name=f"progress of gate {self._gate.name!r}")
            self._will_look = True
        elif self._attached:
            # The last watcher left some time ago: now the gate goes on without us.
            self.detach()

    def _look(self) -> None:
        """Tell all who have something new to see."""
        self._will_look = False
        gate = self._gate
        if gate._board is not self:
            return  # the gate is at home elsewhere by now
        admission = gate._admission
        slots = {progress._slot for progress in self._watching}
        outlooks = admission.outlooks(slots, gate._clock())
        for progress in list(self._watching):
            slot = progress._slot
            if slot.state in _TO_COME:
                continue
            outlook = outlooks.get(slot)
            if outlook is None or progress.is_news(outlook):
                del self._watching[progress]
                progress.wake(outlook)
