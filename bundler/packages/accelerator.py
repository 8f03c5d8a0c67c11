"""The accelerator as an explicit choice: which torch a target gets, and what must not slip into a CPU bundle.

On Linux, the ``torch`` of the public index is a CUDA build that pulls gigabytes of libraries; the CPU builds are told
apart by a local version (``2.13.0+cpu``) and lie in an index of PyTorch's own, or in a folder of the user's.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from bundler.packages.wheeltags import tag_rank
from manifests.errors import PolicyError, SourceError
from manifests.manifest import Target
from manifests.progress import format_size

TORCH_FAMILY: Final = ("torch", "torchaudio", "torchvision")
_CUDA: Final = re.compile(r"(?:nvidia|cuda)-.+|(?:pytorch-)?triton(?:-.+)?")
_CUDA_LABEL: Final = re.compile(r"cu[0-9]+(?:\..*)?")
_NUMBERED_BY_CUDA: Final = ("cuda-bindings", "cuda-python", "cuda-toolkit", "nvidia-cuda-runtime")


def torch_backend(target: Target) -> str | None:
    """Return uv's name of the PyTorch index for a target, or None where the public index has the right build."""
    if target.accelerator.startswith("cuda-"):
        return "cu" + target.accelerator.removeprefix("cuda-").replace(".", "")
    return "cpu" if _needs_cpu_build(target) else None


def _needs_cpu_build(target: Target) -> bool:
    return target.accelerator == "cpu" and "manylinux" in target.platform


def cpu_constraints(requirements: Sequence[str], target: Target, folders: Iterable[Path]) -> tuple[str, ...]:
    """Return constraints that pick the CPU wheels of torch that lie in ``folders``; none where there aren't any.

    Only wheels count that fit the target and what ``requirements`` say of the package itself; the highest wins.
    """
    if not _needs_cpu_build(target):
        return ()
    found: dict[str, Version] = {}
    for path in (path for folder in folders for path in folder.glob("torch*.whl")):
        try:
            name, version, *_ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if "cpu" not in (version.local or "") or tag_rank(path.name, target) is None:
            continue
        if name in TORCH_FAMILY and _allowed(name, version, requirements):
            found[name] = max(version, found.get(name, version))
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()))


def _allowed(name: str, version: Version, requirements: Sequence[str]) -> bool:
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # uv will say what is wrong with it
        if canonicalize_name(requirement.name) == name and not requirement.specifier.contains(
            version, prereleases=True
        ):
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosurePackage:
    """What a closure check looks at: a canonical name, a version, and the wheel's bytes, 0 where unknown."""

    name: str
    version: str
    size: int = 0


def check_closure(packages: Iterable[ClosurePackage], target: Target) -> None:
    """Refuse a closure that is for another accelerator than the target's.

    For ``cpu`` and ``mps`` no package of CUDA's may be in it. For ``cuda-X.Y``, what carries a CUDA release in its name
    (``nvidia-cublas-cu12``) must carry X, and PyTorch's local version (``+cu126``) must be X.Y's own.

    Raises:
        SourceError: It is for another one; all packages are named, with their bytes.
    """
    found = tuple(packages)
    if target.accelerator.startswith("cuda-"):
        _check_cuda(found, target.accelerator.removeprefix("cuda-"))
    else:
        _check_no_cuda(found, target.accelerator)


def _check_no_cuda(found: Sequence[ClosurePackage], accelerator: str) -> None:
    cuda = sorted((item for item in found if _CUDA.fullmatch(item.name)), key=lambda item: item.name)
    if cuda:
        msg = f"target.accelerator is {accelerator}, but the requirements lead to CUDA packages: {_listed(cuda)}"
        hint = "leave out what needs them, or write the accelerator, such as accelerator = 'cuda-12.6'"
        raise SourceError(msg, hint=hint)
    for item in found:
        if item.name in TORCH_FAMILY and _CUDA_LABEL.fullmatch(_label(item)):
            msg = f"target.accelerator is {accelerator}, but {item.name} {item.version} is a build for CUDA"
            raise SourceError(msg, hint="take the CPU build: a version with +cpu, or without a plus on Windows and Mac")


def _check_cuda(found: Sequence[ClosurePackage], wanted: str) -> None:
    major, label = wanted.partition(".")[0], f"cu{wanted.replace('.', '')}"
    other = [item for item in found if _cuda_major(item) not in {None, major}]
    if other:
        msg = f"target.accelerator is cuda-{wanted}, but these packages are for another CUDA: {_listed(other)}"
        raise SourceError(msg, hint=f"take torch from the index of its {label} builds: [[packages.index]]")
    has_cuda = any(_cuda_major(item) == major for item in found)
    for item in found:
        if item.name not in TORCH_FAMILY or _label(item) == label or (not _label(item) and has_cuda):
            continue
        msg = f"target.accelerator is cuda-{wanted}, but {item.name} {item.version} is not a build for CUDA {wanted}"
        raise SourceError(msg, hint=f"take it from the index of its {label} builds: [[packages.index]]")


def _cuda_major(item: ClosurePackage) -> str | None:
    """Return the CUDA release that a package is for, or None where it isn't CUDA's or doesn't say."""
    if match := re.fullmatch(r"(?:nvidia|cuda)-.+-cu([0-9]{2})", item.name):
        return match[1]
    return item.version.partition(".")[0] if item.name in _NUMBERED_BY_CUDA else None


def _label(item: ClosurePackage) -> str:
    return item.version.partition("+")[2]


def _listed(items: Sequence[ClosurePackage]) -> str:
    texts = [
        f"{item.name} {item.version} ({format_size(item.size) if item.size else 'size unknown'})" for item in items
    ]
    total = format_size(sum(item.size for item in items))
    return f"{', '.join(texts)}; {len(items)} wheels, {total}"


def check_budget(packages: Iterable[ClosurePackage], limit: object) -> str:
    """Compare what is about to be fetched with the spec's ``max-size``, before a byte of it is fetched.

    Args:
        packages: The closure, with the sizes that the indexes give.
        limit: Bytes; anything but an integer means that there is no limit.

    Returns:
        What a person should know: count, bytes, and which sizes no index gives.

    Raises:
        PolicyError: The known sizes alone are more than the limit; the largest are named.
    """
    found = tuple(packages)
    total, unknown = sum(item.size for item in found), sorted(item.name for item in found if not item.size)
    if isinstance(limit, int) and total > limit:
        largest = sorted(found, key=lambda item: -item.size)[:3]
        names = ", ".join(f"{item.name} {format_size(item.size)}" for item in largest)
        msg = f"the wheels have {format_size(total)}, policy.max-size allows {format_size(limit)}; largest: {names}"
        raise PolicyError(f"{msg}; nothing was fetched", hint="raise [policy] max-size, or leave something out")
    more = f", and of unknown size: {', '.join(unknown)}" if unknown else ""
    return f"{len(found)} wheels, {format_size(total)}{more}"
