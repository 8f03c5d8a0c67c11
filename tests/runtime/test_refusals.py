"""What an install refuses, with which exit code and words, and that nothing is left behind."""

import base64
import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import pytest

from manifests.digests import CHUNK_SIZE
from manifests.errors import InstallError
from manifests.tarlayout import tar_layout
from runtime.environment import Environment
from runtime.layout import Prefix, Release
from tests.factories import Key, make_bundle, make_key
from tests.factories_closed import (
    BIG_PATH,
    PYTHON,
    ClosedBundle,
    Host,
    closed_files,
    copy_of,
    flip_bit,
    leftovers,
    make_closed_bundle,
)
from tests.factories_kill import clone


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


def record_line(path: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(data)}\n"


def lying_wheel(record: str, *, entry_points: str = "") -> bytes:
    """Return a wheel of one module whose RECORD begins with ``record``."""
    info = "demo-1.0.dist-info"
    members = {
        "demo.py": b"x = 1\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if entry_points:
        members[f"{info}/entry_points.txt"] = entry_points.encode()
    rest = "".join(record_line(path, data) for path, data in members.items() if path != "demo.py")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in {**members, f"{info}/RECORD": f"{record}{rest}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(path, data)
    return buffer.getvalue()


GOOD_LINE = record_line("demo.py", b"x = 1\n")


@pytest.mark.parametrize(
    ("record", "entry_points", "words"),
    [
        (
            record_line("demo.py", b"other"),
            "",
            "1 problem:\n  venv/lib/python{0}/site-packages/demo.py: content changed\nhint: a wheel may contradict",
        ),
        ("demo.py,sha256=A,6\n", "", "demo-1.0-py3-none-any.whl: not a readable wheel: "),
        (
            GOOD_LINE,
            "[console_scripts]\n../../../../evil = demo:x\n",
            "an entry point can't be named '../../../../evil'",
        ),
        (GOOD_LINE, "[console_scripts]\n/tmp/sealift-evil = demo:x\n", "can't be named '/tmp/sealift-evil'"),
        (GOOD_LINE, "[console_scripts]\n.. = demo:x\n", "can't be named '..'"),
        (GOOD_LINE, "[console_scripts]\nno section\n\x00", "not a readable wheel: "),
    ],
)
def test_a_signed_wheel_that_lies_never_goes_live(
    *, tmp_path: Path, host: Host, closed_key: Key, record: str, entry_points: str, words: str
) -> None:
    wheel = lying_wheel(record, entry_points=entry_points)
    files = closed_files(extra={"wheels/demo-1.0-py3-none-any.whl": wheel})
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, files=files)
    before = {path.name for path in tmp_path.iterdir()}
    code, told = refuse(host, bundle, bundle.tar, tmp_path / "prefix")
    assert (code, words.format(PYTHON) in told or "uv pip install failed" in told) == (8, True), told
    assert leftovers(tmp_path / "prefix") == []
    assert not list((tmp_path / "prefix/releases").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == before | {"prefix"}, "nothing outside"
    assert not (Path("/tmp") / "sealift-evil").exists()


def test_a_release_that_was_edited_does_not_spoil_the_next(
    tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle
) -> None:
    """The cache of uv is the same files as the old environment, by hard links."""
    prefix = tmp_path / "prefix"
    assert host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust).returncode == 0
    module = next((prefix / "current/venv").resolve().rglob("six.py"))
    with module.open("r+b") as stream:
        stream.write(b"import os")
    done = host.runtime(second.pyz, "install", second.tar, "--prefix", prefix, "--trust", second.trust)
    assert done.returncode == 0, done.stderr
    assert not next((prefix / "current/venv").rglob("six.py")).samefile(module)
    assert host.runtime(second.pyz, "verify", "--prefix", prefix, "--trust", second.trust).returncode == 0


@pytest.mark.parametrize("tries", [1, 2])
def test_what_a_failing_disk_changed_never_goes_live(
    tmp_path: Path, installed: Path, first: ClosedBundle, tries: int
) -> None:
    prefix = Prefix(path=clone(installed, tmp_path / "prefix"))
    release = Release(path=(prefix.path / "current").resolve())
    if tries == 1:
        shutil.rmtree(prefix.var / "cache/uv")
    made: list[str] = []

    def damage(step: str) -> None:
        made.append(step)
        module = next(release.venv.rglob("six.py"))
        module.unlink()
        module.write_bytes(b"zeros")

    environment = Environment(prefix=prefix, release=release, manifest=first.manifest, checkpoint=damage)
    with pytest.raises(InstallError) as caught:
        environment.make()
    assert made == ["venv made"] * tries, "the second time without uv's cache"
    assert caught.value.message == (
        "the new virtual environment is not what its signed wheels say: 1 problem:\n"
        f"  venv/lib/python{PYTHON}/site-packages/six.py: content changed"
    )
    assert not (prefix.var / "cache/uv").exists()


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
        (b"ssh-ed25519 AAAA who\n", 4, "hint: give the allowed_signers file of the kit; a .pub file is not one"),
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
    hint = "hint: it came with the kit: kit/allowed_signers"
    assert (got, told) == (2, f"error: {tmp_path}: no such allowed_signers file\n{hint}\n")


def test_a_bundle_that_is_not_there(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    got, told = refuse(host, first, tmp_path / "none.bundle.tar", tmp_path / "prefix")
    assert (got, told.splitlines()[0]) == (2, f"error: {tmp_path}/none.bundle.tar: no such bundle")
