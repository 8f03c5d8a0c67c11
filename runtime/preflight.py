"""Whether this host fits the bundle, before anything is written: what an install needs, and what go-live asks besides.

Hard links are tried for real, in a temporary folder that is gone again when the row is there.
"""

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import DiskError, HostError
from manifests.files import free_space
from manifests.manifest import Manifest
from manifests.medium import list_problems
from manifests.progress import format_size
from manifests.standalone import archive_version, find_archive
from runtime.hostfacts import Host, Limit
from runtime.interpreter import Interpreter, find_interpreter, this_interpreter
from runtime.layout import Prefix
from runtime.store import Store

_MANYLINUX: Final = re.compile(r"(x86_64|aarch64)-manylinux_(\d+)_(\d+)")
_LINUX: Final = re.compile(r"(x86_64|aarch64)-unknown-linux-gnu")
_KERNEL_KEEPS: Final = 16  # a host sold with 32 GiB shows a few percent less: at most 1/16 of it is forgiven
_BYTES_PER_FILE: Final = 16 * 1024  # what a file of an unpacked wheel has on average, and then some
_UNTRIED: Final = frozenset({errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT})
_WHERE_LIMITED: Final = {
    "cpu cores": "systemd: CPUQuota= and AllowedCPUs=; a container: --cpus",
    "memory": "systemd: MemoryMax=; a container: --memory",
}
_MACOS: Final = re.compile(r"(aarch64|x86_64)-apple-darwin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the table: what was asked, found against needed, and how bad a miss is.

    ``verdict`` is ``ok``, ``note`` (nothing is asked, but somebody wants to know), ``warning`` or ``failed``;
    ``exit_code`` is what a failed one ends with. Whatever isn't ok has a ``remedy``.
    """

    name: str
    found: str
    needed: str
    verdict: str
    remedy: str = ""
    exit_code: int = HostError.exit_code


def preflight(
    manifest: Manifest, prefix: Prefix, *, python: Path | None = None, host: Host | None = None
) -> tuple[Check, ...]:
    """Return what an install asks of this host, failed checks included; nothing is raised, nothing stays written."""
    host = host or Host()
    checks = [_python_check(manifest, python), _writable_check(prefix)]
    checks += [_disk_check(manifest, prefix), _inode_check(manifest, prefix)]
    checks += [*_link_checks(prefix, host), *_needs_checks(manifest, prefix, host)]
    return tuple(checks)


def existing_parent(path: Path) -> Path:
    """Return ``path`` itself, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


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
    existing = existing_parent(prefix.path)
    remedy = f"choose a --prefix that you may write, or have root make it: install -d -o USER {prefix.path}"
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
        remedy=""
        if free >= needed
        else f"free some space (runtime gc --prefix {prefix.path}), or choose another --prefix",
        exit_code=DiskError.exit_code,
    )


def _inode_check(manifest: Manifest, prefix: Prefix) -> Check:
    """Count what is certain, the files that the store lacks; what wheels unpack to is a guess, so it only warns."""
    stats = os.statvfs(existing_parent(prefix.path))
    unpacked = manifest.launch.get("unpacked-size", 0)
    store = Store(root=prefix.store)
    certain = sum(not store.path(key).exists() for key in {entry.store_key for entry in manifest.files})
    likely = certain + (unpacked if isinstance(unpacked, int) else 0) // _BYTES_PER_FILE
    free = stats.f_favail
    verdict = "ok" if not stats.f_files or free >= likely else "warning" if free >= certain else "failed"
    text = f"remove files that nobody needs (runtime gc --prefix {prefix.path}), or choose another --prefix: df -i"
    return Check(
        name="inodes",
        found=f"{free} free" if stats.f_files else "no limit",
        needed=f"about {likely}",
        verdict=verdict,
        remedy="" if verdict == "ok" else text,
        exit_code=DiskError.exit_code,
    )


def _link_checks(prefix: Prefix, host: Host) -> Iterator[Check]:
    """Yield whether hard links work where releases will lie; nothing where it can't be tried, another row says why."""
    folder = existing_parent(prefix.path)
    mount = host.mount_of(folder.resolve())
    kind = mount.kind if mount else "unknown"
    problem = f"none on {kind}" if mount and mount.lacks_hard_links else ""
    if not problem:
        try:
            with tempfile.TemporaryDirectory(prefix=".sealift-", dir=folder) as scratch:
                one = Path(scratch, "one")
                one.touch()
                one.with_name("two").hardlink_to(one)
        except OSError as error:
            if error.errno in _UNTRIED or not folder.is_dir():
                return
            problem = f"refused by {kind}: {error.strerror}"
    remedy = "choose a --prefix on a Linux file system (ext4, xfs, btrfs, tmpfs); FAT and some network shares have none"
    yield Check(
        name="hard links",
        found=problem or f"work on {kind}",
        needed="work",
        verdict="failed" if problem else "ok",
        remedy=remedy if problem else "",
    )


def _needs_checks(manifest: Manifest, prefix: Prefix, host: Host) -> Iterator[Check]:
    """Yield a row for each level that the bundle asks for: what is missed of a minimum fails, of a wish it warns."""
    disk = free_space(prefix.path)
    facts: tuple[tuple[str, Limit, int, int, Callable[[float], str]], ...] = (
        ("cpu cores", host.cores(), manifest.minimum.cpu_cores, manifest.recommended.cpu_cores, lambda n: f"{n:g}"),
        ("memory", host.memory(), manifest.minimum.memory, manifest.recommended.memory, format_size),
        ("disk", Limit(value=disk, whole=disk), manifest.minimum.disk, manifest.recommended.disk, format_size),
    )
    for name, found, least, wished, show in facts:
        if least or wished:
            yield _level_check(name, found, least, wished, show)


def _level_check(name: str, found: Limit, least: int, wished: int, show: Callable[[float], str]) -> Check:
    value = found.value
    if name == "memory" and not found.is_limited:
        value += value / (_KERNEL_KEEPS - 1)
    verdict = "failed" if value < least else "warning" if value < wished else "ok"
    words = [show(least)] if least else []
    words += [f"{show(wished)} recommended"] if wished > least else []
    here = show(found.value)
    if found.is_limited:
        here += f" (limited by a cgroup or its affinity; the host has {show(found.whole)})"
    raised = f"give this service more {name} ({_WHERE_LIMITED[name]}), or " if found.is_limited else ""
    remedy = f"{raised}use a host with more {name}"
    return Check(
        name=name, found=here, needed=", ".join(words), verdict=verdict, remedy="" if verdict == "ok" else remedy
    )
