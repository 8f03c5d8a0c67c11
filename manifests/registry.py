"""One repository of an OCI registry: its manifests and blobs, with logins, patience, and ranges that resume.

By the OCI distribution specification 1.1; what Docker's registry does beside it is told where it matters. Nothing that
comes from here is trusted: digests are compared by whoever has signed ones.
"""

import contextlib
import hashlib
import http.client
import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Final, Self
from urllib.parse import urlsplit, urlunsplit

from manifests.artifact import MAX_ARTIFACT_SIZE, OCI_INDEX, OCI_MANIFEST
from manifests.digests import CHUNK_SIZE
from manifests.errors import IntegrityError, SourceError
from manifests.fields import shown
from manifests.pieces import Stopped
from manifests.reference import Remote
from manifests.registry_auth import Authorizer
from manifests.registry_http import Body, Reply, Wire, network_reason, origin_of, require_address

_PASSING: Final = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be another one a moment later."""
_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_MOST_LOGINS: Final = 3
_PROGRESS: Final = 64 * 1024
_DOCKER: Final = "application/vnd.docker.distribution.manifest"
_ACCEPT: Final = f"{OCI_MANIFEST}, {OCI_INDEX}, {_DOCKER}.v2+json, {_DOCKER}.list.v2+json"
_AGAIN: Final = "run the same command again: what is there stays"
_PUSH_AGAIN: Final = "bundler push BUNDLE oci://... again: only what is missing is sent"


class Attempts:
    """Counts the failures of one piece of work in a row, and waits between them. ``what`` begins every message."""

    def __init__(self, remote: Remote, what: str) -> None:
        self._remote, self._what = remote, what
        self._failures = 0

    def failed(self, reason: str, *, wait: float | None = None, moved: bool = False, hopeless: bool = False) -> None:
        """Wait until the next attempt.

        Args:
            reason: What went wrong, in a few words.
            wait: The seconds that the registry asks for.
            moved: This attempt got somewhere before it failed.
            hopeless: Trying again makes no sense.

        Raises:
            SourceError: It failed too often, or the registry asks for too long a wait.
            Stopped: Somebody wants us to stop.
        """
        patience = self._remote.patience
        self._failures = 1 if moved else self._failures + 1
        if hopeless or self._failures >= patience.attempts:
            tried = "" if hopeless else f"; {self._failures} attempts"
            raise SourceError(f"{self._remote}: {self._what}: {reason}{tried}", hint=_AGAIN)
        delay = patience.first_delay * 2 ** (self._failures - 1) if wait is None else wait
        if delay > patience.longest_retry_after:
            raise SourceError(f"{self._remote}: {self._what}: {reason}, and asks to wait {delay:.0f} s", hint=_AGAIN)
        self._remote.report(f"{self._what}: {reason}; trying again in {delay:.0f} s")
        if self._remote.stopped.wait(delay):
            raise Stopped


class Interrupted(Exception):  # noqa: N818 # not an error yet: whoever sent it may go on
    """A request with a body broke off; nobody knows how much of it arrived. ``reason`` in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Registry:
    """A repository that several threads may ask at once.

    Args:
        remote: Where, and how to reach it.
        push: Whether something will be written.
        environment: Where logins are looked for; the process' own without one.
    """

    def __init__(self, remote: Remote, *, push: bool = False, environment: Mapping[str, str] | None = None) -> None:
        self.remote = remote
        self._wire = Wire(ca=remote.ca, timeout=remote.patience.timeout)
        self._authorizer = Authorizer(remote, self._wire, "pull,push" if push else "pull", environment)
        self._answered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def reply(
        self, method: str, url: str, attempts: Attempts, *, headers: Mapping[str, str] | None = None, body: Body = b""
    ) -> Reply:
        """Send a request until it is answered by something that isn't passing; the caller closes the reply.

        Raises:
            Interrupted: A body that isn't plain bytes broke off.
            SourceError: The registry can't be reached, stays busy, or wants a login that isn't there.
        """
        logins = 0
        while True:
            try:
                own = origin_of(url) == origin_of(self.remote.base)
                login = self._authorizer.header() if own else ""
                sent = {**(headers or {}), **({"Authorization": login} if login else {})}
                reply = self._wire.send(method, url, sent, body)
                self._answered = True
                if reply.status == 401 and own:
                    logins += 1
                    reply.close()
                    if logins > _MOST_LOGINS:
                        hint = f"that login may not do this there; podman login {self.remote.reference.host} as who may"
                        raise SourceError(f"{self.remote}: the registry accepts none of the tokens", hint=hint)
                    self._authorizer.challenged(reply, login)
                    continue
            except (OSError, http.client.HTTPException) as error:
                if not isinstance(body, bytes):
                    raise Interrupted(network_reason(error)) from None
                # Before the first answer it is a wrong address rather than a registry that restarts.
                attempts.failed(network_reason(error), hopeless=not self._answered)
                continue
            if reply.status not in _PASSING:
                return reply
            words, wait = refusal(reply), _retry_after(reply.header("Retry-After"))
            reply.close()
            attempts.failed(words, wait=wait)

    def absolute(self, location: str) -> str:
        """Return where a ``Location`` of this registry leads; one behind a TLS proxy may not know that it is https."""
        url = require_address(location, self.remote.reference.host, base=f"{self.remote.base}/")
        base = urlsplit(self.remote.base)
        if base.scheme == "https" and urlsplit(url).scheme == "http" and urlsplit(url).hostname == base.hostname:
            return urlunsplit(urlsplit(url)._replace(scheme="https", netloc=base.netloc))
        return url

    def fetch_manifest(self) -> bytes:
        """Return the OCI manifest of the reference, as it is there.

        Raises:
            SourceError: There is none, or it can't be had.
            IntegrityError: It isn't the one whose digest the reference has.
        """
        attempts = Attempts(self.remote, "its OCI manifest")
        tag = self.remote.reference.tag
        while True:
            reply = self.reply("GET", f"{self.remote.base}/manifests/{tag}", attempts, headers={"Accept": _ACCEPT})
            with contextlib.closing(reply):
                if reply.status == 404:
                    host, name = self.remote.reference.host, self.remote.reference.repository
                    hint = f"skopeo list-tags docker://{host}/{name} says what is there"
                    raise SourceError(f"{self.remote}: the registry has no such tag ({refusal(reply)})", hint=hint)
                if reply.status != 200:
                    raise SourceError(f"{self.remote}: {refusal(reply)}")
                try:
                    data = reply.read(MAX_ARTIFACT_SIZE)
                    break
                except (OSError, http.client.HTTPException) as error:
                    reason = network_reason(error)
            attempts.failed(reason)
        got = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.remote.reference.is_digest and got != tag:
            raise IntegrityError(f"{self.remote}: the registry gives an OCI manifest with another digest, {got}")
        return data

    def blob_size(self, digest: str) -> int | None:
        """Return the size in bytes of a blob that the registry has, None if it hasn't.

        Raises:
            SourceError: It doesn't say.
        """
        reply = self.reply("HEAD", self._blob(digest), Attempts(self.remote, f"blob {digest}"))
        with contextlib.closing(reply):
            if reply.status == 404:
                return None
            if reply.status != 200:
                raise SourceError(f"{self.remote}: blob {digest}: {refusal(reply)}")
            return _length(reply, -1)

    def fetch_small(self, digest: str, size: int, what: str) -> bytes:
        """Return a whole small blob, its digest checked; ``what`` is how messages call it.

        Raises:
            SourceError: It can't be had.
            IntegrityError: The registry hasn't it, or gives other bytes.
        """
        buffer = bytearray(size)
        with contextlib.closing(BlobReader(self, digest, size, what)) as blob:
            count = blob.read(memoryview(buffer), 0)
        got = f"sha256:{hashlib.sha256(memoryview(buffer)[:count]).hexdigest()}"
        if got != digest:
            raise IntegrityError(f"{self.remote}: {what}: expected {digest}, got {got}", hint=_PUSH_AGAIN)
        return bytes(buffer)

    def open_range(self, digest: str, start: int, end: int, attempts: Attempts, *, whole: bool) -> Reply:
        """Ask for the bytes from ``start`` to before ``end`` of a blob; ``whole`` says that these are all."""
        headers = {} if whole else {"Range": f"bytes={start}-{end - 1}"}
        return self.reply("GET", self._blob(digest), attempts, headers=headers)

    def _blob(self, digest: str) -> str:
        return f"{self.remote.base}/blobs/{digest}"


