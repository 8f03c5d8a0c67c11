"""The accelerator as an explicit choice: which torch a target gets, and what must not slip into a CPU bundle.

On Linux, the ``torch`` of the public index is a CUDA build that pulls gigabytes of libraries; the CPU builds are told
apart by a local version (``2.13.0+cpu``) and lie in an index of PyTorch's own, or in a folder of the user's.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from bundler.wheeltags import tag_rank
from manifests.errors import SourceError
from manifests.manifest import Target

TORCH_FAMILY: Final = ("torch", "torchaudio", "torchvision")
_CUDA: Final = re.compile(r"(?:nvidia|cuda)-.+|(?:pytorch-)?triton(?:-.+)?")


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


def check_closure(names: Iterable[str], target: Target) -> None:
    """Refuse CUDA packages in the closure of a CPU bundle.

    Raises:
        SourceError: There are some; all are named.
    """
    found = sorted(name for name in names if _CUDA.fullmatch(name))
    if target.accelerator == "cpu" and found:
        msg = f"target.accelerator is cpu, but the requirements lead to CUDA packages: {', '.join(found)}"
        hint = "leave out what needs them, or write the accelerator, such as accelerator = 'cuda-12.6'"
        raise SourceError(msg, hint=hint)
