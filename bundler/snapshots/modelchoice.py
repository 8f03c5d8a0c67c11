"""Which of a model's files travel: what the spec includes and excludes, the useful ones, and one format of weights."""

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from manifests.errors import SpecError
from manifests.progress import format_size

_UNUSED: Final = (
    *(
        "*.onnx",
        "*.onnx_data",
        "onnx/*",
        "openvino/*",
        "*.msgpack",
        "*.h5",
        "*.ot",
        "*.tflite",
        "*.mlmodel",
        "coreml/*",
    ),
    *("*.mlpackage/*", "flax_*", "tf_*", "original/*", "metal/*", "imgs/*", "images/*", "assets/*"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", ".gitattributes", ".gitignore"),
)
"""What repositories on the Hub hold for other programs and for readers of their pages; nothing here reads it."""

_SAFETENSORS: Final = re.compile(r"model[^/]*\.safetensors")
_PYTORCH: Final = re.compile(r"pytorch_model[^/]*\.bin(?:\.index\.json)?|consolidated[^/]*\.(?:pth|safetensors)")
_PICKLED: Final = (".bin", ".pt", ".pth")
_NAMED: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The names that travel, sorted, and remarks on what doesn't, for a person."""

    names: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def is_included(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a path in a model is wanted by the spec's globs, whose ``*`` also takes slashes."""
    wanted = not include or any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def choose_files(
    sizes: Mapping[str, int], include: Sequence[str], exclude: Sequence[str], *, only_useful: bool = False
) -> Choice:
    """Decide what travels.

    Args:
        sizes: Path in the model -> bytes, all there is.
        include: The spec's globs; what they name isn't second-guessed, but for pickled twins of safetensors.
        exclude: The spec's globs.
        only_useful: Without globs, leave out what is known to be for other programs.
    """
    kept = {name for name in sizes if is_included(name, include, exclude)}
    remarks = []
    if only_useful and not include and not exclude:
        unused = {name for name in kept if not is_included(name, (), _UNUSED)}
        kept -= unused
        remarks += _remark("left out, nothing here reads it", unused, sizes)
    twins = _twins(kept, keep_gguf=bool(include))
    kept -= twins
    if twins:
        taken = "safetensors" if any(name.endswith(".safetensors") for name in kept) else "PyTorch's .bin"
        remarks += _remark(f"weights: {taken} taken; left out, the same in another format", twins, sizes)
    return Choice(names=tuple(sorted(kept)), remarks=tuple(remarks))


def check_choice(names: Collection[str], sizes: Mapping[str, int], where: str) -> None:
    """Refuse what can't be a model.

    Raises:
        SpecError: Nothing is left, there is neither a config.json nor a GGUF file, or there are several of the latter.
    """
    if not names:
        raise SpecError(f"{where} holds no files", hint="check include and exclude")
    if "config.json" in names:
        return
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if not ggufs:
        raise SpecError(f"{where} has no config.json", hint="name the folder that holds the weights")
    if len(ggufs) > 1:
        listed = ", ".join(f"{name} ({format_size(sizes[name])})" for name in ggufs)
        hint = f"choose one: include = ['{ggufs[0]}']"
        raise SpecError(f"{where} holds {len(ggufs)} GGUF files and no config.json: {listed}", hint=hint)


def _twins(names: Collection[str], *, keep_gguf: bool) -> set[str]:
    """Return the weights that are there in a better format, too: safetensors before PyTorch's before GGUF."""
    better = {_folder(name) for name in names if _SAFETENSORS.fullmatch(_base(name))}
    pytorch = {_folder(name) for name in names if _PYTORCH.fullmatch(_base(name))}
    found = {name for name in names if _folder(name) in better and _PYTORCH.fullmatch(_base(name))}
    stems = {name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    found |= {name for name in names if name.endswith(_PICKLED) and name.rpartition(".")[0] in stems}
    if not keep_gguf and "config.json" in names:
        main = better | pytorch
        found |= {name for name in names if name.endswith(".gguf") and {_folder(name), ""} & main}
    return found


def _remark(words: str, names: Iterable[str], sizes: Mapping[str, int]) -> list[str]:
    """Return ``words`` and the size of each folder or file, the biggest first."""
    groups: dict[str, int] = {}
    for name in names:
        top, slash, _ = name.partition("/")
        groups[top + slash] = groups.get(top + slash, 0) + sizes[name]
    ranked = sorted(groups.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{name} ({format_size(size)})" for name, size in ranked[:_NAMED]]
    if rest := ranked[_NAMED:]:
        listed.append(f"{len(rest)} more ({format_size(sum(size for _, size in rest))})")
    return [f"{words}: {', '.join(listed)}"] if listed else []


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _base(name: str) -> str:
    return name.rpartition("/")[2]
