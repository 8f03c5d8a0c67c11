"""Where the bytes of a tar come from: the seam, one file, a pipe; volumes are in :mod:`manifests.volumes`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from manifests.errors import IntegrityError
from manifests.files import disk_error, open_regular_fd, read_into

COPY_HINT: Final = "copy it again from its source and compare sizes"


class MediumError(IntegrityError):
    """Nothing more can be read of a medium: it ended, its frame is wrong, or a volume can't be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A place in a file: ``offset`` and ``size`` in bytes."""

    path: Path
    offset: int
    size: int


class Stream(Protocol):
    """A pipe, such as ``sys.stdin.buffer``."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of ``buffer``; 0 at the end."""


class Feed(Protocol):
    """Whoever brings the next medium."""

    def __call__(self, wanted: str, folders: Sequence[Path], problem: str) -> Path | None:
        """Wait for the volume named ``wanted``.

        Args:
            wanted: Its file name.
            folders: Where it is looked for.
            problem: What is wrong with what was found there; empty the first time.

        Returns:
            A folder to look in, too; None to give up.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """Where the rest of a bundle is had from: more folders with volumes, who brings the next one, and the pipe."""

    folders: tuple[Path, ...] = ()
    feed: Feed | None = None
    stream: Stream | None = None


class ByteSource(Protocol):
    """The bytes of a tar. ``ordered`` says that they come in one direction only, for one thread."""

    label: str
    in_volumes: bool

    @property
    def ordered(self) -> bool:
        """Known once :meth:`expect` was called."""

    def expect(self, size: int) -> None:
        """Require ``size`` bytes in all, nothing missing and nothing more, as far as that can be seen now.

        Raises:
            IntegrityError: With every difference that can be named.
        """

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; return how many bytes there were, fewer only at the end."""

    def peek(self, size: int, offset: int) -> bytes:
        """Return bytes that can be read again afterwards."""

    def has(self, offset: int) -> bool:
        """Return whether the byte at ``offset`` can be read without asking anybody for it."""

    def parts(self, offset: int, size: int) -> tuple[Part, ...]:
        """Return where bytes lie on the disk; nothing for a pipe."""

    def check_end(self) -> None:
        """Require that nothing follows what was expected and read."""

    def close(self) -> None:
        """Release descriptors."""


class FileSource:
    """One file."""

    __slots__ = ("_descriptor", "_path", "label")

    in_volumes = False
    ordered = False

    def __init__(self, path: Path) -> None:
        self.label, self._path = str(path), path
        # The path itself may be a link that the operator made; what is inside the bundle may not.
        self._descriptor = open_regular_fd(path.resolve())

    def expect(self, size: int) -> None:
        found = os.fstat(self._descriptor).st_size
        if found < size:
            raise IntegrityError(f"{self.label}: truncated: {found} bytes, expected {size}", hint=COPY_HINT)
        if found > size:
            raise IntegrityError(f"{self.label}: {found - size} bytes after its end, expected {size} bytes in all")

    def read_into(self, view: memoryview, offset: int) -> int:
        try:
            return read_into(self._descriptor, view, offset)
        except OSError as error:
            raise disk_error(error, f"read {self.label}") from error

    def peek(self, size: int, offset: int) -> bytes:
        return take(self, size, offset)

    def has(self, _offset: int) -> bool:
        return True

    def parts(self, offset: int, size: int) -> tuple[Part, ...]:
        return (Part(path=self._path, offset=offset, size=size),)

    def check_end(self) -> None:
        """Do nothing: the size was compared."""

    def close(self) -> None:
        os.close(self._descriptor)


class StreamSource:
    """A pipe: read once, in order. What is left out is read past."""

    __slots__ = ("_ahead", "_position", "_size", "_stream", "label")

    in_volumes = False
    ordered = True

    def __init__(self, stream: Stream, label: str = "standard input") -> None:
        self.label, self._stream = label, stream
        self._position, self._ahead = 0, b""
        self._size: int | None = None

    def expect(self, size: int) -> None:
        self._size = size

    def read_into(self, view: memoryview, offset: int) -> int:
        if offset < self._position:
            raise AssertionError(f"a pipe can't be read again: at {self._position}, asked for {offset}")
        scratch = memoryview(bytearray(min(offset - self._position, 1 << 20)))
        while (skipped := offset - self._position) > 0 and self._fill(scratch[:skipped]):
            pass
        return self._fill(view)

    def peek(self, size: int, offset: int) -> bytes:
        data = take(self, size, offset)
        self._position -= len(data)
        self._ahead = data + self._ahead
        return data

    def has(self, _offset: int) -> bool:
        return True

    def parts(self, _offset: int, _size: int) -> tuple[Part, ...]:
        return ()

    def check_end(self) -> None:
        if self._read(memoryview(bytearray(1))):
            raise IntegrityError(f"{self.label}: bytes after its end, expected {self._size} bytes in all")

    def close(self) -> None:
        """Do nothing: the pipe belongs to whoever gave it."""

    def _fill(self, view: memoryview) -> int:
        done = 0
        while done < len(view) and (count := self._read(view[done:])):
            done += count
        self._position += done
        if done < len(view) and self._size is not None:
            msg = f"{self.label}: ended after {self._position} bytes, expected {self._size}"
            raise MediumError(msg, hint="send it again; what was verified is kept")
        return done

    def _read(self, view: memoryview) -> int:
        if self._ahead:
            count = min(len(view), len(self._ahead))
            view[:count], self._ahead = self._ahead[:count], self._ahead[count:]
            return count
        try:
            return self._stream.readinto(view) or 0
        except OSError as error:
            raise disk_error(error, f"read {self.label}") from error


def take(source: ByteSource, size: int, offset: int) -> bytes:
    """Return ``size`` bytes from ``offset`` of a source, fewer only at its end."""
    buffer = bytearray(size)
    return bytes(buffer[: source.read_into(memoryview(buffer), offset)])
