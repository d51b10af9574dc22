"""What a server writes: the last lines of it, for errors and for whoever reads along."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

_ENDS: Final = re.compile(rb"\r\n|\n|\r")


@attrs.frozen
class OutputLine:
    """One line of output."""

    number: int
    """Counted from 0, over all restarts."""

    text: str
    """Without its end. What is no UTF-8 is shown as U+FFFD, and a line that is too long goes on in the next one."""

    lost: int = 0
    """To a reader: how many lines before this one it has not been given, since it was too slow."""


class Output:
    """A ring of the last lines. Who writes never waits, and who reads too slowly loses lines and is told how many.

    Stdout and stderr are one, in the order in which they were written, as on a terminal. A carriage return ends a line
    too: progress bars would be one endless line else.
    """

    def __init__(self, *, lines: int = 1000, line_length: int = 4096) -> None:
        """``lines`` are kept, of ``line_length`` bytes each at most: that bounds the memory."""
        for name, value in (("lines", lines), ("line_length", line_length)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int >= 1, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be >= 1, not {value}")
        self._kept: deque[str] = deque(maxlen=lines)
        self._line_length = line_length
        self._count = 0
        self._begun = b""
        self._after_return = False
        self._closed = False
        self._news = trio.Event()

    # ---- for who reads ----

    @property
    def count(self) -> int:
        """How many lines there have been in all; the number of the next one."""
        return self._count

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    def tail(self, most: int = 20, *, since: int = 0) -> tuple[str, ...]:
        """The last lines, ``most`` at most, none before number ``since``; an unfinished one is among them."""
        lines = [*self._kept, *([self._text(self._begun)] if self._begun else [])]
        written = self._count + bool(self._begun)
        wanted = max(0, min(most, written - since, len(lines)))
        return tuple(lines[len(lines) - wanted :])

    def stream(self, *, since: int | None = None) -> OutputReader:
        """All lines from now on; with ``since``, from that number on, as far as they are still kept.

        ``async for line in output.stream(since=0): ...``; it ends when nothing more will come. There may be any number
        of readers; they cost no memory.
        """
        return OutputReader(self, self._count if since is None else max(0, since))

    # ---- for who writes ----

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
            self._after_return = False
        if not data:
            return
        self._after_return = data.endswith(b"\r")
        *whole, self._begun = _ENDS.split(self._begun + data)
        for line in whole:
            self._add(line)
        while len(self._begun) > self._line_length:
            self._keep(self._begun[: self._line_length])
            self._begun = self._begun[self._line_length :]
        self._tell()

    def add_lines(self, lines: Iterable[str]) -> None:
        """Whole lines from elsewhere have come; a line that is begun goes on after them."""
        for line in lines:
            self._keep(line.encode()[: self._line_length])
        self._tell()

    def end_line(self) -> None:
        """A process has ended: what it began is a line."""
        begun, self._begun, self._after_return = self._begun, b"", False
        if begun:
            self._add(begun)
            self._tell()

    def close(self) -> None:
        """Nothing more will come: streams end."""
        self.end_line()
        self._closed = True
        self._tell()

    def _add(self, line: bytes) -> None:
        self._keep(line[: self._line_length])
        for start in range(self._line_length, len(line), self._line_length):
            self._keep(line[start : start + self._line_length])

    def _keep(self, line: bytes) -> None:
        self._kept.append(self._text(line))
        self._count += 1

    def _text(self, line: bytes) -> str:
        return line.decode(errors="replace")

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    # ---- for readers ----

    def _line_from(self, number: int) -> OutputLine | None:
        """The first line from this number on that is still kept; None: it has not come yet."""
        if number >= self._count:
            return None
        oldest = self._count - len(self._kept)
        found = max(number, oldest)
        return OutputLine(found, self._kept[found - oldest], found - number)


class OutputReader:
    """An async iterator over lines; see :meth:`Output.stream`. It needs no closing."""

    def __init__(self, output: Output, position: int) -> None:
        self._output = output
        self._position = position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputLine:
        """Wait for the next line. Always a checkpoint; a cancelled wait loses nothing."""
        await trio.lowlevel.checkpoint()
        while (line := self._output._line_from(self._position)) is None:
            if self._output.closed:
                raise StopAsyncIteration
            await self._output._news.wait()
        self._position = line.number + 1
        return line
