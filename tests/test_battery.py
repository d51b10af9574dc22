"""The battery passes the gate, and names the law that a broken gate breaks."""

# The broken gates below pass awaits on to a gate whose leaving is no checkpoint, so a shield has nothing to protect:
# flake8: noqa: ASYNC102
from __future__ import annotations

import contextlib
import math
import re
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.drivers import ASYNCIO
from tests.naive_gate import NaiveGate
from trio_mlxgate import Gate
from trio_mlxgate.dialects import ANYIO, TRIO
from trio_mlxgate.testing import OPTIONS, LawBroken, check_gate, events as events_module, play as play_module
from trio_mlxgate.testing.battery import CHECKS
from trio_mlxgate.testing.checks_of_cancelling import NATIVE_CHECKS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from trio_mlxgate import DetachedSlot, GateStatistics
    from trio_mlxgate.testing import Backend


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The sequences let virtual minutes pass, so that many a waiter is reported as starving: no news here."""
    with caplog.at_level("CRITICAL", logger="trio_mlxgate.gate"):
        yield


def test_the_gate_passes() -> None:
    check_gate(Gate, options=OPTIONS)


@pytest.mark.parametrize("backend", ASYNCIO)
def test_a_naive_gate_passes_under_asyncio(backend: Backend) -> None:
    check_gate(NaiveGate, rounds=100, backend=backend)


def test_a_gate_must_raise_the_errors_of_its_dialect() -> None:
    with pytest.raises(LawBroken, match=r"^Law 9: "):
        check_gate(Gate, rounds=0, dialect=ANYIO)
    with pytest.raises(LawBroken, match=r"^Law 9: "):
        check_gate(NaiveGate, rounds=0, backend="asyncio", dialect=TRIO)


@pytest.mark.parametrize("check", [*CHECKS, *NATIVE_CHECKS], ids=lambda check: str(check.__name__))
def test_each_check_names_its_law(check: object) -> None:
    assert (check.__doc__ or "").startswith("Law ")


# ---- gates that are broken, each in one way ----


class Wrapped:
    """The gate's face around a gate; the broken ones below override one thing each."""

    def __init__(self, capacity: int) -> None:
        self.gate = Gate(capacity, outer_deadline="allow")  # BudgetFromAsking puts one around

    @property
    def capacity(self) -> int:
        return self.gate.capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        self.gate.capacity = capacity

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self.gate.slot(priority, hold_timeout=hold_timeout, max_wait=max_wait)

    def slot_nowait(self, priority: int = 100, *, hold_timeout: float = math.inf) -> AbstractContextManager[object]:
        return self.gate.slot_nowait(priority, hold_timeout=hold_timeout)

    def statistics(self) -> GateStatistics:
        return self.gate.statistics()


class Around:
    """An async context manager around another one, to misbehave in."""

    def __init__(self, inner: AbstractAsyncContextManager[object]) -> None:
        self.inner = inner

    async def __aenter__(self) -> object:
        return await self.inner.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return await self.inner.__aexit__(exc_type, exc, tb)


class LeavesByACheckpoint(Wrapped):
    class _Slot(Around):
        async def __aexit__(
            self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
        ) -> bool | None:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            return await super().__aexit__(exc_type, exc, tb)

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait))


class CheckpointBeforeTheBody(Wrapped):
    class _Slot(Around):
        async def __aenter__(self) -> object:
            slot = await super().__aenter__()
            await trio.lowlevel.checkpoint()  # cancelled here, nobody gives the slot back
            return slot

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait))


class SwallowsTheBodysError(Wrapped):
    class _Slot(Around):
        async def __aexit__(
            self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
        ) -> bool | None:
            await super().__aexit__(exc_type, exc, tb)
            return isinstance(exc, ValueError)

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait))


class RaisesByOne(Wrapped):
    @property
    def capacity(self) -> int:
        return self.gate.capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        self.gate.capacity = min(capacity, self.gate.capacity + 1)


class TakesAnyCapacity(Wrapped):
    @property
    def capacity(self) -> int:
        return self.gate.capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        self.gate.capacity = int(capacity)


class WorstFirst(Wrapped):
    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return super().slot(-priority, hold_timeout=hold_timeout, max_wait=max_wait)


