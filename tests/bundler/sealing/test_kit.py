"""The kit: what is in it, its one digest, and that stock tools can check it."""

import subprocess
from pathlib import Path

import pytest

from bundler.sealing.kit import write_kit
from manifests.digests import sha256_hex
from manifests.errors import DiskError
from manifests.manifest import Manifest
from tests.factories import make_manifest, tree_of
from tests.factories_closed import program

BOOTSTRAP = {"install.sh": b"#!/bin/sh\n", "runtime.pyz": b"PK\n"}
FILES = {**{f"bootstrap/{name}": data for name, data in BOOTSTRAP.items()}, "bootstrap/uv-1.whl": b"uv\n"}


@pytest.fixture
def manifest() -> Manifest:
    """A manifest with three bootstrap files."""
    return make_manifest({**FILES, "docs/INSTALL.md": b"#\n"}, executable=["bootstrap/install.sh"])


def test_what_is_in_a_kit(tmp_path: Path, manifest: Manifest) -> None:
    digest = write_kit(tmp_path / "kit", manifest, BOOTSTRAP, "who ssh-ed25519 AAAA\n")
    tree = tree_of(tmp_path / "kit")
    assert sorted(tree) == ["SHA256SUMS", "VERIFY.txt", "allowed_signers", "install.sh", "runtime.pyz"]
    assert digest == sha256_hex(tree["SHA256SUMS"])
    assert tree["allowed_signers"] == b"who ssh-ed25519 AAAA\n"
    assert tree["SHA256SUMS"].decode() == "".join(
        f"{sha256_hex(data)}  {name}\n"
        for name, data in sorted({**tree, "uv-1.whl": b"uv\n"}.items())
        if name != "SHA256SUMS"
    )
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "kit").iterdir()}
    assert modes.pop("install.sh") == 0o755
    assert set(modes.values()) == {0o644}


def test_sha256sum_checks_it(tmp_path: Path, manifest: Manifest) -> None:
    write_kit(tmp_path / "kit", manifest, BOOTSTRAP, "")
    words = [program("sha256sum"), "-c", "--quiet", "--ignore-missing", "SHA256SUMS"]
    assert subprocess.run(words, cwd=tmp_path / "kit", check=False, capture_output=True).returncode == 0
    (tmp_path / "kit/runtime.pyz").write_bytes(b"PK!")
    assert subprocess.run(words, cwd=tmp_path / "kit", check=False, capture_output=True).returncode == 1


def test_an_older_kit_is_replaced(tmp_path: Path, manifest: Manifest) -> None:
    first = write_kit(tmp_path / "kit", manifest, BOOTSTRAP, "a")
    (tmp_path / "kit/old").write_bytes(b"")
    assert write_kit(tmp_path / "kit", manifest, BOOTSTRAP, "b") != first
    assert not (tmp_path / "kit/old").exists()
    assert write_kit(tmp_path / "kit", manifest, BOOTSTRAP, "a") == first


def test_a_kit_that_can_t_be_written(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match=f"can't write {tmp_path}/file/kit: a part of the path is a file"):
        write_kit(tmp_path / "file" / "kit", manifest, BOOTSTRAP, "")
