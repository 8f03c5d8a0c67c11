"""Downloads into the store: resumed after a kill, several ranges at once, hashed on the way, compared at the end.

Workers fetch segments of the files in a fixed order; the calling thread hashes each file as it grows. What came stays
below ``partial/`` in the store (see :mod:`bundler.snapshots.partial`) until it is whole, and is discarded if its
digest isn't the promised one.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bundler.snapshots.download import Download, DownloadJob, Session
from bundler.snapshots.patience import Clock, Limits, SystemClock
from bundler.snapshots.transport import Transport
from bundler.store import Store
from manifests.digests import ContentDigest
from manifests.errors import DiskError, IntegrityError
from manifests.files import disk_error, free_space, locked
from manifests.progress import format_size

_AHEAD: Final = 32  # files that are open at once


def open_session(
    store: Store,
    origin: str,
    *,
    authorization: str = "",
    limits: Limits | None = None,
    clock: Clock | None = None,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Session:
    """Return what :func:`fetch_all` needs; only ``origin`` sees ``authorization``.

    Raises:
        SourceError: The certificates that the environment names can't be read.
    """
    limits = limits or Limits()
    return Session(
        store=store,
        transport=Transport(origin, authorization, limits.timeout),
        limits=limits,
        clock=clock or SystemClock(),
        report=report,
        progress=progress,
        stop=threading.Event(),
    )


def fetch_all(downloads: Sequence[Download], session: Session) -> dict[str, ContentDigest]:
    """Have all ``downloads`` in the store; what it has isn't fetched.

    Returns:
        The digests by name.

    Raises:
        SourceError: Something can't be had; what came so far stays for the next time.
        IntegrityError: Something isn't what was promised, all of it named; the rest is in the store.
        DiskError: No space, no permission.
    """
    wanted = {download.key: download for download in downloads}
    found = _known(wanted, session.store)
    if len(found) < len(wanted):
        with _partial_folder(session) as folder:
            found |= _known(wanted, session.store)  # another process may have fetched some while this one waited
            missing = [download for key, download in wanted.items() if key not in found]
            _check_space(missing, folder)
            found |= _fetch_missing(missing, folder, session)
    return {download.name: found[download.key] for download in downloads}


def _known(wanted: Mapping[str, Download], store: Store) -> dict[str, ContentDigest]:
    """Return the digests, by key, of what the store has."""
    known = {key: item.sha256 or store.record("git-blob", item.blob_id) for key, item in wanted.items()}
    return {key: store.digest(sha256) for key, sha256 in known.items() if isinstance(sha256, str) and sha256 in store}


@contextlib.contextmanager
def _partial_folder(session: Session) -> Iterator[Path]:
    folder = session.store.root / "partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, f"write to {folder}") from error
    with locked(folder / "lock", blocking=False) as got:
        if got:
            yield folder
            return
    session.report("waiting for another download into the same cache")
    with locked(folder / "lock"):
        yield folder


def _check_space(downloads: Sequence[Download], folder: Path) -> None:
    there = sum((folder / item.key).stat().st_blocks * 512 for item in downloads if (folder / item.key).exists())
    needed, free = sum(item.size for item in downloads) - there, free_space(folder)
    if needed > free:
        msg = f"{folder}: {format_size(needed)} are still to be fetched, {format_size(free)} are free"
        raise DiskError(msg, hint="free some space, or put the cache elsewhere: export XDG_CACHE_HOME=DIR")


def _fetch_missing(downloads: Sequence[Download], folder: Path, session: Session) -> dict[str, ContentDigest]:
    done: dict[str, ContentDigest] = {}
    mismatches: list[str] = []
    with ThreadPoolExecutor(session.limits.connections, thread_name_prefix="fetch") as pool:
        started: dict[int, DownloadJob] = {}
        try:
            for index in range(len(downloads)):
                for ahead in range(index + len(started), min(index + _AHEAD, len(downloads))):
                    started[ahead] = DownloadJob(downloads[ahead], folder, session, pool)
                try:
                    done[downloads[index].key] = started[index].finish()
                except IntegrityError as error:
                    mismatches.append(error.message)
                started.pop(index)
        except BaseException:
            session.stop.set()
            session.transport.cut()
            raise
        finally:
            for job in started.values():
                job.partial.stop()
            pool.shutdown(cancel_futures=True)
            for job in started.values():
                job.partial.close()
    if mismatches:
        raise IntegrityError("; ".join(mismatches), hint="they were discarded; run the same command again to retry")
    return done
