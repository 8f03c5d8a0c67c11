"""What a mirror has: every wheel and every model of the releases, by the names under which clients ask for them.

This is the whitelist too. A path that a client sends is only ever looked up here, never joined to a folder.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from manifests.digests import sha256_hex
from manifests.errors import IntegrityError
from manifests.files import open_regular_fd
from manifests.manifest import FileEntry, Manifest, ModelEntry
from runtime.layout import Release

MAIN: Final = "main"
_HUB_ORIGIN: Final = re.compile(r"pkg:huggingface/((?:[^/@]+/)?[^/@]+)@([0-9a-f]{40})")
_REPOSITORY: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_WHEEL: Final = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.+!]+)(?:-[0-9][^-/]*)?(?:-[^-/]+){3}\.whl"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFile:
    """One file of a release; ``expected`` is its size, mtime in ns and inode when it was installed."""

    release: Release
    entry: FileEntry
    expected: tuple[int, int, int]

    def open(self) -> int:
        """Return a descriptor of the file, which is the one that was installed; the caller closes it.

        Raises:
            IntegrityError: It is missing, or size, time or inode are others than in the receipt.
            DiskError: It can't be read.
        """
        path = self.release.path / self.entry.path
        descriptor = open_regular_fd(path)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns, status.st_ino) != self.expected:
            os.close(descriptor)
            msg = f"{path}: size, time or inode changed since the install"
            raise IntegrityError(msg, hint=f"runtime verify --prefix {self.release.path.parent.parent}")
        return descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel by its file name; ``project`` is normalised (PEP 503)."""

    filename: str
    project: str
    version: str
    file: ServedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The files of a model, by their paths within it. ``commit`` has 40 hex digits, ``created`` is its bundle's."""

    commit: str
    created: str
    files: Mapping[str, ServedFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A model under one name. ``revisions`` has each commit; the first is what ``main`` stands for."""

    name: str
    revisions: Mapping[str, Snapshot]

    @property
    def main(self) -> Snapshot:
        """The snapshot of the live release, or of the first that has the model."""
        return next(iter(self.revisions.values()))

    def find(self, revision: str) -> Snapshot | None:
        """Return the snapshot that ``main`` or a whole commit names."""
        return self.main if revision == MAIN else self.revisions.get(revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Everything that is served. ``notes`` says what isn't, and why."""

    wheels: Mapping[str, Wheel]
    repositories: Mapping[str, Repository]
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[ServedFile, ...]:
        """Every file that is served, each once."""
        snapshots = (each for repository in self.repositories.values() for each in repository.revisions.values())
        models = (file for snapshot in snapshots for file in snapshot.files.values())
        found = {file.release.path / file.entry.path: file for file in (*map(_file_of, self.wheels.values()), *models)}
        return tuple(found.values())


def load_catalog(releases: Sequence[Release]) -> Catalog:
    """Return what verified releases have; where two have the same name for different bytes, the first one counts.

    Raises:
        IntegrityError: A manifest or a receipt was changed after the install.
    """
    wheels: dict[str, Wheel] = {}
    revisions: dict[str, dict[str, Snapshot]] = {}
    notes: list[str] = []
    for release in releases:
        manifest, stats = release.manifest(), release.receipt().stats
        files = {entry.path: _served(release, entry, stats) for entry in manifest.files}
        for file in files.values():
            if file.entry.path.endswith(".whl"):
                notes += _add_wheel(wheels, file)
        for model in manifest.models:
            snapshot = _snapshot(model, manifest, files)
            for name in repository_names(model):
                revisions.setdefault(name, {}).setdefault(snapshot.commit, snapshot)
    repositories = {name: Repository(name=name, revisions=found) for name, found in sorted(revisions.items())}
    return Catalog(wheels=dict(sorted(wheels.items())), repositories=repositories, notes=tuple(notes))


def normalised(project: str) -> str:
    """Return a project's name as an index writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", project).lower()


def repository_names(model: ModelEntry) -> tuple[str, ...]:
    """Return the names under which a model is served: that on the Hub where it came from there, and its own."""
    origin = _HUB_ORIGIN.fullmatch(model.origin)
    names = ((unquote(origin[1]),) if origin else ()) + (model.name,)
    return tuple(dict.fromkeys(name for name in names if _REPOSITORY.fullmatch(name)))


def _snapshot(model: ModelEntry, manifest: Manifest, files: Mapping[str, ServedFile]) -> Snapshot:
    inside = f"{model.path}/"
    own = {path.removeprefix(inside): file for path, file in files.items() if path.startswith(inside)}
    origin = _HUB_ORIGIN.fullmatch(model.origin)
    commit = origin[2] if origin else _content_commit(own)
    return Snapshot(commit=commit, created=manifest.created, files=dict(sorted(own.items())))


def _content_commit(files: Mapping[str, ServedFile]) -> str:
    """Return 40 hex digits for a model that has no commit: they change when a path or a byte does."""
    listed = "".join(f"{file.entry.sha256} {path}\n" for path, file in sorted(files.items()))
    return sha256_hex(listed.encode())[:40]


def _add_wheel(wheels: dict[str, Wheel], file: ServedFile) -> Iterator[str]:
    """Add a wheel; yield a note where it can't be."""
    filename = file.entry.path.rpartition("/")[2]
    if file.entry.kind not in {"wheel", "bootstrap"}:
        return
    match = _WHEEL.fullmatch(filename)
    if match is None:
        yield f"{file.release.name}: {file.entry.path} is left out: not the name of a wheel"
    elif filename not in wheels:
        project = normalised(match["name"])
        wheels[filename] = Wheel(filename=filename, project=project, version=match["version"], file=file)
    elif wheels[filename].file.entry.sha256 != file.entry.sha256:
        other = wheels[filename].file.release.name
        yield f"{file.release.name}: {file.entry.path} is left out: {other} has another file of that name"


def _served(release: Release, entry: FileEntry, stats: Mapping[str, tuple[int, int, int]]) -> ServedFile:
    if entry.path not in stats:
        raise IntegrityError(f"{release.path}: the receipt doesn't know {entry.path}")
    return ServedFile(release=release, entry=entry, expected=stats[entry.path])


def _file_of(wheel: Wheel) -> ServedFile:
    return wheel.file


def by_project(wheels: Iterable[Wheel]) -> dict[str, tuple[Wheel, ...]]:
    """Return the wheels of each project, projects and file names sorted."""
    found: dict[str, list[Wheel]] = {}
    for wheel in sorted(wheels, key=lambda wheel: (wheel.project, wheel.filename)):
        found.setdefault(wheel.project, []).append(wheel)
    return {project: tuple(each) for project, each in found.items()}
