"""What asyncio's ``Task.cancel()`` can do to a gate, the battery sees: gates for asyncio, each broken in one way."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest

from tests.drivers import ASYNCIO
from tests.naive_gate import NaiveGate, NaiveSlot
from trio_mlxgate.core.ticket import TicketState
from trio_mlxgate.testing import LawBroken, check_gate

if TYPE_CHECKING:
    from types import TracebackType

    from trio_mlxgate.testing import Backend


class LosesTheGrant(NaiveSlot):
    """Who is cancelled between the grant and its body goes without giving the slot back."""

    async def wait(self) -> None:
        await self.sleep()


class NeverEntersWhenCancelled(NaiveSlot):
    """Who is cancelled between the grant and its body gives the slot back: sound, and not what is promised."""

    async def wait(self) -> None:
        try:
            await self.sleep()
        except asyncio.CancelledError:
            if self.state is TicketState.GRANTED:
                self.gate.wake(self.admission.release(self, self.gate.now()))
            raise


class SwallowsTheCancel(NaiveSlot):
    """Who is cancelled between the grant and its body enters, and never hears of it."""

    async def wait(self) -> None:
        try:
            await self.sleep()
        except asyncio.CancelledError:  # noqa: ASYNC103 - as it says
            if self.state is not TicketState.GRANTED:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()


class CountsTheCancelTwice(NaiveSlot):
    """Who is cancelled between the grant and its body is cancelled there once more."""

    async def wait(self) -> None:
        try:
            await self.sleep()
        except asyncio.CancelledError as error:  # noqa: ASYNC103 - as it says
            if self.state is not TicketState.GRANTED:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.cancel(*error.args)


class LeavesTheQueueLate(NaiveSlot):
    """A cancelled waiter leaves the queue when its task runs next."""

    leaves_at_once = False

    async def wait(self) -> None:
        try:
            await super().wait()
        except asyncio.CancelledError:
            if self.state is TicketState.WAITING:
                self.gate.wake(self.admission.cancel(self, self.gate.now()))
            raise


class EntersWithoutACheckpoint(NaiveSlot):
    """A slot that is free is taken at once, also by who is cancelled."""

    async def ask_for_leave(self) -> None:
        pass


class LeavesByACheckpoint(NaiveSlot):
    """Others run between the body and the end of the hold."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        await asyncio.sleep(0)
        return await super().__aexit__(exc_type, exc, tb)


class SwallowsTheBodysCancel(NaiveSlot):
    """A body that was cancelled ends as if nothing had been."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return await super().__aexit__(exc_type, exc, tb) or isinstance(exc, asyncio.CancelledError)


@pytest.mark.parametrize("backend", ASYNCIO)
@pytest.mark.parametrize(
    ("slot", "law"),
    [
        (LosesTheGrant, "Law 3"),
        (NeverEntersWhenCancelled, "Law 3"),
        (SwallowsTheCancel, "Law 3"),
        (CountsTheCancelTwice, "Law 3"),
        (LeavesTheQueueLate, "Law 10"),
        (EntersWithoutACheckpoint, "Law 5"),
        (LeavesByACheckpoint, "Law 5"),
        (SwallowsTheBodysCancel, "Law 3"),
    ],
)
def test_what_a_native_cancel_breaks_is_told_by_its_law(slot: type[NaiveSlot], law: str, backend: Backend) -> None:
    with pytest.raises(LawBroken, match=f"^{law}: "):
        check_gate(functools.partial(NaiveGate, slot=slot), rounds=0, backend=backend)


def test_the_random_sequences_cancel_natively_too() -> None:
    def factory(capacity: int, **options: Any) -> NaiveGate:
        # The single checks use no gate of this capacity.
        return NaiveGate(capacity, slot=LosesTheGrant if capacity == 3 else NaiveSlot)

    with pytest.raises(LawBroken, match=r"\(round \d+ of seed 0\)[\s\S]*Cancel\(index=\d+, native=True\)"):
        check_gate(factory, backend="asyncio")
