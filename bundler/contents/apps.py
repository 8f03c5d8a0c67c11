"""Applications: plain files out of a folder or a git commit; wheels, given or built here from a project's folder."""

import fnmatch
import io
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from bundler.contents.checkout import Blob, Checkout, is_pointer, is_remote, open_checkout
from bundler.contents.folders import check_paths, walk_folder
from bundler.lock import LockedApp, LockedBuild, LockedFile
from bundler.packages.completeness import marker_environments
from bundler.packages.sdists import Builder, built_file, project_source
from bundler.packages.wheelcheck import check_stored_wheel
from bundler.packages.wheeltags import tag_rank
from bundler.spec import AppSpec, Spec
from bundler.store import Store
from manifests.errors import SpecError
from manifests.manifest import AppEntry, Target

FILE_SCHEMES: Final = frozenset({"dir", "git"})
"""The sources that travel as plain files; the others are wheels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppWheel:
    """An application that is a wheel: the file, its build if it was built here, and what it requires on the target.

    ``app`` is its name in the spec, ``name`` that of the distribution.
    """

    app: str
    file: LockedFile
    name: str
    version: str
    requirements: tuple[str, ...]
    build: LockedBuild | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A file of an application: its name in the bundle, and its bytes or where they lie."""

    name: str
    content: Path | bytes
    executable: bool


def check_app(app: AppSpec, spec: Spec) -> None:
    """Check what can be checked of an application without a network.

    Raises:
        SpecError: A folder, a file or a commit's files can't be used.
        SourceError: git is missing, or has no such commit.
    """
    where = f"{spec.path}: app {app.name!r}"
    if app.scheme == "wheel":
        _wheel_path(app, spec)
    elif app.scheme == "project":
        project_source(app.name, spec.resolve_folder(app.location), _folder_files(app, spec))
    elif app.scheme == "dir":
        check_paths([_name(name) for name, _ in _folder_files(app, spec)], where)
    elif not is_remote(app.location.rpartition("@")[0]):
        list(_commit_files(app, spec))


def lock_app(app: AppSpec, spec: Spec, store: Store) -> LockedApp:
    """Have the plain files of an application in the store.

    Names are NFC in a bundle, however the file system spells them (macOS may give NFD).

    Raises:
        SpecError: The folder or commit is missing or empty, or has a file that can't travel.
        SourceError: A file or the commit can't be read.
    """
    origin = f"pkg:generic/{app.name}"
    if app.scheme == "git":
        origin += f"@{app.location.rpartition('@')[2]}"
    found = _commit_files(app, spec) if app.scheme == "git" else _plain_files(app, spec)
    files = tuple(_locked(item, app, store, origin) for item in found)
    top = f"app/{app.name}/"
    check_paths([file.path.removeprefix(top) for file in files], f"{spec.path}: app {app.name!r}")
    return LockedApp(entry=AppEntry(name=app.name, path=f"app/{app.name}", origin=origin), files=files)


def lock_app_wheel(app: AppSpec, spec: Spec, builder: Builder) -> AppWheel:
    """Have the wheel of an application in the store, built here for ``project:``.

    Raises:
        SpecError: It is missing, or its metadata can't be used for the target.
        SourceError: It can't be built, or doesn't fit the target.
        IntegrityError: It contradicts itself.
    """
    store, build = builder.store, None
    if app.scheme == "project":
        source = project_source(app.name, spec.resolve_folder(app.location), _folder_files(app, spec))
        build = builder.build(source)
        file = built_file(build, store)
    else:
        path = _wheel_path(app, spec)
        digest = store.add_file(path)
        check_stored_wheel(store, digest.sha256, path.name)
        file = LockedFile(
            path=f"wheels/{path.name}",
            size=digest.size,
            sha256=digest.sha256,
            chunks=digest.chunks,
            origin=_purl(path.name),
            source=f"local {path.name}",
        )
    name, version, _, _ = parse_wheel_filename(file.path.rpartition("/")[2])
    requirements = wheel_requirements(store.path(file.sha256), app, spec)
    return AppWheel(app=app.name, file=file, name=name, version=str(version), requirements=requirements, build=build)


