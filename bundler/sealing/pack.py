"""Writing a bundle: every payload byte is read once, hashed, and written once at its final offset."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bundler.sealing.volumes import Place, SliceWriter, one_file
from manifests.errors import IntegrityError, list_problems
from manifests.files import disk_error, open_regular, read_into, write_all
from manifests.manifest import FileEntry
from manifests.pieces import Damage, Piece, Progress, ReadAt, Transfer, pieces_of, run_all, thread_count
from manifests.tarlayout import SIGNATURE_SLOT, TRAILER, Member, TarLayout, member_header, tar_layout

Source: TypeAlias = Callable[[FileEntry], AbstractContextManager[ReadAt]]
"""Opens the content of a file of the manifest."""


def signature_slot(*blocks: bytes) -> bytes:
    """Return the signature slot that holds these armored blocks, padded with newlines.

    Raises:
        IntegrityError: They don't fit.
    """
    content = b"".join(blocks)
    if len(content) > SIGNATURE_SLOT:
        raise IntegrityError(f"the signatures need {len(content)} bytes, the slot has {SIGNATURE_SLOT}")
    return content.ljust(SIGNATURE_SLOT, b"\n")


def write_bundle(
    path: Path | Place,
    manifest: bytes,
    files: tuple[FileEntry, ...],
    source: Source,
    progress: Progress,
    *,
    slot: bytes,
    delta: bytes | None = None,
    threads: int | None = None,
) -> TarLayout:
    """Write a bundle to files that must not exist. On any failure nothing stays of them.

    Args:
        path: The file to create, or what decides where the bytes lie.
        manifest: The canonical bytes of the manifest.
        files: The files to carry, in bundle order.
        source: Opens their contents; what it gives is checked against the manifest while it is copied.
        progress: Told of every payload byte.
        slot: The signature slot's 16 KiB.
        delta: The bytes of delta.json, for a delta.
        threads: Pieces at a time, one for each core by default.

    Raises:
        IntegrityError: A source is not what the manifest says; all of them are named.
        DiskError: No space, no permission.
    """
    layout = tar_layout(manifest, files, delta)
    slices = (one_file(path) if isinstance(path, Path) else path)(layout)
    writer = SliceWriter(slices)
    try:
        _write_frame(writer, layout, slot)
        damaged = _copy(writer, layout, source, progress, threads or thread_count())
        if damaged:
            raise IntegrityError(list_problems("what was locked is not what is there", [str(item) for item in damaged]))
        writer.sync()
    except BaseException as error:
        writer.remove()
        if isinstance(error, OSError):
            raise disk_error(error, f"write {slices[0].path}") from error
        raise
    finally:
        writer.close()
    return layout


def replace_slot(path: Path, offset: int, slot: bytes, *, durable: bool = True) -> None:
    """Write a signature slot in place; nothing else of the bundle is touched.

    ``durable`` False leaves it to the system when it reaches the disk, as a build does with all of its bundle.

    Raises:
        DiskError: The file can't be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_all(descriptor, slot, offset)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_error(error, f"write {path}") from error


def file_source(find: Callable[[FileEntry], Path | bytes]) -> Source:
    """Return a source that reads each entry from the path, or the bytes, that ``find`` gives for it."""

    @contextlib.contextmanager
    def source(entry: FileEntry) -> Iterator[ReadAt]:
        found = find(entry)
        if isinstance(found, bytes):
            yield _bytes_reader(found)
            return
        with open_regular(found) as descriptor:

            def read(view: memoryview, offset: int) -> int:
                return read_into(descriptor, view, offset)

            yield read

    return source


def _bytes_reader(content: bytes) -> ReadAt:
    def read(view: memoryview, offset: int) -> int:
        data = content[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    return read


def _write_frame(writer: SliceWriter, layout: TarLayout, slot: bytes) -> None:
    writer.write(layout.head, 0)
    writer.write(slot + layout.list_member, layout.signature_offset)
    for member in layout.members:
        entry = member.entry
        writer.write(member_header(entry.path, entry.size, entry.mode), member.header_offset)
        if padding := bytes(member.end - member.offset - entry.size):
            writer.write(padding, member.offset + entry.size)
    writer.write(TRAILER, layout.trailer_offset)


@dataclass(frozen=True, slots=True)
class _MemberSink:
    """One member's content within the tar."""

    writer: SliceWriter
    base: int

    def write(self, view: memoryview, offset: int) -> None:
        self.writer.write(view, self.base + offset)

    def settle(self, offset: int, size: int) -> None:
        self.writer.settle(self.base + offset, size)


def _copy(writer: SliceWriter, layout: TarLayout, source: Source, progress: Progress, threads: int) -> list[Damage]:
    stop = threading.Event()
    transfer = Transfer(progress, stop)
    damaged: list[Damage] = []

    def copy(member: Member, piece: Piece) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            with source(member.entry) as read:
                got = transfer.check(piece, read, buffer, _MemberSink(writer, member.offset))
            if got != piece.sha256:
                damaged.append(Damage(piece=piece, got=got))

        return task

    tasks = (copy(member, piece) for member in layout.members for piece in pieces_of(member.entry))
    run_all(tasks, threads=threads, stop=stop)
    return damaged
