"""What this host is, read from /proc and /sys: cores, memory, mounts, network, driver, security modules.

Everything is read below a root folder, so that a test can put any host there; what a host doesn't have is None.
"""

import os
import platform
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_UNLIMITED: Final = 1 << 60  # cgroup v1 says "no limit" as the largest multiple of a page below 2^63
_NO_HARD_LINKS: Final = frozenset({"exfat", "fuseblk.exfat", "msdos", "vfat"})
_DRIVER: Final = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How much there is, and what limits it: the host itself or a cgroup. ``whole`` is what the host has."""

    value: float
    whole: float

    @property
    def is_limited(self) -> bool:
        """Whether a cgroup or the affinity gives this process less than the host has."""
        return self.value < self.whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mounted file system: where, of which kind, with which options."""

    point: str
    kind: str
    options: frozenset[str]

    @property
    def lacks_hard_links(self) -> bool:
        """Whether this kind of file system has no hard links at all."""
        return self.kind in _NO_HARD_LINKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host, seen through the files below ``root``."""

    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """Return the text of a file by its absolute path, None where it can't be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def cores(self) -> Limit:
        """Return how many cores this process may use: the affinity, cut by every cgroup's quota (v1 and v2)."""
        whole = os.cpu_count() or 1
        found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else whole)
        for folder in self._cgroups("cpu"):
            quota, _, period = (self.read(f"{folder}/cpu.max") or "").strip().partition(" ")
            if not period:
                quota = (self.read(f"{folder}/cpu.cfs_quota_us") or "").strip()
                period = (self.read(f"{folder}/cpu.cfs_period_us") or "").strip()
            if quota.isdecimal() and period.isdecimal() and int(period):
                found = min(found, int(quota) / int(period))
        return Limit(value=found, whole=whole)

    def memory(self) -> Limit:
        """Return how many bytes of memory this process may use: the host's, cut by every cgroup's limit."""
        match = re.search(r"^MemTotal:\s+(\d+) kB", self.read("/proc/meminfo") or "", re.MULTILINE)
        whole = int(match[1]) * 1024 if match else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found = whole
        for folder in self._cgroups("memory"):
            for name in ("memory.max", "memory.limit_in_bytes"):
                text = (self.read(f"{folder}/{name}") or "").strip()
                if text.isdecimal() and int(text) < _UNLIMITED:
                    found = min(found, int(text))
        return Limit(value=found, whole=whole)

    def _cgroups(self, controller: str) -> Iterator[str]:
        """Yield the folders of this process's cgroup and of its parents, in the v2 tree and in v1's of a controller."""
        for line in (self.read("/proc/self/cgroup") or "").splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if names and controller not in names.split(","):
                continue
            top = f"/sys/fs/cgroup/{controller}" if names else "/sys/fs/cgroup"
            inner = PurePosixPath(path.lstrip("/"))
            # In a container the path may be the host's, which isn't there: the top is then the container's own.
            yield from (f"{top}/{part}" for part in (inner, *inner.parents))

    def cpu(self) -> tuple[str, frozenset[str]]:
        """Return the CPU's name and its feature flags, both empty where the system doesn't tell."""
        name, flags = "", frozenset[str]()
        for line in (self.read("/proc/cpuinfo") or "").splitlines():
            key, _, value = line.partition(":")
            name = name or (value.strip() if key.strip() == "model name" else "")
            flags = flags or (frozenset(value.split()) if key.strip() in {"flags", "Features"} else flags)
        return name or platform.processor() or platform.machine(), flags

    def mount_of(self, path: Path) -> Mount | None:
        """Return the file system that ``path`` lies on, None where the system doesn't tell."""
        found: Mount | None = None
        for line in (self.read("/proc/self/mountinfo") or "").splitlines():
            before, _, after = line.partition(" - ")
            fields, kind = before.split(" "), after.split(" ")[0]
            if len(fields) < 6:
                continue
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            if Path(point) in (path, *path.parents) and (found is None or len(point) >= len(found.point)):
                found = Mount(point=point, kind=kind, options=frozenset(fields[5].split(",")))
        return found

    def default_routes(self) -> tuple[str, ...]:
        """Return the interfaces that a default route leads out by."""
        found: list[str] = []
        for line in (self.read("/proc/net/route") or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000" and int(fields[3], 16) & 1:
                found.append(fields[0])
        for line in (self.read("/proc/net/ipv6_route") or "").splitlines():
            fields = line.split()
            if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
                found.append(fields[9])
        return tuple(dict.fromkeys(found))

    def interfaces(self) -> tuple[str, ...]:
        """Return the network interfaces of this namespace, without loopback."""
        lines = (self.read("/proc/net/dev") or "").splitlines()[2:]
        return tuple(name for line in lines if (name := line.partition(":")[0].strip()) != "lo")

    def resolvers(self) -> tuple[str, ...]:
        """Return the name servers that ``/etc/resolv.conf`` lists."""
        return tuple(re.findall(r"^nameserver\s+(\S+)", self.read("/etc/resolv.conf") or "", re.MULTILINE))

    def unroutable(self) -> int | None:
        """Return how many packets the kernel has refused for want of a route, IPv4 and IPv6, None where it isn't told.

        Native code that opens sockets by itself passes Python's audit hook by; it doesn't pass this one by.
        """
        lines = re.findall(r"^Ip: (.*)$", self.read("/proc/net/snmp") or "", re.MULTILINE)
        table = dict(zip(lines[0].split(), lines[1].split(), strict=False)) if len(lines) == 2 else {}
        six = re.search(r"^Ip6OutNoRoutes\s+(\d+)", self.read("/proc/net/snmp6") or "", re.MULTILINE)
        if "OutNoRoutes" not in table:
            return None
        return int(table["OutNoRoutes"]) + (int(six[1]) if six else 0)

    def driver(self) -> str | None:
        """Return the version of NVIDIA's kernel driver, None where none is loaded."""
        match = _DRIVER.search(self.read("/proc/driver/nvidia/version") or "")
        return match[1] if match else None

    def gpus(self) -> tuple[str, ...]:
        """Return the models of the GPUs that NVIDIA's driver knows."""
        folder = self.root / "proc/driver/nvidia/gpus"
        try:
            texts = [self.read(f"/proc/driver/nvidia/gpus/{path.name}/information") or "" for path in folder.iterdir()]
        except OSError:
            return ()
        found = (re.search(r"^Model:(.*)$", text, re.MULTILINE) for text in sorted(texts))
        return tuple(match[1].strip() for match in found if match)

    def umask(self) -> int | None:
        """Return this process's umask without changing it."""
        match = re.search(r"^Umask:\s+([0-7]+)", self.read("/proc/self/status") or "", re.MULTILINE)
        return int(match[1], 8) if match else None

    def selinux_enforces(self) -> bool:
        """Whether SELinux is there and enforces."""
        return (self.read("/sys/fs/selinux/enforce") or "").strip() == "1"

    def runs(self, program: str) -> bool:
        """Whether a process of this name runs."""
        try:
            names = [path.name for path in (self.root / "proc").iterdir() if path.name.isdecimal()]
        except OSError:
            return False
        return any((self.read(f"/proc/{name}/comm") or "").strip() == program for name in names)

    def distribution(self) -> str:
        """Return the system's own name for itself."""
        match = re.search(r'^PRETTY_NAME="?([^"\n]*)', self.read("/etc/os-release") or "", re.MULTILINE)
        return match[1] if match else platform.platform()


def user_name(uid: int) -> str:
    """Return a user's name, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
