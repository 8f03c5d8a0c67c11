"""Where a host can't run a bundle's target: its models are laid out to be asked on this host's own libraries.

What that shows is less than a rehearsal: the model's files are complete, the adapter and its settings fit them, and the
answers are as recorded, with other builds of the libraries. The evidence says so in these words.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from bundler.sealing.pack import Source
from manifests.digests import BUFFER_SIZE, ContentHasher
from manifests.errors import IntegrityError
from manifests.files import disk_error
from manifests.manifest import MANIFEST_NAME, FileEntry, Manifest, manifest_digest
from manifests.medium import Medium
from manifests.pieces import ReadAt
from manifests.progress import format_size

LIBRARIES: Final = ("numpy", "safetensors", "torch", "transformers", "yaml")
"""What every adapter needs, as modules."""
_NAME_DIGITS: Final = 12  # of the manifest's digest, in the name of a release's folder


def missing_libraries() -> tuple[str, ...]:
    """Return the modules of :data:`LIBRARIES` that this Python doesn't have."""
    return tuple(name for name in LIBRARIES if importlib.util.find_spec(name) is None)


def physical_memory() -> int:
    """Return the memory of this host, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def why_unasked(
    medium: Medium, manifest: Manifest, base: Source | None, *, missing: tuple[str, ...], memory: int
) -> dict[str, str]:
    """Return model -> why it can't be asked on this host's own wheels; those that can are left out.

    Args:
        medium: Its layout was checked.
        manifest: The bundle's.
        base: Opens what a delta leaves out, None where nobody gave the base.
        missing: Modules that this host lacks.
        memory: The host's, in bytes.
    """
    if not manifest.models:
        return {}
    if missing:
        why = f"this host has no {', '.join(missing)}"
        return dict.fromkeys((model.name for model in manifest.models), why)
    if not any(entry.path.startswith("wheels/sealift-") for entry in manifest.files):
        return dict.fromkeys((model.name for model in manifest.models), "the bundle carries no wheel of Sealift")
    return dict(_reasons(medium, manifest, base, memory))


def _reasons(medium: Medium, manifest: Manifest, base: Source | None, memory: int) -> Iterator[tuple[str, str]]:
    for model in manifest.models:
        files = [entry for entry in manifest.files if entry.path.startswith(f"{model.path}/")]
        size = sum(entry.size for entry in files)
        if base is None and not all(medium.carries(entry) for entry in files):
            yield model.name, "the delta doesn't carry all of its files"
        elif 2 * size > memory:  # a 16-bit model is computed with 32 bits on a CPU
            have = format_size(memory)
            yield model.name, f"its {format_size(size)} may need twice that of memory, this host has {have}"


def lay_out(
    medium: Medium, manifest: Manifest, releases: Path, base: Source | None, unasked: Mapping[str, str]
) -> Path | None:
    """Write what asking the models needs into a folder that is named as the release will be, each file checked.

    Args:
        medium: The bundle.
        manifest: Its manifest.
        releases: The folder is made below it.
        base: Opens what a delta leaves out.
        unasked: The models that stay away.

    Returns:
        The folder; None where no model is left to be asked.

    Raises:
        IntegrityError: A file isn't what the manifest says.
        DiskError: It can't be written.
    """
    models = [model for model in manifest.models if model.name not in unasked]
    if not models:
        return None
    prefixes = (*(f"{model.path}/" for model in models), "config/", "wheels/sealift-")
    text = manifest.encode()  # what was verified, whatever the medium says by now
    folder = releases / f"{manifest.version}-{manifest_digest(text)[:_NAME_DIGITS]}"
    try:
        folder.mkdir(parents=True)
        (folder / MANIFEST_NAME).write_bytes(text)
        for entry in manifest.files:
            if entry.path.startswith(prefixes) and (medium.carries(entry) or base is not None):
                opened = medium.reader(entry) if base is None or medium.carries(entry) else base(entry)
                _write(folder / entry.path, entry, opened)
    except OSError as error:
        raise disk_error(error, f"lay out models in {folder}") from error
    return folder


def _write(path: Path, entry: FileEntry, opened: AbstractContextManager[ReadAt]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hasher, buffer, done = ContentHasher(), memoryview(bytearray(BUFFER_SIZE)), 0
    with opened as read, path.open("xb") as stream:
        while done < entry.size and (count := read(buffer[: entry.size - done], done)):
            hasher.update(buffer[:count])
            stream.write(buffer[:count])
            done += count
    if (found := hasher.digest().sha256) != entry.sha256:
        raise IntegrityError(f"{entry.path}: expected sha256 {entry.sha256}, got {found}")
