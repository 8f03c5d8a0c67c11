"""Volumes: the tar's bytes, cut into ``....bundle.tar.001``, ``.002`` and so on, all of one size but the last.

How many there must be, and how long each, follows from the first one's size and from the signed manifest. The index
beside them is only a help for messages. They may lie in several folders, or be brought one after the other; nothing is
ever joined on a disk.
"""

import contextlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from manifests.canonical import Json, encode_canonical, parse_canonical
from manifests.errors import IntegrityError, UsageError, list_problems
from manifests.files import disk_error, open_regular, open_regular_fd, read_exactly, read_into
from manifests.sources import ByteSource, FileSource, MediumError, Part, Supply, take

VOLUMES_TYPE: Final = "urn:sealift:volumes:1"
MOST_VOLUMES: Final = 999
_NUMBERED: Final = re.compile(r"(.+)\.([0-9]{3})", re.DOTALL)
_SIZES_HINT: Final = "carry a volume of the wrong size again; take away one that is too many or there twice"
_KEPT_OPEN: Final = 64
_MAX_INDEX: Final = 1_000_000


class VolumeSource:
    """Volumes, found in the folder of the first one and in others, or brought one after the other by a feed."""

    __slots__ = ("_feed", "_folders", "_lock", "_open", "_stem", "_total", "_volume_size", "label", "ordered")

    in_volumes = True

    def __init__(self, first: Path, supply: Supply) -> None:
        self.label, self._feed, self.ordered = str(first), supply.feed, False
        self._stem = first.name.removesuffix(".001")
        self._folders = _distinct((first.parent, *supply.folders))
        self._lock = threading.Lock()
        self._total: int | None = None
        descriptor = open_regular_fd(first.resolve())
        self._open = {1: descriptor}
        self._volume_size = os.fstat(descriptor).st_size

    def expect(self, size: int) -> None:
        count, found = -(-size // self._volume_size), self._scan()
        problems = self._size_problems(found, size, count)
        if problems:
            raise IntegrityError(list_problems(self.label, problems), hint=_SIZES_HINT)
        missing = [self._name(number) for number in range(2, count + 1) if number not in found]
        if missing and self._feed is None:
            lines = [f"{name}: missing, the bundle has {count} volumes" for name in missing]
            raise IntegrityError(list_problems(self.label, lines), hint="name the folders they are in: --volumes DIR")
        self._total, self.ordered = size, bool(missing)

    def read_into(self, view: memoryview, offset: int) -> int:
        done = 0
        while done < len(view):
            index, inside = divmod(offset + done, self._volume_size)
            room = self._size_of(index + 1) - inside
            if room <= 0:
                break
            part = view[done : done + min(room, len(view) - done)]
            count = self._read(index + 1, part, inside)
            done += count
            if count < len(part):
                break
        return done

    def peek(self, size: int, offset: int) -> bytes:
        return take(self, size, offset)

    def has(self, offset: int) -> bool:
        number = offset // self._volume_size + 1
        return number in self._open or self._find(number) is not None

    def parts(self, offset: int, size: int) -> tuple[Part, ...]:
        found: list[Part] = []
        end = offset + size
        while offset < end or not found:
            index, inside = divmod(offset, self._volume_size)
            count = min(end - offset, self._volume_size - inside)
            path = self._find(index + 1) or self._folders[0] / self._name(index + 1)
            found.append(Part(path=path, offset=inside, size=count))
            offset += count
        return tuple(found)

    def check_end(self) -> None:
        """Do nothing: the size of each volume was compared when it was found."""

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _size_of(self, number: int) -> int:
        if self._total is None:
            return self._volume_size if number == 1 else 0
        return min(self._volume_size, self._total - (number - 1) * self._volume_size)

    def _name(self, number: int) -> str:
        return f"{self._stem}.{number:03}"

    def _find(self, number: int) -> Path | None:
        paths = (folder / self._name(number) for folder in self._folders)
        return next((path for path in paths if os.path.lexists(path)), None)

    def _read(self, number: int, view: memoryview, offset: int) -> int:
        descriptor, borrowed = self._descriptor(number)
        try:
            return read_into(descriptor, view, offset)
        except OSError as error:
            raise disk_error(error, f"read {self._name(number)}") from error
        finally:
            if not borrowed:
                os.close(descriptor)

    def _descriptor(self, number: int) -> tuple[int, bool]:
        """Return a descriptor of a volume, and whether it stays open afterwards."""
        with self._lock:
            if number in self._open:
                return self._open[number], True
            if self.ordered:
                self.close()  # or the medium could not be taken out
                descriptor = self._bring(number)
            else:
                path = self._find(number)
                if path is None:
                    raise MediumError(f"{self._name(number)}: missing")
                descriptor = open_regular_fd(path)
            keep = len(self._open) < _KEPT_OPEN
            if keep:
                self._open[number] = descriptor
            return descriptor, keep

    def _bring(self, number: int) -> int:
        """Open a volume, asking for it until it is there with the size that it must have."""
        wanted, problem, asked = self._name(number), "", False
        while True:
            path = self._find(number)
            if path is not None:
                descriptor = open_regular_fd(path)
                size = os.fstat(descriptor).st_size
                if size == self._size_of(number):
                    return descriptor
                os.close(descriptor)
                problem = f"{path}: {size} bytes, expected {self._size_of(number)}"
            elif asked:
                problem = f"{wanted} is in none of {', '.join(map(str, self._folders))}"
            folder = self._feed(wanted, self._folders, problem) if self._feed is not None else None
            if folder is None:
                msg = f"{wanted}: missing, {problem or 'nobody brought it'}"
                raise MediumError(msg, hint="run the same command again to go on; what was verified is kept")
            self._folders, asked = _distinct((*self._folders, folder)), True

    def _scan(self) -> Mapping[int, Sequence[Path]]:
        """Return every volume that is there, by number; the first is the one that was opened."""
        found: dict[int, list[Path]] = {}
        for folder in self._folders:
            try:
                names = sorted(entry.name for entry in os.scandir(folder))
            except OSError as error:
                raise disk_error(error, f"read {folder}") from error
            for name in names:
                match = _NUMBERED.fullmatch(name)
                if match is not None and match[1] == self._stem:
                    found.setdefault(int(match[2]), []).append(folder / name)
        return found

    def _size_problems(self, found: Mapping[int, Sequence[Path]], total: int, count: int) -> list[str]:
        first = self._volume_size
        sizes = {number: paths[-1].lstat().st_size for number, paths in found.items() if number != 1}
        right = _agreed_size(sizes, total)
        if count > MOST_VOLUMES or (right is not None and right != first):
            return [_size_text(self._name(1), first, min(right or self._indexed_size() or total, total))]
        if first > total:
            return [f"{self._name(1)}: {first - total} bytes after its end, expected {total} bytes in all"]
        problems = []
        for number, paths in sorted(found.items()):
            name = self._name(number)
            expected = min(first, total - (number - 1) * first)
            if number > count or number == 0:
                problems.append(f"{name}: one volume too many, the bundle has {count}")
            elif len(paths) > 1:
                problems.append(f"{name}: is there twice: {' and '.join(map(str, paths))}; take one away")
            elif number != 1 and sizes[number] != expected:
                problems.append(_size_text(name, sizes[number], expected))
        indexed = self._indexed_size() if problems else None
        if indexed is not None and indexed != first:
            problems.insert(0, f"{self._name(1)}: {first} bytes, the index beside it says {indexed}")
        return problems

    def _indexed_size(self) -> int | None:
        """Return what the unsigned index says of the first volume's size, None where there is none to be read."""
        for folder in self._folders:
            with contextlib.suppress(IntegrityError, OSError, KeyError, IndexError, TypeError):
                with open_regular(folder / f"{self._stem}.volumes.json") as descriptor:
                    data = read_exactly(descriptor, min(os.fstat(descriptor).st_size, _MAX_INDEX), 0)
                document = parse_canonical(data, what="index", max_size=_MAX_INDEX)
                size = document["volumes"][0]["size"]  # type: ignore[index, call-overload] # a TypeError means: no index
                return size if isinstance(size, int) and size > 0 else None
        return None


def open_source(path: Path, supply: Supply) -> ByteSource:
    """Open a tar or its first volume.

    Raises:
        UsageError: It is a volume, but not the first.
        IntegrityError: It isn't a regular file.
    """
    match = _NUMBERED.fullmatch(path.name)
    if match is None:
        return FileSource(path)
    if match[2] != "001":
        raise UsageError(f"{path}: is not the first volume", hint=f"give {path.with_name(f'{match[1]}.001')}")
    return VolumeSource(path, supply)


def encode_index(names_and_sizes: Sequence[tuple[str, int]], digest: str) -> bytes:
    """Return the canonical bytes of ``....volumes.json``: names and sizes in order, and the manifest's digest."""
    volumes: list[Json] = [{"name": name, "size": size} for name, size in names_and_sizes]
    total = sum(size for _, size in names_and_sizes)
    return encode_canonical({"_type": VOLUMES_TYPE, "digest": digest, "size": total, "volumes": volumes})


def _agreed_size(sizes: Mapping[int, int], total: int) -> int | None:
    """Return the size that the volumes after the first agree upon, if with it they are exactly what is needed."""
    if not sizes or sorted(sizes) != list(range(2, len(sizes) + 2)):
        return None
    *middle, last = (sizes[number] for number in sorted(sizes))
    agreed = middle[0] if middle else total - last
    fits = 0 < last <= agreed and total - agreed * len(sizes) == last
    return agreed if fits and middle and set(middle) == {agreed} else None


def _size_text(name: str, size: int, expected: int) -> str:
    return f"{name}: {'truncated' if size < expected else 'too long'}: {size} bytes, expected {expected}"


def _distinct(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders in order, one that is there under two names only once."""
    found: dict[object, Path] = {}
    for folder in folders:
        try:
            status = folder.stat()
        except OSError:
            found.setdefault(str(folder), folder)
        else:
            found.setdefault((status.st_dev, status.st_ino), folder)
    return tuple(found.values())
