"""Giving space back: ``gc`` removes releases and files that nothing needs, ``uninstall`` everything of ours.

Both hold the prefix as an installer does, and neither removes a release that a program holds. A release loses its
receipt first, so an interrupted run leaves nothing that looks whole.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from manifests.errors import DiskError, IntegrityError, TrustError, UsageError
from manifests.files import disk_error, locked
from manifests.manifest import KINDS, MANIFEST_NAME, SIGNATURE_NAME
from runtime.audit import AUDIT_NAME
from runtime.carried import interpreters_folder, unpacked_paths, unused_paths
from runtime.install import sweep, vouched_keys, written_settings
from runtime.layout import ASIDE_NAME, RECEIPT_NAME, Prefix, Release, exclusive, walk_files
from runtime.state import load_state, record
from runtime.trust import REVOKED_NAME, TRUST_NAME, pinned_text

_RECEIPTS: Final = (RECEIPT_NAME, ASIDE_NAME)
_RELEASE: Final = re.compile(r".+-[0-9a-f]{12}")
SETTINGS_NAMES: Final = (
    "offline.env",
    "sealift.service",
    "sealift-verify.service",
    "sealift-verify.timer",
    "launch.sh",
)
"""Every file that an install may write to ``etc/``, as the templates of bundles are called."""
_MARK: Final = b"`runtime launch`"
_HEAD: Final = 4096
_BLOB: Final = re.compile(r"sha256/([0-9a-f]{2})/\1[0-9a-f]{62}x?(\.partial)?")


@dataclass(slots=True)
class _Space:
    """Counts the bytes that removing files gives back: those of a file whose last name goes."""

    _left: dict[tuple[int, int], int] = field(default_factory=dict)
    freed: int = 0

    def count(self, path: Path) -> None:
        """Count ``path``, which is about to be removed, and everything below it."""
        paths = (path / name for name in walk_files(path)) if path.is_dir() and not path.is_symlink() else (path,)
        for one in paths:
            status = one.lstat()
            key = (status.st_dev, status.st_ino)
            self._left[key] = self._left.get(key, status.st_nlink) - 1
            if not self._left[key]:
                self.freed += status.st_blocks * 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What ``gc`` did: names of releases removed, and kept with the reason; files from the store; bytes given back."""

    removed: tuple[str, ...]
    kept: dict[str, str]
    blobs: int
    freed: int


def collect(prefix: Prefix, *, keep: int = 0) -> Collected:
    """Remove what is neither live, nor the way back, nor among the ``keep`` newest others, nor in use.

    Raises:
        UsageError: Nothing is installed.
        DiskError: Another program changes the prefix, or something can't be removed.
    """
    if not prefix.store.is_dir():
        prefix.require_live()
    space = _Space()
    try:
        with exclusive(prefix, "gc"):
            kept = _kept_releases(prefix, keep)
            kept |= {release.name: "in repair" for release in prefix.all_releases() if release.in_repair}
            removed = []
            for release in list(prefix.all_releases()):
                if release.is_complete and release.name not in kept:
                    with _held(release) as got:
                        if not got:
                            kept[release.name] = "in use"
                            continue
                        space.count(release.path)
                        record(prefix, f"gc {release.name}")
                        release.remove()
                    removed.append(release.name)
            _sweep_counted(prefix, space)
            blobs = _drop_blobs(prefix, space)
    except OSError as error:
        raise disk_error(error, f"remove {error.filename or prefix.path}") from error
    return Collected(removed=tuple(removed), kept=kept, blobs=blobs, freed=space.freed)


def _kept_releases(prefix: Prefix, keep: int) -> dict[str, str]:
    """Return the names of complete releases that stay, and why; none need be live where an install never ended."""
    state, live = load_state(prefix), prefix.live()
    kept = {live.name: "live"} if live else {}
    others = {r.name: _installed(r) for r in prefix.all_releases() if r.is_complete and r.name not in kept}
    before = state.before(live.name if live else "") if state else ""
    if before in others:
        del others[before]
        kept[before] = "previous"
    newest = sorted(others, key=lambda name: (others[name], name), reverse=True)
    return kept | dict.fromkeys(newest[:keep], "kept")


