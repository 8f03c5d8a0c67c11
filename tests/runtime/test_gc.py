"""``runtime gc``: what nothing needs goes, and nothing that is live, the way back, or in use."""

import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.layout import Prefix
from runtime.state import State
from tests.factories import Key
from tests.factories_closed import ClosedBundle, Host, leftovers, make_closed_bundle
from tests.factories_kill import Installer, clone


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory, closed_key: Key) -> ClosedBundle:
    """Version 3.0.0 with click alone."""
    folder = tmp_path_factory.mktemp("third")
    return make_closed_bundle(folder, closed_key, "click", version="3.0.0", sequence=1767323199)


@pytest.fixture(scope="module")
def three_releases(
    tmp_path_factory: pytest.TempPathFactory, installed: Path, second: ClosedBundle, third: ClosedBundle
) -> Path:
    """A prefix with 1.0.0, 2.0.0 and, live, 3.0.0; never write to it."""
    from tests.factories_closed import make_host  # noqa: PLC0415 # the host of this fixture alone

    folder = tmp_path_factory.mktemp("three")
    prefix = clone(installed, folder / "prefix")
    installer = Installer(host=make_host(folder / "home"))
    for bundle in (second, third):
        done = installer.run(bundle, prefix)
        assert done.status == 0, done.words
    return prefix


@pytest.fixture
def prefix(tmp_path: Path, three_releases: Path) -> Path:
    """A copy of it."""
    return clone(three_releases, tmp_path / "prefix")


def gc(host: Host, bundle: ClosedBundle, prefix: Path, *options: str) -> dict[str, Any]:
    done = host.runtime(bundle.pyz, "gc", "--prefix", prefix, "--json", *options)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def used_space(prefix: Path) -> int:
    inodes = {(s := path.lstat()).st_ino: s.st_blocks * 512 for path in prefix.rglob("*") if not path.is_dir()}
    return sum(inodes.values())


def blobs(prefix: Path) -> set[str]:
    return {path.name for path in (prefix / "store").rglob("*") if path.is_file()}


def test_the_live_and_the_previous_release_stay(
    prefix: Path, host: Host, first: ClosedBundle, second: ClosedBundle, third: ClosedBundle
) -> None:
    names = sorted(path.name for path in (prefix / "releases").iterdir())
    strange = prefix / "var/cache/bytecode/0.9.0-aaaaaaaaaaaa"
    strange.mkdir(parents=True)
    (strange / "x.pyc").write_bytes(bytes(8192))
    before = used_space(prefix)
    done = gc(host, first, prefix)
    assert done["removed"] == [names[0]]
    assert done["kept"] == {names[2]: "live", names[1]: "previous"}
    assert sorted(path.name for path in (prefix / "releases").iterdir()) == names[1:]
    assert blobs(prefix) == {e.store_key for bundle in (second, third) for e in bundle.manifest.files}
    assert done["blobs"] == len(
        {e.store_key for e in first.manifest.files}
        - {e.store_key for bundle in (second, third) for e in bundle.manifest.files}
    )
    assert not strange.exists()
    assert not (prefix / "var/cache/uv").exists()
    log = prefix / "var/logs/releases.log"
    assert log.read_text().splitlines()[-1].endswith(f"Z gc {names[0]}")
    assert abs(before - used_space(prefix) - done["freed"]) <= 8192, "the log may have grown by a block"
    verified = host.runtime(first.pyz, "verify", "--prefix", prefix, "--deep")
    assert verified.returncode == 0, verified.stdout
    assert host.runtime(first.pyz, "rollback", "--prefix", prefix).stdout == f"{names[1]} is live again\n"
    again = gc(host, first, prefix)
    assert (again["removed"], again["blobs"], again["freed"]) == ([], 0, 0)


def test_keep_more(prefix: Path, host: Host, first: ClosedBundle) -> None:
    oldest = min(path.name for path in (prefix / "releases").iterdir())
    done = gc(host, first, prefix, "--keep", "1")
    assert (done["removed"], done["kept"][oldest], done["blobs"]) == ([], "kept", 0)


def test_a_release_in_use_stays(prefix: Path, host: Host, first: ClosedBundle) -> None:
    oldest = min((prefix / "releases").iterdir())
    descriptor = os.open(oldest, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        done = gc(host, first, prefix)
    finally:
        os.close(descriptor)
    assert (done["removed"], done["kept"][oldest.name]) == ([], "in use")
    assert gc(host, first, prefix)["removed"] == [oldest.name], "free now"


def test_what_interrupted_installs_left_goes_too(prefix: Path, host: Host, first: ClosedBundle) -> None:
    oldest = min((prefix / "releases").iterdir())
    (oldest / "receipt.json").unlink()
    partial = prefix / "store/sha256/aa" / f"{'a' * 64}.partial"
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(b"x")
    foreign = prefix / "store/notes.txt"
    foreign.write_text("mine")
    gc(host, first, prefix)
    assert not oldest.exists()
    assert not partial.exists()
    assert foreign.exists(), "not a file of the store's"
    strange = [path for path in leftovers(prefix) if not path.startswith("releases/")]
    assert strange == ["current", "state.json", "store/notes.txt"]


def test_a_damaged_manifest_keeps_its_files(prefix: Path, host: Host, first: ClosedBundle, third: ClosedBundle) -> None:
    manifest = prefix / "current/manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(b"{}\n")
    gc(host, first, prefix)
    assert {e.store_key for e in third.manifest.files} <= blobs(prefix)


def test_gc_waits_for_nobody(prefix: Path, host: Host, first: ClosedBundle) -> None:
    with (prefix / "var/install.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = host.runtime(first.pyz, "gc", "--prefix", prefix)
    assert done.returncode == 7
    assert f"error: {prefix}: in use by another runtime" in done.stderr


def test_gc_of_nothing(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "gc", "--prefix", tmp_path / "none")
    assert done.returncode == 2
    assert "nothing is installed here" in done.stderr
    assert not (tmp_path / "none").exists()
    done = host.runtime(first.pyz, "gc", "--prefix", tmp_path, "--keep", "-1")
    assert done.returncode == 2


def test_a_launched_server_holds_its_release(installed: Path, host: Host, first: ClosedBundle) -> None:
    """The lock outlives the exec that makes the launcher the server; any program can stand for the server."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from runtime.layout import Prefix; from runtime.launch import hold_live\n"
        "hold_live(Prefix(path=Path(sys.argv[2])))\n"
        "os.execv('/bin/sh', ['sh', '-c', 'echo held; read line'])\n"
    )
    process = subprocess.Popen(
        [str(host.python), "-I", "-S", "-c", code, str(first.pyz), str(installed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    release = Prefix(path=installed).require_live()
    assert release.hold(exclusive=True) is None
    with release.used():
        pass
    process.communicate(b"\n", timeout=30)
    alone = release.hold(exclusive=True)
    assert alone is not None
    os.close(alone)


def test_which_release_was_live_before() -> None:
    state = State(name="demo", sequence=1, created="2026-01-02T03:04:05Z", previous="b", earlier="a")
    assert state.before("c") == "b"
    assert state.before("b") == "a", "the flip to c never came"
