"""The battery passes the gate, and names the law that a broken gate breaks."""

# The broken gates below pass awaits on to a gate whose leaving is no checkpoint, so a shield has nothing to protect:
# flake8: noqa: ASYNC102
from __future__ import annotations

import contextlib
import math
import re
from typing import TYPE_CHECKING, ClassVar

import anyio
import attrs
import pytest

from tests.drivers import ASYNCIO, DRIVERS, FEW_DRIVERS, dialect_of
from tests.naive_gate import NaiveGate
from trio_mlxgate import Gate
from trio_mlxgate.dialects import ANYIO, TRIO
from trio_mlxgate.testing import (
    OPTIONS,
    LawBroken,
    check_gate,
    events as events_module,
    harness as harness_module,
    play as play_module,
)
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


@pytest.mark.parametrize(("driver", "backend"), DRIVERS)
def test_the_gate_passes(driver: type[Gate], backend: Backend) -> None:
    check_gate(driver, options=OPTIONS, backend=backend, dialect=dialect_of(driver))


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

    driver: ClassVar[type[Gate]] = Gate

    def __init__(self, capacity: int) -> None:
        self.gate = self.driver(capacity, outer_deadline="allow")  # BudgetFromAsking puts one around

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
            await anyio.lowlevel.cancel_shielded_checkpoint()
            return await super().__aexit__(exc_type, exc, tb)

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait))


class CheckpointBeforeTheBody(Wrapped):
    class _Slot(Around):
        async def __aenter__(self) -> object:
            slot = await super().__aenter__()
            await anyio.lowlevel.checkpoint()  # cancelled here, nobody gives the slot back
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
        def __init__(self, outer: Wrapped, inner: AbstractAsyncContextManager[object], hold_timeout: float) -> None:
            super().__init__(inner)
            self.too_slow = dialect_of(outer.driver).too_slow
            self.hold_timeout = hold_timeout

        async def __aenter__(self) -> object:
            self.scope = anyio.CancelScope(deadline=anyio.current_time() + self.hold_timeout)
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
                raise self.too_slow

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(self, super().slot(priority, max_wait=max_wait), hold_timeout)


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
            self.gate = self.driver(self.gate.capacity)
        return super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait)


def around(driver: type[Gate], broken: type[Wrapped]) -> type[Wrapped]:
    """The broken gate, around one of this driver."""
    return type(broken.__name__, (broken,), {"driver": driver})


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
@FEW_DRIVERS
def test_a_broken_gate_is_told_by_its_law(
    broken: type[Wrapped], law: str, driver: type[Gate], backend: Backend
) -> None:
    with pytest.raises(LawBroken, match=f"^{law}: "):
        check_gate(around(driver, broken), rounds=0, backend=backend, dialect=dialect_of(driver))


@FEW_DRIVERS
def test_a_wrapped_gate_that_is_not_broken_passes(driver: type[Gate], backend: Backend) -> None:
    check_gate(around(driver, Wrapped), rounds=30, backend=backend, dialect=dialect_of(driver))


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
            if self.outer.capacity == 3 and exc_type is anyio.get_cancelled_exc_class():
                with contextlib.suppress(dialect_of(self.outer.driver).would_block):
                    self.outer.gate.acquire_detached_nowait()
            return suppressed

    def slot(
        self, priority: int = 100, *, hold_timeout: float = math.inf, max_wait: float = math.inf
    ) -> AbstractAsyncContextManager[object]:
        return self._Slot(self, super().slot(priority, hold_timeout=hold_timeout, max_wait=max_wait))


@FEW_DRIVERS
def test_a_random_sequence_is_told_with_its_events_shortened(driver: type[Gate], backend: Backend) -> None:
    broken = around(driver, LosesASlotToACancelledHolder)
    with pytest.raises(LawBroken) as caught:
        check_gate(broken, seed=3, backend=backend, dialect=dialect_of(driver))
    message = str(caught.value)
    assert re.match(r"law 2: \d bodies are inside; .*capacity=3", message)
    assert "Arrive(" in message
    assert "Cancel(" in message
    assert message.count("\n    ") <= 10
    # What it says can be played again as it stands.
    names = {name: getattr(module, name) for module in (events_module, harness_module) for name in dir(module)}
    names |= {"inf": math.inf, "play": play_module.play, "factory": broken}
    again = message.partition("play(")[2]

    def play_again() -> None:
        for _ in range(20):  # trio shuffles its tasks
            eval(f"play({again}", names)

    with pytest.raises(LawBroken):
        play_again()
