"""Small real artifacts: keys, signature slots, manifests and bundles, made without the bundler's packer."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from manifests.digests import ContentDigest, ContentHasher
from manifests.manifest import (
    KINDS,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    FileEntry,
    Manifest,
    Target,
    bundle_order,
    manifest_digest,
)
from manifests.sshsig import BUNDLE_NAMESPACE, PublicKey, armored_signature, parse_public_key, signed_data
from manifests.tarlayout import SIGNATURE_SLOT, TRAILER, member_header, tar_layout
from manifests.trust import TrustRoot, parse_allowed_signers

NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TARGET: Final = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
KIND_OF: Final = {folder: kind for kind, folder in KINDS.items()}

Content = bytes | int
"""The bytes of a file, or how many zero bytes it has (written as a sparse file)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An Ed25519 key with its three files: ``path`` (private, 0600), ``path.pub``, ``path.allowed_signers``."""

    path: Path
    identity: str
    private: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """The public key as the product sees it."""
        kind, text = self.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode().split()
        return parse_public_key(kind, text)

    @property
    def allowed_signers(self) -> Path:
        """The trust file that lists this key alone."""
        return self.path.with_name(f"{self.path.name}.allowed_signers")

    @property
    def trust(self) -> TrustRoot:
        """The trust file, parsed."""
        return parse_allowed_signers(self.allowed_signers.read_text(), where="allowed_signers")


def make_key(path: Path, identity: str = "release@example.com", *, seed: bytes | None = None) -> Key:
    """Write the three files of a key; ``seed`` (32 bytes) makes it the same key each time."""
    private = Ed25519PrivateKey.from_private_bytes(seed) if seed else Ed25519PrivateKey.generate()
    key = Key(path=path, identity=identity, private=private)
    path.touch(mode=0o600)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_name(f"{path.name}.pub").write_text(f"{key.public.line} {identity}\n")
    key.allowed_signers.write_text(f'{identity} namespaces="{BUNDLE_NAMESPACE}" {key.public.line}\n')
    return key


def sign_slot(manifest: bytes, *keys: Key, namespace: str = BUNDLE_NAMESPACE) -> bytes:
    """Return a signature slot of 16 KiB with a block by each key."""
    signed = signed_data(manifest, namespace)
    blocks = [armored_signature(key.public, key.private.sign(signed), namespace) for key in keys]
    return b"".join(blocks).ljust(SIGNATURE_SLOT, b"\n")


def make_entry(path: str, content: Content, *, executable: bool = False, origin: str = "") -> FileEntry:
    """Return the entry of a file, its kind taken from the top-level folder."""
    digest = _digest(content)
    return FileEntry(
        path=path,
        size=digest.size,
        sha256=digest.sha256,
        mode=0o755 if executable else 0o644,
        kind=KIND_OF[path.split("/", 1)[0]],
        origin=origin,
        chunks=digest.chunks,
    )


def make_manifest(files: Mapping[str, Content], *, executable: Collection[str] = (), **overrides: object) -> Manifest:
    """Return a manifest of ``files`` in bundle order; ``overrides`` replace fields of :class:`Manifest`."""
    entries = [make_entry(path, content, executable=path in executable) for path, content in files.items()]
    manifest = Manifest(
        name="demo",
        version="1.0.0",
        created="2026-01-02T03:04:05Z",
        sequence=1767323045,
        target=TARGET,
        files=tuple(sorted(entries, key=bundle_order)),
    )
    return replace(manifest, **overrides)  # type: ignore[arg-type] # each test gives the field's own type


def make_release_folder(releases: Path, manifest: Manifest) -> Path:
    """Make a release's folder of which nothing but the manifest is there; return it."""
    data = manifest.encode()
    folder = releases / f"{manifest.version}-{manifest_digest(data)[:12]}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(data)
    return folder


def make_bundle(
    path: Path,
    files: Mapping[str, Content],
    *,
    key: Key | Collection[Key],
    executable: Collection[str] = (),
    **overrides: object,
) -> Path:
    """Write a signed bundle and return where.

    Args:
        path: The tar, or a folder in which it gets the name ``NAME-VERSION-TARGET.bundle.tar``.
        files: Path in the bundle to content.
        key: The signer, or several; an empty collection leaves the bundle unsigned.
        executable: Which paths get mode 0755.
        overrides: Fields of :class:`Manifest`.
    """
    manifest = make_manifest(files, executable=executable, **overrides)
    tar = path / f"{manifest.stem}.bundle.tar" if path.is_dir() else path
    keys = [key] if isinstance(key, Key) else list(key)
    write_bundle(tar, manifest, files, sign_slot(manifest.encode(), *keys))
    return tar


def write_bundle(tar: Path, manifest: Manifest, files: Mapping[str, Content], slot: bytes) -> None:
    """Write a tar from its parts; zeros become holes."""
    layout = tar_layout(manifest.encode(), manifest.files)
    with tar.open("wb") as stream:
        stream.write(layout.head + slot)
        for member in layout.members:
            stream.seek(member.header_offset)
            stream.write(member_header(member.entry.path, member.entry.size, member.entry.mode))
            content = files[member.entry.path]
            stream.write(content if isinstance(content, bytes) else b"")
        stream.truncate(layout.trailer_offset + len(TRAILER))


def unpack_bundle(tar: Path, folder: Path) -> Path:
    """Unpack a bundle of ours into ``folder`` as ``tar -xf`` would; for trusted test bundles only."""
    import tarfile  # noqa: PLC0415 # only here, and never for a bundle outside a test

    with tarfile.open(tar) as archive:
        for member in archive:
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None, f"{member.name} is not a file"
            with target.open("wb") as sink:
                while data := source.read(1 << 20):
                    sink.write(data)
            target.chmod(member.mode)
    return folder


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` with its content, to compare a state before with one after.

    The audit log is left out: what is refused is told there too.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "var/audit.jsonl"}


def is_root() -> bool:
    """Whether the tests run as root, whom permissions don't stop."""
    return os.geteuid() == 0


def _digest(content: Content) -> ContentDigest:
    hasher = ContentHasher()
    if isinstance(content, bytes):
        hasher.update(content)
    else:
        block = bytes(1 << 20)
        for start in range(0, content, len(block)):
            hasher.update(memoryview(block)[: content - start])
    return hasher.digest()


SMALL_FILES: Final[dict[str, bytes]] = {
    "bootstrap/install.sh": b"#!/bin/sh\nexit 0\n",
    "wheels/demo-1.0.0-py3-none-any.whl": b"not really a wheel, " * 60,
    "models/tiny/config.json": b"{}\n",
    "models/tiny/model.safetensors": bytes(range(256)) * 9,
    "app/\ud55c\uae00/\ubb38\uc11c.txt": "\uc548\ub155\n".encode(),
    "config/empty.yaml": b"",
    "docs/" + "long/" * 25 + "INSTALL.md": b"# Install\n",
}
"""A few files of every kind: executable, empty, Korean, and with a path longer than 100 bytes."""

__all__ = [
    "KIND_OF",
    "MANIFEST_NAME",
    "NOW",
    "SIGNATURE_NAME",
    "SMALL_FILES",
    "TARGET",
    "Content",
    "Key",
    "is_root",
    "make_bundle",
    "make_entry",
    "make_key",
    "make_manifest",
    "sign_slot",
    "tree_of",
    "unpack_bundle",
    "write_bundle",
]
