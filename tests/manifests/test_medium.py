"""Hostile media: a tar that was cut, extended or changed anywhere, a folder with missing, extra and odd files."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.bundle import find_damage, verify_content
from manifests.errors import DiskError, IntegrityError, UsageError
from manifests.files import open_below
from manifests.manifest import Manifest, parse_manifest
from manifests.medium import FolderMedium, TarMedium, list_problems, open_medium
from manifests.pieces import Silent
from manifests.sources import FileSource
from manifests.tarlayout import SIGNATURE_SLOT, member_header, padded, tar_layout
from tests.factories import SMALL_FILES, Key, is_root, make_bundle, unpack_bundle

COPY = "copy it again from its source and compare sizes"
NOT_A_BUNDLE = "is not a Sealift bundle: it does not begin with manifest.json"
WHEEL = "wheels/demo-1.0.0-py3-none-any.whl"


def check(path: Path) -> Manifest:
    """Open and check everything but the signature."""
    with open_medium(path) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        verify_content(medium, manifest, Silent(), threads=2)
    return manifest


def refusal(path: Path) -> IntegrityError:
    before = open_descriptors()
    with pytest.raises(IntegrityError) as caught:
        check(path)
    assert open_descriptors() == before
    return caught.value


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def tar(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(small_bundle, tmp_path / "b.tar"))


@pytest.fixture
def folder(small_bundle: Path, tmp_path: Path) -> Path:
    return unpack_bundle(small_bundle, tmp_path / "unpacked")


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ mask]))


def test_both_forms_check_out_and_give_the_same_manifest(tar: Path, folder: Path) -> None:
    before = open_descriptors()
    assert check(tar) == check(folder)
    assert open_descriptors() == before


def test_both_forms_give_manifest_slot_and_label(tar: Path, folder: Path) -> None:
    with open_medium(tar) as one, open_medium(folder) as other:
        assert isinstance(one, TarMedium)
        assert isinstance(other, FolderMedium)
        assert one.manifest_bytes == other.manifest_bytes == (folder / "manifest.json").read_bytes()
        assert one.signature_slot == other.signature_slot
        assert (one.label, other.label) == (str(tar), str(folder))


def test_a_link_to_a_bundle_is_followed(tar: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tar)
    (tmp_path / "b").symlink_to(folder)
    assert check(tmp_path / "a") == check(tmp_path / "b")


def test_no_such_bundle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("gone.tar", "loop"):
        with pytest.raises(UsageError) as caught, open_medium(tmp_path / name):
            pass
        assert caught.value.message == f"{tmp_path / name}: no such bundle"
        assert caught.value.hint == "give the path of a NAME-VERSION-TARGET.bundle.tar"


def test_a_path_that_can_not_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"^can't read .*: File name too long$"), open_medium(tmp_path / ("x" * 300)):
        pass


def test_a_fifo_is_no_bundle_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert str(refusal(tmp_path / "fifo")) == f"{tmp_path / 'fifo'}: is not a regular file"


@pytest.mark.parametrize(
    "content",
    [b"", b"x", bytes(512), bytes(10240), b"PK\x03\x04" * 300, member_header("other.json", 9, 0o644) + bytes(1024)],
)
def test_other_files_are_no_bundles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert str(refusal(tmp_path / "x")) == f"{tmp_path / 'x'}: {NOT_A_BUNDLE}"


def test_a_manifest_beyond_16_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(member_header("manifest.json", 16_000_000, 0o644))
    assert str(refusal(path)) == f"{path}: manifest.json has 16000000 bytes, at most 15999999 are allowed"


def test_truncation_anywhere_is_noticed(tar: Path) -> None:
    whole = tar.stat().st_size
    manifest = check(tar)
    layout = tar_layout(manifest.encode(), manifest.files)
    cuts = {
        0: NOT_A_BUNDLE,
        511: NOT_A_BUNDLE,
        512: "truncated within manifest.json",
        600: "truncated within manifest.json",
        512 + len(manifest.encode()): "a header or padding around manifest.json was changed",
        layout.signature_offset - 1: "a header or padding around manifest.json was changed",
        layout.signature_offset: "truncated within manifest.json.sig",
        layout.signature_offset + SIGNATURE_SLOT - 1: "truncated within manifest.json.sig",
    }
    later = [layout.signature_offset + SIGNATURE_SLOT, layout.trailer_offset, whole - 512, whole - 1]
    later += [offset for member in layout.members for offset in (member.header_offset + 1, member.offset, member.end)]
    cuts |= {offset: f"truncated: {offset} bytes, expected {whole}" for offset in later}
    for offset in sorted(cuts, reverse=True):
        os.truncate(tar, offset)
        error = refusal(tar)
        assert error.message == f"{tar}: {cuts[offset]}"
        named = "give the path of a NAME-VERSION-TARGET.bundle.tar" if cuts[offset] == NOT_A_BUNDLE else None
        assert error.hint == (COPY if "truncated" in cuts[offset] else named)


@pytest.mark.parametrize("extra", [b"\0", b"x", bytes(512), bytes(10240)])
def test_bytes_after_the_end(tar: Path, extra: bytes) -> None:
    size = tar.stat().st_size
    with tar.open("ab") as stream:
        stream.write(extra)
    assert str(refusal(tar)) == f"{tar}: {len(extra)} bytes after its end, expected {size} bytes in all"


def test_every_byte_outside_the_contents_is_fixed(tar: Path) -> None:
    """Flip one bit in each header field, each padding, and the trailer; name where."""
    manifest = check(tar)
    layout = tar_layout(manifest.encode(), manifest.files)
    places: dict[int, str] = {layout.trailer_offset: "the end", layout.size - 1: "the end"}
    for member in layout.members:
        for offset in (0, 100, 108, 124, 136, 148, 156, 157, 257, 265, 329, 345, 511):
            places[member.offset - 512 + offset] = member.entry.path
        places[member.header_offset] = member.entry.path
    for before, after in zip(layout.members, layout.members[1:], strict=False):
        if before.offset + before.entry.size < before.end:
            places[before.offset + before.entry.size] = after.entry.path
            places[before.end - 1] = after.entry.path
    for offset, path in places.items():
        flip(tar, offset)
        assert str(refusal(tar)) == f"{tar}: header or padding changed at byte {offset}, before {path}"
        flip(tar, offset)
    check(tar)


def test_the_head_is_fixed_too(tar: Path) -> None:
    manifest = check(tar).encode()
    for offset in (0, 100, 156, 511):
        flip(tar, offset)
        assert str(refusal(tar)) == f"{tar}: {NOT_A_BUNDLE}"
        flip(tar, offset)
    for offset in (512 + len(manifest), 512 + padded(len(manifest)) - 1, 512 + padded(len(manifest)) + 10):
        flip(tar, offset)
        assert str(refusal(tar)) == f"{tar}: a header or padding around manifest.json was changed"
        flip(tar, offset)


@pytest.mark.parametrize("path", [path for path, content in SMALL_FILES.items() if content])
def test_a_changed_content_is_named(tar: Path, path: str) -> None:
    manifest = check(tar)
    (member,) = [m for m in tar_layout(manifest.encode(), manifest.files).members if m.entry.path == path]
    flip(tar, member.offset + member.entry.size - 1, 0x80)
    error = refusal(tar)
    assert error.message.startswith(f"{tar}: 1 problem:\n  {path}: expected sha256 {member.entry.sha256}, got ")
    assert error.hint == "copy the bundle again from its source"
    assert error.exit_code == 5


def test_all_damaged_files_are_named_together_in_order(tar: Path) -> None:
    manifest = check(tar)
    layout = tar_layout(manifest.encode(), manifest.files)
    damaged = [member for member in layout.members if member.entry.size]
    for member in damaged:
        flip(tar, member.offset)
    lines = refusal(tar).message.splitlines()
    assert lines[0] == f"{tar}: {len(damaged)} problems:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [member.entry.path for member in damaged]


def test_a_file_cut_while_it_is_read_is_an_integrity_error(tar: Path) -> None:
    with open_medium(tar) as medium:
        assert isinstance(medium, TarMedium)
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        os.truncate(tar, 30_000)
        damage = find_damage(medium, manifest.files, Silent(), threads=2)
        assert [item.got for item in damage if item.piece.entry.path == WHEEL] == []
        assert damage[-1].got == "only 0 of 10 bytes"
        layout = tar_layout(medium.manifest_bytes, manifest.files)
        last = layout.members[-1]
        os.truncate(tar, last.header_offset + 9)
        words = f"header or padding changed at byte {last.header_offset + 9}, before {last.entry.path}"
        assert medium._frame_problem(layout, len(layout.members) - 1) == words


def test_a_medium_that_can_not_be_read_is_a_disk_error(tar: Path) -> None:
    source = FileSource(tar)
    medium = TarMedium(source)
    manifest = parse_manifest(medium.manifest_bytes)
    medium.check_layout(manifest)
    medium.close()
    source._descriptor = os.open(tar, os.O_WRONLY)
    try:
        with pytest.raises(DiskError) as caught:
            medium.check_layout(manifest)
        assert str(caught.value) == f"can't read {tar}: Bad file descriptor"
        (first, *_) = find_damage(medium, manifest.files, Silent(), threads=1)
        assert first.got == f"can't read {tar}: Bad file descriptor"
    finally:
        medium.close()


def test_a_chunk_is_named(tmp_path: Path, key: Key) -> None:
    tar = make_bundle(tmp_path, {"models/m/w.bin": 65 << 20, "docs/a": b"a"}, key=key)
    manifest = check(tar)
    (big, _) = tar_layout(manifest.encode(), manifest.files).members
    flip(tar, big.offset + (64 << 20) + 3)
    assert refusal(tar).message.startswith(
        f"{tar}: 1 problem:\n  models/m/w.bin chunk 1: expected sha256 {big.entry.chunks[1]}, got "
    )


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert str(error) == f"{tmp_path}: is not an unpacked bundle: it has no manifest.json"
    assert error.hint == "give the path of a NAME-VERSION-TARGET.bundle.tar, or of the folder that it was unpacked to"


def test_a_folder_without_a_signature(folder: Path) -> None:
    (folder / "manifest.json.sig").unlink()
    assert str(refusal(folder)) == f"{folder}/manifest.json.sig: missing"


@pytest.mark.parametrize(("name", "limit"), [("manifest.json", 15_999_999), ("manifest.json.sig", 16_384)])
def test_a_folder_with_too_large_a_head(folder: Path, name: str, limit: int) -> None:
    os.truncate(folder / name, limit + 1)
    assert str(refusal(folder)) == f"{folder / name}: {limit + 1} bytes, at most {limit} are allowed"


def test_a_folder_whose_manifest_is_a_link(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "elsewhere")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere")
    assert str(refusal(folder)) == f"{folder}/manifest.json: is a link or not a regular file"


def test_a_folder_with_missing_extra_and_short_files(folder: Path) -> None:
    (folder / WHEEL).unlink()
    (folder / "models/tiny/config.json").write_bytes(b"{")
    (folder / "extra.py").write_bytes(b"")
    (folder / "docs/new/empty").mkdir(parents=True)
    (folder / "app/link").symlink_to("/")
    (folder / "app/dangling").symlink_to("gone")
    os.mkfifo(folder / "app/fifo")
    (folder / "app/a\nb\x1b[31m").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(folder) + b"/app/\xff")).write_bytes(b"")
    assert refusal(folder).message.splitlines() == [
        f"{folder}: 9 problems:",
        f"  {WHEEL}: missing",
        "  'app/a\\nb\\x1b[31m': not in the manifest",
        "  app/dangling: not in the manifest",
        "  app/fifo: not in the manifest",
        "  app/link: not in the manifest",
        "  'app/\\udcff': not in the manifest",
        "  docs/new/empty/: not in the manifest",
        "  extra.py: not in the manifest",
        "  models/tiny/config.json: 1 bytes, expected 3",
    ]


def odd_wheels(folder: Path) -> Iterator[str]:
    """Put something of the right size, but not a regular file, in the place of a file; yield what is to be said."""
    empty, config = folder / "config/empty.yaml", folder / "models/tiny/config.json"
    empty.unlink()
    os.mkfifo(empty)
    yield "config/empty.yaml: expected sha256 {empty}, got empty.yaml: is not a regular file"
    empty.unlink()
    empty.write_bytes(b"")
    config.unlink()
    config.symlink_to("{}\n")  # three bytes, as the file had
    yield "models/tiny/config.json: expected sha256 {config}, got config.json: is a link or not a regular file"


def test_a_folder_with_links_and_fifos_of_the_right_size(folder: Path) -> None:
    manifest = check(folder)
    digests = {entry.path.rsplit("/", 1)[1].split(".")[0]: entry.sha256 for entry in manifest.files}
    for expected in odd_wheels(folder):
        assert refusal(folder).message == f"{folder}: 1 problem:\n  " + expected.format(**digests)


def test_a_folder_in_the_place_of_a_file_and_the_other_way_round(folder: Path) -> None:
    (folder / WHEEL).unlink()
    (folder / WHEEL).mkdir()
    assert f"{WHEEL}: " in refusal(folder).message
    shutil.rmtree(folder / "models")
    (folder / "models").write_bytes(b"")
    message = refusal(folder).message
    assert "  models/tiny/config.json: missing" in message
    assert "  models: not in the manifest" in message


def test_a_folder_linked_from_outside_is_not_entered(folder: Path) -> None:
    (folder / "models").rename(folder.parent / "outside")
    (folder / "models").symlink_to(folder.parent / "outside")
    message = refusal(folder).message
    assert "  models: not in the manifest" in message
    assert "  models/tiny/config.json: missing" in message


def test_a_folder_deeper_than_the_interpreter_likes(folder: Path) -> None:
    """Made and removed step by step, since its path is longer than the system takes."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        there = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    try:
        message = refusal(folder).message
    finally:
        subprocess.run(["rm", "-rf", folder / "d"], check=True)  # noqa: S607 # rmtree would recurse too deep
    assert message == f"{folder}: 1 problem:\n  {'d/' * 100!r}: not in the manifest"


