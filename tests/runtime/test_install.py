"""Installing, upgrading, going back: real bundles, the real runtime.pyz, no network."""

import json
import shutil
from pathlib import Path

import pytest

from tests.factories import Key, tree_of
from tests.factories_closed import (
    BIG_PATH,
    BIG_SIZE,
    ClosedBundle,
    Host,
    closed_files,
    leftovers,
    make_closed_bundle,
)


def install(host: Host, bundle: ClosedBundle, prefix: Path, *options: str) -> dict[str, object]:
    done = host.runtime(
        bundle.pyz, "install", bundle.tar, "--prefix", prefix, "--trust", bundle.trust, "--json", *options
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def live_name(prefix: Path) -> str:
    return (prefix / "current").readlink().name


def test_install_makes_the_release_live(installed: Path, first: ClosedBundle) -> None:
    release = installed / "releases" / live_name(installed)
    assert live_name(installed).startswith("1.0.0-")
    assert (installed / "current").readlink() == Path("releases") / release.name
    for entry in first.manifest.files:
        path = release / entry.path
        assert path.stat().st_size == entry.size, entry.path
        assert path.stat().st_mode & 0o777 == (0o555 if entry.executable else 0o444), entry.path
        assert path.samefile(installed / "store/sha256" / entry.store_key[:2] / entry.store_key), entry.path
    assert (release / "manifest.json").read_bytes() == first.manifest.encode()
    receipt = json.loads((release / "receipt.json").read_text())
    assert receipt["signers"][0].startswith("release@example.com SHA256:")
    state = json.loads((installed / "state.json").read_text())
    assert state == {"created": first.manifest.created, "name": "demo", "previous": "", "sequence": 1767323045}


def test_install_leaves_nothing_but_the_release(installed: Path) -> None:
    name = live_name(installed)
    strange = [path for path in leftovers(installed) if not path.startswith(f"releases/{name}/")]
    assert strange == ["current", "state.json"]
    assert list((installed / "var/run").iterdir()) == []


def test_settings_are_expanded_into_etc(installed: Path, first: ClosedBundle) -> None:
    assert f"CACHE_DIR={installed}/var/cache\n" in (installed / "etc/offline.env").read_text()
    assert (installed / "etc/allowed_signers").read_bytes() == first.trust.read_bytes()


def test_the_venv_holds_exactly_the_wheels(installed: Path, host: Host) -> None:
    python = installed / "current/venv/bin/python"
    question = "import importlib.metadata as m; print(sorted(d.name for d in m.distributions()))"
    assert host.run(python, "-I", "-c", question).stdout == "['sealift', 'six']\n"
    assert host.run(installed / "current/venv/bin/runtime", "--version").stdout.startswith("runtime ")


def test_running_the_venv_leaves_no_bytecode_in_it(installed: Path, host: Host, first: ClosedBundle) -> None:
    venv = installed / "current/venv"
    assert host.run(venv / "bin/python", "-c", "import six, runtime.layout").returncode == 0
    assert host.run(venv / "bin/runtime", "status", "--prefix", installed).returncode == 0
    assert list(venv.rglob("*.pyc")) == []
    assert host.runtime(first.pyz, "verify", "--prefix", installed).returncode == 0


def test_installing_again_changes_nothing(installed: Path, first: ClosedBundle, host: Host) -> None:
    before = {path: path.lstat().st_mtime_ns for path in installed.rglob("*")}
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", installed, "--trust", first.trust)
    assert done.returncode == 0
    assert done.stdout.endswith(f"was live already, nothing to do ({installed}/releases/{live_name(installed)})\n")
    after = {path: path.lstat().st_mtime_ns for path in installed.rglob("*")}
    changed = {path for path in before if path.is_file() and before[path] != after.get(path)}
    assert changed == {installed / "var/audit.jsonl"}, "that it was asked for is told"
    assert after.keys() == before.keys()


def test_upgrade_shares_files_and_rollback_returns(
    tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle
) -> None:
    prefix = tmp_path / "prefix"
    old, new = install(host, first, prefix), install(host, second, prefix)
    releases = prefix / "releases"
    uv = next(entry for entry in first.manifest.files if "/uv-" in entry.path)
    assert (releases / str(old["release"]) / uv.path).stat().st_nlink == 3, "one in the store, one in each release"
    site = next((releases / str(new["release"]) / "venv/lib").glob("python3*")) / "site-packages"
    assert (site / "six.py").stat().st_nlink == 3, "one in uv's cache, one in each release"
    status = json.loads(host.runtime(first.pyz, "status", "--prefix", prefix, "--json").stdout)
    assert status == {
        "live": new["release"],
        "prefix": str(prefix),
        "releases": {old["release"]: "installed", new["release"]: "live"},
    }
    back = host.runtime(first.pyz, "rollback", "--prefix", prefix, "--json")
    assert json.loads(back.stdout) == {"release": old["release"]}
    assert live_name(prefix) == old["release"]
    assert host.runtime(first.pyz, "rollback", "--prefix", prefix).stdout == f"{new['release']} is live again\n"
    assert live_name(prefix) == new["release"]


def test_downgrade_needs_a_word(tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    install(host, second, prefix)
    before = tree_of(prefix)
    refused = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust)
    assert refused.returncode == 10
    assert (
        "error: bundle 1.0.0 (sequence 1767323045, 2026-01-02T03:04:05Z) is older than what was installed here before "
        "(sequence 1767323099, 2026-01-02T03:04:05Z)\nhint: runtime rollback goes back to what was live; "
        "to install an older bundle all the same: --allow-downgrade\n"
    ) in refused.stderr
    assert tree_of(prefix) == before
    done = install(host, first, prefix, "--allow-downgrade")
    assert live_name(prefix) == done["release"]
    assert json.loads((prefix / "state.json").read_text())["sequence"] == 1767323099, "the maximum never goes back"
    log = (prefix / "var/logs/releases.log").read_text().splitlines()
    assert log[-1].endswith(
        f"Z install {done['release']}, an allowed downgrade: sequence 1767323045, 2026-01-02T03:04:05Z, "
        "after sequence 1767323099, 2026-01-02T03:04:05Z"
    )
    assert len(log) == 2


def test_rollback_without_an_earlier_release(installed: Path, first: ClosedBundle, host: Host) -> None:
    done = host.runtime(first.pyz, "rollback", "--prefix", installed)
    assert done.returncode == 2
    told = f"{installed}: there is no earlier release to go back to\nhint: runtime status --prefix {installed}\n"
    assert told in done.stderr


def test_another_bundle_in_the_prefix_is_refused(tmp_path: Path, installed: Path, closed_key: Key, host: Host) -> None:
    other = make_closed_bundle(tmp_path / "other", closed_key, name="other")
    before = tree_of(installed)
    done = host.runtime(other.pyz, "install", other.tar, "--prefix", installed, "--trust", other.trust)
    assert done.returncode == 2
    assert "error: the prefix holds bundle 'demo', this bundle is 'other'" in done.stderr
    assert tree_of(installed) == before


def test_an_explicit_python(tmp_path: Path, bare_host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    install(bare_host, first, prefix, "--python", str(bare_host.python), "--no-smoke")
    receipt = json.loads((prefix / "current/receipt.json").read_text())
    assert Path(receipt["python"]).samefile(bare_host.python)


def test_a_chunked_file_is_installed_and_resumed(tmp_path: Path, host: Host, chunked: ClosedBundle) -> None:
    entry = next(entry for entry in chunked.manifest.files if entry.path == BIG_PATH)
    prefix = tmp_path / "prefix"
    partial = prefix / "store/sha256" / entry.store_key[:2] / f"{entry.store_key}.partial"
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as stream:  # the first chunk as it must be, a second one that isn't
        stream.truncate(entry.size - 1)
        stream.seek(BIG_SIZE - 100)
        stream.write(b"x")
    inode = partial.stat().st_ino
    install(host, chunked, prefix)
    blob = partial.with_name(entry.store_key)
    assert blob.stat().st_ino == inode, "the partial file was carried on"
    assert not partial.exists()
    done = host.runtime(chunked.pyz, "verify", "--prefix", prefix, "--deep", "--trust", chunked.trust)
    assert done.returncode == 0, done.stdout


def test_a_damaged_old_release_does_not_block_an_upgrade(
    tmp_path: Path, host: Host, first: ClosedBundle, second: ClosedBundle
) -> None:
    prefix = tmp_path / "prefix"
    old = install(host, first, prefix)
    manifest = prefix / "releases" / str(old["release"]) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(b"{}\n")
    new = install(host, second, prefix)
    assert live_name(prefix) == new["release"]


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_blob_that_no_release_holds_is_hashed_again(
    tmp_path: Path, host: Host, first: ClosedBundle, damage: str
) -> None:
    entry = next(entry for entry in first.manifest.files if entry.path.startswith("wheels/six"))
    prefix = tmp_path / "prefix"
    blob = prefix / "store/sha256" / entry.store_key[:2] / entry.store_key
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(entry.size - 1 if damage == "cut" else entry.size))
    install(host, first, prefix)
    assert host.runtime(first.pyz, "verify", "--prefix", prefix).returncode == 0


def test_settings_follow_an_upgrade_unless_the_operator_changed_them(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key
) -> None:
    files = closed_files("six")
    environment = files["config/offline.env"]
    assert isinstance(environment, bytes)
    newer = {**files, "config/offline.env": environment + b"NEW=${PREFIX}/new\n"}
    bundle = make_closed_bundle(tmp_path / "newer", closed_key, files=newer, version="1.1.0")
    prefix, path = tmp_path / "prefix", tmp_path / "prefix/etc/offline.env"
    old = install(host, first, prefix)
    install(host, bundle, prefix)
    assert path.read_text().endswith(f"\nNEW={prefix}/new\n")
    assert host.runtime(first.pyz, "rollback", "--prefix", prefix).stdout == f"{old['release']} is live again\n"
    path.write_text("MINE=1\n")
    shutil.rmtree(next((prefix / "releases").glob("1.1.0-*")))
    install(host, bundle, prefix)
    assert path.read_text() == "MINE=1\n"
