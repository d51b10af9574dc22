"""What the project says of itself holds: the table of dependencies, the README's commands, the change log."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "docs").exists():
    pytest.skip("the project is not here: these are the tests of an installed package", allow_module_level=True)


def test_every_dependency_has_its_reason_and_every_reason_its_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {"always": project["dependencies"]} | {
        f"extra `{extra}`": names for extra, names in project["optional-dependencies"].items() if extra != "all"
    }
    expected = {
        (where, re.split(r"[\[>=]", requirement)[0])
        for where, requirements in required.items()
        for requirement in requirements
        if not requirement.startswith("trio-mlxgate")
    }
    page = (ROOT / "docs/dependencies.md").read_text()
    table = re.findall(r"^\| ([a-z][^|]*) \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)
    told = {(where, name) for names, where in table for name in names.split(", ") if names != "package"}
    assert told == expected


def test_the_readme_has_two_commands_and_ci_runs_them() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    assert "trio-mlxgate herd" in commands[0]
    assert "-m pytest" in commands[1]
    ci = (ROOT / ".ci/run").read_text()
    assert "readme_command 1" in ci
    assert "readme_command 2" in ci


def test_only_what_belongs_at_the_top_is_there() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    assert {file.split("/")[0] for file in files} == {
        *(".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
        *("docs", "pyproject.toml", "tests", "trio_mlxgate"),
    }
