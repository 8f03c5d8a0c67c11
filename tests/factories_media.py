"""Other forms of a small bundle, made without the bundler: volumes, and deltas."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from manifests.manifest import Manifest, manifest_digest
from manifests.tarlayout import TRAILER, head_of, member_header, padded
from tests.factories import Content, Key, make_manifest, sign_slot


def cut(tar: Path, size: int, *folders: Path) -> list[Path]:
    """Cut a tar into volumes of ``size`` bytes, spread over ``folders`` in turn; return them in order."""
    data = tar.read_bytes()
    made = []
    for number, start in enumerate(range(0, len(data), size), start=1):
        folder = folders[(number - 1) % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        made.append(folder / f"{tar.name}.{number:03}")
        made[-1].write_bytes(data[start : start + size])
    return made


def delta_text(base: Manifest, carried: Sequence[int]) -> bytes:
    """Return delta.json as the format's page describes it."""
    document = {
        "_type": "urn:sealift:delta:1",
        "base": manifest_digest(base.encode()),
        "base-version": base.version,
        "carried": list(carried),
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def needed(new: Manifest, base: Manifest) -> list[int]:
    """Return the indices that a delta carries: what is of ``bootstrap/``, and contents that ``base`` lacks."""
    known = {(entry.sha256, entry.mode) for entry in base.files}
    return [
        index
        for index, entry in enumerate(new.files)
        if entry.path.startswith("bootstrap/") or (entry.sha256, entry.mode) not in known
    ]


def delta_bytes(
    manifest: Manifest, files: Mapping[str, Content], slot: bytes, text: bytes, carried: Sequence[int]
) -> bytes:
    """Return the tar of a delta, whatever ``text`` says for delta.json."""
    parts = [head_of(manifest.encode()), slot, _member("delta.json", text, 0o644)]
    for index in carried:
        entry = manifest.files[index]
        content = files[entry.path]
        parts.append(_member(entry.path, content if isinstance(content, bytes) else bytes(content), entry.mode))
    return b"".join([*parts, TRAILER])


def make_delta_bundle(
    path: Path,
    files: Mapping[str, Content],
    base: Manifest,
    *,
    key: Key,
    executable: Sequence[str] = (),
    **overrides: object,
) -> Path:
    """Write the signed delta from ``base`` to a bundle of ``files`` and return ``path``."""
    manifest = make_manifest(files, executable=executable, **overrides)
    carried = needed(manifest, base)
    slot = sign_slot(manifest.encode(), key)
    path.write_bytes(delta_bytes(manifest, files, slot, delta_text(base, carried), carried))
    return path


def _member(name: str, content: bytes, mode: int) -> bytes:
    return member_header(name, len(content), mode) + content + bytes(padded(len(content)) - len(content))
