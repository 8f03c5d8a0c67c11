"""Deltas: what they select, that the selection can't lie to any effect, and that both forms check out."""

import json
from pathlib import Path

import pytest

from manifests.bundle import carried_files, verify_content
from manifests.canonical import encode_canonical
from manifests.delta import MAX_DELTA_SIZE, Delta, make_delta, parse_delta
from manifests.errors import IntegrityError
from manifests.manifest import Manifest, manifest_digest, parse_manifest
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.sources import Supply
from manifests.tarlayout import TRAILER, member_header, tar_layout
from tests.factories import SMALL_FILES, Content, Key, make_bundle, make_manifest, sign_slot, unpack_bundle
from tests.factories_media import cut, delta_bytes, delta_text, make_delta_bundle, needed
from tests.manifests.test_volumes import Pipe

MODEL = "models/tiny/model.safetensors"
NEW: dict[str, Content] = {**SMALL_FILES, MODEL: b"new weights" * 900, "docs/NEWS.md": b"# News\n"}
BASE = make_manifest(SMALL_FILES)
FULL = make_manifest(NEW, version="2.0.0")
DIGEST = manifest_digest(BASE.encode())
PATHS = [entry.path for entry in FULL.files]


def delta_of(*carried: int, base: str = DIGEST, version: str = "1.0.0") -> Delta:
    return Delta(base=base, base_version=version, carried=carried)


@pytest.fixture
def tar(tmp_path: Path, key: Key) -> Path:
    return make_delta_bundle(tmp_path / "d.bundle.tar", NEW, BASE, key=key, version="2.0.0")


def check(path: Path, supply: Supply | None = None) -> tuple[Manifest, list[str]]:
    with open_medium(path, supply) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        verify_content(medium, manifest, Silent(), threads=2)
        carried = carried_files(medium, manifest)
        assert [entry for entry in manifest.files if medium.carries(entry)] == list(carried)
        assert medium.delta is not None
        assert medium.delta.base_label == f"version 1.0.0, manifest digest {DIGEST}"
        return manifest, [entry.path for entry in carried]


def refusal(path: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        check(path)
    return caught.value.message


def test_what_a_delta_carries() -> None:
    delta = make_delta(FULL, BASE, DIGEST)
    assert [entry.path for entry in delta.files(FULL)] == ["bootstrap/install.sh", MODEL, "docs/NEWS.md"]
    assert delta == delta_of(*needed(FULL, BASE))
    assert make_delta(BASE, BASE, DIGEST).carried == (0,)
    assert delta.encode() == delta_text(BASE, delta.carried)
    assert parse_delta(delta.encode()) == delta


def test_a_mode_is_content_too() -> None:
    """The store keeps an executable under a name of its own, so it has to be carried."""
    other = make_manifest(SMALL_FILES, executable=["app/\ud55c\uae00/\ubb38\uc11c.txt"])
    assert len(make_delta(other, BASE, DIGEST).carried) == 2


def test_every_form_of_a_delta(tar: Path, tmp_path: Path) -> None:
    expected = (FULL, ["bootstrap/install.sh", MODEL, "docs/NEWS.md"])
    assert check(tar) == expected
    assert check(unpack_bundle(tar, tmp_path / "unpacked")) == expected
    assert check(cut(tar, 20_480, tmp_path / "stick")[0]) == expected
    assert check(Path("-"), Supply(stream=Pipe(tar.read_bytes()))) == expected


def test_a_delta_is_a_function_of_its_manifests(tar: Path) -> None:
    delta = make_delta(FULL, BASE, DIGEST)
    layout = tar_layout(FULL.encode(), delta.files(FULL), delta.encode())
    assert layout.size == tar.stat().st_size
    assert layout.list_member == member_header("delta.json", len(delta.encode()), 0o644) + delta.encode().ljust(
        512, b"\0"
    )
    with open_medium(tar) as medium:
        assert medium.manifest_bytes == FULL.encode()
        assert medium.delta == delta


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_type": "urn:sealift:delta:2"}, "delta.json: _type is 'urn:sealift:delta:2', this Sealift reads"),
        ({"base": "0" * 63}, "delta.json: base: '" + "0" * 63 + "' does not have the form"),
        ({"base": "A" * 64}, "does not have the form"),
        ({"base": None}, "delta.json: base: missing"),
        ({"base-version": "../x"}, "delta.json: base-version: '../x' does not have the form"),
        ({"carried": [0, 0]}, "delta.json: carried[1]: indices are integers that rise, each once"),
        ({"carried": [1, 0]}, "delta.json: carried[1]: indices are integers that rise, each once"),
        ({"carried": [-1]}, "delta.json: carried[0]: indices are integers that rise, each once"),
        ({"carried": [True]}, "delta.json: carried[0]: indices are integers that rise, each once"),
        ({"carried": ["0"]}, "delta.json: carried[0]: indices are integers that rise, each once"),
        ({"carried": "0"}, "delta.json: carried: expected a list, got a string"),
        ({"more": 1}, "delta.json: more: unknown key"),
    ],
)
def test_a_hostile_list(change: dict[str, object], words: str) -> None:
    document = json.loads(delta_of(0, 1).encode()) | change
    with pytest.raises(IntegrityError) as caught:
        parse_delta(encode_canonical(document))
    assert words in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{}", b"[]\n", b"{}\n", b'{"_type": "urn:sealift:delta:1"}\n', b"\xff"])
