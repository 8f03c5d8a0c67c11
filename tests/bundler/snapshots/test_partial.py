"""Partial files: what is counted is there, what is damaged or of another shape is begun anew."""

import threading
from pathlib import Path

import pytest

from bundler.snapshots.partial import PartialFile
from manifests.errors import DiskError


def open_partial(folder: Path, size: int = 25, segment: int = 10) -> PartialFile:
    return PartialFile(folder / "partial" / "key", size, segment)


def test_another_process_goes_on(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        assert (partial.done, partial.resumed, partial.missing()) == (0, False, [0, 1, 2])
        partial.note_etag('"x"')
        assert partial.write(0, b"a" * 10, 0)
        assert partial.write(20, b"b" * 2, 0)
    with open_partial(tmp_path) as partial:
        assert (partial.done, partial.resumed, partial.etag) == (12, True, '"x"')
        assert (partial.missing(), partial.gap(0), partial.gap(2)) == ([1, 2], (10, 10), (22, 25))
        assert partial.write(10, b"c" * 10, 0)
        view = bytearray(22)
        partial.read_into(memoryview(view), 0)
        assert view == b"a" * 10 + b"c" * 10 + b"b" * 2
    assert partial.path.stat().st_size == 25


def test_bytes_over_several_segments(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        assert partial.write(0, bytes(range(25)), 0)
        assert (partial.missing(), partial.wait(0, 0)) == ([], 25)
    assert partial.path.read_bytes() == bytes(range(25))


def test_a_gap_can_not_be_counted_as_there(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        with pytest.raises(ValueError, match="byte 3 isn't the next one of its segment"):
            partial.write(3, b"x", 0)
        assert partial.done == 0


@pytest.mark.parametrize("damage", [b"", b"{" * 1048, b"\xff" * 1048, b"[]".ljust(1048)])
def test_damaged_state_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    with open_partial(tmp_path) as partial:
        partial.write(0, b"a" * 10, 0)
    partial.state_path.write_bytes(damage)
    with open_partial(tmp_path) as partial:
        assert (partial.done, partial.resumed) == (0, False)


def test_counts_that_can_not_be_are_begun_anew(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.write(0, b"a", 0)
    state = partial.state_path.read_bytes()
    partial.state_path.write_bytes(state[:1024] + (11).to_bytes(8, "little") + state[1032:])
    with open_partial(tmp_path) as partial:
        assert partial.done == 0


@pytest.mark.parametrize(("size", "segment"), [(26, 10), (25, 9)])
def test_another_shape_is_begun_anew(tmp_path: Path, size: int, segment: int) -> None:
    with open_partial(tmp_path) as partial:
        partial.write(0, b"a" * 10, 0)
    with open_partial(tmp_path, size, segment) as partial:
        assert (partial.done, partial.path.stat().st_size) == (0, size)


def test_restart_makes_older_writers_harmless(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.note_etag('"x"')
        partial.write(0, b"a" * 10, 0)
        assert partial.restart(0)
        assert not partial.restart(0)
        assert not partial.write(10, b"a", 0)
        assert (partial.done, partial.etag, partial.wait(0, 0)) == (0, "", -1)
        assert partial.write(0, b"b", 1)
    with open_partial(tmp_path) as partial:
        assert partial.done == 1


def test_waiting_ends_with_bytes_or_a_stop(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.write(10, b"x" * 10, 0)
        writer = threading.Timer(0.05, partial.write, (0, b"x" * 10, 0))
        writer.start()
        assert partial.wait(0, 0) == 20
        writer.join()
        stopper = threading.Timer(0.05, partial.stop)
        stopper.start()
        assert partial.wait(20, 0) == 20
        stopper.join()


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        pass
    assert not partial.write(0, b"x", 0)
    assert not partial.restart(0)
    partial.note_etag("x")
    partial.discard()
    assert list((tmp_path / "partial").iterdir()) == []


def test_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "partial").write_bytes(b"")
    with pytest.raises(DiskError, match=r"can't write .*/partial/key"):
        open_partial(tmp_path)
