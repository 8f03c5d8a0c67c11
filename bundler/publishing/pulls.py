"""Fetching a bundle from a registry as the tar that it was, byte for byte.

The tar is a pure function of its manifest, so every piece goes to its final place at once. A pull that was stopped
leaves a partial file, whose good pieces the next one keeps.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bundler.publishing.registries import STREAMS
from manifests.bundle import carried_files, damage_error
from manifests.errors import DiskError, UsageError
from manifests.files import disk_error, free_space, locked, read_into, sync_folder, write_all
from manifests.manifest import Manifest, manifest_digest, parse_manifest
from manifests.medium import Medium
from manifests.pieces import Damage, Piece, Progress, Silent, Transfer, pieces_of, run_all
from manifests.progress import format_size
from manifests.tarlayout import SIGNATURE_SLOT, TRAILER, TarLayout, member_header, tar_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull did: the tar, the manifest's digest, its size, and how many bytes an earlier pull had left."""

    bundle: Path
    digest: str
    size: int
    kept: int


def pull_bundle(medium: Medium, folder: Path, progress: Progress) -> Pulled:
    """Write a bundle as a tar into ``folder``, every piece compared with the manifest.

    Args:
        medium: The bundle, whose signatures may have been checked.
        folder: Made if it is missing. The file is named as a build names it.
        progress: Told of every payload byte, fetched or kept.

    Raises:
        UsageError: The file is there already, or another pull of it is at work.
        SourceError: The registry can't be reached; what came stays.
        IntegrityError: Names every damaged piece; the good ones stay.
        DiskError: No space, no permission.
    """
    manifest = parse_manifest(medium.manifest_bytes)
    medium.check_layout(manifest)
    digest = manifest_digest(medium.manifest_bytes)
    target = folder / _name(medium, manifest)
    if target.exists():
        raise UsageError(f"{target}: is there already", hint="bundler inspect it, or give another --output")
    delta = None if medium.delta is None else medium.delta.encode()
    layout = tar_layout(medium.manifest_bytes, carried_files(medium, manifest), delta)
    partial = folder / f".{target.name}.{digest[:12]}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(partial, blocking=False) as free:
            if not free:
                raise UsageError(f"{partial}: another pull is writing it", hint="wait for it")
            kept = _fill(medium, layout, partial, progress)
            partial.replace(target)
            sync_folder(folder)
    except OSError as error:
        raise disk_error(error, f"write {partial}") from error
    return Pulled(bundle=target, digest=digest, size=layout.size, kept=kept)


def _name(medium: Medium, manifest: Manifest) -> str:
    if medium.delta is None:
        return f"{manifest.stem}.bundle.tar"
    return f"{manifest.stem}.from-{medium.delta.base[:12]}.delta.bundle.tar"


def _fill(medium: Medium, layout: TarLayout, partial: Path, progress: Progress) -> int:
    """Write all of a tar into the partial file; return how many bytes of it were good already."""
    descriptor = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        lacking = layout.size - os.fstat(descriptor).st_blocks * 512
        if lacking > (free := free_space(partial.parent)):
            msg = f"{partial.parent}: the bundle needs {format_size(lacking)} more, {format_size(free)} are free"
            raise DiskError(msg, hint="choose another --output")
        os.ftruncate(descriptor, layout.size)
        _write_frame(descriptor, layout, medium.signature_slot)
        kept = _fetch(medium, layout, descriptor, progress)
        os.fsync(descriptor)
        return kept
    finally:
        os.close(descriptor)


def _write_frame(descriptor: int, layout: TarLayout, slot: bytes) -> None:
    write_all(descriptor, layout.head, 0)
    write_all(descriptor, slot.ljust(SIGNATURE_SLOT, b"\n") + layout.list_member, layout.signature_offset)
    for member in layout.members:
        entry = member.entry
        write_all(descriptor, member_header(entry.path, entry.size, entry.mode), member.header_offset)
        write_all(descriptor, bytes(member.end - member.offset - entry.size), member.offset + entry.size)
    write_all(descriptor, TRAILER, layout.trailer_offset)


def _fetch(medium: Medium, layout: TarLayout, descriptor: int, progress: Progress) -> int:
    stop = threading.Event()
    transfer = Transfer(progress, stop)
    damaged: list[Damage] = []
    kept: list[int] = []

    def fetching(piece: Piece, base: int) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            if _has(descriptor, base, piece, buffer, stop):
                kept.append(piece.size)
                progress.advance(piece.size)
                return
            with medium.reader(piece.entry) as read:
                got = transfer.check(piece, read, buffer, (descriptor, base))
            if got != piece.sha256:
                damaged.append(Damage(piece=piece, got=got))

        return task

    def tasks() -> Iterator[Callable[[memoryview], None]]:
        for member in layout.members:
            for piece in pieces_of(member.entry):
                yield fetching(piece, member.offset)

    run_all(tasks(), threads=STREAMS, stop=stop)
    if damaged:
        raise damage_error(medium, sorted(damaged, key=lambda damage: damage.piece.label))
    return sum(kept)


def _has(descriptor: int, base: int, piece: Piece, buffer: memoryview, stop: threading.Event) -> bool:
    """Return whether a piece lies in the partial file; where nothing was ever written, nothing is read."""
    start = base + piece.offset
    try:
        begun = os.lseek(descriptor, start, os.SEEK_DATA) < start + piece.size
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        begun = False
    if not begun:
        return False
    got = Transfer(Silent(), stop).check(piece, lambda view, offset: read_into(descriptor, view, base + offset), buffer)
    return got == piece.sha256
