"""Base images of a test's own: OCI layouts of any members, hostile if asked, and a stand-in for an install."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundler.imaging.inside import Inside
from bundler.imaging.layout import CONFIG_TYPE, GZIP_LAYER_TYPE, INDEX_TYPE, LAYER_TYPE, MANIFEST_TYPE, platform_of
from manifests.manifest import parse_manifest
from manifests.medium import open_medium
from tests.factories import unpack_bundle
from tests.factories_closed import HOST_TARGET

SYSTEM, ARCHITECTURE = platform_of(HOST_TARGET)
SHELL: Final = b"#!/bin/sh\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of a layer: a file by its content, a folder without one, or a link to ``link``."""

    name: str
    content: bytes | None = None
    link: str = ""
    hard: bool = False
    mode: int = 0o755

    def add_to(self, archive: tarfile.TarFile) -> None:
        """Add it."""
        info = tarfile.TarInfo(self.name)
        info.mode = self.mode
        if self.link:
            info.type, info.linkname = tarfile.LNKTYPE if self.hard else tarfile.SYMTYPE, self.link
        elif self.content is None:
            info.type = tarfile.DIRTYPE
        else:
            info.size = len(self.content)
        archive.addfile(info, io.BytesIO(self.content) if self.content is not None else None)


SYSTEM_LAYER: Final = (
    Member(name="bin", link="usr/bin"),
    Member(name="usr/bin"),
    Member(name="usr/bin/sh", content=SHELL),
    Member(name="opt"),
)


def layer_tar(members: Iterable[Member]) -> bytes:
    """Return a layer's tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            member.add_to(archive)
    return buffer.getvalue()


def put_blob(folder: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Write a blob into a layout; return its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def make_layout(
    folder: Path,
    *layers: Iterable[Member],
    packed: bool = True,
    config: Mapping[str, Any] | None = None,
    nested: bool = False,
    **overrides: Any,  # noqa: ANN401 # keys of the config document
) -> Path:
    """Write a layout with one image.

    Args:
        folder: Where.
        layers: The members of each; without any, :data:`SYSTEM_LAYER`.
        packed: Whether layers are compressed by gzip.
        config: The ``config`` of the config document.
        nested: Whether index.json names an index of several platforms.
        overrides: More keys of the config document, or other values.
    """
    tars = [layer_tar(members) for members in layers or (SYSTEM_LAYER,)]
    kind = GZIP_LAYER_TYPE if packed else LAYER_TYPE
    written = [put_blob(folder, gzip.compress(tar, 1, mtime=0) if packed else tar, kind) for tar in tars]
    document = {
        "architecture": ARCHITECTURE,
        "os": SYSTEM,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
        **overrides,
    }
    manifest = {"schemaVersion": 2, "config": put_blob(folder, json.dumps(document).encode(), CONFIG_TYPE)}
    entry = put_blob(folder, json.dumps({**manifest, "layers": written}).encode(), MANIFEST_TYPE)
    if nested:
        several = [
            {**entry, "platform": {"os": SYSTEM, "architecture": ARCHITECTURE}},
            {**entry, "platform": {"os": "unknown", "architecture": "unknown"}},
        ]
        entry = put_blob(folder, json.dumps({"manifests": several}).encode(), INDEX_TYPE)
    write_index(folder, entry)
    return folder


def write_index(folder: Path, *entries: Mapping[str, Any]) -> None:
    """Write index.json and oci-layout."""
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(entries)}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


class PretendInstall:
    """Lays a bundle out as ``runtime install`` does, with new times and inodes each time; ``change`` comes last."""

    def __init__(self, change: Mapping[str, bytes | None] | None = None) -> None:
        self.tasks: list[Inside] = []
        self._change = change or {}

    def __call__(self, root: Path, task: Inside) -> None:
        self.tasks.append(task)
        place = root / task.prefix[1:]
        release = place / "releases" / f"1.0.0-{task.digest[:12]}"
        release.mkdir(parents=True)
        unpack_bundle(task.bundle, release)
        with open_medium(task.bundle) as medium:
            manifest = parse_manifest(medium.manifest_bytes)
        for name in ("store/sha256", "var/cache", "etc"):
            (place / name).mkdir(parents=True)
        info = release / "venv/lib/six-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "RECORD").write_text("six.py,sha256=x,1\nsix-1.0.dist-info/uv_cache.json,sha256=y,2\n")
        (info / "uv_cache.json").write_text(f"{info.stat().st_mtime_ns} {os.getpid()} {len(self.tasks)}")
        (release / "venv" / "bin").mkdir()
        (release / "venv" / "bin" / "python").symlink_to("/usr/bin/python3")
        known = ["venv/bin/python", *(f"venv/lib/six-1.0.dist-info/{name}" for name in ("RECORD", "uv_cache.json"))]
        known += [entry.path for entry in manifest.files]
        found = {name: (release / name).lstat() for name in known}
        stats = {name: [status.st_size, status.st_mtime_ns, status.st_ino] for name, status in found.items()}
        receipt = {
            "digest": task.digest,
            "installed": "2030-01-01T00:00:00Z",
            "stats": stats,
            "python": "/p",
            "signers": [],
        }
        (release / "receipt.json").write_text(json.dumps(receipt))
        (place / "current").symlink_to(f"releases/{release.name}")
        for name, content in self._change.items():
            if content is None:
                (release / name).unlink()
            else:
                (release / name).write_bytes(content)
