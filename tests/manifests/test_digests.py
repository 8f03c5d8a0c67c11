"""Whole-file and chunk digests in one pass."""

import hashlib
import io

import pytest

from manifests.digests import CHUNK_SIZE, ContentHasher, chunk_count, digest_bytes, digest_stream, sha256_hex


def test_sha256_hex() -> None:
    assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (1, 1), (CHUNK_SIZE, 1), (CHUNK_SIZE + 1, 2), (2 * CHUNK_SIZE, 2), (10**13, 149012)]
)
def test_chunk_count(size: int, count: int) -> None:
    assert chunk_count(size) == count


@pytest.mark.parametrize("data", [b"", b"x", bytes(3 << 20)])
def test_small_contents_have_no_chunks(data: bytes) -> None:
    got = digest_bytes(data)
    assert (got.size, got.sha256, got.chunks) == (len(data), hashlib.sha256(data).hexdigest(), ())
    assert digest_stream(io.BytesIO(data)) == got


def test_chunks_appear_beyond_64_mib_only() -> None:
    block = bytes(range(256)) * 4096
    hasher = ContentHasher()
    for _ in range(64):
        hasher.update(block)
    assert hasher.digest().chunks == ()
    hasher.update(memoryview(b"tail"))
    got = hasher.digest()
    whole = block * 64
    assert got.size == CHUNK_SIZE + 4
    assert got.sha256 == hashlib.sha256(whole + b"tail").hexdigest()
    assert got.chunks == (hashlib.sha256(whole).hexdigest(), hashlib.sha256(b"tail").hexdigest())
    assert hasher.digest() == got


def test_one_update_may_span_chunks() -> None:
    got = digest_bytes(bytes(2 * CHUNK_SIZE))
    zeros = hashlib.sha256(bytes(CHUNK_SIZE)).hexdigest()
    assert got.chunks == (zeros, zeros)
