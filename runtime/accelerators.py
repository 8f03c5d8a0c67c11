"""Whether this host's GPU and driver run the torch build that a bundle carries. Nothing of CUDA is loaded for that."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

from runtime.hostfacts import Host
from runtime.preflight import Check

_LEAST_DRIVER: Final = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
"""CUDA's major version -> the oldest Linux driver that runs any of its minor versions (CUDA's compatibility notes)."""
_OWN_DRIVER: Final = {
    (11, 8): (520, 61, 5),
    (12, 0): (525, 60, 13),
    (12, 1): (530, 30, 2),
    (12, 2): (535, 54, 3),
    (12, 3): (545, 23, 6),
    (12, 4): (550, 54, 14),
    (12, 5): (555, 42, 2),
    (12, 6): (560, 28, 3),
    (12, 8): (570, 26),
    (12, 9): (575, 51, 3),
    (13, 0): (580, 65, 6),
}
"""CUDA's version -> the driver that it was released with; older ones down to the least can't compile PTX of it."""
_QUERY: Final = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
_DEVICES: Final = ("dev/nvidiactl", "dev/dxg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """What there is: the names with their memory, and the driver's version; empty where there is none."""

    names: tuple[str, ...] = ()
    driver: str = ""


def find_gpus(host: Host, search_path: str | None = None) -> Gpus:
    """Return NVIDIA's GPUs as ``nvidia-smi`` tells them, else as the kernel driver does."""
    program = shutil.which("nvidia-smi", path=search_path)
    if program is not None:
        try:
            done = subprocess.run([program, *_QUERY], capture_output=True, text=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            pass  # the driver may still be loaded: ask the kernel
        else:
            rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
            rows = [row for row in rows if len(row) == 3]
            if rows:
                return Gpus(names=tuple(f"{row[0]}, {row[2]}" for row in rows), driver=rows[0][1])
    return Gpus(names=host.gpus(), driver=host.driver() or "")


def accelerator_check(accelerator: str, host: Host, search_path: str | None = None) -> Check:
    """Return the row about a target's accelerator: ``cpu``, ``mps`` or ``cuda-X.Y``."""
    if accelerator == "cpu":
        return Check(name="gpu", found="not asked for", needed="none: the bundle computes on the CPU", verdict="ok")
    if accelerator == "mps":
        return _mps_check()
    version = tuple(int(part) for part in accelerator.removeprefix("cuda-").split("."))
    return _cuda_check((version[0], version[1]), host, find_gpus(host, search_path))


def _mps_check() -> Check:
    uname = os.uname()
    fits = uname.sysname == "Darwin" and uname.machine == "arm64"
    remedy = "" if fits else "use a Mac with Apple silicon, or a bundle built with accelerator = cpu"
    return Check(
        name="gpu",
        found=f"{uname.sysname} on {uname.machine}",
        needed="mps: macOS on Apple silicon",
        verdict="ok" if fits else "failed",
        remedy=remedy,
    )


def _cuda_check(version: tuple[int, int], host: Host, found: Gpus) -> Check:
    label = f"{version[0]}.{version[1]}"
    least = _LEAST_DRIVER.get(version[0])
    own = _OWN_DRIVER.get(version, least)
    needed = f"an NVIDIA GPU with driver {_text(least) if least else 'unknown'} or newer for CUDA {label}"
    needed += f" ({_text(own)} recommended)" if own and own != least else ""
    here = f"{'; '.join(found.names) or 'no GPU'}, driver {found.driver or 'none'}"
    verdict, remedy = "ok", ""
    driver = tuple(int(part) for part in re.findall(r"\d+", found.driver))
    if not found.driver or not found.names:
        verdict = "failed"
        remedy = "install NVIDIA's driver (a container needs --gpus all), or carry a bundle built for accelerator = cpu"
    elif least and driver < least:
        verdict, remedy = "failed", f"install driver {_text(own or least)} or newer, or a bundle for an older CUDA"
    elif not any(os.access(host.root / name, os.R_OK | os.W_OK) for name in _DEVICES):
        verdict, remedy = "failed", "let this user use /dev/nvidia* (group video or render; a container: --gpus all)"
        here += ", /dev/nvidiactl can't be opened"
    elif own and driver < own:
        verdict, remedy = "warning", f"install driver {_text(own)} or newer: an older one can't compile kernels anew"
    return Check(name="gpu", found=here, needed=needed, verdict=verdict, remedy=remedy)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(f"{part:02}" if index else str(part) for index, part in enumerate(version))