class BudgetFromAsking(Wrapped):
    """The hold budget is counted from when the call asks, as with ``fail_after`` around it all."""

    class _Slot(Around):
        def __init__(self, inner: AbstractAsyncContextManager[object], hold_timeout: float) -> None:
            super().__init__(inner)
            self.scope = trio.CancelScope(deadline=trio.current_time() + hold_timeout)

        async def __aenter__(self) -> object:
            self.scope.__enter__()
            try:
                return await super().__aenter__()
            except BaseException as error:
                self._close(error)
                raise

        async def __aexit__(
            self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
        ) -> bool | None:
            await super().__aexit__(exc_type, exc, tb)
            self._close(exc)
            return None

        def _close(self, error: BaseException | None) -> None:
            self.scope.__exit__(None if error is None else type(error), error, None)
            if self.scope.cancelled_caught:
                raise trio.TooSlowError

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(super().slot(priority, max_wait=max_wait), hold_timeout)


class NobodyOwns(Wrapped):
    """No slot belongs to a task, so that one that asks twice waits for itself."""

    class _Slot:
        def __init__(self, gate: Gate, priority: int, hold_timeout: float, max_wait: float) -> None:
            self.asked = gate, priority, hold_timeout, max_wait
            self.slot: DetachedSlot | None = None

        async def __aenter__(self) -> object:
            gate, priority, hold_timeout, max_wait = self.asked
            self.slot = await gate.acquire_detached(priority, hold_timeout=hold_timeout, max_wait=max_wait)
            return self.slot

        async def __aexit__(self, *_: object) -> None:
            assert self.slot is not None
            self.slot.release()

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(self.gate, priority, hold_timeout, max_wait)


class CountsTheDead(Wrapped):
    """Who was cancelled goes on being counted as waiting."""

    def statistics(self) -> GateStatistics:
        now = self.gate.statistics()
        return attrs.evolve(now, tasks_waiting=now.tasks_waiting + now.cancelled)


class ManyRuns(Wrapped):
    """A second run gets a gate of its own, without a word."""

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        try:
            self.gate.statistics()
            self.gate.capacity = self.gate.capacity
        except RuntimeError:
            self.gate = Gate(self.gate.capacity)
        return super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait)


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (LeavesByACheckpoint, "Law 5"),
        (CheckpointBeforeTheBody, "Law 3"),
        (SwallowsTheBodysError, "Law 2"),
        (RaisesByOne, "Law 8"),
        (TakesAnyCapacity, "Law 9"),
        (WorstFirst, "Law 11"),
        (BudgetFromAsking, "Law 14"),
        (NobodyOwns, "Law 17"),
        (CountsTheDead, "Law 15"),
        (ManyRuns, "Law 18"),
    ],
)
def test_a_broken_gate_is_told_by_its_law(broken: type[Wrapped], law: str) -> None:
    with pytest.raises(LawBroken, match=f"^{law}: "):
        check_gate(broken, rounds=0)


def test_a_wrapped_gate_that_is_not_broken_passes() -> None:
    check_gate(Wrapped, rounds=30)


class LosesASlotToACancelledHolder(Wrapped):
    """A holder that is cancelled while the capacity is 3 keeps its slot: no single check looks for that."""

    class _Slot(Around):
        def __init__(self, outer: Wrapped, inner: AbstractAsyncContextManager[object]) -> None:
            super().__init__(inner)
            self.outer = outer

        async def __aexit__(
            self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
        ) -> bool | None:
            suppressed = await super().__aexit__(exc_type, exc, tb)
            if self.outer.capacity == 3 and exc_type is trio.Cancelled:
                with contextlib.suppress(trio.WouldBlock):
                    self.outer.gate.acquire_detached_nowait()
            return suppressed

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(self, super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait))


def test_a_random_sequence_is_told_with_its_events_shortened() -> None:
    with pytest.raises(LawBroken) as caught:
        check_gate(LosesASlotToACancelledHolder, seed=3)
    message = str(caught.value)
    assert re.match(r"law 2: \d bodies are inside; .*capacity=3", message)
    assert "Arrive(" in message
    assert "Cancel(" in message
    assert message.count("\n    ") <= 10
    # What it says can be played again as it stands.
    _, capacity, events = re.split(r"play\(factory, (\d), ", message.removesuffix(")"), maxsplit=1)
    events = events.rpartition(", Options")[0]
    names = {name: getattr(events_module, name) for name in dir(events_module)} | {"inf": math.inf}

    def play_again() -> None:
        for _ in range(20):  # trio shuffles its tasks
            play_module.play(LosesASlotToACancelledHolder, int(capacity), eval(events, names))

    with pytest.raises(LawBroken):
        play_again()
