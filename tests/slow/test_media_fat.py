"""A bundle on real FAT32 and exFAT disks: images with those file systems, mounted; no links, no modes, coarse times."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from manifests.manifest import parse_manifest
from tests.factories import is_root, make_key, unpack_bundle
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_closed import Host, flip_bit, make_host, program

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_root(), reason="mounting an image needs root")]
IMAGE_SIZE: Final = 256 * 1024 * 1024
VOLUME: Final = "10 MB"
NEEDED: Final = {
    "fat32": ("mkfs.vfat", "mcopy", "fusefat", "fusermount"),
    "exfat": ("mkfs.exfat", "mount.exfat-fuse", "losetup", "umount"),
}
PACKAGES: Final = "apt-get install dosfstools mtools fusefat exfatprogs exfat-fuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stick:
    """A disk with one of the file systems: ``folder`` is where it is mounted."""

    kind: str
    image: Path
    folder: Path

    def make(self) -> None:
        """Format it."""
        with self.image.open("wb") as stream:
            stream.truncate(IMAGE_SIZE)
        words = ["mkfs.vfat", "-F", "32"] if self.kind == "fat32" else ["mkfs.exfat"]
        run(*words, self.image)
        self.folder.mkdir()

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Plug it in, and out again."""
        with contextlib.ExitStack() as stack:
            if self.kind == "fat32":
                run("fusefat", "-o", "ro", self.image, self.folder)
                stack.callback(run, "fusermount", "-u", self.folder)
            else:
                device = run("losetup", "--show", "--find", self.image).strip()
                stack.callback(run, "losetup", "--detach", device)
                run("mount.exfat-fuse", device, self.folder)
                stack.callback(run, "umount", self.folder)
            yield self.folder

    @contextlib.contextmanager
    def read_folder(self, name: str, elsewhere: Path) -> Iterator[Path]:
        """Give a folder on it: where it is mounted; or of FAT32 a copy, as fusefat shows ``app`` as ``APP``."""
        if self.kind == "fat32":
            elsewhere.mkdir()
            run("mcopy", "-i", self.image, "-s", f"::/{name}", elsewhere)
            yield elsewhere / name
            return
        with self.mounted() as folder:
            yield folder / name

    def put(self, *paths: Path) -> None:
        """Copy files and folders to its root, as its own driver or mtools writes them."""
        if self.kind == "fat32":
            run("mcopy", "-i", self.image, "-s", "-o", *paths, "::/")
            return
        with self.mounted() as folder:
            for path in paths:
                copy = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, folder / path.name)