class BlobReader:
    """A blob to be read mostly in order: one request for each 64 MiB, and where it broke off, from there again.

    Args:
        registry: Where it is.
        digest: Its name.
        size: How many bytes it should have.
        what: How messages call it.
    """

    def __init__(self, registry: Registry, digest: str, size: int, what: str) -> None:
        self._registry, self._digest, self._size, self._what = registry, digest, size, what
        self._attempts = Attempts(registry.remote, what)
        self._reply: Reply | None = None
        self._position = self._end = 0
        self._total = size
        self._moved = 0

    def read(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; return how many bytes there were, fewer only where the blob ends.

        Raises:
            SourceError: It can't be had.
            IntegrityError: The registry hasn't the blob.
        """
        done = 0
        while done < len(view):
            here = offset + done
            reply = self._reply
            if reply is None or self._position != here:
                self.close()
                reply = self._open(here) if here < self._total else None
                if reply is None:
                    return done
            done += self._some(reply, view[done : done + self._end - here])
        return done

    def close(self) -> None:
        """Let go of the connection."""
        if self._reply is not None:
            self._reply.close()
            self._reply = None

    def _some(self, reply: Reply, view: memoryview) -> int:
        """Return how many bytes came; after a failure none, and the next call asks for the rest anew."""
        reason = "the answer ended too early"
        try:
            count = reply.readinto(view)
        except (OSError, http.client.HTTPException) as error:
            count, reason = 0, network_reason(error)
        self._position += count
        self._moved += count
        if not count:
            self._fail(reason)
        elif self._position == self._end:
            self.close()
        return count

    def _fail(self, reason: str) -> None:
        self.close()
        moved, self._moved = self._moved >= _PROGRESS, 0
        self._attempts.failed(reason, moved=moved)

    def _open(self, start: int) -> Reply | None:
        """Ask for what follows up to the end of its 64 MiB; None where the blob has ended."""
        end = min(self._size, (start // CHUNK_SIZE + 1) * CHUNK_SIZE)
        while True:
            whole = start == 0 and end == self._size
            self._reply = self._registry.open_range(self._digest, start, end, self._attempts, whole=whole)
            try:
                self._end = self._begin(self._reply, start, end)
                break
            except (OSError, http.client.HTTPException) as error:
                self._fail(network_reason(error))
        self._position = start
        if self._end <= start:
            self.close()
        return self._reply

    def _begin(self, reply: Reply, start: int, end: int) -> int:
        """Skip what wasn't asked for, and return where the bytes of the answer end; ``start`` where there are none."""
        if reply.status == 404:
            msg = f"{self._registry.remote}: {self._what}: the registry hasn't its blob {self._digest}"
            raise IntegrityError(msg, hint=_PUSH_AGAIN)
        if reply.status == 416:
            return start
        if reply.status == 206:
            match = _RANGE.fullmatch(reply.header("Content-Range"))
            if match is None or int(match[1]) != start:
                raise SourceError(f"{self._registry.remote}: {self._what}: a range was asked for, another came")
            self._total = self._total if match[3] == "*" else min(int(match[3]), self._size)
            return min(int(match[2]) + 1, end)
        if reply.status != 200:
            raise SourceError(f"{self._registry.remote}: {self._what}: {refusal(reply)}")
        self._total = min(_length(reply, self._size), self._size)
        return min(self._total, end) if self._skip(reply, start) else start

    def _skip(self, reply: Reply, count: int) -> bool:
        """Read past what comes before a range, where the registry gives no ranges."""
        if count > CHUNK_SIZE:
            msg = f"{self._registry.remote}: {self._what}: the registry ignores Range, which large files need here"
            raise SourceError(msg, hint="oras pull or skopeo copy it to a folder, and give that folder")
        scratch = memoryview(bytearray(min(count, 1 << 20)))
        while count and (got := reply.readinto(scratch[:count])):
            count -= got
        return not count


def _length(reply: Reply, otherwise: int) -> int:
    text = reply.header("Content-Length")
    return int(text) if text.isdecimal() and len(text) < 20 else otherwise


def refusal(reply: Reply) -> str:
    """Return what a registry answers where it says no: the status, and its first error's own words."""
    words = ""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, RecursionError):
        error = json.loads(reply.read(64 * 1024))["errors"][0]
        words = f" {error.get('code', '')}: {error.get('message', '')}"
    known = {403: "access is denied", 429: "too many requests"}.get(reply.status, "it answers")
    return shown(f"{known} ({reply.status}{words.rstrip(': ')})")


def _retry_after(value: str) -> float | None:
    """Return the seconds that a ``Retry-After`` header (RFC 9110, 10.2.3) asks for; None if it says nothing usable."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    return None
