"""Base images that are read: layouts as folders and tars, and layouts that are damaged, hostile or another's."""

import json
import tarfile
from pathlib import Path

import pytest

from bundler.imaging.layout import MANIFEST_TYPE, BaseImage, copy_blob, find_image, open_layout, platform_of
from manifests.errors import IntegrityError, UsageError
from manifests.manifest import Target
from tests.factories_closed import HOST_TARGET
from tests.factories_images import ARCHITECTURE, SYSTEM, make_layout, put_blob, write_index

WANTED = f"{SYSTEM}/{ARCHITECTURE}"


def read(path: Path) -> tuple[BaseImage, list[bytes]]:
    """Return the image of a layout, and its layers' bytes."""
    with open_layout(path) as layout:
        image = find_image(layout, HOST_TARGET)
        contents = []
        for layer in image.layers:
            data = bytearray()
            copy_blob(layout, layer, data.extend)
            contents.append(bytes(data))
        return image, contents


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_and_a_tar_of_it_are_the_same(tmp_path: Path, *, nested: bool) -> None:
    folder = make_layout(tmp_path / "base", config={"Env": ["A=b"]}, nested=nested)
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.add(folder, ".")
    image, contents = read(folder)
    again, same = read(tmp_path / "base.tar")
    assert image.config["config"] == {"Env": ["A=b"]}
    assert (image.layers, image.diff_ids, image.digest) == (again.layers, again.diff_ids, again.digest)
    assert contents == same
    assert [len(content) for content in contents] == [layer.size for layer in image.layers]


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("x86_64-manylinux_2_28", ("linux", "amd64")),
        ("aarch64-unknown-linux-gnu", ("linux", "arm64")),
        ("aarch64-apple-darwin", ("apple-darwin", "arm64")),
    ],
)
def test_platforms_are_called_as_oci_calls_them(platform: str, expected: tuple[str, str]) -> None:
    assert platform_of(Target(platform=platform, python="3.11", accelerator="cpu")) == expected


def test_a_changed_blob_is_named(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "base")
    image, _ = read(folder)
    blob = folder / image.layers[0].name
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(IntegrityError) as caught:
        read(folder)
    assert caught.value.message == f"{blob}: expected {image.layers[0].size} bytes, got more"
    blob.write_bytes(bytes(image.layers[0].size))
    with pytest.raises(IntegrityError) as caught:
        read(folder)
    assert caught.value.message.startswith(f"{blob}: expected {image.layers[0].digest}, got sha256:")


def test_the_last_piece_of_a_changed_blob_is_never_handed_on(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "base")
    image, _ = read(folder)
    (folder / image.layers[0].name).write_bytes(bytes(image.layers[0].size))
    got = bytearray()
    with open_layout(folder) as layout, pytest.raises(IntegrityError):
        copy_blob(layout, image.layers[0], got.extend)
    assert got == b""


def test_a_link_out_of_the_layout_is_not_followed(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "base")
    image, _ = read(folder)
    blob = folder / image.layers[0].name
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="is a link or not a regular file"):
        read(folder)
    blobs = folder / "blobs"
    blobs.rename(tmp_path / "blobs")
    blobs.symlink_to(tmp_path / "blobs")
    with pytest.raises(IntegrityError, match="missing, or below a link"):
        read(folder)


def test_a_link_in_a_tar_is_no_file_of_the_layout(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "base")
    (folder / "index.json").rename(tmp_path / "index.json")
    (folder / "index.json").symlink_to(tmp_path / "index.json")
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.add(folder, ".")
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path / "base.tar")
    assert caught.value.message == f"{tmp_path / 'base.tar'}: is not an OCI image layout: it has no index.json"


def test_a_base_for_another_platform_is_refused(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "base", architecture="riscv64")
    with pytest.raises(UsageError) as caught:
        read(folder)
    assert caught.value.message == f"{folder}: is an image for {SYSTEM}/riscv64, the bundle is for {WANTED}"
    assert caught.value.hint == f"give a base image for {WANTED}"


def test_one_image_has_to_fit(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "base")
    (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
    write_index(folder, entry, {**entry, "platform": {"os": SYSTEM, "architecture": ARCHITECTURE}})
    with pytest.raises(UsageError, match=f"holds 2 images for {WANTED}, exactly one is needed"):
        read(folder)
    write_index(folder, {**entry, "platform": {"os": "linux", "architecture": "riscv64"}})
    with pytest.raises(UsageError, match=f"holds 0 images for {WANTED}, exactly one is needed"):
        read(folder)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"digest": "sha256:../../x", "size": 1, "mediaType": MANIFEST_TYPE}, "a manifest is not named by media type"),
        ({"digest": f"sha256:{'0' * 64}", "size": 1, "mediaType": MANIFEST_TYPE}, f"{'0' * 64}: missing"),
        ({"digest": f"sha256:{'0' * 64}", "size": -1, "mediaType": MANIFEST_TYPE}, "is not named by media type"),
        ({"digest": f"sha256:{'0' * 64}", "size": 1 << 40, "mediaType": MANIFEST_TYPE}, "at most 4194304 are allowed"),
        ({"digest": f"sha256:{'0' * 64}", "size": 1, "mediaType": "text/plain"}, "names text/plain, expected"),
    ],
)
def test_what_the_index_names_is_judged_first(tmp_path: Path, entry: dict[str, object], words: str) -> None:
    folder = make_layout(tmp_path / "base")
    write_index(folder, entry)
    with pytest.raises(IntegrityError, match=words):
        read(folder)


def test_documents_that_are_none(tmp_path: Path) -> None:
    folder = make_layout(tmp_path / "base")
    write_index(folder, put_blob(folder, b"[" * 100_000, MANIFEST_TYPE))
    with pytest.raises(IntegrityError, match=": not JSON"):
        read(folder)
    write_index(folder, put_blob(folder, b"[]", MANIFEST_TYPE))
    with pytest.raises(IntegrityError, match="expected an object"):
        read(folder)
    make_layout(folder, rootfs={"diff_ids": []})
    with pytest.raises(IntegrityError, match="its config doesn't name a diff_id for each of the 1 layers"):
        read(folder)


def test_what_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such base image"):
        read(tmp_path / "nothing")
    with pytest.raises(IntegrityError, match=r"it has no index\.json"):
        read(tmp_path)
    (tmp_path / "text").write_text("no tar")
    with pytest.raises(IntegrityError, match="neither a folder nor a plain tar"):
        read(tmp_path / "text")
