"""The files of a bundle as streams, read where they lie on the medium; nothing is unpacked."""

import io
import os
from contextlib import ExitStack
from typing import BinaryIO, cast

from manifests.manifest import FileEntry
from manifests.medium import Medium
from manifests.pieces import ReadAt


class _PayloadStream(io.RawIOBase):
    """One payload file; closing it gives back what its reader holds."""

    def __init__(self, read: ReadAt, size: int, held: ExitStack) -> None:
        super().__init__()
        self._read, self._size, self._held, self._position = read, size, held, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(f"seek to {start + offset}, before the start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override] # BufferedReader gives nothing else
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        count = self._read(view, self._position) if len(view) else 0
        self._position += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._held.close()
        super().close()


def open_payload(medium: Medium, entry: FileEntry) -> BinaryIO:
    """Open a payload file for reading; seekable. :meth:`Medium.check_layout` must have passed.

    Raises:
        IntegrityError: The medium can't give it.
        DiskError: The medium can't be read.
    """
    held = ExitStack()
    read = held.enter_context(medium.reader(entry))
    return cast("BinaryIO", io.BufferedReader(_PayloadStream(read, entry.size, held), 256 * 1024))
