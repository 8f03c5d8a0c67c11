"""Images and containers of a test's own: real buildah and podman with runc, in a storage that is gone afterwards."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.roots import bare_root

TOOLS: Final = ("buildah", "podman", "runc")
BASE: Final = "localhost/site/python"
_RUNTIME: Final = "/usr/sbin/runc"  # crun refuses hybrid cgroups


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An image storage below ``folder``; ``state``, of at most 50 characters, is where podman keeps what runs."""

    folder: Path
    state: Path

    def buildah(self, *words: str | Path) -> str:
        """Run buildah; return what it printed."""
        return self._run("buildah", (), words, check=True, errors=False)

    def podman(self, *words: str | Path, check: bool = True, errors: bool = False) -> str:
        """Run podman; return what it printed, with what it wrote on stderr if ``errors``."""
        options = ("--cgroup-manager", "cgroupfs", "--runtime", _RUNTIME)
        return self._run("podman", options, words, check=check, errors=errors)

    def logs(self, name: str) -> str:
        """Return everything that a container said."""
        return self.podman("logs", name, errors=True)

    def _run(
        self, tool: str, options: tuple[str, ...], words: tuple[str | Path, ...], *, check: bool, errors: bool
    ) -> str:
        storage = ("--root", self.folder / "root", "--runroot", self.state, "--storage-driver", "overlay")
        command = [str(shutil.which(tool)), *map(str, storage), *options, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{tool} {' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if errors else "")

    def add_base(self) -> None:
        """Make the site's own base image, a bare Debian with its Python: :data:`BASE`."""
        container = self.buildah("from", "scratch").strip()
        self.buildah("copy", "-q", container, bare_root(), "/")
        self.buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.buildah("commit", "-q", container, BASE)
        self.buildah("rm", container)

    def build(self, context: Path, dockerfile: Path, tag: str, **arguments: str) -> None:
        """Build an image with ``RUN`` in containers that have no network."""
        given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        words = ("bud", "--isolation", "oci", "--runtime", _RUNTIME, "--network", "none", "--pull-never", "--layers")
        self.buildah(*words, "--format", "docker", *given, "-f", dockerfile, "-t", tag, context)

    @contextlib.contextmanager
    def running(self, tag: str, *options: str) -> Iterator[str]:
        """Yield the name of a container without network, capabilities and a writable root file system."""
        limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")  # ours may not raise any
        closed = ("--network", "none", "--read-only", "--cap-drop", "all")
        self.podman("run", "-d", "--name", "served", *limits, *closed, *options, tag)
        try:
            yield "served"
        finally:
            self.podman("rm", "-f", "served", check=False)


@contextlib.contextmanager
def container_engine(folder: Path) -> Iterator[Engine]:
    """Yield an engine with an empty storage below ``folder``."""
    for tool in TOOLS:
        assert shutil.which(tool), f"the container tests need {tool}: apt-get install {tool}"
    with tempfile.TemporaryDirectory(prefix="sealift-", dir="/tmp") as state:  # short
        engine = Engine(folder=folder, state=Path(state))
        try:
            yield engine
        finally:
            engine.podman("rm", "-af", check=False)
            engine.buildah("rm", "-a")
            engine.buildah("rmi", "-af")
