"""Each message that the product can raise stands in docs/troubleshooting.md, by its exit code, and nothing else does.

Messages are found on the syntax trees: the literal parts of what is given to an error class or to a ``fail``, and a
``…`` for each part that is filled in. A pattern of the page covers a message where its own literal parts come in it in
the same order, at its start where the pattern doesn't begin with ``...``.
"""

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from manifests import errors

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/troubleshooting.md"
CLASSES: Final[Mapping[str, int]] = {
    name: kind.exit_code
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.SealiftError)
}
FREE: Final = "…"
LEAST: Final = 6  # letters that a pattern has to have, so that none fits everything
HEADING: Final = re.compile(r"^## Messages with exit code ([0-9, and]+).*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place that can refuse: the message's shape, the exit codes that it may have, file and line."""

    shape: str
    codes: frozenset[int]
    where: str


def assigned_before(scope: ast.AST, line: int) -> dict[str, str]:
    """Return the shapes of the variables of a function as they are at a line: the last assignment above it counts."""
    found: dict[str, tuple[int, str]] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and node.lineno < line and isinstance(node.targets[0], ast.Name):
            name, before = node.targets[0].id, found.get(node.targets[0].id, (0, ""))
            found[name] = max(before, (node.lineno, shape_of(node.value, {})))
    return {name: shape for name, (_, shape) in found.items()}


def shape_of(node: ast.expr, known: Mapping[str, str]) -> str:
    """Return the literal parts of a message, a ``…`` for each part that only a run fills in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else FREE for part in node.values)  # type: ignore[misc] # parts of an f-string are texts
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return shape_of(node.left, known) + shape_of(node.right, known)
    if isinstance(node, ast.IfExp):
        return shape_of(node.body, known)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "list_problems" and node.args:
        return shape_of(node.args[0], known)
    return known.get(node.id, FREE) if isinstance(node, ast.Name) else FREE


def sites_of(path: Path) -> Iterator[Site]:
    """Yield every place in a module that makes an error with a message of its own."""
    for scope in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(scope):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if name not in {"fail", "error"} and name not in CLASSES:
                continue
            known = assigned_before(scope, node.lineno)
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if name in CLASSES:
                yield Site(shape=shape_of(node.args[0], known), codes=frozenset({CLASSES[name]}), where=where)
            elif name == "error" and isinstance(node.func, ast.Name):  # a class that a variable chooses
                every = frozenset(CLASSES.values())
                yield Site(shape=shape_of(node.args[0], known), codes=every, where=where)
            elif name == "fail" and len(node.args) > 1:
                # Fields gives them the class of the document that is read: a spec, a manifest, a model's settings.
                codes = frozenset({2, 5, 9})
                yield Site(shape=f"{FREE}: {shape_of(node.args[1], known)}", codes=codes, where=where)


@functools.cache
def all_sites() -> list[Site]:
    """Return every place of the product that can refuse."""
    paths = (path for top in ("manifests", "bundler", "runtime") for path in sorted((ROOT / top).rglob("*.py")))
    return [site for path in paths for site in sites_of(path)]


def says_something(shape: str) -> bool:
    """Whether a shape has words of its own; what has none passes on another message, which has a place of its own."""
    return len(re.findall(r"[A-Za-z]", shape)) >= LEAST


def covers(pattern: str, shape: str) -> bool:
    """Whether the literal parts of ``pattern`` come in ``shape`` in this order."""
    parts = [part for part in pattern.split("...") if part.strip()]
    at = 0
    for index, part in enumerate(parts):
        found = shape.find(part.strip(), at)
        if found < 0 or (index == 0 and not pattern.startswith("...") and found > 0):
            return False
        at = found + len(part.strip())
    return True


def entries() -> list[tuple[str, frozenset[int]]]:
    """Return every pattern of the page with the exit codes of its section."""
    text = PAGE.read_text(encoding="utf-8")
    headings = list(HEADING.finditer(text))
    found: list[tuple[str, frozenset[int]]] = []
    for heading in headings:
        section = text[heading.end() :].partition("\n## ")[0]
        codes = frozenset(int(number) for number in re.findall(r"\d+", heading[1]))
        for row in re.findall(r"^\| (.*?) \| .+ \|$", section, re.MULTILINE):
            found += [(pattern.replace("\\|", "|"), codes) for pattern in re.findall(r"`([^`]+)`", row)]
    return found


def test_every_message_has_an_entry() -> None:
    known = entries()
    missing = [
        f"{site.where}: exit code {min(site.codes)}: {site.shape}"
        for site in all_sites()
        if says_something(site.shape)
        and not any(site.codes & codes and covers(pattern, site.shape) for pattern, codes in known)
    ]
    assert missing == [], "give them a row in docs/troubleshooting.md:\n" + "\n".join(missing)


def test_every_entry_is_about_a_message() -> None:
    stale = [
        pattern
        for pattern, codes in entries()
        if not any(site.codes & codes and covers(pattern, site.shape) for site in all_sites())
    ]
    assert stale == [], "nothing says this any more"


def test_no_entry_fits_everything() -> None:
    assert [pattern for pattern, _ in entries() if not says_something(pattern)] == []


def test_the_messages_are_found_at_all() -> None:
    shapes = {site.shape for site in all_sites()}
    assert len(all_sites()) > 400
    assert "verify BUNDLE needs --trust ALLOWED_SIGNERS" in shapes
    assert f"{FREE}: is in use by a server" in shapes


@pytest.mark.parametrize(
    ("pattern", "shape", "fits"),
    [
        ("...: missing", "…: missing", True),
        ("...: missing", "…: there", False),
        ("uninstall asks", "uninstall asks before it removes anything", True),
        ("asks before", "uninstall asks before it removes anything", False),
        ("... expected ... got ...", "…: expected sha256 …, got …", True),
        ("... got ... expected ...", "…: expected sha256 …, got …", False),
    ],
)
def test_what_covers_what(pattern: str, shape: str, *, fits: bool) -> None:
    assert covers(pattern, shape) == fits
