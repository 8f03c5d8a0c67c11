"""A bundle as an unpacked folder. Hostile until proven otherwise: no link is followed in it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from manifests.delta import DELTA_NAME, MAX_DELTA_SIZE, parse_delta
from manifests.errors import IntegrityError, list_problems
from manifests.fields import shown
from manifests.files import disk_error, open_below, open_regular, read_exactly, read_into
from manifests.manifest import MANIFEST_NAME, MAX_MANIFEST_SIZE, SIGNATURE_NAME, FileEntry, Manifest
from manifests.paths import MAX_PATH
from manifests.pieces import ReadAt
from manifests.sources import Part
from manifests.tarlayout import SIGNATURE_SLOT


class FolderMedium:
    """An unpacked folder; mode bits aren't checked, since FAT has none."""

    __slots__ = ("_carried", "_path", "delta", "label", "manifest_bytes", "signature_slot")

    ordered = False

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._carried: frozenset[str] = frozenset()
        self._path = path
        with _reading(self.label):
            if not (path / MANIFEST_NAME).exists():
                hint = "give the path of a NAME-VERSION-TARGET.bundle.tar, or of the folder that it was unpacked to"
                raise IntegrityError(f"{path}: is not an unpacked bundle: it has no {MANIFEST_NAME}", hint=hint)
            self.manifest_bytes = _read_limited(path / MANIFEST_NAME, MAX_MANIFEST_SIZE)
            self.signature_slot = _read_limited(path / SIGNATURE_NAME, SIGNATURE_SLOT)
            has_delta = (path / DELTA_NAME).exists()
            self.delta = parse_delta(_read_limited(path / DELTA_NAME, MAX_DELTA_SIZE)) if has_delta else None

    def check_layout(self, manifest: Manifest) -> None:
        carried = manifest.files if self.delta is None else self.delta.files(manifest)
        self._carried = frozenset(entry.path for entry in carried)
        with _reading(self.label):
            problems = self._problems(carried)
        if problems:
            raise IntegrityError(list_problems(self.label, problems))

    def _problems(self, carried: tuple[FileEntry, ...]) -> list[str]:
        found = set(_walk(self._path))
        expected = {entry.path for entry in carried} | {MANIFEST_NAME, SIGNATURE_NAME}
        expected |= {DELTA_NAME} if self.delta is not None else set()
        problems = [f"{name}: missing" for name in sorted(expected - found)]
        empty = {name for name in found if name.endswith("/") and any(path.startswith(name) for path in expected)}
        listed = "the manifest" if self.delta is None else DELTA_NAME
        problems += [f"{shown(name)}: not in {listed}" for name in sorted(found - expected - empty)]
        problems += [problem for entry in carried if (problem := self._size_problem(entry, found))]
        return problems

    def _size_problem(self, entry: FileEntry, found: set[str]) -> str | None:
        if entry.path not in found:
            return None
        status = (self._path / entry.path).lstat()
        return None if status.st_size == entry.size else f"{entry.path}: {status.st_size} bytes, expected {entry.size}"

    def carries(self, entry: FileEntry) -> bool:
        return entry.path in self._carried

    def parts(self, entry: FileEntry, offset: int, size: int) -> tuple[Part, ...]:
        return (Part(path=self._path / entry.path, offset=offset, size=size),)

    def volumes_of(self, _entry: FileEntry, _offset: int, _size: int) -> tuple[str, ...]:
        return ()

    def check_end(self, *, ask: bool = True) -> None:
        """Do nothing: the layout was checked."""

    @contextlib.contextmanager
    def reader(self, entry: FileEntry) -> Iterator[ReadAt]:
        with open_below(self._path, entry.path) as descriptor:

            def read(view: memoryview, offset: int) -> int:
                with _reading(str(self._path / entry.path)):
                    return read_into(descriptor, view, offset)

            yield read

    def close(self) -> None:
        """Do nothing: files are opened one at a time."""


def _read_limited(path: Path, limit: int) -> bytes:
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise IntegrityError(f"{path}: {size} bytes, at most {limit} are allowed")
        return read_exactly(descriptor, size, 0)


def _walk(root: Path) -> Iterator[str]:
    """Yield every path below ``root`` that isn't a folder; links count as files, an empty folder ends in ``/``."""
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(root / below) as scan:
            entries = list(scan)
        if below and (not entries or len(os.fsencode(below)) > MAX_PATH):
            yield f"{below}/"  # no manifest can name anything below a path this long
            continue
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            else:
                yield path


@contextlib.contextmanager
def _reading(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, f"read {label}") from error
