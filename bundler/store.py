"""The bundler's cache: every fetched byte once, under its sha256, and records of what was learnt about it.

::

    $XDG_CACHE_HOME/sealift/
        sha256/ab/abcdef...          content, read-only
        sha256/ab/abcdef....json     its size and chunk digests; made again when it is missing
        records/KIND/KEY.json        for example the result of a conversion
        partial/                     downloads under way, see bundler.snapshots.partial
        venvs/                       throw-away environments

A blob appears by a rename, so it is never partly there, and two writers of one content do no harm. Blobs are trusted
to be what their name says only as far as whoever copies one hashes it on the way; :meth:`Store.drop` is for those that
turn out bad.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from manifests.canonical import Json
from manifests.digests import BUFFER_SIZE, ContentDigest, ContentHasher, digest_stream, sha256_hex
from manifests.errors import IntegrityError, SourceError
from manifests.files import disk_error

_HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KIND: Final = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)


def default_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/sealift``, by default ``~/.cache/sealift``; relative values are ignored, as XDG asks."""
    configured = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "sealift"


class Store:
    """Content by sha256, and records by kind and key, below one folder.

    Args:
        root: The cache's folder; made when something is first added.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_cache()

    def path(self, sha256: str) -> Path:
        """Return where the content with this digest lies, or would lie."""
        if _HEX.fullmatch(sha256) is None:
            raise ValueError(f"{sha256!r} is not a sha256")
        return self.root / "sha256" / sha256[:2] / sha256

    def __contains__(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def open(self, sha256: str) -> BinaryIO:
        """Open a content for reading.

        Raises:
            SourceError: It isn't in the store.
        """
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError:
            raise _missing(sha256) from None

    def digest(self, sha256: str) -> ContentDigest:
        """Return size and chunk digests of a content, without reading it where they are known.

        Raises:
            SourceError: It isn't in the store.
            IntegrityError: It had to be read, and isn't what its name says; it was dropped.
        """
        try:
            size = self.path(sha256).stat().st_size
        except FileNotFoundError:
            raise _missing(sha256) from None
        known = _read_digest(self._index(sha256), sha256)
        return known if known is not None and known.size == size else self.check(sha256)

    def check(self, sha256: str) -> ContentDigest:
        """Read a content and return its digests.

        Raises:
            SourceError: It isn't in the store.
            IntegrityError: It isn't what its name says; it was dropped.
        """
        with self.open(sha256) as stream:
            digest = digest_stream(stream)
        if digest.sha256 != sha256:
            self.drop(sha256)
            msg = f"{self.path(sha256)}: damaged: expected sha256 {sha256}, got {digest.sha256}; it was removed"
            raise IntegrityError(msg, hint="run the same command again; it will be fetched anew")
        self._write_index(digest)
        return digest

    def drop(self, sha256: str) -> None:
        """Remove a content that turned out to be bad; nothing happens when it isn't there."""
        for path in (self.path(sha256), self._index(sha256)):
            path.unlink(missing_ok=True)

    def add_stream(
        self, stream: BinaryIO, *, expected_sha256: str | None = None, what: str = "content"
    ) -> ContentDigest:
        """Read ``stream`` to its end into the store.

        Args:
            stream: Binary, read once.
            expected_sha256: Anything else is refused, and nothing stays.
            what: Its name for messages.

        Raises:
            IntegrityError: The content is another than the expected one.
            DiskError: No space, no permission.
        """
        folder = self.root / "sha256" / "new"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=folder)
        except OSError as error:
            raise disk_error(error, f"write to {folder}") from error
        temporary = Path(name)
        try:
            digest = _copy(stream, descriptor)
            if expected_sha256 is not None and digest.sha256 != expected_sha256:
                raise IntegrityError(f"{what}: expected sha256 {expected_sha256}, got {digest.sha256}")
            self._settle(temporary, digest)
        except OSError as error:
            raise disk_error(error, f"write to {folder}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def add_file(self, path: Path, *, expected_sha256: str | None = None) -> ContentDigest:
        """Copy a file into the store; one that was added before and has not changed since isn't read again.

        Raises:
            SourceError: It can't be read.
            IntegrityError: It isn't the expected content.
            DiskError: No space, no permission.
        """
        key = _identity(path)
        known = self.record("file", key)
        if isinstance(known, str) and _HEX.fullmatch(known) and known in self and expected_sha256 in {None, known}:
            return self.digest(known)
        try:
            with path.open("rb") as stream:
                digest = self.add_stream(stream, expected_sha256=expected_sha256, what=str(path))
        except OSError as error:
            raise SourceError(f"can't read {path}: {error.strerror or error}") from error
        if key == _identity(path):  # else it was written to meanwhile
            self.write_record("file", key, digest.sha256)
        return digest

    def adopt(self, path: Path, digest: ContentDigest) -> None:
        """Take a file over as a content: it is moved, not read.

        Args:
            path: On the store's own file system; nobody writes to it any more.
            digest: What the caller found when it hashed the file.

        Raises:
            DiskError: It can't be moved.
        """
        try:
            self._settle(path, digest)
        except OSError as error:
            raise disk_error(error, f"move {path} to {self.root}") from error

    def record(self, kind: str, key: str) -> Json:
        """Return what was recorded, or None; a damaged record counts as none."""
        try:
            value: Json = json.loads(self._record_path(kind, key).read_bytes())
        except (OSError, ValueError):
            return None
        return value

    def write_record(self, kind: str, key: str, value: Json) -> None:
        """Record something under a key, which may be any text.

        Raises:
            DiskError: No space, no permission.
        """
        _write_json(self._record_path(kind, key), value)

    def _record_path(self, kind: str, key: str) -> Path:
        if _KIND.fullmatch(kind) is None:
            raise ValueError(f"{kind!r} is not a kind of record")
        name = key if _HEX.fullmatch(key) else sha256_hex(key.encode())
        return self.root / "records" / kind / f"{name}.json"

    def _index(self, sha256: str) -> Path:
        path = self.path(sha256)
        return path.with_name(f"{path.name}.json")

    def _settle(self, temporary: Path, digest: ContentDigest) -> None:
        path = self.path(digest.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.chmod(0o444)
        temporary.replace(path)  # same content as whatever is there, and if that was damaged, better
        self._write_index(digest)

    def _write_index(self, digest: ContentDigest) -> None:
        _write_json(self._index(digest.sha256), {"size": digest.size, "chunks": list(digest.chunks)})


def _copy(stream: BinaryIO, descriptor: int) -> ContentDigest:
    hasher = ContentHasher()
    with os.fdopen(descriptor, "wb", buffering=0) as target:
        while data := stream.read(BUFFER_SIZE):
            hasher.update(data)
            view = memoryview(data)
            while view:
                view = view[target.write(view) :]
    return hasher.digest()


def _write_json(path: Path, value: Json) -> None:
    # Not write_atomic: its temporary file is named after the process, and threads write here too. Not synced either,
    # since what a power cut takes is made again.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as stream:
            temporary = Path(stream.name)
            try:
                stream.write(json.dumps(value, sort_keys=True).encode() + b"\n")
                stream.close()
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, f"write {path}") from error


def _read_digest(path: Path, sha256: str) -> ContentDigest | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(path.read_bytes())
        chunks = tuple(str(chunk) for chunk in data["chunks"])
        return ContentDigest(size=int(data["size"]), sha256=sha256, chunks=chunks)
    return None


def _identity(path: Path) -> str:
    """Return what changes whenever the file is written to: place, size, inode and both times in nanoseconds."""
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"can't read {path}: {error.strerror or error}") from error
    numbers: Mapping[str, int] = {
        "size": status.st_size,
        "inode": status.st_ino,
        "mtime": status.st_mtime_ns,
        "ctime": status.st_ctime_ns,
    }
    return json.dumps([str(path.absolute()), *numbers.values()])


def _missing(sha256: str) -> SourceError:
    return SourceError(f"sha256 {sha256} is not in the cache", hint="run `bundler lock` again to fetch what is missing")
