"""A program in the style of the gate from which this one comes: with its old module of new names, and moved over."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from trio_mlxgate.anyio import acquire_mlx_gate, current_mlx_gate, gate_status

DOCS = Path(__file__).parent.parent.parent / "docs"
if not DOCS.exists():
    pytest.skip("the documentation is not here: these are the tests of an installed package", allow_module_level=True)

PAGE = DOCS / "migration_asyncio.md"
BLOCKS = [block.partition("```")[0] for block in PAGE.read_text().split("```python\n")[1:]]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_new_program(capsys: pytest.CaptureFixture[str]) -> None:
    module = load(DOCS / "examples" / "migrated_asyncio.py")
    for _ in range(2):  # with nothing to reset between the two
        asyncio.run(module.main())
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "{'inflight': 1, 'waiters': 9}"
        assert lines[2].startswith("person: WHO GOES FIRST? after 0.")
        assert sorted(lines[1:2] + lines[3:]) == [f"digest: PAGE {number}" for number in range(10)]


def test_the_old_program_runs_with_the_module_of_the_old_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, shim = BLOCKS
    module = types.ModuleType("mlx_gate")
    exec(shim, module.__dict__)
    monkeypatch.setitem(sys.modules, "mlx_gate", module)
    names: dict[str, Any] = {}
    exec(old, names)

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(3):
                tasks.create_task(names["digest"](f"page {number}"))
            await asyncio.sleep(0.02)
            assert names["gate_status"]() == {"inflight": 1, "waiters": 2}
            print(await names["chat"]("who goes first?"))

    asyncio.run(main())
    names["_reset_for_test"] = module._reset_for_test
    names["_reset_for_test"]()
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "WHO GOES FIRST?"
    assert len(said) == 4


def test_a_loop_that_ends_in_the_middle_leaves_nothing_for_the_next() -> None:
    gates: list[object] = []

    async def leave_it_held() -> None:
        gates.append(current_mlx_gate())
        await acquire_mlx_gate().__aenter__()
        waiting = asyncio.create_task(acquire_mlx_gate().__aenter__())
        await asyncio.sleep(0.01)
        assert gate_status() == {"inflight": 1, "waiters": 1}
        del waiting

    async def start_clean() -> None:
        assert gate_status() == {"inflight": 0, "waiters": 0}
        async with acquire_mlx_gate():
            assert gate_status() == {"inflight": 1, "waiters": 0}
        assert current_mlx_gate() is not gates[0]

    asyncio.run(leave_it_held())
    asyncio.run(start_clean())
    assert gate_status() == {"inflight": 0, "waiters": 0}
