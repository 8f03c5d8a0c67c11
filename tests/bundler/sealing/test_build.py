"""Building from a lock: the same bytes every time, each byte once, every refusal named, and nothing half-made left."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bundler.contents.fleet import FLEET_NAMES
from bundler.relock import SERVING_REQUIREMENTS
from bundler.spec import ADAPTERS
from tests.factories import Key, is_root, make_key, tree_of
from tests.factories_cli import Builder, interrupt, wait_until_gone, wheel_links, without_privileges, write_spec
from tests.factories_closed import HOST_TARGET, flip_bit, program
from tests.factories_models import make_bert
from tests.factories_wheels import make_wheel

MODEL = '[[model]]\nname = "tiny"\nsource = "dir:model"\nadapter = "sentence-transformer"\n'
HEAVY = 128 * 1024 * 1024
STEM = f"demo-1.0.0-{HOST_TARGET.platform}-cp{HOST_TARGET.python.replace('.', '')}-cpu"
COUNT_IO = """
import sys
import time
from pathlib import Path
from bundler.sealing.build import BuildOptions, build_bundle
from bundler.contents.fleet import FLEET_NAMES
from bundler.lock import load_lock
from bundler.specfile import load_spec
from bundler.store import Store
from contextlib import nullcontext
from manifests.pieces import Silent

def counters():
    return dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())

spec = load_spec(Path("demo.toml"))
lock = load_lock(spec.lock_path)
before = counters()
options = BuildOptions(output=Path(sys.argv[1]), signer=None, rehearse=False)
build_bundle(spec, lock, Store(), options, progress=lambda _: nullcontext(Silent()), report=lambda _: None)
after = counters()
print(*(int(after[name]) - int(before[name]) for name in ("rchar", "wchar")))
"""


def make_stubs(folder: Path) -> Path:
    """Write empty wheels of what a bundle with models asks for, so that it stays small."""
    versions = {"torch": "2.13.0+cpu", "transformers": "5.24.0"}
    for requirement in SERVING_REQUIREMENTS:
        name, _, least = requirement.partition(">=")
        make_wheel(folder, name, versions.get(name, least))
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A builder with spec, lock, filled store and a key; tests that change something work on a copy."""

    builder: Builder
    key: Key

    @property
    def folder(self) -> Path:
        """Where ``demo.toml`` is."""
        return self.builder.folder

    def copy(self, folder: Path) -> "Scene":
        """Return the same scene elsewhere, with a store of its own."""
        subprocess.run([program("cp"), "-a", str(self.folder), str(folder)], check=True)
        return replace(self, builder=replace(self.builder, folder=folder))

    def build(self, output: Path | str, *options: str | Path) -> Path:
        """Build without rehearsal and return the bundle."""
        options = options or ("--key", self.key.path)
        document = self.builder.json("build", "demo.toml", "--output", output, "--no-rehearsal", *options)
        return self.folder / str(document["bundle"])

    def refused(self, output: Path | str = "out") -> tuple[int, str]:
        """Have a build refused; return exit code and messages."""
        return self.builder.refused("build", "demo.toml", "--output", output, "--unsigned", "--no-rehearsal")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Six, click and a tiny BERT, locked; read only."""
    folder = tmp_path_factory.mktemp("scene")
    builder = Builder(folder=folder / "home", links=(wheel_links(), make_stubs(folder / "stubs")))
    make_bert(builder.folder / "model")
    write_spec(builder.folder / "demo.toml", "six==1.17.0", "click==8.3.1", more=MODEL)
    builder.json("lock", "demo.toml")
    return Scene(builder=builder, key=make_key(folder / "release", seed=b"B" * 32))


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """No packages, and an application of one big file, so that packing takes a while; read only."""
    folder = tmp_path_factory.mktemp("heavy")
    builder = Builder(folder=folder / "home", links=(wheel_links(),))
    write_spec(builder.folder / "demo.toml", more='[[app]]\nname = "big"\nsource = "dir:big"\n')
    (builder.folder / "big").mkdir()
    with (builder.folder / "big/data.bin").open("wb") as stream:
        stream.truncate(HEAVY)
    builder.json("lock", "demo.toml")
    return Scene(builder=builder, key=make_key(folder / "release", seed=b"B" * 32))


@pytest.fixture(scope="module")
def bundle(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene's signed bundle, its kit beside it."""
    return scene.build(tmp_path_factory.mktemp("bundle"))


