"""Whether an error says that a connection was lost: then the server at its other end may have ended."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from trio_mlxgate.errors import BackendTooSlow, BackendUnreachable, TruncatedAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator

_KINDS: Final = (ConnectionError, trio.BrokenResourceError, BackendUnreachable, TruncatedAnswer)
_ERRNOS: Final = frozenset({errno.ENOTCONN, errno.ESHUTDOWN, errno.ENETRESET, errno.EHOSTUNREACH})
_TIMEOUTS: Final = (TimeoutError, trio.TooSlowError, BackendTooSlow)
# By name, since none of these libraries is to be imported for it: httpx, httpx2, httpcore, openai, aiohttp.
_NAMES: Final = frozenset(
    {
        "NetworkError",
        "ReadError",
        "WriteError",
        "ConnectError",
        "CloseError",
        "RemoteProtocolError",
        "APIConnectionError",
        "ClientConnectionError",
        "ClientPayloadError",
        "IncompleteRead",
        "IncompleteReadError",
        "EndOfStream",
    }
)
_NAMED_TIMEOUTS: Final = frozenset({"TimeoutException", "APITimeoutError", "ServerTimeoutError"})


def is_lost_connection(error: BaseException) -> bool:
    """Whether this error, one that it came from, or one in its group, is that of a lost connection.

    A timeout is none: a server that is silent may be well.
    """
    return any(_says_so(each) for each in _all(error))


def _says_so(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, _TIMEOUTS) or names & _NAMED_TIMEOUTS:
        return False
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    return isinstance(error, _KINDS) or bool(names & _NAMES)


def _all(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and the members of groups, each once."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        left += [each.__cause__, None if each.__suppress_context__ else each.__context__]
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
