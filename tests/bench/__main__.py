"""How fast the gate is, beside trio's own primitives: ``python -m tests.bench``, from the project's root.

What is measured, all in one process and one run of it:

- *uncontended*: one task that enters and leaves, with nobody else there; *first calls* are the first of a run, of
  which a gate looks at all for deadlines around them, and the other row is what comes later;
- *contended*: one slot, and so many tasks that wait for it all the time. An operation is one handover: give the
  slot back, let the next task in, and queue again. *handover* is the same for growing numbers of waiters, with one
  class and with a priority for each of them, to show that the cost doesn't grow with the queue;
- *cancel*: one ``scope.cancel()`` of a task that waits somewhere in the queue;
- *arrive, wait, cancel*: tasks that are started, wait, and are all cancelled at once; an operation is all that for one,
  with the start and the end of its task, which a task needs too that is parked by hand;
- *memory*: what a task takes that waits, by tracemalloc, and what of that a task doesn't take that is parked by hand;
- *options*: the same gate with one option more, its ratios to the gate as it is shipped;
- *asyncio*: the gate of trio_mlxgate.anyio on asyncio's own loop, beside what anyio and asyncio have;
- *position*: one question to the last of many waiters where it stands;
- *plan*: which models must go for another one, and *configuration*, what is made of the sets beforehand: see
  tests/bench/solver.py;
- *swap*: decisions on models that take turns, and what they are worth: see tests/bench/swap.py.

Each is measured in rounds; a round holds one sample of each subject, in random order, each in a run of its own.
A number is the median over the rounds, a ratio the median of the ratios to the CapacityLimiter within a round, in
brackets the middle half of them. Time is CPU time of this process. The body is empty and the same for all, all are
entered with ``async with``, all have capacity 1. What was imported is frozen (gc.freeze); the garbage collector runs
before each sample and is off during it, for all alike. "Gate" is the gate as it is shipped: statistics on, log lines
attached, looking for outer deadlines, the root logger at WARNING, so that no line is written; "ParkingLot" is a flag
and a bare trio.lowlevel.ParkingLot, which checks and counts nothing. All takes some ten minutes; see also ``--only``.

What is not measured: log lines that are written, ``hold_timeout`` and ``max_wait`` (each adds what a trio.CancelScope
or an alarm costs), other clocks, and uvloop. An empty body makes the differences look large: one request to a
server takes a thousand times as long as all of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import sys
from typing import TYPE_CHECKING

import attrs
import trio

from tests.bench import solver, swap
from tests.bench.measuring import Cell, measure
from tests.bench.workloads import tables

if TYPE_CHECKING:
    from tests.bench.workloads import Table


def main() -> None:
    """Measure, and print a markdown table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it runs; the numbers mean nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the workloads whose name contains TEXT")
    arguments = parser.parse_args()

    # Not WARNING: that the workloads let children wait for their parents is no news. What costs time is the same.
    logging.basicConfig(level=logging.ERROR)
    # What was imported need not be looked at before each sample.
    gc.freeze()
    results: dict[str, dict[str, Cell]] = {}
    if not arguments.json:
        print(f"trio {trio.__version__}, {platform.python_implementation()} {platform.python_version()}")
    for table in tables(quick=arguments.quick):
        rows = [workload for workload in table.rows if arguments.only in workload.name]
        if not rows:
            continue
        for workload in rows:
            results[workload.name] = measure(workload, table)
        if not arguments.json:
            _show(table, {workload.name: results[workload.name] for workload in rows})
    plans = solver.results(quick=arguments.quick, only=arguments.only)
    results |= plans
    if plans and not arguments.json:
        print(f"\nus per plan; ratio to {solver.WRITTEN_DOWN!r} [middle half of the rounds]\n")
        _rows([solver.OURS, solver.WRITTEN_DOWN], plans)
    swaps = swap.results(quick=arguments.quick, only=arguments.only)
    results |= swaps
    if swaps and not arguments.json:
        print(f"\ndecisions per second; ratio to {swap.PARITY!r} [middle half of the rounds]; then made traces\n")
        _rows([swap.OURS, swap.PARITY, swap.BOUND], swaps)
    if arguments.json:
        print(json.dumps({name: {s: attrs.asdict(c) for s, c in cells.items()} for name, cells in results.items()}))


def _show(table: Table, results: dict[str, dict[str, Cell]]) -> None:
    """Print one table."""
    print(f"\n{table.heading}\n")
    names = list(results) if table.turned else list(table.subjects)
    print(_row(["", *names]))
    print(_row(["---"] * (1 + len(names))))
    if table.turned:
        for subject in table.subjects:
            print(_row([subject, *(_text(results[name].get(subject)) for name in names)]))
    else:
        for name, cells in results.items():
            print(_row([name, *(_text(cells.get(subject)) for subject in names)]))
    sys.stdout.flush()


def _rows(subjects: list[str], results: dict[str, dict[str, Cell]]) -> None:
    print(_row(["", *subjects]))
    print(_row(["---"] * (1 + len(subjects))))
    for name, cells in results.items():
        print(_row([name, *(_text(cells.get(subject)) for subject in subjects)]))
    sys.stdout.flush()


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"{cell.value:.2f}" if cell.value < 1000 else f"{cell.value:.0f}"
    if cell.ratio is not None and cell.quartiles is not None:
        text += f"; {cell.ratio:.2f} [{cell.quartiles[0]:.2f}-{cell.quartiles[1]:.2f}]"
    return text


if __name__ == "__main__":
    main()
