"""The repair file: a few pieces of a bundle, by their digests, for a medium or an installation that was damaged.

::

    sealift-chunks-1
    <sha256> <size in bytes>      one line for each piece, in order
    (an empty line)
    the pieces, one after another

It is signed by nobody and need not be: whoever uses a piece compares it with the signed manifest.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from manifests.bundle import carried_files
from manifests.digests import CHUNK_SIZE
from manifests.errors import IntegrityError
from manifests.files import open_regular, read_exactly, read_into
from manifests.manifest import parse_manifest
from manifests.medium import FolderMedium, Medium, open_medium
from manifests.pieces import Piece, ReadAt, pieces_of
from manifests.reference import Remote
from manifests.sources import Supply

CHUNKS_MAGIC: Final = b"sealift-chunks-1\n"
_LINE: Final = re.compile(rb"([0-9a-f]{64}) (0|[1-9][0-9]{0,8})")
_MOST_INDEX: Final = 16 * 1000 * 1000


class PieceSource(Protocol):
    """Where pieces can be had, good or not: the reader compares digests."""

    label: str

    def has(self, sha256: str) -> bool:
        """Return whether it claims to have a piece with this digest."""

    def reader(self, piece: Piece) -> contextlib.AbstractContextManager[ReadAt]:
        """Return a context in which ``piece`` can be read, at offsets within the *wanted* piece's own file."""


class ChunkFile:
    """An open repair file."""

    __slots__ = ("_descriptor", "_places", "label")

    def __init__(self, descriptor: int, label: str) -> None:
        self._descriptor, self.label = descriptor, label
        self._places = _read_index(descriptor, label)

    def has(self, sha256: str) -> bool:
        return sha256 in self._places

    @contextlib.contextmanager
    def reader(self, piece: Piece) -> Iterator[ReadAt]:
        start, size = self._places[piece.sha256]

        def read(view: memoryview, offset: int) -> int:
            inside = offset - piece.offset
            return read_into(self._descriptor, view[: max(0, size - inside)], start + inside)

        yield read


class BundlePieces:
    """Another copy of a bundle, or another bundle with the same files."""

    __slots__ = ("_medium", "_pieces", "label")

    def __init__(self, medium: Medium) -> None:
        manifest = parse_manifest(medium.manifest_bytes)
        if not isinstance(medium, FolderMedium):  # of a folder, single files may be missing
            medium.check_layout(manifest)
        self._medium, self.label = medium, medium.label
        files = carried_files(medium, manifest)
        self._pieces: Mapping[str, Piece] = {p.sha256: p for entry in files for p in pieces_of(entry)}

    def has(self, sha256: str) -> bool:
        return sha256 in self._pieces

    @contextlib.contextmanager
    def reader(self, piece: Piece) -> Iterator[ReadAt]:
        found = self._pieces[piece.sha256]
        with self._medium.reader(found.entry) as read:
            yield lambda view, offset: read(view, offset - piece.offset + found.offset)

    def manifest_parts(self) -> tuple[bytes, bytes]:
        """Return the raw manifest and signature slot of this bundle, which nobody checked."""
        return self._medium.manifest_bytes, self._medium.signature_slot


@contextlib.contextmanager
def open_pieces(path: Path | Remote, supply: Supply | None = None) -> Iterator[ChunkFile | BundlePieces]:
    """Open a repair file, a bundle's tar or first volume, or its folder; ``supply`` as for :func:`open_medium`.

    Raises:
        UsageError: There is nothing at ``path``.
        IntegrityError: It is none of them.
        DiskError: It can't be read.
    """
    if isinstance(path, Path) and path.is_file():
        with open_regular(path.resolve()) as descriptor:
            if read_exactly(descriptor, len(CHUNKS_MAGIC), 0) == CHUNKS_MAGIC:
                yield ChunkFile(descriptor, str(path))
                return
    with open_medium(path, supply) as medium:
        yield BundlePieces(medium)


def encode_index(pieces: Iterator[Piece] | tuple[Piece, ...]) -> bytes:
    """Return what a repair file begins with; the pieces' own bytes follow."""
    return CHUNKS_MAGIC + b"".join(f"{p.sha256} {p.size}\n".encode("ascii") for p in pieces) + b"\n"


def _read_index(descriptor: int, label: str) -> dict[str, tuple[int, int]]:
    """Return where each piece lies: digest -> offset and size."""
    size = os.fstat(descriptor).st_size
    head, end, _ = read_exactly(descriptor, min(size, _MOST_INDEX), 0).partition(b"\n\n")
    if not end:
        raise IntegrityError(f"{label}: a repair file without an end of its list")
    places: dict[str, tuple[int, int]] = {}
    offset = len(head) + 2
    for number, line in enumerate(head.split(b"\n")[1:], start=2):
        match = _LINE.fullmatch(line)
        if match is None or int(match[2]) > CHUNK_SIZE:
            raise IntegrityError(f"{label}:{number}: not a digest and a size of at most {CHUNK_SIZE} bytes")
        places[match[1].decode("ascii")] = (offset, int(match[2]))
        offset += int(match[2])
    if offset != size:
        raise IntegrityError(f"{label}: {size} bytes, its list says {offset}")
    return places
