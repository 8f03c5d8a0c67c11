"""The mirror against nginx with what it exported: one big file, and many small ones on one connection."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from benchmarks.measure import Bench, BenchmarkError, Command, Side
from benchmarks.sections import Section, Sections, ratio_row, remove_folder
from benchmarks.table import Row

_SMALL_REQUESTS: Final = 2000
_GOALS: Final[Mapping[str, float]] = {"mirror-big": 1.3, "mirror-small": 4}
_CONF: Final = """{user}daemon off;
pid {folder}/nginx.pid;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access.log;
  keepalive_requests 100000;
  client_body_temp_path {folder}/body;
  include {export}/nginx.conf;
}}
"""


def mirror(sections: Sections) -> Iterator[Row]:
    """Both serve one release over loopback, with an access log, to the same client (curl)."""
    lacking = [name for name in ("nginx", "curl") if shutil.which(name) is None]
    if lacking:
        yield from (_skipped(name, goal, f"not on this host: {' and '.join(lacking)}") for name, goal in _GOALS.items())
        return
    bench, work = sections.bench, sections.work
    prefix, exported, folder = (work.folder / name for name in ("prefix-mirror", "export-mirror", "nginx"))
    options = ("--prefix", prefix, "--trust", work.trust, "--no-smoke")
    bench.run((*work.runtime, "install", work.bundle, *options))
    port = _free_port()
    bench.run((*work.runtime, "mirror", "--prefix", prefix, "--export", exported, "--port", str(port)))
    folder.mkdir()
    with ExitStack() as stack:
        command: Command = (*work.runtime, "mirror", "--prefix", prefix, "--port", "0", "--json")
        ours = stack.enter_context(_mirroring(bench, command, folder / "mirror.log"))
        stack.enter_context(_serving(bench, folder, exported))
        peer = f"http://127.0.0.1:{port}"
        _wait(peer)
        yield from _rows(sections, {"mirror": ours, "mirror: nginx": peer}, exported / "www")
    for used in (prefix, exported, folder):
        remove_folder(used)


def _rows(sections: Sections, addresses: Mapping[str, str], root: Path) -> Iterator[Row]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name not in {"index.html", "index.json"}]
    by_size = sorted(files, key=lambda path: path.stat().st_size)
    big, small = (quote(path.relative_to(root).as_posix()) for path in (by_size[-1], by_size[0]))
    work = {"mirror-big": (big, 1), "mirror-small": (small, _SMALL_REQUESTS)}
    for name, (path, count) in work.items():
        sides: list[Side] = []
        for label, address in addresses.items():
            listed = sections.work.folder / f"{name}-{len(sides)}.curl"
            listed.write_text(f'url = "{address}/{path}"\noutput = "/dev/null"\n' * count, encoding="utf-8")
            sides.append(Side(label=label, commands=(("curl", "--silent", "--fail", "--config", listed),)))
        found = sections.compare(name, sides)
        yield ratio_row(name, found, ours=sides[0], peer=sides[1], goal=_GOALS[name], sense="at most")


@contextmanager
def _mirroring(bench: Bench, command: Command, log: Path) -> Iterator[str]:
    """Yield the address of a mirror that listens."""
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command, env=bench.environment, cwd=bench.folder, stdout=subprocess.PIPE, stderr=stream, text=True
        ) as process,
    ):
        try:
            lines: list[str] = []
            for line in process.stdout or ():
                lines.append(line)
                if line == "}\n":
                    break
            if not lines:
                raise BenchmarkError(f"the mirror did not start: {log.read_text(errors='replace')[-2000:]}")
            yield str(json.loads("".join(lines))["address"])
        finally:
            process.terminate()


@contextmanager
def _serving(bench: Bench, folder: Path, exported: Path) -> Iterator[None]:
    """Have nginx serve an export; whoever asks too early has to ask again."""
    user = "user root;\n" if os.geteuid() == 0 else ""  # the work folder is its owner's alone
    conf = folder / "nginx.conf"
    conf.write_text(_CONF.format(user=user, folder=folder, export=exported), encoding="utf-8")
    command = ("nginx", "-p", folder, "-e", folder / "errors", "-c", conf)
    with subprocess.Popen(command, env=bench.environment, cwd=bench.folder) as process:
        try:
            yield
        finally:
            process.terminate()


def _wait(address: str) -> None:
    host, _, port = address.removeprefix("http://").rpartition(":")
    for _ in range(200):
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise BenchmarkError(f"nginx does not listen on {address}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _skipped(name: str, goal: float, note: str) -> Row:
    return Row(
        name=name, ours="-", against="nginx", peer="-", value=None, unit="x", sense="at most", goal=goal, note=note
    )


MIRRORING: Final[Mapping[str, Section]] = {"mirror": mirror}
"""Name -> section."""
