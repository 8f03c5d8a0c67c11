"""What a spec asks for, from every place that it names: its own list, requirements files, a project, a lock file.

Requirements files are pip's (https://pip.pypa.io/en/stable/reference/requirements-file-format/), of which we take
requirements, ``-r``, ``-c`` and ``--hash``. Where packages come from is no matter of a requirements file here but of
pip's own configuration, so every other option is refused by name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bundler.packages.pipconfig import redact
from bundler.packages.projects import read_lock_file, read_project
from bundler.packages.resolver import Pin
from bundler.spec import Spec
from manifests.errors import IntegrityError, SpecError

_DEPTH: Final = 16  # of files that include each other
_HASH: Final = re.compile(r"\s--hash[= ](?:(?P<kind>[a-z0-9]+):(?P<digest>[0-9a-f]+)|(?P<bad>\S*))")
_OPTION: Final = re.compile(r"(--?[A-Za-z][A-Za-z-]*)[=\s]?(.*)")
_INCLUDES: Final = {"-r": "-r", "--requirement": "-r", "-c": "-c", "--constraint": "-c"}
_ELSEWHERE: Final = {
    "-e": "an editable install can't travel; name the folder as an [[app]] with source = 'project:FOLDER'",
    "--editable": "an editable install can't travel; name the folder as an [[app]] with source = 'project:FOLDER'",
    "--no-binary": "name the package in [packages] build-from-source",
}
_CONFIGURED: Final = (
    "indexes and how they are used belong into pip's own configuration: pip config set global.index-url"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that is asked for: PEP 508 requirements and constraints, in order and each once.

    ``hashes`` holds the sha256 digests that a file allows for ``NAME==VERSION``; other hash algorithms are left out.
    """

    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One requirement as a file has it, with its hashes."""

    text: str
    is_constraint: bool
    sha256: frozenset[str] = frozenset()


def collect_requirements(spec: Spec) -> Inputs:
    """Read everything that ``[packages]`` names.

    Raises:
        SpecError: A file is missing, or a line, an extra or a group can't be used; it names file and line.
        SourceError: uv can't read a ``uv.lock``.
    """
    packages = spec.packages
    lines = [_Line(text=text, is_constraint=False) for text in _own_requirements(spec)]
    for name in packages.files:
        lines += _read_file(spec.resolve_folder(name), is_constraint=False, above=())
    if packages.pyproject:
        project = read_project(spec.resolve_folder(packages.pyproject), packages.extras, packages.groups)
        lines += [_Line(text=text, is_constraint=False) for text in project]
    if packages.lock_file:
        path = spec.resolve_folder(packages.lock_file)
        text = read_lock_file(path, spec.target, packages.extras, packages.groups)
        lines += _parse_lines(text, path, is_constraint=False, above=())
    return Inputs(
        requirements=tuple(dict.fromkeys(line.text for line in lines if not line.is_constraint)),
        constraints=tuple(dict.fromkeys(line.text for line in lines if line.is_constraint)),
        hashes=_hashes(lines),
    )


def input_files(spec: Spec) -> tuple[Path, ...]:
    """Return every file that has a say in what is asked for: those of ``[packages]``, and those that they include.

    Raises:
        SpecError: One can't be read.
    """
    packages = spec.packages
    found: list[Path] = []
    pending = [spec.resolve_folder(name) for name in packages.files]
    while pending:
        path = pending.pop(0)
        if path not in found:
            found.append(path)
            pending += [path.parent / name for name in _included(read_text(path))]
    found += [spec.resolve_folder(name) for name in (packages.pyproject, packages.lock_file) if name]
    if packages.lock_file and found[-1].name == "uv.lock":
        found.append(found[-1].with_name("pyproject.toml"))
    return tuple(found)


def check_hashes(pins: Iterable[Pin], hashes: Mapping[str, frozenset[str]]) -> None:
    """Require that what was resolved is what the requirements files allow.

    Raises:
        IntegrityError: Names every package whose file has another digest.
    """
    bad = [
        f"{pin.name}=={pin.version}: {pin.filename} has sha256 {pin.sha256}, which no --hash allows"
        for pin in pins
        if (allowed := hashes.get(f"{canonicalize_name(pin.name)}=={pin.version}")) and pin.sha256 not in allowed
    ]
    if bad:
        hint = "update the hashes, or check which index the file came from: pip config list"
        raise IntegrityError("\n".join(bad), hint=hint)


def check_requirement(text: str, where: str) -> Requirement:
    """Return a requirement that names a version of an index.

    Raises:
        SpecError: It isn't one, or it is a url or a path; ``where`` is what the message begins with.
    """
    shown = redact(text)
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        if re.match(r"(?:[a-z+]+:|\.{0,2}/)", text):
            raise _direct(where, shown) from None
        reason = redact(str(error).splitlines()[0])
        hint = "a requirement is a name, with a version if you like: six, six==1.17.0, six>=1.16"
        raise SpecError(f"{where}: {shown!r} is not a requirement: {reason}", hint=hint) from None
    if requirement.url is not None:
        raise _direct(where, shown)
    return requirement


def _direct(where: str, shown: str) -> SpecError:
    return SpecError(f"{where}: {shown!r}: a direct url is not supported", hint="name a version of an index")


def _own_requirements(spec: Spec) -> Iterator[str]:
    for index, text in enumerate(spec.packages.requirements):
        check_requirement(text, f"{spec.path}: packages.requirements[{index}]")
        yield text


def _read_file(path: Path, *, is_constraint: bool, above: tuple[Path, ...]) -> Iterator[_Line]:
    if path in above or len(above) >= _DEPTH:
        raise SpecError(f"{above[-1]}: -r {path.name} leads back here, or through more than {_DEPTH} files")
    yield from _parse_lines(read_text(path), path, is_constraint=is_constraint, above=(*above, path))


def read_text(path: Path) -> str:
    """Return the text of a file that a spec names.

    Raises:
        SpecError: It can't be read, or isn't UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SpecError(f"{path}: {reason}", hint="paths start at the folder of the file that names them") from None