def _installed(release: Release) -> str:
    with contextlib.suppress(IntegrityError):
        return release.receipt().installed
    return ""


@contextlib.contextmanager
def _held(release: Release) -> Iterator[bool]:
    """Yield whether the release could be locked against use; one that the system can't lock counts as used."""
    try:
        descriptor = release.hold(exclusive=True)
    except DiskError:
        descriptor = None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _sweep_counted(prefix: Prefix, space: _Space) -> None:
    """Remove unfinished releases, uv's cache and the bytecode of releases that are gone."""
    names = {release.name for release in prefix.all_releases() if release.is_complete or release.in_repair}
    bytecode = prefix.var / "cache" / "bytecode"
    gone = [path for path in bytecode.iterdir() if path.name not in names] if bytecode.is_dir() else []
    unfinished = [release.path for release in prefix.all_releases() if release.name not in names]
    cache = prefix.var / "cache" / "uv"
    for path in (*unfinished, *gone, *([cache] if cache.exists() else [])):
        space.count(path)
        if path not in unfinished:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    sweep(prefix)
    for path in unused_paths(prefix):
        space.count(path)
        shutil.rmtree(path)


def _drop_blobs(prefix: Prefix, space: _Space) -> int:
    """Remove blobs and partial files that no complete release holds; return how many.

    One that has another name stays: removing it would free nothing, and a release whose manifest is damaged holds it.
    """
    needed = vouched_keys(prefix)
    count = 0
    for name in list(walk_files(prefix.store)):
        path = prefix.store / name
        if _BLOB.fullmatch(name) and path.name not in needed and path.lstat().st_nlink == 1:
            space.count(path)
            path.unlink()
            count += 1
            with contextlib.suppress(OSError):
                path.parent.rmdir()
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Uninstalled:
    """What ``uninstall`` did: bytes given back, and the paths below the prefix that aren't ours and were left."""

    freed: int
    left: tuple[str, ...]


def uninstall(prefix: Prefix, *, confirm: Callable[[], None] = lambda: None, purge: bool = False) -> Uninstalled:
    """Remove everything that Sealift put below a prefix; what is the operator's stays and is named.

    The operator's are signers confirmed with ``trust init``, ``revoked_keys``, settings that were changed, and whatever
    no install made. The copy of ``allowed_signers`` that ``install --trust`` leaves goes.

    Args:
        prefix: Where.
        purge: Remove the operator's signers, revoked keys and changed settings too, and every log; also what an earlier
            uninstall left of them.
        confirm: Called once it is certain that nothing is in use; raises to call the removal off.

    Raises:
        UsageError: There is nothing of ours.
        DiskError: A server or an installer is at work, or something can't be removed.
    """
    there = prefix.state.exists() or any(prefix.all_releases()) or prefix.store.is_dir()
    if not there and not (purge and (_is_pinned(prefix) or _left_settings(prefix))):
        raise UsageError(f"{prefix.path}: nothing is installed here", hint=f"runtime status --prefix {prefix.path}")
    space = _Space()
    try:
        with exclusive(prefix, "uninstall"), _all_held(prefix):
            confirm()
            ours = sorted({*_ours(prefix), *(_settings(prefix) if purge else ())})
            for path in ours:
                space.count(path)
            _remove_in_order(prefix, ours)
        _remove_folders(prefix)
    except OSError as error:
        raise disk_error(error, f"remove {error.filename or prefix.path}") from error
    left = tuple(sorted(walk_files(prefix.path))) if prefix.path.exists() else ()
    return Uninstalled(freed=space.freed, left=left)


@contextlib.contextmanager
def _all_held(prefix: Prefix) -> Iterator[None]:
    hint = "stop the servers that use it, then try again"
    with contextlib.ExitStack() as stack:
        for release in prefix.all_releases():
            if not stack.enter_context(_held(release)):
                raise DiskError(f"{prefix.path}: release {release.name} is in use", hint=hint)
        if not stack.enter_context(locked(prefix.use_lock, blocking=False)):
            raise DiskError(f"{prefix.path}: is in use by a server", hint=hint)
        yield


