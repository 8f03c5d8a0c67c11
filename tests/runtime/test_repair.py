"""``runtime repair``: which chunks are damaged, and healing just those, from another copy or a small repair file."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bundler.sealing.chunks import extract_chunks, parse_chunk_list
from manifests.digests import CHUNK_SIZE
from manifests.manifest import FileEntry
from manifests.tarlayout import tar_layout
from tests.factories import Key, make_key, tree_of, unpack_bundle
from tests.factories_closed import BIG_PATH, BIG_SIZE, ClosedBundle, Host, copy_of, flip_bit, make_host
from tests.factories_kill import Installer, clone


@pytest.fixture(scope="module")
def big_prefix(tmp_path_factory: pytest.TempPathFactory, chunked: ClosedBundle) -> Path:
    """A prefix where the bundle with a file of two chunks is live; never write to it."""
    folder = tmp_path_factory.mktemp("big")
    done = Installer(host=make_host(folder / "home")).run(chunked, folder / "prefix")
    assert done.status == 0, done.words
    return folder / "prefix"


@pytest.fixture
def prefix(tmp_path: Path, big_prefix: Path) -> Path:
    """A copy of it."""
    return clone(big_prefix, tmp_path / "prefix")


def entry_of(bundle: ClosedBundle, path: str = BIG_PATH) -> FileEntry:
    return next(entry for entry in bundle.manifest.files if entry.path == path)


def blob_of(prefix: Path, entry: FileEntry) -> Path:
    return prefix / "store/sha256" / entry.store_key[:2] / entry.store_key


def damage(path: Path, offset: int) -> None:
    path.chmod(0o644)
    flip_bit(path, offset)
    path.chmod(0o444)


def repair(host: Host, bundle: ClosedBundle, *words: str | Path) -> tuple[int, dict[str, Any]]:
    done = host.runtime(bundle.pyz, "repair", "--json", *words)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def row(entry: FileEntry, chunk: int) -> dict[str, object]:
    size = min(CHUNK_SIZE, entry.size - chunk * CHUNK_SIZE)
    return {"path": entry.path, "chunk": chunk, "sha256": entry.chunks[chunk], "size": size}


def test_nothing_is_damaged(prefix: Path, host: Host, chunked: ClosedBundle) -> None:
    shutil.rmtree(prefix / "var/cache/bytecode")  # a repair empties it
    before = {path: path.lstat().st_ino for path in prefix.rglob("*")}
    assert repair(host, chunked, "--prefix", prefix) == (
        0,
        {
            "blocked": [],
            "damaged": [],
            "environments": {},
            "found": 0,
            "healed": [],
            "put_back": [],
            "rebuilt": [],
        },
    )
    assert {path: path.lstat().st_ino for path in prefix.rglob("*")} == before


def test_a_chunk_of_the_store_from_a_repair_file(
    tmp_path: Path, prefix: Path, host: Host, chunked: ClosedBundle
) -> None:
    entry = entry_of(chunked)
    damage(blob_of(prefix, entry), CHUNK_SIZE + 77)
    told = host.runtime(chunked.pyz, "repair", "--prefix", prefix)
    assert told.returncode == 5
    assert told.stdout == (
        f"{entry.chunks[1]} {BIG_SIZE - CHUNK_SIZE} {BIG_PATH} chunk 1\n# 1 damaged chunks found, 1 remain\n"
    )
    assert told.stderr.endswith(
        "hint: bundler extract-chunks BUNDLE --chunks THIS-LIST --output FILE, then repair again with --from FILE\n"
    )
    file = tmp_path / "chunks"
    done = extract_chunks(chunked.tar, parse_chunk_list(told.stdout, where="list"), file)
    assert (done.pieces, done.size) == (1, BIG_SIZE - CHUNK_SIZE)
    assert file.stat().st_size < BIG_SIZE - CHUNK_SIZE + 200, "small"
    old = blob_of(prefix, entry).stat().st_ino
    code, answer = repair(host, chunked, "--prefix", prefix, "--from", file, "--trust", chunked.trust)
    assert (code, answer["healed"], answer["found"], answer["damaged"]) == (0, [BIG_PATH], 1, [])
    blob, linked = blob_of(prefix, entry), prefix / "current" / BIG_PATH
    assert blob.stat().st_ino != old, "a new file, so that whoever reads the old one isn't disturbed"
    assert linked.samefile(blob)
    assert linked.stat().st_mode & 0o777 == 0o444
    assert blob.read_bytes() == bytes(BIG_SIZE)
    assert list(prefix.rglob("*.partial")) == []
    quick = host.runtime(chunked.pyz, "verify", "--prefix", prefix, "--deep")
    assert quick.returncode == 0, quick.stdout
    assert (prefix / "var/logs/releases.log").read_text().splitlines()[-1].endswith("Z repair: 1 files, 0 manifests")


def test_after_a_repair_quick_is_content(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    assert Installer(host=host).run(chunked, prefix).status == 0
    damage(blob_of(prefix, entry_of(chunked)), 5)
    assert repair(host, chunked, "--prefix", prefix, "--from", chunked.tar)[0] == 0
    done = host.runtime(chunked.pyz, "verify", "--prefix", prefix, "--quick")
    assert done.returncode == 0, done.stdout


def test_quick_looks_at_the_venv_too(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    assert Installer(host=host).run(first, prefix).status == 0
    site = next((prefix / "current/venv/lib").glob("python3*")) / "site-packages"
    (site / "six.py").write_text("x")
    (site / "extra.pth").write_text("")
    (site / "six-1.17.0.dist-info/METADATA").unlink()
    (prefix / "current/venv/bin/runtime").chmod(0o4757)
    done = host.runtime(first.pyz, "verify", "--prefix", prefix, "--quick")
    assert done.returncode == 5
    name = site.relative_to((prefix / "current").absolute()).as_posix()
    for words in (
        f"{name}/six.py: size, time or inode changed since the install",
        f"{name}/extra.pth: not there after the install",
        f"{name}/six-1.17.0.dist-info/METADATA: missing",
    ):
        assert f"         {words}\n" in done.stdout
    done = host.runtime(first.pyz, "verify", "--prefix", prefix)
    assert "         venv/bin/runtime: mode 4757, expected 0755\n" in done.stdout


def test_missing_blob_and_files_from_the_bundle_s_folder(
    tmp_path: Path, prefix: Path, host: Host, chunked: ClosedBundle
) -> None:
    folder = unpack_bundle(chunked.tar, tmp_path / "folder")
    entry, release = entry_of(chunked, "docs/INSTALL.md"), (prefix / "current").resolve()
    blob_of(prefix, entry).unlink()
    (release / entry.path).unlink()
    (release / "config/offline.env").unlink()  # the store has it
    shutil.rmtree(release / "models")
    (release / "docs/SHA256SUMS").chmod(0o777)
    code, answer = repair(host, chunked, "--prefix", prefix, "--from", folder)
    assert (code, answer["healed"]) == (0, [entry.path])
    store = blob_of(prefix, entry_of(chunked, "docs/SHA256SUMS"))
    put_back = {str(release / path) for path in (entry.path, "config/offline.env", BIG_PATH)} | {str(store)}
    assert set(answer["put_back"]) == put_back
    done = host.runtime(chunked.pyz, "verify", "--prefix", prefix, "--deep")
    assert done.returncode == 0, done.stdout


def test_a_release_s_own_good_copy_heals_the_store(prefix: Path, host: Host, chunked: ClosedBundle) -> None:
    entry = entry_of(chunked)
    copy = prefix / "current" / BIG_PATH
    data = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(data)
    damage(blob_of(prefix, entry), 9)
    code, answer = repair(host, chunked, "--prefix", prefix)
    assert (code, answer["healed"]) == (0, [BIG_PATH])
    assert copy.samefile(blob_of(prefix, entry))


def test_a_manifest_comes_back_from_the_same_bundle(
    prefix: Path, host: Host, first: ClosedBundle, chunked: ClosedBundle
) -> None:
    manifest = prefix / "current/manifest.json"
    good = manifest.read_bytes()
    damage(manifest, 40)
    name = (prefix / "current").readlink().name
    code, answer = repair(host, chunked, "--prefix", prefix)
    assert code == 5
    assert [words.partition(":")[0] for words in answer["blocked"]] == [name]
    code, answer = repair(host, chunked, "--prefix", prefix, "--from", first.tar)
    assert code == 5, "another bundle is no help"
    code, answer = repair(host, chunked, "--prefix", prefix, "--from", chunked.tar)
    assert (code, answer["healed"], answer["blocked"]) == (0, [name], [])
    assert manifest.read_bytes() == good


def test_a_source_is_never_believed(tmp_path: Path, prefix: Path, host: Host, chunked: ClosedBundle) -> None:
    entry = entry_of(chunked)
    blob = blob_of(prefix, entry)
    damage(blob, CHUNK_SIZE + 77)
    before = blob.read_bytes()
    file = tmp_path / "chunks"
    extract_chunks(chunked.tar, [entry.chunks[1]], file)
    flip_bit(file, file.stat().st_size - 5)
    code, answer = repair(host, chunked, "--prefix", prefix, "--from", file)
    assert (code, answer["damaged"], answer["healed"]) == (5, [row(entry, 1)], [])
    assert blob.read_bytes() == before
    assert list(prefix.rglob("*.partial")) == []
    stranger = make_key(tmp_path / "stranger")
    done = host.runtime(chunked.pyz, "repair", "--prefix", prefix, "--trust", stranger.allowed_signers)
    assert done.returncode == 4


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_a_bundle_on_its_medium(*, tmp_path: Path, host: Host, chunked: ClosedBundle, form: str) -> None:
    entry = entry_of(chunked)
    tar = copy_of(chunked.tar, tmp_path / "copy")
    medium = tar
    if form == "tar":
        layout = tar_layout(chunked.manifest.encode(), chunked.manifest.files)
        start = next(member.offset for member in layout.members if member.entry.path == BIG_PATH)
        flip_bit(tar, start + CHUNK_SIZE + 5)
    else:
        medium = unpack_bundle(tar, tmp_path / "folder")
        flip_bit(medium / BIG_PATH, CHUNK_SIZE + 5)
    words = (medium, "--trust", chunked.trust)
    code, answer = repair(host, chunked, *words, "--list")
    assert (code, answer["damaged"], answer["found"]) == (5, [row(entry, 1)], 1)
    file = tmp_path / "chunks"
    extract_chunks(chunked.tar, parse_chunk_list(json.dumps(answer), where="list"), file)
    code, answer = repair(host, chunked, *words, "--from", file)
    assert (code, answer["damaged"], answer["healed"]) == (0, [], [f"{BIG_PATH} chunk 1"])
    if form == "tar":
        assert tar.read_bytes() == chunked.tar.read_bytes()
    assert host.runtime(chunked.pyz, "verify", medium, "--trust", chunked.trust, "--deep").returncode == 0


def test_what_repair_wants(tmp_path: Path, host: Host, chunked: ClosedBundle, closed_key: Key) -> None:
    del closed_key
    both = host.runtime(chunked.pyz, "repair", chunked.tar, "--prefix", tmp_path, "--trust", chunked.trust)
    assert (both.returncode, both.stdout) == (2, "")
    assert "error: repair takes a BUNDLE or --prefix DIR, one of the two" in both.stderr
    none = host.runtime(chunked.pyz, "repair", "--prefix", tmp_path / "none")
    assert none.returncode == 2
    assert "nothing is installed here" in none.stderr
    untrusted = host.runtime(chunked.pyz, "repair", chunked.tar, "--list")
    assert untrusted.returncode == 2
    two = host.runtime(chunked.pyz, "repair", "--prefix", tmp_path, "--list", "--from", chunked.tar)
    assert "error: repair takes --list or --from FILE, one of the two" in two.stderr
    assert os.listdir(tmp_path) == ["home"]  # noqa: PTH208 # names alone


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"sealift-chunks-1\n", "a repair file without an end of its list"),
        (b"sealift-chunks-1\nabc 1\n\nx", ":2: not a digest and a size"),
        (b"sealift-chunks-1\n" + b"a" * 64 + b" 99999999\n\nx", ":2: not a digest and a size of at most 67108864"),
        (b"sealift-chunks-1\n" + b"a" * 64 + b" 2\n\nx", "86 bytes, its list says 87"),
        (b"anything else", "is not a Sealift bundle"),
    ],
)
def test_a_malformed_repair_file(
    *, tmp_path: Path, big_prefix: Path, host: Host, chunked: ClosedBundle, data: bytes, words: str
) -> None:
    file = tmp_path / "chunks"
    file.write_bytes(data)
    before = set(tree_of(big_prefix))
    done = host.runtime(chunked.pyz, "repair", "--prefix", big_prefix, "--from", file)
    assert done.returncode == 5
    assert words in done.stderr
    assert set(tree_of(big_prefix)) == before
