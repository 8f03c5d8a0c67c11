"""Whether this host fits the bundle, before anything is written."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import DiskError, HostError
from manifests.files import free_space
from manifests.manifest import HostNeeds, Manifest
from manifests.medium import list_problems
from manifests.progress import format_size
from manifests.standalone import archive_version, find_archive
from runtime.interpreter import Interpreter, find_interpreter, this_interpreter
from runtime.layout import Prefix
from runtime.store import Store

_MANYLINUX: Final = re.compile(r"(x86_64|aarch64)-manylinux_(\d+)_(\d+)")
_LINUX: Final = re.compile(r"(x86_64|aarch64)-unknown-linux-gnu")
_MACOS: Final = re.compile(r"(aarch64|x86_64)-apple-darwin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the table: what was asked, found against needed, and how bad a miss is.

    ``verdict`` is ``ok``, ``warning`` or ``failed``; ``exit_code`` is what a failed one ends with.
    """

    name: str
    found: str
    needed: str
    verdict: str
    remedy: str = ""
    exit_code: int = HostError.exit_code


def preflight(manifest: Manifest, prefix: Prefix, *, python: Path | None = None) -> tuple[Check, ...]:
    """Return every check of this host against the manifest, failed ones included; nothing is raised or written."""
    checks = [_python_check(manifest, python)]
    checks += [_writable_check(prefix), _disk_check(manifest, prefix)]
    checks += _needs_checks(manifest.minimum, prefix, "failed")
    checks += _needs_checks(manifest.recommended, prefix, "warning")
    return tuple(checks)


def require(checks: tuple[Check, ...]) -> None:
    """Raise if a check failed; the message lists all that did.

    Raises:
        DiskError: Only space or permission is missing.
        HostError: Anything else is.
    """
    failed = [check for check in checks if check.verdict == "failed"]
    if not failed:
        return
    error = HostError if any(check.exit_code == HostError.exit_code for check in failed) else DiskError
    problems = [f"{check.name}: found {check.found}, needed {check.needed}" for check in failed]
    hint = "; ".join(dict.fromkeys(check.remedy for check in failed if check.remedy))
    raise error(list_problems("this host does not fit the bundle", problems), hint=hint or None)


def disk_needed(manifest: Manifest, prefix: Prefix) -> int:
    """Return how many bytes an install writes: what the store lacks, and the wheels unpacked once."""
    unpacked = manifest.launch.get("unpacked-size", 0)
    return Store(root=prefix.store).missing_bytes(manifest.files) + (unpacked if isinstance(unpacked, int) else 0)


def platform_problem(platform: str, interpreter: Interpreter) -> str | None:
    """Return why wheels for ``platform`` (uv's names) can't run on this interpreter's host, or None."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(interpreter.machine, interpreter.machine)
    if match := _MANYLINUX.fullmatch(platform) or _LINUX.fullmatch(platform):
        if interpreter.system != "Linux" or machine != match[1]:
            return f"{interpreter.system} on {machine}"
        level = (int(match[2]), int(match[3])) if match.re is _MANYLINUX else (2, 17)
        name, version = interpreter.libc
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if name != "glibc" or numbers is None:
            return "a Linux without glibc"
        return None if (int(numbers[1]), int(numbers[2])) >= level else f"glibc {version}"
    if match := _MACOS.fullmatch(platform):
        return None if interpreter.system == "Darwin" and machine == match[1] else f"{interpreter.system} on {machine}"
    return f"{interpreter.system} on {machine}"


def _python_check(manifest: Manifest, python: Path | None) -> Check:
    target, carried = manifest.target, find_archive(manifest)
    needed = f"CPython {target.python} on {target.platform}"
    try:
        # It can't be asked before it is unpacked; of the host itself, the Python that runs this knows as much.
        is_carried = carried is not None and python is None
        interpreter = this_interpreter() if is_carried else find_interpreter(target.python, python)
    except HostError as error:
        return Check(name="python", found="none", needed=needed, verdict="failed", remedy=error.hint or "")
    found = f"CPython {interpreter.version} ({interpreter.executable})"
    if carried is not None and python is None:
        found = f"CPython {archive_version(carried)}, carried by the bundle"
    problem = platform_problem(target.platform, interpreter)
    if problem is None:
        return Check(name="python", found=found, needed=needed, verdict="ok")
    remedy = "build a bundle for this host: bundler build --target"
    return Check(name="platform", found=problem, needed=target.platform, verdict="failed", remedy=remedy)


def _writable_check(prefix: Prefix) -> Check:
    existing = prefix.path.absolute()
    while not existing.exists():
        existing = existing.parent
    remedy = f"choose a --prefix that you may write, or make it first: mkdir -p {prefix.path} && chown"
    row: Callable[[str, str, str], Check] = lambda found, verdict, text: Check(  # noqa: E731 # one row, three outcomes
        name="prefix", found=found, needed="a folder that may be written", verdict=verdict, remedy=text, exit_code=7
    )
    if not existing.is_dir():
        return row(f"{existing} is not a folder", "failed", remedy)
    if not os.access(existing, os.W_OK | os.X_OK):
        return row(f"{existing} is not writable", "failed", remedy)
    flags = os.statvfs(existing).f_flag
    if flags & os.ST_RDONLY:
        return row(f"{existing} is on a read-only file system", "failed", remedy)
    if flags & os.ST_NOEXEC:
        return row(f"{existing} is mounted noexec", "failed", "choose a --prefix on a file system that runs programs")
    return row(str(existing), "ok", "")


def _disk_check(manifest: Manifest, prefix: Prefix) -> Check:
    needed, free = disk_needed(manifest, prefix), free_space(prefix.path)
    return Check(
        name="disk space",
        found=format_size(free),
        needed=format_size(needed),
        verdict="ok" if free >= needed else "failed",
        remedy="" if free >= needed else "free some space (runtime gc), or choose another --prefix",
        exit_code=DiskError.exit_code,
    )


def _needs_checks(needs: HostNeeds, prefix: Prefix, miss: str) -> Iterator[Check]:
    facts: tuple[tuple[str, int, int, Callable[[float], str]], ...] = (
        ("cpu cores", len(os.sched_getaffinity(0)), needs.cpu_cores, lambda count: f"{count:.0f}"),
        ("memory", _memory(), needs.memory, format_size),
        ("disk", free_space(prefix.path), needs.disk, format_size),
    )
    for name, found, needed, show in facts:
        if needed:
            verdict = "ok" if found >= needed else miss
            remedy = "" if found >= needed else f"use a host with more {name}"
            yield Check(name=name, found=show(found), needed=show(needed), verdict=verdict, remedy=remedy)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