def kit_of(tar: Path) -> Path:
    return tar.with_name(tar.name.replace(".bundle.tar", ".kit"))


def test_two_builds_are_the_same_bytes(scene: Scene, bundle: Path, tmp_path: Path) -> None:
    again = scene.build(tmp_path / "again")
    assert again.name == bundle.name == f"{STEM}.bundle.tar"
    assert again.read_bytes() == bundle.read_bytes()
    assert tree_of(kit_of(again)) == tree_of(kit_of(bundle))


def test_neither_folder_nor_umask_nor_zone_nor_language_nor_store_matter(
    scene: Scene, bundle: Path, tmp_path: Path
) -> None:
    moved = scene.copy(tmp_path / "else where")
    variables = {
        "TZ": "Asia/Seoul",
        "LANG": "ko_KR.UTF-8",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "7",
        "SOURCE_DATE_EPOCH": "",
    }
    moved = replace(moved, builder=replace(moved.builder, umask=0o077, variables=variables))
    shutil.rmtree(moved.folder / "model")
    again = moved.build("out")
    assert again.read_bytes() == bundle.read_bytes()
    assert tree_of(kit_of(again)) == tree_of(kit_of(bundle))


def test_nothing_of_the_builder_is_in_it(scene: Scene, bundle: Path) -> None:
    data = bundle.read_bytes()
    for secret in (str(scene.folder), str(scene.builder.cache), str(Path.home())):
        assert secret.encode() not in data


def test_a_second_build_replaces_the_first(scene: Scene, tmp_path: Path) -> None:
    tar = scene.build(tmp_path, "--unsigned")
    tar.write_bytes(b"old")
    (kit_of(tar) / "old").write_bytes(b"")
    assert scene.build(tmp_path, "--unsigned").stat().st_size > 1_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{STEM}.bundle.tar", f"{STEM}.kit"]
    assert not (kit_of(tar) / "old").exists()


def test_unsigned_then_signed_is_what_a_signed_build_gives(scene: Scene, bundle: Path, tmp_path: Path) -> None:
    tar = scene.build(tmp_path, "--unsigned")
    assert (kit_of(tar) / "allowed_signers").read_bytes() == b""
    document = scene.builder.json("sign", tar, "--key", scene.key.path)
    kit = kit_of(tar)
    digest = hashlib.sha256((kit / "SHA256SUMS").read_bytes()).hexdigest()
    assert document == {"bundle": str(tar), "kit": str(kit), "kit_digest": digest, "signatures": 1}
    assert tree_of(kit) == tree_of(kit_of(bundle)), "the kit names the signer, as after a signed build"
    assert tar.read_bytes() == bundle.read_bytes()


