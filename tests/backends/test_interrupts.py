"""Ctrl-C while backends are watched: it strikes the main task, wherever it comes, and is never lost."""

from __future__ import annotations

import signal
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from tests.backends.pretend import UP, PretendBackend
from tests.backends.scripted_adapter import adapter
from tests.limits import ends_within
from trio_mlxgate.backends import BackendRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_mlxgate.core.readings import Reading

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")


class Struck(PretendBackend):
    """Something happens in the middle of its first look."""

    strike: Callable[[], object]

    async def read(self) -> Reading:
        await trio.lowlevel.checkpoint()
        if not self.looks:
            self.looks.append(trio.current_time())
            self.strike()
        return UP


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def interrupt_in_a_callback() -> None:
    """As at the end of an import: what is raised there Python only tells to stderr."""

    class Thing:
        pass

    thing = Thing()
    watched = weakref.ref(thing, lambda _: interrupt())
    del thing
    assert watched() is None


@pytest.mark.parametrize("strike", [interrupt, interrupt_in_a_callback])
def test_in_the_middle_of_a_look_it_is_the_main_tasks(
    strike: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    backend = Struck("one")
    backend.strike = strike
    reached: list[str] = []

    async def main() -> None:
        async with BackendRegistry({"reasoner": backend}, jitter=0):  # type: ignore[dict-item]
            try:
                await trio.sleep(100)
            except KeyboardInterrupt:
                reached.append("the main task")
                raise

    with ends_within(30), pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert reached == ["the main task"]
    assert backend.closings == 1
    assert "failed" not in caplog.text


def test_a_look_that_ends_the_program_is_no_failure_of_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    backend = Struck("one")

    def leave() -> None:
        raise SystemExit(3)

    backend.strike = leave

    async def main() -> None:
        async with BackendRegistry({"reasoner": backend}, jitter=0):  # type: ignore[dict-item]
            await trio.sleep(100)

    with ends_within(30), pytest.raises(BaseExceptionGroup) as caught:  # noqa: ASYNC401
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert caught.group_contains(SystemExit)
    assert "failed" not in caplog.text


async def test_it_does_not_come_between_an_adapters_use_and_its_note_of_that(autojump_clock: MockClock) -> None:
    """Else whoever closes the adapter would wait for the end of what has ended."""
    protected: list[bool] = []

    class Noted(set[Any]):
        def add(self, scope: object) -> None:
            protected.append(trio.lowlevel.currently_ki_protected())
            super().add(scope)

        def discard(self, scope: object) -> None:
            protected.append(trio.lowlevel.currently_ki_protected())
            super().discard(scope)

    model, _ = adapter()
    line = model._line()
    line.running = Noted()
    with line.use():
        assert not trio.lowlevel.currently_ki_protected()
    assert protected == [True, True]
    await model.aclose()
