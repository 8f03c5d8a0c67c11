"""Bringing a bundle into an OCI registry: its files as blobs, each once, and the OCI manifest last of all.

What the registry has isn't sent again. Every byte that leaves is compared with the manifest on the way, so that a
damaged bundle never becomes a tag.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from bundler.publishing.uploads import Content, Upload
from manifests.artifact import EMPTY, EMPTY_DIGEST, OCI_MANIFEST, Layer, encode_artifact
from manifests.bundle import carried_files, damage_error
from manifests.delta import DELTA_NAME
from manifests.digests import BUFFER_SIZE, CHUNK_SIZE, sha256_hex
from manifests.errors import SourceError, UsageError
from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest, parse_manifest
from manifests.medium import Medium
from manifests.pieces import Damage, Piece, Progress, pieces_of, run_all
from manifests.reference import Remote
from manifests.registry import Attempts, Registry, refusal

STREAMS: Final = 4
"""Files at a time: enough to fill a link, few enough for a registry that others use too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push did: the OCI manifest's digest, how many blobs and bytes were sent, and how many were there."""

    digest: str
    sent: int
    sent_size: int
    found: int


@dataclass(slots=True, kw_only=True)
class _Tally:
    sent: int = 0
    sent_size: int = 0
    found: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, size: int | None) -> None:
        """Count a blob of ``size`` bytes that was sent, or with None one that was there."""
        with self.lock:
            self.sent += size is not None
            self.sent_size += size or 0
            self.found += size is None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blob:
    """Something to have in the registry; ``what`` is how messages call it."""

    digest: str
    size: int
    content: Content
    what: str


def push_bundle(
    medium: Medium, remote: Remote, progress: Progress, environment: Mapping[str, str] | None = None
) -> Pushed:
    """Make a bundle the content of a tag; a co-signed one differs by one small blob and the OCI manifest.

    Args:
        medium: The bundle. Its layout is checked here, its signatures are for whoever reads it there.
        remote: A tag, which may be another bundle's up to now.
        progress: Told of every byte, sent or found there.
        environment: Where logins are looked for; the process' own without one.

    Raises:
        UsageError: ``remote`` is a digest, or the OCI manifest would be too large; nothing was sent.
        SourceError: The registry can't be reached, or doesn't take it; what was sent needn't be sent again.
        IntegrityError: The bundle is damaged; the tag is what it was.
    """
    if remote.reference.is_digest:
        raise UsageError(f"{remote}: a push needs a tag, not a digest", hint="oci://HOST/REPOSITORY:TAG")
    manifest = parse_manifest(medium.manifest_bytes)
    medium.check_layout(manifest)
    artifact = encode_artifact(manifest, layers_of(medium, manifest))
    tally = _Tally()
    with Registry(remote, push=True, environment=environment) as registry:
        blobs = {blob.digest: blob for blob in _blobs(medium, manifest, progress)}
        stop = threading.Event()
        tasks = (_sending(registry, blob, tally, progress) for blob in blobs.values())
        run_all(tasks, threads=1 if medium.ordered else STREAMS, stop=stop)
        _put_manifest(registry, artifact)
    digest = f"sha256:{sha256_hex(artifact)}"
    return Pushed(digest=digest, sent=tally.sent, sent_size=tally.sent_size, found=tally.found)


def layers_of(medium: Medium, manifest: Manifest) -> Iterator[Layer]:
    """Yield the layers of a bundle in their order: manifest, signatures, of a delta its list, then the files."""
    for title, data in _documents(medium):
        yield Layer(title=title, digest=f"sha256:{sha256_hex(data)}", size=len(data))
    for entry in carried_files(medium, manifest):
        yield Layer(title=entry.path, digest=f"sha256:{entry.sha256}", size=entry.size)


def _documents(medium: Medium) -> Iterator[tuple[str, bytes]]:
    yield MANIFEST_NAME, medium.manifest_bytes
    yield SIGNATURE_NAME, medium.signature_slot
    if medium.delta is not None:
        yield DELTA_NAME, medium.delta.encode()


def _blobs(medium: Medium, manifest: Manifest, progress: Progress) -> Iterator[_Blob]:
    for title, data in (("the config", EMPTY), *_documents(medium)):
        digest = EMPTY_DIGEST if data == EMPTY else f"sha256:{sha256_hex(data)}"
        yield _Blob(digest=digest, size=len(data), content=_bytes_content(data), what=title)
    for entry in carried_files(medium, manifest):
        content = _checked_content(medium, entry, progress)
        yield _Blob(digest=f"sha256:{entry.sha256}", size=entry.size, content=content, what=entry.path)


def _sending(registry: Registry, blob: _Blob, tally: _Tally, progress: Progress) -> Callable[[memoryview], None]:
    def task(_: memoryview) -> None:
        if registry.blob_size(blob.digest) in {blob.size, -1}:
            tally.count(None)
            progress.advance(blob.size)
            return
        Upload(registry, blob.digest, blob.size, blob.content, blob.what).send()
        tally.count(blob.size)

    return task


def _put_manifest(registry: Registry, artifact: bytes) -> None:
    remote = registry.remote
    url = f"{remote.base}/manifests/{remote.reference.tag}"
    headers = {"Content-Type": OCI_MANIFEST, "Content-Length": str(len(artifact))}
    reply = registry.reply("PUT", url, Attempts(remote, "its OCI manifest"), headers=headers, body=artifact)
    with contextlib.closing(reply):
        if reply.status != 201:
            raise SourceError(f"{remote}: the registry doesn't take the OCI manifest: {refusal(reply)}")


def _bytes_content(data: bytes) -> Content:
    return lambda start, end: iter((memoryview(data)[start:end],))


def _checked_content(medium: Medium, entry: FileEntry, progress: Progress) -> Content:
    """Return what reads a file by pieces; the end of a piece is given away only once its digest was compared."""
    pieces = tuple(pieces_of(entry))

    def content(start: int, end: int) -> Iterator[memoryview]:
        for piece in pieces[start // CHUNK_SIZE : -(-end // CHUNK_SIZE) or 1]:
            for view, offset in _checked_views(medium, piece):
                part = view[max(0, start - offset) : end - offset]
                if part:
                    yield part
                    progress.advance(len(part))

    return content


def _checked_views(medium: Medium, piece: Piece) -> Iterator[tuple[memoryview, int]]:
    """Yield the bytes of a piece and their offsets in the file.

    Raises:
        IntegrityError: The digest is another; the last bytes weren't given away then.
    """
    buffer = memoryview(bytearray(min(BUFFER_SIZE, max(piece.size, 1))))
    digest, done, got = hashlib.sha256(), 0, ""
    with medium.reader(piece.entry) as read:
        while done < piece.size:
            view = buffer[: min(len(buffer), piece.size - done)]
            count = read(view, piece.offset + done)
            digest.update(view[:count])
            done += count
            got = digest.hexdigest() if count == len(view) else f"only {done} of {piece.size} bytes"
            is_last = done == piece.size or count < len(view)
            if is_last and got != piece.sha256:
                raise damage_error(medium, [Damage(piece=piece, got=got)])
            yield view, piece.offset + done - count
