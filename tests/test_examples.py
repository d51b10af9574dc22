"""The examples of the documentation run, as they stand there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
if not EXAMPLES.exists():
    pytest.skip("the documentation is not here: these are the tests of an installed package", allow_module_level=True)

NEEDS = {"openai_client": "openai", "prometheus_metrics": "prometheus_client"}
"""What an example needs that may be missing."""


@pytest.mark.integration
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    pytest_too = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if path.name.startswith("test_") else []
    done = subprocess.run(
        [sys.executable, "-W", "error", *pytest_too, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    if path.stem == "first_gate":
        assert done.stdout.splitlines()[1].startswith("after 0.")


def test_examples_are_shown_in_the_documentation() -> None:
    pages = "".join(page.read_text() for page in EXAMPLES.parent.rglob("*.md"))
    for path in EXAMPLES.glob("*.py"):
        assert f"examples/{path.name}" in pages
