"""Model folders: what must be in one before a library is let near it. A wrong path never becomes a hub id."""

import json
from collections.abc import Mapping
from pathlib import Path

from manifests.errors import AdapterError
from runtime.adapters.base import JSON, ModelConfig


def open_folder(config: ModelConfig) -> tuple[Path, Mapping[str, JSON]]:
    """Return a model's absolute folder and its parsed config.json.

    Raises:
        AdapterError: No such folder, no config.json in it, or a config that asks for code from elsewhere.
    """
    directory = config.directory.expanduser().absolute()
    if not directory.is_dir():
        msg = f"model {config.name!r}: {config.directory} is not a folder"
        raise AdapterError(msg, hint="a model is always a folder on this host; hub names are never looked up")
    document = read_json(directory / "config.json", model=config.name)
    if not isinstance(document, Mapping):
        raise AdapterError(f"model {config.name!r}: {directory / 'config.json'}: expected an object")
    _refuse_remote_code(document, config.name, directory)
    return directory, document


def read_json(path: Path, *, model: str) -> JSON:
    """Read one JSON file of a model's folder.

    Raises:
        AdapterError: It isn't there or isn't JSON.
    """
    try:
        document: JSON = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"model {model!r}: {path.parent} has no {path.name}"
        raise AdapterError(msg, hint="the folder isn't a complete model; runtime verify names missing files") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"model {model!r}: {path}: can't be read as JSON: {error}") from error
    return document


def optional_json(path: Path, *, model: str) -> Mapping[str, JSON]:
    """Read one JSON object that may be missing; then it is empty."""
    document = read_json(path, model=model) if path.exists() else {}
    if not isinstance(document, Mapping):
        raise AdapterError(f"model {model!r}: {path}: expected an object")
    return document


def integer(document: Mapping[str, JSON], key: str) -> int | None:
    """Return an integer of a model's JSON file, or None where it is missing or of another type."""
    value = document.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def architecture(document: Mapping[str, JSON]) -> str:
    """Return what a config.json calls its architecture."""
    names = document.get("architectures")
    first = names[0] if isinstance(names, list) and names else document.get("model_type")
    return str(first or "unknown")


def _refuse_remote_code(document: Mapping[str, JSON], model: str, directory: Path) -> None:
    auto_map = document.get("auto_map")
    targets = [str(value) for value in auto_map.values()] if isinstance(auto_map, Mapping) else []
    remote = next((target for target in targets if "--" in target), None)
    if remote:
        msg = f"model {model!r}: {directory / 'config.json'}: auto_map points at another repository: {remote!r}"
        raise AdapterError(msg, hint="remove auto_map if transformers has this architecture")