def run(*words: str | Path) -> str:
    first, *others = words
    done = subprocess.run(
        [program(str(first)), *map(str, others)],
        env={**os.environ, "MTOOLS_SKIP_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.fixture(params=sorted(NEEDED))
def stick(request: pytest.FixtureRequest, tmp_path: Path) -> Stick:
    kind = str(request.param)
    if lacking := [name for name in NEEDED[kind] if shutil.which(name) is None]:
        pytest.skip(f"not on this host: {', '.join(lacking)}: {PACKAGES}")
    if not Path("/dev/fuse").exists():
        pytest.skip("this host has no /dev/fuse")
    made = Stick(kind=kind, image=tmp_path / f"{kind}.img", folder=tmp_path / kind)
    made.make()
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What the bundler wrote: volumes in a folder, their index, and the kit."""

    volumes: tuple[Path, ...]
    kit: Path

    @property
    def all_files(self) -> tuple[Path, ...]:
        """What is carried on the disk."""
        index = self.volumes[0].with_name(self.volumes[0].name.removesuffix(".001") + ".volumes.json")
        return (*self.volumes, index)

    def words(self, *more: str | Path) -> tuple[str | Path, ...]:
        return ("--trust", self.kit / "allowed_signers", *more)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Six and an application with a Korean file name, cut into volumes by the bundler; never write to it."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "files").mkdir()
    (folder / "files" / "설명서.txt").write_text("폐쇄망\n", encoding="utf-8")
    key = make_key(folder / "key", seed=b"V" * 32)
    write_spec(folder / "demo.toml", "six==1.17.0", more='[[app]]\nname = "files"\nsource = "dir:files"\n')
    builder = Builder(folder=folder, links=(wheel_links(),))
    builder.json("lock", "demo.toml")
    size = ("--volume-size", VOLUME)
    found = builder.json("build", "demo.toml", "--output", "out", "--key", key.path, "--no-rehearsal", *size)
    volumes = tuple(folder / path for path in found["volumes"])
    assert len(volumes) >= 2, "one volume would prove nothing"
    return Built(volumes=volumes, kit=folder / found["kit"])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return make_host(tmp_path / "home")


def test_volumes_on_the_disk_are_verified_and_installed_from_there(
    tmp_path: Path, stick: Stick, built: Built, host: Host
) -> None:
    stick.put(*built.all_files)
    with stick.mounted() as folder:
        assert {path.name for path in folder.iterdir()} == {path.name for path in built.all_files}
        first = folder / built.volumes[0].name
        done = host.runtime(built.kit / "runtime.pyz", "verify", first, *built.words())
        assert done.returncode == 0, done.stderr
        prefix = tmp_path / "prefix"
        done = host.runtime(built.kit / "runtime.pyz", "install", first, *built.words("--prefix", prefix, "--no-smoke"))
        assert done.returncode == 0, done.stderr
    app = prefix / "current" / "app" / "files" / "설명서.txt"
    assert app.read_text(encoding="utf-8") == "폐쇄망\n"
    checked = host.runtime(built.kit / "runtime.pyz", "verify", *built.words("--prefix", prefix))
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("stick", ["exfat"], indirect=True)
def test_the_bundler_writes_volumes_straight_onto_the_disk(stick: Stick, built: Built, host: Host) -> None:
    builder = Builder(folder=built.kit.parent.parent, links=(wheel_links(),))
    with stick.mounted() as folder:
        size = ("--volume-size", VOLUME)
        builder.json("build", "demo.toml", "--output", folder, "--key", "key", "--no-rehearsal", *size)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {
            path.name: path.read_bytes() for path in built.kit.parent.iterdir() if path.is_file()
        }
        done = host.runtime(built.kit / "runtime.pyz", "verify", folder / built.volumes[0].name, *built.words())
        assert done.returncode == 0, done.stderr


def test_a_damaged_volume_is_named_and_carried_alone(tmp_path: Path, stick: Stick, built: Built, host: Host) -> None:
    bad = tmp_path / built.volumes[1].name
    shutil.copyfile(built.volumes[1], bad)
    flip_bit(bad, bad.stat().st_size - 1024 - 600)  # of the last file, which lies in that volume alone
    stick.put(*(bad if path.name == bad.name else path for path in built.all_files))

    def verify() -> "subprocess.CompletedProcess[str]":
        with stick.mounted() as folder:
            return host.runtime(built.kit / "runtime.pyz", "verify", folder / built.volumes[0].name, *built.words())

    done = verify()
    assert done.returncode == 5, done.stdout
    assert done.stderr.endswith(f"\nhint: only these are to be carried again: {bad.name}\n")
    stick.put(built.volumes[1])
    assert verify().returncode == 0


def test_a_folder_on_a_disk_without_modes(tmp_path: Path, stick: Stick, built: Built, host: Host) -> None:
    tar = tmp_path / built.volumes[0].name.removesuffix(".001")
    tar.write_bytes(b"".join(path.read_bytes() for path in built.volumes))
    (tmp_path / "plain").mkdir()
    folder = unpack_bundle(tar, tmp_path / "plain" / "bundle")
    stick.put(folder)
    with stick.read_folder(folder.name, tmp_path / "copied") as carried:
        modes = {path.stat().st_mode & 0o777 for path in carried.rglob("*") if path.is_file()}
        assert len(modes) == 1, "the disk tells nothing of what may be run"
        prefix = tmp_path / "prefix"
        done = host.runtime(
            built.kit / "runtime.pyz", "install", carried, *built.words("--prefix", prefix, "--no-smoke")
        )
        assert done.returncode == 0, done.stderr
    # What may be run follows from the manifest alone.
    entries = parse_manifest((folder / "manifest.json").read_bytes()).files
    there = {entry.path: prefix / "current" / entry.path for entry in entries}
    found = {name: bool(path.stat().st_mode & 0o111) for name, path in there.items() if path.exists()}
    assert found == {entry.path: entry.mode == 0o755 for entry in entries if entry.path in found}
    assert set(found.values()) == {True, False}
