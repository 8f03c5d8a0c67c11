"""Ordinary users, full disks, read-only and noexec file systems."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import is_root
from tests.factories_closed import (
    NOBODY,
    ClosedBundle,
    Host,
    give_to_nobody,
    leftovers,
    make_host,
    program,
    system_python,
)

needs_root = pytest.mark.skipif(not is_root(), reason="mounts file systems")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own folders aren't."""
    folder = Path(tempfile.mkdtemp(prefix="sealift-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def user_host(open_folder: Path, host: Host) -> Host:
    """An ordinary user with a strict umask."""
    if not is_root():
        return replace(host, umask=0o077)
    python = system_python()
    if python is None:
        pytest.skip("no Python here that an ordinary user can run")
    user = make_host(open_folder / "home", user=NOBODY, python=python, umask=0o077, path=os.defpath)
    give_to_nobody(user.home)
    return user


@pytest.fixture
def user_bundle(open_folder: Path, first: ClosedBundle) -> ClosedBundle:
    """The first bundle where that user can read it."""
    kit = shutil.copytree(first.kit, open_folder / "kit")
    return replace(first, tar=Path(shutil.copy(first.tar, open_folder)), kit=kit)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A tmpfs mounted with the options of the test's parameter."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", request.param, "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run([program("umount"), str(disk)], check=True)


def install_words(bundle: ClosedBundle, prefix: Path, *options: str) -> list[str | Path]:
    return ["install", bundle.tar, "--prefix", prefix, "--trust", bundle.trust, *options]


def test_an_ordinary_user_installs_and_verifies(user_host: Host, user_bundle: ClosedBundle) -> None:
    prefix = user_host.home / "prefix"
    done = user_host.runtime(user_bundle.pyz, *install_words(user_bundle, prefix))
    assert done.returncode == 0, done.stderr
    assert prefix.stat().st_mode & 0o777 == 0o700, "the umask is obeyed"
    if is_root():
        assert {path.lstat().st_uid for path in prefix.rglob("*")} == {NOBODY}
    verified = user_host.runtime(user_bundle.pyz, "verify", "--prefix", prefix, "--trust", user_bundle.trust)
    assert verified.returncode == 0, verified.stdout
    assert "live       1.0.0-" in user_host.runtime(user_bundle.pyz, "status", "--prefix", prefix).stdout


@needs_root
@pytest.mark.parametrize("small_disk", ["noexec,size=256m"], indirect=True)
def test_a_noexec_tmpdir_does_not_matter(tmp_path: Path, host: Host, first: ClosedBundle, small_disk: Path) -> None:
    done = replace(host, tmp=small_disk).runtime(first.pyz, *install_words(first, tmp_path / "prefix"))
    assert done.returncode == 0, done.stderr
    assert list(small_disk.iterdir()) == []


@needs_root
@pytest.mark.parametrize("small_disk", ["noexec,size=256m"], indirect=True)
def test_a_noexec_prefix_is_refused(host: Host, first: ClosedBundle, small_disk: Path) -> None:
    done = host.runtime(first.pyz, *install_words(first, small_disk / "prefix"))
    assert done.returncode == 7
    assert f"prefix: found {small_disk} is mounted noexec, needed a folder that may be written" in done.stderr
    assert list(small_disk.iterdir()) == []


@needs_root
@pytest.mark.parametrize("small_disk", ["ro"], indirect=True)
def test_a_read_only_file_system_is_refused(host: Host, first: ClosedBundle, small_disk: Path) -> None:
    done = host.runtime(first.pyz, *install_words(first, small_disk / "prefix"))
    assert done.returncode == 7
    assert f"prefix: found {small_disk} is " in done.stderr
    assert "hint: choose a --prefix that you may write" in done.stderr


@needs_root
@pytest.mark.parametrize("small_disk", ["size=8m"], indirect=True)
def test_too_little_space_is_refused_before_anything_is_written(
    host: Host, first: ClosedBundle, small_disk: Path
) -> None:
    done = host.runtime(first.pyz, *install_words(first, small_disk / "prefix"))
    assert done.returncode == 7
    assert "error: this host does not fit the bundle: 1 problem:\n  disk space: found 8.4 MB, needed " in done.stderr
    assert "hint: free some space" in done.stderr
    assert list(small_disk.iterdir()) == []


@needs_root
@pytest.mark.parametrize("small_disk", ["size=40m"], indirect=True)
def test_a_disk_that_fills_up_during_the_install(host: Host, first: ClosedBundle, small_disk: Path) -> None:
    # Enough for the store, not for uv unpacked: the manifest of the test promises nothing about that.
    prefix = small_disk / "prefix"
    done = host.runtime(first.pyz, *install_words(first, prefix))
    assert done.returncode == 7, done.stderr
    assert "no space left on the device\nhint: free some space" in done.stderr.lower()
    assert [path for path in leftovers(prefix) if path.startswith("releases/")] == []
    assert not (prefix / "current").exists()


@needs_root
def test_a_prefix_of_another_user_is_refused(open_folder: Path, user_host: Host, user_bundle: ClosedBundle) -> None:
    foreign = open_folder / "foreign"
    foreign.mkdir()
    done = user_host.runtime(user_bundle.pyz, *install_words(user_bundle, foreign / "prefix"))
    assert done.returncode == 7
    assert f"prefix: found {foreign} is not writable, needed a folder that may be written" in done.stderr
    assert list(foreign.iterdir()) == []


@needs_root
def test_a_trust_file_that_may_not_be_read(user_host: Host, user_bundle: ClosedBundle) -> None:
    user_bundle.trust.chmod(0o600)
    done = user_host.runtime(user_bundle.pyz, *install_words(user_bundle, user_host.home / "prefix"))
    assert done.returncode == 7
    assert f"error: can't use {user_bundle.trust}: permission denied" in done.stderr
    assert not (user_host.home / "prefix").exists()
