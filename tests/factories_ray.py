"""Two hosts that are network namespaces with a cable between them and no way out; a prefix whose release has Ray."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from tests.factories_bulk import PROJECT, make_prefix
from tests.factories_closed import program
from tests.factories_langchain import peer_venv

RAY: Final = ("ray[serve]==2.60.0",)
SECONDS: Final = 240.0
ADDRESSES: Final = {"a": "10.231.9.1", "b": "10.231.9.2"}


@dataclass(slots=True, kw_only=True)
class RayLab:
    """The prefix, the namespaces by host, and what was started there."""

    prefix: Path
    spaces: Mapping[str, str]
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    logs: list[IO[bytes]] = field(default_factory=list)

    def start(self, host: str, name: str, *words: str) -> "subprocess.Popen[bytes]":
        """Run ``runtime WORDS --prefix ...`` on a host, with an environment of four names; output goes to a file."""
        log = (self.prefix / f"{name}.log").open("wb")
        self.logs.append(log)
        own = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_TOKEN": "secret"}
        python = str(self.prefix / "current" / "venv" / "bin" / "python")
        command = [program("nsenter"), f"--net=/run/netns/{self.spaces[host]}", python, "-m", "runtime.cli", *words]
        process = subprocess.Popen(
            [*command, "--prefix", str(self.prefix)], cwd=PROJECT, env=own, stdout=log, stderr=subprocess.STDOUT
        )
        self.started.append(process)
        return process

    def log(self, name: str) -> str:
        """Return what a command has written so far."""
        return (self.prefix / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait(self, name: str, text: str, process: "subprocess.Popen[bytes]") -> None:
        """Wait until a command has written ``text``."""
        self.until(lambda: text in self.log(name), name, process)

    def until(self, true: Callable[[], bool], name: str, process: "subprocess.Popen[bytes]") -> None:
        """Wait until something is so; fail with the command's log if it ends before."""
        end = time.monotonic() + SECONDS
        while not true():
            assert process.poll() is None, self.log(name)[-4000:]
            assert time.monotonic() < end, self.log(name)[-4000:]
            time.sleep(0.1)

    def pids(self, host: str) -> list[int]:
        """Return every process of a host; all of them are this lab's."""
        command = [program("ip"), "netns", "pids", self.spaces[host]]
        return [int(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.split()]

    def named(self, host: str, name: str) -> list[int]:
        """Return those whose title begins with a name."""
        found = []
        for pid in self.pids(host):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name.encode()):
                    found.append(pid)
        return found

    def lose(self, host: str) -> None:
        """Kill every process of a host at once, as a machine that loses its power."""
        while pids := self.pids(host):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.started:
                process.poll()
            time.sleep(0.05)

    def start_node(self, host: str, name: str) -> None:
        """Start a node of Ray by ``runtime launch --ray-node``: host a is the head."""
        where = ["--ray-address", f"{ADDRESSES['a']}:6379"] if host != "a" else []
        words = ["launch", "--engine", "ray", "--ray-node", "--host", ADDRESSES[host], "--port", "6379", *where]
        self.wait(name, "Ray runtime started", self.start(host, name, *words))


def _ip(*words: str) -> None:
    subprocess.run([program("ip"), *words], check=True, capture_output=True)


@contextlib.contextmanager
def ray_lab() -> Iterator[RayLab]:
    """Yield a lab; everything of it is gone afterwards. Its path is short, as Ray's sockets want it."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    spaces = {host: f"sealift-ray-{host}-{os.getpid()}" for host in ADDRESSES}
    lab = RayLab(prefix=make_prefix(folder / "p"), spaces=spaces)
    venv = lab.prefix / "current" / "venv"
    venv.unlink()
    venv.symlink_to(peer_venv("ray", RAY).python.parents[1])
    try:
        for space in spaces.values():
            _ip("netns", "add", space)
        _ip("link", "add", "ray0", "netns", spaces["a"], "type", "veth", "peer", "name", "ray0", "netns", spaces["b"])
        for host, space in spaces.items():
            _ip("-n", space, "addr", "add", f"{ADDRESSES[host]}/24", "dev", "ray0")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "ray0", "up")
        yield lab
    finally:
        for host in ADDRESSES:
            with contextlib.suppress(subprocess.CalledProcessError):
                lab.lose(host)
                _ip("netns", "del", spaces[host])
        for process in lab.started:
            process.wait()
        for log in lab.logs:
            log.close()
        shutil.rmtree(folder, ignore_errors=True)
