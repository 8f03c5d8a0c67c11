"""The seam to the operating system: every POSIX-only call that bundles and releases need is here.

Reading goes through descriptors that don't follow links; writing goes through a temporary file that becomes the real
one by a rename, or that is created exclusively.
"""

import contextlib
import errno
import fcntl
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from manifests.errors import DiskError, IntegrityError

READ_ONLY: Final = 0o444
READ_ONLY_EXECUTABLE: Final = 0o555


@contextlib.contextmanager
def open_regular(path: str | Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a regular file, opened for reading without following a link in its last component.

    Raises:
        IntegrityError: It is missing, a link, a folder or a device.
        DiskError: It can't be read.
    """
    descriptor = open_regular_fd(path, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular_fd(path: str | Path, *, dir_fd: int | None = None) -> int:
    """Return a descriptor as :func:`open_regular` yields it; the caller closes it."""
    try:
        # O_NONBLOCK: a FIFO in a bundle's folder must not hang the reader.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}:
            raise IntegrityError(f"{path}: is a link or not a regular file") from None
        raise disk_error(error, f"read {path}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntegrityError(f"{path}: is not a regular file")
    return descriptor


def open_no_link(path: str | Path, *, writable: bool = False) -> int:
    """Return a descriptor of what is at ``path``, a device or a FIFO too, without following a link and without waiting.

    Raises:
        OSError: As the system says it; ELOOP for a link.
    """
    kind = os.O_RDWR if writable else os.O_RDONLY
    return os.open(path, kind | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def open_or_create(path: str | Path, *, mode: int, append: bool = False) -> int:
    """Return a descriptor of a file that is made if need be, no link followed: to read and write, or to append.

    Raises:
        OSError: As the system says it; ELOOP for a link.
    """
    kind = os.O_WRONLY | os.O_APPEND if append else os.O_RDWR
    return os.open(path, kind | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


@contextlib.contextmanager
def open_below(folder: Path, path: str) -> Iterator[int]:
    """Yield a descriptor of ``folder/path``, following no link in any component of ``path``.

    Raises:
        IntegrityError: Missing, a link, or not a regular file.
    """
    *parents, name = path.split("/")
    with contextlib.ExitStack() as stack:
        current = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, current)
        for parent in parents:
            try:
                current = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            except OSError:
                raise IntegrityError(f"{folder / path}: missing, or below a link") from None
            stack.callback(os.close, current)
        yield stack.enter_context(open_regular(name, dir_fd=current))


def read_into(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset``; return how many bytes there were, fewer only at the end of the file."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """Return ``size`` bytes from ``offset``, fewer only at the end of the file."""
    buffer = bytearray(size)
    return bytes(buffer[: read_into(descriptor, memoryview(buffer), offset)])


def write_all(descriptor: int, view: memoryview | bytes, offset: int) -> None:
    """Write all of ``view`` at ``offset``."""
    rest = memoryview(view)
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def start_writing_back(descriptor: int, offset: int, size: int) -> None:
    """Ask the system to bring a part of a file to the disk now, without waiting, so that a later sync has less to do.

    On Linux POSIX_FADV_DONTNEED starts the writing of what is dirty (mm/fadvise.c); elsewhere nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # advice only
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def create_exclusive(path: str | Path, *, mode: int = 0o600, dir_fd: int | None = None) -> int:
    """Return a descriptor of a file that did not exist, open for reading and writing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, mode, dir_fd=dir_fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a file so that a reader, or the next start after a power cut, sees the old content or the new.

    ``durable`` False leaves out the power cut, for a caller that syncs everything at its end.

    Raises:
        DiskError: No space, no permission.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = create_exclusive(temporary)
        try:
            write_all(descriptor, data, 0)
            set_mode(descriptor, mode)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(error, f"write {path}") from error


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_link(link: Path, destination: str) -> None:
    """Point the symbolic link ``link`` at ``destination`` in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.partial")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(destination)
    temporary.replace(link)
    sync_folder(link.parent)


def make_link(link: Path, destination: str) -> None:
    """Make a symbolic link that isn't there yet."""
    link.symlink_to(destination)


def set_mode(descriptor: int, mode: int) -> None:
    """Set the permission bits of an open file."""
    os.fchmod(descriptor, mode)


def lock_folder(path: Path, *, exclusive: bool) -> int | None:
    """Return a descriptor that holds an advisory lock on a folder, None where somebody else's is in the way.

    Raises:
        OSError: It isn't a folder, or can't be locked.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if lock_descriptor(descriptor, exclusive=exclusive):
        return descriptor
    os.close(descriptor)
    return None


def lock_descriptor(descriptor: int, *, exclusive: bool, blocking: bool = False) -> bool:
    """Lock an open file, until it is closed; return whether that was possible, at once or after waiting.

    Raises:
        OSError: The file system has no locks.
    """
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind if blocking else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free_space(path: Path) -> int:
    """Return the bytes that an ordinary user can still write below the nearest existing parent of ``path``."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, blocking: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on ``path`` (created if need be); yields whether it was got, always True when blocking."""
    descriptor = open_or_create(path, mode=0o644)
    try:
        yield lock_descriptor(descriptor, exclusive=not shared, blocking=blocking)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, action: str) -> DiskError:
    """Return the error to raise for a failed ``action`` such as ``write /a/b``: what happened, in plain words."""
    reasons = {
        errno.ENOSPC: ("no space left on the device", "free some space, or choose another folder"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another folder"),
        errno.EACCES: ("permission denied", "choose a folder that you may write, or ask its owner"),
        errno.EPERM: ("operation not permitted", "choose a folder that you may write, or ask its owner"),
        errno.EROFS: ("the file system is read-only", "choose a folder that you may write"),
        errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder, or remove that file"),
        errno.EIO: ("the device reports a read or write error", "the medium may be damaged: copy from another one"),
    }
    reason, hint = reasons.get(error.errno or 0, (error.strerror or str(error), None))
    return DiskError(f"can't {action}: {reason}", hint=hint)
