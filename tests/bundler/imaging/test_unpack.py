"""Layers that are unpacked: as an engine would, and never out of their folder."""

import gzip
import hashlib
from pathlib import Path

import pytest

from bundler.imaging.layout import GZIP_LAYER_TYPE, LAYER_TYPE, Descriptor
from bundler.imaging.unpack import check_layer_type, resolve_inside, unpack_layer
from manifests.errors import IntegrityError, UsageError
from tests.factories_images import Member, layer_tar


def unpack(folder: Path, *members: Member, packed: bool = True, diff_id: str = "") -> Path:
    """Unpack one more layer over ``folder/root``; return that."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    tar = layer_tar(members)
    data = gzip.compress(tar) if packed else tar
    (folder / "blob").write_bytes(data)
    kind = GZIP_LAYER_TYPE if packed else LAYER_TYPE
    layer = Descriptor(media_type=kind, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
    unpack_layer(folder / "blob", layer, diff_id or f"sha256:{hashlib.sha256(tar).hexdigest()}", root)
    return root


@pytest.mark.parametrize("packed", [True, False])
def test_files_folders_and_links(tmp_path: Path, *, packed: bool) -> None:
    root = unpack(
        tmp_path,
        Member(name="./usr/bin", mode=0o500),
        Member(name="usr/bin/sh", content=b"shell", mode=0o4755),
        Member(name="bin", link="usr/bin"),
        Member(name="bin/bash", link="usr/bin/sh", hard=True),
        Member(name="etc/deep/file", content=b"x", mode=0),
        packed=packed,
    )
    assert (root / "bin/bash").read_bytes() == b"shell"
    assert (root / "usr/bin/bash").stat().st_ino == (root / "usr/bin/sh").stat().st_ino
    assert (root / "usr/bin/sh").stat().st_mode & 0o7777 == 0o755  # nothing of a foreign image is setuid here
    assert (root / "usr/bin").stat().st_mode & 0o777 == 0o700
    assert (root / "etc/deep/file").stat().st_mode & 0o777 == 0o400


def test_a_later_layer_replaces_and_hides(tmp_path: Path) -> None:
    unpack(
        tmp_path,
        Member(name="a/one", content=b"1"),
        Member(name="a/two", content=b"2"),
        Member(name="b/three", content=b"3"),
        Member(name="c", content=b"4"),
    )
    root = unpack(
        tmp_path,
        Member(name="a/.wh.one", content=b""),
        Member(name="b/.wh..wh..opq", content=b""),
        Member(name="b/four", content=b"4"),
        Member(name="c"),
        Member(name="a/two", link="/b/four"),
    )
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == ["a", "a/two", "b", "b/four", "c"]
    assert (root / "a/two").is_symlink()
    assert (root / "c").is_dir()


@pytest.mark.parametrize(
    "member",
    [
        Member(name="../out", content=b"x"),
        Member(name="a/../../out", content=b"x"),
        Member(name="a/.wh...", content=b""),
        Member(name="link", link="../out", hard=True),
    ],
    ids=lambda member: member.name,
)
def test_names_that_lead_out_are_refused(tmp_path: Path, member: Member) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(IntegrityError, match="a member of a layer leads out of the image"):
        unpack(tmp_path, Member(name="a"), member)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../../../../{outside}", "../outside"])
def test_links_that_lead_out_stay_inside(tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = target.format(outside=outside)
    root = unpack(tmp_path, Member(name="x/way", link=link), Member(name="x/way/file", content=b"hostile"))
    assert list(outside.iterdir()) == []
    found = [path for path in root.rglob("file") if path.is_file()]
    assert [path.read_bytes() for path in found] == [b"hostile"]


def test_a_file_replaces_a_link_and_is_not_written_through_it(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    root = unpack(tmp_path, Member(name="f", link=str(tmp_path / "mine")), Member(name="f", content=b"new"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert (root / "f").read_bytes() == b"new"
    assert not (root / "f").is_symlink()


def test_a_hard_link_to_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="'f' is a link to 'g', which is no file so far"):
        unpack(tmp_path, Member(name="f", link="g", hard=True))


def test_links_in_a_circle(tmp_path: Path) -> None:
    members = (Member(name="a", link="b"), Member(name="b", link="a"), Member(name="a/file", content=b""))
    with pytest.raises(IntegrityError, match="'a': links in the image lead in a circle"):
        unpack(tmp_path, *members)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="goes through 'a' in the image, which is no folder"):
        unpack(tmp_path, Member(name="a", content=b""), Member(name="a/b", content=b""))


def test_the_tar_has_to_be_the_one_of_the_config(tmp_path: Path) -> None:
    wrong = f"sha256:{'0' * 64}"
    with pytest.raises(IntegrityError, match=f"its tar: expected {wrong}, got sha256:"):
        unpack(tmp_path, Member(name="a"), diff_id=wrong)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"no gzip at all", id="no gzip"),
        pytest.param(gzip.compress(bytes(5000))[:-20], id="cut"),
        pytest.param(gzip.compress(b"no tar" * 500), id="no tar"),
    ],
)
def test_a_layer_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "blob").write_bytes(data)
    layer = Descriptor(media_type=GZIP_LAYER_TYPE, digest=f"sha256:{'1' * 64}", size=len(data))
    (tmp_path / "root").mkdir()
    with pytest.raises(IntegrityError, match=f"layer sha256:{'1' * 64}: can't be unpacked"):
        unpack_layer(tmp_path / "blob", layer, f"sha256:{'0' * 64}", tmp_path / "root")


def test_zstd_is_refused_with_what_to_do() -> None:
    layer = Descriptor(media_type=f"{LAYER_TYPE}+zstd", digest=f"sha256:{'1' * 64}", size=1)
    with pytest.raises(UsageError) as caught:
        check_layer_type(layer, "base")
    assert caught.value.message == f"base: has a layer of {LAYER_TYPE}+zstd, expected a plain tar or one with gzip"
    assert caught.value.hint == "skopeo copy --dest-compress-format gzip oci:LAYOUT oci:FOLDER"


def test_the_way_up_ends_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "up").symlink_to("../../a")
    assert resolve_inside(tmp_path, ["up"]) == tmp_path / "a"
