"""What one request asks of the gate, and the ways to say it: per request, or for all requests within a block."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.core.checks import WhenAbandoned, check_abandoned, check_drain_limit, check_seconds
from trio_mlxgate.core.ticket import SupersedeKey
from trio_mlxgate.outer_deadline import OuterDeadline, check_outer_deadline
from trio_mlxgate.priority import DEFAULT_PRIORITY, check_priority

if TYPE_CHECKING:
    from collections.abc import Generator


@attrs.frozen(kw_only=True)
class RequestOptions:
    """What one request asks of the gate. None in a field: nothing was said."""

    priority: int | None = None
    """The lower goes first; see :class:`trio_mlxgate.Priority`."""

    max_wait: float | None = None
    """How many seconds the request may stand in the queue."""

    hold_timeout: float | None = None
    """How many seconds it may take from the grant until its body is closed."""

    supersede: Hashable | None = None
    """A key: the request takes the place of the waiter that has the same; see :meth:`trio_mlxgate.Gate.slot`."""

    outer_deadline: OuterDeadline | None = None
    """What is done about a deadline around the wait, ``"warn"``, ``"raise"`` or ``"allow"``; None: as the gate says."""

    abandoned: WhenAbandoned | None = None
    """What becomes of it if its caller leaves, ``"release"`` or ``"drain"``; None: as the transport says."""

    drain_limit: float | None = None
    """For how many seconds it is drained at most, counted from when its caller left; None: as the transport says."""

    def __attrs_post_init__(self) -> None:
        if self.priority is not None:
            check_priority(self.priority)
        if self.max_wait is not None:
            check_seconds("max_wait", self.max_wait)
        if self.hold_timeout is not None:
            check_seconds("hold_timeout", self.hold_timeout)
        if self.supersede is not None:
            SupersedeKey(self.supersede)
        if self.outer_deadline is not None:
            check_outer_deadline(self.outer_deadline)
        if self.abandoned is not None:
            check_abandoned(self.abandoned)
        if self.drain_limit is not None:
            check_drain_limit(self.drain_limit)

    def over(self, other: RequestOptions) -> RequestOptions:
        """These options, and what they leave open as ``other`` says."""
        return RequestOptions(
            priority=other.priority if self.priority is None else self.priority,
            max_wait=other.max_wait if self.max_wait is None else self.max_wait,
            hold_timeout=other.hold_timeout if self.hold_timeout is None else self.hold_timeout,
            supersede=other.supersede if self.supersede is None else self.supersede,
            outer_deadline=other.outer_deadline if self.outer_deadline is None else self.outer_deadline,
            abandoned=other.abandoned if self.abandoned is None else self.abandoned,
            drain_limit=other.drain_limit if self.drain_limit is None else self.drain_limit,
        )

    @property
    def final_priority(self) -> int:
        """The priority, the default if none was named."""
        return DEFAULT_PRIORITY if self.priority is None else self.priority

    @property
    def final_max_wait(self) -> float:
        """The longest wait in seconds, inf if none was named."""
        return math.inf if self.max_wait is None else self.max_wait

    @property
    def final_hold_timeout(self) -> float:
        """The hold budget in seconds, inf if none was named."""
        return math.inf if self.hold_timeout is None else self.hold_timeout


EXTENSION: Final = "mlxgate"
"""The key in a request's, and in a response's, ``extensions``."""

_NOTHING: Final = RequestOptions()
_FIELDS: Final = tuple(field.name for field in attrs.fields(RequestOptions))
_current: Final[ContextVar[RequestOptions]] = ContextVar("trio_mlxgate.options", default=_NOTHING)


def current_options() -> RequestOptions:
    """What :func:`use_options` and :func:`use_priority` say here."""
    return _current.get()


def options_from_extension(extension: object) -> RequestOptions:
    """Read what stands in a request's ``extensions["mlxgate"]``; None is nothing.

    Raises:
      TypeError, ValueError: it isn't a mapping of known options to good values.
    """
    if extension is None:
        return _NOTHING
    if isinstance(extension, RequestOptions):
        return extension
    known = ", ".join(_FIELDS)
    if not isinstance(extension, Mapping):
        raise TypeError(f'extensions["{EXTENSION}"] must be a dict with any of {known}, not {extension!r}')
    unknown = [name for name in extension if name not in _FIELDS]
    if unknown:
        raise TypeError(f'extensions["{EXTENSION}"] has no option {unknown[0]!r}; there are {known}')
    return RequestOptions(**extension)


@contextmanager
def use_options(
    *,
    priority: int | None = None,
    max_wait: float | None = None,
    hold_timeout: float | None = None,
    supersede: Hashable | None = None,
    outer_deadline: OuterDeadline | None = None,
    abandoned: WhenAbandoned | None = None,
    drain_limit: float | None = None,
) -> Generator[None]:
    """Within this block, requests through a ``GateTransport`` have these options, unless they name their own.

    The way through an SDK that has no place for extensions. Blocks nest: what the inner leaves open, the outer says.
    Tasks that are started inside the block inherit the options and keep them after its end. Don't put it around a
    ``yield`` in an async generator: it would hold for the consumer too.

    Args:
      priority: the lower goes first.
      max_wait: seconds that a request may stand in the queue.
      hold_timeout: seconds that a request may take from the grant until its body is closed.
      supersede: a key; each request takes the place of the waiter that has the same one.
      outer_deadline: what is done about a deadline around the wait.
      abandoned: what becomes of a request whose caller leaves, ``"release"`` or ``"drain"``.
      drain_limit: for how many seconds it is drained at most, counted from when its caller left.

    Raises:
      TypeError, ValueError: on entering the block, if an argument isn't as described.
    """
    outer = _current.get()
    options = RequestOptions(
        priority=priority,
        max_wait=max_wait,
        hold_timeout=hold_timeout,
        supersede=supersede,
        outer_deadline=outer_deadline,
        abandoned=abandoned,
        drain_limit=drain_limit,
    )
    _current.set(options.over(outer))
    try:
        yield
    finally:
        # Not reset(token): a generator that is closed from another task has another context.
        _current.set(outer)


def use_priority(priority: int) -> AbstractContextManager[None]:
    """Within this block, requests through a ``GateTransport`` have this priority; see :func:`use_options`."""
    check_priority(priority)
    return use_options(priority=priority)
