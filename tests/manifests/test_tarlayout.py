"""The tar layout: golden headers, and the same tar read by two strangers, Python's tarfile and GNU tar."""

import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.digests import sha256_hex
from manifests.manifest import FileEntry
from manifests.tarlayout import (
    BLOCK,
    SIGNATURE_SLOT,
    TRAILER,
    head_of,
    header_size,
    member_header,
    needs_pax,
    padded,
    tar_layout,
)
from tests.factories import SMALL_FILES, Key, make_bundle, make_manifest

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "reference" / "bundle-format.md"
LONG = "docs/" + "long/" * 25 + "INSTALL.md"
GIB = 1024**3
GOLDEN = {
    "plain": ("wheels/demo-1.0.0-py3-none-any.whl", 1200, 0o644),
    "base256": ("models/big/model.safetensors", 8 * GIB, 0o644),
    "pax_korean": ("app/\ud55c\uae00/\ubb38\uc11c.txt", 7, 0o755),
    "pax_long": (LONG, 10, 0o644),
}


def hexdump(data: bytes) -> str:
    """Return what ``hexdump -C`` prints, with lines of zeros left out."""
    lines = []
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        if any(row):
            text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
            lines.append(f"{offset:08x}  {row[:8].hex(' ')}  {row[8:].hex(' ')}  |{text}|")
    return "\n".join(lines)


@pytest.mark.parametrize("form", GOLDEN)
def test_golden_headers(form: str) -> None:
    path, size, mode = GOLDEN[form]
    golden = bytes.fromhex((TESTS / "golden" / f"header_{form}.hex").read_text())
    assert member_header(path, size, mode) == golden
    assert header_size(path) == len(golden)


@pytest.mark.parametrize("form", GOLDEN)
def test_the_docs_show_the_golden_headers(form: str) -> None:
    assert f"```\n{hexdump(member_header(*GOLDEN[form]))}\n```" in PAGE.read_text(encoding="utf-8")


def test_padded() -> None:
    assert [padded(size) for size in (0, 1, 511, 512, 513, 8 * GIB + 1)] == [0, 512, 512, 512, 1024, 8 * GIB + 512]


@pytest.mark.parametrize(
    ("path", "needed"),
    [("a" * 100, False), ("a" * 101, True), ("\u00e9", True), ("app/\ud55c", True), ("a/b", False)],
)
def test_needs_pax(path: str, needed: bool) -> None:
    assert needs_pax(path) is needed


@pytest.mark.parametrize("length", [101, 102, 103, 987, 988, 989, 990, 991, 1024])
def test_a_pax_record_counts_its_own_length(length: int) -> None:
    path = ("x" * 99 + "/") * 11
    path = path[: length - 1] + "y"
    header = member_header(path, 0, 0o644)
    size = int(header[124:135], 8)
    record = header[BLOCK : BLOCK + size]
    assert record == b"%d path=%b\n" % (size, path.encode())
    assert len(header) == header_size(path) == 2 * BLOCK + padded(size)
    assert header[BLOCK + size : BLOCK + padded(size)] == bytes(padded(size) - size)


def test_the_fallback_name_is_ascii_and_never_a_folder() -> None:
    header = member_header("app/\ud55c/" + "x" * 200, 0, 0o644)
    assert header[-BLOCK : -BLOCK + 100] == b"app/___/" + b"x" * 92
    slash = member_header("docs/" + "y" * 94 + "/z", 0, 0o644)
    assert slash[-BLOCK : -BLOCK + 100] == b"docs/" + b"y" * 94 + b"_"


@pytest.mark.parametrize(
    ("size", "field"),
    [
        (0, b"00000000000\0"),
        (8 * GIB - 1, b"77777777777\0"),
        (8 * GIB, b"\x80\0\0\0\0\0\0\x02\0\0\0\0"),
        (2**53 - 1, b"\x80\0\0\0\0\x1f" + b"\xff" * 6),
    ],
)
def test_the_size_field(size: int, field: bytes) -> None:
    assert member_header("docs/a", size, 0o644)[124:136] == field


@given(
    path=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=250),
    size=st.integers(0, 2**53 - 1),
    mode=st.sampled_from([0o644, 0o755]),
)
def test_tarfile_reads_every_header(path: str, size: int, mode: int) -> None:
    header = member_header(f"docs/{path}", size, mode)
    pax = len(header) > BLOCK
    info = tarfile.TarInfo.frombuf(header[-BLOCK:], "utf-8", "strict")
    assert (info.size, info.mode, info.uid, info.gid, info.mtime, info.type) == (size, mode, 0, 0, 0, tarfile.REGTYPE)
    assert (info.uname, info.gname, info.linkname) == ("", "", "")
    if not pax:
        assert info.name == f"docs/{path}"
    else:
        extended = tarfile.TarInfo.frombuf(header[:BLOCK], "utf-8", "strict")
        assert (extended.type, extended.name) == (tarfile.XHDTYPE, "PaxHeader")
        record = header[BLOCK : BLOCK + extended.size].decode()
        assert record == f"{len(record.encode())} path=docs/{path}\n"


