"""What interrupted work left in the builder's cache, and nobody came back for.

A download that was killed stays in ``partial/`` so that the next one goes on where it was. If the model is never asked
for again, or at another commit, it stays for good; so do the files of a killed process that was adding to the store or
converting weights. No lock refers to any of them: a lock is written when everything it lists is whole.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.store import Store
from manifests.errors import DiskError
from manifests.files import disk_error, locked

DAY: Final = 86_400
"""Seconds."""

_LOCK: Final = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """One thing to be removed: a file with its state, or a folder.

    ``path`` is relative to the store's root, ``size`` what it takes on the disk in bytes (holes take nothing) and
    ``age`` the seconds since it was last written to.
    """

    path: str
    size: int
    age: float


def collect_leftovers(store: Store, *, older_than: float, now: float | None = None) -> tuple[Leftover, ...]:
    """Remove what interrupted work left and was not written to for a while; contents and records stay.

    Args:
        store: Where to look.
        older_than: Seconds since the last write. Downloads have a lock of their own, so 0 is fine for them; whatever
            else is written to the store has none, and is kept for a day at least.
        now: Seconds since 1970; by default the clock's.

    Returns:
        What was removed, sorted by path.

    Raises:
        DiskError: A download into this cache is under way, or something can't be removed.
    """
    moment = time.time() if now is None else now
    removed = list(_collect_downloads(store, older_than, moment))
    for folder in (store.root / "incoming", store.root / "sha256" / "new"):
        for path in _entries(folder):
            removed += _remove_old(store, (path,), max(older_than, DAY), moment)
    return tuple(sorted(removed, key=lambda item: item.path))


def _collect_downloads(store: Store, older_than: float, moment: float) -> Iterator[Leftover]:
    folder = store.root / "partial"
    if not folder.is_dir():
        return
    with locked(folder / _LOCK, blocking=False) as got:
        if not got:
            msg = f"{folder}: a download into this cache is under way"
            raise DiskError(msg, hint="wait until it has ended, then: bundler gc")
        names = {path.name.removesuffix(".state") for path in _entries(folder) if path.name != _LOCK}
        for name in sorted(names):
            yield from _remove_old(store, (folder / name, folder / f"{name}.state"), older_than, moment)


def _remove_old(store: Store, paths: tuple[Path, ...], older_than: float, moment: float) -> Iterator[Leftover]:
    """Remove ``paths``, which belong together and are called like the first, if none was written to lately."""
    found = [status for path in paths for status in _statuses(path)]
    if not found or (age := moment - max(written for _, written in found)) < older_than:
        return
    for path in paths:
        _remove(path)
    yield Leftover(path=str(paths[0].relative_to(store.root)), size=sum(size for size, _ in found), age=age)


def _statuses(path: Path) -> Iterator[tuple[int, float]]:
    """Return bytes on the disk and time of the last write of a file, or of a folder and all in it."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    for item in (path, *inside):
        try:
            status = item.lstat()
        except FileNotFoundError:
            continue
        yield status.st_blocks * 512, status.st_mtime


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, f"remove {path}") from error
