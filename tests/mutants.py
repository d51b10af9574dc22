"""Breaks the gate in known ways, one at a time, and shows that the tests notice: ``python -m tests.mutants``.

Each mutant is an edit of the package's text in a copy of it; the tests run there, with the copy as what is imported.
``python -m tests.mutants NAME ...`` runs the mutants of those names alone. The exit status is 1 if one survives.

The mutants of no option run twice: with the tests of the core and of the gate on trio, and, as ``NAME (anyio)``, with
those of anyio's gate on asyncio's loop alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Final

import attrs

from tests import mutants_of_models
from tests.edits import Edit, in_method

ROOT: Final = Path(__file__).resolve().parent.parent
# First the state machines: what a single test sees too, they should see.
MACHINES: Final = (
    "tests/core/test_admission_machine.py",
    "tests/test_gate_machine.py::test_laws_through_the_driver[Gate-trio]",
)
BATTERY: Final = "tests/test_battery.py::test_the_gate_passes[Gate-trio]"
ANYIO_TESTS: Final = (
    "tests/gate/test_abort_settles.py::test_whom_a_cancelled_wait_lets_in_is_woken[anyio.Gate-asyncio-native]",
    "tests/test_gate_machine.py::test_laws_through_the_driver[anyio.Gate-asyncio]",
    "tests/test_battery.py::test_the_gate_passes[anyio.Gate-asyncio]",
)
"""The tests for ``NAME (anyio)``."""
TESTS: Final = (*MACHINES, BATTERY, "tests/gate/test_options.py", "tests/gate/test_hooks.py")
TESTS_OF: Final[dict[str, tuple[str, ...]]] = {
    "positions": (MACHINES[0], "tests/gate/test_progress.py", BATTERY),
    "outer deadline": ("tests/gate/test_outer_deadline.py",),
    "hooks": ("tests/gate/test_hooks.py", MACHINES[1]),
    "ends": (*MACHINES, BATTERY, "tests/gate/test_ends.py", "tests/gate/test_orphans.py"),
    "threads": ("tests/gate/test_limiter.py", "tests/gate/test_from_thread.py"),
    "parents": ("tests/gate/test_waits_for_parent.py",),
    "asyncio": ANYIO_TESTS,
    "load": ("tests/core/test_load_machine.py", "tests/core/test_load_day.py"),
    "silence": ("tests/core/test_load.py",),
    "watch": ("tests/backends/test_a_day.py", "tests/backends/test_registry.py", "tests/backends/test_calls.py"),
    "calls": ("tests/core/test_choosing.py", "tests/backends/test_calls.py"),
    "chat": ("tests/core/test_completions.py", "tests/backends/test_adapter_limits.py"),
    **mutants_of_models.TESTS_OF,
}
"""The tests for mutants whose names begin so, of what the state machines know little of; all others get TESTS."""
EXAMPLES: Final = "500"
LONGEST: Final = 120.0
"""Seconds after which a mutant is taken to hang: the tests of one take far less."""
LONGEST_UNHARMED: Final = 600.0
"""The same of the code as it is, with the tests of all mutants together."""

# The first failure will do, and nobody reads it: it need not be shrunk.
PYTEST_OPTIONS: Final = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "--hypothesis-profile=first-failure")


MUTANTS: Final[dict[str, tuple[Edit, ...]]] = {
    "no wake on raise": (
        Edit("core/admission.py", in_method("set_capacity", r"return self\._settle\(now\)"), r"\1return []"),
    ),
    "raise by delta": (
        Edit(
            "core/admission.py",
            in_method("set_capacity", r"^ +self\.capacity = capacity\n +return self\._settle\(now\)"),
            r"\1        more, self.capacity = capacity - self.capacity, capacity\n"
            r"        granted: list[T] = []\n"
            r"        while more > 0 and self._line.length:\n"
            r"            more -= 1\n"
            r"            ticket = self._line.take_first()\n"
            r"            self._forget_wait(ticket)\n"
            r"            self._grant(ticket, now)\n"
            r"            granted.append(ticket)\n"
            r"        return granted",
        ),
    ),
    "handover ignores a lowered capacity": (
        # What release frees goes to the next waiter, whether or not the capacity still allows it.
        Edit(
            "core/admission.py",
            in_method("release", r"^ +return self\._settle\(now\)[^\n]*"),
            r"\1        if not self._line.length:\n"
            r"            return []\n"
            r"        capacity, self.capacity = self.capacity, self.in_flight + 1\n"
            r"        granted = self._settle(now)\n"
            r"        self.capacity = capacity\n"
            r"        return granted",
        ),
    ),
    "a cancellable checkpoint between grant and body": (
        Edit(
            "slots.py",
            in_method("_acquire", r"^( +)self\.waiter = self\.asker = None\n"),
            r"\1\2\3await runtime.checkpoint()\n",
        ),
    ),
    "a checkpoint inside release": (
        Edit(
            "slots.py",
            r"(async def __aexit__\(\n[\s\S]*?\"\"\"[\s\S]*?\"\"\"\n)",
            r"\1        await self.gate._runtime.cancel_shielded_checkpoint()\n",
        ),
    ),
    "LIFO in class": (Edit("core/ordering.py", in_method("take_first", r"last=False"), r"\1last=True"),),
    "class order inverted": (Edit("core/ordering.py", r"\.push\(priority, priority\)", ".push(priority, -priority)"),),
    "abort without settling": (
        Edit("core/admission.py", in_method("cancel", r"return self\._settle\(now\)"), r"\1return []"),
    ),
    "abort leaves the dead entry in the queue": (
        Edit("slots.py", in_method("_abort", r"^ +gate\._cancelled\(.*\)\n"), r"\1"),
    ),
    # ---- aging ----
    "aging: the window is a hundred times as wide": (
        Edit("core/ordering.py", r"now \+ aging \* priority / 100", "now + aging * priority"),
    ),
    "aging: it counts from the wrong side": (
        Edit("core/ordering.py", r"now \+ aging \* priority / 100", "aging * priority / 100 - now"),
    ),
    "aging: a class stands where its last head stood": (
        Edit("core/ordering.py", r"self\._range_of\(priority\)\.move\(priority, next\(iter\(line\)\)\)", "pass"),
    ),
    "aging: the next run has none": (Edit("core/admission.py", r"aging=self\.aging,", "aging=None,"),),
    # ---- headroom ----
    "headroom: it may shut out the others": (
        Edit(
            "core/headroom.py",
            in_method("worst_eligible", r"max\(1, capacity - reserved\)"),
            r"\1(capacity - reserved)",
        ),
    ),
    "headroom: who has ended is counted": (Edit("core/headroom.py", in_method("released", r"-= 1"), r"\1-= 0"),),
    "headroom: nowait takes a reserved slot": (
        Edit(
            "core/admission.py",
            in_method("request_nowait", r"not self\.admits\(ticket\.priority\)"),
            r"\1self.in_flight >= self.capacity",
        ),
        Edit(
            "core/admission.py",
            in_method("request", r"self\.admits\(ticket\.priority\)"),
            r"\1(self.admits(ticket.priority) or ticket.max_wait == 0 and self.in_flight < self.capacity)",
        ),
    ),
    "headroom: what one settling grants is not counted": (
        Edit("core/admission.py", in_method("_settle", r"headroom\.granted\(ticket\.priority\)"), r"\1pass"),
    ),
    "headroom: each key reserves by itself": (
        Edit(
            "core/headroom.py",
            r"list\(accumulate\(reserved\[key\] for key in self\._keys\)\)",
            "[reserved[key] for key in self._keys]",
        ),
    ),
    "headroom: who is held back holds up all others": (
        Edit(
            "core/ordering.py",
            r"ranges = self\._heads\[: bisect_left\(self\._cuts, worst\) \+ 1\]",
            "ranges = self._heads\n"
            "        best = min((h for h in ranges if h), key=lambda h: h.first_rank(), default=None)\n"
            "        if best is None or best.first() > worst:\n"
            "            return None",
        ),
    ),
    # ---- bounded queue ----
    "bounded queue: one more than allowed": (
        Edit("core/admission.py", in_method("fullness", r">= limit"), r"\1> limit"),
    ),
    "bounded queue: better priorities are counted": (
        Edit("core/admission.py", in_method("fullness", r" if other >= key"), r"\1"),
    ),
    "bounded queue: who need not wait is refused": (
        Edit(
            "core/admission.py",
            in_method("request", r"and self\._simple:"),
            r"\1and self._simple and not (self._max_waiting and self.fullness(ticket.priority) is not None):",
        ),
    ),
    "bounded queue: who is superseded still counts": (
        Edit("core/admission.py", in_method("fullness", r"sizes\[leaving\.priority\] -= 1"), r"\1pass"),
    ),
    "bounded queue: another attempt is asked for too early": (
        Edit(
            "core/admission.py",
            in_method("expected_wait", r"self\._line\.ahead_of\(last, priority\)"),
            r"\1{}",
        ),
    ),
    # ---- latest wins ----
    "latest wins: the newer queues last": (
        Edit("core/admission.py", r"older is not None and older\.priority == ticket\.priority", "older is ticket"),
    ),
    "latest wins: one that need not wait leaves the older alone": (
        Edit(
            "core/admission.py",
            r"(if self\._headroom is not None and self\.admits\(ticket\.priority\):\n)",
            r"\1            older = None\n",
        ),
    ),
    "latest wins: the older's waiting is inherited": (
        Edit(
            "core/admission.py",
            r"ticket\.place = older\.place\n",
            "ticket.place, ticket.arrived_at = older.place, older.arrived_at\n",
        ),
    ),
    "latest wins: a newcomer that is refused kicks": (
        Edit(
            "core/admission.py",
            in_method("request", r"if ticket\.max_wait <= 0:\n"),
            r"\1\2            if older is not None:\n"
            r"                self._leave(older)\n"
            r"                self._reject(older, SUPERSEDED)\n",
        ),
    ),
    "latest wins: who was granted is still taken for a waiter": (
        Edit("core/admission.py", in_method("_settle", r"if ticket\.supersede is not None:"), r"\1if ticket is None:"),
    ),
    "latest wins: nobody tells the older": (
        Edit("driver.py", in_method("_oust", r"if older\.waiter is not None:"), r"\1if older is None:"),
    ),
    # ---- positions and estimates ----
    "positions: from 0 on": (Edit("core/admission.py", r"1 \+ sum\(ahead\.values\(\)\)", "sum(ahead.values())"),),
    "positions: everybody is told at each look": (
        Edit("progress.py", in_method("is_news", r"last\.position != outlook\.position"), r"\1True"),
    ),
    "positions: a watcher that left is kept": (
        Edit("progress.py", in_method("leave", r"del self\._watching\[progress\]"), r"\1pass"),
    ),
    "estimates: what the holders have done is not counted": (
        Edit("core/estimates.py", r"self\._mean\(priority\) - held", "self._mean(priority)"),
    ),
    "estimates: one slot at a time": (Edit("core/estimates.py", r"\) / self\._capacity", ")"),),
    "estimates: one class for all": (
        Edit("core/estimates.py", in_method("mean", r"self\.classes\.get\(priority\)"), r"\1None"),
    ),
    # ---- outer deadline ----
    "outer deadline: told at every call": (Edit("outer_deadline.py", r"self\._reported\.add\(site\)", "pass"),),
    "outer deadline: it names our own line": (
        Edit("call_sites.py", r"if module == _TRIOS_MESSENGER or[^\n]*", "if not file:"),
    ),
    "outer deadline: who is cancelled already is reported": (
        Edit("outer_deadline.py", r"if math\.isinf\(deadline\):", "if deadline == math.inf:"),
    ),
    "outer deadline: raise is now and then": (Edit("outer_deadline.py", r'if policy == "warn":', "if policy:"),),
    "outer deadline: a cancelled wait makes nobody look": (
        Edit("slots.py", in_method("_abort", r"^ +gate\._outer_deadlines\.look_more_closely\(\)\n"), r"\1"),
    ),
    # ---- hooks ----
    "hooks: who was cancelled when it asked is not told": (
        Edit("slots.py", in_method("_acquire", r"^ +gate\._tell\(Cancelled, self\)\n"), r"\1"),
    ),
    "hooks: a report comes when another alarm is due": (
        Edit("slots.py", r" or gate\._alarms\.until > self\.arrived_at \+ gate\._starvation_warning:", ":"),
    ),
    "hooks: the grants of a raise are not told": (
        Edit("base_gate.py", r"(def capacity\(self, capacity[\s\S]*?)^ +self\._tell_granted\(granted\)\n", r"\1"),
    ),
    "hooks: one that fails is called again": (
        Edit("instrumentation/listeners.py", in_method("_take_out", r"if other is not listener"), r"\1"),
    ),
    "hooks: a call that was refused at once is said to have queued": (
        Edit("driver.py", r"queued=ticket\.place is not None", "queued=ticket.seq > 0"),
    ),
    # ---- ends ----
    "ends: a free slot of a closed gate is given away": (
        Edit("core/admission.py", in_method("refuse_all", r"self\._simple = False"), r"\1pass"),
    ),
    "ends: nowait finds a closed gate open": (Edit("core/admission.py", r" or self\.ended is not None:\n", ":\n"),),
    "ends: a drained gate lets newcomers queue": (
        Edit("core/admission.py", in_method("refuse_newcomers", r"self\.ended = self\.ended or reason"), r"\1pass"),
    ),
    "ends: a drain sends waiters away": (
        Edit("driver.py", r"self\._admission\.refuse_newcomers\(\)", "self._refuse_all(CLOSED)"),
    ),
    "ends: who waits at a closed gate is not woken": (
        Edit("driver.py", in_method("_refuse_all", r"if ticket\.waiter is not None:"), r"\1if ticket is None:"),
    ),
    "ends: who was sent away is still counted": (
        Edit("core/admission.py", in_method("refuse_all", r"self\._leave\(ticket\)"), r"\1self._forget_wait(ticket)"),
    ),
    "ends: rest is when nobody holds": (
        Edit("ends.py", r"admission\.in_flight or admission\.tasks_waiting", "admission.in_flight"),
    ),
    "ends: who holds may wait for itself": (
        Edit("ends.py", in_method("check", r"if task in gate\._owners"), r"\1if task is None"),
    ),
    "ends: what an ended task held stays held": (
        Edit("trio_runtime.py", r"gate\._task_ended\(task\)", "gate._owners.pop(task)"),
    ),
    "ends: a strict gate hands a lost slot on": (
        Edit("driver.py", in_method("_take_back", r"breaks = self\._strict and"), r"\1breaks = False and"),
    ),
    "ends: a lost slot is given back twice": (
        Edit("slots.py", r"if self\.state is TicketState\.ORPHANED:", "if False:"),
    ),
    "threads: a borrower has one slot however often it asks": (
        Edit(
            "threads.py",
            in_method("_note", r"self\._borrowed\.setdefault\(borrower, \[\]\)\.append\(slot\)"),
            r"\1self._borrowed[borrower] = [slot]",
        ),
    ),
    "threads: a thread waits for the slot that it runs in": (
        Edit("threads.py", in_method("_check", r"if gate\._held_under"), r"\1if False and gate._held_under"),
    ),
    "threads: one that was given up keeps its slot": (
        Edit("threads.py", in_method("_give_back", r"self\._scope\.cancel\(\)"), r"\1pass"),
    ),
    "threads: an abandoned one is taken for its task's": (
        Edit("driver.py", r"elif tied\.holder is task and tied\.mark is None:", "elif tied.holder is task:"),
    ),
    "parents: told at every call": (Edit("ancestors.py", r"if site not in self\._reported:", "if True:"),),
    "parents: told also if another slot can be had": (
        Edit("ancestors.py", r" or not gate\._admission\.blocked_by\(held, slot\.priority\)", ""),
    ),
    # ---- backends ----
    "load: a failure leaves the reading as it was": (
        Edit("core/load.py", in_method("_fail", r"^ +self\._good = None\n"), r"\1"),
    ),
    "load: a reading never expires": (
        Edit("core/load.py", in_method("_fresh_reading", r"return self\._good if [^\n]*"), r"\1return self._good"),
    ),
    "load: overload is learnt as usual": (Edit("core/baseline.py", r"min\(known\)", "known[-1]"),),
    "load: one slow answer is enough": (
        Edit("core/load.py", in_method("_median", r"return [^\n]*"), r"\1return max(self._latencies)"),
    ),
    "watch: a look has no limit": (
        Edit("backends/watch.py", r"with trio\.move_on_after\(self\._check_limit\):", "with trio.CancelScope():"),
    ),
    "watch: a look that raises ends it": (
        Edit(
            "backends/watch.py",
            in_method("_look", r"except Exception as error:\n(?: {12}[^\n]*\n)+"),
            r"\1except ZeroDivisionError:\n            raise SystemExit from None\n",
        ),
    ),
    "watch: it looks while tokens come": (
        Edit("backends/watch.py", r"return fresh and token_at", "return False and token_at"),
    ),
    "watch: who leaves ends the measurement of all": (
        Edit(
            "backends/flights.py",
            r"^ +await landing\.landed\.wait\(\)\n",
            """\
        try:
            await landing.landed.wait()
        except trio.Cancelled:
            landing.landed.set()
            raise
