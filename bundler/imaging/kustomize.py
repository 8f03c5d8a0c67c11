"""A Kustomize base for an image: no rights, no way out, probes, and as an option the models from a volume."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bundler.contents.render import render_template
from bundler.imaging.image import Image
from bundler.imaging.recipe import load_recipe
from manifests.errors import UsageError
from manifests.files import disk_error, write_atomic
from manifests.manifest import Manifest

_BASE: Final = ("kustomization.yaml", "deployment.yaml", "service.yaml", "networkpolicy.yaml")
_MODELS: Final = ("models-volume/kustomization.yaml", "models-volume/patch.yaml")
_LONGEST: Final = 50  # Kubernetes takes 63, and pods' names are longer


def check_kustomize_place(folder: Path) -> None:
    """Require a folder that a base can be written into.

    Raises:
        UsageError: Something is there already, which an operator may have changed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already", hint="give another --kustomize, or remove it first")


def write_kustomize(folder: Path, image: Image, prefix: str) -> tuple[Path, ...]:
    """Write the base for an image.

    Args:
        folder: Where; made if it is missing.
        image: As it was made; it is named by its digest.
        prefix: Where the release lies in it.

    Returns:
        The files.

    Raises:
        DiskError: They can't be written.
    """
    files = render_kustomize(image, prefix)
    try:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, f"write {folder}") from error
    for name, data in files.items():
        write_atomic(folder / name, data)
    return tuple(folder / name for name in files)


def render_kustomize(image: Image, prefix: str) -> dict[str, bytes]:
    """Return the base's files: path -> content. Without models there is no component for their volume."""
    manifest, recipe = image.manifest, load_recipe()
    release = f"releases/{manifest.version}-{image.manifest_digest[:12]}"
    context = {
        "digest": image.digest,
        "has_models": bool(manifest.models),
        "limits": _limits(manifest),
        "manifest_digest": image.manifest_digest,
        "models": f"{release}/models",
        "name": resource_name(manifest.name),
        "port": recipe.port,
        "prefix": prefix,
        "repository": repository_of(image.tag),
        "requests": _requests(manifest),
        "stem": manifest.stem,
        "user": recipe.user,
        "version": manifest.version.replace("+", "_"),
    }
    names = _BASE + (_MODELS if manifest.models else ())
    return {name: render_template(f"kustomize/{name}.j2", context) for name in names}


def resource_name(name: str) -> str:
    """Return a bundle's name as Kubernetes takes it for every kind of object: a DNS label that begins with a letter."""
    label = re.sub("[^a-z0-9]+", "-", name)[:_LONGEST].strip("-")
    return label if label[:1].isalpha() else f"sealift-{label}".strip("-")


def repository_of(tag: str) -> str:
    """Return an image's name without its tag; a port in it stays."""
    head, colon, last = tag.rpartition(":")
    return head if colon and "/" not in last else tag


def _requests(manifest: Manifest) -> Mapping[str, int]:
    """Return what the spec's ``[requires]`` asks for at least; memory in bytes."""
    values = {"cpu": manifest.minimum.cpu_cores, "memory": manifest.minimum.memory}
    return {key: value for key, value in values.items() if value}


def _limits(manifest: Manifest) -> Mapping[str, int]:
    """Return the most that it gets: the recommended memory, where that is named, and a GPU for CUDA."""
    memory = max(manifest.minimum.memory, manifest.recommended.memory) if manifest.recommended.memory else 0
    values = {"memory": memory, "nvidia.com/gpu": int(manifest.target.accelerator.startswith("cuda"))}
    return {key: value for key, value in values.items() if value}
