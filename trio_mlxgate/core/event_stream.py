"""Server-sent events from bytes as they come, in the format of the WHATWG's HTML standard (section 9.2); no socket."""

from __future__ import annotations

import re
from typing import Final

import attrs

from trio_mlxgate.errors import MalformedAnswer

LONGEST_LINE: Final = 1 << 20
"""Bytes that a line, or the data of one event, may have: no token is as long, and what never ends is no line."""

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@attrs.frozen
class ServerEvent:
    """One event."""

    data: str
    """Its data lines, joined by newlines."""

    name: str = ""
    """Its type; empty where none was named, as usual."""


class EventStreamParser:
    """Takes bytes in whatever pieces they come and gives the events that are complete.

    Lines end with CRLF, LF or CR. Comments and fields that have no meaning here are left out. Bytes that are no UTF-8
    become U+FFFD, as the standard has it.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._after_cr = False
        self._first = True
        self._data: list[str] = []
        self._size = 0
        self._name = ""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that are complete with these bytes.

        Raises:
          MalformedAnswer: a line, or an event, is longer than :data:`LONGEST_LINE`.
        """
        if not chunk:
            return []
        # The end of a line was told with its CR; the LF after it ends nothing.
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        *ended, rest = _LINE_END.split(chunk)
        events = []
        for piece in ended:
            self._line += piece
            line = self._take_line()
            if line:
                self._field(line)
            elif (event := self._take_event()) is not None:
                events.append(event)
        self._line += rest
        self._check(len(self._line))
        return events

    def finish(self) -> list[ServerEvent]:
        """The bytes have ended: what lacks only the end of its line, or the empty line after it.

        It may as well be half of what the server meant to send: the standard would drop it.
        """
        line = self._take_line()
        if line:
            self._field(line)
        event = self._take_event()
        return [] if event is None else [event]

    def _take_line(self) -> bytes:
        line = bytes(self._line)
        self._line.clear()
        self._check(len(line))
        if self._first:
            self._first = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._size += len(line)
            self._check(self._size)
            self._data.append(value)
        elif name == "event":
            self._name = value

    def _take_event(self) -> ServerEvent | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], "", 0
        return ServerEvent("\n".join(data), name) if data else None

    @staticmethod
    def _check(size: int) -> None:
        if size > LONGEST_LINE:
            raise MalformedAnswer(f"a line of the event stream has more than {LONGEST_LINE} bytes: this is no answer")