def test_an_empty_bundle_has_head_slot_and_trailer() -> None:
    manifest = make_manifest({}).encode()
    layout = tar_layout(manifest, ())
    assert layout.head == head_of(manifest)
    assert layout.signature_offset == len(layout.head) == 512 + padded(len(manifest)) + 512
    assert layout.trailer_offset == layout.signature_offset + SIGNATURE_SLOT
    assert layout.size == layout.trailer_offset + 1024
    assert bytes(1024) == TRAILER


def test_members_follow_each_other_without_gaps() -> None:
    manifest = make_manifest(SMALL_FILES)
    layout = tar_layout(manifest.encode(), manifest.files)
    position = layout.signature_offset + SIGNATURE_SLOT
    for member, entry in zip(layout.members, manifest.files, strict=True):
        assert member.entry is entry
        assert member.header_offset == position
        assert member.offset == position + header_size(entry.path)
        position = member.end
    assert layout.trailer_offset == position


def test_golden_bundle(small_bundle: Path) -> None:
    """Same files, same key, same bytes: Ed25519 signatures are deterministic."""
    assert small_bundle.name == "demo-1.0.0-x86_64-manylinux_2_28-cp311-cpu.bundle.tar"
    assert sha256_hex(small_bundle.read_bytes()) == "b9461883171b9b46df79e276ebc7b6fbe4f79866e34529e320fb3171997817a0"


def expected_members(tar: Path) -> dict[str, tuple[int, int]]:
    manifest = make_manifest(SMALL_FILES, executable=["bootstrap/install.sh"])
    members = {"manifest.json": (len(manifest.encode()), 0o644), "manifest.json.sig": (SIGNATURE_SLOT, 0o644)}
    assert tar.stat().st_size == tar_layout(manifest.encode(), manifest.files).size
    return members | {entry.path: (entry.size, entry.mode) for entry in manifest.files}


def test_tarfile_reads_the_same_members_and_contents(small_bundle: Path) -> None:
    with tarfile.open(small_bundle) as archive:
        members = archive.getmembers()
        assert {info.name: (info.size, info.mode) for info in members} == expected_members(small_bundle)
        assert all(info.isreg() and not info.issparse() for info in members)
        for path, content in SMALL_FILES.items():
            source = archive.extractfile(path)
            assert source is not None
            assert source.read() == content


def test_gnu_tar_reads_the_same_members_and_contents(small_bundle: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["tar", "--extract", "--preserve-permissions", "--warning=all", "--file", small_bundle],  # noqa: S607 # any GNU tar
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    files = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: (path.stat().st_size, path.stat().st_mode & 0o7777) for name, path in files.items()} == (
        expected_members(small_bundle)
    )
    assert {name: files[name].read_bytes() for name in SMALL_FILES} == SMALL_FILES


def test_both_read_a_member_of_8_gib_and_what_follows(tmp_path: Path) -> None:
    """The file is sparse; only headers are read, since the data of a regular file can be skipped."""
    big = FileEntry(
        path="models/big/model.safetensors",
        size=8 * GIB,
        sha256="0" * 64,
        mode=0o644,
        kind="model",
        chunks=("0" * 64,) * 128,
    )
    tail = make_manifest({"docs/a": b"tail"}).files
    manifest = replace(make_manifest({}), files=(big, *tail))
    layout = tar_layout(manifest.encode(), manifest.files)
    tar = tmp_path / "big.bundle.tar"
    with tar.open("wb") as stream:
        stream.write(layout.head + b"\n" * SIGNATURE_SLOT)
        for member in layout.members:
            stream.seek(member.header_offset)
            stream.write(member_header(member.entry.path, member.entry.size, member.entry.mode))
        stream.seek(layout.members[1].offset)
        stream.write(b"tail")
        stream.truncate(layout.size)
    with tarfile.open(tar) as archive:
        assert [(info.name, info.size) for info in archive.getmembers()[2:]] == [(big.path, 8 * GIB), ("docs/a", 4)]
        source = archive.extractfile("docs/a")
        assert source is not None
        assert source.read() == b"tail"
    listed = subprocess.run(
        ["tar", "--list", "--verbose", "--file", tar],  # noqa: S607 # any GNU tar
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert [line.split()[2] for line in listed[2:]] == [str(8 * GIB), "4"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, key: Key, small_bundle: Path) -> None:
    again = make_bundle(
        tmp_path / "again.tar", dict(reversed(SMALL_FILES.items())), key=key, executable=["bootstrap/install.sh"]
    )
    assert again.read_bytes() == small_bundle.read_bytes()
