"""What a server writes: kept in a ring, read by any number, and never waited for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.limits import ends_within
from tests.models.process_servers import config, server, until
from trio_mlxgate.models import ModelProcess, Output, OutputLine

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES: Final = int(os.environ.get("MLXGATE_EXAMPLES", "300"))


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with ends_within(60):
        yield


def fed(*pieces: bytes, lines: int = 1000, line_length: int = 4096) -> Output:
    output = Output(lines=lines, line_length=line_length)
    for piece in pieces:
        output.feed(piece)
    return output


def test_lines_come_whole_however_they_are_cut() -> None:
    output = fed(b"on", b"e\ntwo\r", b"\nthree\r\r\nfo")
    assert output.tail(9) == ("one", "two", "three", "", "fo")
    assert output.count == 4, "the last one has not ended"
    output.end_line()
    assert output.count == 5
    output.end_line()
    assert output.tail(2) == ("", "fo")
    assert output.tail(0) == ()
    assert output.tail(9, since=3) == ("", "fo")
    assert output.tail(9, since=99) == ()


def test_an_empty_line_after_a_progress_bar_is_one() -> None:
    assert fed(b"10%\r", b"\n", b"\n", b"x").tail(9) == ("10%", "", "x")


def test_what_is_no_utf_8_is_shown_and_characters_may_be_cut() -> None:
    whole = "여유\n".encode()
    assert fed(*(whole[at : at + 1] for at in range(len(whole)))).tail(1) == ("여유",)
    assert fed(b"\xff\xfe\n").tail(1) == ("\ufffd\ufffd",)


def test_a_line_without_end_needs_no_memory() -> None:
    output = fed(*[b"x" * 1000] * 1000, lines=3, line_length=100)
    assert output.tail(99) == ("x" * 100,) * 4
    assert output.count == 9999
    assert fed(b"abcdefg\n", line_length=3).tail(9) == ("abc", "def", "g")
    assert fed(b"abcdef", line_length=3).tail(9) == ("abc", "def")


@given(st.lists(st.binary(max_size=12), max_size=20), st.integers(1, 5))
@settings(max_examples=EXAMPLES, deadline=None)
def test_cuts_change_nothing(pieces: list[bytes], lines: int) -> None:
    pieces = [bytes(b"ab\r\n"[byte % 4] for byte in piece) for piece in pieces]
    cut, whole = fed(*pieces, lines=lines, line_length=4), fed(b"".join(pieces), lines=lines, line_length=4)
    cut.end_line()
    whole.end_line()
    assert cut.tail(99) == whole.tail(99)
    assert cut.count == whole.count
    assert len(cut.tail(99)) == min(lines, cut.count)


def test_lines_from_elsewhere_do_not_come_into_the_middle_of_one() -> None:
    output = fed(b"one\nbeg")
    output.add_lines(["elsewhere"])
    output.feed(b"un\n")
    assert output.tail(9) == ("one", "elsewhere", "begun")


async def test_readers_get_all_from_where_they_begin() -> None:
    output = fed(b"one\ntwo\n")
    got: dict[str, list[OutputLine]] = {"all": [], "new": []}

    async def read(name: str, since: int | None) -> None:
        async for line in output.stream(since=since):
            got[name].append(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "all", 0)
        nursery.start_soon(read, "new", None)
        await trio.testing.wait_all_tasks_blocked()
        output.feed(b"three\nfo")
        await trio.testing.wait_all_tasks_blocked()
        assert [line.text for line in got["new"]] == ["three"]
        output.close()
    assert [line.text for line in got["all"]] == ["one", "two", "three", "fo"]
    assert [(line.number, line.lost) for line in got["all"]] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [line.text for line in got["new"]] == ["three", "fo"]


async def test_a_slow_reader_loses_lines_and_is_told_how_many() -> None:
    output = fed(lines=10)
    reader = output.stream()
    output.feed(b"0\n")
    assert (await anext(reader)).text == "0"
    output.feed(b"".join(b"%d\n" % n for n in range(1, 100)))
    line = await anext(reader)
    assert line == OutputLine(90, "90", lost=89)
    assert (await anext(reader)) == OutputLine(91, "91")
    with trio.move_on_after(0.01):
        async for last in reader:
            line = last
    assert line.text == "99"
    # A wait that was cancelled has lost nothing.
    output.feed(b"100\n")
    assert (await anext(reader)) == OutputLine(100, "100")


@pytest.mark.parametrize(("bad", "error"), [({"lines": 0}, ValueError), ({"line_length": "4"}, TypeError)])
def test_bad_settings(bad: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(bad))):
        Output(**bad)


@pytest.mark.integration
async def test_megabytes_of_output_block_nobody() -> None:
    """The pipe holds 64 KiB. 12 MB go through while one reader sleeps and another one reads."""
    flood = "blob = 'x' * 99 + chr(10)\nfor _ in range(120): sys.stdout.write(blob * 1000)\nsay('flooded')"
    read = lost = 0
    async with ModelProcess(config(server(flood), output_lines=500)) as process:
        sleeper = process.output.stream()

        async def follow() -> None:
            nonlocal read, lost
            async for line in process.output.stream(since=0):
                read, lost = read + 1, lost + line.lost

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            start = time.monotonic()
            await process.ensure_ready()
            assert time.monotonic() - start < 20
            await until(lambda: process.output.tail(1) == ("flooded",))
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert read + lost == process.output.count == 120_001
        line = await anext(sleeper)
        assert line.lost == 120_001 - 500
        assert len(process.output.tail(10**6)) == 500


@pytest.mark.integration
async def test_what_it_writes_while_it_is_stopped_by_a_cancellation_is_read_too() -> None:
    """It would block else, and have to be killed."""
    say_much = "[os.write(1, b'y' * 999 + bytes([10])) for _ in range(1000)]"
    last_words = f"lambda *_: ({say_much}, os.write(1, b'all said'), os._exit(0))"
    armed = f"signal.signal(signal.SIGTERM, {last_words})"
    start = 0.0
    process = ModelProcess(config(server(armed), stop_grace=20.0))
    with trio.CancelScope() as scope:
        async with process:
            await process.ensure_ready()
            start = time.monotonic()
            scope.cancel()
            await trio.sleep_forever()
    assert time.monotonic() - start < 10
    assert process.output.tail(1) == ("all said",)
    assert process.output.count == 1001


@pytest.mark.integration
async def test_stdout_and_stderr_in_their_order_over_restarts() -> None:
    both = "say('out 1'); print('err 1', file=sys.stderr, flush=True); say('out 2'); sys.stdout.write('no end')"
    async with ModelProcess(config(server(both, "sys.stdout.flush()"))) as process:
        texts: list[str] = []

        async def follow() -> None:
            async for line in process.output.stream():
                texts.append(line.text)  # noqa: PERF401 - one by one, as they come

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for _ in range(2):
                await process.ensure_ready()
                await until(lambda: process.output.tail(1) == ("no end",))
                await process.stop()
            assert texts == ["out 1", "err 1", "out 2", "no end"] * 2
            nursery.cancel_scope.cancel()
