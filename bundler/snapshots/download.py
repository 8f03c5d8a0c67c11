"""One download under way: workers that fill a partial file, and a hash that follows them.

What fails on the network is tried again, a bounded number of times in a row without progress. A server that can't do
ranges, or has another content by now, is asked for all of it again: parts of two versions are never put together.
"""

import contextlib
import hashlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.snapshots.partial import PartialFile
from bundler.snapshots.patience import PASSING_STATUSES, Clock, Limits, Patience, TransientError, retry_after
from bundler.snapshots.transport import Reply, Transport, host_of
from bundler.store import Store
from manifests.digests import BUFFER_SIZE, ContentDigest, ContentHasher
from manifests.errors import IntegrityError, SourceError
from manifests.progress import format_size
from manifests.registry_http import network_reason

_READ_SIZE: Final = 256 * 1024
_RESTARTS: Final = 3
_STALE_ADDRESS: Final = {401, 403, 404, 410}  # what an expired address on a content server answers
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One file to fetch.

    ``size`` in bytes; ``sha256``, or else ``blob_id`` (git's: the sha1 of ``blob SIZE``, a NUL and the content), is
    what it must turn out to be; ``name`` and ``hint`` are for messages, the hint for when the server refuses.
    """

    url: str
    name: str
    size: int
    sha256: str = ""
    blob_id: str = ""
    hint: str = ""

    @property
    def key(self) -> str:
        """What the content is known by before it is there."""
        return self.sha256 or f"blob-{self.blob_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all downloads of one call share. ``report`` is told in words, ``progress`` in bytes, also negative ones."""

    store: Store
    transport: Transport
    limits: Limits
    clock: Clock
    report: Callable[[str], None]
    progress: Callable[[int], None]
    stop: threading.Event


class DownloadJob:
    """One download under way: a partial file, and workers that fill it."""

    def __init__(self, download: Download, folder: Path, session: Session, pool: ThreadPoolExecutor) -> None:
        self.download, self._session, self._pool = download, session, pool
        self._path = folder / download.key
        self._failure: BaseException | None = None
        self._location = ""  # where the origin redirected to; asked directly as long as it answers
        self._restarts = 0
        self._begin()

    def _begin(self) -> None:
        self._spread = -1  # the epoch in which all segments have their worker
        self.partial = PartialFile(self._path, self.download.size, self._session.limits.segment)
        self._session.progress(self.partial.done)
        if self.partial.resumed:
            done, size = format_size(self.partial.done), format_size(self.download.size)
            self._session.report(f"{self.download.name}: going on at {done} of {size}")
        if missing := self.partial.missing():
            # Others follow once the server has shown that it does ranges.
            self._submit(missing[0], self.partial.epoch)

    def finish(self) -> ContentDigest:
        """Hash what comes until all is there, and put it into the store."""
        download, store = self.download, self._session.store
        try:
            digest, blob_id = self._hashed()
            expected, got = (download.sha256, digest.sha256) if download.sha256 else (download.blob_id, blob_id)
            if expected != got:
                return self._mismatch(expected, got)
            self.partial.close()
            store.adopt(self.partial.path, digest)
            self.partial.discard()
        finally:
            self.partial.close()
        if not download.sha256:
            store.write_record("git-blob", download.blob_id, digest.sha256)
        return digest

    def _mismatch(self, expected: str, got: str) -> ContentDigest:
        resumed = self.partial.resumed
        self.partial.discard()
        self._session.progress(-self.download.size)
        kind = "sha256" if self.download.sha256 else "git blob"
        if resumed:  # the older part may have been damaged since; a body fetched in one go has no such excuse
            self._session.report(f"{self.download.name}: the part from earlier doesn't fit; fetched anew")
            self._begin()
            return self.finish()
        raise IntegrityError(f"{self.download.name}: expected {kind} {expected}, got {got}; it was discarded")

    def _hashed(self) -> tuple[ContentDigest, str]:
        size, partial = self.download.size, self.partial
        buffer = memoryview(bytearray(min(BUFFER_SIZE, size)))
        while True:
            epoch, offset = partial.epoch, 0
            hasher, blob = ContentHasher(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while offset < size and (end := partial.wait(offset, epoch)) > offset:
                data = buffer[: min(BUFFER_SIZE, end - offset)]
                partial.read_into(data, offset)
                hasher.update(data)
                if not self.download.sha256:
                    blob.update(data)
                offset += len(data)
            if self._failure is not None:
                raise self._failure
            if offset == size and epoch == partial.epoch:
                return hasher.digest(), blob.hexdigest()

    def _run(self, work: Callable[[], None]) -> None:
        """Do ``work`` in a worker; what it raises is raised again in the calling thread."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - not lost: finish() raises it
            if self._failure is None:
                self._failure = error
            self.partial.stop()

    def _submit(self, index: int, epoch: int) -> None:
        self._pool.submit(self._run, lambda: self._fetch_segment(index, epoch))

    def _patience(self) -> Patience:
        session = self._session
        return Patience(
            name=self.download.name,
            limits=session.limits,
            clock=session.clock,
            report=session.report,
            stop=session.stop,
        )

    def _fetch_segment(self, index: int, epoch: int) -> None:
        patience = self._patience()
        while epoch == self.partial.epoch and self._goes_on():
            start, end = self.partial.gap(index)
            if start == end:
                return
            try:
                self._attempt(index, epoch)
            except TransientError as error:
                moved = self.partial.gap(index)[0] - start >= self._session.limits.progress
                patience.failed(error, self._host(), has_moved=moved)

    def _goes_on(self) -> bool:
        return self._failure is None and not self._session.stop.is_set()

    def _host(self) -> str:
        return host_of(self._location or self.download.url)

    def _attempt(self, index: int, epoch: int) -> None:
        """Ask once for what a segment lacks, and take what comes."""
        start, end = self.partial.gap(index)
        asks_all = (start, end) == (0, self.download.size)
        with self._ask(start, end, asks_all=asks_all) as reply:
            if reply.status == 206 and not asks_all:
                stop = _check_range(reply, start, end, self.download.size)
                self._check_etag(reply, epoch)
                self._submit_others(index, epoch)
                self._take(reply, start, stop, epoch)
                return
            self._check_length(reply)
            if asks_all:
                self.partial.note_etag(reply.header("ETag"))
                self._take_all(reply, epoch)
            else:
                self._restart(epoch, is_whole=True, reason="the server sends all of it instead of a part")

    def _fetch_whole(self) -> None:
        """Fetch from the start to the end in one body, from a server that can't do it otherwise; the only worker."""
        patience = self._patience()
        while self._goes_on():
            try:
                with self._ask(0, self.download.size, asks_all=True) as reply:
                    self._check_length(reply)
                    self._session.progress(-self.partial.done)
                    self.partial.restart(self.partial.epoch)
                    self._take_all(reply, self.partial.epoch)
            except TransientError as error:
                patience.failed(error, self._host())
            else:
                return

    @contextlib.contextmanager
    def _ask(self, start: int, end: int, *, asks_all: bool) -> Iterator[Reply]:
        """Yield a reply with content; what fails on the network, in here and in the ``with``, is a TransientError."""
        headers = {} if asks_all else {"Range": f"bytes={start}-{end - 1}"}
        etag = self.partial.etag
        if headers and etag and not etag.startswith("W/"):  # RFC 9110, 13.1.5: If-Range takes strong ones only
            headers["If-Range"] = etag
        try:
            with self._session.transport.get(self._location or self.download.url, headers) as reply:
                self._judge(reply, start)
                self._location = reply.url if reply.url != self.download.url else ""
                yield reply
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(network_reason(error)) from None

    def _judge(self, reply: Reply, start: int) -> None:
        """Raise for any status that isn't content."""
        status = reply.status
        if status in {200, 206}:
            return
        if self._location and status in _STALE_ADDRESS:
            self._location = ""
            raise TransientError("the address on the content server has expired", wait=0)
        reason = f"status {status} {reply.response.reason}".strip()
        if status in PASSING_STATUSES:
            raise TransientError(reason, wait=retry_after(reply.header("Retry-After"), self._session.clock))
        if status == 416:
            raise TransientError(f"it has no byte {start}, though {self.download.size} bytes were promised")
        code = reply.header("X-Error-Code")[:80]
        detail = f"{reason}, {code}" if code else reason
        msg = f"{self.download.name}: {host_of(reply.url)} refuses: {detail}"
        raise SourceError(msg, hint=self.download.hint or None)

    def _check_length(self, reply: Reply) -> None:
        announced = reply.header("Content-Length")
        if announced and announced != str(self.download.size):
            raise TransientError(f"expected {self.download.size} bytes, it announces {announced[:20]}")

    def _check_etag(self, reply: Reply, epoch: int) -> None:
        etag = reply.header("ETag")
        if not self.partial.etag or not self.partial.done:
            self.partial.note_etag(etag)
        elif etag and etag != self.partial.etag:
            # After a few times it's rather a server with an ETag for each of its nodes; one body has only one.
            self._restart(epoch, is_whole=self._restarts >= _RESTARTS, reason="it is another version by now")
            raise TransientError("it changed while it was fetched", wait=0)

    def _restart(self, epoch: int, *, is_whole: bool, reason: str) -> None:
        """Begin anew with another worker, unless somebody has done so; the present ones end, since the epoch does."""
        lost = self.partial.done
        if not self.partial.restart(epoch):
            return
        self._restarts += 1
        self._session.progress(-lost)
        self._session.report(f"{self.download.name}: {self._host()}: {reason}; begun anew")
        if is_whole:
            self._pool.submit(self._run, self._fetch_whole)
        else:
            self._submit(0, self.partial.epoch)

    def _submit_others(self, index: int, epoch: int) -> None:
        if self._spread == epoch:
            return
        self._spread = epoch
        for other in self.partial.missing():
            if other != index:
                self._submit(other, epoch)

    def _take_all(self, reply: Reply, epoch: int) -> None:
        size = self.download.size
        self._take(reply, 0, size, epoch)
        if self._goes_on() and epoch == self.partial.epoch and reply.response.read(1):
            raise TransientError(f"expected {size} bytes, more come")

    def _take(self, reply: Reply, start: int, end: int, epoch: int) -> None:
        """Write a body to where it belongs.

        Raises:
            TransientError: It ends early, or comes too slowly.
        """
        clock, limits = self._session.clock, self._session.limits
        since, mark = clock.monotonic(), start
        while start < end and self._goes_on():
            data = reply.response.read1(min(_READ_SIZE, end - start))
            if not data:
                raise TransientError(f"the body ended {end - start} bytes early")
            if not self.partial.write(start, data, epoch):
                return
            start += len(data)
            self._session.progress(len(data))
            if (now := clock.monotonic()) - since >= limits.timeout:
                if start - mark < limits.slowest * limits.timeout:
                    raise TransientError(f"only {start - mark} bytes came in {now - since:.0f} s")
                since, mark = now, start


def _check_range(reply: Reply, start: int, end: int, size: int) -> int:
    """Return the end of what a 206 holds (RFC 9110, 14.4); other bytes than the asked ones must not be written."""
    text = reply.header("Content-Range")
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or int(match[1]) != start or not start <= int(match[2]) < end or match[3] not in {"*", str(size)}:
        msg = f"expected bytes {start}-{end - 1}/{size}, it sends {text[:80] or 'a part without Content-Range'}"
        raise TransientError(msg)
    return int(match[2]) + 1
