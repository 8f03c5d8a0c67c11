"""A bundle as it lies on its medium: one tar, volumes, a pipe, or an unpacked folder. Hostile until proven otherwise.

Nothing here believes the medium. :meth:`Medium.check_layout` takes the *signed* manifest and requires that the medium
has exactly the members that the manifest lists (of a delta: those that delta.json selects), byte for byte down to the
padding; contents are checked piece by piece by whoever reads them (:mod:`manifests.bundle`, the installer, the packer).
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from manifests.delta import DELTA_NAME, MAX_DELTA_SIZE, Delta, parse_delta
from manifests.errors import IntegrityError, UsageError, list_problems
from manifests.files import disk_error
from manifests.folder import FolderMedium
from manifests.manifest import MANIFEST_NAME, MAX_MANIFEST_SIZE, SIGNATURE_NAME, FileEntry, Manifest
from manifests.pieces import ReadAt
from manifests.reference import Remote
from manifests.sources import COPY_HINT, ByteSource, MediumError, Part, StreamSource, Supply, take
from manifests.tarlayout import BLOCK, SIGNATURE_SLOT, TRAILER, TarLayout, head_of, member_header, padded, tar_layout
from manifests.volumes import open_source

__all__ = ["FolderMedium", "FrameError", "Medium", "TarMedium", "list_problems", "open_medium"]

_NAME_HINT: Final = "give the path of a NAME-VERSION-TARGET.bundle.tar"
_NOT_A_BUNDLE: Final = "is not a Sealift bundle: it does not begin with manifest.json"


class FrameError(MediumError):
    """What lies between the files isn't what the manifest implies; ``problems`` has a line for each bad volume."""

    def __init__(self, label: str, problems: list[str]) -> None:
        again = ", ".join(problem.partition(":")[0] for problem in problems[:20])
        hint = f"carry {again} again; if a volume was renamed, or is another bundle's, put the right one there"
        super().__init__(list_problems(label, problems), hint=hint)
        self.problems = tuple(problems)


class Medium(Protocol):
    """What every form of a bundle can do. ``label`` is how messages call it."""

    label: str
    manifest_bytes: bytes
    signature_slot: bytes
    delta: Delta | None

    @property
    def ordered(self) -> bool:
        """Whether it gives its bytes in one direction only: to one thread, in bundle order, once."""

    def check_layout(self, manifest: Manifest) -> None:
        """Require exactly the manifest's members, nothing missing, nothing more.

        Of an ordered medium, what comes later is checked on the way, and its end by :meth:`check_end`.

        Raises:
            IntegrityError: With every difference that can be named.
        """

    def carries(self, entry: FileEntry) -> bool:
        """Return whether a file is on the medium; a delta leaves some out. Known once the layout was checked."""

    def reader(self, entry: FileEntry) -> contextlib.AbstractContextManager[ReadAt]:
        """Return a context in which the content of ``entry`` can be read."""

    def parts(self, entry: FileEntry, offset: int, size: int) -> tuple[Part, ...]:
        """Return where a part of a file's content lies on the disk; nothing for a pipe."""

    def volumes_of(self, entry: FileEntry, offset: int, size: int) -> tuple[str, ...]:
        """Return the names of the volumes that hold a part of a file; nothing where the bundle isn't in volumes."""

    def check_end(self, *, ask: bool = True) -> None:
        """Require that an ordered medium ends as it must; does nothing for the others.

        ``ask`` False leaves out what lies on a volume that somebody would have to bring for this alone.

        Raises:
            IntegrityError: It doesn't.
        """

    def close(self) -> None:
        """Release descriptors."""


@contextlib.contextmanager
def open_medium(path: Path | Remote, supply: Supply | None = None) -> Iterator[Medium]:
    """Open a ``.bundle.tar``, its first volume ``.bundle.tar.001``, an unpacked folder, the pipe (``-``), a registry's.

    Args:
        path: Which.
        supply: Where else volumes are, who brings them, and the pipe; without one, ``-`` is refused.

    Raises:
        UsageError: There is nothing at ``path``.
        SourceError: The registry can't be reached, or has no such tag.
        IntegrityError: It can't be a bundle.
        DiskError: It can't be read.
    """
    medium = _open(path, supply or Supply())
    try:
        yield medium
    finally:
        medium.close()


