"""Breaks the gate in known ways, one at a time, and shows that the state machines notice: ``python -m tests.mutants``.

Each mutant is an edit of the package's text in a copy of it; the tests run there, with the copy as what is imported.
``python -m tests.mutants NAME ...`` runs the mutants of those names alone. The exit status is 1 if one survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).resolve().parent.parent
MACHINES: Final = ("tests/core/test_admission_machine.py", "tests/test_gate_machine.py")
EXAMPLES: Final = "500"


@attrs.frozen
class Edit:
    """In ``file``, the one place that ``pattern`` matches becomes ``replacement``, both as :mod:`re` has them."""

    file: str
    pattern: str
    replacement: str

    def apply(self, package: Path) -> None:
        """Do it. Raises LookupError if there isn't exactly one such place: then the code has moved on."""
        path = package / self.file
        text, count = re.subn(self.pattern, self.replacement, path.read_text(), flags=re.MULTILINE)
        if count != 1:
            raise LookupError(f"{self.file}: {count} places match {self.pattern!r}; adapt the mutant")
        path.write_text(text)


def _in_method(name: str, before: str) -> str:
    """A pattern for ``before`` (a pattern itself) in the method ``name``, after anything else of that method."""
    # The tempered dot stops at the next method, so that a pattern can't run into another one.
    return rf"(^    (?:async )?def {name}\((?:(?!^    (?:async )?def )[\s\S])*?)({before})"


MUTANTS: Final[dict[str, tuple[Edit, ...]]] = {
    "no wake on raise": (
        Edit("core/admission.py", _in_method("set_capacity", r"return self\._settle\(now\)"), r"\1return []"),
    ),
    "raise by delta": (
        Edit(
            "core/admission.py",
            _in_method("set_capacity", r"^ +self\.capacity = capacity\n +return self\._settle\(now\)"),
            r"\1        more, self.capacity = capacity - self.capacity, capacity\n"
            r"        granted: list[T] = []\n"
            r"        while more > 0 and self._line.length:\n"
            r"            more -= 1\n"
            r"            ticket = self._line.take_first()\n"
            r"            self._forget_wait(ticket)\n"
            r"            self.in_flight += 1\n"
            r"            self._admitted += 1\n"
            r"            ticket.state = GRANTED\n"
            r"            ticket.granted_at = now\n"
            r"            if ticket.hold_timeout < math.inf:\n"
            r"                self.set_deadline(ticket, now + ticket.hold_timeout)\n"
            r"            granted.append(ticket)\n"
            r"        return granted",
        ),
    ),
    "handover ignores a lowered capacity": (
        # What release frees goes to the next waiter, whether or not the capacity still allows it.
        Edit(
            "core/admission.py",
            _in_method("release", r"^ +return self\._settle\(now\)[^\n]*"),
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
            _in_method("_acquire", r"^( +)await wait_task_rescheduled\(self\._abort\)"),
            r"\1\2\n\3await checkpoint()",
        ),
    ),
    "a checkpoint inside release": (
        Edit(
            "slots.py",
            r"(async def __aexit__\([\s\S]*?\"\"\"[\s\S]*?\"\"\"\n)",
            r"\1        with trio.CancelScope(shield=True):\n            await checkpoint()\n",
        ),
    ),
    "LIFO in class": (Edit("core/ordering.py", _in_method("take_first", r"last=False"), r"\1last=True"),),
    "class order inverted": (Edit("core/ordering.py", r"\.push\(priority, priority\)", ".push(priority, -priority)"),),
    "abort without settling": (
        Edit("core/admission.py", _in_method("cancel", r"return self\._settle\(now\)"), r"\1return []"),
    ),
    "abort leaves the dead entry in the queue": (
        Edit("slots.py", _in_method("_abort", r"^ +gate\._wake\(.*\)\n"), r"\1"),
    ),
}
"""Every mutant by name, with its edits."""


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


def run_tests(folder: Path) -> str | None:
    """Run the state machines in ``folder`` and return the first test that failed there, or None.

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
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *MACHINES],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        return None
    failed = re.search(r"^FAILED (\S+)", result.stdout, flags=re.MULTILINE)
    if result.returncode != 1 or failed is None:
        raise RuntimeError(f"the tests did not run:\n{result.stdout}{result.stderr}")
    return failed[1]


def run_mutant(name: str, edits: tuple[Edit, ...]) -> Outcome:
    """Make the mutant, and see whether it is killed."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder).resolve()
        prepare(copy, edits)
        killed_by = run_tests(copy)
    return Outcome(name, killed_by, time.monotonic() - begun)


def main(names: list[str]) -> int:
    """Run the mutants of these names (none: all of them), print the table, return the exit status."""
    unknown = [name for name in names if name not in MUTANTS]
    if unknown:
        print(f"no such mutant: {', '.join(unknown)}; there are: {', '.join(MUTANTS)}", file=sys.stderr)
        return 2
    # First the code as it is: a mutant is only killed by a test that passes without it.
    unharmed = run_mutant("(the code as it is)", ())
    if unharmed.killed_by is not None:
        print(f"the tests fail without any mutant: {unharmed.killed_by}", file=sys.stderr)
        return 2
    survivors = 0
    width = max(map(len, MUTANTS))
    for name in names or MUTANTS:
        outcome = run_mutant(name, MUTANTS[name])
        survivors += outcome.killed_by is None
        verdict = "SURVIVED" if outcome.killed_by is None else f"killed by {outcome.killed_by}"
        print(f"{name:{width}}  {outcome.seconds:5.1f} s  {verdict}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
