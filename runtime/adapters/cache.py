"""A cache of vectors on disk that several processes share: SQLite in WAL mode, limited by bytes, oldest use first out.

It never decides whether an answer can be given: a damaged file is set aside, and whatever else fails is a miss.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from manifests.files import locked

_LOG: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_VERSION: Final = 1
_BUSY_MILLISECONDS: Final = 10_000
_OVERHEAD: Final = 120
"""Bytes that an entry takes in the file beside its value: key, index, row header."""
_KEYS_AT_ONCE: Final = 500
_TOUCHES_AT_ONCE: Final = 4096
_LOW_WATER: Final = 0.9
_INHERITED: Final[list[sqlite3.Connection]] = []
"""Connections of a parent process: SQLite forbids to use them after a fork, and to close them."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL,
    size INTEGER NOT NULL, value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS entries_used ON entries (used, size);
CREATE TABLE IF NOT EXISTS totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON entries BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + NEW.size; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON entries BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - OLD.size; END;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """What a cache holds (``entries``, ``bytes``), and what this process did with it since it was opened."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class VectorCache:
    """Keys to values of bytes. One object may be used by several threads, one file by several processes.

    Args:
        path: The file; its folder is made if needed.
        limit: Bytes that all values together may take, with the bookkeeping of each.
        entries: Values that it may hold; None for any number.
        clock: Nanoseconds that order the uses.

    Raises:
        OSError: The folder can't be made or written.
    """

    def __init__(
        self, path: Path, *, limit: int, entries: int | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.path = path
        self._limit = limit
        self._entries = entries
        self._clock = clock
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = (0, 0, 0)  # process, device and inode of the connection
        self._touched: dict[bytes, int] = {}
        self._hits = self._misses = self._evictions = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._lock_path):
            pass
        self._guarded(_totals, otherwise=(0, 0))  # so that a damaged file is set aside now

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of those keys that are there."""
        with self._lock:
            found: dict[bytes, bytes] = self._guarded(lambda connection: _select(connection, keys), otherwise={})
            self._hits += sum(key in found for key in keys)
            self._misses += sum(key not in found for key in keys)
            now = self._clock()
            self._touched.update(dict.fromkeys(found, now))
            if len(self._touched) >= _TOUCHES_AT_ONCE:
                self._guarded(self._write_touches, otherwise=None)
            return found

    def set_many(self, values: Mapping[bytes, bytes]) -> None:
        """Store values, all or none; a key that is there already keeps its own. Makes room where needed."""
        fitting = {key: value for key, value in values.items() if len(value) + _OVERHEAD <= self._limit}
        if fitting:
            with self._lock:
                self._guarded(lambda connection: self._insert(connection, fitting), otherwise=None)

    def statistics(self) -> CacheStatistics:
        """Return the counters."""
        with self._lock:
            entries, size = self._guarded(_totals, otherwise=(0, 0))
            return CacheStatistics(
                hits=self._hits, misses=self._misses, evictions=self._evictions, entries=entries, bytes=size
            )

    def close(self) -> None:
        """Write down what was used, and let the file go; the next use opens it again."""
        with self._lock:
            if self._connection is not None and self._touched:
                self._guarded(self._write_touches, otherwise=None)
            self._disconnect()

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def _guarded(self, work: Callable[[sqlite3.Connection], _T], *, otherwise: _T) -> _T:
        """Do ``work``, twice at most: a damaged file is set aside after the first time."""
        for attempt in range(2):
            try:
                return work(self._connect())
            except (sqlite3.OperationalError, OSError) as error:
                self._disconnect()
                _LOG.warning("the cache %s is left out of this request: %s", self.path, error)
                return otherwise
            except sqlite3.DatabaseError as error:
                owner = self._owner
                self._disconnect()
                if attempt == 0:
                    self._set_aside(owner, error)
        return otherwise

    def _connect(self) -> sqlite3.Connection:
        """Return a connection of this process to the file that is there now."""
        if self._connection is not None and self._owner[0] != os.getpid():
            _INHERITED.append(self._connection)
            self._connection = None
            self._touched.clear()
        if self._connection is not None and self._owner != self._identity():
            self._disconnect()  # another process has set the file aside
        if self._connection is None:
            with locked(self._lock_path):
                connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
                self._connection, self._owner = connection, self._identity()
                connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                self._prepare(connection)
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"format {version}, expected {_VERSION}")
        try:
            _totals(connection)
        except (sqlite3.OperationalError, TypeError) as error:
            raise sqlite3.DatabaseError(f"its tables are not there: {error}") from error

    def _identity(self) -> tuple[int, int, int]:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return (os.getpid(), 0, 0)
        return (os.getpid(), found.st_dev, found.st_ino)

    def _disconnect(self) -> None:
        if self._connection is not None and self._owner[0] == os.getpid():
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _set_aside(self, owner: tuple[int, int, int], error: sqlite3.DatabaseError) -> None:
        """Rename the file that was found damaged, unless another process has done so meanwhile."""
        with locked(self._lock_path):
            if self._identity() != owner:
                return
            target = self.path.with_name(f"{self.path.name}.damaged-{self._clock()}")
            _LOG.warning("the cache %s is damaged (%s): set aside as %s", self.path, error, target.name)
            for suffix in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).rename(target.with_name(target.name + suffix))

    def _insert(self, connection: sqlite3.Connection, values: Mapping[bytes, bytes]) -> None:
        now = self._clock()
        rows = [(key, now, len(value) + _OVERHEAD, value) for key, value in values.items()]
        with _transaction(connection):
            self._touch(connection)
            connection.executemany(
                "INSERT INTO entries (key, used, size, value) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET used = excluded.used",
                rows,
            )
            evicted = self._make_room(connection)
        self._touched.clear()
        self._evictions += evicted

    def _write_touches(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            self._touch(connection)
        self._touched.clear()

    def _touch(self, connection: sqlite3.Connection) -> None:
        connection.executemany(
            "UPDATE entries SET used = max(used, ?) WHERE key = ?", [(used, key) for key, used in self._touched.items()]
        )

    def _make_room(self, connection: sqlite3.Connection) -> int:
        """Remove what was used least recently until a tenth is free, if there is too much."""
        entries, size = _totals(connection)
        most = self._entries if self._entries is not None else entries
        if size <= self._limit and entries <= most:
            return 0
        doomed: list[tuple[int]] = []
        for number, freed in connection.execute("SELECT id, size FROM entries ORDER BY used, id"):
            if size <= self._limit * _LOW_WATER and entries <= most:
                break
            doomed.append((number,))
            size, entries = size - freed, entries - 1
        connection.executemany("DELETE FROM entries WHERE id = ?", doomed)
        return len(doomed)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _select(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        part = keys[start : start + _KEYS_AT_ONCE]
        marks = ",".join("?" * len(part))
        found.update(connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", part))  # noqa: S608 - question marks only
    return found


def _totals(connection: sqlite3.Connection) -> tuple[int, int]:
    entries, size = connection.execute("SELECT entries, bytes FROM totals").fetchone()
    return int(entries), int(size)
