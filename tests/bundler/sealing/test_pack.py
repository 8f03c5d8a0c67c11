"""Packing: the same bytes as the format's second writer, every damage named, nothing left behind."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundler.sealing.pack import Source, file_source, replace_slot, signature_slot, write_bundle
from manifests.digests import CHUNK_SIZE
from manifests.errors import DiskError, IntegrityError
from manifests.manifest import FileEntry, Manifest
from manifests.pieces import Silent
from manifests.tarlayout import SIGNATURE_SLOT, tar_layout
from tests.factories import SMALL_FILES, Content, Key, is_root, make_bundle, make_manifest, sign_slot
from tests.factories_closed import program

FILES: dict[str, Content] = {**SMALL_FILES, "models/big/weights.bin": CHUNK_SIZE + 999}
EXECUTABLE = ["bootstrap/install.sh"]


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sparse file of two chunks."""
    path = tmp_path_factory.mktemp("big") / "weights.bin"
    with path.open("wb") as stream:
        stream.truncate(CHUNK_SIZE + 999)
    return path


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """The manifest of :data:`FILES`."""
    return make_manifest(FILES, executable=EXECUTABLE)


def source_of(big_file: Path, changed: dict[str, bytes] | None = None) -> Source:
    def find(entry: FileEntry) -> Path | bytes:
        content = (changed or {}).get(entry.path, FILES[entry.path])
        return content if isinstance(content, bytes) else big_file

    return file_source(find)


def pack(path: Path, manifest: Manifest, source: Source, threads: int | None = None) -> None:
    write_bundle(path, manifest.encode(), manifest.files, source, Silent(), slot=signature_slot(), threads=threads)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_bytes_are_those_of_the_second_writer(
    tmp_path: Path, big_file: Path, manifest: Manifest, key: Key, threads: int
) -> None:
    other = make_bundle(tmp_path / "other.tar", FILES, key=key, executable=EXECUTABLE)
    slot = sign_slot(manifest.encode(), key)
    layout = write_bundle(
        tmp_path / "ours.tar",
        manifest.encode(),
        manifest.files,
        source_of(big_file),
        Silent(),
        slot=slot,
        threads=threads,
    )
    assert (tmp_path / "ours.tar").stat().st_size == layout.size
    assert (tmp_path / "ours.tar").stat().st_mode & 0o777 == 0o644
    subprocess.run([program("cmp"), str(other), str(tmp_path / "ours.tar")], check=True)
    pack(tmp_path / "again.tar", manifest, source_of(big_file))
    replace_slot(tmp_path / "again.tar", layout.signature_offset, slot)
    subprocess.run([program("cmp"), str(other), str(tmp_path / "again.tar")], check=True)


def test_stock_tar_reads_it(tmp_path: Path, big_file: Path, manifest: Manifest) -> None:
    pack(tmp_path / "b.tar", manifest, source_of(big_file))
    listed = subprocess.run(
        [program("tar"), "-tf", str(tmp_path / "b.tar")], capture_output=True, text=True, check=True
    )
    names = ["manifest.json", "manifest.json.sig", *(entry.path for entry in manifest.files)]
    assert len(listed.stdout.splitlines()) == len(names)
    out = subprocess.run(
        [program("tar"), "-xOf", str(tmp_path / "b.tar"), "bootstrap/install.sh"], capture_output=True, check=True
    )
    assert out.stdout == SMALL_FILES["bootstrap/install.sh"]


def test_every_damaged_source_is_named_and_nothing_stays(tmp_path: Path, big_file: Path, manifest: Manifest) -> None:
    changed = {
        "models/tiny/config.json": b"[]\n",
        "wheels/demo-1.0.0-py3-none-any.whl": b"short",
    }
    with pytest.raises(IntegrityError) as caught:
        pack(tmp_path / "b.tar", manifest, source_of(big_file, changed))
    lines = sorted(caught.value.message.splitlines())
    assert "what was locked is not what is there: 2 problems:" in lines
    assert any("  models/tiny/config.json: expected sha256 " in line for line in lines)
    size = next(entry.size for entry in manifest.files if entry.path.startswith("wheels/"))
    assert any(
        "wheels/demo-1.0.0-py3-none-any.whl: expected sha256 " in line and f"5 of {size}" in line for line in lines
    )
    assert not list(tmp_path.iterdir())


def test_a_missing_source_is_named_and_nothing_stays(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(IntegrityError, match="none: missing"):
        pack(tmp_path / "b.tar", manifest, source_of(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_not_touched(tmp_path: Path, big_file: Path, manifest: Manifest) -> None:
    (tmp_path / "b.tar").write_bytes(b"mine")
    with pytest.raises(DiskError, match=f"can't create {tmp_path}/b.tar: File exists"):
        pack(tmp_path / "b.tar", manifest, source_of(big_file))
    assert (tmp_path / "b.tar").read_bytes() == b"mine"


class Interrupting:
    """Progress that is interrupted after the first piece."""

    def advance(self, count: int) -> None:
        """Interrupt."""
        assert count > 0
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing(tmp_path: Path, big_file: Path, manifest: Manifest) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        write_bundle(
            tmp_path / "b.tar",
            manifest.encode(),
            manifest.files,
            source_of(big_file),
            Interrupting(),
            slot=signature_slot(),
        )
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == before


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run([program("umount"), str(disk)], check=True)


@pytest.mark.skipif(not is_root(), reason="mounts a file system")
def test_a_full_disk_is_known_at_once_and_nothing_stays(full_disk: Path, manifest: Manifest) -> None:
    asked = []

    def source(entry: FileEntry) -> object:
        asked.append(entry)
        raise AssertionError

    with pytest.raises(DiskError) as caught:
        pack(full_disk / "b.tar", manifest, source)  # type: ignore[arg-type] # it is never called
    size = tar_layout(manifest.encode(), manifest.files).size
    assert caught.value.render() == (
        f"error: can't write {full_disk}/b.tar: no room for its {size} bytes\nhint: choose another --output"
    )
    assert caught.value.exit_code == 7
    assert asked == []
    assert not list(full_disk.iterdir())


def test_signature_slot() -> None:
    assert signature_slot() == b"\n" * SIGNATURE_SLOT
    assert signature_slot(b"a\n", b"b\n") == b"a\nb\n".ljust(SIGNATURE_SLOT, b"\n")
    assert signature_slot(b"x" * SIGNATURE_SLOT) == b"x" * SIGNATURE_SLOT
    with pytest.raises(IntegrityError, match=f"the signatures need {SIGNATURE_SLOT + 1} bytes, the slot has"):
        signature_slot(b"x" * (SIGNATURE_SLOT + 1))


def test_replace_slot_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"a" * 100)
    replace_slot(tmp_path / "b", 10, b"new")
    assert (tmp_path / "b").read_bytes() == b"a" * 10 + b"new" + b"a" * 87
    with pytest.raises(DiskError, match=f"can't write {tmp_path}/none: No such file or directory"):
        replace_slot(tmp_path / "none", 0, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
