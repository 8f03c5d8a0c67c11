"""What this host has left at the moment: memory as this process may use it, and GPUs by NVIDIA's own library."""

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.hostfacts import Host

_CGROUP: Final = Path("/sys/fs/cgroup")
_NAME_BYTES: Final = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card: memory in bytes, load in percent, temperature in degrees Celsius; None where it doesn't say."""

    name: str
    memory_total: int
    memory_free: int
    load: int | None
    temperature: int | None


THIS_HOST: Final = Host()


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Load(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def usable_cores(host: Host = THIS_HOST) -> int:
    """Return how many threads may compute at once: the affinity and every cgroup's quota, rounded down, at least 1."""
    return max(1, int(host.cores().value))


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Return the bytes that may still be used: the host's, or the cgroup's (v2) where those are fewer.

    None where the system says neither.
    """
    found = [left for left in (_host_memory(meminfo), _cgroup_memory(cgroup)) if left is not None]
    return min(found, default=None)


def _host_memory(meminfo: Path) -> int | None:
    return _meminfo(meminfo, "MemAvailable:")


def _meminfo(path: Path, key: str) -> int | None:
    words = _words(path)
    return int(words[words.index(key) + 1]) * 1024 if key in words else None


def _cgroup_memory(folder: Path) -> int | None:
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    words = _words(folder / "memory.stat")
    cached = int(words[words.index("inactive_file") + 1]) if "inactive_file" in words else 0  # given up when asked for
    return max(0, limit - used + cached)


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []


def find_gpus(library: str = "libnvidia-ml.so.1") -> list[Gpu]:
    """Return the NVIDIA cards that the driver's own library (NVML) reports; none where there is no such library."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []
    if nvml.nvmlInit_v2():
        return []
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        return [gpu for index in range(count.value) for gpu in _read_gpu(nvml, index)]
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: ctypes.CDLL, index: int) -> Iterator[Gpu]:
    handle, memory, load, degrees = ctypes.c_void_p(), _Memory(), _Load(), ctypes.c_uint()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
        return
    with contextlib.suppress(AttributeError):  # an old library without one of these
        if nvml.nvmlDeviceGetName(handle, name, _NAME_BYTES) or nvml.nvmlDeviceGetMemoryInfo(
            handle, ctypes.byref(memory)
        ):
            return
        has_load = nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(load)) == 0
        has_degrees = nvml.nvmlDeviceGetTemperature(handle, 0, ctypes.byref(degrees)) == 0
        yield Gpu(
            name=name.value.decode("utf-8", "replace"),
            memory_total=memory.total,
            memory_free=memory.free,
            load=load.gpu if has_load else None,
            temperature=degrees.value if has_degrees else None,
        )
