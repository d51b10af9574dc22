"""What the tests of the gate share: a log with times, jobs, holders, a run on the virtual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from trio.testing import MockClock

from trio_mlxgate import Gate, Priority
from trio_mlxgate.instrumentation import KINDS, Details

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FOREGROUND, BACKGROUND = Priority.FOREGROUND, Priority.BACKGROUND


class Log:
    """What happened, and when, in seconds since the log was made."""

    def __init__(self) -> None:
        self.start = trio.current_time()
        self.lines: list[tuple[float, str]] = []

    def __call__(self, what: str) -> None:
        self.lines.append((trio.current_time() - self.start, what))

    def of(self, kind: str) -> list[tuple[float, str]]:
        return [(when, what.removeprefix(kind)) for when, what in self.lines if what.startswith(kind)]


async def job(gate: Gate, log: Log, name: str, priority: int, seconds: float, delay: float = 0) -> None:
    """Come after ``delay`` seconds, ask, and work for ``seconds``."""
    await trio.sleep(delay)
    async with gate.slot(priority):
        log(f"+{name}")
        await trio.sleep(seconds)
        log(f"-{name}")


async def holder(  # noqa: ASYNC114 - flake8 need not know it by name
    gate: Gate,
    end: trio.Event,
    priority: int = BACKGROUND,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Hold a slot until ``end``. With ``nursery.start`` it returns when the slot is held."""
    async with gate.slot(priority):
        task_status.started()
        await end.wait()


async def in_a_task_of_its_own(work: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:  # noqa: ASYNC112 - the task is what matters
        nursery.start_soon(work)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return trio.run(main, clock=MockClock(autojump_threshold=0))


async def until(condition: Callable[[], object]) -> None:
    """Wait, in real time, for what a thread brings about."""
    while not condition():  # noqa: ASYNC110 - threads set no trio.Event
        await trio.sleep(0.001)


class Recorder:
    """A hook that writes down all details, of the kinds that it is made for."""

    def __init__(self, *kinds: type[Details]) -> None:
        self.kinds = kinds or KINDS
        self.details: list[Any] = []

    def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
        return lambda: any(kind in self.kinds for kind in kinds)

    def __call__(self, details: Details) -> None:
        self.details.append(details)

    @property
    def names(self) -> list[str]:
        """The kinds of what it has heard."""
        return [type(details).__name__ for details in self.details]
