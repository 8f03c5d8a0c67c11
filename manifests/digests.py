"""Digests: SHA-256 of whole files and of their 64 MiB chunks."""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO, Final

CHUNK_SIZE: Final = 64 * 1024 * 1024
BUFFER_SIZE: Final = 1024 * 1024


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def chunk_count(size: int) -> int:
    """Return how many 64 MiB chunks ``size`` bytes make, the last one maybe short."""
    return -(-size // CHUNK_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentDigest:
    """Size in bytes, SHA-256 of all of it, and of each 64 MiB where there are more than 64 MiB."""

    size: int
    sha256: str
    chunks: tuple[str, ...] = ()


class ContentHasher:
    """Takes bytes in order, gives their :class:`ContentDigest`; both digests in one pass."""

    __slots__ = ("_chunk", "_chunks", "_room", "_size", "_whole")

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._chunks: list[str] = []
        self._room = CHUNK_SIZE
        self._size = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._whole.update(data)
        self._size += len(data)
        view = memoryview(data)
        while len(view) >= self._room:
            self._chunk.update(view[: self._room])
            self._chunks.append(self._chunk.hexdigest())
            view = view[self._room :]
            self._chunk, self._room = hashlib.sha256(), CHUNK_SIZE
        self._chunk.update(view)
        self._room -= len(view)

    def digest(self) -> ContentDigest:
        """Return the digests of all bytes so far."""
        chunks = [*self._chunks, self._chunk.hexdigest()] if self._room < CHUNK_SIZE else self._chunks
        listed = tuple(chunks) if self._size > CHUNK_SIZE else ()
        return ContentDigest(size=self._size, sha256=self._whole.hexdigest(), chunks=listed)


def digest_stream(stream: BinaryIO) -> ContentDigest:
    """Read ``stream`` to its end and return its digests."""
    hasher = ContentHasher()
    while data := stream.read(BUFFER_SIZE):
        hasher.update(data)
    return hasher.digest()


def digest_bytes(data: bytes) -> ContentDigest:
    """Return the digests of ``data``."""
    hasher = ContentHasher()
    hasher.update(data)
    return hasher.digest()
