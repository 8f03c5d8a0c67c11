"""What go-live asks of a host besides what an install needs: GPU, port, clock, security modules, the service's user.

Nothing is sent anywhere: whether the network is closed is read from routes and resolvers, never tried.
"""

import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from manifests.manifest import Manifest
from runtime.accelerators import accelerator_check
from runtime.hostfacts import Host, user_name
from runtime.layout import Prefix
from runtime.preflight import Check, existing_parent, preflight

_ENGINES: Final = {"docker": (20, 10), "podman": (4, 0)}
_INSTALL_ONLY: Final = frozenset({"python", "platform", "prefix", "disk space", "inodes", "hard links", "disk"})
_OLD: Final = timedelta(days=3650)
_SKEW: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostQuestions:
    """What is asked about a host beyond what every bundle needs.

    ``port`` 0 and ``service_user`` empty ask nothing. ``installed`` leaves out what only an install needs; ``newest``
    is the highest ``created`` that was ever installed here; ``now`` is the host's clock, UTC.
    """

    now: datetime
    python: Path | None = None
    address: str = "127.0.0.1"
    port: int = 0
    container: bool = False
    service_user: str = ""
    installed: bool = False
    newest: str = ""
    host: Host = field(default_factory=Host)
    search_path: str | None = None


def check_host(manifest: Manifest, prefix: Prefix, questions: HostQuestions) -> tuple[Check, ...]:
    """Return the whole table: what an install needs, then what go-live asks; nothing is raised or stays written."""
    host = questions.host
    rows = list(preflight(manifest, prefix, python=questions.python, host=host))
    if questions.installed:
        rows = [
            row for row in rows if row.name not in _INSTALL_ONLY or (row.name == "prefix" and "noexec" in row.found)
        ]
    rows.append(accelerator_check(manifest.target.accelerator, host, questions.search_path))
    rows += _vector_check(manifest, host)
    if questions.container:
        rows.append(_container_check(questions.search_path))
    if questions.port:
        rows.append(_port_check(questions.address, questions.port))
    rows += [_clock_check(manifest, questions), _temporary_check(Path(tempfile.gettempdir())), _umask_check(questions)]
    if host.selinux_enforces():
        rows.append(_selinux_check(prefix))
    if host.runs("fapolicyd"):
        rows.append(_fapolicyd_check(prefix))
    if questions.service_user:
        rows.append(_reader_check(prefix, questions.service_user))
    return (*rows, _network_check(host))


def _vector_check(manifest: Manifest, host: Host) -> Iterator[Check]:
    name, flags = host.cpu()
    if manifest.models and manifest.target.platform.startswith("x86_64") and flags:
        fits = "avx2" in flags
        yield Check(
            name="cpu kind",
            found=f"{name}, {'with' if fits else 'without'} AVX2",
            needed="AVX2 recommended",
            verdict="ok" if fits else "warning",
            remedy="" if fits else "answers come, but slowly; in a virtual machine let the CPU's own features through",
        )


def _container_check(search_path: str | None) -> Check:
    needed = " or ".join(f"{name} {version[0]}.{version[1]}" for name, version in _ENGINES.items())
    seen: list[str] = []
    for name, least in _ENGINES.items():
        program = shutil.which(name, path=search_path)
        words = _engine_version(program) if program else ""
        if not words:
            seen += [f"{name} does not answer"] if program else []
            continue
        version = tuple(int(part) for part in words.split(".")[:2] if part.isdecimal())
        if version >= least:
            return Check(name="container", found=f"{name} {words}", needed=needed, verdict="ok")
        seen.append(f"{name} {words}")
    remedy = "install podman from the site's own packages, or start docker's daemon and join its group"
    return Check(name="container", found="; ".join(seen) or "none", needed=needed, verdict="failed", remedy=remedy)


def _engine_version(program: str) -> str:
    command = [program, "version", "--format", "{{.Server.Version}}"]
    if Path(program).name == "podman":
        command[-1] = "{{.Client.Version}}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _port_check(address: str, port: int) -> Check:
    needed = f"{address}:{port} free"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
    except OSError as error:
        remedy = "launch with another --port, or stop what listens there: ss -ltnp"
        found = (error.strerror or str(error)).lower()
        return Check(name="port", found=found, needed=needed, verdict="failed", remedy=remedy)
    return Check(name="port", found="free", needed=needed, verdict="ok")


