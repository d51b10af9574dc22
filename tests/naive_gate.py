"""A gate for asyncio alone, in the fewest lines that keep the laws: it has no options, no hooks and no mercy."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Self

import anyio

from trio_mlxgate.core.admission import Admission
from trio_mlxgate.core.checks import check_capacity
from trio_mlxgate.core.ticket import Ticket, TicketState
from trio_mlxgate.errors import WaitTooLong

if TYPE_CHECKING:
    from types import TracebackType

    from trio_mlxgate import GateStatistics


class NaiveGate:
    """The face of a gate."""

    def __init__(self, capacity: int = 1, *, slot: type[NaiveSlot] | None = None) -> None:
        self.slot_class = slot or NaiveSlot
        self.admission: Admission[Any] = Admission(check_capacity(capacity))
        self.loop: asyncio.AbstractEventLoop | None = None
        self.owners: dict[asyncio.Task[Any] | None, NaiveSlot] = {}

    def bind(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            if self.loop is not None and not self.loop.is_closed():
                raise RuntimeError("in use by another run")
            self.admission, self.owners, self.loop = self.admission.anew(), {}, loop

    def now(self) -> float:
        return 0.0 if self.loop is None or self.loop.is_closed() else self.loop.time()

    @property
    def capacity(self) -> int:
        return self.admission.capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        check_capacity(capacity)
        self.bind()
        self.wake(self.admission.set_capacity(capacity, self.now()))

    def statistics(self) -> GateStatistics:
        if self.loop is not None and self.loop.is_closed():
            self.bind()
        return self.admission.statistics(self.now())

    def slot(self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf) -> NaiveSlot:
        return self.slot_class(self, priority, hold_timeout, max_wait)

    def slot_nowait(self, priority: int = 100, *, hold_timeout: float = math.inf) -> NaiveSlot:
        return self.slot_class(self, priority, hold_timeout, 0)

    def wake(self, granted: list[Any]) -> None:
        for slot in granted:
            slot.waiter.set_result(None)


class Waiter(asyncio.Future[None]):
    """What a waiting task sleeps on. When it is cancelled the call leaves the queue in that step."""

    def __init__(self, slot: NaiveSlot) -> None:
        super().__init__()
        self.slot = slot

    def cancel(self, msg: Any = None) -> bool:
        done = super().cancel(msg)
        if done and self.slot.leaves_at_once:
            self.slot.gate.wake(self.slot.admission.cancel(self.slot, self.slot.gate.now()))
        return done


class NaiveSlot(Ticket):
    """A slot, for ``async with`` and for ``with``."""

    leaves_at_once = True

    def __init__(self, gate: NaiveGate, priority: int, hold_timeout: float, max_wait: float) -> None:
        super().__init__(priority, hold_timeout=hold_timeout, max_wait=max_wait)
        self.gate = gate
        self.admission = gate.admission
        self.scope: anyio.CancelScope | None = None
        self.waiter: Waiter | None = None

    def check(self) -> None:
        self.gate.bind()
        self.admission = self.gate.admission
        if self.state is not TicketState.NEW or asyncio.current_task() in self.gate.owners:
            raise RuntimeError("used before, or the task owns one")

    def hold(self) -> Self:
        self.gate.owners[asyncio.current_task()] = self
        if self.hold_timeout < math.inf:
            self.scope = anyio.CancelScope(deadline=self.hold_deadline)
            self.scope.__enter__()
        return self

    async def __aenter__(self) -> Self:
        self.check()
        self.state = TicketState.ASKING
        try:
            await self.ask_for_leave()
        except BaseException:
            self.admission.turn_away(self)
            raise
        self.admission.request(self, self.gate.now())
        if self.state is TicketState.WAITING:
            await self.wait()
        if self.state is TicketState.REJECTED:
            raise WaitTooLong(f"no slot in {self.max_wait} s")
        return self.hold()

    async def ask_for_leave(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def sleep(self) -> None:
        loop = asyncio.get_running_loop()
        self.waiter = Waiter(self)
        timer = loop.call_later(self.max_wait, self.expire) if self.max_wait < math.inf else None
        try:
            await self.waiter
        finally:
            if timer is not None:
                timer.cancel()

    async def wait(self) -> None:
        try:
            await self.sleep()
        except asyncio.CancelledError as error:  # noqa: ASYNC103 - it is sent again
            if self.waiter is None or self.waiter.cancelled():
                raise
            # Its fate was sealed before: the cancellation comes at the next checkpoint.
            task = asyncio.current_task()
            assert task is not None
            task.cancel(*error.args)
            task.uncancel()

    def expire(self) -> None:
        self.admission.pass_time(self.gate.now())
        if self.state is TicketState.REJECTED and self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return self.__exit__(exc_type, exc, tb)

    def __enter__(self) -> Self:
        self.check()
        self.state = TicketState.ASKING
        if not self.admission.request_nowait(self, self.gate.now())[0]:
            raise anyio.WouldBlock
        return self.hold()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        suppress = None if self.scope is None else self.scope.__exit__(exc_type, exc, tb)
        del self.gate.owners[asyncio.current_task()]
        self.gate.wake(self.admission.release(self, self.gate.now()))
        if self.scope is not None and self.scope.cancelled_caught:
            raise TimeoutError
        return suppress
