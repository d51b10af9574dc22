"""Which line of a program has called a gate: for reports that come once for each such place."""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from types import FrameType

    from trio.lowlevel import Task

_OWN_FILES: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Of our own files, those that use the gate as any program does.
_OWN_CALLERS: Final = tuple(_OWN_FILES + name + os.sep for name in ("testing", "commands"))
# Who calls the gate in another's name. The caller behind them is the one who can do something about it.
_MESSENGERS: Final = frozenset({"httpx", "httpx2", "openai", "anyio", "contextlib"})
_TRIOS_MESSENGER: Final = "trio._threads"


def call_site() -> tuple[str, int]:
    """File and line of the code that asked the gate: the innermost that is neither ours nor a mere messenger's."""
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


def runs_for_a_thread() -> bool:
    """Whether the current task runs this in the name of a worker thread, which waits for the outcome."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _TRIOS_MESSENGER and frame.f_code.co_name != "to_thread_run_sync":
            return True
        frame = frame.f_back
    return False


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
