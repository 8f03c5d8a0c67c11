"""The seam to the operating system, on real files, links, FIFOs and locks."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manifests.errors import DiskError, IntegrityError
from manifests.files import (
    create_exclusive,
    disk_error,
    free_space,
    locked,
    open_regular,
    open_regular_fd,
    read_exactly,
    read_into,
    replace_link,
    sync_folder,
    write_all,
    write_atomic,
)


def open_count() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_open_regular_reads_and_closes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    before = open_count()
    with open_regular(tmp_path / "a") as descriptor:
        assert read_exactly(descriptor, 3, 0) == b"abc"
        assert not os.get_inheritable(descriptor)
    assert open_count() == before


def test_open_regular_below_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    folder = os.open(tmp_path, os.O_RDONLY)
    with open_regular("a", dir_fd=folder) as descriptor:
        assert read_exactly(descriptor, 9, 1) == b"bc"
    os.close(folder)


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    expected = {
        "gone": "missing",
        "link": "is a link or not a regular file",
        "socket": "is a link or not a regular file",
        "real/x": "is a link or not a regular file",
        "folder": "is not a regular file",
        "fifo": "is not a regular file",
    }
    before = open_count()
    for name, problem in expected.items():
        with pytest.raises(IntegrityError) as caught:
            open_regular_fd(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {problem}"
    assert open_count() == before


def test_a_name_that_is_too_long_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught:
        open_regular_fd(tmp_path / ("x" * 300))
    assert str(caught.value).startswith(f"can't read {tmp_path}/xxx")
    assert str(caught.value).endswith(": File name too long")


def test_reading_stops_at_the_end_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(10)))
    with open_regular(tmp_path / "a") as descriptor:
        view = memoryview(bytearray(6))
        assert read_into(descriptor, view, 2) == 6
        assert bytes(view) == bytes(range(2, 8))
        assert read_into(descriptor, view, 7) == 3
        assert read_into(descriptor, view, 99) == 0
        assert read_exactly(descriptor, 4, 8) == b"\x08\x09"


def test_write_all_and_create_exclusive(tmp_path: Path) -> None:
    descriptor = create_exclusive(tmp_path / "a", mode=0o640)
    write_all(descriptor, b"hello", 3)
    write_all(descriptor, memoryview(b"abc"), 0)
    write_all(descriptor, b"", 0)
    os.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"abchello"
    with pytest.raises(FileExistsError):
        create_exclusive(tmp_path / "a")
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(FileExistsError):
        create_exclusive(tmp_path / "link")


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a"
    (tmp_path / f".a.{os.getpid()}.{threading.get_ident()}.partial").write_bytes(b"left by a crash")
    write_atomic(target, b"one")
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    write_atomic(target, b"two", mode=0o600)
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names(tmp_path) == ["a"]


def test_write_atomic_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "keep").write_bytes(b"")
    with pytest.raises(DiskError) as caught:
        write_atomic(tmp_path / "folder", b"x")
    assert str(caught.value) == f"can't write {tmp_path / 'folder'}: Is a directory"
    assert names(tmp_path) == ["folder"]
    with pytest.raises(DiskError, match="No such file or directory"):
        write_atomic(tmp_path / "gone" / "a", b"x")


def test_replace_link_flips(tmp_path: Path) -> None:
    link = tmp_path / "current"
    replace_link(link, "releases/1")
    (tmp_path / f".current.{os.getpid()}.partial").symlink_to("left by a crash")
    replace_link(link, "releases/2")
    assert link.readlink() == Path("releases/2")
    assert names(tmp_path) == ["current"]


def test_sync_folder_wants_a_folder(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "a")


def test_free_space_looks_at_the_nearest_parent(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    got = free_space(tmp_path / "not" / "yet" / "there")
    assert abs(got - status.f_bavail * status.f_frsize) < 10**9


HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(descriptor, getattr(fcntl, sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("held", "shared", "got"), [("LOCK_EX", True, False), ("LOCK_SH", False, False), ("LOCK_SH", True, True)]
)
def test_locks_exclude_other_processes(tmp_path: Path, held: str, shared: bool, got: bool) -> None:
    path = tmp_path / "lock"
    with locked(path) as alone:
        assert alone
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with locked(path, shared=shared, blocking=False) as result:
            assert result is got
        holder.communicate()
    with locked(path, blocking=False) as free:
        assert free


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        (errno.ENOSPC, "no space left on the device", "free some space, or choose another folder"),
        (errno.EDQUOT, "the disk quota is used up", "free some space, or choose another folder"),
        (errno.EACCES, "permission denied", "choose a folder that you may write, or ask its owner"),
        (errno.EPERM, "operation not permitted", "choose a folder that you may write, or ask its owner"),
        (errno.EROFS, "the file system is read-only", "choose a folder that you may write"),
        (errno.EIO, "the device reports a read or write error", "the medium may be damaged: copy from another one"),
        (errno.ENOTEMPTY, "Directory not empty", None),
    ],
)
def test_disk_errors_in_plain_words(code: int, reason: str, hint: str | None) -> None:
    error = disk_error(OSError(code, os.strerror(code)), "write /a")
    assert (error.message, error.hint, error.exit_code) == (f"can't write /a: {reason}", hint, 7)


def test_a_disk_error_without_a_number() -> None:
    assert disk_error(OSError("odd"), "read x").message == "can't read x: odd"


def test_a_full_disk_is_said_so() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left") as caught:
        write_all(full.fileno(), b"x", 0)
    assert disk_error(caught.value, "write x").message == "can't write x: no space left on the device"
