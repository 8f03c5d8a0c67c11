"""Rebuilding a bundle to compare it with one that somebody else built, so that a second party can sign it, too.

Everything is had again from where the lock says it comes from. What can't be made again bit for bit, such as a wheel
that was built from an sdist or weights that were converted, is taken from the bundle by the lock's digest, and named.
"""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.contents.compose import compose
from bundler.lock import Lock, LockedFile
from bundler.sealing.build import check_lock, payload_source
from bundler.sealing.pack import Source
from bundler.spec import Spec
from bundler.store import Store
from manifests.bundle import carried_files, verify_content
from manifests.errors import IntegrityError, SourceError, list_problems
from manifests.manifest import FileEntry, Manifest, manifest_digest, parse_manifest
from manifests.medium import Medium, open_medium
from manifests.pieces import Piece, Progress, ReadAt, Transfer, pieces_of, run_all, thread_count
from manifests.sources import Supply

_MADE: Final = ("built ", "converted")
"""How the lock calls what was made rather than fetched (:class:`bundler.lock.LockedFile`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A bundle that is what the lock says. ``taken`` are the paths that could not be made again here."""

    digest: str
    files: int
    size: int
    taken: tuple[str, ...]


def check_rebuild(
    spec: Spec,
    lock: Lock,
    store: Store,
    bundle: Path,
    supply: Supply,
    *,
    fetch: Callable[[], object],
    progress: Callable[[int], contextlib.AbstractContextManager[Progress]],
    report: Callable[[str], None],
) -> Rebuilt:
    """Rebuild from a lock, and require that a bundle has the same bytes.

    Args:
        spec: What the lock was made from.
        lock: Not changed, whatever is found.
        store: The checking party's own; what is fetched stays there.
        bundle: Whose signatures don't matter here.
        supply: As for :func:`manifests.medium.open_medium`.
        fetch: Has everything that the spec asks for brought into the store, as far as it can be had.
        progress: Opens a progress display for a number of bytes.
        report: Told of every step, in a few words.

    Raises:
        SpecError: The lock belongs to another spec or another Sealift.
        SourceError: Something that was fetched for the bundle can't be had.
        IntegrityError: The bundle is another; every difference is named.
    """
    check_lock(spec, lock)
    if _missing(lock, store):
        report("fetch and make what the lock lists")
        fetch()
    with open_medium(bundle, supply) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        taken = _take(medium, manifest, _missing(lock, store), store)
        report("rebuild")
        composition = compose(lock, store)
        _require_same(medium, composition.manifest)
        with progress(2 * manifest.payload_size) as shown:
            _require_sources(manifest.files, payload_source(composition, store), shown)
            verify_content(medium, manifest, shown)
    return Rebuilt(
        digest=manifest_digest(medium.manifest_bytes),
        files=len(manifest.files),
        size=sum(entry.size for entry in carried_files(medium, manifest)),
        taken=taken,
    )


def _missing(lock: Lock, store: Store) -> list[LockedFile]:
    return [file for file in lock.all_files() if file.sha256 not in store]


def _take(medium: Medium, manifest: Manifest, missing: Sequence[LockedFile], store: Store) -> tuple[str, ...]:
    """Bring what was made, and came out otherwise here, from the bundle into the store; nothing else is taken.

    Raises:
        SourceError: Something else is missing.
        IntegrityError: The bundle doesn't have it, or has it damaged.
    """
    lost = [file for file in missing if not file.source.startswith(_MADE)]
    if lost:
        lines = [f"{file.path} ({file.source or 'no source'}): sha256 {file.sha256}" for file in lost]
        msg = list_problems("what the lock lists can't be had, and isn't taken from the bundle", lines)
        raise SourceError(msg, hint="make its source reachable, and check again")
    entries = {entry.path: entry for entry in manifest.files if medium.carries(entry)}
    for file in missing:
        entry = entries.get(file.path)
        if entry is None or entry.sha256 != file.sha256:
            raise IntegrityError(f"{medium.label}: has no {file.path} with sha256 {file.sha256}, as the lock says")
        with medium.reader(entry) as read, io.BufferedReader(_Content(entry, read)) as stream:
            store.add_stream(stream, expected_sha256=file.sha256, what=f"{medium.label}: {file.path}")
    return tuple(file.path for file in missing)


class _Content(io.RawIOBase):
    """A file of a medium as a stream."""

    def __init__(self, entry: FileEntry, read: ReadAt) -> None:
        self._left, self._size, self._read = entry.size, entry.size, read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override] # io calls it with these
        view = memoryview(buffer)[: self._left]
        count = self._read(view, self._size - self._left) if view else 0
        self._left -= count
        return count


def _require_same(medium: Medium, rebuilt: Manifest) -> None:
    if rebuilt.encode() == medium.manifest_bytes:
        return
    theirs = parse_manifest(medium.manifest_bytes)
    problems = list(_differences(theirs, rebuilt)) or ["the manifests differ in how they are written"]
    hint = "don't sign it: it was made from another lock, another spec or another Sealift"
    raise IntegrityError(list_problems(f"{medium.label}: is not what the lock gives", problems), hint=hint)


def _differences(theirs: Manifest, ours: Manifest) -> Iterator[str]:
    for name in ("name", "version", "created", "sequence", "target", "models", "app", "policy", "launch", "probes"):
        if getattr(theirs, name) != getattr(ours, name):
            yield f"{name}: differs"
    if (theirs.minimum, theirs.recommended) != (ours.minimum, ours.recommended):
        yield "requires: differs"
    one, two = ({entry.path: entry for entry in manifest.files} for manifest in (theirs, ours))
    for path in sorted(one.keys() | two.keys()):
        if path not in two:
            yield f"{path}: in the bundle, not rebuilt"
        elif path not in one:
            yield f"{path}: rebuilt, not in the bundle"
        elif one[path] != two[path]:
            yield f"{path}: sha256 {one[path].sha256} in the bundle, {two[path].sha256} rebuilt"


def _require_sources(files: Sequence[FileEntry], source: Source, progress: Progress) -> None:
    """Read everything of our own once, so that the comparison isn't with mere names of a store."""
    stop = threading.Event()
    transfer = Transfer(progress, stop)
    problems: list[str] = []

    def check(piece: Piece) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            with source(piece.entry) as read:
                got = transfer.check(piece, read, buffer)
            if got != piece.sha256:
                problems.append(f"{piece.label}: expected sha256 {piece.sha256}, got {got}")

        return task

    run_all((check(piece) for entry in files for piece in pieces_of(entry)), threads=thread_count(), stop=stop)
    if problems:
        raise IntegrityError(list_problems("this builder's store is damaged", sorted(problems)))
