"""Where a bundle is written: one file, or volumes on one or several disks, first under names that don't count.

Every byte goes to its final place at once, wherever that is: nothing is joined, nothing is written twice.
"""

import contextlib
import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from bundler.units import parse_size
from manifests.errors import DiskError, UsageError
from manifests.files import create_exclusive, disk_error, free_space, start_writing_back, write_all, write_atomic
from manifests.progress import format_size
from manifests.tarlayout import BLOCK, TarLayout
from manifests.volumes import MOST_VOLUMES, encode_index

FAT32_SIZE: Final = 4 * 1024**3 - 64 * 1024**2
"""FAT holds files of at most 4 GiB - 1; this is the largest multiple of 64 MiB below."""

KIT_ROOM: Final = 8 * 1024**2
INDEX_ROOM: Final = 256 * 1024
"""More than an index of 999 volumes has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A file that holds the bytes of a tar from ``start`` on, ``size`` of them."""

    path: Path
    start: int
    size: int


Place: TypeAlias = Callable[[TarLayout], Sequence[Slice]]
"""Decides where the bytes of a tar lie, once its size is known."""


def parse_volume_size(text: str) -> int:
    """Return the bytes of ``--volume-size``: a size such as ``4 GiB``, or ``fat32``.

    Raises:
        UsageError: It is neither.
    """
    if text.lower() == "fat32":
        return FAT32_SIZE
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--volume-size: {error}", hint="a size such as 4GiB, or fat32") from None
    if not size:
        raise UsageError("--volume-size: a volume can't be empty", hint="a size such as 4GiB, or fat32")
    return size


