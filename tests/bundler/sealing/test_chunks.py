"""``bundler extract-chunks``: what a list names, checked while it is read, in a file that any order of runs repeats."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from bundler.sealing.chunks import extract_chunks, parse_chunk_list
from manifests.chunkfile import open_pieces
from manifests.errors import IntegrityError, UsageError
from manifests.sources import Supply
from manifests.tarlayout import tar_layout
from tests.factories import SMALL_FILES, Key, make_bundle, make_key, make_manifest
from tests.factories_cli import Builder
from tests.factories_closed import flip_bit
from tests.factories_media import cut, make_delta_bundle

A, B = (hashlib.sha256(SMALL_FILES[name]).hexdigest() for name in ("models/tiny/config.json", "bootstrap/install.sh"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small signed bundle."""
    return make_bundle(tmp_path, SMALL_FILES, key=make_key(tmp_path / "key"))


def test_lists_are_lines_or_json() -> None:
    text = f"# comment\n{A} 3 models/tiny/config.json\n\n{B}\n{A} 3 again\n"
    assert parse_chunk_list(text, where="list") == [A, B]
    document = json.dumps({"damaged": [{"sha256": B, "path": "x"}, {"sha256": A}], "found": 2})
    assert parse_chunk_list(document, where="list") == [B, A]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list: lists no chunk"),
        ("# nothing\n", "list: lists no chunk"),
        ('{"damaged": []}', "list: lists no chunk"),
        (f"{A}\nabc\n", "list:2: not a digest: 'abc'"),
        (f"{A}0\n", "list:1: not a digest: "),
        ("{", "list: not the JSON document of runtime repair"),
        ('{"damaged": 1}', "list: not the JSON document of runtime repair"),
        ('{"damaged": [{"sha256": 7}]}', "list:1: not a digest: '7'"),
    ],
)
def test_what_is_no_list(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_chunk_list(text, where="list")


def test_the_file_holds_what_was_asked_for(tmp_path: Path, bundle: Path) -> None:
    output = tmp_path / "chunks"
    done = extract_chunks(bundle, [A, B], output)
    first, second = SMALL_FILES["models/tiny/config.json"], SMALL_FILES["bootstrap/install.sh"]
    assert (done.pieces, done.size) == (2, len(first + second))
    head = f"sealift-chunks-1\n{A} {len(first)}\n{B} {len(second)}\n\n"
    assert output.read_bytes() == head.encode() + first + second
    with open_pieces(output) as source:
        assert (source.has(A), source.has(B), source.has("0" * 64)) == (True, True, False)
    assert sorted(os.listdir(tmp_path)) == sorted(  # noqa: PTH208 # names alone
        [bundle.name, "chunks", "key", "key.pub", "key.allowed_signers"]
    )


def test_another_bundle_s_list(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(UsageError, match=f"has no chunk with the digest {'0' * 64}"):
        extract_chunks(bundle, [A, "0" * 64], tmp_path / "chunks")
    assert not (tmp_path / "chunks").exists()


def test_a_damaged_bundle_gives_nothing(tmp_path: Path, bundle: Path) -> None:
    manifest = make_manifest(SMALL_FILES)
    members = tar_layout(manifest.encode(), manifest.files).members
    flip_bit(bundle, next(m.offset for m in members if m.entry.path == "models/tiny/config.json"))
    with pytest.raises(IntegrityError, match=r"models/tiny/config\.json: expected sha256 ") as caught:
        extract_chunks(bundle, [A], tmp_path / "chunks")
    assert caught.value.hint == "take the chunks from a good copy"
    assert [name for name in os.listdir(tmp_path) if "chunks" in name] == []  # noqa: PTH208 # names alone


def test_the_command(tmp_path: Path, bundle: Path) -> None:
    builder = Builder(folder=tmp_path)
    (tmp_path / "list").write_text(f"{A}\n")
    document = builder.json("extract-chunks", bundle.name, "--chunks", "list", "--output", "out")
    assert document == {"chunks": 1, "output": "out", "size": 3}
    assert (tmp_path / "out").read_bytes().endswith(b"\n\n{}\n")
    refused = builder.run("extract-chunks", bundle.name, "--chunks", "none", "--output", "out")
    assert refused.returncode == 2
    assert refused.stderr == "error: none: no such list\nhint: runtime repair BUNDLE --list > LIST\n"


def test_chunks_of_volumes_and_of_a_delta(tmp_path: Path, key: Key) -> None:
    """The bundle's form makes no difference to a repair file; a delta gives only what it carries."""
    tar = make_bundle(tmp_path / "b.bundle.tar", SMALL_FILES, key=key)
    made = cut(tar, 21_000, tmp_path / "a", tmp_path / "b")
    extract_chunks(tar, [A], tmp_path / "one")
    extract_chunks(made[0], [A], tmp_path / "two", Supply(folders=(tmp_path / "b",)))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    delta = make_delta_bundle(tmp_path / "d.bundle.tar", SMALL_FILES, make_manifest(SMALL_FILES), key=key)
    with pytest.raises(UsageError, match=f"has no chunk with the digest {A}"):
        extract_chunks(delta, [A], tmp_path / "three")
