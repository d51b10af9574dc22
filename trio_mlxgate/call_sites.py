"""Which line of a program has called a gate: for reports that come once for each such place."""

from __future__ import annotations

import inspect
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

if TYPE_CHECKING:
    from types import FrameType

    from trio.lowlevel import Task

_OWN_FILES: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Of our own files, those that use the gate as any program does.
_OWN_CALLERS: Final = tuple(_OWN_FILES + name + os.sep for name in ("testing", "commands"))
# Who calls the gate in another's name. The caller behind them is the one who can do something about it.
_MESSENGERS: Final = frozenset({"httpx", "httpx2", "openai", "anyio", "contextlib", "outcome"})
_TRIOS_MESSENGER: Final = "trio._threads"
# trio has no public names for these. Where they change, a thread can come to wait for itself; tests watch for that.
_STARTS_THREAD: Final = "to_thread_run_sync"
_BORROWER: Final = "placeholder"


@attrs.frozen
class Asking:
    """A worker thread asks, and this task does it in its name."""

    site: tuple[str, int]
    """File and line at which the thread stands."""

    host: Task
    """The task that has started the thread and waits for it, if it is known; else the one that asks."""


asking: Final[ContextVar[Asking | None]] = ContextVar("trio_mlxgate.asking", default=None)
"""Set in the context of a call that is made for a thread, which trio makes for each call."""

held_in_thread: Final[ContextVar[tuple[object, ...]]] = ContextVar("trio_mlxgate.held_in_thread", default=())
"""The marks of the slots that a thread holds; trio hands a thread's context on to what it runs for the thread."""


def call_site() -> tuple[str, int]:
    """File and line of the code that asked the gate: the innermost that is neither ours nor a mere messenger's."""
    in_thread = asking.get()
    if in_thread is not None:
        return in_thread.site
    frame = sys._getframe(1)
    nearest: FrameType | None = None
    while frame.f_back is not None:
        frame = frame.f_back
        module = str(frame.f_globals.get("__name__", ""))
        package = module.partition(".")[0]
        file = frame.f_code.co_filename
        if module == _TRIOS_MESSENGER or (file.startswith(_OWN_FILES) and not file.startswith(_OWN_CALLERS)):
            continue
        if package == "trio":
            break
        if nearest is None or package not in _MESSENGERS:
            nearest = frame
        if package not in _MESSENGERS:
            break
    # A task that is nothing but a call of ours has no line of its own: it is told by where its parent stands.
    nursery = trio.lowlevel.current_task().parent_nursery
    found = nearest or (nursery and _innermost_frame(nursery.parent_task)) or frame
    return found.f_code.co_filename, found.f_lineno


def site_of(task: Task) -> tuple[str, int]:
    """File and line at which a task stands that sleeps; of its own code, if it has any."""
    found = _innermost_frame(task)
    if found is None:
        return task.name, 0
    return found.f_code.co_filename, found.f_lineno


def marks_of_served_thread() -> tuple[object, ...]:
    """The marks of the slots that a worker thread runs in for which the current task is running this; () if none is.

    The thread waits for the outcome: that is what sets this apart from a task that was started by such a one.
    """
    frame: FrameType | None = sys._getframe(1)
    serves = False
    while frame is not None:
        if frame.f_globals.get("__name__") == _TRIOS_MESSENGER:
            if frame.f_code.co_name != _STARTS_THREAD:
                serves = True
            elif serves:
                return (*held_in_thread.get(), frame.f_locals.get(_BORROWER))
        frame = frame.f_back
    return held_in_thread.get() if serves else ()


def borrower_of_thread(host: Task) -> object | None:
    """In whose name the limiter was asked for the thread for which ``host`` waits; None if it waits for none."""
    awaited: Any = host.coro
    borrower = None
    while inspect.iscoroutine(awaited) and awaited.cr_frame is not None:
        frame = awaited.cr_frame
        if frame.f_code.co_name == _STARTS_THREAD and frame.f_globals.get("__name__") == _TRIOS_MESSENGER:
            borrower = frame.f_locals.get(_BORROWER)
        awaited = awaited.cr_await
    return borrower


def _innermost_frame(task: Task) -> FrameType | None:
    """The innermost frame of a task that is neither ours, nor trio's, nor a messenger's."""
    awaited: Any = task.coro
    found = None
    while inspect.iscoroutine(awaited) and awaited.cr_frame is not None:
        package = str(awaited.cr_frame.f_globals.get("__name__", "")).partition(".")[0]
        if (
            package != "trio"
            and package not in _MESSENGERS
            and not awaited.cr_frame.f_code.co_filename.startswith(_OWN_FILES)
        ):
            found = awaited.cr_frame
        awaited = awaited.cr_await
    return found
