"""The examples of the documentation run, as they stand there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_model import answer, build_tiny_model

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
if not EXAMPLES.exists():
    pytest.skip("the documentation is not here: these are the tests of an installed package", allow_module_level=True)

NEEDS = {
    "openai_client": "openai",
    "fastapi_app": "fastapi",
    "prometheus_metrics": "prometheus_client",
    "in_process_mlx": "mlx_lm",
}
"""What an example needs that may be missing."""


@pytest.mark.integration
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    arguments = [str(build_tiny_model(tmp_path))] if path.stem == "in_process_mlx" else []
    pytest_too = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if path.name.startswith("test_") else []
    done = subprocess.run(
        [sys.executable, "-W", "error", *pytest_too, str(path), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    if path.stem == "first_gate":
        assert done.stdout.splitlines()[1].startswith("after 0.")
    if path.stem == "in_process_mlx":
        said = done.stdout.splitlines()
        assert said[:3] == ["digest 1 begins", f"digest 1 ends: {answer(24)!r}", "person begins"]
        assert f"digest 3 was cancelled after 5 tokens: {answer(5)!r}" in said
        assert f"digest 2 ends: {answer(24)!r}" in said


def test_examples_are_shown_in_the_documentation() -> None:
    pages = "".join(page.read_text() for page in EXAMPLES.parent.rglob("*.md"))
    for path in EXAMPLES.glob("*.py"):
        assert f"examples/{path.name}" in pages
