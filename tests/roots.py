"""Bare Debian roots to install into: made once by mmdebstrap, kept outside of the clone, an overlay for each test."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.files import locked
from tests.factories_closed import cache_folder, program

SUITE: Final = "bookworm"
PYTHON: Final = "3.11"  # that suite's
_TOOLS: Final = ("mmdebstrap", "unshare", "mount", "chroot")


def bare_root(package: str = "python3") -> Path:
    """Return a folder with a minimal system and one package more, none where it is empty; never write to it.

    The mirror is the one of this host's own apt configuration.
    """
    for tool in _TOOLS:
        assert shutil.which(tool), f"the slow tests need {tool}: apt-get install mmdebstrap"
    folder = cache_folder() / "roots"
    folder.mkdir(exist_ok=True)
    root = folder / f"{SUITE}-{package or 'bare'}"
    with locked(folder / "lock"):
        if not root.exists():
            partial = root.with_name(f"{root.name}.partial")
            if partial.exists():
                shutil.rmtree(partial)
            more = [f"--include={package}"] if package else []
            words = ["mmdebstrap", "--quiet", "--variant=minbase", *more, SUITE, str(partial)]
            done = subprocess.run([*words, *_mirror()], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            partial.rename(root)
    return root


def _mirror() -> list[str]:
    words = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = (line.split() for line in done.stdout.splitlines())
    return [uri for release, uri in lines if release == SUITE][:1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A system of a test's own, below ``path``."""

    path: Path

    def run(self, *words: str, user: int | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, without network, without anything of the caller's environment."""
        spaces = ["unshare", "--net", "--mount", "--pid", "--fork", f"--mount-proc={self.path}/proc"]
        become = [f"--userspec={user}:{user}"] if user is not None else []
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
        return subprocess.run(
            [*spaces, "chroot", *become, str(self.path), *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@contextlib.contextmanager
def fresh_root(folder: Path, package: str = "python3") -> Iterator[Root]:
    """Yield a system that begins as :func:`bare_root`; what is written goes to ``folder``."""
    upper, work, merged = (folder / name for name in ("upper", "work", "merged"))
    for path in (upper, work, merged):
        path.mkdir(parents=True)
    options = f"lowerdir={bare_root(package)},upperdir={upper},workdir={work}"
    subprocess.run([program("mount"), "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        yield Root(path=merged)
    finally:
        subprocess.run([program("umount"), str(merged)], check=True)
