"""The store: content by digest, atomic, read-only, checked; records that survive damage."""

import io
import os
import threading
from pathlib import Path

import pytest

from bundler.store import Store, default_cache
from manifests.digests import CHUNK_SIZE, digest_bytes, sha256_hex
from manifests.errors import DiskError, IntegrityError, SourceError

DATA = b"content"


def leftovers(store: Store) -> list[Path]:
    return list((store.root / "sha256" / "new").iterdir())


def test_added_content_is_read_only_and_under_its_digest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.add_stream(io.BytesIO(DATA))
    assert digest == digest_bytes(DATA)
    path = tmp_path / "sha256" / digest.sha256[:2] / digest.sha256
    assert path == store.path(digest.sha256)
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444
    assert digest.sha256 in store
    with store.open(digest.sha256) as stream:
        assert stream.read() == DATA
    assert leftovers(store) == []


def test_unexpected_content_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(IntegrityError) as caught:
        store.add_stream(io.BytesIO(DATA), expected_sha256="0" * 64, what="x.whl")
    assert caught.value.message == f"x.whl: expected sha256 {'0' * 64}, got {sha256_hex(DATA)}"
    assert sha256_hex(DATA) not in store
    assert leftovers(store) == []


def test_interrupted_add_leaves_nothing(tmp_path: Path) -> None:
    class Interrupting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 3:
                raise KeyboardInterrupt
            return super().read(3 if size else size)

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.add_stream(Interrupting(DATA))
    assert leftovers(store) == []


def test_digest_comes_from_the_index_and_is_rebuilt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = tmp_path / "big"
    with source.open("wb") as stream:
        stream.truncate(CHUNK_SIZE + 1)
    digest = store.add_file(source)
    assert len(digest.chunks) == 2
    index = store.path(digest.sha256).with_name(f"{digest.sha256}.json")
    assert store.digest(digest.sha256) == digest
    for damage in (b"", b"{}", b'{"size": 1, "chunks": []}'):
        index.write_bytes(damage)
        assert store.digest(digest.sha256) == digest
    index.unlink()
    assert store.digest(digest.sha256) == digest
    assert index.exists()


def test_damaged_content_is_named_and_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sha256 = store.add_stream(io.BytesIO(DATA)).sha256
    path = store.path(sha256)
    path.chmod(0o644)
    path.write_bytes(b"damaged, and longer")
    with pytest.raises(IntegrityError) as caught:
        store.digest(sha256)
    assert caught.value.message.startswith(f"{path}: damaged: expected sha256 {sha256}, got ")
    assert sha256 not in store
    with pytest.raises(SourceError, match="is not in the cache"):
        store.open(sha256)


def test_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "cache"), tmp_path / "file"
    source.write_bytes(DATA)
    first = store.add_file(source)
    inode = store.path(first.sha256).stat().st_ino
    assert store.add_file(source) == first
    assert store.path(first.sha256).stat().st_ino == inode  # a second copy would have replaced it
    source.write_bytes(b"CONTENT")
    assert store.add_file(source).sha256 == sha256_hex(b"CONTENT")
    store.drop(sha256_hex(b"CONTENT"))
    assert store.add_file(source).sha256 in store


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"can't read .*none: No such file"):
        Store(tmp_path).add_file(tmp_path / "none")


def test_many_writers_of_one_content(tmp_path: Path) -> None:
    store, data = Store(tmp_path), os.urandom(1 << 20)
    threads = [threading.Thread(target=store.add_stream, args=(io.BytesIO(data),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.check(sha256_hex(data)) == digest_bytes(data)
    assert leftovers(store) == []


def test_records(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.record("kind", "any key: / ..") is None
    store.write_record("kind", "any key: / ..", {"a": [1]})
    assert store.record("kind", "any key: / ..") == {"a": [1]}
    (path,) = (tmp_path / "records" / "kind").iterdir()
    path.write_bytes(b"{")
    assert store.record("kind", "any key: / ..") is None


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "sealift"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "sealift"


def test_a_file_is_adopted_by_moving_it(tmp_path: Path) -> None:
    store, source = Store(tmp_path), tmp_path / "partial"
    source.write_bytes(DATA)
    inode = source.stat().st_ino
    store.adopt(source, digest_bytes(DATA))
    path = store.path(sha256_hex(DATA))
    assert not source.exists()
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o444)
    assert store.digest(sha256_hex(DATA)) == digest_bytes(DATA)
    with pytest.raises(DiskError, match=r"can't move .*partial to "):
        store.adopt(source, digest_bytes(DATA))
