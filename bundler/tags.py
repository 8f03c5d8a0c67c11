"""The wheel tags that a target accepts, best first, without the target at hand (PyPA: platform compatibility tags)."""

import re
from collections.abc import Iterator
from typing import Final

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms

from manifests.errors import SpecError
from manifests.manifest import Target

_LEGACY: Final = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_OLDEST: Final = {"x86_64": 5, "aarch64": 17}
MACOS: Final = (14, 0)
"""The macOS that a target of apple-darwin is taken to run at least; PyTorch's wheels ask for 14."""


def target_platforms(target: Target) -> tuple[str, ...]:
    """Return the platform tags of a target, best first.

    Raises:
        SpecError: Not a platform that wheels are made for.
    """
    machine, _, system = target.platform.partition("-")
    if match := re.fullmatch(r"manylinux_2_(\d+)", system):
        return tuple(_linux_platforms(machine, int(match[1])))
    if system == "apple-darwin":
        return tuple(mac_platforms(MACOS, {"aarch64": "arm64"}.get(machine, machine)))
    if system == "pc-windows-msvc":
        return ({"x86_64": "win_amd64", "aarch64": "win_arm64"}[machine],)
    raise SpecError(f"target.platform: {target.platform!r} is not a platform that wheels are made for")


def target_tags(target: Target) -> dict[Tag, int]:
    """Return tag -> rank, 0 being the best."""
    version = (3, int(target.python.partition(".")[2]))
    interpreter = f"cp{version[0]}{version[1]}"
    platforms = target_platforms(target)
    tags = [
        *cpython_tags(version, [interpreter], platforms),
        *compatible_tags(version, interpreter, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def _linux_platforms(machine: str, level: int) -> Iterator[str]:
    for minor in range(level, _OLDEST[machine] - 1, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if minor in _LEGACY and (machine == "x86_64" or minor == 17):
            yield f"{_LEGACY[minor]}_{machine}"
    yield f"linux_{machine}"
