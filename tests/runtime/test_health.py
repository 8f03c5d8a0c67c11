"""``runtime health``: what it finds of the host, the files and the servers, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from manifests.errors import UsageError
from manifests.manifest import ModelEntry, manifest_digest
from runtime.health import Check, check_health
from runtime.host import available_memory, find_gpus, usable_cores
from runtime.hostfacts import Host
from runtime.layout import RECEIPT_NAME, Prefix
from tests.factories import make_manifest

ROOT = Path(__file__).parents[2]
FILES = {"models/m/config.json": b"{}\n", "models/m/model.safetensors": b"x" * 1000}
MODELS = (ModelEntry(name="m", adapter="hcx", path="models/m", format="safetensors", origin="dir"),)


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """A prefix whose live release has one model."""
    data = make_manifest(FILES, models=MODELS).encode()
    release = tmp_path / "releases" / f"1.0.0-{manifest_digest(data)[:12]}"
    for name, content in FILES.items():
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_bytes(content)
    (release / "manifest.json").write_bytes(data)
    (release / RECEIPT_NAME).write_text("{}")
    (tmp_path / "current").symlink_to(release)
    return Prefix(path=tmp_path)


class Ready(BaseHTTPRequestHandler):
    """A server that answers ``/ready`` with its status."""

    status = 200

    def do_GET(self) -> None:
        assert self.path == "/ready"
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Ready.status = 200
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def announce(prefix: Prefix, **document: object) -> None:
    folder = prefix.var / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server-8000.json").write_text(json.dumps(document))


def found(prefix: Prefix, name: str) -> Check:
    (check,) = [check for check in check_health(prefix) if check.name == name]
    return check


def test_a_prefix_without_a_server(prefix: Prefix) -> None:
    checks = {check.name: check for check in check_health(prefix)}
    assert {"cpu", "memory", "disk", "model files", "server"} <= checks.keys()
    assert checks["model files"].verdict == "ok"
    assert checks["model files"].found.startswith("2 there, 1.0 kB, of 1.0.0-")
    server = checks["server"]
    assert (server.verdict, server.found) == ("warning", "none runs from this prefix")
    assert server.remedy == f"runtime launch --prefix {prefix.path}"
    assert checks["disk"].details["free"] == pytest.approx(shutil.disk_usage(prefix.path).free, rel=0.2)


def test_files_that_are_short_or_gone(prefix: Prefix) -> None:
    (prefix.current / "models/m/model.safetensors").write_bytes(b"x" * 999)
    check = found(prefix, "model files")
    assert (check.verdict, check.exit_code) == ("failed", 5)
    assert check.found == "models/m/model.safetensors: 999 bytes, expected 1000"
    (prefix.current / "models/m/config.json").unlink()
    assert found(prefix, "model files").found == "models/m/config.json: No such file or directory and 1 more"


def test_a_ready_server_and_the_reasons_of_its_settings(prefix: Prefix, url: str) -> None:
    notes = ["device cpu: neither cuda nor mps here", "dtype float32: exact numbers by default"]
    announce(prefix, pid=os.getpid(), url=url, ready=True, models={"m": {"notes": notes, "probes": "2 probes asked"}})
    assert (found(prefix, "server 8000").verdict, found(prefix, "server 8000").found) == (
        "ok",
        f"{url} is ready, process {os.getpid()}",
    )
    assert found(prefix, "server 8000 m").found == f"2 probes asked; {'; '.join(notes)}"


def test_a_server_that_is_not_ready_or_does_not_answer(prefix: Prefix, url: str) -> None:
    announce(prefix, pid=os.getpid(), url=url, ready=False)
    Ready.status = 503
    check = found(prefix, "server 8000")
    assert (check.verdict, check.exit_code, check.found) == ("failed", 9, f"{url} isn't ready: status 503")
    announce(prefix, pid=os.getpid(), url="http://127.0.0.1:9", ready=True)
    assert found(prefix, "server 8000").found.startswith("http://127.0.0.1:9 doesn't answer: ")


def test_a_server_that_was_killed(prefix: Prefix) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    announce(prefix, pid=done.pid, url="http://127.0.0.1:9", ready=True)
    check = found(prefix, "server 8000")
    assert (check.verdict, check.found) == ("failed", f"process {done.pid} has ended without a farewell")
    (prefix.var / "run" / "server-8000.json").write_text("{")
    assert found(prefix, "server 8000").found.endswith("server-8000.json can't be read")


def test_the_command_ends_with_the_first_failure(prefix: Prefix) -> None:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "runtime.cli", "health", "--prefix", str(prefix.path), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    good = run("--json")
    document = json.loads(good.stdout)
    assert (good.returncode, document["healthy"]) == (0, True)
    assert [row["name"] for row in document["checks"]][:3] == ["cpu", "memory", "disk"]
    (prefix.current / "models/m/config.json").unlink()
    bad = run()
    assert bad.returncode == 5
    assert "failed   model files  models/m/config.json: No such file or directory\n" in bad.stdout
    assert "hint: model files: runtime repair --list names all of them\n" in bad.stderr


def test_nothing_installed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is installed here"):
        check_health(Prefix(path=tmp_path / "none"))


def test_memory_is_the_host_s_or_what_the_cgroup_has_left(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n")
    assert available_memory(meminfo, tmp_path) == 8000 * 1024
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    assert available_memory(meminfo, tmp_path) == 1500000
    assert available_memory(tmp_path / "none", tmp_path / "none") is None


def test_threads_follow_the_quota(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert usable_cores(Host(root=tmp_path)) == 1
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert usable_cores(Host(root=tmp_path)) == len(os.sched_getaffinity(0))


def test_no_card_without_nvidia_s_library() -> None:
    assert find_gpus("libnot-there.so.9") == []
