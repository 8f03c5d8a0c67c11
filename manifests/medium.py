"""A bundle as it lies on its medium: one tar, or an unpacked folder. Hostile until proven otherwise.

Nothing here believes the medium. :meth:`Medium.check_layout` takes the *signed* manifest and requires that the medium
has exactly the members that the manifest lists, byte for byte down to the padding; contents are checked piece by piece
by whoever reads them (:mod:`manifests.bundle`, the installer, the packer).
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from manifests.errors import IntegrityError, UsageError
from manifests.fields import shown
from manifests.files import disk_error, open_regular, open_regular_fd, read_exactly, read_into
from manifests.manifest import MANIFEST_NAME, MAX_MANIFEST_SIZE, SIGNATURE_NAME, FileEntry, Manifest
from manifests.paths import MAX_PATH
from manifests.pieces import ReadAt
from manifests.tarlayout import BLOCK, SIGNATURE_SLOT, TRAILER, head_of, member_header, padded, tar_layout

_NOT_A_BUNDLE: Final = "is not a Sealift bundle: it does not begin with manifest.json"
_COPY_HINT: Final = "copy it again from its source and compare sizes"


class Medium(Protocol):
    """What every form of a bundle can do. ``label`` is how messages call it."""

    label: str
    manifest_bytes: bytes
    signature_slot: bytes

    def check_layout(self, manifest: Manifest) -> None:
        """Require exactly the manifest's members, nothing missing, nothing more.

        Raises:
            IntegrityError: With every difference that can be named.
        """

    def reader(self, entry: FileEntry) -> contextlib.AbstractContextManager[ReadAt]:
        """Return a context in which the content of ``entry`` can be read."""

    def close(self) -> None:
        """Release descriptors."""


@contextlib.contextmanager
def open_medium(path: Path) -> Iterator[Medium]:
    """Open a ``.bundle.tar`` or an unpacked folder.

    Raises:
        UsageError: There is nothing at ``path``.
        IntegrityError: It can't be a bundle.
        DiskError: It can't be read.
    """
    try:
        is_folder = path.is_dir()
        exists = is_folder or path.exists()
    except OSError as error:
        raise disk_error(error, f"read {path}") from error
    if not exists:
        raise UsageError(f"{path}: no such bundle", hint="give the path of a NAME-VERSION-TARGET.bundle.tar")
    medium: Medium = FolderMedium(path) if is_folder else TarMedium(path)
    try:
        yield medium
    finally:
        medium.close()


class TarMedium:
    """One uncompressed tar."""

    __slots__ = ("_descriptor", "_offsets", "label", "manifest_bytes", "signature_slot")

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._offsets: dict[str, int] = {}
        # The path itself may be a link that the operator made; what is inside the bundle may not.
        self._descriptor = open_regular_fd(path.resolve())
        try:
            self.manifest_bytes = _read_manifest(self._descriptor, self.label)
            head = head_of(self.manifest_bytes)
            if read_exactly(self._descriptor, len(head), 0) != head:
                raise IntegrityError(f"{self.label}: a header or padding around {MANIFEST_NAME} was changed")
            self.signature_slot = read_exactly(self._descriptor, SIGNATURE_SLOT, len(head))
            if len(self.signature_slot) < SIGNATURE_SLOT:
                raise IntegrityError(f"{self.label}: truncated within {SIGNATURE_NAME}", hint=_COPY_HINT)
        except OSError as error:
            self.close()
            raise disk_error(error, f"read {self.label}") from error
        except BaseException:
            self.close()
            raise

    def check_layout(self, manifest: Manifest) -> None:
        layout = tar_layout(self.manifest_bytes, manifest.files)
        size = os.fstat(self._descriptor).st_size
        if size < layout.size:
            msg = f"{self.label}: truncated: {size} bytes, expected {layout.size}"
            raise IntegrityError(msg, hint=_COPY_HINT)
        if size > layout.size:
            msg = f"{self.label}: {size - layout.size} bytes after its end, expected {layout.size} bytes in all"
            raise IntegrityError(msg)
        gap = layout.signature_offset + SIGNATURE_SLOT
        for member in layout.members:
            entry = member.entry
            self._require(gap, _padding(gap) + member_header(entry.path, entry.size, entry.mode), entry.path)
            gap = member.offset + entry.size
        self._require(gap, _padding(gap) + TRAILER, "the end")
        self._offsets = {member.entry.path: member.offset for member in layout.members}

    @contextlib.contextmanager
    def reader(self, entry: FileEntry) -> Iterator[ReadAt]:
        base = self._offsets[entry.path]  # a KeyError is a bug: check_layout comes first

        def read(view: memoryview, offset: int) -> int:
            with _reading(self.label):
                return read_into(self._descriptor, view, base + offset)

        yield read

    def close(self) -> None:
        os.close(self._descriptor)

    def _require(self, offset: int, expected: bytes, before: str) -> None:
        with _reading(self.label):
            got = read_exactly(self._descriptor, len(expected), offset)
        if got != expected:
            differing = (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b)
            position = offset + next(differing, len(got))  # the file may have been cut since it was opened
            raise IntegrityError(f"{self.label}: header or padding changed at byte {position}, before {before}")


class FolderMedium:
    """An unpacked folder; mode bits aren't checked, since FAT has none."""

    __slots__ = ("_path", "label", "manifest_bytes", "signature_slot")

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._path = path
        with _reading(self.label):
            if not (path / MANIFEST_NAME).exists():
                raise IntegrityError(f"{path}: is not an unpacked bundle: it has no {MANIFEST_NAME}")
            self.manifest_bytes = _read_limited(path / MANIFEST_NAME, MAX_MANIFEST_SIZE)
            self.signature_slot = _read_limited(path / SIGNATURE_NAME, SIGNATURE_SLOT)

    def check_layout(self, manifest: Manifest) -> None:
        with _reading(self.label):
            problems = self._problems(manifest)
        if problems:
            raise IntegrityError(list_problems(self.label, problems))

    def _problems(self, manifest: Manifest) -> list[str]:
        found = set(_walk(self._path))
        expected = {entry.path for entry in manifest.files} | {MANIFEST_NAME, SIGNATURE_NAME}
        problems = [f"{name}: missing" for name in sorted(expected - found)]
        empty = {name for name in found if name.endswith("/") and any(path.startswith(name) for path in expected)}
        problems += [f"{shown(name)}: not in the manifest" for name in sorted(found - expected - empty)]
        problems += [problem for entry in manifest.files if (problem := self._size_problem(entry, found))]
        return problems

    def _size_problem(self, entry: FileEntry, found: set[str]) -> str | None:
        if entry.path not in found:
            return None
        status = (self._path / entry.path).lstat()
        return None if status.st_size == entry.size else f"{entry.path}: {status.st_size} bytes, expected {entry.size}"

    @contextlib.contextmanager
    def reader(self, entry: FileEntry) -> Iterator[ReadAt]:
        with open_below(self._path, entry.path) as descriptor:

            def read(view: memoryview, offset: int) -> int:
                with _reading(str(self._path / entry.path)):
                    return read_into(descriptor, view, offset)

            yield read

    def close(self) -> None:
        """Do nothing: files are opened one at a time."""


