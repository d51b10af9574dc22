"""Runs on virtual time, on trio and on each of asyncio's loops."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, TypeVarTuple

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_mlxgate.testing.virtual_time import VirtualLoop, VirtualTime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Backend: TypeAlias = Literal["trio", "asyncio", "asyncio+uvloop", "asyncio+eager"]
"""What a run on virtual time can be made on."""

BACKENDS: Final[tuple[Backend, ...]] = ("trio", "asyncio", "asyncio+uvloop", "asyncio+eager")
"""What :func:`run_virtual` and :func:`check_gate` run on: trio, asyncio's own loop, uvloop's (extra ``uvloop``), and
asyncio's own with eager tasks (``asyncio.eager_task_factory``, from Python 3.12 on)."""


def check_backend(backend: str) -> None:
    """See that there is such a backend, here and now.

    Raises:
      ValueError: there is none of that name.
      RuntimeError: this Python has no eager tasks.
      ImportError: uvloop is missing; the message names the extra.
    """
    if backend not in BACKENDS:
        raise ValueError(f"there is no backend {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "asyncio+eager" and sys.version_info < (3, 12):
        raise RuntimeError("the backend 'asyncio+eager' needs Python 3.12 or later")
    if backend == "asyncio+uvloop":
        import trio_mlxgate.testing._uvloop  # noqa: F401 - it says what is missing


def run_virtual(main: Callable[[*Ts], Awaitable[T]], *args: *Ts, backend: Backend) -> T:
    """Run ``await main(*args)`` on a virtual clock, and return what it returns. Not to be called inside a run.

    Time passes only when every task waits, and then at once, to the very moment at which the next one has to go on:
    hours take milliseconds, and all times are exact. :func:`settle` waits for that moment and lets no time pass.

    Never use it together with sockets or processes: time jumps while the other side still works. So it does while a
    worker thread works, except, under asyncio, for those of ``asyncio.to_thread`` and ``run_in_executor``.

    Args:
      main: an async function.
      args: what it is called with.
      backend: one of :data:`BACKENDS`. On ``"trio"`` it is ``trio.run`` with ``MockClock(autojump_threshold=0)``.

    Raises:
      EverybodyWaits: under asyncio, all tasks wait and none of them would ever go on; or the run never comes to rest.
        (trio says nothing then, and waits.)
      ValueError, RuntimeError, ImportError: there is no such backend, or it needs a later Python, or uvloop.
    """
    check_backend(backend)
    given: object = main  # callers without a type checker may give anything
    if inspect.iscoroutine(given):
        given.close()
    if not callable(given):
        raise TypeError(f"give run_virtual() the async function itself and its arguments, not {given!r}")
    if backend == "trio":
        return trio.run(main, *args, clock=MockClock(autojump_threshold=0))
    return run_on_loop(main, *args, backend=backend)


def run_on_loop(
    main: Callable[[*Ts], Awaitable[T]],
    *args: *Ts,
    backend: Backend,
    longest: float = math.inf,
    complain: Callable[[dict[str, Any]], None] | None = None,
) -> T:
    """:func:`run_virtual`, under asyncio.

    Args:
      main, args, backend: as there.
      longest: the virtual time at which the run is given up.
      complain: is called with the context of each error that nobody could hear of, in place of the log.

    Raises:
      EverybodyWaits: as there; also if the time is over.
    """
    loops: list[VirtualTime] = []

    def make_loop() -> asyncio.AbstractEventLoop:
        loop = _new_loop(backend, longest)
        loops.append(loop)
        if complain is not None:
            hear = complain
            loop.set_exception_handler(lambda _, context: hear(context))
        return loop

    async def awaited() -> T:  # noqa: ASYNC910 - as main
        return await main(*args)

    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            return runner.run(awaited())
    except RuntimeError:
        # Stopped before its time: by the loop itself.
        if loops and loops[0].stuck is not None:
            raise loops[0].stuck from None
        raise


def _new_loop(backend: Backend, longest: float) -> VirtualTime:
    if backend == "asyncio+uvloop":
        from trio_mlxgate.testing._uvloop import VirtualUvloop

        return VirtualUvloop(longest=longest)
    loop = VirtualLoop(longest=longest)
    if sys.version_info >= (3, 12) and backend == "asyncio+eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


async def settle() -> None:
    """Wait until everything that can run has run, and let no time pass. Always a checkpoint.

    On trio it is ``trio.testing.wait_all_tasks_blocked()``. Under asyncio it needs a run of :func:`run_virtual`:
    ``anyio.wait_all_tasks_blocked`` lets a tenth of a second pass, ``asyncio.sleep(0)`` is one pass of the loop.

    Raises:
      RuntimeError: the loop's time is not virtual.
    """
    if trio.lowlevel.in_trio_task():
        await wait_all_tasks_blocked()
        return
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTime):
        raise RuntimeError("settle() needs virtual time: run the test with trio_mlxgate.testing.run_virtual()")
    await loop.settled()
