"""From a hostile medium to a trusted bundle, in the one order that is safe.

signature -> manifest -> layout -> contents. Each step returns the object that the next one needs, so the order can't be
got wrong.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError, SealiftError, SourceError, UsageError, list_problems
from manifests.manifest import FileEntry, Manifest, manifest_digest, parse_manifest
from manifests.medium import FrameError, Medium
from manifests.pieces import Damage, Piece, Progress, Transfer, pieces_of, run_all, thread_count
from manifests.sources import MediumError
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
    """Check layout and every byte of the payload that is there; ``deep`` recomputes chunked files' whole digests too.

    Raises:
        UsageError: ``deep`` of a medium that can't be read twice.
        IntegrityError: Names every damaged file, the chunk where the file has chunks, and the volume.
        DiskError: The medium can't be read.
    """
    problems: list[str] = []
    try:
        medium.check_layout(manifest)
    except FrameError as error:  # of volumes: others may be damaged too, and all are to be named at once
        problems = list(error.problems)
    framed = [problem.partition(":")[0] for problem in problems]
    if deep and medium.ordered:
        raise UsageError("--deep reads big files twice, which this medium can't give", hint="leave --deep out")
    files = carried_files(medium, manifest)
    damaged = find_damage(medium, files, progress, threads=threads)
    medium.check_end()
    if deep and not damaged and not problems:
        problems = list(whole_file_problems(medium, files))
    if problems or damaged:
        raise damage_error(medium, damaged, problems, volumes=framed)


def carried_files(medium: Medium, manifest: Manifest) -> tuple[FileEntry, ...]:
    """Return the files of the manifest that are on the medium: all of them, unless it is a delta."""
    return manifest.files if medium.delta is None else medium.delta.files(manifest)


def damage_error(
    medium: Medium, damaged: Sequence[Damage], problems: Sequence[str] = (), *, volumes: Sequence[str] = ()
) -> IntegrityError:
    """Return (not raise) the error that names every damaged piece, and which volumes are to be carried again.

    ``problems`` are lines that come first, ``volumes`` the names of volumes that are known to be bad already.
    """
    lines, bad = list(problems), set(volumes)
    for damage in damaged:
        places = medium.volumes_of(damage.piece.entry, damage.piece.offset, damage.piece.size)
        lines.append(f"{' or '.join(places)}: {damage}" if places else str(damage))
        bad.update(places)
    again = ", ".join(sorted(bad))
    hint = f"only these are to be carried again: {again}" if again else "copy the bundle again from its source"
    return IntegrityError(list_problems(medium.label, lines), hint=hint)


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
            except (MediumError, SourceError):
                raise
            except SealiftError as error:
                got = error.message
            if got != piece.sha256:
                found.append(Damage(piece=piece, got=got))

        return task

    def tasks() -> Iterator[Callable[[memoryview], None]]:
        for entry in files:
            yield from map(check, pieces_of(entry))

    run_all(tasks(), threads=1 if medium.ordered else threads or thread_count(), stop=stop)
    order = {entry.path: index for index, entry in enumerate(files)}
    return sorted(found, key=lambda damage: (order[damage.piece.entry.path], damage.piece.offset))
