"""The rehearsal's part inside the namespace: every step, what the kernel refused meanwhile, as an ordinary user."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundler.rehearsal.closed_side import Stage, StepFailed, Tell, run_step
from bundler.rehearsal.sandbox import empty_environment

NOBODY: Final = 65534
# The interpreter, too, must be one that this user reaches, and be whole.
_REACHES: Final = """
import bz2, ctypes, lzma, sqlite3, ssl, sys
version, home, *files = sys.argv[1:]
assert ".".join(map(str, sys.version_info[:2])) == version
for path in files:
    open(path, "rb").close()
open(home + "/.reached", "wb").close()
"""


def rehearse(stage: Stage, tell: Tell, *, runs_here: bool, closed: bool, unpacked: Path | None = None) -> None:
    """Verify the bundle and, where this host can run it, install it, verify the release, import and ask.

    Where it can't, the models in ``unpacked`` are asked on this host's own wheels.

    Args:
        stage: Where.
        tell: Gets every event; besides those of a step ``user`` (``root`` or ``ordinary``), ``kernel`` (packets that it
            refused for want of a route during a step), ``evidence`` (what the runtime found), and ``host wheels`` (what
            it found on this host's own wheels) or ``unasked`` (why it found nothing there).
        runs_here: Whether this host can run the bundle's target.
        closed: Whether the kernel closes the network, so that its view says something.
        unpacked: The bundle's models, laid out below the prefix as a release; None where nobody asks them.

    Raises:
        StepFailed: A step ended with another status than 0.
    """
    stage = as_ordinary_user(stage)
    tell({"event": "user", "name": "root" if _is_root() and stage.user is None else "ordinary"})
    bundle, prefix, trust = str(stage.bundle), str(stage.prefix), str(stage.trust)
    with _kernel_s_view("verify bundle", tell, closed=closed):
        run_step(stage, "verify bundle", ["verify", bundle, "--trust", trust, *stage.more], tell)
    if not runs_here:
        if unpacked is not None:
            _ask_on_host_wheels(stage, unpacked, tell, closed=closed)
        return
    with _kernel_s_view("install", tell, closed=closed):
        run_step(stage, "install", ["install", bundle, "--prefix", prefix, "--trust", trust, *stage.more], tell)
    with _kernel_s_view("verify release", tell, closed=closed):
        run_step(stage, "verify release", ["verify", "--prefix", prefix, "--trust", trust, "--no-models"], tell)
    found = stage.home / "rehearsal.json"
    with _kernel_s_view("import and ask", tell, closed=closed):
        try:
            run_step(stage, "import and ask", ["rehearse", "--prefix", prefix, "--output", str(found)], tell)
        finally:
            if found.exists():
                tell({"event": "evidence", "document": json.loads(found.read_bytes())})


def _ask_on_host_wheels(stage: Stage, unpacked: Path, tell: Tell, *, closed: bool) -> None:
    """Ask models with the Python that runs this. One that fails there is told: it need not be the bundle's fault."""
    found = stage.home / "host-wheels.json"
    # The ordinary user may not reach this Python; whoever runs this does.
    asking = stage if stage.python == sys.executable else replace(stage, python=sys.executable, user=None)
    words = ["rehearse", "--prefix", str(stage.prefix), "--unpacked", str(unpacked), "--python", sys.executable]
    with _kernel_s_view("ask on host wheels", tell, closed=closed):
        try:
            run_step(asking, "ask on host wheels", [*words, "--output", str(found)], tell)
        except StepFailed as failed:
            if not found.exists():
                lines = failed.words.splitlines() or [f"it ended with status {failed.code}"]
                tell({"event": "unasked", "text": next((x for x in lines if x.startswith("error: ")), lines[-1])})
    if found.exists():
        tell({"event": "host wheels", "document": json.loads(found.read_bytes())})


def as_ordinary_user(stage: Stage) -> Stage:
    """Return the stage as nobody plays it, where this is root and nobody reaches bundle, folder and a Python."""
    if not _is_root():
        return stage
    if not _give(stage.prefix.parent, NOBODY, NOBODY):
        return stage
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = [sys.executable, shutil.which(f"python{version}", path=os.defpath)]
    for python in dict.fromkeys(path for path in found if path):
        candidate = replace(stage, python=python, user=NOBODY)
        if _reaches(candidate, version):
            return candidate
    _give(stage.prefix.parent, os.getuid(), os.getgid())
    return stage


def _give(folder: Path, user: int, group: int) -> bool:
    """Change who owns a folder and all below it; root without capabilities, as in a container, can't."""
    try:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, group, follow_symlinks=False)
    except OSError:
        return False
    return True


def _is_root() -> bool:
    """Whether this is really root: in a user's own namespace an ordinary user is called so, too."""
    if os.geteuid() != 0:
        return False
    try:
        inside, outside, _ = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[:3]
    except (OSError, ValueError):
        return True
    return inside == outside == "0"


def _reaches(stage: Stage, version: str) -> bool:
    paths = [str(stage.home), str(stage.bundle), str(stage.pyz), str(stage.trust)]
    command = [stage.python, "-I", "-S", "-c", _REACHES, version, *paths]
    try:
        done = subprocess.run(
            command,
            env=empty_environment(str(stage.home)),
            cwd=stage.home,
            user=stage.user,
            group=stage.user,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


@contextmanager
def _kernel_s_view(step: str, tell: Tell, *, closed: bool) -> Iterator[None]:
    before = unroutable()
    try:
        yield
    finally:
        after = unroutable()
        if closed and before is not None and after is not None:
            tell({"event": "kernel", "step": step, "count": after - before})


def unroutable() -> int | None:
    """Return how many packets this namespace's kernel refused for want of a route, None where it doesn't tell.

    Native code that opens sockets by itself passes Python's audit hook by, but not this.
    """
    try:
        four = Path("/proc/net/snmp").read_text(encoding="ascii")
        six = Path("/proc/net/snmp6").read_text(encoding="ascii") if Path("/proc/net/snmp6").exists() else ""
    except OSError:
        return None
    lines = re.findall(r"^Ip: (.*)$", four, re.MULTILINE)
    table = dict(zip(lines[0].split(), lines[1].split(), strict=False)) if len(lines) == 2 else {}
    found = re.search(r"^Ip6OutNoRoutes\s+(\d+)", six, re.MULTILINE)
    return int(table["OutNoRoutes"]) + (int(found[1]) if found else 0) if "OutNoRoutes" in table else None
