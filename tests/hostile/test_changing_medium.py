"""A medium that changes between two reads: nothing is read twice, so what was checked is what is used."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.bundle import find_damage, verify_content, verify_trust
from manifests.errors import IntegrityError
from manifests.manifest import FileEntry, Manifest
from manifests.medium import Medium, TarMedium, open_medium
from manifests.pieces import ReadAt, Silent
from manifests.sources import FileSource, Part
from runtime.store import Store
from tests.factories import NOW
from tests.hostile.lab import FILES, WHEEL, Lab


class ChangingMedium:
    """A bundle that gives the right bytes at the first read of each place, and others from then on."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self.label = medium.label
        self.manifest_bytes = medium.manifest_bytes
        self.signature_slot = medium.signature_slot
        self.delta = medium.delta
        self.reads: Counter[tuple[str, int]] = Counter()

    def check_layout(self, manifest: Manifest) -> None:
        self._medium.check_layout(manifest)

    @contextlib.contextmanager
    def reader(self, entry: FileEntry) -> Iterator[ReadAt]:
        with self._medium.reader(entry) as real:

            def read(view: memoryview, offset: int) -> int:
                count = real(view, offset)
                self.reads[entry.path, offset] += 1
                if self.reads[entry.path, offset] > 1:
                    view[:count] = b"!" * count
                return count

            yield read

    @property
    def ordered(self) -> bool:
        return self._medium.ordered

    def carries(self, entry: FileEntry) -> bool:
        return self._medium.carries(entry)

    def parts(self, entry: FileEntry, offset: int, size: int) -> tuple[Part, ...]:
        return self._medium.parts(entry, offset, size)

    def volumes_of(self, entry: FileEntry, offset: int, size: int) -> tuple[str, ...]:
        return self._medium.volumes_of(entry, offset, size)

    def check_end(self, *, ask: bool = True) -> None:
        self._medium.check_end(ask=ask)

    def close(self) -> None:
        self._medium.close()


@pytest.fixture
def medium(lab: Lab) -> Iterator[ChangingMedium]:
    with open_medium(lab.write(lab.good)) as real:
        yield ChangingMedium(real)


def test_the_store_keeps_what_was_hashed(lab: Lab, medium: ChangingMedium, tmp_path: Path) -> None:
    bundle = verify_trust(medium, lab.key.trust, now=NOW)
    medium.check_layout(bundle.manifest)
    store = Store(root=tmp_path / "store")
    store.ingest(medium, bundle.manifest.files, frozenset(), Silent())
    assert set(medium.reads.values()) == {1}
    for entry in bundle.manifest.files:
        assert store.path(entry.store_key).read_bytes() == FILES[entry.path]
    with pytest.raises(IntegrityError, match="expected sha256"):
        Store(root=tmp_path / "second").ingest(medium, bundle.manifest.files, frozenset(), Silent())


def test_verifying_reads_each_byte_once(lab: Lab, medium: ChangingMedium) -> None:
    bundle = verify_trust(medium, lab.key.trust, now=NOW)
    verify_content(medium, bundle.manifest, Silent())
    assert set(medium.reads.values()) == {1}
    with pytest.raises(IntegrityError, match="expected sha256"):
        verify_content(medium, bundle.manifest, Silent())


def test_the_manifest_is_read_once(lab: Lab) -> None:
    path = lab.write(lab.good)
    with open_medium(path) as medium:
        with path.open("r+b") as stream:
            stream.seek(512)
            stream.write(b"X" * 100)
        bundle = verify_trust(medium, lab.key.trust, now=NOW)
        assert bundle.manifest == lab.manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [("cut", "truncated: "), ("header", "header or padding changed at byte "), ("grown", " bytes after")],
)
def test_a_tar_that_changes_after_it_was_opened(lab: Lab, change: str, words: str) -> None:
    path = lab.write(lab.good)
    medium = TarMedium(FileSource(path))
    with contextlib.closing(medium), path.open("r+b") as stream:
        if change == "header":
            stream.seek(lab.member(WHEEL).header_offset)
            stream.write(b"evil")
        else:
            stream.truncate(len(lab.good) + (-512 if change == "cut" else 512))
        stream.flush()
        with pytest.raises(IntegrityError, match=words):
            medium.check_layout(lab.manifest)


def test_a_tar_that_is_cut_while_it_is_read(lab: Lab) -> None:
    path = lab.write(lab.good)
    with open_medium(path) as medium:
        bundle = verify_trust(medium, lab.key.trust, now=NOW)
        medium.check_layout(bundle.manifest)
        with path.open("r+b") as stream:
            stream.truncate(lab.member(WHEEL).offset + 100)
        entry = lab.member(WHEEL).entry
        with medium.reader(entry) as read:
            assert read(memoryview(bytearray(1200)), 0) == 100
        damaged = [str(damage) for damage in find_damage(medium, (entry,), Silent())]
        assert damaged == [f"{WHEEL}: expected sha256 {entry.sha256}, got only 100 of 1200 bytes"]


def test_a_folder_whose_file_becomes_a_link(lab: Lab) -> None:
    folder = lab.unpacked()
    with open_medium(folder) as medium:
        bundle = verify_trust(medium, lab.key.trust, now=NOW)
        medium.check_layout(bundle.manifest)
        outside = folder.parent / "outside"
        (folder / WHEEL).rename(outside)
        (folder / WHEEL).symlink_to(outside)
        with (
            pytest.raises(IntegrityError, match="is a link or not a regular file"),
            medium.reader(lab.member(WHEEL).entry),
        ):
            pass