def _clock_check(manifest: Manifest, questions: HostQuestions) -> Check:
    newest = max(manifest.created, questions.newest)
    made = datetime.strptime(newest, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    wrong = questions.now < made - _SKEW or questions.now > made + _OLD
    remedy = "set the clock: timedatectl set-time; until then signatures are judged at the newest bundle's own time"
    return Check(
        name="clock",
        found=f"{questions.now:%Y-%m-%dT%H:%M:%SZ}",
        needed=f"not before {newest}, when the newest bundle was made, nor ten years after",
        verdict="warning" if wrong else "ok",
        remedy=remedy if wrong else "",
    )


def _temporary_check(folder: Path) -> Check:
    flags = os.statvfs(folder).f_flag
    closed = bool(flags & os.ST_NOEXEC)
    remedy = "start with TMPDIR=PREFIX/var/run: compilers of kernels run what they write there"
    return Check(
        name="tmp folder",
        found=f"{folder} is mounted noexec" if closed else str(folder),
        needed="runs programs, recommended",
        verdict="warning" if closed else "ok",
        remedy=remedy if closed else "",
    )


def _umask_check(questions: HostQuestions) -> Check:
    mask = questions.host.umask()
    open_to_all, closed = bool(mask is not None and not mask & 0o002), bool(mask is not None and mask & 0o005)
    foreign = bool(questions.service_user) and questions.service_user != user_name(os.geteuid())
    verdict = (
        "failed" if closed and foreign and not questions.installed else "warning" if closed or open_to_all else "ok"
    )
    why = "everyone could write what is installed" if open_to_all else "no other user could read what is installed"
    return Check(
        name="umask",
        found="unknown" if mask is None else f"{mask:04o}",
        needed="0022",
        verdict=verdict,
        remedy="" if verdict == "ok" else f"umask 022 before the install: {why}",
    )


def _selinux_check(prefix: Prefix) -> Check:
    remedy = f"if systemd can't start it: semanage fcontext -a -t bin_t '{prefix.path}/releases/[^/]*/venv/bin(/.*)?'"
    return Check(
        name="selinux",
        found="enforcing",
        needed="programs below the prefix may run",
        verdict="note",
        remedy=f"{remedy}; restorecon -R {prefix.path}",
    )


def _fapolicyd_check(prefix: Prefix) -> Check:
    remedy = (
        f"fapolicyd-cli --file add {prefix.path}/ --trust-file sealift && fapolicyd-cli --update, after each install"
    )
    return Check(
        name="fapolicyd",
        found="runs",
        needed="programs below the prefix are trusted",
        verdict="warning",
        remedy=remedy,
    )


def _reader_check(prefix: Prefix, name: str) -> Check:
    needed = f"{name} may read the prefix"
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        remedy = f"make the user: useradd --system --home-dir /nonexistent --shell /sbin/nologin {name}"
        return Check(name="service user", found="no such user", needed=needed, verdict="failed", remedy=remedy)
    groups = frozenset(os.getgrouplist(name, user.pw_gid))
    closed = next(_unreadable(prefix, user.pw_uid, groups), "")
    remedy = f"chmod o+rx {closed}, or a group that {name} is in; names and modes alone are looked at, not ACLs"
    return Check(
        name="service user",
        found=f"{name} may not enter or read {closed}" if closed else f"{name} may",
        needed=needed,
        verdict="failed" if closed else "ok",
        remedy=remedy if closed else "",
    )


def _unreadable(prefix: Prefix, uid: int, groups: frozenset[int]) -> Iterator[str]:
    """Yield what a user may not read of the way to the prefix and of what is live in it, outermost first."""
    top = existing_parent(prefix.path)
    live = prefix.live()
    folders = [*reversed(top.parents), top]
    folders += reversed(live.python.resolve().parents) if live else []  # the interpreter may lie in somebody's home
    yield from (str(path) for path in folders if not _may(path, uid, groups, stat.S_IXOTH))
    if live is None:
        return
    for parent, _, files in os.walk(live.path):
        if not _may(Path(parent), uid, groups, stat.S_IROTH | stat.S_IXOTH):
            yield parent
        yield from (f"{parent}/{name}" for name in files if not _may(Path(parent, name), uid, groups, stat.S_IROTH))


def _may(path: Path, uid: int, groups: frozenset[int], wanted: int) -> bool:
    """Return whether the mode bits give a user the bits of others in ``wanted``, as owner, by group or as others."""
    if uid == 0:
        return True
    try:
        status = path.stat()
    except OSError:
        return True  # a dangling link is no question of permission, and verify names it
    shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
    return status.st_mode >> shift & wanted == wanted


def _network_check(host: Host) -> Check:
    routes, resolvers = host.default_routes(), host.resolvers()
    found = [f"a default route by {', '.join(routes)}"] if routes else ["no default route"]
    found += [f"name servers {', '.join(resolvers)}"] if resolvers else []
    closed = not routes
    remedy = "none where a proxy or a firewall closes it; else ask the network's people. Nothing was sent to find out"
    return Check(
        name="network",
        found="; ".join(found),
        needed="no way out, on a closed network",
        verdict="ok" if closed else "note",
        remedy="" if closed else remedy,
    )
