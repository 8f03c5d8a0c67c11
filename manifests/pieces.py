"""The one loop that moves and checks bytes, for building, verifying and installing alike.

A file of at most 64 MiB is one piece, a larger one is a piece for each chunk. A piece is read once into a buffer that
is hashed and written from, so that what was checked is what lies on the disk. Pieces run on a few threads: hashing and
file I/O release the interpreter lock.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from manifests.digests import BUFFER_SIZE, CHUNK_SIZE
from manifests.files import start_writing_back, write_all
from manifests.manifest import FileEntry

MAX_THREADS: Final = 8

ReadAt: TypeAlias = Callable[[memoryview, int], int]
"""Fills a view from an offset within one file, returns how many bytes there were."""


class Sink(Protocol):
    """Where the bytes of one file go that doesn't lie in one descriptor; offsets are within that file."""

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of ``view``."""

    def settle(self, offset: int, size: int) -> None:
        """Begin to bring a part to the disk, without waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of one file: ``offset`` and ``size`` in bytes within the file, its sha256, its chunk's index if any."""

    entry: FileEntry
    offset: int
    size: int
    sha256: str
    index: int | None = None

    @property
    def label(self) -> str:
        """The file, and the chunk where the file has several."""
        return self.entry.path if self.index is None else f"{self.entry.path} chunk {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A piece that is not what the manifest says. ``got`` is a digest, or says what else was wrong."""

    piece: Piece
    got: str

    def __str__(self) -> str:
        return f"{self.piece.label}: expected sha256 {self.piece.sha256}, got {self.got}"


class Progress(Protocol):
    """Told how many bytes were done; called from several threads."""

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes."""


class Silent:
    """The progress that nobody watches."""

    def advance(self, count: int) -> None:
        """Do nothing."""


class Stopped(Exception):  # noqa: N818 # not an error: the work was called off
    """Raised inside a worker when the run was interrupted."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Checks pieces, and copies them when given somewhere to write."""

    progress: Progress
    stop: threading.Event

    def check(self, piece: Piece, read: ReadAt, buffer: memoryview, sink: Sink | tuple[int, int] | None = None) -> str:
        """Read a piece, hash it, write it.

        Args:
            piece: What to read.
            read: Fills a view from an offset within the piece's file.
            buffer: Scratch space.
            sink: Where to write: a sink, or a descriptor and where the file begins in it. None only checks.

        Returns:
            The hex digest of what was read, or a sentence when the source was too short.
        """
        digest, done = hashlib.sha256(), 0
        target = _DescriptorSink(*sink) if isinstance(sink, tuple) else sink
        while done < piece.size:
            if self.stop.is_set():
                raise Stopped
            view = buffer[: min(len(buffer), piece.size - done)]
            count = read(view, piece.offset + done)
            if count < len(view):
                return f"only {done + count} of {piece.size} bytes"
            digest.update(view)
            if target is not None:
                target.write(view, piece.offset + done)
            done += count
            self.progress.advance(count)
        if target is not None and piece.index is not None:
            target.settle(piece.offset, piece.size)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _DescriptorSink:
    descriptor: int
    base: int

    def write(self, view: memoryview, offset: int) -> None:
        write_all(self.descriptor, view, self.base + offset)

    def settle(self, offset: int, size: int) -> None:
        start_writing_back(self.descriptor, self.base + offset, size)


def pieces_of(entry: FileEntry) -> Iterator[Piece]:
    """Yield the pieces of a file, in order; an empty file is one empty piece."""
    if not entry.chunks:
        yield Piece(entry=entry, offset=0, size=entry.size, sha256=entry.sha256)
    for index, sha256 in enumerate(entry.chunks):
        offset = index * CHUNK_SIZE
        yield Piece(entry=entry, offset=offset, size=min(CHUNK_SIZE, entry.size - offset), sha256=sha256, index=index)


def thread_count() -> int:
    """Return how many threads to use: one for each usable core, at most :data:`MAX_THREADS`."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def run_all(tasks: Iterable[Callable[[memoryview], None]], *, threads: int, stop: threading.Event) -> None:
    """Run every task with a scratch buffer of its thread's own.

    The first exception stops the others and is raised; so does an interrupt of the main thread. No thread outlives
    the call.
    """
    local = threading.local()

    def run(task: Callable[[memoryview], None]) -> None:
        if stop.is_set():
            raise Stopped
        buffer = getattr(local, "buffer", None)
        if buffer is None:
            buffer = local.buffer = memoryview(bytearray(BUFFER_SIZE))
        try:
            task(buffer)
        except BaseException:
            stop.set()
            raise

    executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="piece")
    try:
        futures = [executor.submit(run, task) for task in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
    except BaseException:
        stop.set()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    _raise_first(futures)


def _raise_first(futures: list[Future[None]]) -> None:
    """Raise the first real error; every future is done or cancelled, so a stopped one can't hide what stopped it."""
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