def test_mode_bits_of_a_folder_are_not_checked(folder: Path) -> None:
    (folder / WHEEL).chmod(0o755)
    check(folder)


def test_a_folder_that_can_not_be_searched(folder: Path) -> None:
    blocked = folder / "app/blocked"
    blocked.mkdir(mode=0)
    for parent in list(folder.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    if is_root():
        os.seteuid(65534)
    try:
        with pytest.raises(DiskError) as caught:
            check(folder)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert caught.value.message == f"can't read {folder}: permission denied"


def test_open_below_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("real")
    with open_below(tmp_path, "real/a") as descriptor:
        assert os.read(descriptor, 9) == b"abc"
    for path in ("link/a", "gone/a", "real/a/b"):
        with pytest.raises(IntegrityError) as caught, open_below(tmp_path, path):
            pass
        assert str(caught.value) == f"{tmp_path / path}: missing, or below a link"
    with pytest.raises(IntegrityError, match=r"^b: missing$"), open_below(tmp_path, "real/b"):
        pass


def test_list_problems() -> None:
    assert list_problems("x", ["a: missing"]) == "x: 1 problem:\n  a: missing"
    assert list_problems("x", list("abc"), limit=2) == "x: 3 problems:\n  a\n  b\n  ... and 1 more"


def test_a_device_error_is_said_so() -> None:
    """Reading this process's memory at address 0 fails with EIO, as a bad sector does."""
    before = open_descriptors()
    with pytest.raises(DiskError) as caught, open_medium(Path("/proc/self/mem")):
        pass
    assert caught.value.message.endswith("/mem: the device reports a read or write error")
    assert caught.value.hint == "the medium may be damaged: copy from another one"
    assert open_descriptors() == before
