"""``python -m benchmarks.sparse FOLDER BYTES``: a signed bundle with one huge model that takes no room on the disk."""

import hashlib
import sys
from pathlib import Path

from manifests.digests import BUFFER_SIZE, CHUNK_SIZE, chunk_count
from manifests.manifest import FileEntry, Manifest
from tests.factories import NOW, TARGET, make_key, sign_slot, write_bundle


def write_sparse_bundle(folder: Path, size: int) -> Path:
    """Write a bundle whose model is ``size`` zero bytes, as a hole, and ``key.allowed_signers`` beside it.

    The whole-file digest is not computed, since verifying reads chunk digests; a ``--deep`` check would refuse it.
    """
    count = chunk_count(size)
    last = size - (count - 1) * CHUNK_SIZE
    chunks = (*[_zero_digest(CHUNK_SIZE)] * (count - 1), _zero_digest(last))
    entry = FileEntry(
        path="models/huge/model.safetensors", size=size, sha256="0" * 64, mode=0o644, kind="model", chunks=chunks
    )
    manifest = Manifest(
        name="sparse",
        version="1.0.0",
        created=f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
        sequence=1,
        target=TARGET,
        files=(entry,),
    )
    tar = folder / "sparse.bundle.tar"
    slot = sign_slot(manifest.encode(), make_key(folder / "key"))
    write_bundle(tar, manifest, {entry.path: size}, slot)
    return tar


def _zero_digest(size: int) -> str:
    digest, block = hashlib.sha256(), memoryview(bytes(BUFFER_SIZE))
    for start in range(0, size, BUFFER_SIZE):
        digest.update(block[: size - start])
    return digest.hexdigest()


if __name__ == "__main__":
    write_sparse_bundle(Path(sys.argv[1]), int(sys.argv[2]))
