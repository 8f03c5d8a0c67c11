"""Requirements out of a ``pyproject.toml`` (PEP 621, PEP 735), a ``uv.lock`` and a ``pylock.toml`` (PEP 751)."""

import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.pylock import Package, Pylock, PylockSelectError, PylockValidationError, is_valid_pylock_path
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from bundler.packages.completeness import marker_environments
from bundler.packages.pipconfig import redact
from bundler.packages.wheeltags import wheel_tags
from bundler.process import run_program
from manifests.errors import SourceError, SpecError
from manifests.fields import nearest_hint
from manifests.manifest import Target


def read_project(path: Path, extras: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return the requirements of a project with some of its extras and dependency groups.

    Raises:
        SpecError: It can't be read, has no such extra or group, leaves its dependencies to its build backend, or takes
            one of them from elsewhere than an index.
    """
    data = _load_toml(path)
    project = _mapping(data.get("project", {}), f"{path}: project")
    if "dependencies" in _texts(project.get("dynamic", []), f"{path}: project.dynamic"):
        hint = "carry it as a built wheel: [[app]] source = 'project:FOLDER'"
        raise SpecError(f"{path}: project.dependencies is dynamic: only its build backend knows it", hint=hint)
    found = _texts(project.get("dependencies", []), f"{path}: project.dependencies")
    for extra in extras:
        found += _extra(path, project, extra, ())
    for group in groups:
        found += _group(path, _mapping(data.get("dependency-groups", {}), f"{path}: dependency-groups"), group, ())
    _check_each(path, data, found)
    return found


def read_lock_file(path: Path, target: Target, extras: Sequence[str], groups: Sequence[str]) -> str:
    """Return the content of a ``uv.lock`` or ``pylock.toml`` as lines of a requirements file with hashes.

    Raises:
        SpecError: It can't be read, or has something that comes from no index.
        SourceError: uv can't export it.
    """
    if path.name == "uv.lock":
        return _export(path, extras, groups)
    if not is_valid_pylock_path(path):
        msg = f"{path}: packages.lock-file is neither uv.lock nor pylock.toml or pylock.NAME.toml"
        raise SpecError(msg, hint="requirements files go into packages.files")
    try:
        lock = Pylock.from_dict(_load_toml(path))
        chosen = lock.select(
            environment=marker_environments(target)[0],  # type: ignore[arg-type] # a TypedDict that has all of these keys
            tags=wheel_tags(target),
            extras=extras,
            dependency_groups=groups,
            prefer_sdist_predicate=None,
        )
        return "".join(_pylock_line(path, package) for package, _ in chosen)
    except (PylockValidationError, PylockSelectError, InvalidRequirement) as error:
        raise SpecError(f"{path}: {error}") from None


def _pylock_line(path: Path, package: Package) -> str:
    if package.version is None or package.vcs or package.directory or package.archive:
        raise SpecError(f"{path}: {package.name} comes from no index, but from a repository, a folder or an archive")
    digests = {wheel.hashes["sha256"] for wheel in package.wheels or () if "sha256" in wheel.hashes}
    if package.sdist and "sha256" in package.sdist.hashes:
        digests.add(package.sdist.hashes["sha256"])
    hashes = "".join(f" --hash=sha256:{digest}" for digest in sorted(digests))
    return f"{package.name}=={package.version}{hashes}\n"


def _export(path: Path, extras: Sequence[str], groups: Sequence[str]) -> str:
    flags = [f"--extra={extra}" for extra in extras] + [f"--group={group}" for group in groups]
    with tempfile.TemporaryDirectory(prefix="sealift-") as cache:
        command = [
            *(find_uv_bin(), "export", "--frozen", "--offline", "--no-config", "--quiet", "--no-header"),
            *("--no-annotate", "--no-emit-project", "--no-default-groups", "--format", "requirements.txt"),
            *("--cache-dir", cache, "--no-python-downloads", *flags),
        ]
        done = run_program(command, cwd=path.parent)
    if done.status != 0:
        reason = " ".join(redact(done.errors).split()).removeprefix("error: ")[:500]
        raise SourceError(f"{path}: uv can't export it: {reason}", hint="it needs its pyproject.toml beside it")
    return done.output


def _extra(path: Path, project: Mapping[str, object], extra: str, above: tuple[str, ...]) -> list[str]:
    """Return the requirements of an extra; one that names the project itself stands for other extras of it."""
    where = f"{path}: project.optional-dependencies"
    table = {
        canonicalize_name(key): value
        for key, value in _mapping(project.get("optional-dependencies", {}), where).items()
    }
    name = canonicalize_name(extra)
    if name not in table:
        raise SpecError(f"{path}: the project has no extra {extra!r}", hint=nearest_hint(name, tuple(table)))
    if name in above:
        raise SpecError(f"{where}: {' -> '.join((*above, name))} is a circle")
    found: list[str] = []
    for text in _texts(table[name], f"{where}.{extra}"):
        requirement = _parse(path, text)
        if canonicalize_name(requirement.name) != canonicalize_name(str(project.get("name", ""))):
            found.append(text)
            continue
        for inner in sorted(requirement.extras):
            found += _extra(path, project, inner, (*above, name))
    return found


def _group(path: Path, table: Mapping[str, object], group: str, above: tuple[str, ...]) -> list[str]:
    groups = {canonicalize_name(key): value for key, value in table.items()}
    name = canonicalize_name(group)
    if name not in groups:
        raise SpecError(f"{path}: the project has no group {group!r}", hint=nearest_hint(name, tuple(groups)))
    if name in above:
        raise SpecError(f"{path}: dependency-groups: {' -> '.join((*above, name))} is a circle")
    items, found = groups[name], []
    if not isinstance(items, list):
        raise SpecError(f"{path}: dependency-groups.{group}: expected a list")
    for item in items:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping) and list(item) == ["include-group"]:
            found += _group(path, table, str(item["include-group"]), (*above, name))
        else:
            raise SpecError(f"{path}: dependency-groups.{group}: expected requirements and include-group alone")
    return found


def _check_each(path: Path, data: Mapping[str, object], requirements: Sequence[str]) -> None:
    tool = _mapping(_mapping(data.get("tool", {}), f"{path}: tool").get("uv", {}), f"{path}: tool.uv")
    sources = {canonicalize_name(name) for name in _mapping(tool.get("sources", {}), f"{path}: tool.uv.sources")}
    for text in requirements:
        requirement = _parse(path, text)
        where = f"{path}, line {_line_of(path, text)}"
        if requirement.url is not None:
            raise SpecError(
                f"{where}: {redact(text)!r}: a direct url is not supported", hint="name a version of an index"
            )
        if canonicalize_name(requirement.name) in sources:
            msg = f"{where}: tool.uv.sources takes {requirement.name} from elsewhere than the usual indexes"
            raise SpecError(
                msg, hint="an index goes into [[packages.index]], a folder into [[app]] source = 'project:'"
            )


def _parse(path: Path, text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        where = f"{path}, line {_line_of(path, text)}"
        raise SpecError(f"{where}: {redact(text)!r} is not a requirement: {str(error).splitlines()[0]}") from None


def _line_of(path: Path, text: str) -> int:
    """Return the first line that holds a text, since tomllib tells no lines; 1 where it is spelled otherwise."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return next((number for number, line in enumerate(lines, start=1) if text in line), 1)


def _load_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SpecError(f"{path}: {reason}", hint="paths start at the spec's folder") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: {error}") from None


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected a table")
    return value


def _texts(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SpecError(f"{where}: expected a list of texts")
    return list(value)
