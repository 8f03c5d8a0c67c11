"""Whether a host fits: Python, platform, cores, memory, disk, and what go-live asks besides."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from manifests.errors import DiskError, HostError
from manifests.manifest import HostNeeds, Manifest, ModelEntry, Target
from runtime.hostchecks import HostQuestions, check_host
from runtime.hostfacts import Host as FactsHost
from runtime.hostfacts import Limit
from runtime.interpreter import Interpreter, find_interpreter
from runtime.layout import Prefix
from runtime.preflight import Check, disk_needed, platform_problem, preflight, require
from tests.factories import Key, is_root, make_manifest
from tests.factories_closed import HOST_TARGET, PYTHON, ClosedBundle, Host, make_closed_bundle, program

needs_root = pytest.mark.skipif(not is_root(), reason="needs root: mounts, and other users")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A tmpfs mounted with the options of the test's parameter."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", request.param, "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run([program("umount"), str(disk)], check=True)


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
    assert {check for check, verdict in verdicts.items() if verdict == "failed"} == {name}
    assert {"python", "prefix", "disk space", "inodes", "hard links"} <= verdicts.keys()
    assert f"error: this host does not fit the bundle: 1 problem:\n  {words}" in done.stderr
    assert f"hint: use a host with more {name}" in done.stderr
    refused = host.runtime(bundle.pyz, "install", bundle.tar, "--prefix", tmp_path / "p", "--trust", bundle.trust)
    assert refused.returncode == 6
    assert not (tmp_path / "p").exists()


def test_a_recommendation_that_is_missed_is_a_warning(tmp_path: Path, closed_key: Key, host: Host) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, recommended=HostNeeds(cpu_cores=4096, memory=1))
    done = host.runtime(bundle.pyz, "preflight", bundle.tar)
    assert done.returncode == 0, done.stderr
    rows = {
        line[9:].split(" found ")[0].strip(): line.split()[0] for line in done.stdout.splitlines() if line[0] != " "
    }
    assert (rows["cpu cores"], rows["memory"]) == ("warning", "ok")
    cores = next(index for index, line in enumerate(done.stdout.splitlines()) if "cpu cores" in line)
    assert done.stdout.splitlines()[cores].endswith(", needed 4096 recommended")
    assert done.stdout.splitlines()[cores + 1].strip() == "to do: use a host with more cpu cores"


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


def rows_of(checks: "tuple[Check, ...]") -> dict[str, Check]:
    return {check.name: check for check in checks}


def make_root(folder: Path, **files: str) -> FactsHost:
    """Return a host whose files below / are these; ``__`` in a name stands for /."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return FactsHost(root=folder)


MEMORY = "MemTotal:       33554432 kB\nMemFree: 1 kB\n"  # 32 GiB
UNLIMITED = str(2**63 - 4096)


@pytest.mark.parametrize(
    ("files", "memory", "cores"),
    [
        ({"proc__self__cgroup": "0::/\n"}, 32, None),
        (
            {
                "proc__self__cgroup": "0::/system.slice/rag.service\n",
                "sys__fs__cgroup__system.slice__memory.max": f"{4 << 30}\n",
                "sys__fs__cgroup__system.slice__rag.service__memory.max": "max\n",
                "sys__fs__cgroup__system.slice__rag.service__cpu.max": "50000 100000\n",
            },
            4,
            0.5,
        ),
        (
            {
                "proc__self__cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
                "sys__fs__cgroup__memory__memory.limit_in_bytes": f"{2 << 30}\n",
                "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "25000\n",
                "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n",
            },
            2,
            0.25,
        ),
        (
            {
                "proc__self__cgroup": "4:memory:/\n3:cpu:/\n",
                "sys__fs__cgroup__memory__memory.limit_in_bytes": UNLIMITED,
                "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1\n",
                "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n",
            },
            32,
            None,
        ),
    ],
    ids=["no limit", "v2, the parent's", "v1 in a container", "v1 without limits"],
)
def test_limits_of_cgroups(tmp_path: Path, files: dict[str, str], memory: int, cores: float | None) -> None:
    host = make_root(tmp_path, proc__meminfo=MEMORY, **files)
    assert host.memory() == Limit(value=memory << 30, whole=32 << 30)
    affinity = len(os.sched_getaffinity(0))
    assert host.cores() == Limit(value=affinity if cores is None else cores, whole=os.cpu_count() or 1)


