"""The prefix's store: verified files under the name of what was verified, each once, read-only.

A blob counts without being read again only while a complete release holds it; anything else that an interrupted
install left is hashed again before it is used. So nothing needs a sync of its own: one before the receipt makes all of
it durable.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manifests.bundle import damage_error
from manifests.delta import base_error
from manifests.files import READ_ONLY, READ_ONLY_EXECUTABLE, disk_error, open_or_create, open_regular, read_into
from manifests.manifest import FileEntry
from manifests.medium import Medium
from manifests.pieces import Damage, Piece, Progress, ReadAt, Silent, Transfer, pieces_of, run_all, thread_count
from runtime.layout import make_folder
from runtime.steps import Checkpoint, go_on


@dataclass(slots=True, kw_only=True)
class _Filling:
    """A blob while its pieces arrive. ``kept`` says that the partial file holds a piece worth keeping."""

    entry: FileEntry
    partial: Path
    left: int
    resumed: bool
    good: bool = True
    kept: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Blobs below ``root``, by :attr:`FileEntry.store_key`."""

    root: Path
    checkpoint: Checkpoint = go_on

    def path(self, key: str) -> Path:
        """Return where the blob ``key`` lies or would lie."""
        return self.root / "sha256" / key[:2] / key

    def missing_bytes(self, files: Collection[FileEntry]) -> int:
        """Return how many bytes of ``files`` the store still lacks, each content counted once."""
        unique = {entry.store_key: entry for entry in files}
        return sum(entry.size for key, entry in unique.items() if not self._has_size(key, entry.size))

    def ingest(
        self,
        medium: Medium,
        files: Collection[FileEntry],
        trusted: Collection[str],
        progress: Progress,
        *,
        threads: int | None = None,
    ) -> None:
        """Copy and check what the store lacks, in one pass over the medium.

        Args:
            medium: Where to read; its layout was checked.
            files: What to have in the end.
            trusted: Store keys that a complete release holds: those are not read again.
            progress: Told of every payload byte, copied or found.
            threads: Pieces at a time, one for each core by default.

        Raises:
            IntegrityError: Names every damaged file; good blobs and good chunks stay for the next run.
            DiskError: No space, no permission.
        """
        stop = threading.Event()
        transfer = Transfer(progress, stop)
        damaged: list[Damage] = []
        lacking: list[str] = []
        unique: dict[str, FileEntry] = {}
        for entry in files:  # of two with one content the first, so that an ordered medium is read in order
            unique.setdefault(entry.store_key, entry)
        try:
            tasks = self._tasks(medium, unique, trusted, transfer, damaged, lacking=lacking)
            run_all(tasks, threads=1 if medium.ordered else threads or thread_count(), stop=stop)
        except OSError as error:
            raise disk_error(error, f"write below {self.root}") from error
        if lacking and medium.delta is not None:
            raise base_error(medium.label, medium.delta, sorted(lacking))
        if damaged:
            raise damage_error(medium, sorted(damaged, key=lambda damage: damage.piece.label))

    def lacking(self, medium: Medium, files: Sequence[FileEntry]) -> list[str]:
        """Return a line for each file that a delta leaves out and the store doesn't have, by its size.

        ``files`` are all of the manifest's.
        """
        carried = None if medium.delta is None else set(medium.delta.carried)
        left_out = (entry for index, entry in enumerate(files) if carried is not None and index not in carried)
        return [_absent(entry) for entry in left_out if not self._has_size(entry.store_key, entry.size)]

    def _tasks(
        self,
        medium: Medium,
        unique: dict[str, FileEntry],
        trusted: Collection[str],
        transfer: Transfer,
        damaged: list[Damage],
        *,
        lacking: list[str],
    ) -> Iterator[Callable[[memoryview], None]]:
        for key, entry in unique.items():
            if not medium.carries(entry):
                if not self._has_size(key, entry.size):
                    lacking.append(_absent(entry))
                    continue
                for piece in pieces_of(entry):
                    yield self._kept_task(piece, transfer, lacking)
                continue
            if self._has_size(key, entry.size) and (key in trusted or self._is_good(key, entry)):
                transfer.progress.advance(entry.size)
                continue
            filling = self._begin(key, entry)
            for piece in pieces_of(entry):
                yield self._piece_task(medium, filling, piece, transfer, damaged)

    def _kept_task(self, piece: Piece, transfer: Transfer, lacking: list[str]) -> Callable[[memoryview], None]:
        """Check a piece that a delta leaves out; what a release holds is left for `runtime repair` to heal."""

        def task(buffer: memoryview) -> None:
            with open_regular(self.path(piece.entry.store_key)) as descriptor:
                got = transfer.check(piece, _descriptor_reader(descriptor), buffer)
            if got != piece.sha256:
                lacking.append(f"{piece.label}: damaged in the store: expected sha256 {piece.sha256}, got {got}")

        return task

    def _piece_task(
        self, medium: Medium, filling: _Filling, piece: Piece, transfer: Transfer, damaged: list[Damage]
    ) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            try:
                self._take_piece(medium, filling, piece, transfer, damaged, buffer=buffer)
                self.checkpoint("piece written")
                self._finish_piece(filling)
            except BaseException:
                if not filling.kept:  # nothing in it would shorten the next run
                    filling.partial.unlink(missing_ok=True)
                raise

        return task

    def _take_piece(
        self,
        medium: Medium,
        filling: _Filling,
        piece: Piece,
        transfer: Transfer,
        damaged: list[Damage],
        *,
        buffer: memoryview,
    ) -> None:
        descriptor = open_or_create(filling.partial, mode=0o600)
        try:
            if not (filling.resumed and _has_piece(descriptor, piece, transfer, buffer)):
                with medium.reader(piece.entry) as read:
                    got = transfer.check(piece, read, buffer, (descriptor, 0))
                if got != piece.sha256:
                    damaged.append(Damage(piece=piece, got=got))
                    filling.good = False
                    return
            filling.kept = bool(filling.entry.chunks)
        finally:
            os.close(descriptor)

    def _begin(self, key: str, entry: FileEntry) -> _Filling:
        """Prepare the partial file. Only a chunked file resumes; a small one is simply read again."""
        path = self.path(key)
        make_folder(path.parent)
        partial = path.with_name(f"{key}.partial")
        resumed = bool(entry.chunks) and not partial.is_symlink() and partial.is_file()
        resumed = resumed and partial.stat().st_size <= entry.size
        if not resumed:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
        return _Filling(entry=entry, partial=partial, left=max(1, len(entry.chunks)), resumed=resumed, kept=resumed)

    def _finish_piece(self, filling: _Filling) -> None:
        with filling.lock:
            filling.left -= 1
            if filling.left:
                return
        if not filling.good:
            if not filling.kept:  # a resume hashes every chunk again, so the good ones may stay
                filling.partial.unlink()
            return
        self.checkpoint("blob checked")
        filling.partial.chmod(READ_ONLY_EXECUTABLE if filling.entry.executable else READ_ONLY)
        filling.partial.replace(self.path(filling.entry.store_key))
        self.checkpoint("blob stored")

    def _has_size(self, key: str, size: int) -> bool:
        try:
            status = self.path(key).lstat()
        except FileNotFoundError:
            return False
        return status.st_size == size and not self.path(key).is_symlink()

    def _is_good(self, key: str, entry: FileEntry) -> bool:
        """Hash a blob that no complete release vouches for; a bad one is removed."""
        if blob_is_good(self.path(key), entry):
            return True
        self.path(key).unlink()
        return False


def blob_is_good(path: Path, entry: FileEntry) -> bool:
    """Return whether the file at ``path`` has the content of ``entry``."""
    buffer = memoryview(bytearray(1024 * 1024))
    transfer = Transfer(Silent(), threading.Event())
    with open_regular(path) as descriptor:
        read = _descriptor_reader(descriptor)
        return all(transfer.check(piece, read, buffer) == piece.sha256 for piece in pieces_of(entry))


def _absent(entry: FileEntry) -> str:
    return f"{entry.path}: neither in the delta nor in the store"


def _has_piece(descriptor: int, piece: Piece, transfer: Transfer, buffer: memoryview) -> bool:
    quiet = Transfer(Silent(), transfer.stop)
    if quiet.check(piece, _descriptor_reader(descriptor), buffer) != piece.sha256:
        return False
    transfer.progress.advance(piece.size)
    return True


def _descriptor_reader(descriptor: int) -> ReadAt:
    def read(view: memoryview, offset: int) -> int:
        return read_into(descriptor, view, offset)

    return read
