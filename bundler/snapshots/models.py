"""Models into the store: files of one format, pickled weights and GGUF converted, and what a policy decides on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from bundler.lock import LockedFile, LockedModel
from bundler.packages.pipconfig import PipConfig
from bundler.review.policy import check_model
from bundler.snapshots.convert import Converted, convert
from bundler.snapshots.modelfacts import PICKLE_SUFFIXES, find_facts, holds_pickle
from bundler.snapshots.modelfiles import CONVERTED_FROM, ModelFiles, files_of_folder, files_of_hub, files_of_wheel
from bundler.spec import ModelSpec, Spec
from bundler.store import Store
from manifests.digests import sha256_hex
from manifests.errors import SpecError
from manifests.manifest import ModelEntry

_CONVERTIBLE: Final = (".bin", ".pt")
_Mode = Literal["gguf", "pickle", "cast"]


def lock_model(
    model: ModelSpec,
    spec: Spec,
    store: Store,
    config: PipConfig,
    *,
    previous: LockedModel | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> LockedModel:
    """Have a model's files in the store.

    Args:
        model: What the spec says of it.
        spec: Whose folder and policy count.
        store: Where every byte goes, once.
        config: Where the converter's requirements come from.
        previous: The same model in an earlier lock, so that a branch on the Hub stays at its commit; None to look anew.
        report: Told what is left out and how big that is, and how a download fares.

    Raises:
        SpecError: The folder is missing or empty, has no config.json, a link out of itself, or an illegal path.
        SourceError: The wheel or the repository can't be had, or holds no model.
        IntegrityError: What the Hub gives isn't what it promised.
        PolicyError: Pickles or Python code are there that the policy refuses.
    """
    where = f"{spec.path}: model {model.name!r}"
    found = _files(model, spec, store, where, previous=previous, report=report)
    final, converter = _converted(found.files, model, store, config)
    if "config.json" not in final:
        raise SpecError(f"{where}: there is no config.json", hint="name the folder that holds config.json and weights")
    facts = find_facts({name: store.path(sha256) for name, (sha256, _) in final.items()})
    check_model(model.name, facts.pickles, facts.code, spec.policy, where)
    locked = [
        _locked(f"models/{model.name}/{name}", sha256, store, found, made_from)
        for name, (sha256, made_from) in sorted(final.items())
    ]
    return LockedModel(
        entry=_entry(model, found.origin),
        files=tuple(locked),
        converter=converter,
        license=model.license or found.license or facts.license,
        facts=facts.to_json(),
    )


def _files(
    model: ModelSpec,
    spec: Spec,
    store: Store,
    where: str,
    *,
    previous: LockedModel | None,
    report: Callable[[str], None],
) -> ModelFiles:
    if model.scheme == "dir":
        return files_of_folder(model, spec, store, where, report)
    if model.scheme == "wheel":
        return files_of_wheel(model, store, report)

    def check(names: Sequence[str]) -> None:
        unconvertible = [name for name in names if name.endswith(PICKLE_SUFFIXES) and not name.endswith(_CONVERTIBLE)]
        code = [name for name in names if name.endswith(".py")]
        check_model(model.name, unconvertible, code, spec.policy, where)

    return files_of_hub(model, store, where, previous=previous, check=check, report=report)


def _entry(model: ModelSpec, origin: str) -> ModelEntry:
    return ModelEntry(
        name=model.name,
        adapter=model.adapter,
        path=f"models/{model.name}",
        format=model.format,
        origin=origin,
        settings=model.settings,
    )


def _converted(
    files: Mapping[str, str], model: ModelSpec, store: Store, config: PipConfig
) -> tuple[dict[str, tuple[str, str]], str]:
    """Return name -> (sha256, sha256 it was made from) after conversion, and the converter's digest if it was used."""
    final, converter = {name: (sha256, "") for name, sha256 in files.items()}, ""
    for mode, taken in _conversions(files, model, store):
        result, made_from = _convert(mode, taken, files, store, config, dtype=model.dtype)
        final = {name: item for name, item in final.items() if name not in taken}
        final |= {name: (sha256, made_from) for name, (sha256, _) in result.files.items()}
        converter = result.converter
    return final, converter


def _conversions(files: Mapping[str, str], model: ModelSpec, store: Store) -> Iterator[tuple[_Mode, list[str]]]:
    """Yield what has to be made into safetensors, or into another dtype: the converter's mode and the names."""
    ggufs = [name for name in files if name.endswith(".gguf")]
    tensors = [name for name in files if name.endswith((".safetensors", ".safetensors.index.json"))]
    pickles = [name for name in files if _is_pickled_weights(name, store.path(files[name]))]
    if ggufs and not tensors and "config.json" not in files:
        yield "gguf", ggufs[:1]
    elif pickles:
        yield "pickle", sorted(pickles + [name for name in files if name.endswith(".bin.index.json")])
    if tensors and model.dtype:
        yield "cast", sorted(tensors)


def _is_pickled_weights(name: str, path: Path) -> bool:
    """Whether it goes to the converter, which refuses what is none; a ``.bin`` may well be something else."""
    is_named_so = name.endswith(".pt") or name.rpartition("/")[2].startswith("pytorch_model")
    return name.endswith(_CONVERTIBLE) and (is_named_so or holds_pickle(path))


def _convert(
    mode: _Mode, taken: Sequence[str], files: Mapping[str, str], store: Store, config: PipConfig, *, dtype: str
) -> tuple[Converted, str]:
    """Return the result, and the digest of what it was made from: the file's, or that of a list of several."""
    key = sha256_hex("".join(f"{files[name]} {name}\n" for name in sorted(taken)).encode())
    inputs = {name: store.path(files[name]) for name in sorted(taken)}
    result = convert(mode, inputs, key, store, config, dtype=dtype)
    return result, files[taken[0]] if len(taken) == 1 else key


def _locked(path: str, sha256: str, store: Store, found: ModelFiles, made_from: str) -> LockedFile:
    digest = store.digest(sha256)
    # A branch's name is kept, so that the next lock knows what was asked for.
    converted = f"{CONVERTED_FROM}{found.source}" if found.source.startswith("hub ") else "converted"
    return LockedFile(
        path=path,
        size=digest.size,
        sha256=sha256,
        chunks=digest.chunks,
        origin=found.origin,
        source=converted if made_from else found.source,
        origin_sha256=made_from,
    )
