"""Content on its way: as much of a download as is there, kept so that a killed process loses nothing.

::

    STORE/partial/KEY            the content at its final size, with holes
    STORE/partial/KEY.state      1,024 bytes of JSON (size, segment, etag), then for each segment the number of bytes
                                 that are there from its start, as 64 bits, little-endian

A counter is written after the bytes that it counts. That holds for a killed process, not for a power cut; so whoever
finishes a download compares its digest, and throws it away when it is another.
"""

import contextlib
import json
import os
import struct
import threading
from pathlib import Path
from typing import Final, Self

from manifests.files import disk_error, read_exactly, read_into, write_all

_HEADER_SIZE: Final = 1024
_COUNTER: Final = struct.Struct("<Q")
_NO_ETAG_LONGER_THAN: Final = 256


class PartialFile:
    """A file that several threads fill, each its segment from the segment's start on; close it when done.

    Args:
        path: Where the content lies or will lie; its state lies beside it. What can't be continued is begun anew.
        size: Of the whole content, in bytes.
        segment: Size of a segment in bytes; the last one may be short.

    Raises:
        DiskError: It can't be opened or made.
    """

    def __init__(self, path: Path, size: int, segment: int) -> None:
        self.path, self.size, self.segment = path, size, segment
        self.epoch = 0
        self.etag = ""
        self._changed = threading.Condition()
        self._stopped = False
        self._counts = [0] * -(-size // segment)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._content = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._state = os.open(self.state_path, os.O_RDWR | os.O_CREAT, 0o644)
            if not self._continued():
                self._begin()
        except OSError as error:
            raise disk_error(error, f"write {path}") from error
        self.resumed = self.done > 0

    @property
    def state_path(self) -> Path:
        """Where the counters lie."""
        return self.path.with_name(f"{self.path.name}.state")

    @property
    def done(self) -> int:
        """How many bytes are there."""
        with self._changed:
            return sum(self._counts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files, which stay; again is harmless."""
        with self._changed:  # a worker may be writing: the number of a closed descriptor is soon another file's
            for descriptor in (self._content, self._state):
                if descriptor >= 0:
                    os.close(descriptor)
            self._content = self._state = -1

    def discard(self) -> None:
        """Remove content and state."""
        self.close()
        for path in (self.path, self.state_path):
            path.unlink(missing_ok=True)

    def missing(self) -> list[int]:
        """Return the numbers of the segments that aren't complete."""
        with self._changed:
            return [index for index, count in enumerate(self._counts) if count < self._length(index)]

    def gap(self, index: int) -> tuple[int, int]:
        """Return first and end offset of what a segment lacks; both are equal when it lacks nothing."""
        start = index * self.segment
        with self._changed:
            return start + self._counts[index], start + self._length(index)

    def write(self, offset: int, data: bytes, epoch: int) -> bool:
        """Write the bytes that come next in their segment, or in several segments; False if begun anew meanwhile.

        Raises:
            DiskError: They can't be written.
        """
        view = memoryview(data)
        with self._changed:
            if epoch != self.epoch or self._content < 0:
                return False
            while view:
                index = offset // self.segment
                if offset != index * self.segment + self._counts[index]:
                    raise ValueError(f"{self.path}: byte {offset} isn't the next one of its segment")
                part = view[: index * self.segment + self._length(index) - offset]
                self._put(offset, part)
                self._count(index, offset + len(part) - index * self.segment)
                offset, view = offset + len(part), view[len(part) :]
            self._changed.notify_all()
        return True

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` with the bytes at ``offset``.

        Raises:
            DiskError: They can't be read.
        """
        try:
            read_into(self._content, view, offset)
        except OSError as error:
            raise disk_error(error, f"read {self.path}") from error

    def restart(self, epoch: int) -> bool:
        """Forget all bytes, unless somebody else began anew since ``epoch``; whether it was this call."""
        with self._changed:
            if epoch != self.epoch or self._content < 0:
                return False
            self._counts = [0] * len(self._counts)
            self.epoch += 1
            self.etag = ""
            self._write_state()
            self._changed.notify_all()
            return True

    def note_etag(self, etag: str) -> None:
        """Remember the validator (RFC 9110, 8.8.3) of the content that is being fetched."""
        with self._changed:
            if self._content >= 0:
                self.etag = etag if len(etag) <= _NO_ETAG_LONGER_THAN else ""
                self._write_state()

    def stop(self) -> None:
        """Wake whoever waits, for good."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wait(self, offset: int, epoch: int) -> int:
        """Wait until there is a byte at ``offset`` and all before it; return how far it goes.

        Returns:
            The end of what is there without a gap; ``offset`` or less when stopped or begun anew.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or epoch != self.epoch or self._frontier() > offset)
            return self._frontier() if epoch == self.epoch else -1

    def _frontier(self) -> int:
        end = 0
        for index, count in enumerate(self._counts):
            end += count
            if count < self._length(index):
                break
        return end

    def _length(self, index: int) -> int:
        return min(self.segment, self.size - index * self.segment)

    def _put(self, offset: int, view: memoryview) -> None:
        try:
            write_all(self._content, view, offset)
        except OSError as error:
            raise disk_error(error, f"write {self.path}") from error

    def _count(self, index: int, count: int) -> None:
        self._counts[index] = count
        try:
            write_all(self._state, _COUNTER.pack(count), _HEADER_SIZE + index * _COUNTER.size)
        except OSError as error:
            raise disk_error(error, f"write {self.state_path}") from error

    def _begin(self) -> None:
        os.ftruncate(self._content, 0)
        os.ftruncate(self._content, self.size)
        self._write_state()

    def _write_state(self) -> None:
        header = json.dumps({"etag": self.etag, "segment": self.segment, "size": self.size}).encode()
        counters = b"".join(_COUNTER.pack(count) for count in self._counts)
        try:
            write_all(self._state, header.ljust(_HEADER_SIZE - 1) + b"\n" + counters, 0)
            os.ftruncate(self._state, _HEADER_SIZE + len(counters))
        except OSError as error:
            raise disk_error(error, f"write {self.state_path}") from error

    def _continued(self) -> bool:
        """Take over what an earlier process left, if it is of the same shape."""
        length = len(self._counts) * _COUNTER.size
        sizes = (os.fstat(self._state).st_size, os.fstat(self._content).st_size)
        if sizes != (_HEADER_SIZE + length, self.size):
            return False
        state = read_exactly(self._state, _HEADER_SIZE + length, 0)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            header = json.loads(state[:_HEADER_SIZE])
            counts = [count for (count,) in _COUNTER.iter_unpack(state[_HEADER_SIZE:])]
            fits = all(count <= self._length(index) for index, count in enumerate(counts))
            if (header["size"], header["segment"]) == (self.size, self.segment) and fits:
                self.etag, self._counts = str(header["etag"]), counts
                return True
        return False
