"""How fast the gate is, beside trio's own primitives: ``python -m tests.bench``, from the project's root.

What is measured, all in one process and one run of it:

- *uncontended*: one task that enters and leaves, with nobody else there;
- *contended*: one slot, and so many tasks that wait for it all the time. An operation is one handover: give the
  slot back, let the next task in, and queue again. *handover* is the same for growing numbers of waiters, with one
  class and with a priority for each of them, to show that the cost doesn't grow with the queue;
- *cancel*: one ``scope.cancel()`` of a task that waits somewhere in the queue.

Each is measured in rounds; a round holds one sample of each subject, in random order, each in a trio run of its
own. A number is the median over the rounds, a ratio the median of the ratios to trio.CapacityLimiter within a round,
in brackets the middle half of them. Time is CPU time of this process. The body is empty and the same for all, all
are entered with ``async with``, all have capacity 1. What was imported is frozen (gc.freeze); the garbage collector
runs before each sample and is off during it, for all alike. "Gate" is the gate as it is shipped: statistics on,
log lines attached, the root logger at WARNING, so that no line is written; "ParkingLot" is a flag and a bare
trio.lowlevel.ParkingLot, which checks and counts nothing. All takes some five minutes; see also ``--only``.

What is not measured: the starting and ending of tasks, log lines that are written, ``hold_timeout`` and
``max_wait`` (each adds what a trio.CancelScope or an alarm costs), memory, and other clocks and event loops. An
empty body makes the differences look large: one request to a server takes a thousand times as long as all of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform

import attrs
import trio

from tests.bench.measuring import Cell, measure
from tests.bench.subjects import SUBJECTS
from tests.bench.workloads import workloads


def main() -> None:
    """Measure, and print a markdown table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it runs; the numbers mean nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the workloads whose name contains TEXT")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.WARNING)
    # What was imported need not be looked at before each sample.
    gc.freeze()
    results: dict[str, dict[str, Cell]] = {}
    if not arguments.json:
        print(f"trio {trio.__version__}, {platform.python_implementation()} {platform.python_version()}\n")
        print("us per operation; ratio to trio.CapacityLimiter [middle half of the rounds]\n")
        print(_row(["", *SUBJECTS]))
        print(_row(["---"] * (1 + len(SUBJECTS))), flush=True)
    for workload in workloads(quick=arguments.quick):
        if arguments.only not in workload.name:
            continue
        cells = results[workload.name] = measure(workload)
        if not arguments.json:
            print(_row([workload.name, *(_text(cells.get(name)) for name in SUBJECTS)]), flush=True)
    if arguments.json:
        print(json.dumps({name: {s: attrs.asdict(c) for s, c in cells.items()} for name, cells in results.items()}))


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"{cell.microseconds:.2f}"
    if cell.ratio is not None and cell.quartiles is not None:
        text += f"; {cell.ratio:.2f} [{cell.quartiles[0]:.2f}-{cell.quartiles[1]:.2f}]"
    return text


if __name__ == "__main__":
    main()
