"""The cache's file: least recently used goes first, several processes at once, and damage is never an error."""

import logging
import multiprocessing
import os
import sqlite3
import struct
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from runtime.adapters.cache import VectorCache
from runtime.adapters.stored import MODES, Mode, Stored, decode, encode

pytestmark = pytest.mark.models
SIZE = 1000 - 120  # with an entry's bookkeeping, a thousand


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "below" / "cache.sqlite3"


def value(number: int, size: int = SIZE) -> bytes:
    return struct.pack("<I", number) * (size // 4)


def ticking(path: Path, *, limit: int = 10_000, entries: int | None = None) -> VectorCache:
    ticks = count(1)
    return VectorCache(path, limit=limit, entries=entries, clock=lambda: next(ticks))


def keys(*numbers: int) -> list[bytes]:
    return [b"key-%d" % number for number in numbers]


def test_what_was_stored_is_there_after_reopening(path: Path) -> None:
    cache = ticking(path)
    cache.set_many({b"a": b"1", b"b": b"22"})
    assert cache.get_many([b"a", b"x", b"b"]) == {b"a": b"1", b"b": b"22"}
    cache.close()
    again = ticking(path)
    assert again.get_many([b"b"]) == {b"b": b"22"}
    found = again.statistics()
    assert (found.hits, found.misses, found.evictions, found.entries, found.bytes) == (1, 0, 0, 2, 243)
    first = cache.statistics()
    assert (first.hits, first.misses) == (2, 1)


def test_a_key_keeps_its_value(path: Path) -> None:
    cache = ticking(path)
    cache.set_many({b"a": b"1"})
    cache.set_many({b"a": b"2", b"b": b"2"})
    assert cache.get_many([b"a", b"b"]) == {b"a": b"1", b"b": b"2"}
    assert cache.statistics().entries == 2


def test_least_recently_used_makes_room_down_to_nine_tenths(path: Path) -> None:
    cache = ticking(path)
    for number in range(10):
        cache.set_many({keys(number)[0]: value(number)})
    assert cache.statistics().bytes == 10_000
    cache.get_many(keys(0, 2))
    cache.set_many({keys(10)[0]: value(10)})
    left = cache.get_many(keys(*range(11)))
    assert sorted(left) == sorted(keys(0, 2, 4, 5, 6, 7, 8, 9, 10))  # 1 and 3 were the oldest
    found = cache.statistics()
    assert (found.evictions, found.entries, found.bytes) == (2, 9, 9000)


def test_number_of_entries_is_limited_too(path: Path) -> None:
    cache = ticking(path, entries=3)
    for number in range(5):
        cache.set_many({keys(number)[0]: b"x"})
    assert sorted(cache.get_many(keys(*range(5)))) == keys(2, 3, 4)


def test_uses_are_kept_over_a_close(path: Path) -> None:
    first = ticking(path)
    first.set_many({key: value(number) for number, key in enumerate(keys(*range(10)))})
    first.get_many(keys(0))
    first.close()
    second = VectorCache(path, limit=10_000, clock=lambda: 99)
    second.set_many({b"new": value(0)})
    assert sorted(second.get_many(keys(0, 1, 2, 3))) == keys(0, 3)


def test_a_value_that_would_never_fit_is_not_stored(path: Path) -> None:
    cache = ticking(path)
    cache.set_many({b"huge": bytes(10_000), b"small": b"1"})
    assert cache.get_many([b"huge", b"small"]) == {b"small": b"1"}


def test_thousands_at_once(path: Path) -> None:
    cache = ticking(path, limit=1 << 30)
    everything = {key: value(number, 8) for number, key in enumerate(keys(*range(9000)))}
    cache.set_many(everything)
    assert cache.get_many(list(everything)) == everything


@pytest.mark.parametrize("content", [b"this is no database, not by far" * 200, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_file_is_set_aside(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    cache = ticking(path)
    cache.set_many({b"a": b"1"})
    assert cache.get_many([b"a"]) == {b"a": b"1"}
    (aside,) = path.parent.glob("*.damaged-1")
    assert aside.read_bytes() == content
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"the cache {path} is damaged (")
    assert caplog.messages[0].endswith(f"): set aside as {aside.name}")


def test_damage_while_it_is_open(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ticking(path, limit=1 << 30)
    cache.set_many({key: value(number, 4000) for number, key in enumerate(keys(*range(50)))})
    cache.close()
    whole = bytearray(path.read_bytes())
    whole[4096:] = os.urandom(len(whole) - 4096)
    path.write_bytes(whole)
    assert cache.get_many(keys(1)) == {}
    cache.set_many({b"a": b"1"})
    assert cache.get_many([b"a"]) == {b"a": b"1"}
    assert "is damaged" in caplog.text


def test_tables_of_something_else_are_set_aside(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 7")
        other.execute("CREATE TABLE notes (text)")
    other.close()
    cache = ticking(path)
    cache.set_many({b"a": b"1"})
    assert cache.get_many([b"a"]) == {b"a": b"1"}
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_another_process_that_set_the_file_aside_is_followed(path: Path) -> None:
    first, second = ticking(path), ticking(path)
    first.set_many({b"a": b"1"})
    assert second.get_many([b"a"]) == {b"a": b"1"}
    path.rename(path.with_name("gone"))
    second.set_many({b"b": b"2"})
    assert first.get_many([b"a", b"b"]) == {b"b": b"2"}


def test_a_locked_file_is_a_miss(path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.adapters.cache._BUSY_MILLISECONDS", 1)
    cache = ticking(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    cache.set_many({b"a": b"1"})
    other.execute("ROLLBACK")
    other.close()
    assert caplog.messages == [f"the cache {path} is left out of this request: database is locked"]
    assert cache.get_many([b"a"]) == {}
    cache.set_many({b"a": b"1"})
    assert cache.get_many([b"a"]) == {b"a": b"1"}


def _work(path: Path, seed: int, failures: "multiprocessing.SimpleQueue[str]") -> None:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]  # shorter
    logging.getLogger("runtime.adapters.cache").addHandler(handler)
    cache = VectorCache(path, limit=60_000)
    chance = np.random.default_rng(seed)
    for _ in range(60):
        numbers = chance.integers(0, 120, size=8).tolist()
        for key, found in cache.get_many(keys(*numbers)).items():
            if found != value(int(key[4:])):
                records.append(f"{key!r} has another's value")
        cache.set_many(dict(zip(keys(*numbers), map(value, numbers), strict=True)))
        if cache.get_many(keys(*numbers[-1:])).get(keys(*numbers[-1:])[0]) not in {None, value(numbers[-1])}:
            records.append("wrong value read back")
    cache.close()
    failures.put("\n".join(records))


def test_eight_processes(path: Path) -> None:
    """Readers and writers of overlapping keys, with room for half of them: no wrong value, no warning, no drift."""
    spawn = multiprocessing.get_context("spawn")
    failures = spawn.SimpleQueue()
    processes = [spawn.Process(target=_work, args=(path, seed, failures)) for seed in range(8)]
    for process in processes:
        process.start()
    said = [failures.get() for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert said == [""] * 8
    found = ticking(path).statistics()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counted = database.execute("SELECT count(*), sum(size) FROM entries").fetchone()
    database.close()
    assert (found.entries, found.bytes) == counted
    assert 0 < found.bytes <= 60_000


def test_a_fork_opens_its_own(path: Path) -> None:
    cache = ticking(path)
    cache.set_many({b"a": b"1"})
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        cache.set_many({b"b": b"2"})
        os._exit(0 if cache.get_many([b"a", b"b"]) == {b"a": b"1", b"b": b"2"} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.get_many([b"a", b"b"]) == {b"a": b"1", b"b": b"2"}


def stored_values() -> Iterator[tuple[Mode, Stored]]:
    vector = np.asarray([0.5, -1e-30, 3.0], dtype=np.float32)
    yield "dense", Stored(value=vector, tokens=4, truncated=False)
    yield "colbert", Stored(value=np.stack([vector, vector * 2]), tokens=3, truncated=True)
    yield "colbert", Stored(value=np.empty((0, 3), dtype=np.float32), tokens=1, truncated=False)
    yield "sparse", Stored(value={7: float(np.float32(0.1)), 250_001: 2.5}, tokens=9, truncated=True)
    yield "sparse", Stored(value={}, tokens=2, truncated=False)


@pytest.mark.parametrize(("mode", "stored"), list(stored_values()))
def test_bytes_and_back(mode: Mode, stored: Stored) -> None:
    data = encode(mode, stored)
    found = decode(mode, data)
    assert found is not None
    assert (found.tokens, found.truncated) == (stored.tokens, stored.truncated)
    if mode == "sparse":
        assert found.value == stored.value
    else:
        np.testing.assert_array_equal(np.asarray(found.value), np.asarray(stored.value), strict=True)
    assert [decode(other, data) for other in MODES if other != mode] == [None, None]
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    if len(data) > 24:
        assert decode(mode, damaged) is None
    assert decode(mode, data[:-1]) is None
    assert decode(mode, b"") is None


def test_the_bytes_of_one_vector() -> None:
    """The form on disk is a promise to the next version."""
    data = encode("dense", Stored(value=np.asarray([1.0, -2.0], dtype=np.float32), tokens=5, truncated=True))
    assert data.hex(" ", 4) == (
        "534c5631 00010000 05000000 01000000 02000000 " + data[20:24].hex() + " 0000803f 000000c0"
    )
