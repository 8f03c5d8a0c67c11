"""What interrupted work leaves in the cache is removed once it is old, and nothing else is."""

import io
import os
import time
from pathlib import Path
from typing import Final

import pytest

from bundler.leftovers import DAY, collect_leftovers
from bundler.snapshots.partial import PartialFile
from bundler.store import Store
from manifests.errors import DiskError
from manifests.files import locked
from tests.factories_cli import Builder

NOW: Final = 1_800_000_000.0
KEY: Final = "ab" * 32
BLOB: Final = f"blob-{'c' * 40}"
SEGMENT: Final = 64 * 1024


def begin(store: Store, key: str, days: float, now: float = NOW) -> Path:
    """Leave a download of which one segment is there, last written to some days ago."""
    path = store.root / "partial" / key
    with PartialFile(path, 4 * SEGMENT, SEGMENT) as partial:
        partial.write(0, b"x" * SEGMENT, partial.epoch)
    for file in (path, partial.state_path):
        set_age(file, days, now)
    return path


def set_age(path: Path, days: float, now: float = NOW) -> None:
    os.utime(path, (now - days * DAY, now - days * DAY))


def files_of(store: Store) -> set[str]:
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}


def fill(store: Store) -> set[str]:
    """Have a content and a record, both old; return the names of their files."""
    digest = store.add_stream(io.BytesIO(b"content"))
    store.write_record("git-blob", "key", digest.sha256)
    for path in store.root.rglob("*"):
        set_age(path, 400)
    return files_of(store)


def test_old_downloads_go_and_everything_else_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = fill(store)
    old, fresh = begin(store, KEY, 8), begin(store, BLOB, 6.9)
    size = sum(path.stat().st_blocks * 512 for path in (old, old.with_name(f"{KEY}.state")))
    (removed,) = collect_leftovers(store, older_than=7 * DAY, now=NOW)
    assert (removed.path, removed.size, removed.age) == (f"partial/{KEY}", size, 8 * DAY)
    assert SEGMENT <= size < 4 * SEGMENT, "holes aren't counted"
    assert files_of(store) == kept | {"partial/lock", f"partial/{BLOB}", f"partial/{BLOB}.state"}
    with PartialFile(fresh, 4 * SEGMENT, SEGMENT) as partial:
        assert partial.done == SEGMENT, "it can go on"


def test_the_newer_of_content_and_state_decides(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = begin(store, KEY, 30)
    set_age(path.with_name(f"{KEY}.state"), 1)
    assert collect_leftovers(store, older_than=7 * DAY, now=NOW) == ()
    set_age(path.with_name(f"{KEY}.state"), 30)
    path.unlink()
    (removed,) = collect_leftovers(store, older_than=7 * DAY, now=NOW)
    assert removed.path == f"partial/{KEY}", "a state alone goes, too"
    assert files_of(store) == {"partial/lock"}


def test_other_leftovers_are_kept_for_a_day_at_least(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number, days in (("1", 0.5), ("2", 1.5)):
        folder = store.root / "incoming" / f"convert-{number}"
        folder.mkdir(parents=True)
        added = store.root / "sha256" / "new" / f"tmp{number}"
        added.parent.mkdir(parents=True, exist_ok=True)
        for path in (folder / "model.safetensors", added):
            path.write_bytes(b"x" * 5000)
        for path in (folder / "model.safetensors", folder, added):
            set_age(path, days)
    begin(store, KEY, 0.1)
    removed = collect_leftovers(store, older_than=0, now=NOW)
    assert [item.path for item in removed] == ["incoming/convert-2", f"partial/{KEY}", "sha256/new/tmp2"]
    assert files_of(store) == {"partial/lock", "incoming/convert-1/model.safetensors", "sha256/new/tmp1"}
    assert not (store.root / "incoming" / "convert-2").exists()


def test_an_empty_cache(tmp_path: Path) -> None:
    assert collect_leftovers(Store(tmp_path / "none"), older_than=0) == ()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_taken_from_a_download_under_way(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begin(store, KEY, 100)
    before = files_of(store)
    with locked(store.root / "partial" / "lock"), pytest.raises(DiskError) as caught:
        collect_leftovers(store, older_than=0, now=NOW)
    assert caught.value.message == f"{tmp_path / 'partial'}: a download into this cache is under way"
    assert caught.value.hint == "wait until it has ended, then: bundler gc"
    assert files_of(store) == before | {"partial/lock"}


def test_the_command_says_what_it_freed(tmp_path: Path) -> None:
    builder = Builder(folder=tmp_path)
    store = Store(builder.cache / "sealift")
    path = begin(store, KEY, 9, now=time.time())
    size = sum(file.stat().st_blocks * 512 for file in (path, path.with_name(f"{KEY}.state")))
    done = builder.run("gc", "--older-than", "30")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{store.root}: 0 leftovers removed, 0 B freed\n"
    document = builder.json("gc")
    assert document["cache"] == str(store.root)
    assert document["freed"] == size
    assert [(item["path"], item["size"], item["age"] // DAY) for item in document["removed"]] == [
        (f"partial/{KEY}", size, 9)
    ]
    begin(store, KEY, 9, now=time.time())
    done = builder.run("gc")
    assert done.stdout.splitlines()[0].startswith(f"partial/{KEY}  ")
    assert done.stdout.splitlines()[0].endswith(", 9 days old")
    assert done.stdout.splitlines()[1].startswith(f"{store.root}: 1 leftovers removed, ")
