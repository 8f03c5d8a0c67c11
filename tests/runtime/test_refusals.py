"""What an install refuses, with which exit code and words, and that nothing is left behind."""

import io
import zipfile
from pathlib import Path

import pytest

from manifests.digests import CHUNK_SIZE
from manifests.tarlayout import tar_layout
from tests.factories import Key, make_bundle, make_key
from tests.factories_closed import (
    BIG_PATH,
    ClosedBundle,
    Host,
    closed_files,
    copy_of,
    flip_bit,
    leftovers,
    make_closed_bundle,
)


def refuse(host: Host, bundle: ClosedBundle, tar: Path, prefix: Path, trust: Path | None = None) -> tuple[int, str]:
    done = host.runtime(bundle.pyz, "install", tar, "--prefix", prefix, "--trust", trust or bundle.trust)
    assert done.stdout == ""
    return done.returncode, done.stderr


def member_offset(bundle: ClosedBundle, part: str) -> int:
    layout = tar_layout(bundle.manifest.encode(), bundle.manifest.files)
    return next(member.offset for member in layout.members if part in member.entry.path)


def test_a_key_that_nobody_trusts(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    stranger = make_key(tmp_path / "stranger", "stranger@example.com")
    code, words = refuse(host, first, first.tar, tmp_path / "prefix", stranger.allowed_signers)
    assert code == 4
    assert "error: the bundle has 0 of 1 trusted signatures; key SHA256:" in words
    assert "is not among the allowed signers\nhint: compare fingerprints" in words
    assert not (tmp_path / "prefix").exists()


def test_an_unsigned_bundle(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    files = {path: data for path, data in closed_files().items() if "uv-" not in path}
    tar = make_bundle(tmp_path, files, key=[], executable=["bootstrap/install.sh"])
    code, words = refuse(host, first, tar, tmp_path / "prefix")
    assert (code, words.splitlines()[0]) == (4, "error: the bundle is not signed")
    assert not (tmp_path / "prefix").exists()


def test_too_few_signatures(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(
        first.pyz, "install", first.tar, "--prefix", tmp_path / "p", "--trust", first.trust, "--signatures", "2"
    )
    assert done.returncode == 4
    assert "error: the bundle has 1 of 2 trusted signatures; good: release@example.com (SHA256:" in done.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        ("manifest", 4, "does not fit the manifest: one of the two was changed"),
        ("first header", 5, "is not a Sealift bundle: it does not begin with manifest.json"),
        ("header", 5, "header or padding changed at byte"),
        ("padding", 5, "header or padding changed at byte"),
        ("cut", 5, "truncated: "),
        ("longer", 5, "1 bytes after its end, expected"),
    ],
)
def test_a_damaged_frame(*, tmp_path: Path, host: Host, first: ClosedBundle, where: str, code: int, words: str) -> None:
    tar = copy_of(first.tar, tmp_path / "copy")
    size = len(first.manifest.encode())
    wheel = member_offset(first, "wheels/six")
    offsets = {"manifest": 512 + size // 2, "first header": 5, "header": wheel - 512 + 130, "padding": wheel - 513}
    if where in offsets:
        flip_bit(tar, offsets[where])
    else:
        with tar.open("r+b") as stream:
            stream.truncate(tar.stat().st_size + (1 if where == "longer" else -512))
    got, told = refuse(host, first, tar, tmp_path / "prefix")
    assert got == code, told
    assert words in told
    assert not (tmp_path / "prefix").exists()


def test_a_damaged_wheel_is_named_and_nothing_goes_live(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    tar = copy_of(first.tar, tmp_path / "copy")
    flip_bit(tar, member_offset(first, "wheels/six") + 100)
    prefix = tmp_path / "prefix"
    code, words = refuse(host, first, tar, prefix)
    entry = next(entry for entry in first.manifest.files if entry.path.startswith("wheels/six"))
    assert code == 5
    assert f"{tar}: 1 problem:\n  {entry.path}" in words
    assert entry.sha256 in words
    assert "hint: copy the bundle again from its source" in words
    assert leftovers(prefix) == []
    assert not list((prefix / "releases").iterdir())
    assert not (prefix / "store/sha256" / entry.store_key[:2] / entry.store_key).exists()


def test_a_damaged_chunk_is_named(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    tar = copy_of(chunked.tar, tmp_path / "copy")
    flip_bit(tar, member_offset(chunked, BIG_PATH) + CHUNK_SIZE + 5)
    code, words = refuse(host, chunked, tar, tmp_path / "prefix")
    assert code == 5
    assert f"{tar}: 1 problem:\n  {BIG_PATH} chunk 1: expected sha256 " in words, "counted from 0, as in the manifest"
    # Its good chunks stay for the next attempt, under a name that no release links to.
    entry = next(entry for entry in chunked.manifest.files if entry.path == BIG_PATH)
    assert leftovers(tmp_path / "prefix") == [f"store/sha256/{entry.store_key[:2]}/{entry.store_key}.partial"]


def test_a_failed_upgrade_leaves_the_live_release(
    tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle
) -> None:
    prefix = tmp_path / "prefix"
    assert host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust).returncode == 0
    before = leftovers(prefix)
    tar = copy_of(second.tar, tmp_path / "copy")
    flip_bit(tar, member_offset(second, "wheels/click") + 100)
    code, words = refuse(host, second, tar, prefix)
    assert code == 5, words
    assert leftovers(prefix) == before
    assert host.runtime(first.pyz, "verify", "--prefix", prefix, "--trust", first.trust).returncode == 0


def test_a_wheel_that_does_not_install_leaves_no_release(tmp_path: Path, host: Host, closed_key: Key) -> None:
    files = closed_files(extra={"wheels/broken-1.0-py3-none-any.whl": b"PK not a zip"})
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, files=files)
    code, words = refuse(host, bundle, bundle.tar, tmp_path / "prefix")
    assert code == 8
    assert "error: uv pip install failed:\n" in words
    assert "hint: the release was not made; what was live stays live" in words
    assert leftovers(tmp_path / "prefix") == []
    assert not list((tmp_path / "prefix/releases").iterdir())


def test_a_bundle_without_uv(tmp_path: Path, host: Host, closed_key: Key) -> None:
    files = {path: data for path, data in closed_files().items() if "uv-" not in path}
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, files=files)
    code, words = refuse(host, bundle, bundle.tar, tmp_path / "prefix")
    assert code == 6
    assert "error: the bundle carries no uv, so nothing can be installed from it" in words
    assert leftovers(tmp_path / "prefix") == []


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("uv-1.data/scripts/uv", "does not run on this host: Exec format error"),
        ("uv-1.data/scripts/uv.exe", "bootstrap/uv-1-py3-none-any.whl: holds no uv program for this system"),
    ],
)
def test_a_uv_for_another_host(tmp_path: Path, host: Host, closed_key: Key, member: str, words: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, b"\x7fELF of another machine")
    files = {path: data for path, data in closed_files().items() if "uv-" not in path}
    files["bootstrap/uv-1-py3-none-any.whl"] = buffer.getvalue()
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, files=files)
    code, told = refuse(host, bundle, bundle.tar, tmp_path / "prefix")
    assert (code, words in told) == (6, True), told
    assert leftovers(tmp_path / "prefix") == []


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (None, 2, "no such allowed_signers file\nhint: it came with the kit: kit/allowed_signers"),
        (b"", 4, "lists no signer"),
        (b"\xff\xfe", 4, "not an allowed_signers file: it isn't text"),
        (b"# one\nwho ssh-ed25519\n", 4, "line 2: expected PRINCIPALS [OPTIONS] KEYTYPE BASE64"),
        (b"who ssh-rsa AAAA\n", 4, "line 1: "),
    ],
)
def test_a_trust_file_that_is_none(
    *, tmp_path: Path, host: Host, first: ClosedBundle, text: bytes | None, code: int, words: str
) -> None:
    trust = tmp_path / "trust"
    if text is not None:
        trust.write_bytes(text)
    got, told = refuse(host, first, first.tar, tmp_path / "prefix", trust)
    assert (got, words in told) == (code, True), told
    assert str(trust) in told
    assert not (tmp_path / "prefix").exists()


def test_a_trust_file_that_is_a_folder(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    got, told = refuse(host, first, first.tar, tmp_path / "prefix", tmp_path)
    assert (got, told.splitlines()[0]) == (7, f"error: can't use {tmp_path}: Is a directory")


def test_a_bundle_that_is_not_there(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    got, told = refuse(host, first, tmp_path / "none.bundle.tar", tmp_path / "prefix")
    assert (got, told.splitlines()[0]) == (2, f"error: {tmp_path}/none.bundle.tar: no such bundle")
