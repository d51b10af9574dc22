"""What the errors of HTTP's client library say of a server, for people."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import TYPE_CHECKING, Final

import httpx

from trio_mlxgate.backends.kinds.base import NoReply

if TYPE_CHECKING:
    from collections.abc import Iterator


_OUR_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Why a connection fails of which the server knows nothing."""


def no_reply_of(error: Exception, seconds: float) -> NoReply:
    """What an error of the client library says of the server."""
    text = str(error) or type(error).__name__
    causes = list(_causes(error))
    if isinstance(error, httpx.TimeoutException):
        return NoReply(why="timeout", text=text, seconds=seconds)
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return NoReply(why="broken", text=f"no TLS as it should be: {cause}", seconds=seconds)
        if isinstance(cause, socket.gaierror | UnicodeError):
            return NoReply(why="refused", text=f"the host's name leads nowhere: {cause}", seconds=seconds)
    if isinstance(error, httpx.ConnectError):
        # Of several addresses each has its own reason, which the text doesn't tell.
        numbers = dict.fromkeys(cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno)
        reasons = ", ".join(map(os.strerror, numbers))
        if _OUR_SHORTAGE.intersection(numbers):
            return NoReply(why="broken", text=f"it could not be asked: {reasons}", seconds=seconds)
        if any(isinstance(cause, ValueError) for cause in causes):
            return NoReply(why="broken", text=f"it could not be asked: {text}", seconds=seconds)
        return NoReply(why="refused", text=f"no connection: {reasons or text}", seconds=seconds)
    return NoReply(why="broken", text=text, seconds=seconds)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that led to it, in groups too."""
    todo: list[BaseException] = [error]
    seen: set[int] = set()
    while todo:
        found = todo.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        todo += [cause for cause in (found.__cause__, found.__context__) if cause is not None]
        if isinstance(found, BaseExceptionGroup):
            todo += found.exceptions
