"""Which modules a rehearsal imports: every top-level module of the requirements that a spec lists, read from wheels."""

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from bundler.lock import LockedFile
from bundler.spec import Spec
from bundler.store import Store
from manifests.errors import IntegrityError
from manifests.rehearsal import MODULE_PATTERN, RehearsalPlan

# Names that wheels leave at the top by mistake or for people: importing them proves nothing.
_NEVER: Final = frozenset(
    {"benchmark", "benchmarks", "doc", "docs", "example", "examples", "scripts", "test", "testing", "tests", "tools"}
)
_SUFFIXES: Final = re.compile(r"(?:\.py|(?:\.[A-Za-z0-9_-]+)?\.(?:so|pyd))$", re.ASCII)
SPEC_IMPORTS: Final = "spec"
"""Whose modules those of ``[rehearsal] imports`` are."""


def plan_rehearsal(spec: Spec, roots: Iterable[str], wheels: Iterable[LockedFile], store: Store) -> RehearsalPlan:
    """Return what a rehearsal of a spec imports, and what of the network it excuses.

    Args:
        spec: Its ``[rehearsal]`` adds to it and leaves out.
        roots: The requirements that the spec lists; those that the target has no wheel for are left out.
        wheels: The locked ones.
        store: Holds them.

    Raises:
        IntegrityError: A wheel can't be read.
        SourceError: It isn't in the store.
    """
    locked = {_distribution(file): file for file in wheels}
    skipped = set(spec.rehearsal.skip_imports)
    imports: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(canonicalize_name(Requirement(text).name) for text in roots):
        if name in locked and name not in {canonicalize_name(item) for item in skipped}:
            found = tuple(module for module in top_modules(locked[name], store) if module not in skipped)
            imports |= {name: found} if found else {}
    own = tuple(dict.fromkeys(spec.rehearsal.imports))
    imports |= {SPEC_IMPORTS: own} if own else {}
    return RehearsalPlan(imports=imports, allowed=spec.rehearsal.allowed)


def top_modules(wheel: LockedFile, store: Store) -> tuple[str, ...]:
    """Return the public top-level modules of a wheel, sorted, as its files say.

    Folders without ``__init__`` are parts of a namespace that other wheels share, so the packages right below them are
    returned instead.

    Raises:
        IntegrityError: It is no zip.
        SourceError: It isn't in the store.
    """
    store.open(wheel.sha256).close()
    try:
        with zipfile.ZipFile(store.path(wheel.sha256)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise IntegrityError(f"{wheel.path}: not a readable zip: {error}", hint="bundler lock SPEC") from None
    return tuple(sorted(_tops(module for module in _modules(names) if _is_public(module))))


def _modules(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        parts = PurePosixPath(name).parts
        if parts and parts[0].endswith(".data"):
            parts = parts[2:] if parts[1:2] in {("purelib",), ("platlib",)} else ()
        if not parts or parts[0].endswith((".dist-info", ".egg-info", ".libs")) or name.endswith("/"):
            continue
        stem = _SUFFIXES.sub("", parts[-1])
        if stem == parts[-1]:
            continue
        if len(parts) == 1:
            yield stem
        elif stem == "__init__" and len(parts) in {2, 3}:
            yield ".".join(parts[:-1])


def _is_public(module: str) -> bool:
    names = module.split(".")
    return re.fullmatch(MODULE_PATTERN, module, re.ASCII) is not None and not any(
        name.startswith("_") or name in _NEVER for name in names
    )


def _tops(modules: Iterable[str]) -> Iterator[str]:
    """Leave out what lies below a module that is there itself."""
    found = set(modules)
    return (module for module in found if module.partition(".")[0] == module or module.partition(".")[0] not in found)


def _distribution(file: LockedFile) -> str:
    name, _, _, _ = parse_wheel_filename(file.path.rsplit("/", 1)[-1])
    return str(canonicalize_name(name))
