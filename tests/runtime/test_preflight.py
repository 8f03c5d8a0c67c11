"""Whether a host fits: Python, platform, cores, memory, disk."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.errors import DiskError, HostError
from manifests.manifest import HostNeeds, Target
from runtime.interpreter import Interpreter, find_interpreter
from runtime.layout import Prefix
from runtime.preflight import Check, disk_needed, platform_problem, preflight, require
from tests.factories import Key, make_manifest
from tests.factories_closed import HOST_TARGET, PYTHON, ClosedBundle, Host, make_closed_bundle

OTHER_PYTHON = "3.14" if PYTHON != "3.14" else "3.15"
HERE = Interpreter(
    executable=Path(sys.executable),
    version="3.11",
    implementation="CPython",
    system="Linux",
    machine="x86_64",
    libc=("glibc", "2.36"),
    release="6.1",
)


@pytest.mark.parametrize(
    ("platform", "interpreter", "problem"),
    [
        ("x86_64-manylinux_2_28", HERE, None),
        ("x86_64-manylinux_2_36", HERE, None),
        ("x86_64-manylinux_2_37", HERE, "glibc 2.36"),
        ("x86_64-manylinux_2_5", HERE, None),
        ("x86_64-unknown-linux-gnu", HERE, None),
        ("aarch64-manylinux_2_28", HERE, "Linux on x86_64"),
        ("aarch64-manylinux_2_28", replace(HERE, machine="aarch64"), None),
        ("x86_64-manylinux_2_28", replace(HERE, libc=("", "")), "a Linux without glibc"),
        ("aarch64-apple-darwin", HERE, "Linux on x86_64"),
        ("aarch64-apple-darwin", replace(HERE, system="Darwin", machine="arm64"), None),
        ("x86_64-pc-windows-msvc", HERE, "Linux on x86_64"),
    ],
)
def test_platforms(platform: str, interpreter: Interpreter, problem: str | None) -> None:
    assert platform_problem(platform, interpreter) == problem


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (replace(HOST_TARGET, python=OTHER_PYTHON), f"python: found none, needed CPython {OTHER_PYTHON} on "),
        (replace(HOST_TARGET, platform="riscv64-manylinux_2_28"), "needed riscv64-manylinux_2_28"),
        (
            replace(HOST_TARGET, platform=HOST_TARGET.platform.replace("2_28", "2_99")),
            f"needed {HOST_TARGET.platform.replace('2_28', '2_99')}",
        ),
    ],
)
def test_a_bundle_for_another_host_is_refused(
    tmp_path: Path, closed_key: Key, host: Host, target: Target, words: str
) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, target=target)
    done = host.runtime(bundle.pyz, "install", bundle.tar, "--prefix", tmp_path / "p", "--trust", bundle.trust)
    assert done.returncode == 6
    assert words in done.stderr
    assert "\nhint: " in done.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (HostNeeds(cpu_cores=4096), "cpu cores: found "),
        (HostNeeds(memory=2**50), "memory: found "),
        (HostNeeds(disk=2**52), "disk: found "),
    ],
)
def test_a_minimum_that_is_missed_is_refused(
    tmp_path: Path, closed_key: Key, host: Host, needs: HostNeeds, words: str
) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, minimum=needs)
    done = host.runtime(bundle.pyz, "preflight", bundle.tar, "--prefix", tmp_path / "p", "--json")
    assert done.returncode == 6
    verdicts = {check["check"]: check["verdict"] for check in json.loads(done.stdout)["checks"]}
    name = words.partition(":")[0]
    assert verdicts == {"python": "ok", "prefix": "ok", "disk space": "ok", name: "failed"}
    assert f"error: this host does not fit the bundle: 1 problem:\n  {words}" in done.stderr
    assert f"hint: use a host with more {name}" in done.stderr
    refused = host.runtime(bundle.pyz, "install", bundle.tar, "--prefix", tmp_path / "p", "--trust", bundle.trust)
    assert refused.returncode == 6
    assert not (tmp_path / "p").exists()


def test_a_recommendation_that_is_missed_is_a_warning(tmp_path: Path, closed_key: Key, host: Host) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, recommended=HostNeeds(cpu_cores=4096, memory=1))
    done = host.runtime(bundle.pyz, "preflight", bundle.tar)
    assert done.returncode == 0, done.stderr
    rows = {line[9:21].strip(): line.split()[0] for line in done.stdout.splitlines()}
    assert rows == {"python": "ok", "prefix": "ok", "disk space": "ok", "cpu cores": "warning", "memory": "ok"}
    assert "found none" not in done.stdout


def test_preflight_says_that_nothing_was_trusted(first: ClosedBundle, host: Host) -> None:
    done = host.runtime(first.pyz, "preflight", first.tar, "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["bundle"], report["trusted"]) == (first.manifest.stem, False)
    assert not list(host.home.iterdir())


def test_an_explicit_python_of_another_kind(first: ClosedBundle, host: Host) -> None:
    done = host.runtime(first.pyz, "preflight", first.tar, "--python", "/bin/true")
    assert done.returncode == 6
    assert f"python: found none, needed CPython {PYTHON}" in done.stderr


def test_find_interpreter_says_what_it_looked_at() -> None:
    with pytest.raises(HostError) as caught:
        find_interpreter(OTHER_PYTHON, Path(sys.executable))
    assert caught.value.message == (
        f"the bundle is for Python {OTHER_PYTHON}, this host has none: {sys.executable} is CPython {PYTHON}"
    )
    with pytest.raises(HostError, match="/bin/true does not run"):
        find_interpreter(PYTHON, Path("/bin/true"))


def test_find_interpreter_names_the_base_of_a_venv() -> None:
    found = find_interpreter(PYTHON, Path(sys.executable))
    assert found.executable.samefile(getattr(sys, "_base_executable", sys.executable))
    assert found.system == "Linux"


def test_disk_needed_counts_each_content_once_and_what_is_unpacked(tmp_path: Path) -> None:
    files = {"models/a/one": b"12345", "models/a/two": b"12345", "models/a/three": b"123"}
    manifest = make_manifest(files, launch={"unpacked-size": 100})
    prefix = Prefix(path=tmp_path)
    assert disk_needed(manifest, prefix) == 108
    key = next(entry for entry in manifest.files if entry.size == 5).store_key
    blob = tmp_path / "store/sha256" / key[:2] / key
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"12345")
    assert disk_needed(manifest, prefix) == 103


def test_a_prefix_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    checks = preflight(make_manifest({}, target=HOST_TARGET), Prefix(path=tmp_path / "file" / "prefix"))
    row = next(check for check in checks if check.name == "prefix")
    assert (row.verdict, row.found) == ("failed", f"{tmp_path}/file is not a folder")
    with pytest.raises(DiskError):
        require(checks)


def test_require_prefers_the_host_s_code() -> None:
    disk = Check(name="disk space", found="1 B", needed="2 B", verdict="failed", remedy="free some", exit_code=7)
    memory = Check(name="memory", found="1 B", needed="2 B", verdict="failed", remedy="buy some")
    warning = Check(name="cpu cores", found="1", needed="2", verdict="warning")
    require((warning,))
    with pytest.raises(DiskError):
        require((warning, disk))
    with pytest.raises(HostError) as caught:
        require((disk, memory, warning))
    assert caught.value.render() == (
        "error: this host does not fit the bundle: 2 problems:\n"
        "  disk space: found 1 B, needed 2 B\n  memory: found 1 B, needed 2 B\nhint: free some; buy some"
    )