def _parse_lines(text: str, path: Path, *, is_constraint: bool, above: tuple[Path, ...]) -> Iterator[_Line]:
    for number, line in _logical_lines(text):
        where = f"{path}, line {number}"
        if line.startswith("-"):
            yield from _follow_option(line, where, path, is_constraint=is_constraint, above=above)
            continue
        bare, digests = _split_hashes(line, where)
        if bad := re.search(r"\s(--[a-z-]+)", bare):
            raise SpecError(f"{where}: {bad[1]} can't be used for a single requirement", hint="leave it out")
        check_requirement(bare, where)
        yield _Line(text=bare, is_constraint=is_constraint, sha256=digests)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number of the first line, and the text without comments and continuations."""
    pending, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        first = first or number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            pending += f"{line[:-1]} "
            continue
        found = re.sub(r"(^|\s)#.*$", "", pending + line).strip()
        if found:
            yield first, found
        pending, first = "", 0
    if pending.strip():
        yield first, pending.strip()


def _included(text: str) -> Iterator[str]:
    for _, line in _logical_lines(text):
        option, value = _split_option(line)
        if option in _INCLUDES and value and "://" not in value:
            yield value


def _split_option(line: str) -> tuple[str, str]:
    match = _OPTION.match(re.sub(r"^(-[rce])(?=[^\s=])", r"\1 ", line))
    return (match[1], match[2].strip()) if match else (line, "")


def _follow_option(
    line: str, where: str, path: Path, *, is_constraint: bool, above: tuple[Path, ...]
) -> Iterator[_Line]:
    option, value = _split_option(line)
    include = _INCLUDES.get(option)
    if include is None:
        raise SpecError(f"{where}: {option} can't be used here", hint=_ELSEWHERE.get(option, _CONFIGURED))
    if not value or "://" in value:
        raise SpecError(f"{where}: {option} needs the name of a file", hint="download it, and name the file")
    yield from _read_file(path.parent / value, is_constraint=is_constraint or include == "-c", above=above)


def _split_hashes(line: str, where: str) -> tuple[str, frozenset[str]]:
    found = list(_HASH.finditer(line))
    if bad := next((match for match in found if match["bad"] is not None), None):
        raise SpecError(f"{where}: --hash={bad['bad']} does not have the form --hash=sha256:HEX")
    digests = frozenset(match["digest"] for match in found if match["kind"] == "sha256")
    return _HASH.sub("", line).strip(), digests


def _hashes(lines: Sequence[_Line]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for line in lines:
        requirement = Requirement(line.text)
        exact = [item.version for item in requirement.specifier if item.operator in {"==", "==="}]
        if line.sha256 and len(exact) == 1:
            key = f"{canonicalize_name(requirement.name)}=={exact[0]}"
            found[key] = found.get(key, frozenset()) | line.sha256
    return found
