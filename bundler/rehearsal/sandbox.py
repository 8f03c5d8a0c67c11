"""Running a command where no network is, on the builder's side: a fresh namespace, or what the host has instead."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

_PROBE: Final = ("-I", "-S", "-c", "import socket; assert [name for _, name in socket.if_nameindex()] == ['lo']")

_BWRAP: Final = (
    *("bwrap", "--dev-bind", "/", "/", "--unshare-net", "--unshare-pid"),
    *("--proc", "/proc", "--die-with-parent", "--"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How commands are kept from the network. ``prefix`` is put before a command; ``name`` is for people."""

    name: str
    prefix: tuple[str, ...]

    @property
    def is_namespace(self) -> bool:
        """Whether the kernel closes the network; False means that only the socket guard does."""
        return bool(self.prefix)


@cache
def find_isolation() -> Isolation:
    """Return the first way that works on this host, tried for real: unshare, unshare as a user, bubblewrap, none."""
    ways = (
        Isolation(name="network namespace (unshare)", prefix=("unshare", "-n", "--")),
        Isolation(name="network namespace (unshare as a user)", prefix=("unshare", "-rn", "--")),
        Isolation(name="network namespace (bubblewrap)", prefix=_BWRAP),
    )
    for way in ways:
        if shutil.which(way.prefix[0]) and _works(way.prefix):
            return way
    return Isolation(name="socket guard only (this host has neither unshare nor bubblewrap)", prefix=())


def _works(prefix: Sequence[str]) -> bool:
    try:
        done = subprocess.run([*prefix, sys.executable, *_PROBE], capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def empty_environment(home: str) -> dict[str, str]:
    """Return the environment of a closed host: a search path, a locale, an empty home, and nothing inherited."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "LANG": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull}
