"""Writing volumes: straight to their places, on one disk or several, and under their names only when all is well."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.sealing.pack import file_source, replace_slot, signature_slot, write_bundle
from bundler.sealing.volumes import FAT32_SIZE, INDEX_ROOM, KIT_ROOM, Delivery, parse_volume_size
from manifests.digests import CHUNK_SIZE
from manifests.errors import DiskError, IntegrityError, UsageError
from manifests.manifest import FileEntry, manifest_digest
from manifests.pieces import Silent
from manifests.tarlayout import TarLayout, head_of, tar_layout
from tests.factories import SMALL_FILES, Content, Key, is_root, make_bundle, make_manifest, sign_slot
from tests.factories_closed import program

MODEL = "models/tiny/model.safetensors"
FILES: dict[str, bytes] = {**SMALL_FILES, MODEL: bytes(range(256)) * 400}
MANIFEST = make_manifest(FILES)
DATA = MANIFEST.encode()
NAME = "demo.bundle.tar"
HEAD = len(head_of(DATA)) + 16 * 1024


def find(entry: FileEntry) -> bytes:
    return FILES[entry.path]


def pack(delivery: Delivery, slot: bytes = signature_slot()) -> TarLayout:
    return write_bundle(delivery.place, DATA, MANIFEST.files, file_source(find), Silent(), slot=slot)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, key: Key) -> bytes:
    """The same bundle by the format's second writer."""
    return make_bundle(tmp_path_factory.mktemp("whole"), FILES, key=key).read_bytes()


@pytest.mark.parametrize("size", [HEAD + 512, HEAD + 513, 50_000, 10_000_000])
def test_volumes_are_the_same_bytes(tmp_path: Path, whole: bytes, key: Key, size: int) -> None:
    delivery = Delivery(NAME, [tmp_path], size)
    layout = pack(delivery, sign_slot(DATA, key))
    assert not list(tmp_path.glob(NAME + "*")), "nothing has its name yet"
    assert delivery.partial.name.endswith(".partial.001")
    written = delivery.publish(manifest_digest(DATA))
    assert b"".join(path.read_bytes() for path in written) == whole
    assert [path.name for path in written] == [f"{NAME}.{n:03}" for n in range(1, len(written) + 1)]
    assert {path.stat().st_size for path in written[:-1]} <= {size}
    assert layout.size == len(whole)
    index = tmp_path / f"{NAME}.volumes.json"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (*written, index)}
    assert index.read_text().startswith(f'{{"_type":"urn:sealift:volumes:1","digest":"{manifest_digest(DATA)}",')


def test_the_slot_lies_in_the_first_volume(tmp_path: Path, whole: bytes, key: Key) -> None:
    delivery = Delivery(NAME, [tmp_path], HEAD + 512)
    layout = pack(delivery)
    written = delivery.publish("0" * 64)
    replace_slot(written[0], layout.signature_offset, sign_slot(DATA, key))
    assert b"".join(path.read_bytes() for path in written) == whole


def test_a_volume_too_small_for_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        pack(Delivery(NAME, [tmp_path], HEAD + 511))
    words = f"--volume-size: {HEAD + 511} bytes are too few, the first volume holds manifest and signatures"
    assert caught.value.message == words
    assert caught.value.hint == f"at least {HEAD + 512} bytes"
    assert not list(tmp_path.iterdir())


def test_too_many_volumes(tmp_path: Path) -> None:
    files: dict[str, Content] = {"models/m/w": CHUNK_SIZE}
    manifest = make_manifest(files)
    layout = tar_layout(manifest.encode(), manifest.files)
    with pytest.raises(UsageError, match=r"\d+ volumes of 60\.0 kB, at most 999 can be numbered"):
        Delivery(NAME, [tmp_path], 60_000).place(layout)


def test_a_new_build_leaves_nothing_of_an_older_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        for number in (1, 3, 9):
            (folder / f"{NAME}.{number:03}").write_bytes(b"old")
        (folder / "other.bundle.tar.001").write_bytes(b"mine")
    delivery = Delivery(NAME, [one, two], 100_000)
    pack(delivery)
    written = delivery.publish("0" * 64)
    assert sorted(two.iterdir()) == [two / "other.bundle.tar.001"]
    assert sorted(path.name for path in one.glob(f"{NAME}.0*")) == [path.name for path in written]


def test_damage_leaves_nothing(tmp_path: Path) -> None:
    def bad(entry: FileEntry) -> bytes:
        return b"x" if entry.path == MODEL else find(entry)

    delivery = Delivery(NAME, [tmp_path], 50_000)
    with pytest.raises(IntegrityError, match=MODEL):
        write_bundle(delivery.place, DATA, MANIFEST.files, file_source(bad), Silent(), slot=signature_slot())
    assert not list(tmp_path.iterdir())
    delivery = Delivery(NAME, [tmp_path], 50_000)
    pack(delivery)
    delivery.discard()
    assert not list(tmp_path.iterdir())


def test_one_tar_needs_no_index(tmp_path: Path, whole: bytes, key: Key) -> None:
    delivery = Delivery(NAME, [tmp_path])
    pack(delivery, sign_slot(DATA, key))
    assert delivery.publish("0" * 64) == (tmp_path / NAME,)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * 1024**3), ("700 MB", 700_000_000), ("fat32", FAT32_SIZE), ("FAT32", FAT32_SIZE)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_volume_size(text) == size


def test_the_preset_for_fat() -> None:
    assert FAT32_SIZE < 2**32
    assert FAT32_SIZE % CHUNK_SIZE == 0


@pytest.mark.parametrize("text", ["4", "0 B", "-1 GiB", "big", ""])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--volume-size: ") as caught:
        parse_volume_size(text)
    assert caught.value.hint == "a size such as 4GiB, or fat32"


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Path, ...]]:
    """Three disks with room for 96 KiB of volumes each."""
    made = tuple(tmp_path / name for name in ("a", "b", "c"))
    for disk in made:
        disk.mkdir()
        size = 96 * 1024 + INDEX_ROOM + (KIT_ROOM if disk == made[0] else 0)
        subprocess.run([program("mount"), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    yield made
    for disk in made:
        subprocess.run([program("umount"), str(disk)], check=True)


@pytest.mark.skipif(not is_root(), reason="mounts file systems")
def test_several_disks(disks: tuple[Path, ...], whole: bytes, key: Key) -> None:
    """Each has room for two volumes of 40 kB; nothing is written anywhere else."""
    delivery = Delivery(NAME, disks, 40 * 1024)
    pack(delivery, sign_slot(DATA, key))
    assert delivery.folders == disks[:2]
    written = delivery.publish("0" * 64)
    assert [path.parent for path in written] == [disks[0], disks[0], disks[1], disks[1]]
    assert b"".join(path.read_bytes() for path in written) == whole
    assert (disks[1] / f"{NAME}.volumes.json").is_file()
    assert not list(disks[2].iterdir())


@pytest.mark.skipif(not is_root(), reason="mounts file systems")
def test_disks_without_room(disks: tuple[Path, ...]) -> None:
    with pytest.raises(DiskError) as caught:
        pack(Delivery(NAME, disks[:1], 40 * 1024))
    assert caught.value.message.startswith(f"no room for {NAME}.003 and what follows, ")
    assert caught.value.hint == "name another disk: --output DIR --output DIR2, or choose smaller volumes"
    assert not list(disks[0].iterdir())
