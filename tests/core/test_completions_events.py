"""Server-sent events: the same whatever pieces they come in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st

from trio_mlxgate.core.event_stream import LONGEST_LINE, EventStreamParser, ServerEvent
from trio_mlxgate.errors import MalformedAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "200"))


def parse(chunks: Iterable[bytes]) -> list[ServerEvent]:
    parser = EventStreamParser()
    found = [event for chunk in chunks for event in parser.feed(chunk)]
    return found + parser.finish()


def reference(text: str) -> list[ServerEvent]:
    """As plain as can be, of a whole text."""
    events = []
    data: list[str] = []
    name = ""
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line == "":
            if data:
                events.append(ServerEvent("\n".join(data), name))
            data, name = [], ""
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line == "data":
            data.append("")
        elif line.startswith("event:"):
            name = line[6:].removeprefix(" ")
        elif line == "event":
            name = ""
    if data:
        events.append(ServerEvent("\n".join(data), name))
    return events


LINES = st.one_of(
    st.just(""),
    st.sampled_from(
        ["data: 여유", "data:x", "data", ": keepalive 1/2", "event: error", "id: 7", "data:  two", "event"]
    ),
    st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"]), max_size=8),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8).map("data: ".__add__),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """The text of a stream, and its bytes in pieces."""
    lines = draw(st.lists(LINES, max_size=12))
    text = "".join(line + draw(st.sampled_from(["\n", "\r\n", "\r"])) for line in lines)
    text += draw(st.sampled_from(["", "data: unended", "data: 끝"]))
    raw = text.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    return text, [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@settings(max_examples=EXAMPLES, deadline=None)
@given(streams())
def test_any_chunking_gives_what_the_whole_text_gives(stream: tuple[str, list[bytes]]) -> None:
    text, chunks = stream
    assert parse(chunks) == reference(text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(streams())
def test_byte_by_byte_is_the_same(stream: tuple[str, list[bytes]]) -> None:
    text, _ = stream
    assert parse(bytes([byte]) for byte in text.encode()) == reference(text)


def test_an_event_is_told_with_its_empty_line_and_not_later() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"data: a\r\n") == []
    assert parser.feed(b"\r") == [ServerEvent("a")]
    # The LF that belongs to the CR before ends no line of its own.
    assert parser.feed(b"\ndata: b\n\n") == [ServerEvent("b")]
    assert parser.finish() == []


def test_a_byte_order_mark_in_front_is_no_part_of_the_first_line() -> None:
    assert parse([b"\xef", b"\xbb\xbfdata: a\n\n"]) == [ServerEvent("a")]


def test_bytes_that_are_no_utf_8_do_not_end_the_stream() -> None:
    assert parse([b"data: \xff\n\ndata: b\n\n"]) == [ServerEvent("\ufffd"), ServerEvent("b")]


def test_a_line_of_the_greatest_length_passes_and_one_byte_more_does_not() -> None:
    fits = b"data: " + b"x" * (LONGEST_LINE - 6)
    assert len(parse([fits, b"\n\n"])) == 1
    with pytest.raises(MalformedAnswer, match="1048576 bytes"):
        parse([fits, b"x"])
    with pytest.raises(MalformedAnswer, match="1048576 bytes"):
        parse([fits + b"x\n"])


def test_many_lines_of_one_event_are_bounded_too() -> None:
    line = b"data: " + b"x" * 1000 + b"\n"
    with pytest.raises(MalformedAnswer):
        parse(line for _ in range(LONGEST_LINE // 1000 + 1))
    assert len(parse(line + b"\n" for _ in range(LONGEST_LINE // 1000 + 1))) > 1000
