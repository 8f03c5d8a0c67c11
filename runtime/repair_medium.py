"""Healing a bundle on its medium: the damaged pieces are written anew in their places, once they were checked."""

import contextlib
import os
import threading

from manifests.bundle import TrustedBundle, carried_files, find_damage
from manifests.chunkfile import PieceSource
from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError
from manifests.files import disk_error, open_no_link, write_all
from manifests.medium import FolderMedium, Medium
from manifests.pieces import Damage, Piece, Progress, ReadAt, Silent, Transfer
from runtime.repair import Repaired


def repair_medium(bundle: TrustedBundle, source: PieceSource | None, progress: Progress) -> Repaired:
    """Find the damaged pieces of a bundle on its medium; with a ``source``, write the good ones in their place.

    Raises:
        IntegrityError: The frame between the files is damaged: no single piece can heal that.
        DiskError: The medium can't be read, or not be written.
    """
    bundle.medium.check_layout(bundle.manifest)
    damaged = find_damage(bundle.medium, carried_files(bundle.medium, bundle.manifest), progress)
    healed: list[Damage] = []
    remaining: list[Damage] = []
    for damage in damaged:
        done = source is not None and _heal_in_place(bundle.medium, damage.piece, source)
        (healed if done else remaining).append(damage)
    names = tuple(damage.piece.label for damage in healed)
    return Repaired(damaged=tuple(damaged), remaining=tuple(remaining), healed=names)


def _heal_in_place(medium: Medium, piece: Piece, source: PieceSource) -> bool:
    data = _fetch(source, piece)
    if data is None:
        return False
    for part in medium.parts(piece.entry, piece.offset, piece.size):
        try:
            # A tar's path may be a link that the operator made; in a folder no link is followed.
            target = part.path if isinstance(medium, FolderMedium) else part.path.resolve()
            descriptor = open_no_link(target, writable=True)
            try:
                write_all(descriptor, data[: part.size], part.offset)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise disk_error(error, f"write {part.path}") from error
        data = data[part.size :]
    return True


def _fetch(source: PieceSource, piece: Piece) -> memoryview | None:
    """Return the bytes of a piece, at most 64 MiB, or None where the source hasn't them or has them damaged."""
    if not source.has(piece.sha256):
        return None
    data = memoryview(bytearray(piece.size))
    transfer = Transfer(Silent(), threading.Event())
    with contextlib.suppress(IntegrityError), source.reader(piece) as read:
        if transfer.check(piece, _teeing(read, data, piece.offset), memoryview(bytearray(BUFFER_SIZE))) == piece.sha256:
            return data
    return None


def _teeing(read: ReadAt, data: memoryview, start: int) -> ReadAt:
    """Return ``read`` that also keeps in ``data`` what was read, so that what was checked is what is used."""

    def keep(view: memoryview, offset: int) -> int:
        count = read(view, offset)
        data[offset - start : offset - start + count] = view[:count]
        return count

    return keep
