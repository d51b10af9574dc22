"""One day of a server whose health is looked at, with faults: what it answers, and what a person would say of it.

Data, for the tests of what decides and of what acts: ``python -m tests.core.a_day_of_health`` prints the day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trio_mlxgate.core.load import LoadLevel, LoadMonitor
from trio_mlxgate.core.readings import Health, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

INTERVAL: Final = 30.0
DAY: Final = 86400.0
COLD: Final = Reading(health=Health.UP, latency=4.0)
HANGS: Final = Reading(health=Health.UNKNOWN, reason="no answer within 2 s")
FAILS: Final = Reading(health=Health.UNKNOWN, reason="HTTP 500", latency=0.004)
GARBAGE: Final = Reading(health=Health.UNKNOWN, reason="its answer is no JSON", latency=0.003)
REFUSES: Final = Reading(health=Health.DOWN, reason="connection refused", refused=True)


def at(hours: int, minutes: int = 0, seconds: int = 0) -> float:
    """That time of the day, in seconds."""
    return hours * 3600.0 + minutes * 60.0 + seconds


def jitter(time: float) -> float:
    """Between -1 and 1, without a pattern that a period of the looks would meet, and the same in each run."""
    return (time / INTERVAL * 0.6180339887498949) % 1.0 * 2 - 1


def takes(seconds: float) -> Callable[[float], Reading]:
    """It answers after so many seconds, a millisecond more or less."""
    return lambda time: Reading(health=Health.UP, latency=seconds + 0.001 * jitter(time))


def drifts(time: float) -> Reading:
    """From 20 ms at 13:00 to 160 ms at 23:00."""
    return takes(0.020 + 0.014 * (time - at(13)) / 3600)(time)


def says(reading: Reading) -> Callable[[float], Reading]:
    return lambda _: reading


QUIET: Final = takes(0.020)
IDLE: Final = frozenset({LoadLevel.IDLE})
NORMAL: Final = frozenset({LoadLevel.NORMAL})
BUSY: Final = frozenset({LoadLevel.BUSY})
DOWN: Final = frozenset({LoadLevel.DOWN})
UNKNOWN: Final = frozenset({LoadLevel.UNKNOWN})


@attrs.frozen
class Phase:
    """From ``start`` on."""

    start: float
    what: str
    reading: Callable[[float], Reading]
    levels: frozenset[LoadLevel]
    """What may be said of it after a look every 30 s."""
    once: bool = False
    """Only the first look meets this; it is quiet then."""


PHASES: Final = (
    Phase(at(0), "a cold start, as the very first answer", says(COLD), NORMAL, once=True),
    Phase(at(0, 0, 30), "quiet: 20 ms", QUIET, IDLE),
    Phase(at(2), "hangs", says(HANGS), UNKNOWN),
    Phase(at(2, 1), "hangs on", says(HANGS), DOWN),
    Phase(at(2, 5), "quiet", QUIET, IDLE),
    Phase(at(3), "hangs for one look", says(HANGS), UNKNOWN, once=True),
    Phase(at(3, 0, 30), "quiet", QUIET, IDLE),
    Phase(at(4), "answers 500, and soon", says(FAILS), UNKNOWN),
    Phase(at(4, 1), "answers 500 still", says(FAILS), DOWN),
    Phase(at(4, 3), "quiet", QUIET, IDLE),
    Phase(at(5), "answers garbage, and soon", says(GARBAGE), UNKNOWN),
    Phase(at(5, 1), "answers garbage still", says(GARBAGE), DOWN),
    Phase(at(5, 3), "quiet", QUIET, IDLE),
    Phase(at(6), "refuses", says(REFUSES), DOWN),
    Phase(at(6, 10), "is back, with a cold start", says(COLD), NORMAL, once=True),
    Phase(at(6, 10, 30), "quiet", QUIET, IDLE),
    Phase(at(8), "one answer takes 4 s", says(COLD), IDLE, once=True),
    Phase(at(8, 0, 30), "quiet", QUIET, IDLE),
    Phase(at(9), "six times slower: one such answer", takes(0.120), IDLE),
    Phase(at(9, 0, 30), "six times slower, for 3 hours", takes(0.120), BUSY),
    Phase(at(12), "quiet: one such answer", QUIET, BUSY),
    Phase(at(12, 0, 30), "quiet", QUIET, IDLE),
    Phase(at(13), "drifts from 20 ms to 160 ms, in 10 hours", drifts, IDLE),
    Phase(at(14), "drifts: 34 to 42 ms", drifts, IDLE | NORMAL),
    Phase(at(14, 35), "drifts: 42 to 90 ms", drifts, NORMAL),
    Phase(at(18), "drifts: 90 to 104 ms", drifts, NORMAL | BUSY),
    Phase(at(19), "drifts: 104 to 160 ms", drifts, BUSY),
    Phase(at(23), "8 ms from now on: one such answer", takes(0.008), BUSY),
    Phase(at(23, 0, 30), "8 ms", takes(0.008), IDLE),
    Phase(at(23, 30), "30 ms, which was idle yesterday: one such answer", takes(0.030), IDLE),
    Phase(at(23, 30, 30), "30 ms", takes(0.030), NORMAL),
)


def phase_at(time: float) -> Phase:
    return [phase for phase in PHASES if phase.start <= time][-1]


def expected(time: float, slack: float = 0.0) -> frozenset[LoadLevel]:
    """What may be said at a time. ``slack``: so much earlier or later may it be, where looks aren't every 30 s."""
    near = [phase for phase in PHASES if time - slack <= phase.start <= time + slack]
    return frozenset().union(*(phase.levels for phase in (phase_at(max(0.0, time - slack)), *near)))


class Server:
    """The server of that day. Looks come in order of time."""

    def __init__(self) -> None:
        self._met: Phase | None = None

    def look(self, time: float) -> Reading:
        phase = phase_at(time)
        again = phase is self._met
        self._met = phase
        return QUIET(time) if phase.once and again else phase.reading(time)


def looks() -> Iterator[tuple[float, Reading, frozenset[LoadLevel]]]:
    """Time, reading, and what may be said right after it: a look every 30 s."""
    server = Server()
    for number in range(int(DAY / INTERVAL)):
        time = number * INTERVAL
        yield time, server.look(time), expected(time)


def clock(time: float) -> str:
    minutes, seconds = divmod(round(time), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def table(levels: Iterable[tuple[float, LoadLevel]]) -> str:
    """What was said over time, as a table in Markdown: a line for each change of the level."""
    lines = ["| from | level | what the server does |", "|---|---|---|"]
    before = None
    for time, level in levels:
        if level is not before:
            lines.append(f"| {clock(time)} | {level.label} | {phase_at(time).what} |")
        before = level
    return "\n".join(lines)


def levels_of_the_day() -> Iterator[tuple[float, LoadLevel]]:
    """As the core says it, looked at every 30 s."""
    monitor = LoadMonitor()
    for time, reading, _ in looks():
        monitor.observe(reading, time)
        yield time, monitor.report(time).level


if __name__ == "__main__":
    print(table(levels_of_the_day()))
