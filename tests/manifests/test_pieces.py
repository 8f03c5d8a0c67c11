"""The loop that moves and checks bytes, and its threads."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.digests import BUFFER_SIZE, CHUNK_SIZE
from manifests.files import open_regular, read_into
from manifests.pieces import MAX_THREADS, Damage, Piece, Silent, Stopped, Transfer, pieces_of, run_all, thread_count
from tests.factories import make_entry


class Count:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int) -> None:
        self.done += count


def read_from(content: bytes) -> Callable[[memoryview, int], int]:
    def read(view: memoryview, offset: int) -> int:
        part = content[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)

    return read


def buffer() -> memoryview:
    return memoryview(bytearray(BUFFER_SIZE))


def test_a_small_file_is_one_piece() -> None:
    entry = make_entry("docs/a", b"abc")
    assert list(pieces_of(entry)) == [Piece(entry=entry, offset=0, size=3, sha256=entry.sha256)]
    empty = make_entry("docs/a", b"")
    assert [piece.size for piece in pieces_of(empty)] == [0]


def test_a_big_file_is_a_piece_for_each_chunk() -> None:
    entry = make_entry("models/m/a", CHUNK_SIZE + 5)
    first, last = pieces_of(entry)
    assert (first.offset, first.size, first.index, first.sha256) == (0, CHUNK_SIZE, 0, entry.chunks[0])
    assert (last.offset, last.size, last.index, last.sha256) == (CHUNK_SIZE, 5, 1, entry.chunks[1])
    assert last.label == "models/m/a chunk 1"


def test_damage_reads_as_a_sentence() -> None:
    entry = make_entry("docs/a", b"abc")
    (piece,) = pieces_of(entry)
    assert piece.label == "docs/a"
    assert str(Damage(piece=piece, got="f" * 64)) == f"docs/a: expected sha256 {entry.sha256}, got {'f' * 64}"


@pytest.mark.parametrize("size", [0, 1, BUFFER_SIZE, BUFFER_SIZE + 1, 3 * BUFFER_SIZE - 1])
def test_check_hashes_writes_and_counts(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (piece,) = pieces_of(make_entry("docs/a", content))
    target, progress = tmp_path / "a", Count()
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT)
    got = Transfer(progress, threading.Event()).check(piece, read_from(content), buffer(), (descriptor, 7))
    os.close(descriptor)
    assert got == piece.sha256 == hashlib.sha256(content).hexdigest()
    assert target.read_bytes() == (bytes(7) + content if size else b"")
    assert progress.done == size


def test_check_reads_at_the_pieces_offset(tmp_path: Path) -> None:
    source = tmp_path / "a"
    with source.open("wb") as stream:
        stream.truncate(CHUNK_SIZE)
        stream.seek(CHUNK_SIZE)
        stream.write(b"tail")
    entry = make_entry("models/m/a", bytes(CHUNK_SIZE) + b"tail")
    transfer = Transfer(Silent(), threading.Event())
    with open_regular(source) as descriptor:
        got = [
            transfer.check(piece, lambda view, offset: read_into(descriptor, view, offset), buffer())
            for piece in pieces_of(entry)
        ]
    assert got == list(entry.chunks)


def test_a_short_source_is_said_so() -> None:
    content = bytes(BUFFER_SIZE + 100)
    (piece,) = pieces_of(make_entry("docs/a", content))
    progress = Count()
    got = Transfer(progress, threading.Event()).check(piece, read_from(content[:-1]), buffer())
    assert progress.done == BUFFER_SIZE, "what came short is neither hashed nor written"
    assert got == f"only {len(content) - 1} of {len(content)} bytes"


def test_a_stopped_transfer_reads_nothing() -> None:
    stop = threading.Event()
    stop.set()
    (piece,) = pieces_of(make_entry("docs/a", b"abc"))
    with pytest.raises(Stopped):
        Transfer(Silent(), stop).check(piece, read_from(b"abc"), buffer())


def test_thread_count_follows_the_usable_cores() -> None:
    usable = os.sched_getaffinity(0)
    assert thread_count() == min(MAX_THREADS, len(usable))
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert thread_count() == 1
    finally:
        os.sched_setaffinity(0, usable)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("piece")]


def test_run_all_runs_everything_with_a_buffer_for_each_thread() -> None:
    seen: list[tuple[int, int]] = []
    barrier = threading.Barrier(2, timeout=10)

    def task(view: memoryview) -> None:
        barrier.wait()
        assert len(view) == BUFFER_SIZE
        seen.append((threading.get_ident(), id(view.obj)))

    run_all([task] * 6, threads=2, stop=threading.Event())
    assert len(seen) == 6
    assert len(set(seen)) == 2
    assert workers() == []


def test_run_all_of_nothing() -> None:
    stop = threading.Event()
    run_all([], threads=2, stop=stop)
    assert not stop.is_set()


def test_the_first_error_stops_the_others_and_is_raised() -> None:
    ran: list[int] = []

    def bad(_: memoryview) -> None:
        raise ValueError("broken piece")

    def good(_: memoryview) -> None:
        ran.append(1)

    stop = threading.Event()
    with pytest.raises(ValueError, match=r"^broken piece$"):
        run_all([bad, *[good] * 1000], threads=1, stop=stop)
    assert stop.is_set()
    assert ran == []
    assert workers() == []


def test_what_stopped_the_others_is_raised_even_if_it_ends_last() -> None:
    stop = threading.Event()

    def slow_failure(_: memoryview) -> None:
        stop.set()
        time.sleep(0.1)
        raise ValueError("the cause")

    def stopped(_: memoryview) -> None:
        assert stop.wait(10)
        raise Stopped

    for order in ([slow_failure, stopped], [stopped, slow_failure]):
        stop.clear()
        with pytest.raises(ValueError, match=r"^the cause$"):
            run_all(order, threads=2, stop=stop)


def test_a_run_that_was_called_off_says_so() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        run_all([lambda _: None], threads=1, stop=stop)


def test_an_interrupt_stops_the_workers_and_leaves_no_thread() -> None:
    stop = threading.Event()
    begun: list[float] = []

    def task(_: memoryview) -> None:
        begun.append(time.monotonic())
        if len(begun) == 1:
            time.sleep(0.1)  # until the main thread waits
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10), "nobody called the work off"

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([task] * 50, threads=2, stop=stop)
    assert time.monotonic() - start < 5
    assert len(begun) <= 2
    assert workers() == []


def test_tasks_that_can_not_be_made_stop_the_run() -> None:
    stop = threading.Event()

    def tasks() -> "list[Callable[[memoryview], None]]":
        raise LookupError("no such file")

    with pytest.raises(LookupError):
        run_all((task for task in tasks()), threads=1, stop=stop)
    assert workers() == []
