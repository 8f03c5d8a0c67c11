"""Attacks on contents, on the unpacked form of a bundle, and by a bundle that was made for another host."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from manifests.digests import CHUNK_SIZE
from manifests.manifest import FileEntry, Manifest, Target
from tests.factories import make_manifest, sign_slot, write_bundle
from tests.hostile.lab import FILES, WHEEL, Attack, Lab, Outcome, Stage

_BIG: Final = "models/tiny/model.safetensors"
_ONE: Final = "models/tiny/one.bin"
_TWO: Final = "models/tiny/two.bin"


def _content(name: str, did: str, words: str, build: Callable[[Lab], Path]) -> Attack:
    return Attack(name=name, did=did, build=build, stage=Stage.CONTENT, words=words)


def _flipped(path: str, where: int) -> Callable[[Lab], Path]:
    def build(lab: Lab) -> Path:
        position = lab.member(path).offset + where
        return lab.spliced(position, position + 1, bytes([lab.good[position] ^ 1]))

    return build


def _swapped(lab: Lab) -> Path:
    one, two = lab.member(_ONE), lab.member(_TWO)
    size = one.entry.size
    data = lab.good
    swapped = data[: one.offset] + data[two.offset : two.offset + size] + data[one.offset + size : two.offset]
    return lab.write(swapped + data[one.offset : one.offset + size] + data[two.offset + size :])


def _from_another(lab: Lab) -> Path:
    """Take a member with the same path and size out of another bundle by the same signer."""
    member = lab.member(WHEEL)
    other = b"really another one, " * 60
    assert len(other) == member.entry.size
    return lab.spliced(member.offset, member.offset + len(other), other)


def _lying_chunk(lab: Lab) -> Path:
    size = CHUNK_SIZE + 5
    manifest = make_manifest(
        {_BIG: size, "bootstrap/runtime.pyz": FILES["bootstrap/runtime.pyz"]}, target=lab.manifest.target
    )
    files = tuple(_lies(entry) for entry in manifest.files)
    return _signed(lab, replace(manifest, files=files), size)


def _lies(entry: FileEntry) -> FileEntry:
    return replace(entry, chunks=(entry.chunks[0], "0" * 64)) if entry.chunks else entry


def _signed(lab: Lab, manifest: Manifest, size: int) -> Path:
    path = lab.folder / "demo.bundle.tar"
    contents = FILES | {_BIG: size}
    write_bundle(path, manifest, contents, sign_slot(manifest.encode(), lab.key))
    return path


_SAME: Final = "expected sha256 "

CONTENTS: Final = (
    _content("content-first-bit", "flipped the first bit of a wheel", f"{WHEEL}: {_SAME}", _flipped(WHEEL, 0)),
    _content("content-last-bit", "flipped a bit of a wheel's last byte", f"{WHEEL}: {_SAME}", _flipped(WHEEL, 1199)),
    _content("content-model", "flipped a bit of the weights", f"{_BIG}: {_SAME}", _flipped(_BIG, 1000)),
    _content(
        "content-script",
        "flipped a bit of install.sh",
        f"bootstrap/install.sh: {_SAME}",
        _flipped("bootstrap/install.sh", 3),
    ),
    _content("content-swapped", "swapped two contents of one size", f"{_ONE}: {_SAME}", _swapped),
    _content("content-mixed", "took a file out of another signed bundle", f"{WHEEL}: {_SAME}", _from_another),
    _content(
        "content-chunk-lies", "signed a chunk that the file hasn't", f"{_BIG} chunk 1: {_SAME}{'0' * 64}", _lying_chunk
    ),
    Attack(
        name="content-verifier",
        did="changed the verifier that the bundle carries",
        build=_flipped("bootstrap/runtime.pyz", 5000),
        stage=Stage.CONTENT,
        words=f"bootstrap/runtime.pyz: {_SAME}",
    ),
)


def _folder(
    name: str, did: str, words: str, spoil: Callable[[Path], object], *, stage: Stage = Stage.LAYOUT, code: int = 5
) -> Attack:
    def build(lab: Lab) -> Path:
        folder = lab.unpacked()
        spoil(folder)
        return folder

    return Attack(name=name, did=did, build=build, stage=stage, words=words, code=code)


def _extra(path: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"import os\n")

    return spoil


def _linked(path: str, target: str) -> Callable[[Path], object]:
    """Replace a file or folder by a link to a copy of it outside."""

    def spoil(folder: Path) -> None:
        outside = folder.parent / target
        shutil.move(folder / path, outside)
        (folder / path).symlink_to(outside)

    return spoil


def _fifo(path: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    return spoil


def _deep(folder: Path) -> None:
    current = os.open(folder, os.O_RDONLY)
    for _ in range(150):
        os.mkdir("d" * 9, dir_fd=current)
        below = os.open("d" * 9, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)


def _folder_for_file(folder: Path) -> None:
    (folder / WHEEL).unlink()
    (folder / WHEEL).mkdir()


def _not_utf8(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/docs/\xff\xfe")).write_bytes(b"")


_NOT_LISTED: Final = "not in the manifest"

FOLDERS: Final = (
    _folder("folder-extra-file", "added a file", f"docs/more.md: {_NOT_LISTED}", _extra("docs/more.md")),
    _folder(
        "folder-extra-pth",
        "added a file that Python runs at start",
        f"wheels/evil.pth: {_NOT_LISTED}",
        _extra("wheels/evil.pth"),
    ),
    _folder(
        "folder-extra-git", "added a repository with hooks", f".git/hooks/x: {_NOT_LISTED}", _extra(".git/hooks/x")
    ),
    _folder(
        "folder-extra-case",
        "added a file that differs in case",
        f"Manifest.json: {_NOT_LISTED}",
        _extra("Manifest.json"),
    ),
    _folder(
        "folder-extra-newline",
        "added a file with a newline in its name",
        rf"'docs/a\nb': {_NOT_LISTED}",
        _extra("docs/a\nb"),
    ),
    _folder(
        "folder-extra-bytes", "added a file whose name isn't text", rf"'docs/\udcff\udcfe': {_NOT_LISTED}", _not_utf8
    ),
    _folder(
        "folder-extra-empty-folder",
        "added an empty folder",
        f"models/more/: {_NOT_LISTED}",
        lambda folder: (folder / "models/more").mkdir(),
    ),
    _folder(
        "folder-extra-link",
        "added a link to /etc",
        f"docs/etc: {_NOT_LISTED}",
        lambda folder: (folder / "docs/etc").symlink_to("/etc"),
    ),
    _folder(
        "folder-extra-socket-fifo",
        "added a FIFO",
        f"docs/fifo: {_NOT_LISTED}",
        lambda folder: os.mkfifo(folder / "docs/fifo"),
    ),
    _folder("folder-deep", "nested folders past the longest path", _NOT_LISTED, _deep),
    _folder("folder-missing", "removed a file", f"{WHEEL}: missing", lambda folder: (folder / WHEEL).unlink()),
    _folder(
        "folder-no-signature",
        "removed the signature",
        "manifest.json.sig: missing",
        lambda folder: (folder / "manifest.json.sig").unlink(),
        stage=Stage.OPEN,
    ),
    _folder(
        "folder-no-manifest",
        "removed the manifest",
        "it has no manifest.json",
        lambda folder: (folder / "manifest.json").unlink(),
        stage=Stage.OPEN,
    ),
    _folder(
        "folder-short",
        "cut a file",
        f"{WHEEL}: 10 bytes, expected 1200",
        lambda folder: os.truncate(folder / WHEEL, 10),
    ),
    _folder(
        "folder-long",
        "lengthened a file",
        f"{WHEEL}: 1201 bytes, expected 1200",
        lambda folder: os.truncate(folder / WHEEL, 1201),
    ),
    _folder("folder-file-is-folder", "replaced a file by a folder", f"{WHEEL}: missing", _folder_for_file),
    _folder("folder-file-is-link", "replaced a file by a link to it", f"{WHEEL}: ", _linked(WHEEL, "wheel")),
    _folder(
        "folder-parent-is-link", "replaced a folder by a link to it", f"{_BIG}: missing", _linked("models/tiny", "tiny")
    ),
    _folder("folder-file-is-fifo", "replaced a file by a FIFO", f"{WHEEL}: 0 bytes, expected 1200", _fifo(WHEEL)),
    _folder(
        "folder-empty-is-fifo",
        "replaced an empty file by a FIFO",
        "is not a regular file",
        _fifo("config/empty.yaml"),
        stage=Stage.CONTENT,
    ),
    _folder(
        "folder-manifest-is-link",
        "made the manifest a link",
        "is a link or not a regular file",
        _linked("manifest.json", "m"),
        stage=Stage.OPEN,
    ),
    _folder(
        "folder-signature-is-link",
        "made the signature a link",
        "is a link or not a regular file",
        _linked("manifest.json.sig", "s"),
        stage=Stage.OPEN,
    ),
    _folder(
        "folder-manifest-is-fifo",
        "made the manifest a FIFO",
        "is not a regular file",
        _fifo("manifest.json"),
        stage=Stage.OPEN,
    ),
    _folder(
        "folder-manifest-1-gb",
        "made the manifest 1 GB",
        "1000000000 bytes, at most 15999999 are allowed",
        lambda folder: os.truncate(folder / "manifest.json", 1_000_000_000),
        stage=Stage.OPEN,
    ),
    _folder(
        "folder-signature-large",
        "made the signature larger than its slot",
        "16385 bytes, at most 16384 are allowed",
        lambda folder: os.truncate(folder / "manifest.json.sig", 16385),
        stage=Stage.OPEN,
    ),
    _folder(
        "folder-content",
        "changed a file, same size",
        f"{WHEEL}: {_SAME}",
        lambda folder: (folder / WHEEL).write_bytes(b"x" * 1200),
        stage=Stage.CONTENT,
    ),
)


def _for_target(target: Target) -> Callable[[Lab], Path]:
    def build(lab: Lab) -> Path:
        manifest = make_manifest(FILES, executable=["bootstrap/install.sh"], target=target)
        path = lab.folder / "demo.bundle.tar"
        write_bundle(path, manifest, FILES, sign_slot(manifest.encode(), lab.key))
        return path

    return build


def _elsewhere(name: str, did: str, words: str, build: Callable[[Lab], Path], rehearsal: str) -> Attack:
    """Return a whole and trusted bundle for another host: all may read it, none may install it."""
    refused = Outcome(code=6, words=words)
    others = {"install": refused, "preflight": refused, "verify": Outcome(code=0, words="good: demo-1.0.0-")}
    return Attack(
        name=name,
        did=did,
        build=build,
        stage=Stage.CONTENT,
        words=words,
        others=others | {"rehearse": Outcome(code=0, words=rehearsal)},
    )


TARGETS: Final = (
    _elsewhere(
        "target-other-machine",
        "sent the bundle of another site's machines",
        "needed ",
        _for_target(Target(platform="aarch64-apple-darwin", python="3.11", accelerator="cpu")),
        "NOT rehearsed: the bundle is for aarch64-apple-darwin",
    ),
    _elsewhere(
        "target-other-python",
        "sent the bundle for another Python",
        "needed CPython 3.99",
        _for_target(Target(platform="x86_64-manylinux_2_28", python="3.99", accelerator="cpu")),
        "NOT rehearsed: the bundle is for Python 3.99",
    ),
)

CONTENT_ATTACKS: Final[tuple[Attack, ...]] = (*CONTENTS, *FOLDERS, *TARGETS)
