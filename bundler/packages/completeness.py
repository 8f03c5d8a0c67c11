"""Whether a set of wheels is complete for its target: a proof over their METADATA that needs no resolver and no target.

Every requirement of every wheel, the extras that are asked for included, is met by exactly one wheel; so are the roots
(the spec's own requirements, and what serving needs); and every wheel accepts the target's Python. Markers are
evaluated for the target (https://packaging.python.org/en/latest/specifications/dependency-specifiers/). Unless the
bundle carries its interpreter, nobody knows which patch release of Python the host has, so they are evaluated at the
first and the last conceivable one, X.Y.0 and X.Y.99: what either of them needs must be there. What only the host knows,
such as its kernel's release, is empty.
"""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Final, TypeAlias

from packaging.markers import Marker, UndefinedComparison
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from bundler.lock import Lock
from bundler.store import Store
from manifests.canonical import Json
from manifests.errors import IntegrityError, SourceError
from manifests.manifest import Target

_RECORD_KIND: Final = "wheel-metadata-1"
_SYSTEMS: Final = {
    "manylinux": {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"},
    "apple": {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin"},
    "pc": {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows"},
}
_MACHINES: Final = {"apple": {"aarch64": "arm64"}, "pc": {"x86_64": "AMD64", "aarch64": "ARM64"}}
_PATCHES: Final = (0, 99)
_SHOWN: Final = 20  # problems in one message
_Environment: TypeAlias = Mapping[str, str]
ROOT: Final = "the spec"
"""Who asks for the roots, in messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelMetadata:
    """What a wheel's METADATA says that bears on a closure; ``name`` is canonical, ``requires`` as written."""

    filename: str
    name: str
    version: Version
    requires: tuple[str, ...] = ()
    requires_python: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """One requirement, and who has it."""

    by: str
    requirement: Requirement

    @property
    def name(self) -> str:
        return str(canonicalize_name(self.requirement.name))


def read_wheel_metadata(store: Store, sha256: str, filename: str) -> WheelMetadata:
    """Return the metadata of a wheel in the store; what was read once is recorded.

    Raises:
        SourceError: It isn't in the store.
        IntegrityError: It has no METADATA that can be read.
    """
    key = f"{sha256} {filename}"
    record = store.record(_RECORD_KIND, key)
    if record is None:
        store.open(sha256).close()
        record = _metadata_record(store.path(sha256), filename)
        store.write_record(_RECORD_KIND, key, record)
    name, version, _, _ = parse_wheel_filename(filename)
    python, *requires = record if isinstance(record, list) else [""]
    return WheelMetadata(
        filename=filename,
        name=str(name),
        version=version,
        requires=tuple(map(str, requires)),
        requires_python=str(python),
    )


def parse_wheel_metadata(data: bytes, filename: str) -> WheelMetadata:
    """Return what METADATA says; name and version are the file name's; :mod:`~bundler.packages.wheelcheck` compares."""
    headers = BytesHeaderParser().parsebytes(data)
    name, version, _, _ = parse_wheel_filename(filename)
    return WheelMetadata(
        filename=filename,
        name=str(name),
        version=version,
        requires=tuple(" ".join(str(item).split()) for item in headers.get_all("Requires-Dist", ())),
        requires_python=str(headers.get("Requires-Python") or "").strip(),
    )


def _metadata_record(path: Path, filename: str) -> Json:
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            found = parse_wheel_metadata(archive.read(inner), filename)
    except (OSError, zipfile.BadZipFile, StopIteration, KeyError) as error:
        hint = "bundler lock SPEC fetches it again"
        raise IntegrityError(f"{filename}: has no METADATA that can be read: {error}", hint=hint) from None
    return [found.requires_python, *found.requires]


def check_complete(
    wheels: Iterable[WheelMetadata], roots: Sequence[str], target: Target, python: str | None = None
) -> None:
    """Require that a set of wheels is complete for a target.

    Args:
        wheels: All wheels of the environment.
        roots: PEP 508; what the environment is for.
        target: Whose markers and Python count.
        python: The exact version of the interpreter that is carried, such as ``3.11.9``; None for the host's own.

    Raises:
        SourceError: It isn't; every problem is named: who requires what, what was found, and how to add it.
    """
    found = tuple(wheels)
    problems = list(dict.fromkeys(_problems(found, roots, marker_environments(target, python))))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        text = "\n".join(f"  {line}" for line in [*problems[:_SHOWN], *more])
        hint = "name what is missing in [packages] requirements, then: bundler lock SPEC --upgrade"
        raise SourceError(f"the wheels for {target.label} are not complete:\n{text}", hint=hint)


def unneeded(
    wheels: Iterable[WheelMetadata], roots: Sequence[str], target: Target, python: str | None = None
) -> tuple[str, ...]:
    """Return the names of the wheels that neither the roots nor what they lead to ask for; that is no error."""
    found = tuple(wheels)
    reached = {need.name for need in _needs(found, roots, marker_environments(target, python), everything=False)}
    return tuple(sorted({wheel.name for wheel in found} - reached))


def _problems(
    wheels: tuple[WheelMetadata, ...], roots: Sequence[str], environments: Sequence[_Environment]
) -> Iterator[str]:
    there = _by_name(wheels)
    for name, same in sorted(there.items()):
        if len(same) > 1:
            yield f"{name}: {len(same)} wheels, expected 1: {', '.join(wheel.filename for wheel in same)}"
    for wheel in wheels:
        if not _accepts_python(wheel, environments):
            python = environments[0]["python_version"]
            yield f"{wheel.name} {wheel.version} requires Python {wheel.requires_python}, the target has {python}"
        yield from _unreadable(wheel)
    for need in _needs(wheels, roots, environments, everything=True):
        requirement = _plain(need.requirement)
        if need.name not in there:
            yield f"{need.by} requires {requirement}: there is no wheel of {need.name}; add {requirement!r}"
            continue
        for wheel in there[need.name]:
            if not need.requirement.specifier.contains(wheel.version, prereleases=True):
                yield f"{need.by} requires {requirement}: there is {wheel.name} {wheel.version}; add {requirement!r}"


def _needs(
    wheels: tuple[WheelMetadata, ...], roots: Sequence[str], environments: Sequence[_Environment], *, everything: bool
) -> Iterator[_Need]:
    """Yield every requirement that holds on the target, breadth first.

    ``everything`` starts from the wheels too, which finds what a wheel lacks that nobody asks for.
    """
    there = _by_name(wheels)
    pending = [_Need(by=ROOT, requirement=item) for item in _applying(roots, "", environments)]
    if everything:
        pending += [need for wheel in wheels for need in _wheel_needs(wheel, "", environments)]
    seen: set[tuple[str, str]] = {(wheel.filename, "") for wheel in wheels} if everything else set()
    while pending:
        need = pending.pop(0)
        yield need
        for wheel in there.get(need.name, ()):
            for extra in ("", *sorted(need.requirement.extras)):
                key = (wheel.filename, str(canonicalize_name(extra)) if extra else "")
                if key not in seen:
                    seen.add(key)
                    pending += _wheel_needs(wheel, extra, environments)


def _wheel_needs(wheel: WheelMetadata, extra: str, environments: Sequence[_Environment]) -> list[_Need]:
    by = f"{wheel.name}[{extra}] {wheel.version}" if extra else f"{wheel.name} {wheel.version}"
    return [_Need(by=by, requirement=item) for item in _applying(wheel.requires, extra, environments)]


def _applying(texts: Sequence[str], extra: str, environments: Sequence[_Environment]) -> Iterator[Requirement]:
    """Yield the requirements that hold in one of the environments; with an extra, only those that need the extra."""
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # named by _unreadable
        if _holds(requirement, extra, environments) and not (extra and _holds(requirement, "", environments)):
            yield requirement


def _holds(requirement: Requirement, extra: str, environments: Sequence[_Environment]) -> bool:
    marker = requirement.marker
    return marker is None or any(_evaluate(marker, environment, extra) for environment in environments)


def _evaluate(marker: Marker, environment: _Environment, extra: str) -> bool:
    try:
        return marker.evaluate({**environment, "extra": extra})
    except (InvalidVersion, UndefinedComparison):
        return False  # it compares what only the host knows with a version


def _unreadable(wheel: WheelMetadata) -> Iterator[str]:
    for text in wheel.requires:
        try:
            Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            yield f"{wheel.name} {wheel.version} requires {text[:200]!r}, which can't be read: {reason}"


def _accepts_python(wheel: WheelMetadata, environments: Sequence[_Environment]) -> bool:
    if not wheel.requires_python:
        return True
    try:
        wanted = SpecifierSet(wheel.requires_python)
    except InvalidSpecifier:
        return True  # installers ignore it too
    return any(wanted.contains(environment["python_full_version"]) for environment in environments)


def marker_environments(target: Target, python: str | None = None) -> tuple[_Environment, ...]:
    """Return the environments in which a target's markers are evaluated: one for each conceivable patch release."""
    machine, _, system = target.platform.partition("-")
    kind = system.partition("-")[0].partition("_")[0]
    common = _SYSTEMS[kind] | {
        "implementation_name": "cpython",
        "platform_machine": _MACHINES.get(kind, {}).get(machine, machine),
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_version": "",
        "python_version": target.python,
    }
    versions = (python,) if python else tuple(f"{target.python}.{patch}" for patch in _PATCHES)
    return tuple(common | {"implementation_version": full, "python_full_version": full} for full in versions)


def check_lock_complete(lock: Lock, roots: Sequence[str], store: Store) -> tuple[str, ...]:
    """Require that the wheels of a lock are complete, and return the names of those that nothing needs.

    Raises:
        SourceError: They aren't complete, or aren't in the store.
        IntegrityError: One can't be read.
    """
    names = ((wheel.sha256, wheel.path.rpartition("/")[2]) for wheel in lock.wheels)
    wheels = tuple(read_wheel_metadata(store, sha256, name) for sha256, name in names)
    python = lock.python.version if lock.python else None
    check_complete(wheels, roots, lock.target, python)
    return unneeded(wheels, roots, lock.target, python)


def _by_name(wheels: Iterable[WheelMetadata]) -> dict[str, list[WheelMetadata]]:
    found: dict[str, list[WheelMetadata]] = {}
    for wheel in wheels:
        found.setdefault(wheel.name, []).append(wheel)
    return found


def _plain(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"