def _open(path: Path | Remote, supply: Supply) -> Medium:
    if isinstance(path, Remote):
        from manifests.ocimedium import OciMedium  # noqa: PLC0415 # http and ssl are slow to import, and rarely needed

        return OciMedium(path)
    if str(path) == "-":
        if supply.stream is None:
            hint = "give the path of the bundle; `runtime verify` and `runtime install` alone read `-`"
            raise UsageError("a bundle can't be read from standard input here", hint=hint)
        return TarMedium(StreamSource(supply.stream))
    if str(path).lower().startswith("oci:/"):
        raise UsageError(f"{path}: this command reads no registry", hint="bundler pull oci://... --output DIR first")
    try:
        is_folder = path.is_dir()
        exists = is_folder or path.exists()
        first = path.with_name(f"{path.name}.001")
        in_volumes = not exists and first.exists()
    except OSError as error:
        raise disk_error(error, f"read {path}") from error
    if not exists:
        hint = f"it is in volumes: give {first}" if in_volumes else _NAME_HINT
        raise UsageError(f"{path}: no such bundle", hint=hint)
    return FolderMedium(path) if is_folder else TarMedium(open_source(path, supply))


class TarMedium:
    """One uncompressed tar, wherever its bytes come from."""

    __slots__ = (
        "_checked",
        "_delta_bytes",
        "_layout",
        "_places",
        "_source",
        "delta",
        "label",
        "manifest_bytes",
        "signature_slot",
    )

    def __init__(self, source: ByteSource) -> None:
        self.label, self._source = source.label, source
        self._layout: TarLayout | None = None
        self._places: dict[str, int] = {}
        self._checked = 0  # of an ordered medium: the frame before this member comes next
        try:
            self.manifest_bytes = _read_manifest(source)
            head = head_of(self.manifest_bytes)
            start = BLOCK + len(self.manifest_bytes)
            if take(source, len(head) - start, start) != head[start:]:
                raise IntegrityError(f"{self.label}: a header or padding around {MANIFEST_NAME} was changed")
            self.signature_slot = take(source, SIGNATURE_SLOT, len(head))
            if len(self.signature_slot) < SIGNATURE_SLOT:
                raise IntegrityError(f"{self.label}: truncated within {SIGNATURE_NAME}", hint=COPY_HINT)
            self._delta_bytes = _read_delta(source, len(head) + SIGNATURE_SLOT)
            self.delta = None if self._delta_bytes is None else parse_delta(self._delta_bytes)
        except BaseException:
            self.close()
            raise

    @property
    def ordered(self) -> bool:
        return self._source.ordered

    def check_layout(self, manifest: Manifest) -> None:
        carried = manifest.files if self.delta is None else self.delta.files(manifest)
        layout = tar_layout(self.manifest_bytes, carried, self._delta_bytes)
        self._source.expect(layout.size)
        self._layout = layout
        self._places = {member.entry.path: index for index, member in enumerate(layout.members)}
        if self.ordered:
            return
        problems: dict[str, str] = {}
        for index in range(len(layout.members) + 1):
            if (problem := self._frame_problem(layout, index)) is not None:
                if not self._source.in_volumes:
                    raise MediumError(f"{self.label}: {problem}")
                problems.setdefault(problem.partition(":")[0], problem)
        if problems:
            raise FrameError(self.label, list(problems.values()))

    def carries(self, entry: FileEntry) -> bool:
        return entry.path in self._places

    @contextlib.contextmanager
    def reader(self, entry: FileEntry) -> Iterator[ReadAt]:
        layout, index = self._place(entry)
        if self.ordered:
            self._pass_frames(layout, index, ask=False)
        base = layout.members[index].offset
        yield lambda view, offset: self._source.read_into(view, base + offset)

    def parts(self, entry: FileEntry, offset: int, size: int) -> tuple[Part, ...]:
        layout, index = self._place(entry)
        return self._source.parts(layout.members[index].offset + offset, size)

    def volumes_of(self, entry: FileEntry, offset: int, size: int) -> tuple[str, ...]:
        return tuple(part.path.name for part in self.parts(entry, offset, size)) if self._source.in_volumes else ()

    def check_end(self, *, ask: bool = True) -> None:
        if self.ordered and self._layout is not None:
            self._pass_frames(self._layout, len(self._layout.members), ask=ask, last=ask)
            self._source.check_end()

    def close(self) -> None:
        self._source.close()

    def _place(self, entry: FileEntry) -> tuple[TarLayout, int]:
        if self._layout is None:
            raise AssertionError("check_layout comes first")
        return self._layout, self._places[entry.path]

    def _pass_frames(self, layout: TarLayout, index: int, *, ask: bool, last: bool = True) -> None:
        """Check the frames up to the one before member ``index``; those on media that are away only if ``ask``."""
        while self._checked <= index:
            wanted = ask or (last and self._checked == index)
            if wanted or self._source.has(_frame_of(layout, self._checked)[0]):
                problem = self._frame_problem(layout, self._checked)
                if problem is not None:
                    raise MediumError(f"{self.label}: {problem}", hint=COPY_HINT)
            self._checked += 1

    def _frame_problem(self, layout: TarLayout, index: int) -> str | None:
        offset, expected, before = _frame_of(layout, index)
        got = take(self._source, len(expected), offset)
        if got == expected:
            return None
        differing = (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b)
        position = offset + next(differing, len(got))  # the file may have been cut since it was opened
        if not self._source.in_volumes:
            return f"header or padding changed at byte {position}, before {before}"
        (part,) = self._source.parts(position, 1)
        return f"{part.path.name}: header or padding changed at its byte {part.offset}, before {before}"