def _ours(prefix: Prefix) -> Iterator[Path]:
    """Yield every file and link that Sealift made below the prefix, locks and ``current`` among them."""
    var = prefix.var
    for folder in (var / "run", var / "cache"):
        yield from (folder / name for name in walk_files(folder))
    for release in prefix.all_releases():
        if _RELEASE.fullmatch(release.name):
            yield from (release.path / name for name in _release_files(release))
    yield from (prefix.store / name for name in walk_files(prefix.store) if _BLOB.fullmatch(name))
    yield from (path / name for path in unpacked_paths(prefix) for name in walk_files(path))
    settings = written_settings(prefix)
    yield from (path for path, contents in settings.items() if path.is_file() and path.read_bytes() in contents)
    copied = () if _is_pinned(prefix) else (prefix.etc / TRUST_NAME,)
    own = (prefix.current, prefix.state, *copied, prefix.install_lock, prefix.use_lock)
    logs = (var / "install.holder", var / AUDIT_NAME, var / "logs" / "releases.log")
    partial = (path for folder in (prefix.path, prefix.etc) for path in folder.glob(".*.partial"))
    yield from (path for path in (*own, *logs, *partial) if path.is_symlink() or path.is_file())


def _settings(prefix: Prefix) -> Iterator[Path]:
    """Yield what is the operator's by content but has a name that Sealift gave; never all of a folder of that name."""
    # By name as well: a release that brought a settings file may be gone, by gc or by an earlier uninstall.
    names = (TRUST_NAME, REVOKED_NAME, *SETTINGS_NAMES)
    named = {*(prefix.etc / name for name in names), *written_settings(prefix)}
    yield from (path for path in named if path.is_symlink() or path.is_file())
    logs = prefix.var / "logs"
    yield from (logs / name for name in walk_files(logs))


def _left_settings(prefix: Prefix) -> bool:
    """Whether an install was here: a settings file that it left has our name, or the words of its template's head.

    Another program's ``launch.sh`` is none, so that a folder of another kind is never purged.
    """
    for path in (prefix.etc / name for name in SETTINGS_NAMES):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                if path.name.startswith("sealift") or _MARK in stream.read(_HEAD):
                    return True
    return False


def _is_pinned(prefix: Prefix) -> bool:
    try:
        return pinned_text(prefix) is not None
    except TrustError:  # not what an install writes either
        return True


def _release_files(release: Release) -> Iterator[str]:
    """Yield the files of a release that an install made: the manifest's, our three, the venv."""
    known = {MANIFEST_NAME, SIGNATURE_NAME, *_RECEIPTS}
    folders: tuple[str, ...] = ("venv/",)
    try:
        known |= {entry.path for entry in release.manifest().files}
    except IntegrityError:  # an unfinished release has none yet: all of its folders are an install's
        folders += tuple(f"{folder}/" for folder in KINDS.values())
    for name in walk_files(release.path):
        if name in known or name.startswith(folders):
            yield name


def _remove_in_order(prefix: Prefix, ours: list[Path]) -> None:
    """Remove ``current`` first, then the receipts, the rest, and the locks at the very end."""
    last = (prefix.state, prefix.use_lock, prefix.install_lock)

    def rank(path: Path) -> int:
        if path in last:
            return 3 + last.index(path)
        return 0 if path == prefix.current else 1 if path.name in _RECEIPTS else 2

    for path in sorted(ours, key=rank):
        path.unlink(missing_ok=True)


def _remove_folders(prefix: Prefix) -> None:
    """Remove the folders of the layout that are empty now, and the prefix itself."""
    (prefix.var / "install.holder").unlink(missing_ok=True)
    for top in (prefix.store, prefix.releases, interpreters_folder(prefix), prefix.etc, prefix.var):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    with contextlib.suppress(OSError):
        prefix.path.rmdir()
