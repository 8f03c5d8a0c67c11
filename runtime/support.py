"""What a colleague outside would ask for, as one redacted text; and a summary short enough to be retyped by hand.

Each line of the summary ends in four hex digits over what stands before, so that a typing error is found on the other
side by its line (:func:`check_summary`).
"""

import contextlib
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from manifests import __version__
from manifests.digests import sha256_hex
from manifests.errors import SealiftError
from manifests.files import free_space
from manifests.progress import format_size
from runtime.audit import overrides_of, read_audit
from runtime.hostchecks import HostQuestions, check_host
from runtime.hostfacts import Host, user_name
from runtime.layout import Prefix, Release
from runtime.preflight import Check
from runtime.redaction import Redactor
from runtime.report import host_document
from runtime.state import load_state

_LOG_LINES: Final = 200
_AUDIT_LINES: Final = 100
_LIMITS: Final = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "RLIMIT_NPROC")
_LINE: Final = re.compile(r"(S\d+ .*\S)\s+#([0-9a-f]{4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportFile:
    """The whole text, redacted, and its first part: at most twelve short lines."""

    text: str
    summary: tuple[str, ...]


def support_text(prefix: Prefix, *, now: datetime, host: Host | None = None) -> SupportFile:
    """Return what is to be carried out; nothing is asked of the network, no model is loaded. ``now`` is UTC."""
    host = host or Host()
    redactor = Redactor(users=_known_users(prefix), hosts=_known_hosts(host))
    lines = [redactor.redact(line) for line in _summary(prefix, host, now)]
    summary = tuple(f"S{number} {line} #{line_check(f'S{number} {line}')}" for number, line in enumerate(lines, 1))
    parts = [f"== {title}\n{redactor.redact(body.rstrip())}\n" for title, body in _parts(prefix, host, now)]
    replaced = ", ".join(f"{count} {kind}" for kind, count in redactor.counts.items()) or "nothing"
    head = f"sealift support file, {now:%Y-%m-%dT%H:%M:%SZ}; replaced: {replaced}. Read it before you carry it out.\n"
    text = "\n".join([head, "== summary", *summary, "", *parts])
    return SupportFile(text=text, summary=summary)


def line_check(line: str) -> str:
    """Return the four hex digits of a line; case and spaces don't count, since a hand changes them."""
    return sha256_hex("".join(line.lower().split()).encode("utf-8"))[:4]


def check_summary(text: str) -> list[str]:
    """Return what is wrong with a summary that somebody retyped: the lines whose digits don't fit, and gaps."""
    problems: list[str] = []
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        match = _LINE.fullmatch(row)
        if match is None:
            problems.append(f"line {number}: expected S{number} ... #xxxx, got {row[:60]!r}")
        elif match[1].split(" ")[0] != f"S{number}":
            problems.append(f"line {number}: S{number} is missing, got {match[1].split(' ')[0]}")
        elif line_check(match[1]) != match[2].lower():
            problems.append(f"S{number}: is mistyped, its digits {match[2]} don't fit")
    return problems or ([] if rows else ["no line at all"])


def _summary(prefix: Prefix, host: Host, now: datetime) -> Iterator[str]:
    release = prefix.live()
    cores, memory, (cpu, flags) = host.cores(), host.memory(), host.cpu()
    libc = " ".join(platform.libc_ver())
    yield f"sealift {__version__} python {platform.python_version()} {libc} at {now:%Y-%m-%dT%H:%MZ}"
    yield f"{host.distribution()} kernel {platform.release()} {platform.machine()}"
    wanted = [flag for flag in ("avx2", "avx512f", "amx_bf16", "i8mm") if flag in flags]
    yield f"cpu {cpu} {' '.join(wanted)}".rstrip()
    room = format_size(free_space(prefix.path))
    held = f"{format_size(memory.value)}/{format_size(memory.whole)}"
    yield f"cores {cores.value:g}/{cores.whole:g} memory {held} free {room}"
    yield f"driver {host.driver() or 'none'} gpus {len(host.gpus())}"
    yield f"release {release.name if release else 'none'}"
    if release is not None:
        with contextlib.suppress(SealiftError):
            manifest = release.manifest()
            yield f"bundle {manifest.name} target {manifest.target.label}"
    missed = [f"{check.name} {check.verdict}" for check in _checks(prefix, host, now) if check.verdict != "ok"]
    yield f"preflight {', '.join(missed) or 'all ok'}"
    for event in ("install", "verify", "launch"):
        yield f"{event} {_last(prefix, event)}"


def _last(prefix: Prefix, event: str) -> str:
    """Return when and how a command last ended, by the audit log."""
    for line in reversed(read_audit(prefix, 1000)):
        entry = _entry(line)
        if entry.get("event") == event and entry.get("outcome") != "decided":
            code = "running" if entry.get("exit_code") is None else f"exit {entry.get('exit_code')}"
            detail = str(entry.get("detail") or "").partition("\n")[0][:60]
            return f"{entry.get('when')} {code} {detail}".rstrip()
    return "never"


def _entry(line: str) -> Mapping[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _parts(prefix: Prefix, host: Host, now: datetime) -> Iterator[tuple[str, str]]:
    yield "versions", f"sealift {__version__}\npython {sys.version.split()[0]} {sys.executable}"
    yield "host", "\n".join(f"{key}: {value}" for key, value in host_document(host).items())
    yield "preflight", "\n".join(_check_rows(prefix, host, now)) or "nothing is installed"
    yield "releases", "\n".join(_release_rows(prefix)) or "none"
    yield "changed by the operator", "\n".join(overrides_of(prefix)) or "nothing"
    yield "last verify", _last_verify(prefix)
    yield "disk", "\n".join(_disk_rows(prefix, host))
    yield "limits", "\n".join(_limit_rows())
    yield f"audit log, last {_AUDIT_LINES} lines", "\n".join(read_audit(prefix, _AUDIT_LINES)) or "none"
    for path in sorted((prefix.var / "logs").glob("*.log")):
        yield f"{path.name}, last {_LOG_LINES} lines", _tail(path)


def _checks(prefix: Prefix, host: Host, now: datetime) -> Sequence[Check]:
    release = prefix.live()
    if release is None:
        return ()
    try:
        state = load_state(prefix)
        questions = HostQuestions(now=now, installed=True, newest=state.created if state else "", host=host)
        return check_host(release.manifest(), prefix, questions)
    except SealiftError:
        return ()  # a damaged manifest is named under "releases"


def _check_rows(prefix: Prefix, host: Host, now: datetime) -> Iterator[str]:
    for check in _checks(prefix, host, now):
        yield f"{check.verdict:8} {check.name}: found {check.found}, needed {check.needed}"


def _release_rows(prefix: Prefix) -> Iterator[str]:
    live = prefix.live()
    for release in prefix.all_releases():
        is_live = live is not None and live.name == release.name
        yield f"{release.name}: {'live' if is_live else 'complete' if release.is_complete else 'not complete'}"
        yield from _receipt_rows(release)


def _receipt_rows(release: Release) -> Iterator[str]:
    try:
        receipt = release.receipt()
        yield f"  digest {receipt.digest}, installed {receipt.installed}, python {receipt.python}"
        yield from (f"  signed by {signer}" for signer in receipt.signers)
        release.manifest()
    except SealiftError as error:
        yield f"  {error.message}"


def _last_verify(prefix: Prefix) -> str:
    for line in reversed(read_audit(prefix, 1000)):
        if _entry(line).get("event") == "verify" and _entry(line).get("outcome") != "decided":
            return line
    return "never, by the audit log"


def _disk_rows(prefix: Prefix, host: Host) -> Iterator[str]:
    for path in dict.fromkeys((prefix.path, prefix.var, Path(os.environ.get("TMPDIR", "/tmp")))):  # noqa: S108 # asked
        if not path.exists():
            continue
        stats = os.statvfs(path)
        mount = host.mount_of(path.resolve())
        kind = f"{mount.kind} {','.join(sorted(mount.options))}" if mount else "unknown"
        size, free = stats.f_frsize * stats.f_blocks, stats.f_frsize * stats.f_bavail
        yield f"{path}: {format_size(free)} free of {format_size(size)}, {stats.f_favail} inodes free, {kind}"


def _limit_rows() -> Iterator[str]:
    for name in _LIMITS:
        soft, hard = resource.getrlimit(getattr(resource, name))
        words = ["unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard)]
        yield f"{name.removeprefix('RLIMIT_').lower()}: {words[0]} of {words[1]}"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _LOG_LINES * 1000))
            text = stream.read().decode("utf-8", "replace")
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return "\n".join(text.splitlines()[-_LOG_LINES:])


def _known_users(prefix: Prefix) -> set[str]:
    """Return the names of users that may stand in the text: this one, the owner's, those of the audit log."""
    found = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")} | {user_name(os.geteuid())}
    with contextlib.suppress(OSError):
        found.add(user_name(prefix.path.stat().st_uid))
    for line in read_audit(prefix, 1000):
        who = _entry(line).get("who")
        if isinstance(who, dict):
            found |= {str(who[key]) for key in ("name", "sudo_user") if key in who}
    return {name for name in found if not name.isdecimal()}


def _known_hosts(host: Host) -> set[str]:
    """Return the names of this host and of its domains, long and short."""
    names = {platform.node(), (host.read("/etc/hostname") or "").strip()}
    for line in re.findall(r"^(?:search|domain)\s+(.*)$", host.read("/etc/resolv.conf") or "", re.MULTILINE):
        names |= set(line.split())
    return names | {name.partition(".")[0] for name in names if "." in name and len(name.partition(".")[0]) > 2}