""",
        ),
    ),
    "watch: who queues at one that is down stays there": (
        Edit("backends/watch.py", r"if not caller\.granted\(\):", "if False:"),
    ),
    "watch: a burst goes to one": (Edit("backends/watch.py", r", len\(self\._callers\)\)", ", 0)"),),
    "watch: the clock of the last run is kept": (
        Edit("backends/watching.py", r"self\._watches = \{\n", "self._watches = self._watches or {\n"),
    ),
    "silence: a good health heals it": (
        Edit("core/load.py", r"if reading\.health is Health\.UP and self\._silence:", "if False:"),
    ),
    "calls: what was seen is repeated elsewhere": (
        Edit("core/choosing.py", r"if yielded or isinstance", "if isinstance"),
    ),
    "calls: a wrong request goes to everybody": (
        Edit("core/choosing.py", r"return not 400 <= error\.upstream_status[^\n]*", "return True"),
    ),
    "calls: the first delta is not waited for": (
        Edit("backends/calls.py", r"self\._first = await anext\(stream, None\)", "self._first = None"),
    ),
    "calls: a stream that failed is left open": (Edit("backends/calls.py", r"if not self\.keep:", "if False:"),),
    "chat: an end is a success": (
        Edit("core/completions.py", in_method("completion", r"if self\.finish_reason is None:"), r"\1if False:"),
    ),
    "chat: the gap is that of the first token": (
        Edit(
            "backends/chat_stream.py",
            r"return limits\.first_token if [^\n]* else limits\.gap",
            "return limits.first_token",
        ),
    ),
    # ---- asyncio ----
    "asyncio: a cancellation after the grant is forgotten": (
        Edit("asyncio_runtime.py", r"^ +task\.cancel\(\*cancelled\.args\)\n[\s\S]*?task\.uncancel\(\)\n", ""),
    ),
    "asyncio: a cancellation after the grant counts twice": (
        Edit("asyncio_runtime.py", r"(task\.cancel\(\*cancelled\.args\)\n[\s\S]*?)task\.uncancel\(\)", r"\1pass"),
    ),
    "asyncio: who is cancelled just when it is granted takes the slot along": (
        Edit("asyncio_runtime.py", in_method("sleep", r"if waiter\.cancelled\(\) or [^\n]*:"), r"\1if waiter.done():"),
        Edit(
            "slots.py",
            in_method("_acquire", r"^ +gate\._released\(self, [^\n]*\n"),
            r"\1                        pass\n",
        ),
    ),
    "asyncio: who is cancelled leaves the queue later": (
        Edit(
            "asyncio_runtime.py",
            in_method("cancel", r"^ +self\._abort\(None\)"),
            r"\1            self.get_loop().call_soon(self._abort, None)",
        ),
    ),
    "asyncio: what an ended task held stays held": (
        Edit("asyncio_runtime.py", r"gate\._task_ended\(task\)", "gate._owners.pop(task)"),
    ),
    # ---- models that take turns ----
    **mutants_of_models.MUTANTS,
}
"""Every mutant by name, with its edits."""

CORE: Final = tuple(name for name in MUTANTS if ":" not in name)
"""The mutants of no option."""


@attrs.frozen
class Outcome:
    """What became of one mutant."""

    name: str
    killed_by: str | None
    """The test that noticed; None if the mutant survived."""

    seconds: float


def prepare(folder: Path, edits: tuple[Edit, ...]) -> None:
    """Make ``folder`` a copy of the package and the tests, edited."""
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis", ".pytest_cache")
    for name in ("trio_mlxgate", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for edit in edits:
        edit.apply(folder / "trio_mlxgate")


def run_tests(folder: Path, tests: tuple[str, ...], longest: float) -> str | None:
    """Run the ``tests`` in ``folder`` and return the first test that failed there, or None.

    They have failed, too, if they take more than ``longest`` seconds.

    Raises:
      RuntimeError: the tests could not be run, or it was not the copy that they tested.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "MLXGATE_EXAMPLES": EXAMPLES,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    where = subprocess.run(
        [sys.executable, "-c", "import trio_mlxgate.gate; print(trio_mlxgate.gate.__file__)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if Path(where.stdout.strip()) != folder / "trio_mlxgate" / "gate.py":
        raise RuntimeError(f"the copy would not be what is tested: {where.stdout}{where.stderr}")
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *PYTEST_OPTIONS, *tests],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=longest,
        )
    except subprocess.TimeoutExpired:
        return f"the limit of {longest} s: it hangs"
    if result.returncode == 0:
        return None
    failed = re.search(r"^FAILED (\S+)", result.stdout, flags=re.MULTILINE)
    if result.returncode != 1 or failed is None:
        raise RuntimeError(f"the tests did not run (status {result.returncode}):\n{result.stdout}{result.stderr}")
    return failed[1]


