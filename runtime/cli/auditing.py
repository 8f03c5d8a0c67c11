"""Which commands leave a line in the audit log, and what stands in it; one line at the end, whatever the end is."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from manifests.errors import DiskError, SealiftError
from runtime.cli.shared import say

if TYPE_CHECKING:
    from runtime.layout import Prefix

_AUDITED: Final = frozenset({"install", "launch", "rollback", "gc", "uninstall", "repair", "verify"})
_TRUST_CHANGES: Final = frozenset({"init", "add", "remove"})
_OPTIONS: Final = (
    *("allow_downgrade", "accept_signers", "no_smoke", "python", "verify_time", "revoked", "purge", "quick", "deep"),
    *("no_models", "fingerprint", "host", "port"),
)
_INTERRUPTED: Final = 130


def noted(arguments: argparse.Namespace, **facts: str) -> None:
    """Remember facts that only the command itself learns, for its line: ``release``, ``digest``, ``detail``."""
    arguments.noted = {**getattr(arguments, "noted", {}), **facts}


def run_audited(arguments: argparse.Namespace, command: Callable[[argparse.Namespace], int]) -> int:
    """Run a command, and add its line to the audit log where it is one of those that are audited."""
    prefix = _audited_prefix(arguments)
    if prefix is None:
        return command(arguments)
    if arguments.event == "launch":
        _write(arguments, prefix, "started", None)  # the process becomes the server: there is no end to tell of
    with _told(arguments, prefix):
        code = command(arguments)
        arguments.ended = code
        return code


def _audited_prefix(arguments: argparse.Namespace) -> "Prefix | None":
    event: str = arguments.event
    changes = event == "trust" and arguments.action in _TRUST_CHANGES
    path: Path | None = getattr(arguments, "prefix", None)
    if path is None or not (changes or event in _AUDITED):
        return None
    from runtime.layout import Prefix

    return Prefix(path=path.absolute())


@contextlib.contextmanager
def _told(arguments: argparse.Namespace, prefix: "Prefix") -> Iterator[None]:
    try:
        yield
    except SealiftError as error:
        noted(arguments, detail=error.message)
        _write(arguments, prefix, "failed", error.exit_code)
        raise
    except KeyboardInterrupt:
        _write(arguments, prefix, "failed", _INTERRUPTED)
        raise
    except OSError as error:
        noted(arguments, detail=str(error))
        _write(arguments, prefix, "failed", DiskError.exit_code)
        raise
    else:
        code: int = arguments.ended
        _write(arguments, prefix, "failed" if code else "done", code)


def _write(arguments: argparse.Namespace, prefix: "Prefix", outcome: str, code: int | None) -> None:
    from runtime.audit import AuditEntry, append_audit

    facts: dict[str, str] = {**_live_facts(prefix), **getattr(arguments, "noted", {})}
    entry = AuditEntry(
        event=f"trust {arguments.action}" if arguments.event == "trust" else arguments.event,
        outcome=outcome,
        exit_code=code,
        trust=_trust_of(arguments, prefix),
        options=tuple(_options_of(arguments)),
        **facts,
    )
    if problem := append_audit(prefix, entry, to_prefix=not (arguments.event == "uninstall" and code == 0)):
        say(f"warning: this was not added to the audit log: {problem}")


def _live_facts(prefix: "Prefix") -> dict[str, str]:
    with contextlib.suppress(SealiftError, OSError):
        release = prefix.live()
        if release is not None:
            return {"release": release.name, "digest": release.receipt().digest}
    return {}


def _trust_of(arguments: argparse.Namespace, prefix: "Prefix") -> str:
    """Return which file of signers a command went by, and its digest."""
    from manifests.digests import sha256_hex
    from runtime.trust import TRUST_NAME

    if not hasattr(arguments, "trust") and arguments.event != "trust":
        return ""
    path: Path = getattr(arguments, "trust", None) or prefix.etc / TRUST_NAME
    try:
        return f"{path} sha256:{sha256_hex(path.read_bytes())}"
    except OSError as error:
        return f"{path}: {(error.strerror or os.strerror(error.errno or 0)).lower()}"


def _options_of(arguments: argparse.Namespace) -> Iterator[str]:
    for name in _OPTIONS:
        value = getattr(arguments, name, None)
        if not value or (name in {"host", "port"} and arguments.event != "launch"):
            continue
        flag = f"--{name.replace('_', '-')}"
        yield flag if value is True else f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"
    if getattr(arguments, "signatures", 1) != 1:
        yield f"--signatures {arguments.signatures}"
