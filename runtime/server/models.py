"""Which models a release has and with which settings: its manifest, and its rendered configuration."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from manifests.errors import AdapterError, UsageError
from manifests.fields import nearest_hint
from manifests.manifest import MANIFEST_NAME, ModelEntry, Probe, parse_manifest
from manifests.modelsettings import SECTIONS
from runtime.adapters.base import JSON, ModelConfig


def load_models(release: Path) -> list[ModelConfig]:
    """Return what to load from an installed release, in the manifest's order.

    Settings are the release's ``config/<name>.yaml`` (``-`` written as ``_``), else the manifest's; the operator's own
    ``PREFIX/etc/<name>.yaml`` overrides them key by key, wherever the two files group a key. Where neither says
    ``device``, the variables DEVICE and USE_GPU do.

    Raises:
        AdapterError: No manifest there, a settings file that can't be read, or USE_GPU says neither yes nor no.
        IntegrityError: The manifest is malformed.
    """
    path = release / MANIFEST_NAME
    try:
        manifest = parse_manifest(path.read_bytes())
    except OSError as error:
        msg = f"{release}: not a release, its {MANIFEST_NAME} can't be read: {error.strerror}"
        raise AdapterError(msg, hint="pass PREFIX/current, or the path that runtime status prints") from None
    return [_config(release, entry) for entry in manifest.models]


def choose_models(models: Sequence[ModelConfig], names: Collection[str]) -> list[ModelConfig]:
    """Return the models of those names, all where none is named.

    Raises:
        UsageError: The release has no such model.
        AdapterError: It has no model at all.
    """
    known = [model.name for model in models]
    for name in names:
        if name not in known:
            raise UsageError(f"this release has no model {name!r}", hint=nearest_hint(name, known))
    if not models:
        raise AdapterError("this release has no models to serve")
    return [model for model in models if not names or model.name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which models may be asked for, which are loaded at the start, and how many at once."""

    configs: tuple[ModelConfig, ...]
    preload: tuple[str, ...]
    most: int


def plan_offer(models: Sequence[ModelConfig], names: Collection[str], *, on_demand: bool, most: int | None) -> Plan:
    """Return what a server offers.

    Without ``on_demand`` that is the named models, all where none is named, and all of them are loaded at the start.
    With it, all may be asked for; the named ones, or else the first ones, are loaded at the start as far as ``most``
    allows.

    Raises:
        UsageError: The release has no such model, or more are named than may be loaded at once.
        AdapterError: It has no model at all.
    """
    chosen = [model.name for model in choose_models(models, names)]
    offered = [model for model in models if on_demand or model.name in chosen]
    limit = len(offered) if most is None else most
    if limit < len(chosen) and (names or not on_demand):
        msg = f"{len(chosen)} models are to be loaded at the start, and at most {limit} may be loaded at once"
        raise UsageError(msg, hint="name fewer models, or use --on-demand without names")
    return Plan(configs=tuple(offered), preload=tuple(chosen[:limit]), most=limit)


def load_probes(release: Path) -> tuple[Probe, ...]:
    """Return the questions of a release's manifest, with the answers that were recorded."""
    return parse_manifest((release / MANIFEST_NAME).read_bytes()).probes


def settings_file(name: str) -> str:
    """Return the file name of a model's settings, in ``config/`` of a release and in ``etc/`` of a prefix."""
    return f"{name.replace('-', '_')}.yaml"


def read_settings(path: Path, *, model: ModelEntry) -> Mapping[str, JSON]:
    """Read one rendered settings file.

    One table under the model's own name may wrap everything. ``model_path`` is only checked: the folder is always the
    release's own.

    Raises:
        AdapterError: Not YAML, not a table, or a ``model_path`` of another model.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AdapterError(f"model {model.name!r}: {path}: can't be read as YAML: {error}") from error
    settings = {} if document is None else document
    if isinstance(settings, dict) and list(settings) == [path.stem] and isinstance(settings[path.stem], dict):
        settings = settings[path.stem]
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise AdapterError(f"model {model.name!r}: {path}: expected a table of settings")
    return _without_path(settings, path, model)


def _config(release: Path, entry: ModelEntry) -> ModelConfig:
    file = settings_file(entry.name)
    signed, own = release / "config" / file, _etc(release) / file
    settings = read_settings(signed, model=entry) if signed.is_file() else dict(entry.settings)
    if own.is_file():
        settings = overlaid(settings, read_settings(own, model=entry))
    if "device" not in _flat_keys(settings) and (device := _device(os.environ)):
        settings = {**settings, "device": device}
    directory = (release / entry.path).absolute()
    return ModelConfig(name=entry.name, adapter=entry.adapter, directory=directory, settings=settings)


def overlaid(settings: Mapping[str, JSON], own: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return ``settings`` with the keys of ``own`` in place of theirs; a heading carries no meaning in either."""
    replaced = _flat_keys(own)
    merged: dict[str, JSON] = {}
    for key, value in settings.items():
        if key in SECTIONS and isinstance(value, Mapping):
            merged[key] = {inner: item for inner, item in value.items() if inner not in replaced}
        elif key not in replaced:
            merged[key] = value
    for key, value in own.items():
        below = merged.get(key)
        both = key in SECTIONS and isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = {**below, **value} if both else value  # type: ignore[dict-item] # both are mappings here
    return merged


def _flat_keys(settings: Mapping[str, JSON]) -> set[str]:
    found: set[str] = set()
    for key, value in settings.items():
        found |= set(value) if key in SECTIONS and isinstance(value, Mapping) else {key}
    return found


def _device(environment: Mapping[str, str]) -> str:
    """Return the device that the variables ask for, empty for the adapter's own choice."""
    device, gpu = environment.get("DEVICE", ""), environment.get("USE_GPU", "").strip().lower()
    if gpu not in {"", "0", "1", "false", "true", "no", "yes", "off", "on"}:
        raise AdapterError(f"USE_GPU: expected true or false, got {gpu!r}", hint="see PREFIX/etc/offline.env")
    if device not in {"", "auto"}:
        return device
    return "cpu" if gpu in {"0", "false", "no", "off"} else ""


def _etc(release: Path) -> Path:
    """Return the operator's folder of the prefix that a release lies in, at ``PREFIX/releases/...``."""
    return release.resolve().parent.parent / "etc"


def _without_path(settings: Mapping[str, JSON], path: Path, model: ModelEntry) -> Mapping[str, JSON]:
    written = settings.get("model_path")
    if written is not None and not f"/{written}".rstrip("/").endswith(f"/{model.path}"):
        msg = f"model {model.name!r}: {path}: model_path {written!r} is not the release's {model.path}"
        raise AdapterError(msg, hint="remove model_path; the folder is always the release's own")
    return {key: value for key, value in settings.items() if key != "model_path"}
