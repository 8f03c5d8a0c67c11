"""Installing a bundle inside of an unpacked base image: no container engine, no network, no rights over this host."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bundler.imaging.unpack import resolve_inside
from bundler.quickstart import ClosedSideError
from bundler.spec import host_target
from manifests.errors import HostError, IntegrityError, UsageError
from manifests.manifest import Target

OTHER_WAY: Final = "build the image with Dockerfile.offline on a host of that kind: docs/containers.md"
_PLACE: Final = "/run/sealift"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_LINES: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What is installed inside of an image.

    ``bundle`` was verified, and its manifest has ``digest``; ``kit`` is a folder with install.sh and allowed_signers,
    ``prefix`` the path in the image, ``search_path`` its PATH, empty for the usual one.
    """

    bundle: Path
    digest: str
    kit: Path
    prefix: str
    search_path: str = ""


class Installer(Protocol):
    """Installs a bundle into an image's files."""

    def __call__(self, root: Path, task: Inside) -> None:
        """Make ``root/PREFIX`` what ``runtime install`` makes of it."""


def check_installable(target: Target) -> None:
    """Require a target that this host's kernel and processor can run.

    Raises:
        HostError: They can't.
    """
    ours = host_target().platform
    if target.platform.partition("-")[0] != ours.partition("-")[0] or "linux" not in target.platform:
        msg = f"the bundle is for {target.platform}, this host is {ours}: it can't be installed here for an image"
        raise HostError(msg, hint=OTHER_WAY)


def require_bubblewrap() -> None:
    """Require the program that makes the namespace.

    Raises:
        HostError: It isn't on this host.
    """
    if shutil.which("bwrap") is None:
        msg = "an image is made in a namespace by bubblewrap (bwrap), which isn't on this host"
        raise HostError(msg, hint="install the package bubblewrap, or use Dockerfile.offline: docs/containers.md")


def install_inside(root: Path, task: Inside) -> None:
    """Run the bundle's install.sh in a namespace whose root is ``root``: no network, no capabilities, nothing of ours.

    The bundle is there read-only; the Python that installs is the base image's, or the one that the bundle carries.

    Raises:
        UsageError: The base image has no shell.
        HostError: There is no bubblewrap here.
        ClosedSideError: The install failed, with its words and its exit code.
    """
    require_bubblewrap()
    _require_shell(root)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108 # inside
    command = _command(root, task)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        words += f"\nhint: {OTHER_WAY}" if done.returncode == HostError.exit_code else ""
        raise ClosedSideError("the install in the base image", done.returncode, words)


def _command(root: Path, task: Inside) -> list[str]:
    medium, below = (task.bundle, "") if task.bundle.is_dir() else (task.bundle.parent, f"/{task.bundle.name}")
    return [
        *("bwrap", "--unshare-all", "--uid", "0", "--gid", "0", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--setenv", "PATH", task.search_path or _PATH),
        *("--bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run"),  # noqa: S108 # its own
        *("--ro-bind", str(task.kit), f"{_PLACE}/kit", "--ro-bind", str(medium.absolute()), f"{_PLACE}/medium"),
        *("--chdir", "/", "--", "/bin/sh", f"{_PLACE}/kit/install.sh", "--expect", task.digest),
        *(f"{_PLACE}/medium{below}", "--prefix", task.prefix, "--trust", f"{_PLACE}/kit/allowed_signers"),
    ]


def _require_shell(root: Path) -> None:
    try:
        found = os.path.lexists(resolve_inside(root, ["bin"]) / "sh")
    except IntegrityError:
        found = False
    if not found:
        msg = "the base image has no /bin/sh, which installs and launches"
        raise UsageError(msg, hint="take one with sh, tar, sha256sum and a Python: docs/containers.md")
