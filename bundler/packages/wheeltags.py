"""Which wheels a target accepts, best first, without that target at hand."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from manifests.manifest import Target

MACOS_VERSION: Final = (14, 0)
"""The macOS that bundles for Macs are made for; PyTorch's wheels need it."""

_LEGACY: Final = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def wheel_platforms(target: Target) -> tuple[str, ...]:
    """Return the platform tags that the target accepts, the most specific first."""
    machine, _, system = target.platform.partition("-")
    if match := re.fullmatch(r"manylinux_2_([0-9]+)", system):
        return tuple(_linux_platforms(machine, int(match[1])))
    if system == "apple-darwin":
        return tuple(mac_platforms(MACOS_VERSION, {"aarch64": "arm64"}.get(machine, machine)))
    return ({"x86_64": "win_amd64", "aarch64": "win_arm64"}[machine],)


def _linux_platforms(machine: str, minor: int) -> Iterable[str]:
    oldest = 5 if machine == "x86_64" else 17
    for level in range(minor, oldest - 1, -1):
        yield f"manylinux_2_{level}_{machine}"
        if level in _LEGACY:
            yield f"{_LEGACY[level]}_{machine}"
    yield f"linux_{machine}"


def abi_tags(target: Target) -> tuple[str, ...]:
    """Return the ABI tags that the target's CPython accepts."""
    return (f"cp{target.python.replace('.', '')}", "abi3", "none")


@cache
def wheel_tags(target: Target) -> tuple[Tag, ...]:
    """Return every wheel tag that the target accepts, best first."""
    major, minor = (int(part) for part in target.python.split("."))
    platforms = wheel_platforms(target)
    interpreter = f"cp{major}{minor}"
    specific = cpython_tags((major, minor), abis=[interpreter], platforms=platforms)
    return (*specific, *compatible_tags((major, minor), interpreter=interpreter, platforms=platforms))


def tag_rank(filename: str, target: Target) -> int | None:
    """Return the place of a wheel in the target's order (0 is best), or None where it doesn't fit or isn't a wheel."""
    try:
        tags = parse_wheel_filename(filename)[3]
    except InvalidWheelFilename:
        return None
    places = _places(target)
    ranks = [places[tag] for tag in tags if tag in places]
    return min(ranks, default=None)


@cache
def _places(target: Target) -> dict[Tag, int]:
    return {tag: place for place, tag in reversed(tuple(enumerate(wheel_tags(target))))}


def best_wheel(filenames: Sequence[str], target: Target) -> str | None:
    """Return the wheel that the target prefers, or None; among equals the highest build number, then the last name."""
    ranked = [
        (-rank, parse_wheel_filename(name)[2], name)
        for name in filenames
        if (rank := tag_rank(name, target)) is not None
    ]
    return max(ranked)[2] if ranked else None