def test_what_is_no_list(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^delta\.json: "):
        parse_delta(data)


def test_indices_beyond_the_manifest() -> None:
    last = len(FULL.files)
    with pytest.raises(IntegrityError, match=rf"carried names file {last}, the manifest has {last} files"):
        delta_of(0, last).files(FULL)
    assert len(delta_of(0, last - 1).files(FULL)) == 2


def test_bootstrap_is_always_carried() -> None:
    with pytest.raises(IntegrityError, match=r"leaves bootstrap/install\.sh out, a delta carries all of bootstrap/"):
        delta_of(1, 2).files(FULL)


def with_list(tmp_path: Path, key: Key, text: bytes, carried: list[int]) -> Path:
    path = tmp_path / "x.bundle.tar"
    path.write_bytes(delta_bytes(FULL, NEW, sign_slot(FULL.encode(), key), text, carried))
    return path


def test_a_list_that_does_not_fit_the_members(tmp_path: Path, key: Key) -> None:
    model = PATHS.index(MODEL)
    path = with_list(tmp_path, key, delta_text(BASE, [0]), [0, model])
    assert " bytes after its end, expected " in refusal(path)
    path = with_list(tmp_path, key, delta_text(BASE, [0, model]), [0])
    assert ": truncated: " in refusal(path)
    path = with_list(tmp_path, key, delta_text(BASE, [0, 1]), [0, model])
    assert refusal(path)


def test_damage_around_the_list(tar: Path, tmp_path: Path) -> None:
    data = tar.read_bytes()
    start = tar_layout(FULL.encode(), ()).list_offset
    size = len(delta_text(BASE, needed(FULL, BASE)))
    path = tmp_path / "x"
    for offset, words in (
        (start + 100, "the header of delta.json was changed"),
        (start + 512 + size, "the padding behind delta.json was changed"),
        (start + 512, "delta.json: not canonical JSON"),
    ):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        assert words in refusal(path)
    path.write_bytes(data[: start + 600])
    assert refusal(path) == f"{path}: truncated within delta.json"


def test_a_list_of_a_gigabyte_is_not_read(tar: Path, tmp_path: Path) -> None:
    start = tar_layout(FULL.encode(), ()).list_offset
    path = tmp_path / "x"
    path.write_bytes(tar.read_bytes()[:start] + member_header("delta.json", 1_000_000_000, 0o644) + bytes(4096))
    assert refusal(path) == f"{path}: delta.json has 1000000000 bytes, at most {MAX_DELTA_SIZE} are allowed"
    folder = unpack_bundle(tar, tmp_path / "unpacked")
    (folder / "delta.json").write_bytes(b" " * (MAX_DELTA_SIZE + 1))
    assert (
        refusal(folder) == f"{folder / 'delta.json'}: {MAX_DELTA_SIZE + 1} bytes, at most {MAX_DELTA_SIZE} are allowed"
    )


def test_a_folder_with_more_or_less_than_its_list(tar: Path, tmp_path: Path) -> None:
    folder = unpack_bundle(tar, tmp_path / "unpacked")
    (folder / "config").mkdir()
    (folder / "config/empty.yaml").write_bytes(b"")
    (folder / MODEL).unlink()
    assert refusal(folder).splitlines() == [
        f"{folder}: 2 problems:",
        f"  {MODEL}: missing",
        "  config/empty.yaml: not in delta.json",
    ]


def test_a_full_bundle_with_a_list_after_all(tmp_path: Path, key: Key) -> None:
    """In a folder a stray delta.json hides files from nobody: what it leaves out may not be there."""
    folder = unpack_bundle(make_bundle(tmp_path / "f.tar", NEW, key=key, version="2.0.0"), tmp_path / "unpacked")
    (folder / "delta.json").write_bytes(delta_text(BASE, [0]))
    assert refusal(folder).startswith(f"{folder}: {len(FULL.files) - 1} problems:")


def test_a_full_bundle_is_no_delta(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path / "f.tar", NEW, key=key)
    for path in (tar, unpack_bundle(tar, tmp_path / "unpacked")):
        with open_medium(path) as medium:
            assert medium.delta is None
            assert carried_files(medium, parse_manifest(medium.manifest_bytes)) == make_manifest(NEW).files


def test_an_empty_delta(tmp_path: Path, key: Key) -> None:
    files: dict[str, Content] = {"docs/a.md": b"a"}
    manifest = make_manifest(files)
    path = tmp_path / "x.tar"
    slot = sign_slot(manifest.encode(), key)
    path.write_bytes(delta_bytes(manifest, files, slot, delta_text(manifest, []), []))
    with open_medium(path) as medium:
        verify_content(medium, manifest, Silent())
        assert not medium.carries(manifest.files[0])
    assert path.read_bytes().endswith(TRAILER)