def _frame_of(layout: TarLayout, index: int) -> tuple[int, bytes, str]:
    """Return what lies before member ``index``: its offset, its bytes, and how messages call what follows."""
    if index:
        member = layout.members[index - 1]
        gap = member.offset + member.entry.size
    else:
        gap = layout.list_offset + len(layout.list_member)
    if index == len(layout.members):
        return gap, _padding(gap) + TRAILER, "the end"
    entry = layout.members[index].entry
    return gap, _padding(gap) + member_header(entry.path, entry.size, entry.mode), entry.path


def _read_manifest(source: ByteSource) -> bytes:
    block = take(source, BLOCK, 0)
    size = _octal_size(block)
    if size is None or block != member_header(MANIFEST_NAME, size, 0o644):
        raise IntegrityError(f"{source.label}: {_NOT_A_BUNDLE}", hint=_NAME_HINT)
    if size > MAX_MANIFEST_SIZE:
        msg = f"{source.label}: {MANIFEST_NAME} has {size} bytes, at most {MAX_MANIFEST_SIZE} are allowed"
        raise IntegrityError(msg)
    data = take(source, size, BLOCK)
    if len(data) < size:
        raise IntegrityError(f"{source.label}: truncated within {MANIFEST_NAME}", hint=COPY_HINT)
    return data


def _read_delta(source: ByteSource, offset: int) -> bytes | None:
    """Return the bytes of delta.json, which follows the slot, or None where a payload file or the end does."""
    block = source.peek(BLOCK, offset)
    if block[:100].rstrip(b"\0") != DELTA_NAME.encode():
        return None
    size = _octal_size(block)
    if size is None or block != member_header(DELTA_NAME, size, 0o644):
        raise IntegrityError(f"{source.label}: the header of {DELTA_NAME} was changed")
    if size > MAX_DELTA_SIZE:
        msg = f"{source.label}: {DELTA_NAME} has {size} bytes, at most {MAX_DELTA_SIZE} are allowed"
        raise IntegrityError(msg)
    data = take(source, padded(size), offset + BLOCK)
    if len(data) < padded(size):
        raise IntegrityError(f"{source.label}: truncated within {DELTA_NAME}", hint=COPY_HINT)
    if any(data[size:]):
        raise IntegrityError(f"{source.label}: the padding behind {DELTA_NAME} was changed")
    return data[:size]


def _octal_size(block: bytes) -> int | None:
    match = re.fullmatch(rb"([0-7]{11})\0", block[124:136])
    return None if match is None else int(match[1], 8)


def _padding(end: int) -> bytes:
    return bytes(padded(end) - end)
