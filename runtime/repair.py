"""Healing what a disk or a medium damaged: only the bad pieces are fetched, each is checked against what is signed.

An installed file is healed by a new one beside it: the good pieces are copied from the old, the bad ones fetched, then
the store's name and every release's name are moved to it, each in one step. Running programs keep the old file. A
damaged environment is made anew once its wheels are whole (:mod:`runtime.rebuild`).
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from manifests.bundle import TrustedBundle
from manifests.chunkfile import BundlePieces, PieceSource
from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError, SealiftError, TrustError
from manifests.files import (
    READ_ONLY,
    READ_ONLY_EXECUTABLE,
    create_exclusive,
    disk_error,
    open_regular,
    read_into,
    set_mode,
    sync_folder,
    write_atomic,
)
from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest, manifest_digest
from manifests.medium import FolderMedium, Medium
from manifests.pieces import Damage, Piece, Progress, ReadAt, Silent, Transfer, pieces_of, run_all, thread_count
from runtime.layout import DIGEST_LENGTH, RECEIPT_NAME, Prefix, Release, exclusive
from runtime.rebuild import RebuildOptions, drop_bytecode, find_broken, rebuild_all
from runtime.state import record
from runtime.store import Store

Verify = Callable[[Medium], TrustedBundle]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair found and did.

    ``damaged`` are the pieces that were bad at the start, ``remaining`` those that still are. ``healed`` names files
    that are whole again, ``relinked`` the files that took a bad one's place or got their mode back, ``manifests`` the
    releases whose signed manifest came back, ``rebuilt`` those whose environment was made anew; ``environments`` says
    of each release with a damaged environment what was wrong. ``blocked`` says of others why they stay as they are.
    """

    damaged: tuple[Damage, ...] = ()
    remaining: tuple[Damage, ...] = ()
    healed: tuple[str, ...] = ()
    relinked: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    environments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged any more."""
        return not (self.remaining or self.blocked or self.environments.keys() - set(self.rebuilt))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blob:
    """A file of the store, and the files of releases that must be the same file."""

    entry: FileEntry
    path: Path
    names: tuple[Path, ...]

    @property
    def strays(self) -> tuple[Path, ...]:
        """Return the names that aren't the store's file."""
        return tuple(name for name in self.names if not _same_file(name, self.path))


def repair_prefix(
    prefix: Prefix,
    verify: Verify,
    source: PieceSource | None,
    progress: Progress,
    *,
    change: bool = True,
    rebuild: RebuildOptions | None = None,
) -> Repaired:
    """Find what is damaged in the store and in every release, and heal what can be healed.

    Args:
        prefix: Where.
        verify: Checks the signature of a release's manifest.
        source: Where to take pieces from that no release has a good copy of.
        progress: Told of every byte that is checked.
        change: False only looks.
        rebuild: How a damaged environment is made anew.

    Raises:
        UsageError: Nothing is installed.
        InstallError: A new environment is refused.
        HostError: There is no interpreter for a new environment.
        DiskError: An installer is at work, or something can't be read or written.
        TrustError: A release is signed by nobody who is trusted.
    """
    require_installed(prefix)
    with exclusive(prefix, "repair"):
        back, blocked, releases = _check_manifests(prefix, verify, source)
        blobs = _blobs(prefix, releases)
        damaged = _find_damaged(blobs, progress)
        if not change:
            broken, unknown = find_broken(releases, {damage.piece.entry.store_key for damage in damaged}, progress)
            found = Repaired(damaged=tuple(damaged), remaining=tuple(damaged), blocked=(*blocked, *unknown))
            return replace(found, environments={one.release.name: one.problems for one in broken})
        remaining = _heal(prefix, blobs, damaged, source)
        relinked = _relink(blobs, {damage.piece.entry.store_key for damage in remaining})
        if relinked or back:
            for release, bundle in releases:
                _refresh_receipt(release, bundle.manifest)
            record(prefix, f"repair: {len(relinked)} files, {len(back)} manifests")
        broken, unknown = find_broken(releases, {damage.piece.entry.store_key for damage in remaining}, progress)
        for release, _ in releases:
            drop_bytecode(prefix, release)
        rebuilt, used = rebuild_all(prefix, broken, rebuild or RebuildOptions())
    left = {damage.piece.entry.store_key for damage in remaining}
    whole = dict.fromkeys(d.piece.entry.path for d in damaged if d.piece.entry.store_key not in left)
    return Repaired(
        damaged=tuple(damaged),
        remaining=tuple(remaining),
        healed=tuple(whole),
        relinked=relinked,
        manifests=back,
        blocked=(*blocked, *unknown, *used),
        rebuilt=tuple(rebuilt),
        environments={one.release.name: one.problems for one in broken},
    )


def require_installed(prefix: Prefix) -> None:
    """Require a live release, or one whose repair was stopped.

    Raises:
        UsageError: Nothing is installed.
    """
    if not any(release.in_repair for release in prefix.all_releases()):
        prefix.require_live()


def _check_manifests(
    prefix: Prefix, verify: Verify, source: PieceSource | None
) -> tuple[tuple[str, ...], tuple[str, ...], list[tuple[Release, TrustedBundle]]]:
    """Return the names of releases whose manifest came back, why others have none, and the releases that have one."""
    back: list[str] = []
    blocked: dict[str, SealiftError] = {}
    good: list[tuple[Release, TrustedBundle]] = []
    for release in [release for release in prefix.all_releases() if release.is_complete or release.in_repair]:
        try:
            if isinstance(source, BundlePieces) and _is_damaged(release) and _put_manifest_back(release, source):
                back.append(release.name)
            release.manifest()  # the one that the folder is named by
            good.append((release, verify(FolderMedium(release.path))))
        except (IntegrityError, TrustError) as error:
            blocked[release.name] = error
    untrusted = [error for error in blocked.values() if isinstance(error, TrustError)]
    if untrusted and not good:
        raise untrusted[0]
    return tuple(back), tuple(f"{name}: {error.message}" for name, error in blocked.items()), good


def _is_damaged(release: Release) -> bool:
    try:
        return not release.signature_slot() or not release.manifest().files
    except IntegrityError:
        return True


def _put_manifest_back(release: Release, source: BundlePieces) -> bool:
    manifest, slot = source.manifest_parts()
    if not release.name.endswith(f"-{manifest_digest(manifest)[:DIGEST_LENGTH]}"):
        return False
    write_atomic(release.path / MANIFEST_NAME, manifest, mode=0o444)
    write_atomic(release.path / SIGNATURE_NAME, slot, mode=0o444)
    return True


def _blobs(prefix: Prefix, releases: Sequence[tuple[Release, TrustedBundle]]) -> list[_Blob]:
    entries: dict[str, FileEntry] = {}
    names: dict[str, list[Path]] = {}
    for release, bundle in releases:
        for entry in bundle.manifest.files:
            entries.setdefault(entry.store_key, entry)
            names.setdefault(entry.store_key, []).append(release.path / entry.path)
    store = Store(root=prefix.store)
    return [_Blob(entry=e, path=store.path(key), names=tuple(names[key])) for key, e in entries.items()]


def _find_damaged(blobs: Sequence[_Blob], progress: Progress) -> list[Damage]:
    stop = threading.Event()
    transfer = Transfer(progress, stop)
    found: list[tuple[int, Damage]] = []

    def check(number: int, blob: _Blob, piece: Piece) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            try:
                with _reader(blob.path) as read:
                    got = transfer.check(piece, read, buffer)
                is_last = piece.offset + piece.size == blob.entry.size
                if is_last and blob.path.stat().st_size > blob.entry.size:
                    got = f"more than {blob.entry.size} bytes"
            except IntegrityError as error:
                got = error.message
            if got != piece.sha256:
                found.append((number, Damage(piece=piece, got=got)))

        return task

    tasks = (check(number, blob, piece) for number, blob in enumerate(blobs) for piece in pieces_of(blob.entry))
    run_all(tasks, threads=thread_count(), stop=stop)
    return [damage for _, damage in sorted(found, key=lambda row: (row[0], row[1].piece.offset))]


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[ReadAt]:
    with open_regular(path) as descriptor:

        def read(view: memoryview, offset: int) -> int:
            try:
                return read_into(descriptor, view, offset)
            except OSError as error:  # a sector that can't be read is damage like any other
                raise IntegrityError(f"{path}: {error.strerror}") from None

        yield read


def _heal(
    prefix: Prefix, blobs: Sequence[_Blob], damaged: Sequence[Damage], source: PieceSource | None
) -> list[Damage]:
    """Make whole what can be made whole; return the damage that remains."""
    bad: dict[str, list[Damage]] = {}
    for damage in damaged:
        bad.setdefault(damage.piece.entry.store_key, []).append(damage)
    remaining: list[Damage] = []
    for blob in blobs:
        mine = bad.get(blob.entry.store_key, [])
        try:
            if mine:
                remaining += _rebuild(blob, mine, source)
        except OSError as error:
            raise disk_error(error, f"write below {prefix.store}") from error
    return remaining


def _rebuild(blob: _Blob, bad: Sequence[Damage], source: PieceSource | None) -> list[Damage]:
    """Write the whole file anew beside the damaged one, and take its name; return what could not be had."""
    sources: list[PieceSource] = [_FilePieces(name) for name in blob.strays]
    sources += [source] if source is not None else []
    if missing := [damage for damage in bad if not any(each.has(damage.piece.sha256) for each in sources)]:
        return missing  # nothing is copied in vain
    blob.path.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.path.with_name(f"{blob.path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        missing = _write_whole(blob, partial, bad, sources)
        if not missing:
            partial.replace(blob.path)
            sync_folder(blob.path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return missing


def _write_whole(blob: _Blob, partial: Path, bad: Sequence[Damage], sources: Sequence[PieceSource]) -> list[Damage]:
    damages = {damage.piece.offset: damage for damage in bad}
    missing: list[Damage] = []
    descriptor = create_exclusive(partial)
    try:
        for piece in pieces_of(blob.entry):
            damage = damages.get(piece.offset)
            wanted = sources if damage else (_FilePieces(blob.path),)
            if any(_copy(piece, each, descriptor) for each in wanted):
                continue
            if damage is None:
                raise IntegrityError(f"{blob.path}: changes while it is read", hint="the disk may be failing")
            missing.append(damage)
        set_mode(descriptor, READ_ONLY_EXECUTABLE if blob.entry.executable else READ_ONLY)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return missing


def _copy(piece: Piece, source: PieceSource, descriptor: int) -> bool:
    """Copy a piece to its place, and return whether it was good."""
    if not source.has(piece.sha256):
        return False
    transfer, buffer = Transfer(Silent(), threading.Event()), memoryview(bytearray(BUFFER_SIZE))
    with contextlib.suppress(IntegrityError), source.reader(piece) as read:
        return transfer.check(piece, read, buffer, (descriptor, 0)) == piece.sha256
    return False


class _FilePieces:
    """A file that may hold the wanted piece at its own place."""

    def __init__(self, path: Path) -> None:
        self.label, self._path = str(path), path

    def has(self, _sha256: str) -> bool:
        return self._path.is_file() and not self._path.is_symlink()

    def reader(self, _piece: Piece) -> contextlib.AbstractContextManager[ReadAt]:
        return _reader(self._path)


def _relink(blobs: Sequence[_Blob], bad: set[str]) -> tuple[str, ...]:
    """Make every release's file the store's file again where that is whole; return the paths below ``releases``."""
    done = []
    for blob in blobs:
        if blob.entry.store_key in bad:
            continue
        mode = READ_ONLY_EXECUTABLE if blob.entry.executable else READ_ONLY
        if blob.path.stat().st_mode & 0o7777 != mode:
            blob.path.chmod(mode)
            done.append(str(blob.path))
        for name in blob.strays:
            name.parent.mkdir(parents=True, exist_ok=True)
            temporary = name.with_name(f".{name.name}.partial")
            temporary.unlink(missing_ok=True)
            os.link(blob.path, temporary, follow_symlinks=False)
            temporary.replace(name)
            done.append(str(name))
    return tuple(done)


def _same_file(name: Path, blob: Path) -> bool:
    try:
        mine, its = name.lstat(), blob.lstat()
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (its.st_dev, its.st_ino)


def _refresh_receipt(release: Release, manifest: Manifest) -> None:
    """Write the payload's new inodes and times into the receipt; those of the venv stay what they were."""
    if release.in_repair:
        return  # its receipt is going to be written anew
    try:
        receipt = release.receipt()
        now = {path: values for path, values in release.stats(manifest).items() if not path.startswith("venv/")}
    except (IntegrityError, FileNotFoundError):
        return  # something is damaged still, and verify says so
    if receipt.stats | now != receipt.stats:
        stats = receipt.stats | now
        write_atomic(release.path / RECEIPT_NAME, replace(receipt, stats=stats).encode(), mode=0o444)
