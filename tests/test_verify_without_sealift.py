"""docs/verify-without-sealift.md does what it says: exactly its commands, on a real bundle and on tampered ones."""

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from bundler.contents.render import SUMS_PATH
from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME
from tests.factories import Key, make_key
from tests.factories_closed import ClosedBundle, copy_of, flip_bit, make_closed_bundle, program

PAGE: Final = Path(__file__).parent.parent / "docs" / "verify-without-sealift.md"
KOREAN: Final = "app/demo/\ubb38\uc11c \uc77c.txt"
TAKE_OUT, WHO, UNPACK, LIST, FILES, OTHERS, OPENSSL = range(7)


def blocks() -> list[str]:
    """Return the page's shell blocks in order."""
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The builder's key."""
    return make_key(tmp_path_factory.mktemp("key") / "release", seed=b"V" * 32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: Key) -> ClosedBundle:
    """A small real bundle; never write to it."""
    extra = {KOREAN: "\uc548\ub155\n".encode(), "config/empty.yaml": b""}
    return make_closed_bundle(tmp_path_factory.mktemp("bundle"), key, "six", extra=extra)


def run_page(tar: Path, signers: Path, folder: Path) -> Iterator[tuple[int, str]]:
    """Run the page's blocks, each in a shell of its own; yield exit status and words of each until one fails."""
    folder.mkdir()
    variables = {"BUNDLE": str(tar), "SIGNERS": str(signers), "WHO": "release@example.com", "PATH": "/usr/bin:/bin"}
    for block in blocks():
        done = subprocess.run(
            [program("sh"), "-e", "-u", "-c", block],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        yield done.returncode, done.stdout + done.stderr
        if done.returncode != 0:
            return


def first_failure(tar: Path, signers: Path, folder: Path) -> tuple[int, str]:
    """Return which block fails first, and its words."""
    results = list(run_page(tar, signers, folder))
    assert results[-1][0] != 0, "nothing failed"
    return len(results) - 1, results[-1][1]


def repack(bundle: ClosedBundle, folder: Path, changes: dict[str, bytes | None]) -> Path:
    """Return a copy with members replaced, added, or left out (None), written by stock means."""
    target = folder / "repacked.tar"
    with tarfile.open(bundle.tar) as source, tarfile.open(target, "w") as sink:
        names = [member.name for member in source]
        for name in [*names, *(name for name in changes if name not in names)]:
            file = source.extractfile(name) if name in names else None
            data = changes.get(name, file.read() if file else None)
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                sink.addfile(info, io.BytesIO(data))
    return target


def test_a_good_bundle_passes_every_step(tmp_path: Path, bundle: ClosedBundle, key: Key) -> None:
    results = list(run_page(bundle.tar, bundle.trust, tmp_path / "work"))
    assert [code for code, _ in results] == [0] * 7, results
    assert (
        f'Good "sealift-bundle-v1" signature for release@example.com with ED25519 key {key.public.fingerprint}'
        in (results[WHO][1])
    )
    assert results[WHO][1].startswith("release@example.com\n")
    assert results[LIST][1] == "unpacked/docs/SHA256SUMS: OK\n"
    assert (tmp_path / "work/unpacked" / KOREAN).is_file()


def test_the_page_has_the_seven_steps() -> None:
    assert len(blocks()) == 7
    assert "openssl" in blocks()[OPENSSL]


def test_a_changed_signature(tmp_path: Path, bundle: ClosedBundle) -> None:
    tar = copy_of(bundle.tar, tmp_path / "copy")
    slot = tar.read_bytes().index(b"-----BEGIN SSH SIGNATURE-----\n")
    flip_bit(tar, slot + 30 + 3 * 71 + 10)  # within the base64 of the signature proper
    assert first_failure(tar, bundle.trust, tmp_path / "work")[0] == WHO


def test_a_changed_manifest(tmp_path: Path, bundle: ClosedBundle) -> None:
    tar = copy_of(bundle.tar, tmp_path / "copy")
    flip_bit(tar, tar.read_bytes().index(b'"version":"1.0.0"') + 13)
    step, words = first_failure(tar, bundle.trust, tmp_path / "work")
    assert step == WHO
    assert "Signature verification failed" in words


def test_a_stranger_s_signature(tmp_path: Path, bundle: ClosedBundle) -> None:
    stranger = make_key(tmp_path / "stranger")
    assert first_failure(bundle.tar, stranger.allowed_signers, tmp_path / "work")[0] == WHO


def test_a_second_manifest_behind_the_first(tmp_path: Path, bundle: ClosedBundle) -> None:
    tar = copy_of(bundle.tar, tmp_path / "copy")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / MANIFEST_NAME).write_text("{}")
    subprocess.run([program("tar"), "-rf", str(tar), "-C", str(tmp_path / "evil"), MANIFEST_NAME], check=True)
    assert first_failure(tar, bundle.trust, tmp_path / "work")[0] == WHO, "tar takes the last one"