@contextlib.contextmanager
def open_below(folder: Path, path: str) -> Iterator[int]:
    """Yield a descriptor of ``folder/path``, following no link in any component of ``path``.

    Raises:
        IntegrityError: Missing, a link, or not a regular file.
    """
    *parents, name = path.split("/")
    with contextlib.ExitStack() as stack:
        current = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, current)
        for parent in parents:
            try:
                current = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            except OSError:
                raise IntegrityError(f"{folder / path}: missing, or below a link") from None
            stack.callback(os.close, current)
        yield stack.enter_context(open_regular(name, dir_fd=current))


def list_problems(label: str, problems: list[str], *, limit: int = 20) -> str:
    """Return one message for many problems: the first ``limit``, and how many more."""
    more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{label}: {count}:", *problems[:limit], *more])


def _read_manifest(descriptor: int, label: str) -> bytes:
    block = read_exactly(descriptor, BLOCK, 0)
    size_field = re.fullmatch(rb"([0-7]{11})\0", block[124:136])
    if size_field is None:
        raise IntegrityError(f"{label}: {_NOT_A_BUNDLE}")
    size = int(size_field[1], 8)
    if block != member_header(MANIFEST_NAME, size, 0o644):
        raise IntegrityError(f"{label}: {_NOT_A_BUNDLE}")
    if size > MAX_MANIFEST_SIZE:
        raise IntegrityError(f"{label}: {MANIFEST_NAME} has {size} bytes, at most {MAX_MANIFEST_SIZE} are allowed")
    data = read_exactly(descriptor, size, BLOCK)
    if len(data) < size:
        raise IntegrityError(f"{label}: truncated within {MANIFEST_NAME}", hint=_COPY_HINT)
    return data


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


def _padding(end: int) -> bytes:
    return bytes(padded(end) - end)
