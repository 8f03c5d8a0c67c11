"""What a model's files are, in one digest: the same files give the same one, wherever they lie."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from manifests.errors import AdapterError, IntegrityError
from manifests.manifest import MANIFEST_NAME, parse_manifest


def fingerprint(directory: Path) -> str:
    """Return the SHA-256, in hex, over the names and SHA-256 of all files of a model's folder.

    In a release (``RELEASE/models/NAME``) the signed manifest has them, if every file has the size that stands there;
    elsewhere every byte is read.

    Raises:
        AdapterError: A file can't be read.
    """
    try:
        sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in _files(directory)}
        digests = _from_manifest(directory, sizes) or _from_bytes(directory, sizes)
    except OSError as error:
        raise AdapterError(f"{error.filename}: can't be read: {error.strerror}") from error
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _files(directory: Path) -> Iterable[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def _from_manifest(directory: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the digests that the release's manifest lists; none where it has no such model or other files."""
    release = directory.parent.parent
    try:
        manifest = parse_manifest((release / MANIFEST_NAME).read_bytes())
    except (OSError, IntegrityError):
        return {}
    prefix = f"{directory.relative_to(release).as_posix()}/"
    listed = {entry.path.removeprefix(prefix): entry for entry in manifest.files if entry.path.startswith(prefix)}
    if {name: entry.size for name, entry in listed.items()} != sizes:
        return {}
    return {name: entry.sha256 for name, entry in listed.items()}


def _from_bytes(directory: Path, names: Iterable[str]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for name in names:
        with (directory / name).open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
