"""The audit log of a prefix: ``var/audit.jsonl``, one JSON object a line, only ever added to.

A line is written by one ``write`` to a file opened with ``O_APPEND``, so that two commands at once mix no lines. Every
line also goes to the system's log (syslog, facility ``authpriv``) where there is one: that copy outlives an uninstall,
and the user that owns the prefix can't edit it.
"""

import json
import os
import string
import syslog
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from manifests import __version__
from manifests.errors import SealiftError
from manifests.files import open_or_create
from runtime.hostfacts import user_name
from runtime.layout import Prefix, Release
from runtime.overrides import ENVIRONMENT_NAME, read_variables

AUDIT_NAME: Final = "audit.jsonl"
_NOT_SETTINGS: Final = frozenset({"allowed_signers", "revoked_keys", ENVIRONMENT_NAME})
_MOST_WORDS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the log.

    ``event`` is the command; ``outcome`` is ``decided`` (about to happen), ``started`` (this process becomes the
    server), ``done`` or ``failed``; ``exit_code`` None where there is none yet. ``trust`` says whom the command trusted
    and ``options`` which of its rules the operator loosened.
    """

    event: str
    outcome: str
    exit_code: int | None = None
    release: str = ""
    digest: str = ""
    trust: str = ""
    options: tuple[str, ...] = ()
    detail: str = ""

    def encode(self, prefix: Prefix) -> bytes:
        """Return the line, with who and when."""
        document = {
            "detail": self.detail[:_MOST_WORDS],
            "digest": self.digest,
            "event": self.event,
            "exit_code": self.exit_code,
            "options": list(self.options),
            "outcome": self.outcome,
            "overrides": list(overrides_of(prefix)),
            "pid": os.getpid(),
            "prefix": str(prefix.path),
            "release": self.release,
            "sealift": __version__,
            "trust": self.trust,
            "when": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "who": who(),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def who() -> dict[str, object]:
    """Return the user that runs this: number, name, and who called ``sudo``, where somebody did."""
    found: dict[str, object] = {"uid": os.geteuid(), "name": user_name(os.geteuid())}
    return found | {"sudo_user": sudo[:64]} if (sudo := os.environ.get("SUDO_USER")) else found


def append_audit(prefix: Prefix, entry: AuditEntry, *, to_prefix: bool = True) -> str:
    """Add a line.

    Args:
        prefix: Whose log; it gets the line only where it has a ``var`` folder already.
        entry: What is to be said.
        to_prefix: False for the system's log alone.

    Returns:
        Why the prefix's own log could not be written, empty where it was; no command fails for that.
    """
    line = entry.encode(prefix)
    syslog.openlog("sealift", 0, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_NOTICE, line.decode("ascii").rstrip())
    path = prefix.var / AUDIT_NAME
    if not to_prefix or not prefix.var.is_dir():
        return ""
    try:
        descriptor = open_or_create(path, mode=0o644, append=True)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{path}: {(error.strerror or str(error)).lower()}"
    return "" if written == len(line) else f"{path}: no room for a whole line"


def read_audit(prefix: Prefix, count: int) -> list[str]:
    """Return the last ``count`` lines as they stand there, none where there is no log."""
    try:
        text = (prefix.var / AUDIT_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]


def overrides_of(prefix: Prefix) -> tuple[str, ...]:
    """Return what in ``etc/`` differs from what the live release brought; names only, since values may be secret."""
    release = prefix.live()
    if release is None:
        return ()
    try:
        return tuple(sorted({*_changed_variables(prefix, release), *_changed_files(prefix, release)}))
    except (SealiftError, OSError) as error:
        return (f"etc/ can't be read: {error}",)


def _changed_variables(prefix: Prefix, release: Release) -> Iterator[str]:
    known = read_variables(release.path / "config" / ENVIRONMENT_NAME, prefix, release)
    for key, value in read_variables(prefix.etc / ENVIRONMENT_NAME, prefix, release).items():
        if known.get(key) != value:
            yield f"etc/{ENVIRONMENT_NAME}: {key}"


def _changed_files(prefix: Prefix, release: Release) -> Iterator[str]:
    values = {"PREFIX": str(prefix.path), "RELEASE": str(release.path)}
    for path in _files_of(prefix.etc):
        original = release.path / "config" / path.name
        if path.name in _NOT_SETTINGS:
            continue
        if not original.is_file():
            yield f"etc/{path.name}: not of this release"
        elif (
            string.Template(original.read_text(encoding="utf-8")).safe_substitute(values).encode() != path.read_bytes()
        ):
            yield f"etc/{path.name}: changed"


def _files_of(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
