"""API keys: a file with one a line, compared in constant time, read again when the server is told to."""

import base64
import binascii
import hashlib
import hmac
import re
from pathlib import Path
from typing import Final

from manifests.errors import UsageError

SHORTEST: Final = 16
_KEY: Final = re.compile(r"[\x21-\x7e]+")


class ApiKeys:
    """The keys that open a server. Only their digests stay in memory.

    Args:
        path: The file; blank lines and lines that begin with ``#`` are skipped.

    Raises:
        UsageError: It can't be read, holds no key, or a line is none (spaces, too short, not ASCII).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests = _read(path)

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def is_exposed(self) -> bool:
        """Whether other users of this host may read the file."""
        return bool(self.path.stat().st_mode & 0o077)

    def reload(self) -> None:
        """Read the file again; what is wrong with it leaves the old keys in place.

        Raises:
            UsageError: As the constructor.
        """
        self._digests = _read(self.path)

    def admits(self, authorization: str | None) -> bool:
        """Whether a request's ``Authorization`` holds a key: ``Bearer KEY``, or Basic with the key as the password."""
        given = _digest(_key_of(authorization or "").encode("utf-8", "surrogateescape"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, whichever it is
        return any(matches)


def _key_of(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: the API keys can't be read: {error.strerror}", hint="runtime launch --help"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a file of API keys: it isn't text") from None
    found = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not _KEY.fullmatch(key) or len(key) < SHORTEST:
            msg = f"{path}, line {number}: expected a key of at least {SHORTEST} printable ASCII characters, no spaces"
            raise UsageError(msg, hint="one such as `openssl rand -hex 24` prints")
        found.append(_digest(key.encode("ascii")))
    if not found:
        raise UsageError(f"{path}: holds no API key", hint="one a line, such as `openssl rand -hex 24` prints")
    return tuple(found)