def wheel_requirements(wheel: Path, app: AppSpec, spec: Spec) -> tuple[str, ...]:
    """Return what a wheel requires on the spec's target with the application's extras, without markers.

    Raises:
        SpecError: It needs another Python, hasn't such an extra, or a requirement can't be used.
    """
    where = f"{spec.path}: app {app.name!r}"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.count("/") == 1]
        (member,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = BytesHeaderParser().parse(io.BytesIO(archive.read(member)))
    _check_python(metadata.get("Requires-Python", ""), spec.target, where)
    offered = {canonicalize_name(extra) for extra in metadata.get_all("Provides-Extra", [])}
    extras = [canonicalize_name(extra) for extra in app.extras]
    if missing := sorted(set(extras) - offered):
        has = ", ".join(sorted(offered)) or "none"
        raise SpecError(f"{where}: its wheel has no extra {', '.join(missing)}; it has: {has}")
    try:
        asked = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    except InvalidRequirement as error:
        raise SpecError(f"{where}: its wheel has a requirement that is none: {error}") from None
    return tuple(dict.fromkeys(_applying(asked, ["", *extras], spec.target, where)))


def _applying(asked: Sequence[Requirement], extras: Sequence[str], target: Target, where: str) -> Iterator[str]:
    environments = [{**markers, "extra": extra} for markers in marker_environments(target) for extra in extras]
    for requirement in asked:
        marker, requirement.marker = requirement.marker, None
        if marker is not None and not any(marker.evaluate(environment) for environment in environments):
            continue
        if requirement.url is not None:
            msg = f"{where}: its wheel requires {requirement.name} from a url, which is not supported"
            raise SpecError(msg, hint="have it require a version of an index")
        yield str(requirement)


def _check_python(text: str, target: Target, where: str) -> None:
    try:
        allowed = SpecifierSet(text)
    except InvalidSpecifier:
        raise SpecError(f"{where}: its wheel has the Requires-Python {text[:100]!r}, which is none") from None
    if not any(allowed.contains(f"{target.python}.{patch}") for patch in (0, 99)):
        raise SpecError(f"{where}: its wheel requires Python {text}, the target has {target.python}")


def _wheel_path(app: AppSpec, spec: Spec) -> Path:
    where, path = f"{spec.path}: app {app.name!r}: source", spec.resolve_folder(app.location)
    if not path.is_file():
        raise SpecError(f"{where}: {path} is not a file", hint="relative paths start at the spec's folder")
    try:
        parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        raise SpecError(f"{where}: {path.name} is not the name of a wheel") from None
    if tag_rank(path.name, spec.target) is None:
        raise SpecError(f"{where}: {path.name} doesn't fit the target {spec.target.label}")
    return path


def _folder_files(app: AppSpec, spec: Spec) -> list[tuple[str, Path]]:
    """Return name and path of each file of a folder that is included, sorted."""
    where, folder = f"{spec.path}: app {app.name!r}", spec.resolve_folder(app.location)
    if not folder.is_dir():
        raise SpecError(f"{where}: source: {folder} is not a folder", hint="relative paths start at the spec's folder")
    found = [(name, path) for name, path in walk_folder(folder, where) if _included(_name(name), app)]
    if not found:
        raise SpecError(f"{where}: source: {folder} holds no files", hint="check include and exclude")
    return sorted(found)


def _plain_files(app: AppSpec, spec: Spec) -> Iterator[_Found]:
    for name, path in _folder_files(app, spec):
        yield _Found(name=_name(name), content=path, executable=_executable(path))


def _commit_files(app: AppSpec, spec: Spec) -> Iterator[_Found]:
    where, (location, _, commit) = f"{spec.path}: app {app.name!r}", app.location.rpartition("@")
    with open_checkout(location, spec.resolve_folder(location), commit, where) as checkout:
        blobs = checkout.blobs()
        chosen = [blob for blob in blobs if _included(_name(blob.name), app)]
        if not chosen:
            raise SpecError(f"{where}: commit {commit} holds no files", hint="check include and exclude")
        yield from _read_blobs(checkout, checkout.resolve_links(blobs, chosen))


def _read_blobs(checkout: Checkout, blobs: Sequence[Blob]) -> Iterator[_Found]:
    pointers = []
    for blob in blobs:
        data = checkout.read(blob)
        if is_pointer(data):
            pointers.append(blob.name)
        yield _Found(name=_name(blob.name), content=data, executable=blob.executable)
    if pointers:
        msg = f"{checkout.where}: Git LFS keeps the content of {', '.join(pointers)} elsewhere"
        raise SpecError(msg, hint="git lfs pull in a checkout, and name that with 'dir:FOLDER'; or exclude them")


def _locked(item: _Found, app: AppSpec, store: Store, origin: str) -> LockedFile:
    content = item.content
    digest = store.add_stream(io.BytesIO(content)) if isinstance(content, bytes) else store.add_file(content)
    return LockedFile(
        path=f"app/{app.name}/{item.name}",
        size=digest.size,
        sha256=digest.sha256,
        chunks=digest.chunks,
        origin=origin,
        source="commit" if app.scheme == "git" else "folder",
        executable=item.executable,
    )


def _name(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _executable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o111)


def _included(name: str, app: AppSpec) -> bool:
    wanted = not app.include or any(fnmatch.fnmatchcase(name, pattern) for pattern in app.include)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in app.exclude)


def _purl(wheel: str) -> str:
    name, version, _, _ = parse_wheel_filename(wheel)
    return f"pkg:pypi/{name}@{str(version).replace('+', '%2B')}"
