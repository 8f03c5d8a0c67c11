"""The rules of the repository, checked on the syntax trees of all modules that are there."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
OURS: Final = ("manifests", "bundler", "runtime")
CHECKED: Final = (*OURS, "tests", "benchmarks")
STDLIB: Final = sys.stdlib_module_names
BUNDLER_MAY: Final = {"click", "cryptography", "cyclonedx", "httpx", "huggingface_hub", "jinja2", "packaging", "uv"}
CONVERTER_MAY: Final = {"safetensors", "torch", "transformers"}  # a script in a venv of its own: nothing of ours
MODULES: Final = sorted(path for top in CHECKED for path in (ROOT / top).rglob("*.py"))
PRODUCT: Final = [path for path in MODULES if path.relative_to(ROOT).parts[0] in OURS]
EDGES: Final = {"cli.py", "__main__.py"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES: Final = {name_of(path): path for path in MODULES}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports_of(path: Path, *, deferred: bool) -> Iterator[str]:
    """Yield absolute names of what a module imports; ``deferred`` adds imports inside functions."""
    pending: list[ast.AST] = [tree_of(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not deferred:
            continue
        elif not is_type_checking(node):
            pending.extend(ast.iter_child_nodes(node))


def is_runtime_core(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return parts[0] == "runtime" and parts[1] not in {"adapters", "server"}


def ids(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def allowed(path: Path, imported: str, *, deferred: bool) -> bool:
    """Whether the module at ``path`` may import ``imported``."""
    side, top = path.relative_to(ROOT).parts[0], imported.split(".", 1)[0]
    if top in STDLIB or top == "manifests":
        return True
    if side == "manifests":
        return False
    if side == "bundler":
        return top in (CONVERTER_MAY if "converter" in path.parts else {"bundler", *BUNDLER_MAY})
    if top == "bundler":
        return False
    if is_runtime_core(path) and not deferred:
        return top == "runtime" and not imported.startswith(("runtime.adapters", "runtime.server"))
    return top != "tests"


@pytest.mark.parametrize("path", PRODUCT, ids=ids(PRODUCT))
def test_imports_go_in_the_allowed_direction(path: Path) -> None:
    """The core of the runtime may reach adapters and servers only from inside a function, so that it starts bare."""
    at_start = set(imports_of(path, deferred=False))
    anywhere = set(imports_of(path, deferred=True))
    assert [name for name in sorted(at_start) if not allowed(path, name, deferred=False)] == []
    assert [name for name in sorted(anywhere) if not allowed(path, name, deferred=True)] == []


def test_the_rule_itself_can_fail() -> None:
    core, adapter = ROOT / "runtime" / "install.py", ROOT / "runtime" / "adapters" / "x.py"
    assert not allowed(ROOT / "manifests" / "x.py", "click", deferred=False)
    assert not allowed(ROOT / "manifests" / "x.py", "runtime.seal", deferred=True)
    assert not allowed(ROOT / "bundler" / "x.py", "runtime.seal", deferred=True)
    assert not allowed(core, "torch", deferred=False)
    assert not allowed(core, "runtime.server.app", deferred=False)
    assert not allowed(core, "bundler.spec", deferred=True)
    assert not allowed(adapter, "bundler.spec", deferred=True)
    assert allowed(core, "runtime.server.app", deferred=True)
    assert allowed(adapter, "torch", deferred=False)
    assert allowed(ROOT / "bundler" / "x.py", "click", deferred=False)


def side_effects(path: Path) -> Iterator[str]:
    """Yield what only a command line may do: print, read argv, exit, configure logging."""
    forbidden = {
        "sys.argv",
        "sys.exit",
        "os._exit",
        "logging.basicConfig",
        "logging.config",
        "sys.stdout",
        "sys.stderr",
    }
    for node in ast.walk(tree_of(path)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"print", "input", "exit"}
        ):
            yield f"line {node.lineno}: {node.func.id}()"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            names = {alias.name for alias in node.names} & {"argv", "exit", "stdout", "stderr"}
            yield from (f"line {node.lineno}: from sys import {name}" for name in sorted(names))


SILENT: Final = [path for path in PRODUCT if path.name not in EDGES and path.parent.name != "cli"]


@pytest.mark.parametrize("path", SILENT, ids=ids(SILENT))
def test_only_command_lines_print_read_argv_or_exit(path: Path) -> None:
    assert list(side_effects(path)) == []


def test_there_are_no_import_cycles() -> None:
    graph = {
        name_of(path): {name for name in imports_of(path, deferred=False) if name in NAMES} - {name_of(path)}
        for path in PRODUCT
    }
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}, "these import each other in a circle"


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_names_say_something(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_files_and_functions_fit(path: Path) -> None:
    """400 lines a file and 60 a function; a table of a test's cases may be longer, it isn't a function."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400 or path.name.startswith("test_"), f"{lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"line {node.lineno}: {node.name} has {length} lines"


DESCRIBED: Final = [path for path in MODULES if path in PRODUCT or path.name != "__init__.py"]


@pytest.mark.parametrize("path", DESCRIBED, ids=ids(DESCRIBED))
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "say in a sentence what it is for"


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES if path.relative_to(ROOT).parts[0] != "benchmarks"}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").exists()) == []


def test_templates_hold_no_python() -> None:
    found = [path.name for path in (ROOT / "templates").rglob("*.py") if path.name != "__init__.py"]
    assert found == []


SEAM: Final = ROOT / "manifests" / "files.py"
POSIX_ONLY: Final = frozenset(
    {
        *("O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC", "fcntl", "flock", "fchmod", "fchown", "dir_fd"),
        *("pread", "preadv", "pwrite", "pwritev", "posix_fadvise", "posix_fallocate", "symlink", "symlink_to"),
    }
)
CLOSED_SIDE: Final = [
    path for path in PRODUCT if path.relative_to(ROOT).parts[0] == "manifests" or is_runtime_core(path)
]


def posix_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", CLOSED_SIDE, ids=ids(CLOSED_SIDE))
def test_calls_that_only_posix_has_stand_in_one_module(path: Path) -> None:
    """So that another system needs another version of that module, and not a search through all of them."""
    found = sorted(POSIX_ONLY & set(posix_names(tree_of(path))))
    assert (path == SEAM) == bool(found), found