def test_too_little_memory_by_cgroup_is_named(tmp_path: Path) -> None:
    files = {"proc__self__cgroup": "0::/rag\n", "sys__fs__cgroup__rag__memory.max": str(4 << 30)}
    host = make_root(tmp_path / "root", proc__meminfo=MEMORY, **files)
    manifest = make_manifest({}, target=HOST_TARGET, minimum=HostNeeds(memory=16 << 30))
    row = rows_of(preflight(manifest, Prefix(path=tmp_path), host=host))["memory"]
    assert row == Check(
        name="memory",
        found="4.3 GB (limited by a cgroup or its affinity; the host has 34.4 GB)",
        needed="17.2 GB",
        verdict="failed",
        remedy="give this service more memory (systemd: MemoryMax=; a container: --memory), "
        "or use a host with more memory",
    )


CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(not os.access(CGROUP / "cgroup.procs", os.W_OK), reason="needs a cgroup v1 tree that we may write")
def test_a_real_cgroup_s_limit_ends_with_6(tmp_path: Path, closed_key: Key, host: Host) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key, minimum=HostNeeds(memory=1 << 30))
    group = CGROUP / f"sealift-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(512 << 20))
        enter = (program("sh"), "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
        done = replace(host, wrap=enter).runtime(bundle.pyz, "preflight", bundle.tar, "--prefix", tmp_path / "p")
    finally:
        group.rmdir()
    assert done.returncode == 6
    assert "failed   memory" in done.stdout
    assert "found 536.9 MB (limited by a cgroup or its affinity; the host has " in done.stderr


def test_a_host_sold_with_what_is_asked_for_is_enough(tmp_path: Path) -> None:
    def verdict(kilobytes: int) -> str:
        host = make_root(tmp_path / str(kilobytes), proc__meminfo=f"MemTotal: {kilobytes} kB\n")
        manifest = make_manifest({}, target=HOST_TARGET, minimum=HostNeeds(memory=32 << 30))
        return rows_of(preflight(manifest, Prefix(path=tmp_path), host=host))["memory"].verdict

    assert verdict(32_300_000) == "ok", "the kernel keeps some of 32 GiB"
    assert verdict(31_000_000) == "failed"


MOUNTS = (
    "20 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
    "21 20 8:1 / {point} rw,relatime - {kind} /dev/sdb1 rw\n"
    "22 20 8:1 / /elsewhere rw - xfs /dev/sdc rw\n"
)


@pytest.mark.parametrize("kind", ["vfat", "exfat", "msdos"])
def test_a_prefix_on_fat_has_no_hard_links(tmp_path: Path, kind: str) -> None:
    point = str(tmp_path / "a disk").replace(" ", "\\040")
    (tmp_path / "a disk").mkdir()
    host = make_root(tmp_path / "root", proc__self__mountinfo=MOUNTS.format(point=point, kind=kind))
    checks = preflight(make_manifest({}, target=HOST_TARGET), Prefix(path=tmp_path / "a disk" / "p"), host=host)
    row = rows_of(checks)["hard links"]
    assert (row.verdict, row.found) == ("failed", f"none on {kind}")
    with pytest.raises(HostError, match="hard links: found none on"):
        require(checks)
    beside = preflight(make_manifest({}, target=HOST_TARGET), Prefix(path=tmp_path / "p"), host=host)
    assert rows_of(beside)["hard links"].found == "work on ext4"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".sealift")] == []


