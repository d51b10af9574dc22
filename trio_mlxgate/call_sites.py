"""Which line of a program has called a gate: for reports that come once for each such place."""

from __future__ import annotations

import inspect
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from types import FrameType

    from trio_mlxgate.runtime import Runtime, SomeTask

_OWN_FILES: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Of our own files, those that use the gate as any program does.
_OWN_CALLERS: Final = tuple(_OWN_FILES + name + os.sep for name in ("testing", "commands"))
# Who calls the gate in another's name. The caller behind them is the one who can do something about it.
_MESSENGERS: Final = frozenset({"httpx", "httpx2", "openai", "anyio", "contextlib", "outcome"})
_TRIOS_MESSENGER: Final = "trio._threads"
# Where the frames of a task end, and those of its event loop begin.
_LOOPS: Final = frozenset({"trio", "asyncio", "uvloop"})


@attrs.frozen
class Asking:
    """A worker thread asks, and this task does it in its name."""

    site: tuple[str, int]
    """File and line at which the thread stands."""

    host: SomeTask
    """The task that has started the thread and waits for it, if it is known; else the one that asks."""


asking: Final[ContextVar[Asking | None]] = ContextVar("trio_mlxgate.asking", default=None)
"""Set in the context of a call that is made for a thread, which is made for each call."""

held_in_thread: Final[ContextVar[tuple[object, ...]]] = ContextVar("trio_mlxgate.held_in_thread", default=())
"""The marks of the slots that a thread holds; a thread's context is handed on to what is run for the thread."""


def call_site(runtime: Runtime) -> tuple[str, int]:
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
        if package in _LOOPS:
            break
        if nearest is None or package not in _MESSENGERS:
            nearest = frame
        if package not in _MESSENGERS:
            break
    # A task that is nothing but a call of ours has no line of its own: it is told by where its parent stands.
    parent = next(iter(runtime.above(runtime.current_task())), None)
    found = nearest or (parent and _innermost_frame(runtime.coroutine_of(parent))) or frame
    return found.f_code.co_filename, found.f_lineno


def site_of(runtime: Runtime, task: SomeTask) -> tuple[str, int]:
    """File and line at which a task stands that sleeps; of its own code, if it has any."""
    found = _innermost_frame(runtime.coroutine_of(task))
    if found is None:
        return runtime.name_of(task), 0
    return found.f_code.co_filename, found.f_lineno


def _innermost_frame(awaited: Any) -> FrameType | None:
    """The innermost frame of a coroutine that is neither ours, nor its loop's, nor a messenger's."""
    found = None
    while inspect.iscoroutine(awaited) and awaited.cr_frame is not None:
        package = str(awaited.cr_frame.f_globals.get("__name__", "")).partition(".")[0]
        if (
            package not in _LOOPS
            and package not in _MESSENGERS
            and not awaited.cr_frame.f_code.co_filename.startswith(_OWN_FILES)
        ):
            found = awaited.cr_frame
        awaited = awaited.cr_await
    return found
