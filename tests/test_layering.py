"""Reads the imports of every module: they flow downwards only, deciding knows no I/O, what is optional stays so."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

import attrs
import pytest

import trio_mlxgate

PACKAGE: Final = "trio_mlxgate"
ROOT: Final = Path(trio_mlxgate.__file__).parent

LAYERS: Final[dict[str, int]] = {
    "errors": 0,
    "priority": 0,
    "core": 1,
    "instrumentation": 2,
    "dialects": 2,
    "runtime": 2,
    "trio_runtime": 2,
    "asyncio_runtime": 2,
    "asyncio_threads": 2,
    "bridges": 2,
    "runs": 2,
    "parties": 2,
    "crossings": 2,
    "outposts": 2,
    "portal": 2,
    "parking_lot": 2,
    "call_sites": 2,
    "slots": 2,
    "loan": 2,
    "detached_slots": 2,
    "onlookers": 2,
    "progress": 2,
    "refusals": 2,
    "outer_deadline": 2,
    "ancestors": 2,
    "alarms": 2,
    "ends": 2,
    "threads": 2,
    "driver": 2,
    "base_gate": 2,
    "gate": 2,
    "anyio": 2,
    "mlx": 2,
    "options": 2,
    "endpoint_gates": 2,
    "_response_body": 2,
    "_gated_stream": 2,
    "_family": 2,
    "_rewrite": 2,
    "_fallback": 2,
    "_drain": 2,
    "_transport": 2,
    "httpx": 2,
    "httpx2": 2,
    "_echo_book": 3,
    "_echo_process": 3,
    "_echo_protocol": 3,
    "echo_server": 3,
    "backends": 3,
    "models": 3,
    "_config_values": 4,
    "config": 4,
    "testing": 5,
    "commands": 5,
    "__main__": 5,
}
"""The layer of each module and package right below trio_mlxgate; trio_mlxgate/__init__.py shows the same."""

DECIDING_MUST_NOT_KNOW: Final = {
    *("trio", "anyio", "asyncio", "sniffio", "outcome", "httpx", "httpx2", "httpcore", "h11"),
    *("time", "datetime", "random", "secrets", "os", "pathlib", "io", "socket", "ssl", "select", "selectors"),
    *("logging", "threading", "subprocess", "signal", "contextvars", "concurrent", "multiprocessing"),
}

REQUIRED: Final = {"trio", "attrs", "outcome", "anyio", "httpx", "h11", "idna"}
"""The dependencies that are always there."""

OPTIONAL: Final = {
    "rich": "cli",
    "httpx2": "httpx2",
    "prometheus_client": "prometheus",
    "opentelemetry": "otel",
    "uvloop": "uvloop",
}
"""What may be missing, and the extra that brings it."""

# By file: the same folder may hold modules of other worlds (commands/ has one file a command).
FILES: Final = sorted(ROOT.rglob("*.py"))


@attrs.frozen
class Import:
    """One name that a module imports: ``from trio_mlxgate.core import admission`` is trio_mlxgate.core.admission."""

    module: str
    line: int
    in_function: bool
    for_types: bool
    """Whether it is under ``if TYPE_CHECKING``, and so never runs."""

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def dotted(path: Path) -> str:
    parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    path = ROOT.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports_of(path: Path) -> list[Import]:
    found: list[Import] = []

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> None:
        match node:
            case ast.Import():
                found.extend(Import(alias.name, node.lineno, in_function, for_types) for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
                base = node.module or ""
                for alias in node.names:
                    deeper = f"{base}.{alias.name}"
                    inside = base.partition(".")[0] == PACKAGE and exists(deeper)
                    found.append(Import(deeper if inside else base, node.lineno, in_function, for_types))
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for statement in node.body:
                    walk(statement, in_function, True)
                for statement in node.orelse:
                    walk(statement, in_function, for_types)
            case _:
                inner = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for child in ast.iter_child_nodes(node):
                    walk(child, inner, for_types)

    walk(ast.parse(path.read_text()), False, False)
    return found


def part(module: str) -> str:
    """The name right below the package: "core" of trio_mlxgate.core.admission; "" of the package itself."""
    return [*module.split("."), ""][1]


def layer(module: str) -> int:
    name = part(module)
    if name not in LAYERS:
        pytest.fail(f"{PACKAGE}.{name} has no layer: say its layer here, in LAYERS, and in {PACKAGE}/__init__.py")
    return LAYERS[name]


def ids(path: Path) -> str:
    return dotted(path)


MODULES = pytest.mark.parametrize("path", FILES, ids=ids)


@MODULES
def test_imports_flow_downwards_only(path: Path) -> None:
    module = dotted(path)
    if module == PACKAGE:
        return  # the facade stands above all but the testing helpers and commands; see below
    for imported in imports_of(path):
        if imported.top != PACKAGE:
            continue
        where = f"{module}, line {imported.line}"
        assert part(imported.module), f"{where}: a module of the package imports the facade; import from where it is"
        assert layer(imported.module) <= layer(module), f"{where}: {imported.module} is above"


@MODULES
def test_the_layers_that_run_do_not_import_each_other_in_a_circle(path: Path) -> None:
    """Within a layer too: what is imported when a module is loaded never leads back to it."""
    start = dotted(path)
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        file = ROOT.parent.joinpath(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        for imported in imports_of(file):
            if imported.top == PACKAGE and not imported.for_types and not imported.in_function:
                # A package that imports its own parts is what packages are for.
                if imported.module == start and not module.startswith(f"{start}.") and module != start:
                    pytest.fail(f"{start} is imported again by {module}, which it leads to")
                if imported.module not in seen:
                    seen.add(imported.module)
                    todo.append(imported.module)


@pytest.mark.parametrize("path", sorted((ROOT / "core").rglob("*.py")), ids=ids)
def test_deciding_knows_no_clock_and_no_io(path: Path) -> None:
    for imported in imports_of(path):
        assert imported.top not in DECIDING_MUST_NOT_KNOW, f"{dotted(path)}, line {imported.line}: {imported.module}"


NEUTRAL: Final = {
    *(
        "runtime",
        "call_sites",
        "slots",
        "loan",
        "detached_slots",
        "onlookers",
        "progress",
        "outer_deadline",
        "ancestors",
    ),
    *("alarms", "ends", "threads", "refusals", "driver", "base_gate", "options", "endpoint_gates", "_response_body"),
    *("_gated_stream", "_family", "_rewrite", "_drain", "_transport"),
}
"""What both drivers share: it knows no event loop. Of trio's it may use what does nothing elsewhere."""

