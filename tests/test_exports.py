"""The facade: what it names is there, is explained, and costs no optional package."""

from __future__ import annotations

import ast
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import trio_mlxgate

NAMES = sorted(
    alias.asname
    for node in ast.parse(Path(trio_mlxgate.__file__).read_text()).body
    if isinstance(node, ast.ImportFrom) and node.module != "__future__"
    for alias in node.names
    if alias.asname is not None
)
METRICS = ("prometheus_client", "opentelemetry")
PUBLIC = {name: getattr(trio_mlxgate, name) for name in NAMES}


def test_the_facade_is_re_exports_and_nothing_else() -> None:
    doc, *statements = ast.parse(Path(trio_mlxgate.__file__).read_text()).body
    assert isinstance(doc, ast.Expr)
    for statement in statements:
        assert isinstance(statement, ast.ImportFrom), f"line {statement.lineno}"
        if statement.module != "__future__":
            for alias in statement.names:
                assert alias.name == alias.asname, f"line {statement.lineno}: write it as X as X"


def test_the_gate_and_its_errors_are_there() -> None:
    assert {"Gate", "Priority", "Slot", "GateStatistics", "GateRefused", "QueueFull", "WaitTooLong"} <= set(NAMES)
    assert {"acquire_mlx_gate", "get_mlx_gate", "current_mlx_gate", "gate_status"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_explained(name: str) -> None:
    thing = PUBLIC[name]
    if inspect.isclass(thing) or inspect.isroutine(thing):
        doc = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
        assert doc, f"{name} has no docstring of its own"
    else:
        assert explained_in_its_module(thing, name), f"no docstring stands under the constant {name}"


def explained_in_its_module(thing: object, name: str) -> bool:
    """A constant's docstring is the string that follows it in the module that makes it."""
    for module in [m for n, m in sys.modules.items() if n.startswith("trio_mlxgate.") and m.__file__]:
        assert module.__file__ is not None
        body = ast.parse(Path(module.__file__).read_text()).body
        for statement, after in itertools.pairwise(body):
            targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


PUBLIC_METHODS = [
    pytest.param(member, id=f"{name}.{attribute}")
    for name, thing in PUBLIC.items()
    if inspect.isclass(thing)
    for attribute, member in vars(thing).items()
    if not attribute.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
]


@pytest.mark.parametrize("member", PUBLIC_METHODS)
def test_every_public_method_is_explained(member: object) -> None:
    assert inspect.getdoc(member)


def coroutine_functions() -> list[object]:
    found: list[object] = []
    for name, thing in PUBLIC.items():
        if inspect.iscoroutinefunction(thing):
            found.append(pytest.param(thing, id=name))
        elif inspect.isclass(thing):
            found += [
                pytest.param(member, id=f"{name}.{attribute}")
                for attribute, member in vars(thing).items()
                if inspect.iscoroutinefunction(member)
                and (not attribute.startswith("_") or attribute in {"__aenter__", "__aexit__"})
            ]
    return found


@pytest.mark.parametrize("function", coroutine_functions())
def test_every_public_async_function_says_whether_it_is_a_checkpoint(function: object) -> None:
    assert "checkpoint" in (inspect.getdoc(function) or "").lower()


def test_there_are_async_functions_to_look_at() -> None:
    assert len(coroutine_functions()) >= 2


@pytest.mark.parametrize("package", ["rich", "httpx2", "openai", "hypothesis", "pytest", "httpx", *METRICS])
def test_importing_the_library_does_not_import(package: str) -> None:
    code = f"import sys, trio_mlxgate; sys.exit({package!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_helpers_for_tests_need_no_test_framework() -> None:
    # pytest itself may be loaded, by trio.testing; so it is made to be missing.
    code = (
        "import sys; missing = ['hypothesis', 'pytest', '_pytest', 'rich', 'httpx2', 'openai'];"
        "sys.modules.update(dict.fromkeys(missing)); import trio_mlxgate.testing;"
        "trio_mlxgate.testing.check_gate(trio_mlxgate.Gate, rounds=1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