@pytest.mark.parametrize("path", [KOREAN, "wheels/six-1.17.0-py2.py3-none-any.whl", "bootstrap/runtime.pyz"])
def test_a_changed_file_is_named(tmp_path: Path, bundle: ClosedBundle, path: str) -> None:
    with tarfile.open(bundle.tar) as archive:
        offset = archive.getmember(path).offset_data
    tar = copy_of(bundle.tar, tmp_path / "copy")
    flip_bit(tar, offset)
    step, words = first_failure(tar, bundle.trust, tmp_path / "work")
    assert step == FILES
    assert f"{path}: FAILED" in words
    openssl = subprocess.run(
        [program("sh"), "-e", "-c", blocks()[OPENSSL]], cwd=tmp_path / "work", capture_output=True, check=False
    )
    assert openssl.returncode != 0
    assert path.encode() in openssl.stdout


def test_a_missing_file_is_named(tmp_path: Path, bundle: ClosedBundle) -> None:
    tar = repack(bundle, tmp_path, {KOREAN: None})
    step, words = first_failure(tar, bundle.trust, tmp_path / "work")
    assert step == FILES
    assert f"{KOREAN}: FAILED open or read" in words


def test_a_changed_list(tmp_path: Path, bundle: ClosedBundle) -> None:
    tar = repack(bundle, tmp_path, {SUMS_PATH: b""})
    assert first_failure(tar, bundle.trust, tmp_path / "work")[0] == LIST
    openssl = subprocess.run(
        [program("sh"), "-e", "-c", blocks()[OPENSSL]], cwd=tmp_path / "work", capture_output=True, check=False
    )
    assert openssl.returncode != 0


def test_a_file_that_nobody_signed(tmp_path: Path, bundle: ClosedBundle) -> None:
    tar = repack(bundle, tmp_path, {"app/demo/evil.py": b"import os\n"})
    step, words = first_failure(tar, bundle.trust, tmp_path / "work")
    assert step == OTHERS
    assert "> app/demo/evil.py" in words


@pytest.mark.parametrize("name", [MANIFEST_NAME, SIGNATURE_NAME, KOREAN])
def test_a_link_in_a_file_s_place(tmp_path: Path, bundle: ClosedBundle, name: str) -> None:
    tar = tmp_path / "linked.tar"
    with tarfile.open(bundle.tar) as source, tarfile.open(tar, "w") as sink:
        for member in source:
            if member.name == name:
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, str(bundle.trust)
                sink.addfile(link)
            else:
                sink.addfile(member, source.extractfile(member))
    assert first_failure(tar, bundle.trust, tmp_path / "work")[0] == (UNPACK if name == KOREAN else TAKE_OUT)


def test_the_kit_s_own_page_works_too(tmp_path: Path, bundle: ClosedBundle) -> None:
    """VERIFY.txt of the kit: its indented commands, in a folder with the kit's files and the bundle."""
    shutil.copytree(bundle.kit, tmp_path / "work")
    shutil.copy(bundle.tar, tmp_path / "work")
    text = (bundle.kit / "VERIFY.txt").read_text(encoding="utf-8")
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    script = "\n".join(commands).replace("-I WHO", "-I release@example.com")
    done = subprocess.run(
        [program("sh"), "-e", "-c", script], cwd=tmp_path / "work", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{bundle.kit_digest}  SHA256SUMS\n")
    assert 'Good "sealift-bundle-v1" signature for release@example.com' in done.stdout
    assert "good: demo-1.0.0" in done.stdout