HARMLESS: Final = {"enable_ki_protection", "Abort"}


@pytest.mark.parametrize("path", [ROOT / f"{name}.py" for name in sorted(NEUTRAL)], ids=ids)
def test_what_both_drivers_share_knows_no_event_loop(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{dotted(path)}, line {getattr(node, 'lineno', 0)}"
        match node:
            case ast.Import():
                for alias in node.names:
                    assert alias.name.partition(".")[0] not in {"trio", "asyncio"}, f"{where}: {alias.name}"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in {"trio", "asyncio"}:
                names = {alias.name for alias in node.names}
                assert names <= HARMLESS, f"{where}: {module} has {names - HARMLESS}; let a Runtime do it"
            case _:
                pass


def test_the_two_gates_do_not_know_each_other() -> None:
    for one, other in (("gate", "anyio"), ("anyio", "gate")):
        for imported in imports_of(ROOT / f"{one}.py"):
            assert imported.module != f"{PACKAGE}.{other}", f"{one}.py, line {imported.line}"


def test_the_facade_imports_nothing_above_the_gate() -> None:
    for imported in imports_of(ROOT / "__init__.py"):
        if imported.top == PACKAGE:
            assert layer(imported.module) <= 2, f"line {imported.line}: {imported.module}"


@MODULES
def test_the_testing_helpers_are_imported_by_commands_alone(path: Path) -> None:
    module = dotted(path)
    for imported in imports_of(path):
        if imported.top == PACKAGE and part(imported.module) == "testing":
            assert part(module) in {"testing", "commands"}, f"{module}, line {imported.line}"


@MODULES
def test_only_known_packages_are_imported(path: Path) -> None:
    known = REQUIRED | set(OPTIONAL) | {PACKAGE, "attr"} | set(sys.stdlib_module_names)
    for imported in imports_of(path):
        assert imported.top in known, f"{dotted(path)}, line {imported.line}: {imported.module} is no dependency"


@pytest.mark.parametrize("package", OPTIONAL)
def test_an_optional_package_is_imported_in_one_module_that_names_its_extra(package: str) -> None:
    users = [
        path
        for path in FILES
        if any(imported.top == package and not imported.for_types for imported in imports_of(path))
    ]
    assert len(users) <= 1, f"{package} is imported in {', '.join(map(dotted, users))}: let it be one"
    for path in users:
        assert extra_named_on_import_error(ast.parse(path.read_text()), package) == OPTIONAL[package], (
            f"{dotted(path)}: where {package} is missing, raise an ImportError that says "
            f"pip install 'trio-mlxgate[{OPTIONAL[package]}]'"
        )


def extra_named_on_import_error(tree: ast.AST, package: str) -> str | None:
    """The extra that is named by what is raised when the import of ``package`` in a ``try`` fails."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Try):
            continue
        tried = {
            name.partition(".")[0]
            for statement in node.body
            for name in (
                [alias.name for alias in statement.names]
                if isinstance(statement, ast.Import)
                else [statement.module or ""]
                if isinstance(statement, ast.ImportFrom)
                else []
            )
        }
        if package not in tried:
            continue
        for handler in node.handlers:
            said = " ".join(
                str(constant.value)
                for constant in ast.walk(handler)
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
            )
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(handler))
            if raises and "trio-mlxgate[" in said:
                return said.partition("trio-mlxgate[")[2].partition("]")[0]
    return None


# ---- state ----

_VARIABLES: Final = {"RunVar", "ContextVar", "TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "Protocol"}
_IMMUTABLE_CALLS: Final = {"compile", "frozenset", "tuple", "MappingProxyType", "getLogger"}


@MODULES
def test_no_module_holds_state(path: Path) -> None:
    """What stands at module level is a constant, or a variable of a run or a context. Nothing says ``global``."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"{dotted(path)}, line {node.lineno}: global state"
    for statement in at_module_level(tree.body):
        where = f"{dotted(path)}, line {statement.lineno}"
        match statement:
            case ast.AnnAssign(annotation=annotation):
                text = ast.unparse(annotation)
                final = text.startswith("Final") or text == "TypeAlias"
                assert final, f"{where}: a name at module level is Final (or a RunVar or ContextVar)"
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                pass  # a list, as the language has it
            case ast.Assign(value=value):
                assert immutable(value), f"{where}: a mutable object at module level: {ast.unparse(statement)}"
            case ast.AugAssign():
                pytest.fail(f"{where}: a name at module level changes")
            case _:
                pass


def at_module_level(body: list[ast.stmt]) -> list[ast.stmt]:
    found: list[ast.stmt] = []
    for statement in body:
        match statement:
            case ast.If(body=inner, orelse=other):
                found += at_module_level(inner) + at_module_level(other)
            case ast.Try(body=inner, orelse=other, handlers=handlers):
                found += at_module_level(inner) + at_module_level(other)
                for handler in handlers:
                    found += at_module_level(handler.body)
            case _:
                found.append(statement)
    return found


def immutable(value: ast.expr) -> bool:
    """Whether an expression can only give something that never changes, as far as its text tells."""
    match value:
        case ast.Constant() | ast.Name() | ast.Attribute() | ast.JoinedStr() | ast.Subscript():
            return True  # a name stands for something made elsewhere; a subscript at module level is a type
        case ast.Tuple(elts=elements):
            return all(map(immutable, elements))
        case ast.BinOp(left=left, right=right):
            return immutable(left) and immutable(right)
        case ast.UnaryOp(operand=operand):
            return immutable(operand)
        case ast.Call(func=function):
            name = ast.unparse(function).rpartition(".")[2].partition("[")[0]
            return name in _VARIABLES | _IMMUTABLE_CALLS
        case _:
            return False


# ---- the rules can fail ----


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("x = 1", True),
        ("x = (1, 'a')", True),
        ("x = []", False),
        ("x = {}", False),
        ("x = dict()", False),
        ("x = ([],)", False),
        ("x = re.compile('a')", True),
        ("x = trio.lowlevel.RunVar('x')", True),
        ("x = Gate(1)", False),
        ("x = int | str", True),
    ],
)
def test_what_is_taken_for_state(text: str, allowed: bool) -> None:
    (statement,) = ast.parse(text).body
    assert isinstance(statement, ast.Assign)
    assert immutable(statement.value) == allowed


def test_the_import_reader_sees_every_form(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import a.b, c\n"
        "from trio_mlxgate import gate, Gate\n"
        "from trio_mlxgate.core.admission import Admission\n"
        "if TYPE_CHECKING:\n    import d\n"
        "def f():\n    import e\n"
        "try:\n    import rich\nexcept ImportError as m:\n    raise ImportError(\"pip install 'trio-mlxgate[cli]'\")\n"
    )
    assert imports_of(file) == [
        Import("a.b", 1, False, False),
        Import("c", 1, False, False),
        Import("trio_mlxgate.gate", 2, False, False),
        Import("trio_mlxgate", 2, False, False),
        Import("trio_mlxgate.core.admission", 3, False, False),
        Import("d", 5, False, True),
        Import("e", 7, True, False),
        Import("rich", 9, False, False),
    ]
    assert extra_named_on_import_error(ast.parse(file.read_text()), "rich") == "cli"
    assert extra_named_on_import_error(ast.parse("import rich"), "rich") is None
