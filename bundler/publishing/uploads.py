"""Sending one blob to a registry: in one request up to 64 MiB, else by chunks that resume where the registry is.

By the OCI distribution specification, "Pushing blobs". Docker's registry keeps what arrived of a chunk that broke off
but lets nobody go on there; such a blob is begun again.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from manifests.artifact import FILE_TYPE
from manifests.digests import CHUNK_SIZE
from manifests.errors import SourceError
from manifests.registry import Attempts, Interrupted, Registry, refusal
from manifests.registry_http import Body, Reply

Content: TypeAlias = Callable[[int, int], Iterator[memoryview]]
"""Gives the bytes of a file from an offset to before another, checked on the way."""

_RECEIVED: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_BEGIN_AGAIN: Final = {400, 404, 416}
"""Answers to an upload that the registry doesn't know any more, or not in this state."""


class Upload:
    """One blob on its way.

    Args:
        registry: Where to.
        digest: ``sha256:`` and hex.
        size: In bytes.
        content: Its bytes; asked for again where something has to be sent again.
        what: How messages call it.
    """

    def __init__(self, registry: Registry, digest: str, size: int, content: Content, what: str) -> None:
        self._registry, self._digest, self._size = registry, digest, size
        self._content, self._what = content, what
        self._restarts = self._attempts()

    def send(self) -> None:
        """Send it.

        Raises:
            SourceError: The registry can't be reached, or doesn't take it.
            IntegrityError: The content isn't what the manifest says.
        """
        while (problem := self._try()) is not None:
            self._restarts.failed(f"{problem}, begun again")

    def _try(self) -> str | None:
        """Send it by one upload session; return why that came to nothing, None if it came to something."""
        reply = self._registry.reply("POST", f"{self._registry.remote.base}/blobs/uploads/", self._attempts())
        with contextlib.closing(reply):
            self._require(reply, 202)
            place = self._location(reply)
        done, attempts = 0, self._attempts()
        while self._size > CHUNK_SIZE and done < self._size:
            sent = self._patch(place, done)
            if not isinstance(sent, str):
                place, done = sent
                attempts = self._attempts()
                continue
            received = self._status(place)
            if received is None:
                return sent
            place, done = received
            attempts.failed(sent)
        return self._finish(place, done)

    def _patch(self, place: str, start: int) -> tuple[str, int] | str:
        """Send one chunk; return where the upload goes on and how far it is, or why the chunk didn't arrive."""
        end = self._end(start)
        try:
            reply = self._send("PATCH", place, start, end, {"Content-Range": f"{start}-{end - 1}"})
        except Interrupted as error:
            return error.reason
        with contextlib.closing(reply):
            if reply.status in _BEGIN_AGAIN:
                return refusal(reply)
            self._require(reply, 202)
            return self._location(reply), end

    def _finish(self, place: str, start: int) -> str | None:
        """Close the upload, with all that wasn't sent yet; return why that came to nothing."""
        digest = f"digest={self._digest.replace(':', '%3A')}"
        url = f"{place}{'&' if urlsplit(place).query else '?'}{digest}"
        try:
            reply = self._send("PUT", url, start, self._size, {})
        except Interrupted as error:
            problem = error.reason
        else:
            with contextlib.closing(reply):
                if reply.status not in _BEGIN_AGAIN:
                    self._require(reply, 201)
                    return None
                problem = refusal(reply)
        # The answer to this attempt, or to an earlier one, may have been lost.
        return None if self._registry.blob_size(self._digest) == self._size else problem

    def _send(self, method: str, url: str, start: int, end: int, headers: dict[str, str]) -> Reply:
        body: Body = b"" if start == end else lambda: self._content(start, end)
        sent = {"Content-Type": FILE_TYPE, "Content-Length": str(end - start), **headers}
        return self._registry.reply(method, url, self._attempts(), headers=sent, body=body)

    def _status(self, place: str) -> tuple[str, int] | None:
        """Ask how far an upload got: where it goes on, and the bytes that are there; None if it can't go on."""
        with contextlib.closing(self._registry.reply("GET", place, self._attempts())) as reply:
            match = _RECEIVED.fullmatch(reply.header("Range"))
            # 0-0 may be one byte or none.
            if reply.status != 204 or match is None or int(match[1]) == 0 or int(match[1]) >= self._size:
                return None
            return self._location(reply), int(match[1]) + 1

    def _end(self, start: int) -> int:
        return min((start // CHUNK_SIZE + 1) * CHUNK_SIZE, self._size)

    def _location(self, reply: Reply) -> str:
        location = reply.header("Location")
        if not location:
            raise SourceError(f"{self._registry.remote}: {self._what}: the registry doesn't say where to send it")
        return self._registry.absolute(location)

    def _require(self, reply: Reply, status: int) -> None:
        if reply.status == status:
            return
        hints = {
            401: "the login may read there but not write",
            403: "the login may read there but not write",
            413: "a proxy before the registry limits the size of requests: 64 MiB have to pass (client_max_body_size)",
        }
        msg = f"{self._registry.remote}: {self._what}: the registry doesn't take it: {refusal(reply)}"
        raise SourceError(msg, hint=hints.get(reply.status))

    def _attempts(self) -> Attempts:
        return Attempts(self._registry.remote, self._what)
