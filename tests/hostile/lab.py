"""What an attack is, and the workshop where its bundle is made: keys, a good bundle, and ways to spoil it."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from bundler.selfpack import runtime_pyz
from manifests.manifest import Manifest
from manifests.sshsig import BUNDLE_NAMESPACE
from manifests.tarlayout import BLOCK, SIGNATURE_SLOT, TRAILER, Member, TarLayout, head_of, tar_layout
from tests.factories import SMALL_FILES, Key, make_bundle, make_manifest, sign_slot, unpack_bundle
from tests.factories_closed import HOST_TARGET

TWIN_SIZE: Final = 700
KOREAN: Final = "app/\ud55c\uae00/\ubb38\uc11c.txt"
WHEEL: Final = "wheels/demo-1.0.0-py3-none-any.whl"
FILES: Final[dict[str, bytes]] = SMALL_FILES | {
    "bootstrap/runtime.pyz": runtime_pyz(),
    "models/tiny/one.bin": b"1" * TWIN_SIZE,
    "models/tiny/two.bin": b"2" * TWIN_SIZE,
}
MANIFEST: Final = make_manifest(FILES, executable=["bootstrap/install.sh"], target=HOST_TARGET)


class Stage(enum.Enum):
    """The check that has to refuse, in the order of docs/reference/bundle-format.md, section 7."""

    OPEN = enum.auto()
    SIGNATURE = enum.auto()
    MANIFEST = enum.auto()
    LAYOUT = enum.auto()
    CONTENT = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ends, and words that it must have said."""

    code: int
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """What the attacker delivers, and how the operator looks at it: trust file, options of verify and install."""

    path: Path
    trust: Path
    options: tuple[str | Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One row of the corpus.

    Args:
        name: Its name in the threat model.
        did: What the attacker did.
        build: Makes the bundle.
        stage: Which check refuses it, so which commands do.
        code: How those commands end.
        words: What they say.
        others: Commands that end otherwise than the stage says.
    """

    name: str
    did: str
    build: Callable[["Lab"], Hostile | Path]
    stage: Stage
    words: str
    code: int = 5
    others: Mapping[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True)
class Lab:
    """One attacker's table. ``folder`` is the medium, ``key`` is trusted, ``stranger`` is not."""

    folder: Path
    key: Key
    stranger: Key

    @cached_property
    def good(self) -> bytes:
        """The bytes of a bundle that nobody tampered with."""
        path = self.folder / "good"
        make_bundle(path, FILES, key=self.key, executable=["bootstrap/install.sh"], target=HOST_TARGET)
        data = path.read_bytes()
        path.unlink()
        return data

    @property
    def manifest(self) -> Manifest:
        """The good bundle's manifest."""
        return MANIFEST

    @property
    def layout(self) -> TarLayout:
        """The good bundle's layout."""
        return tar_layout(MANIFEST.encode(), MANIFEST.files)

    def member(self, path: str) -> Member:
        """Return where a file lies in the good bundle."""
        return next(member for member in self.layout.members if member.entry.path == path)

    def write(self, data: bytes) -> Path:
        """Put a tar onto the medium."""
        path = self.folder / "demo.bundle.tar"
        path.write_bytes(data)
        return path

    def spliced(self, start: int, end: int, data: bytes) -> Path:
        """Put the good bundle onto the medium, with other bytes from ``start`` to ``end``."""
        return self.write(self.good[:start] + data + self.good[end:])

    def signed(self, manifest: bytes, *, namespace: str = BUNDLE_NAMESPACE) -> Path:
        """Put a bundle of nothing onto the medium, with these bytes for a manifest and a good signature over them."""
        return self.write(head_of(manifest) + sign_slot(manifest, self.key, namespace=namespace) + TRAILER)

    def slotted(self, slot: bytes) -> Path:
        """Put the good bundle onto the medium, with another signature slot."""
        assert len(slot) <= SIGNATURE_SLOT
        start = self.layout.signature_offset
        return self.spliced(start, start + SIGNATURE_SLOT, slot.ljust(SIGNATURE_SLOT, b"\n"))

    def unpacked(self) -> Path:
        """Put the good bundle onto the medium as a folder."""
        folder = self.folder / "unpacked"
        folder.mkdir()
        tar = self.write(self.good)
        unpack_bundle(tar, folder)
        tar.unlink()
        return folder

    def trust_file(self, text: str) -> Path:
        """Write a trust file of the operator's, beside the medium."""
        path = self.folder.parent / "operator" / "allowed_signers"
        path.write_text(text)
        return path


def padding(data: bytes) -> bytes:
    """Return the zeros that fill the last block of ``data``."""
    return bytes(-len(data) % BLOCK)