def run_mutant(name: str, edits: tuple[Edit, ...], tests: tuple[str, ...], longest: float = LONGEST) -> Outcome:
    """Make the mutant, and see whether it is killed."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder).resolve()
        prepare(copy, edits)
        killed_by = run_tests(copy, tests, longest)
    return Outcome(name, killed_by, time.monotonic() - begun)


def tests_for(name: str) -> tuple[str, ...]:
    """What is run against the mutant of this name."""
    return TESTS_OF.get(name.partition(":")[0], TESTS)


def runs_of(names: list[str]) -> list[tuple[str, tuple[Edit, ...], tuple[str, ...]]]:
    """What is run for the mutants of these names: as what it is told, the edits, the tests."""
    runs = [(name, MUTANTS[name], tests_for(name)) for name in names]
    return runs + [(f"{name} (anyio)", MUTANTS[name], ANYIO_TESTS) for name in names if name in CORE]


def main(names: list[str]) -> int:
    """Run the mutants of these names (none: all of them), print the table, return the exit status."""
    unknown = [name for name in names if name not in MUTANTS]
    if unknown:
        print(f"no such mutant: {', '.join(unknown)}; there are: {', '.join(MUTANTS)}", file=sys.stderr)
        return 2
    runs = runs_of(names or list(MUTANTS))
    # What can't be made is told before the long work.
    for _, edits, _ in runs:
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            prepare(Path(folder), edits)
    # First the code as it is: a mutant is only killed by a test that passes without it.
    together = tuple(dict.fromkeys(chain(*(tests for _, _, tests in runs))))
    unharmed = run_mutant("(the code as it is)", (), together, LONGEST_UNHARMED)
    if unharmed.killed_by is not None:
        print(f"the tests fail without any mutant: {unharmed.killed_by}", file=sys.stderr)
        return 2
    survivors = 0
    width = max(len(told) for told, _, _ in runs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for outcome in pool.map(lambda run: run_mutant(*run), runs):
            survivors += outcome.killed_by is None
            verdict = "SURVIVED" if outcome.killed_by is None else f"killed by {outcome.killed_by}"
            print(f"{outcome.name:{width}}  {outcome.seconds:5.1f} s  {verdict}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