class SliceWriter:
    """Writes anywhere in a tar that lies in one file or in several."""

    __slots__ = ("_descriptors", "_slices", "_starts")

    def __init__(self, slices: Sequence[Slice]) -> None:
        self._slices = tuple(slices)
        self._starts = [one.start for one in slices]
        self._descriptors: list[int] = []
        try:
            for one in self._slices:
                self._descriptors.append(_create(one))
            for one, descriptor in zip(self._slices, self._descriptors, strict=True):
                _reserve(descriptor, one)
        except BaseException:
            self.remove()
            raise

    def write(self, view: memoryview | bytes, offset: int) -> None:
        """Write all of ``view`` at an offset of the tar."""
        rest = memoryview(view)
        for index, inside, count in self._spread(offset, len(rest)):
            write_all(self._descriptors[index], rest[:count], inside)
            rest = rest[count:]

    def settle(self, offset: int, size: int) -> None:
        """Begin to bring a part of the tar to the disk."""
        for index, inside, count in self._spread(offset, size):
            start_writing_back(self._descriptors[index], inside, count)

    def sync(self) -> None:
        """Have everything on the disk: it may be one that is pulled out next."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)

    def close(self) -> None:
        """Close every file."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def remove(self) -> None:
        """Close and remove every file that was made."""
        made = len(self._descriptors)
        self.close()
        for one in self._slices[:made]:
            with contextlib.suppress(OSError):
                one.path.unlink()

    def _spread(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        end = offset + size
        while offset < end:
            index = bisect_right(self._starts, offset) - 1
            one = self._slices[index]
            inside = offset - one.start
            count = min(end - offset, one.size - inside)
            yield index, inside, count
            offset += count


class Delivery:
    """A bundle on its way to its name: written under names that don't count, then published or discarded.

    Args:
        name: The tar's file name; volumes get ``.001`` and so on behind it.
        outputs: Folders that exist; a volume goes to the first one that has room for it.
        volume_size: In bytes, None for one tar.
    """

    def __init__(self, name: str, outputs: Sequence[Path], volume_size: int | None = None) -> None:
        self._name, self._outputs, self._volume_size = name, tuple(outputs), volume_size
        self._slices: tuple[Slice, ...] = ()

    def place(self, layout: TarLayout) -> Sequence[Slice]:
        """Decide where everything goes; a :data:`Place`.

        Raises:
            UsageError: Too small for the first volume, or too many volumes.
            DiskError: The outputs have no room for all of it.
        """
        hidden = f".{self._name}.{os.getpid()}.partial"
        if self._volume_size is None:
            self._slices = (Slice(path=self._outputs[0] / hidden, start=0, size=layout.size),)
        else:
            self._slices = tuple(self._cut(layout, hidden, self._volume_size))
        return self._slices

    @property
    def partial(self) -> Path:
        """What was written, to be opened as a bundle."""
        return self._slices[0].path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that hold something of it, the first volume's first."""
        return tuple(dict.fromkeys(one.path.parent for one in self._slices))

    def publish(self, digest: str) -> tuple[Path, ...]:
        """Give everything its name, the first volume last, and return the names; ``digest`` is the manifest's."""
        if self._volume_size is None:
            return (self.partial.replace(self._outputs[0] / self._name),)
        names = [f"{self._name}.{number:03}" for number in range(1, len(self._slices) + 1)]
        for folder in self._outputs:
            for old in sorted(folder.glob(f"{self._name}.[0-9][0-9][0-9]")):  # of an earlier build, .001 first
                old.unlink()
        finals = [one.path.with_name(name) for one, name in zip(self._slices, names, strict=True)]
        index = encode_index([(name, one.size) for name, one in zip(names, self._slices, strict=True)], digest)
        for folder in self.folders:
            write_atomic(folder / f"{self._name}.volumes.json", index)
        for one, final in reversed(list(zip(self._slices, finals, strict=True))):
            one.path.replace(final)
        return tuple(finals)

    def discard(self) -> None:
        """Remove what was not published."""
        for one in self._slices:
            with contextlib.suppress(OSError):
                one.path.unlink()

    def _cut(self, layout: TarLayout, hidden: str, size: int) -> Iterator[Slice]:
        least = layout.list_offset + len(layout.list_member) + BLOCK
        if size < least:
            msg = f"--volume-size: {size} bytes are too few, the first volume holds manifest and signatures"
            raise UsageError(msg, hint=f"at least {least} bytes")
        count = -(-layout.size // size)
        if count > MOST_VOLUMES:
            msg = f"--volume-size: {count} volumes of {format_size(size)}, at most {MOST_VOLUMES} can be numbered"
            raise UsageError(msg, hint=f"at least {format_size(-(-layout.size // MOST_VOLUMES))}")
        room = _Room(self._outputs)
        for number in range(1, count + 1):
            start = (number - 1) * size
            part = min(size, layout.size - start)
            folder = room.take(part, f"{self._name}.{number:03}", layout.size - start)
            yield Slice(path=folder / f"{hidden}.{number:03}", start=start, size=part)


class _Room:
    """The free space of the outputs, two of which may be on one disk; filled in order, so that volumes stay in order.

    Something is set aside on the first for the kit, and on each for the index.
    """

    def __init__(self, outputs: Sequence[Path]) -> None:
        self._left = list(dict.fromkeys(outputs))
        self._disks = {folder: folder.stat().st_dev for folder in outputs}
        self._free = {disk: free_space(folder) - INDEX_ROOM for folder, disk in self._disks.items()}
        self._free[self._disks[outputs[0]]] -= KIT_ROOM

    def take(self, size: int, name: str, rest: int) -> Path:
        """Return the folder for a volume; ``rest`` is what it and all that follow need."""
        while self._left:
            folder = self._left[0]
            if self._free[self._disks[folder]] >= size:
                self._free[self._disks[folder]] -= size
                return folder
            self._left.pop(0)
        found = ", ".join(f"{folder} has {format_size(free_space(folder))}" for folder in self._disks)
        msg = f"no room for {name} and what follows, {format_size(rest)}: {found} before anything is written"
        raise DiskError(msg, hint="name another disk: --output DIR --output DIR2, or choose smaller volumes")


def one_file(path: Path) -> Place:
    """Return the place that is one file."""
    return lambda layout: (Slice(path=path, start=0, size=layout.size),)


def _create(one: Slice) -> int:
    try:
        return create_exclusive(one.path, mode=0o644)
    except OSError as error:
        raise disk_error(error, f"create {one.path}") from error


def _reserve(descriptor: int, one: Slice) -> None:
    """Have the whole file's space reserved, so that a full disk is known before anything is copied."""
    try:
        os.posix_fallocate(descriptor, 0, one.size)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EINVAL}:
            os.ftruncate(descriptor, one.size)
            return
        if error.errno in {errno.EFBIG, errno.ENOSPC}:
            hint = "FAT holds files of at most 4 GiB: --volume-size fat32"
            hint = hint if error.errno == errno.EFBIG else "choose another --output"
            raise DiskError(f"can't write {one.path}: no room for its {one.size} bytes", hint=hint) from error
        raise disk_error(error, f"write {one.path}") from error
