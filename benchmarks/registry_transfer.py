"""Into a registry and out of it, against skopeo and Python's oras: time, and the peak of memory."""

import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.measure import Bench, BenchmarkError, Command, Samples, Side, memory_of
from benchmarks.sections import Section, Sections, ratio_row, remove_folder
from benchmarks.table import Row, megabytes

_ORAS: Final = "oras==0.2.43"
_MEMORY_GOAL: Final = 150.0
_CONFIG: Final = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "{host}"}}
"""
_PUSH: Final = """
import os, sys
from pathlib import Path
import oras.client
host, folder = sys.argv[1:]
os.chdir(folder)
files = [str(path) for path in sorted(Path().rglob("*")) if path.is_file()]
client = oras.client.OrasClient(insecure=True, hostname=host)
client.push(target=f"{host}/bench/oras:1", files=files, disable_path_validation=True)
"""
_PULL: Final = """
import sys
import oras.client
host, folder = sys.argv[1:]
oras.client.OrasClient(insecure=True, hostname=host).pull(target=f"{host}/bench/ours:1", outdir=folder)
"""


def registry(sections: Sections) -> Iterator[Row]:
    """The reference bundle, over loopback, to and from Debian's docker-registry, which starts empty for each push."""
    lacking = [name for name in ("docker-registry", "skopeo") if shutil.which(name) is None]
    if lacking:
        yield _skipped(f"not on this host: {' and '.join(lacking)}")
        return
    bench, work = sections.bench, sections.work
    folder = work.folder / "registry"
    plain, layout, pulled = folder / "plain", folder / "layout", folder / "pulled"
    plain.mkdir(parents=True)
    with tarfile.open(work.bundle) as archive:
        archive.extractall(plain, filter="data")
    python = _oras_python(bench, folder)
    with _registry(folder) as host:
        place, there = f"oci://{host}/bench/ours:1", f"docker://{host}/bench"
        push: Command = (*work.bundler, "push", work.bundle, place, "--plain-http")
        bench.run(push)
        bench.run(("skopeo", "copy", "--src-tls-verify=false", f"{there}/ours:1", f"oci:{layout}:1"))
        to = ("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"{there}/skopeo:1")
        empty = partial(remove_folder, folder / "data")
        pushes = [
            Side(label="push", commands=(push,), prepare=empty),
            Side(label="push: skopeo copy", commands=(to,), prepare=empty),
            Side(label="push: oras (Python)", commands=((python, "-c", _PUSH, host, plain),), prepare=empty),
        ]
        yield from _rows("push", sections.compare("push", pushes), pushes)
        bench.run(push)
        gone = partial(remove_folder, pulled)
        pull: Command = (*work.bundler, "pull", place, "--plain-http", "--output", pulled)
        away = ("skopeo", "copy", "--src-tls-verify=false", f"{there}/ours:1", f"dir:{pulled}")
        pulls = [
            Side(label="pull", commands=(pull,), prepare=gone),
            Side(label="pull: skopeo copy", commands=(away,), prepare=gone),
            Side(label="pull: oras (Python)", commands=((python, "-c", _PULL, host, pulled),), prepare=gone),
        ]
        yield from _rows("pull", sections.compare("pull", pulls), pulls)
    remove_folder(folder)


def _rows(name: str, found: Samples, sides: list[Side]) -> Iterator[Row]:
    ours, skopeo, oras = sides
    yield ratio_row(f"{name}-skopeo", found, ours=ours, peer=skopeo, goal=1.2, sense="at most")
    yield ratio_row(f"{name}-oras", found, ours=ours, peer=oras, goal=1.2, sense="at most")
    peak = memory_of(found[ours.label])
    yield Row(
        name=f"memory-{name}",
        ours=megabytes(peak),
        against="oras (Python)",
        peer=megabytes(memory_of(found[oras.label])),
        value=peak / 1e6,
        unit="MB",
        sense="at most",
        goal=_MEMORY_GOAL,
    )


def _oras_python(bench: Bench, folder: Path) -> Path:
    bench.report(f"a venv with {_ORAS}")
    bench.run((sys.executable, "-m", "venv", folder / "oras"))
    python = folder / "oras" / "bin" / "python"
    bench.run((python, "-m", "pip", "install", "--quiet", _ORAS))
    return python


@contextmanager
def _registry(folder: Path) -> Iterator[str]:
    """Yield host and port of a registry that listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    host, config = f"127.0.0.1:{port}", folder / "registry.yml"
    config.write_text(_CONFIG.format(data=folder / "data", host=host), encoding="utf-8")
    log, program = folder / "log.txt", shutil.which("docker-registry") or "docker-registry"
    with log.open("wb") as stream, subprocess.Popen((program, "serve", config), stderr=stream) as process:
        try:
            _wait(port)
            yield host
        finally:
            process.terminate()


def _wait(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise BenchmarkError("docker-registry does not listen")


def _skipped(note: str) -> Row:
    return Row(
        name="push", ours="-", against="skopeo", peer="-", value=None, unit="x", sense="at most", goal=1.2, note=note
    )


TRANSFER: Final[Mapping[str, Section]] = {"registry": registry}
"""Name -> section."""
