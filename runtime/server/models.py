"""Which models a release has and with which settings: its manifest, and its rendered configuration."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import yaml

from manifests.errors import AdapterError, UsageError
from manifests.fields import nearest_hint
from manifests.manifest import MANIFEST_NAME, ModelEntry, parse_manifest
from runtime.adapters.base import JSON, ModelConfig


def load_models(release: Path) -> list[ModelConfig]:
    """Return what to load from an installed release, in the manifest's order.

    Settings are those of the operator's own ``PREFIX/etc/<name>.yaml`` (``-`` written as ``_``), else of the release's
    ``config/<name>.yaml``, else the manifest's. One source replaces the next as a whole.

    Raises:
        AdapterError: No manifest there, or a settings file that can't be read.
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
    found = next((path for path in (_etc(release) / file, release / "config" / file) if path.is_file()), None)
    settings = read_settings(found, model=entry) if found else dict(entry.settings)
    directory = (release / entry.path).absolute()
    return ModelConfig(name=entry.name, adapter=entry.adapter, directory=directory, settings=settings)


def _etc(release: Path) -> Path:
    """Return the operator's folder of the prefix that a release lies in, at ``PREFIX/releases/...``."""
    return release.resolve().parent.parent / "etc"


def _without_path(settings: Mapping[str, JSON], path: Path, model: ModelEntry) -> Mapping[str, JSON]:
    written = settings.get("model_path")
    if written is not None and not f"/{written}".rstrip("/").endswith(f"/{model.path}"):
        msg = f"model {model.name!r}: {path}: model_path {written!r} is not the release's {model.path}"
        raise AdapterError(msg, hint="remove model_path; the folder is always the release's own")
    return {key: value for key, value in settings.items() if key != "model_path"}
