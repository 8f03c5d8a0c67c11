"""Same lock, same bytes: on another folder, user, umask, locale, time zone, clock, hash seed and order of files."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import is_root, tree_of
from tests.factories_cli import LOCK_TIME, Builder, wheel_links, write_spec
from tests.factories_closed import NOBODY, program

APP: list[str] = [f"{folder}/{name}.py" for folder in ("z", "a", "한글") for name in ("b", "a", "문서", "Z")]


def write_app(folder: Path, names: list[str]) -> None:
    """Write an application's files in the order of ``names``, which is how some file systems list them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
        path.chmod(0o644)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Who made the lock and the bundle in ``out``; read only."""
    builder = Builder(folder=tmp_path_factory.mktemp("first") / "home", links=(wheel_links(),))
    write_app(builder.folder / "app", APP)
    write_spec(builder.folder / "demo.toml", "six==1.17.0", "click==8.3.1", more='[[app]]\nsource = "dir:app"\n')
    builder.json("build", "demo.toml", "--output", "out", "--unsigned", "--no-rehearsal")
    return builder


def outcome(builder: Builder, output: str = "out") -> dict[str, bytes]:
    """Return every byte of what was built: the bundle and its kit."""
    return tree_of(builder.folder / output)


def moved(first: Builder, folder: Path) -> Builder:
    """Return the same builder with a copy of spec, lock and store elsewhere."""
    subprocess.run([program("cp"), "-a", str(first.folder), str(folder)], check=True)
    shutil.rmtree(folder / "out")
    return replace(first, folder=folder)


def rebuild(builder: Builder) -> dict[str, bytes]:
    builder.json("build", "demo.toml", "--output", "out", "--unsigned", "--no-rehearsal")
    return outcome(builder)


@pytest.mark.parametrize(
    "variables",
    [
        {"TZ": "Asia/Seoul"},
        {"TZ": "America/St_Johns", "SOURCE_DATE_EPOCH": "1"},
        {"LANG": "ko_KR.UTF-8", "LC_ALL": "ko_KR.UTF-8"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
        {"LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "1"},
        {"SOURCE_DATE_EPOCH": "", "PYTHONHASHSEED": "2"},
    ],
    ids=lambda variables: "-".join(f"{key}={value}" for key, value in variables.items()),
)
def test_locale_zone_clock_and_seed(first: Builder, tmp_path: Path, variables: dict[str, str]) -> None:
    other = replace(moved(first, tmp_path / "home"), variables=variables)
    assert rebuild(other) == outcome(first)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_folder_and_umask(first: Builder, tmp_path: Path, umask: int) -> None:
    other = replace(moved(first, tmp_path / "an other place"), umask=umask)
    assert rebuild(other) == outcome(first)


@pytest.mark.skipif(not is_root(), reason="becomes another user")
def test_user(first: Builder, tmp_path: Path) -> None:
    other = moved(first, tmp_path / "home")
    subprocess.run([program("chown"), "-R", f"{NOBODY}:{NOBODY}", str(other.folder)], check=True)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    switch = (program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
    assert rebuild(replace(other, wrap=switch)) == outcome(first)


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """Another file system, which lists the newest file first."""
    disk = tmp_path / "ram"
    disk.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run([program("umount"), str(disk)], check=True)


@pytest.mark.skipif(not is_root(), reason="mounts a file system")
@pytest.mark.slow
def test_order_of_files(first: Builder, ram: Path) -> None:
    """The lock, too, is the same when files were written in another order, on a file system that shows that."""
    listed = []
    for name, reverse in (("up", False), ("down", True)):
        home = ram / name
        write_app(home / "app", sorted(APP, reverse=reverse))
        shutil.copy(first.folder / "demo.toml", home)
        listed.append([entry.name for entry in os.scandir(home / "app")])
        other = replace(first, folder=home, variables={"SOURCE_DATE_EPOCH": LOCK_TIME})
        other.json("lock", "demo.toml")
        assert (home / "demo.lock").read_bytes() == (first.folder / "demo.lock").read_bytes()
        assert rebuild(other) == outcome(first)
    assert listed[0] == listed[1][::-1] != listed[1]


def test_volumes_and_deltas_are_the_same_bytes_again(first: Builder, tmp_path: Path) -> None:
    (base,) = (first.folder / "out").glob("*.bundle.tar")
    found = []
    for name in ("one", "two"):
        other = moved(first, tmp_path / name)
        words = ("--output", "out", "--unsigned", "--no-rehearsal", "--volume-size", "300 kB", "--base", base)
        other.json("build", "demo.toml", *words)
        found.append(outcome(other))
    assert found[0] == found[1]
    assert len([name for name in found[0] if ".delta.bundle.tar.0" in name]) > 1
