"""Ports for servers: each is lent to one at a time."""

from __future__ import annotations

import errno
import socket
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

_pool: Final = trio.lowlevel.RunVar["PortPool"]("trio_mlxgate.models.ports")
_HIGHEST: Final = 65535


class NoFreePort(OSError):
    """Every port of the pool is lent, or taken by somebody else."""


class PortPool:
    """The ports from ``first`` to ``last``. The one that was given back longest ago is lent first.

    A port that somebody else listens on is passed over, and so is one that a pool of another process has lent: two
    programs that start servers at once would else give both the same port, and take the answer of one for that of
    both. A foreign program may still come in between: the server then ends, most likely, with an error that says so.
    """

    def __init__(self, first: int = 5800, last: int = 5999) -> None:
        for name, port in (("first", first), ("last", last)):
            if isinstance(port, bool) or not isinstance(port, int):
                raise TypeError(f"{name} must be a port, an int from 1 to {_HIGHEST}, not {port!r}")
            if not 1 <= port <= _HIGHEST:
                raise ValueError(f"{name} must be a port from 1 to {_HIGHEST}, not {port}")
        if last < first:
            raise ValueError(f"last must be >= first, which is {first}, not {last}")
        self._first = first
        self._last = last
        self._free = deque(range(first, last + 1))
        self._locks: dict[int, socket.socket] = {}

    @property
    def free(self) -> int:
        """How many ports are not lent."""
        return len(self._free)

    def take(self) -> int:
        """A port. Never a checkpoint.

        Raises:
          NoFreePort: none is free.
        """
        for _ in range(len(self._free)):
            port = self._free.popleft()
            lock = _lock_of(port)
            if lock is not None:
                if _nobody_listens_on(port):
                    self._locks[port] = lock
                    return port
                lock.close()
            self._free.append(port)
        raise NoFreePort(errno.EADDRINUSE, f"no port from {self._first} to {self._last} is free: give a larger range")

    def give_back(self, port: int) -> None:
        """Nobody uses the port any more. Raises ValueError: it was not lent."""
        lock = self._locks.pop(port, None)
        if lock is None:
            raise ValueError(f"port {port} was not lent by this pool")
        lock.close()
        self._free.append(port)

    @contextmanager
    def lent(self) -> Iterator[int]:
        """A port for the time of a block. Raises NoFreePort: none is free."""
        port = self.take()
        try:
            yield port
        finally:
            self.give_back(port)


def current_port_pool() -> PortPool:
    """The pool of this trio run, 5800 to 5999, for servers that are given none; made when it is first asked for.

    Raises:
      RuntimeError: this is not called inside of a trio run.
    """
    try:
        return _pool.get()
    except LookupError:
        pool = PortPool()
        _pool.set(pool)
        return pool


def _lock_of(port: int) -> socket.socket | None:
    """A socket that one process of this machine can have at a time, and that goes with it; None: another one has it.

    It is that of the port's number in UDP, which servers of HTTP don't use.
    """
    lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        lock.bind(("127.0.0.1", port))
    except OSError:
        lock.close()
        return None
    return lock


def _nobody_listens_on(port: int) -> bool:
    # Both: on macOS one who listens on all addresses doesn't keep others from one of them. With SO_REUSEADDR, since a
    # server that has gone leaves connections behind that are no obstacle; it does not let two listen.
    for address in ("0.0.0.0", "127.0.0.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                test.bind((address, port))
            except OSError:
                return False
    return True