@needs_root
@pytest.mark.parametrize("small_disk", ["size=64m,nr_inodes=12"], indirect=True)
def test_a_disk_without_inodes_is_refused(tmp_path: Path, closed_key: Key, host: Host, small_disk: Path) -> None:
    bundle = make_closed_bundle(tmp_path / "bundle", closed_key)
    for index in range(9):
        (small_disk / str(index)).touch()
    words = (bundle.tar, "--prefix", small_disk / "p")
    done = host.runtime(bundle.pyz, "preflight", *words, "--json")
    row = next(row for row in json.loads(done.stdout)["checks"] if row["check"] == "inodes")
    assert (done.returncode, row["verdict"], row["found"]) == (7, "failed", "2 free")
    assert row["remedy"] == (
        f"remove files that nobody needs (runtime gc --prefix {small_disk / 'p'}), or choose another --prefix: df -i"
    )
    assert host.runtime(bundle.pyz, "install", *words, "--trust", bundle.trust).returncode == 7


@needs_root
@pytest.mark.parametrize("small_disk", ["noexec,size=8m"], indirect=True)
def test_a_noexec_temporary_folder_is_a_warning(host: Host, first: ClosedBundle, small_disk: Path) -> None:
    done = replace(host, tmp=small_disk).runtime(first.pyz, "preflight", first.tar)
    assert done.returncode == 0
    assert f"warning  tmp folder found {small_disk} is mounted noexec, needed runs programs" in done.stdout
    assert "to do: start with TMPDIR=PREFIX/var/run" in done.stdout


NOW = datetime(2026, 6, 1, tzinfo=UTC)


def table(tmp_path: Path, manifest: Manifest | None = None, **questions: object) -> dict[str, Check]:
    asked = HostQuestions(**({"now": NOW, "search_path": str(tmp_path)} | questions))  # type: ignore[arg-type] # each its own
    prefix = Prefix(path=tmp_path / "prefix")
    return rows_of(check_host(manifest or make_manifest({}, target=HOST_TARGET), prefix, asked))


def test_every_row_that_is_not_ok_has_a_remedy(tmp_path: Path) -> None:
    files = {
        "proc__net__route": "Iface\tDestination\n" + "eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n",
        "etc__resolv.conf": "search corp\nnameserver 192.168.2.1\n",
        "sys__fs__selinux__enforce": "1",
        "proc__77__comm": "fapolicyd\n",
        "proc__self__status": "Name:\tx\nUmask:\t0077\n",
        "proc__cpuinfo": "model name\t: Old\nflags\t\t: fpu sse2\n",
    }
    target = replace(HOST_TARGET, platform="x86_64-manylinux_2_28", accelerator="cuda-12.6")
    files_of_model = {"models/m/config.json": b"{}"}
    model = ModelEntry(name="m", adapter="hcx", path="models/m", format="safetensors", origin="dir")
    manifest = make_manifest(files_of_model, target=target, models=(model,))
    host = make_root(tmp_path / "root", **files)
    found = table(
        tmp_path, manifest, host=host, container=True, service_user="no-such-user", now=NOW.replace(year=2020)
    )
    verdicts = {name: check.verdict for name, check in found.items() if check.verdict != "ok"}
    verdicts.pop("platform", None)  # on another kind of CPU than the bundle's
    assert verdicts == {
        "gpu": "failed",
        "cpu kind": "warning",
        "container": "failed",
        "clock": "warning",
        "umask": "failed",
        "selinux": "note",
        "fapolicyd": "warning",
        "service user": "failed",
        "network": "note",
    }
    assert [name for name, check in found.items() if check.verdict != "ok" and not check.remedy] == []
    assert found["network"].found == "a default route by eth0; name servers 192.168.2.1"
    assert [name for name, check in found.items() if check.verdict == "ok" and check.remedy] == []


def test_a_clock_that_went_back(tmp_path: Path) -> None:
    assert table(tmp_path)["clock"].verdict == "ok"
    late = table(tmp_path, newest="2026-07-01T00:00:00Z")["clock"]
    assert (late.verdict, late.found) == ("warning", "2026-06-01T00:00:00Z")
    assert "2026-07-01T00:00:00Z" in late.needed
    assert table(tmp_path, now=NOW.replace(year=2040))["clock"].verdict == "warning"


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        row = table(tmp_path, port=port)["port"]
    assert (row.verdict, row.found, row.needed) == ("failed", "address already in use", f"127.0.0.1:{port} free")
    assert table(tmp_path, port=port)["port"].verdict == "ok"


