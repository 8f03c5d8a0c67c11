"""What inspect says: numbers, models, signatures; and that it decides nothing."""

import json
from pathlib import Path

import pytest

from bundler.review.summary import inspect_bundle, summary_lines
from manifests.errors import IntegrityError
from manifests.manifest import ModelEntry, manifest_digest
from manifests.progress import format_size
from manifests.sources import Supply
from manifests.tarlayout import SIGNATURE_SLOT, head_of
from tests.factories import SMALL_FILES, Key, make_bundle, make_manifest, unpack_bundle
from tests.factories_media import cut, make_delta_bundle

TINY = ModelEntry(
    name="tiny", adapter="bge-m3", path="models/tiny", format="safetensors", origin="pkg:huggingface/a/b@1"
)


@pytest.fixture
def bundle(tmp_path: Path, key: Key, second_key: Key) -> Path:
    """A bundle with a model and two signatures."""
    return make_bundle(tmp_path, SMALL_FILES, key=[key, second_key], models=(TINY,))


def test_the_document(bundle: Path, key: Key, second_key: Key) -> None:
    document = inspect_bundle(bundle)
    manifest = make_manifest(SMALL_FILES, models=(TINY,))
    assert document["bundle"] == bundle.name.removesuffix(".bundle.tar")
    assert document["digest"] == manifest_digest(manifest.encode())
    assert document["size"] == sum(len(data) for data in SMALL_FILES.values())
    assert document["kinds"] == {
        kind: {"files": len(entries), "size": sum(entry.size for entry in entries)}
        for kind in ("bootstrap", "wheel", "model", "app", "config", "doc")
        if (entries := manifest.of_kind(kind))
    }
    assert document["models"] == [{"adapter": "bge-m3", "name": "tiny", "origin": "pkg:huggingface/a/b@1"}]
    assert document["signatures"] == [
        {"fingerprint": one.public.fingerprint, "fits": True, "type": "ssh-ed25519"} for one in (key, second_key)
    ]
    assert json.loads(json.dumps(document)) == document
    files = document["files"]
    assert isinstance(files, list)
    assert len(files) == len(SMALL_FILES)


def test_the_lines(bundle: Path, key: Key, second_key: Key) -> None:
    lines = list(summary_lines(inspect_bundle(bundle)))
    digest = manifest_digest(make_manifest(SMALL_FILES, models=(TINY,)).encode())
    assert lines[0] == f"{bundle.name.removesuffix('.bundle.tar')}  created 2026-01-02T03:04:05Z  sequence 1767323045"
    assert lines[1] == f"manifest digest {digest}"
    assert lines[2] == "  bootstrap      1 files       17 B"
    assert lines[-5:] == [
        "model tiny (bge-m3) from pkg:huggingface/a/b@1",
        "NOT rehearsed as far as is known: there is no evidence beside the bundle",
        f"signature {key.public.fingerprint} fits the manifest",
        f"signature {second_key.public.fingerprint} fits the manifest",
        "whether to trust a signer is decided by: runtime verify BUNDLE --trust FILE",
    ]


def test_a_folder_says_the_same(bundle: Path, tmp_path: Path) -> None:
    assert inspect_bundle(unpack_bundle(bundle, tmp_path / "folder")) == inspect_bundle(bundle)


def test_an_unsigned_bundle(tmp_path: Path) -> None:
    document = inspect_bundle(make_bundle(tmp_path, SMALL_FILES, key=[]))
    assert document["signatures"] == []
    assert list(summary_lines(document))[-1] == "not signed"


@pytest.mark.parametrize(
    ("slot", "line"),
    [
        (b"junk\n", "the signature slot holds something other than SSH signatures and newlines"),
        (None, "signature {fingerprint} does NOT fit the manifest"),
    ],
)
def test_a_signature_that_is_none(tmp_path: Path, small_bundle: Path, key: Key, slot: bytes | None, line: str) -> None:
    tar = make_bundle(tmp_path, {"docs/other.md": b"other\n"}, key=[])
    offset = len(head_of(make_manifest({"docs/other.md": b"other\n"}).encode()))
    foreign_start = len(head_of(make_manifest(SMALL_FILES, executable=["bootstrap/install.sh"]).encode()))
    foreign = small_bundle.read_bytes()[foreign_start : foreign_start + SIGNATURE_SLOT]
    with tar.open("r+b") as stream:
        stream.seek(offset)
        stream.write(foreign if slot is None else slot)
    lines = list(summary_lines(inspect_bundle(tar)))
    assert lines[-2] == line.format(fingerprint=key.public.fingerprint)


def test_a_truncated_bundle_is_refused(bundle: Path) -> None:
    size = bundle.stat().st_size
    with bundle.open("r+b") as stream:
        stream.truncate(size - 512)
    with pytest.raises(IntegrityError, match=f"truncated: {size - 512} bytes, expected {size}"):
        inspect_bundle(bundle)


def test_a_delta_says_what_it_is(tmp_path: Path, key: Key) -> None:
    base = make_manifest({path: data for path, data in SMALL_FILES.items() if not path.startswith("wheels/")})
    tar = make_delta_bundle(tmp_path / "d.bundle.tar", SMALL_FILES, base, key=key, version="2.0.0")
    for path in (tar, unpack_bundle(tar, tmp_path / "folder")):
        document = inspect_bundle(path)
        size = sum(len(SMALL_FILES[name]) for name in ("bootstrap/install.sh", "wheels/demo-1.0.0-py3-none-any.whl"))
        assert document["delta"] == {
            "base": manifest_digest(base.encode()),
            "base_version": "1.0.0",
            "files": 2,
            "left_out": len(SMALL_FILES) - 2,
            "size": size,
        }
        lines = list(summary_lines(document))
        assert lines[2:4] == [
            f"a delta to version 1.0.0, manifest digest {manifest_digest(base.encode())}",
            f"  carries 2 files, {format_size(size)}; {len(SMALL_FILES) - 2} must be in the prefix already",
        ]
    assert inspect_bundle(make_bundle(tmp_path, SMALL_FILES, key=key))["delta"] is None


def test_volumes_in_two_folders(bundle: Path, tmp_path: Path) -> None:
    made = cut(bundle, 22_000, tmp_path / "a", tmp_path / "b")
    assert inspect_bundle(made[0], Supply(folders=(tmp_path / "b",))) == inspect_bundle(bundle)
    with pytest.raises(IntegrityError, match=rf"{made[1].name}: missing, the bundle has {len(made)} volumes"):
        inspect_bundle(made[0])
