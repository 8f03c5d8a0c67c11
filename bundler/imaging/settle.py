"""Making an installed release the same wherever and whenever it was installed; what it reads was run by the base."""

import json
import os
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Final

from bundler.imaging.layers import tree_paths
from manifests.errors import IntegrityError
from manifests.files import READ_ONLY, open_regular, read_exactly, write_atomic
from manifests.manifest import Manifest

_RELEASE: Final = re.compile(r"releases/[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
_STAMP: Final = "uv_cache.json"


def settle(root: Path, prefix: str, kit: Path, manifest: Manifest) -> str:
    """Put the verifier beside the release, and leave nothing in it that tells when or where it was installed.

    Args:
        root: The image's files.
        prefix: Where the bundle was installed, relative to ``root``.
        kit: The folder with the verifier and the trusted signers.
        manifest: The bundle's.

    Returns:
        The release's folder relative to ``root``.

    Raises:
        IntegrityError: The prefix isn't as an install leaves it.
        OSError: Something can't be read or written.
    """
    place = root / prefix
    release = _find_release(root, prefix)
    (place / "kit").mkdir()
    for name in ("allowed_signers", "runtime.pyz"):
        shutil.copyfile(kit / name, place / "kit" / name)
    for leftover in ("store", "var"):  # as in Dockerfile.offline: only later installs would need them
        if (place / leftover).exists():
            shutil.rmtree(place / leftover)
    (place / "var").mkdir()
    _drop_stamps(root, release)
    _settle_receipt(root / release, manifest)
    return release


def seconds_of(manifest: Manifest) -> int:
    """Return when a bundle was made, in seconds since 1970."""
    return int(datetime.fromisoformat(manifest.created).timestamp())


def _find_release(root: Path, prefix: str) -> str:
    """Return where the live release lies; what the base image ran may have made links, which are never followed."""
    current = root / prefix / "current"
    name = str(current.readlink()) if current.is_symlink() else ""
    release = f"{prefix}/{name}"
    parts = release.split("/")
    folders = [root.joinpath(*parts[: count + 1]) for count in range(len(parts))]
    if not _RELEASE.fullmatch(name) or any(path.is_symlink() or not path.is_dir() for path in folders):
        msg = f"/{prefix}/current: doesn't lead to a release after the install in the base image"
        raise IntegrityError(msg, hint="take a base image that you trust, and a bundle of this Sealift")
    return release


def _drop_stamps(root: Path, release: str) -> None:
    """Remove uv's notes of the time at which it saw each wheel, also from the list of what it installed."""
    stamps = [path for path in tree_paths(root, f"{release}/venv") if path.endswith(f".dist-info/{_STAMP}")]
    for stamp in stamps:
        record = (root / stamp).with_name("RECORD")
        start = f"{record.parent.name}/{_STAMP},".encode()
        lines = [line for line in _read(record).splitlines(keepends=True) if not line.startswith(start)]
        write_atomic(record, b"".join(lines), durable=False)
        (root / stamp).unlink()


def _settle_receipt(release: Path, manifest: Manifest) -> None:
    """Give the receipt the bundle's own time, and of each file what an engine keeps: its size and its time."""
    receipt = release / "receipt.json"
    try:
        document = json.loads(_read(receipt))
        found = {name: release / name for name in document["stats"] if os.path.lexists(release / name)}
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{receipt}: not JSON of a receipt: written by another Sealift") from None
    # Engines choose the inodes of what they unpack.
    time = seconds_of(manifest) * 10**9
    stats = {name: [path.lstat().st_size, time, 0] for name, path in found.items()}
    document |= {"installed": manifest.created, "stats": stats}
    text = json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n"
    write_atomic(receipt, text.encode("ascii"), mode=READ_ONLY, durable=False)


def _read(path: Path) -> bytes:
    with open_regular(path) as descriptor:
        return read_exactly(descriptor, os.fstat(descriptor).st_size, 0)