def test_stock_tools_check_it(scene: Scene, bundle: Path, tmp_path: Path) -> None:
    subprocess.run([program("tar"), "-xf", str(bundle), "-C", str(tmp_path)], check=True)
    words = ("-f", str(kit_of(bundle) / "allowed_signers"), "-I", scene.key.identity, "-n", "sealift-bundle-v1")
    verify = [program("ssh-keygen"), "-Y", "verify", *words, "-s", str(tmp_path / "manifest.json.sig")]
    manifest = (tmp_path / "manifest.json").read_bytes()
    done = subprocess.run(verify, input=manifest, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(verify, input=manifest + b" ", capture_output=True, check=False).returncode != 0
    sums = [program("sha256sum"), "--strict", "-c", "docs/SHA256SUMS"]
    done = subprocess.run(sums, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    files = {entry["path"] for entry in json.loads(manifest)["files"]}
    assert done.stdout.count(b": OK\n") == len(files) - 1, "every payload file but the list itself"
    assert set(tree_of(tmp_path)) == files | {"manifest.json", "manifest.json.sig"}


def test_the_kit_s_sums_are_true_of_kit_and_medium(bundle: Path, tmp_path: Path) -> None:
    subprocess.run([program("tar"), "-xf", str(bundle), "-C", str(tmp_path), "bootstrap"], check=True)
    shutil.copytree(kit_of(bundle), tmp_path / "bootstrap", dirs_exist_ok=True)
    done = subprocess.run(
        [program("sha256sum"), "--strict", "-c", "SHA256SUMS"],
        cwd=tmp_path / "bootstrap",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(b": OK\n") == 6 + len(FLEET_NAMES)


def test_what_the_manifest_says(scene: Scene, bundle: Path) -> None:
    manifest = json.loads(scene.builder.run("manifest", bundle).stdout)
    assert (manifest["created"], manifest["sequence"]) == ("2026-01-02T03:04:05Z", 1767323045)
    (model,) = manifest["models"]
    assert (model["name"], model["adapter"], model["path"]) == ("tiny", "sentence-transformer", "models/tiny")
    assert model["adapter"] in ADAPTERS
    origins = {entry["path"]: entry["origin"] for entry in manifest["files"]}
    assert origins["wheels/six-1.17.0-py2.py3-none-any.whl"] == "pkg:pypi/six@1.17.0"
    assert origins["models/tiny/model.safetensors"] == "pkg:generic/tiny"
    assert origins["wheels/torch-2.13.0+cpu-py3-none-any.whl"] == "pkg:pypi/torch@2.13.0%2Bcpu"


def test_a_lock_of_another_spec(scene: Scene, tmp_path: Path) -> None:
    changed = scene.copy(tmp_path / "home")
    write_spec(changed.folder / "demo.toml", "six==1.17.0", more=MODEL)
    assert changed.refused() == (
        2,
        "error: demo.lock: was made from another version of demo.toml\nhint: bundler lock demo.toml\n",
    )
    assert not (changed.folder / "out").exists()


def test_a_comment_is_not_another_spec(scene: Scene, bundle: Path, tmp_path: Path) -> None:
    changed = scene.copy(tmp_path / "home")
    with (changed.folder / "demo.toml").open("a") as stream:
        stream.write("\n# approved\n")
    assert changed.build("out").read_bytes() == bundle.read_bytes()


def test_a_lock_of_another_sealift(scene: Scene, tmp_path: Path) -> None:
    changed = scene.copy(tmp_path / "home")
    lock = changed.folder / "demo.lock"
    document = json.loads(lock.read_text())
    document["sealift"] |= {"runtime.pyz": "0" * 64, "templates": "1" * 64}
    lock.write_text(json.dumps(document))
    what = "was made by another Sealift: runtime.pyz, templates differ from what is installed here"
    hint = "bundler lock demo.toml, or install the Sealift that made the lock"
    assert changed.refused() == (2, f"error: demo.lock: {what}\nhint: {hint}\n")
    assert not (changed.folder / "out").exists()


@pytest.mark.parametrize(("path", "size"), [("wheels/six-", 11050), ("models/tiny/model.safetensors", 0)])
def test_a_damaged_blob_is_named(scene: Scene, tmp_path: Path, path: str, size: int) -> None:
    changed = scene.copy(tmp_path / "home")
    document = json.loads((changed.folder / "demo.lock").read_text())
    files = [*document["wheels"], *document["models"][0]["files"]]
    locked = next(file for file in files if file["path"].startswith(path))
    assert locked["size"] == (size or locked["size"])
    blob = changed.builder.cache / "sealift/sha256" / locked["sha256"][:2] / locked["sha256"]
    blob.chmod(0o644)
    flip_bit(blob, 200)
    code, told = changed.refused()
    assert code == 5, told
    assert "error: what was locked is not what is there: 1 problem:\n" in told
    assert f"  {locked['path']}: expected sha256 {locked['sha256']}, got " in told
    assert list((changed.folder / "out").iterdir()) == []


def test_a_blob_that_is_gone(scene: Scene, tmp_path: Path) -> None:
    changed = scene.copy(tmp_path / "home")
    locked = json.loads((changed.folder / "demo.lock").read_text())["models"][0]["files"][0]
    (changed.builder.cache / "sealift/sha256" / locked["sha256"][:2] / locked["sha256"]).unlink()
    code, told = changed.refused()
    assert code == 5, told
    assert f"{locked['sha256']}: missing" in told
    assert list((changed.folder / "out").iterdir()) == []
    changed.builder.json("lock", "demo.toml")
    assert changed.build("out").is_file(), "locking again brings it back"


def test_a_payload_above_the_budget(scene: Scene, tmp_path: Path) -> None:
    changed = scene.copy(tmp_path / "home")
    more = f'{MODEL}[policy]\nmax-size = "1 MiB"\n'
    write_spec(changed.folder / "demo.toml", "six==1.17.0", "click==8.3.1", more=more)
    changed.builder.json("lock", "demo.toml")
    code, told = changed.refused()
    assert code == 10, told
    assert re.search(r"error: the payload has 1\d\.\d MB, ", told)
    assert "policy.max-size allows 1.0 MB; largest: bootstrap/uv-" in told
    assert told.endswith("\nhint: raise [policy] max-size, or leave something out\n")
    assert not (changed.folder / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run([program("umount"), str(disk)], check=True)


@pytest.mark.skipif(not is_root(), reason="mounts a file system")
def test_a_full_disk(scene: Scene, small_disk: Path) -> None:
    code, told = scene.refused(small_disk)
    assert code == 7, told
    assert f"error: can't write {small_disk}/.{STEM}.bundle.tar." in told
    assert re.search(r"no room for its 1\d{7} bytes", told)
    assert told.endswith("\nhint: choose another --output\n")
    assert list(small_disk.iterdir()) == []


@pytest.mark.skipif(not is_root(), reason="mounts a file system")
def test_a_disk_that_fills_up_during_the_rehearsal(scene: Scene, small_disk: Path) -> None:
    subprocess.run([program("mount"), "-o", "remount,size=30m", str(small_disk)], check=True)
    builder = replace(scene.builder, variables={**scene.builder.variables, "TMPDIR": str(small_disk)})
    code, told = builder.refused("build", "demo.toml", "--output", small_disk, "--key", scene.key.path)
    assert code == 7, told
    assert "error: install failed with exit code 7:\n" in told
    assert list(small_disk.iterdir()) == []


def test_an_output_that_may_not_be_written(scene: Scene, tmp_path: Path) -> None:
    user = replace(scene, builder=replace(scene.builder, wrap=without_privileges()))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    code, told = user.refused(closed)
    assert code == 7, told
    assert f"error: can't create {closed}/.{STEM}.bundle.tar." in told
    assert told.endswith(": permission denied\nhint: choose a folder that you may write, or ask its owner\n")
    code, told = user.refused(closed / "new")
    assert (code, told.splitlines()[0]) == (7, f"error: can't create {closed}/new: permission denied")
    assert list(closed.iterdir()) == []


def test_an_output_that_is_a_file(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    code, told = scene.refused(tmp_path / "out")
    assert (code, told) == (7, f"error: can't create {tmp_path}/out: File exists\n")
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["pack", "rehearse"])
def test_a_signal_in_the_middle_leaves_nothing(heavy: Scene, tmp_path: Path, number: int, step: str) -> None:
    process = heavy.builder.start("build", "demo.toml", "--output", tmp_path / "out", "--key", heavy.key.path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"... {step}"):
            break
    words = interrupt(process, number)
    assert process.returncode == 130, words
    assert words.endswith("stopped: nothing half-made was left; run the same command again to go on\n")
    assert list((tmp_path / "out").iterdir()) == []
    wait_until_gone(process.pid)


def test_each_byte_is_read_once_and_written_once(heavy: Scene, tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNT_IO, str(tmp_path)]
    done = subprocess.run(
        command, cwd=heavy.folder, env=heavy.builder.environment, capture_output=True, text=True, check=True
    )
    read, written = (int(number) for number in done.stdout.split())
    (tar,) = tmp_path.glob("*.tar")
    size = tar.stat().st_size
    assert size > HEAVY
    kit = sum(len(data) for data in tree_of(kit_of(tar)).values())
    assert size <= written <= size + kit + 64 * 1024, "each byte of the bundle once, and the kit"
    assert HEAVY <= read <= size + 4 * 1024 * 1024, "the store once, and Sealift's own sources"


def test_volumes_are_the_tar_in_parts(scene: Scene, bundle: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    words = ("demo.toml", "--output", one, "--output", two, "--volume-size", "5MiB", "--no-rehearsal")
    document = scene.builder.json("build", *words, "--unsigned")
    volumes = [Path(path) for path in document["volumes"]]
    assert document["bundle"] == str(volumes[0]) == str(one / f"{STEM}.bundle.tar.001")
    scene.builder.json("sign", volumes[0], "--key", scene.key.path)
    assert b"".join(path.read_bytes() for path in volumes) == bundle.read_bytes()
    assert not list(two.iterdir()), "the first disk had room for all"
    names = [path.name for path in volumes]
    assert sorted(path.name for path in one.iterdir()) == sorted(
        [*names, f"{STEM}.bundle.tar.volumes.json", f"{STEM}.kit"]
    )
    index = json.loads((one / f"{STEM}.bundle.tar.volumes.json").read_text())
    assert index["digest"] == document["digest"]
    assert [row["name"] for row in index["volumes"]] == names
    volumes[2].rename(two / volumes[2].name)
    assert scene.builder.json("inspect", volumes[0], "--volumes", two)["digest"] == document["digest"]
    code, told = scene.builder.refused("inspect", volumes[0])
    assert (code, f"{names[2]}: missing, the bundle has {len(names)} volumes" in told) == (5, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--volume-size", "1 KiB"), "error: --volume-size: 1024 bytes are too few, the first volume holds"),
        (("--volume-size", "few"), "error: --volume-size: 'few' is not a size such as"),
        (("--output", "other"), "error: one tar goes to one --output\nhint: --volume-size SIZE cuts it for several"),
        (("--base", "gone.tar"), "error: gone.tar: no such bundle"),
    ],
)
def test_options_that_do_not_fit(scene: Scene, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    changed = replace(scene, builder=replace(scene.builder, folder=scene.folder))
    code, said = changed.builder.refused("build", "demo.toml", "--output", tmp_path, "--unsigned", *words)
    assert (code, told in said) == (2, True), said
    assert list(tmp_path.iterdir()) == []


def test_a_delta_to_a_bundle_and_to_its_manifest(scene: Scene, bundle: Path, tmp_path: Path) -> None:
    """The base had no click: only what it lacks is carried, and a manifest that was kept serves as well."""
    older = scene.copy(tmp_path / "home")
    write_spec(older.folder / "demo.toml", "six==1.17.0", more=MODEL, version="0.9.0")
    older.builder.json("lock", "demo.toml")
    base = older.build("out")
    kept = tmp_path / "manifest.json"
    kept.write_text(older.builder.run("manifest", base).stdout)
    digest = older.builder.json("inspect", base)["digest"]
    delta = scene.build(tmp_path / "one", "--key", scene.key.path, "--base", base)
    assert delta.name == f"{STEM}.from-{digest[:12]}.delta.bundle.tar"
    again = scene.build(tmp_path / "two", "--key", scene.key.path, "--base", kept)
    assert again.read_bytes() == delta.read_bytes()
    size = scene.builder.json("inspect", bundle)
    document = scene.builder.json("inspect", delta)
    assert (document["digest"], document["signatures"]) == (size["digest"], size["signatures"])
    assert document["delta"]["base"] == digest
    assert document["delta"]["base_version"] == "0.9.0"
    assert document["delta"]["files"] + document["delta"]["left_out"] == len(document["files"])
    changed = scene.builder.json("diff", base, bundle)
    assert changed["packages"]["added"] == {"click": "8.3.1"}
    assert changed["delta"] == {key: document["delta"][key] for key in ("files", "left_out", "size")}
    listed = subprocess.run([program("tar"), "-tf", str(delta)], capture_output=True, text=True, check=True)
    names = listed.stdout.splitlines()
    assert names[:3] == ["manifest.json", "manifest.json.sig", "delta.json"]
    assert "wheels/click-8.3.1-py3-none-any.whl" in names
    assert "wheels/six-1.17.0-py2.py3-none-any.whl" not in names
    assert {name for name in names if name.startswith("bootstrap/")} >= {
        "bootstrap/install.sh",
        "bootstrap/runtime.pyz",
    }


def test_a_base_of_another_name(scene: Scene, tmp_path: Path) -> None:
    other = scene.copy(tmp_path / "home")
    write_spec(other.folder / "demo.toml", "six==1.17.0", name="other")
    other.builder.json("lock", "demo.toml")
    base = other.build("out")
    words = ("demo.toml", "--output", tmp_path / "out", "--unsigned", "--base", base)
    code, told = scene.builder.refused("build", *words)
    assert (code, told.splitlines()[0]) == (2, "error: --base is a bundle of 'other', not of 'demo'")
