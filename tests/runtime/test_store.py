"""What the store keeps of a file that could not be read to its end: good chunks, and nothing else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.delta import Delta
from manifests.digests import CHUNK_SIZE
from manifests.errors import IntegrityError
from manifests.manifest import FileEntry, Manifest
from manifests.pieces import ReadAt, Silent
from manifests.sources import Part
from runtime.store import Store
from tests.factories import make_entry

SIZE = CHUNK_SIZE + 5
BIG = make_entry("models/m/weights.bin", SIZE)
SMALL = make_entry("models/m/config.json", b"{}\n")


class Zeros:
    """A medium of zeros whose reader fails for the files and from the offsets that a test names."""

    label = "zeros"
    manifest_bytes = signature_slot = b""
    delta: Delta | None = None
    ordered = False

    def __init__(self, *, no_reader: str = "", fails_from: int = SIZE) -> None:
        self._no_reader, self._fails_from = no_reader, fails_from
        self.read: list[int] = []

    def check_layout(self, manifest: Manifest) -> None:
        raise NotImplementedError

    def carries(self, entry: FileEntry) -> bool:
        del entry
        return True

    def parts(self, entry: FileEntry, offset: int, size: int) -> tuple[Part, ...]:
        raise NotImplementedError

    def volumes_of(self, entry: FileEntry, offset: int, size: int) -> tuple[str, ...]:
        del entry, offset, size
        return ()

    def check_end(self, *, ask: bool = True) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def reader(self, entry: FileEntry) -> Iterator[ReadAt]:
        if entry.path == self._no_reader:
            raise IntegrityError(f"{entry.path}: is not a regular file")

        def read(view: memoryview, offset: int) -> int:
            if offset >= self._fails_from:
                raise IntegrityError(f"{entry.path}: can't be read")
            self.read.append(offset)
            view[:] = bytes(len(view))
            return len(view)

        yield read


def ingest(store: Store, medium: Zeros, *files: FileEntry) -> None:
    store.ingest(medium, files, frozenset(), Silent(), threads=1)


def files_of(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("entry", [BIG, SMALL], ids=["chunked", "small"])
def test_nothing_stays_of_a_file_that_can_t_be_opened(tmp_path: Path, entry: FileEntry) -> None:
    store = Store(root=tmp_path)
    with pytest.raises(IntegrityError, match="is not a regular file"):
        ingest(store, Zeros(no_reader=entry.path), entry)
    assert files_of(store) == []


def test_nothing_stays_of_a_file_whose_first_chunk_fails(tmp_path: Path) -> None:
    store = Store(root=tmp_path)
    with pytest.raises(IntegrityError, match="can't be read"):
        ingest(store, Zeros(fails_from=1024), BIG)
    assert files_of(store) == []


def test_a_good_chunk_stays_and_is_not_read_again(tmp_path: Path) -> None:
    store = Store(root=tmp_path)
    with pytest.raises(IntegrityError, match="can't be read"):
        ingest(store, Zeros(fails_from=CHUNK_SIZE), BIG)
    assert files_of(store) == [f"{BIG.store_key}.partial"]
    medium = Zeros(no_reader=BIG.path)
    with pytest.raises(IntegrityError, match="is not a regular file"):
        ingest(store, medium, BIG)
    assert files_of(store) == [f"{BIG.store_key}.partial"], "and is kept by a run that gets no further"
    medium = Zeros()
    ingest(store, medium, BIG)
    assert (medium.read, files_of(store)) == ([CHUNK_SIZE], [BIG.store_key])
    assert store.path(BIG.store_key).read_bytes() == bytes(SIZE)


def test_a_damaged_file_without_a_good_chunk_leaves_nothing(tmp_path: Path) -> None:
    lies = make_entry("models/m/weights.bin", SIZE)
    other = FileEntry(
        path=lies.path, size=SIZE, sha256="0" * 64, mode=lies.mode, kind=lies.kind, chunks=("1" * 64, "2" * 64)
    )
    store = Store(root=tmp_path)
    with pytest.raises(IntegrityError, match=r"chunk 0: expected sha256 1111"):
        ingest(store, Zeros(), other)
    assert files_of(store) == []