@pytest.mark.parametrize(
    ("script", "verdict", "found"),
    [
        ("#!/bin/sh\necho 24.0.7\n", "ok", "docker 24.0.7"),
        ("#!/bin/sh\necho 19.3.1\n", "failed", "docker 19.3.1"),
        ("#!/bin/sh\nexit 1\n", "failed", "docker does not answer"),
    ],
)
def test_the_container_engine(tmp_path: Path, script: str, verdict: str, found: str) -> None:
    (tmp_path / "docker").write_text(script)
    (tmp_path / "docker").chmod(0o755)
    row = table(tmp_path, container=True)["container"]
    assert (row.verdict, row.found, row.needed) == (verdict, found, "docker 20.10 or podman 4.0")


VERSION = "NVRM version: NVIDIA UNIX {kind}  {driver}  Sat Sep  1 00:00:00 UTC 2024\nGCC version:\n"


@pytest.mark.parametrize(
    ("accelerator", "driver", "verdict"),
    [
        ("cuda-11.8", "450.80.02", "warning"),
        ("cuda-11.8", "450.79.01", "failed"),
        ("cuda-12.6", "525.60.13", "warning"),
        ("cuda-12.6", "560.28.03", "ok"),
        ("cuda-12.6", "470.256.02", "failed"),
        ("cuda-13.0", "580.65.06", "ok"),
        ("cuda-13.0", "575.51.03", "failed"),
        ("cuda-12.6", "", "failed"),
        ("cpu", "", "ok"),
        ("mps", "", "failed"),
    ],
)
def test_the_driver_against_the_torch_build(tmp_path: Path, accelerator: str, driver: str, verdict: str) -> None:
    files = {"dev__nvidiactl": ""}
    if driver:
        files["proc__driver__nvidia__version"] = VERSION.format(kind="Open Kernel Module for x86_64", driver=driver)
        files["proc__driver__nvidia__gpus__0000:01:00.0__information"] = "Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ: 1\n"
    host = make_root(tmp_path / "root", **files)
    manifest = make_manifest({}, target=replace(HOST_TARGET, accelerator=accelerator))
    row = table(tmp_path, manifest, host=host)["gpu"]
    assert row.verdict == verdict
    if driver:
        assert row.found == f"NVIDIA A100-SXM4-80GB, driver {driver}"
        assert row.needed.startswith("an NVIDIA GPU with driver ")


def test_a_gpu_that_this_user_may_not_use(tmp_path: Path) -> None:
    version = VERSION.format(kind="x86_64 Kernel Module", driver="560.28.03")
    files = {"proc__driver__nvidia__version": version, "proc__driver__nvidia__gpus__0__information": "Model: A\n"}
    manifest = make_manifest({}, target=replace(HOST_TARGET, accelerator="cuda-12.6"))
    row = table(tmp_path, manifest, host=make_root(tmp_path / "root", **files))["gpu"]
    assert (row.verdict, row.found) == ("failed", "A, driver 560.28.03, /dev/nvidiactl can't be opened")


def test_nvidia_smi_is_believed_where_it_answers(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 570.26, 81559 MiB'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    manifest = make_manifest({}, target=replace(HOST_TARGET, accelerator="cuda-12.8"))
    row = table(tmp_path, manifest, host=make_root(tmp_path / "root", dev__nvidiactl=""))["gpu"]
    assert (row.verdict, row.found) == ("ok", "NVIDIA H100 80GB HBM3, 81559 MiB, driver 570.26")


@needs_root
def test_what_the_service_user_may_not_read(installed: Path) -> None:
    release = (installed / "current").resolve()
    asked = HostQuestions(now=NOW, service_user="nobody", installed=True)
    manifest = make_manifest({}, target=HOST_TARGET)
    row = rows_of(check_host(manifest, Prefix(path=installed), asked))["service user"]
    closed = next(path for path in (*reversed(release.parents), release) if not path.stat().st_mode & 0o001)
    assert (row.verdict, row.found) == ("failed", f"nobody may not enter or read {closed}")
    assert row.remedy.startswith(f"chmod o+rx {closed}, ")
    mine = rows_of(check_host(manifest, Prefix(path=installed), replace(asked, service_user="root")))["service user"]
    assert mine.verdict == "ok"
