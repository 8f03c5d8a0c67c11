"""From a hostile medium to a trusted bundle, in the one order that is safe.

signature -> manifest -> layout -> contents. Each step returns the object that the next one needs, so the order can't be
got wrong.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError, SealiftError
from manifests.manifest import FileEntry, Manifest, manifest_digest, parse_manifest
from manifests.medium import Medium, list_problems
from manifests.pieces import Damage, Piece, Progress, Transfer, pieces_of, run_all, thread_count
from manifests.trust import TrustRoot, VerifiedSigner, verify_signatures


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedBundle:
    """A medium whose manifest was signed by someone trusted. ``digest`` is the sha256 of manifest.json."""

    medium: Medium
    manifest: Manifest
    digest: str
    signers: tuple[VerifiedSigner, ...]


def verify_trust(medium: Medium, trust: TrustRoot, *, threshold: int = 1, now: datetime) -> TrustedBundle:
    """Check the signatures over the raw manifest bytes, and only then parse them.

    Raises:
        TrustError: Not signed by ``threshold`` trusted keys.
        IntegrityError: Signed, but not a manifest.
    """
    signers = verify_signatures(medium.manifest_bytes, medium.signature_slot, trust, threshold=threshold, now=now)
    return TrustedBundle(
        medium=medium,
        manifest=parse_manifest(medium.manifest_bytes),
        digest=manifest_digest(medium.manifest_bytes),
        signers=signers,
    )


def verify_content(
    medium: Medium, manifest: Manifest, progress: Progress, *, deep: bool = False, threads: int | None = None
) -> None:
    """Check layout and every byte of the payload; ``deep`` recomputes the whole-file digest of chunked files too.

    Raises:
        IntegrityError: Names every damaged file, and the chunk where the file has chunks.
        DiskError: The medium can't be read.
    """
    medium.check_layout(manifest)
    damaged = find_damage(medium, manifest.files, progress, threads=threads)
    problems = [str(damage) for damage in damaged]
    if deep and not problems:
        problems = list(whole_file_problems(medium, manifest.files))
    if problems:
        raise IntegrityError(list_problems(medium.label, problems), hint="copy the bundle again from its source")


def whole_file_problems(medium: Medium, files: tuple[FileEntry, ...]) -> Iterator[str]:
    """Yield every chunked file whose chunks are good but whose whole-file sha256 is another than the manifest's."""
    buffer = memoryview(bytearray(BUFFER_SIZE))
    for entry in files:
        if entry.chunks:
            digest, done = hashlib.sha256(), 0
            with medium.reader(entry) as read:
                while done < entry.size and (count := read(buffer[: min(BUFFER_SIZE, entry.size - done)], done)):
                    digest.update(buffer[:count])
                    done += count
            if digest.hexdigest() != entry.sha256:
                yield f"{entry.path}: expected sha256 {entry.sha256}, got {digest.hexdigest()} for the whole file"


def find_damage(
    medium: Medium, files: tuple[FileEntry, ...], progress: Progress, *, threads: int | None = None
) -> list[Damage]:
    """Return every damaged piece of ``files``, in bundle order; :meth:`Medium.check_layout` must have passed."""
    stop = threading.Event()
    transfer = Transfer(progress, stop)
    found: list[Damage] = []

    def check(piece: Piece) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            try:
                with medium.reader(piece.entry) as read:
                    got = transfer.check(piece, read, buffer)
            except SealiftError as error:
                got = error.message
            if got != piece.sha256:
                found.append(Damage(piece=piece, got=got))

        return task

    def tasks() -> Iterator[Callable[[memoryview], None]]:
        for entry in files:
            yield from map(check, pieces_of(entry))

    run_all(tasks(), threads=threads or thread_count(), stop=stop)
    order = {entry.path: index for index, entry in enumerate(files)}
    return sorted(found, key=lambda damage: (order[damage.piece.entry.path], damage.piece.offset))
