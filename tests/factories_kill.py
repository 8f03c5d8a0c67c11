"""An installer, and a repair, that stop where a test wants them to, and what must be equal after it ran again."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.factories_closed import ClosedBundle, Host, program

_HEAD: Final = """
import contextlib, errno, json, os, signal, sys
from datetime import UTC, datetime
from pathlib import Path

pyz, tar, trust, prefix, step, count, fault = sys.argv[1:]
sys.path.insert(0, pyz)

from manifests.bundle import verify_trust
from manifests.errors import SealiftError
from manifests.files import disk_error
from manifests.medium import open_medium
from manifests.pieces import Silent
from manifests.trust import parse_allowed_signers
from runtime.install import InstallOptions, install
from runtime.layout import Prefix
import manifests.sources

os.sync = lambda: None  # a killed process loses nothing that a sync would have saved
left, read = int(count), {}


def fail():
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)))


def checkpoint(name):
    global left
    left -= name == step
    if name == step and left == 0:
        fail()


"""
_DRIVER: Final = '''
class Counting:
    """The medium, and how many bytes of each file were read from it."""

    def __init__(self, medium):
        self.medium, self.label = medium, medium.label
        self.manifest_bytes, self.signature_slot = medium.manifest_bytes, medium.signature_slot
        self.check_layout, self.close = medium.check_layout, medium.close
        self.delta, self.ordered, self.carries = medium.delta, medium.ordered, medium.carries
        self.check_end, self.parts, self.volumes_of = medium.check_end, medium.parts, medium.volumes_of

    @contextlib.contextmanager
    def reader(self, entry):
        with self.medium.reader(entry) as inner:

            def count_bytes(view, offset):
                read[entry.path] = read.get(entry.path, 0) + len(view)
                return inner(view, offset)

            yield count_bytes


if step == "medium":  # the seam to the operating system, where the medium is read
    original = manifests.sources.read_into

    def failing(descriptor, view, offset):
        checkpoint("medium")
        return original(descriptor, view, offset)

    manifests.sources.read_into = failing

text = Path(trust).read_text()
try:
    with open_medium(Path(tar)) as medium:
        root = parse_allowed_signers(text, where=trust)
        bundle = verify_trust(Counting(medium), root, now=datetime.now(UTC))
        options = InstallOptions(trust_text=text, python=Path(sys.executable), checkpoint=checkpoint)
        done = install(bundle, Prefix(path=Path(prefix)), options, Silent(), lambda step: None)
    print(json.dumps({"release": done.release.name, "changed": done.changed, "read": read}))
except SealiftError as error:
    print(json.dumps({"read": read}))
    sys.stderr.write(error.render() + "\\n")
    sys.exit(error.exit_code)
except OSError as error:
    sys.stderr.write(disk_error(error, "go on").render() + "\\n")
    sys.exit(7)
'''


_REPAIR: Final = """
from runtime.rebuild import RebuildOptions
from runtime.repair import repair_prefix

root = parse_allowed_signers(Path(trust).read_text(), where=trust)
verify = lambda medium: verify_trust(medium, root, now=datetime.now(UTC))
try:
    options = RebuildOptions(checkpoint=checkpoint)
    done = repair_prefix(Prefix(path=Path(prefix)), verify, None, Silent(), rebuild=options)
    print(json.dumps({"rebuilt": done.rebuilt}))
except SealiftError as error:
    sys.stderr.write(error.render() + "\\n")
    sys.exit(error.exit_code)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How an install ended: exit status, its words, and how many bytes of each file it read from the medium."""

    status: int
    words: str
    read: dict[str, int] = field(default_factory=dict)
    release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installer:
    """Installs on ``host`` by a small program that calls the library, so that a test can stop it."""

    host: Host

    def command(
        self, bundle: ClosedBundle, prefix: Path, step: str = "", count: int = 1, fault: str = "kill"
    ) -> list[str | Path]:
        """Return the words of the program; ``fault`` happens after the ``count``-th ``step``."""
        return self._command(_DRIVER, bundle, prefix, step, str(count), fault)

    def _command(self, program: str, bundle: ClosedBundle, prefix: Path, *words: str) -> list[str | Path]:
        driver = self.host.home / "driver.py"
        driver.write_text(_HEAD + program)
        step, *rest = words
        given: tuple[str | Path, ...] = (bundle.pyz, bundle.tar, bundle.trust, prefix, step or "-", *rest)
        return [self.host.python, "-I", "-S", driver, *given]

    def repair_command(
        self, bundle: ClosedBundle, prefix: Path, step: str = "", fault: str = "kill"
    ) -> list[str | Path]:
        """Return the words of a program that repairs; ``fault`` happens after the first ``step``."""
        return self._command(_REPAIR, bundle, prefix, step, "1", fault)

    def run(self, bundle: ClosedBundle, prefix: Path, step: str = "", count: int = 1, fault: str = "kill") -> Run:
        """Run it to its end or to where it is stopped."""
        done = self.host.run(*self.command(bundle, prefix, step, count, fault))
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        read, release = answer.get("read", {}), answer.get("release", "")
        return Run(status=done.returncode, words=done.stderr, read=read, release=release)

    def kill_after(self, bundle: ClosedBundle, prefix: Path, seconds: float) -> int:
        """Start it, kill it and all its children after ``seconds``, return its status: 0 if it was faster."""
        process = self.host.start(*self.command(bundle, prefix))
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
        return process.returncode


def clone(prefix: Path, target: Path) -> Path:
    """Copy a prefix, hard links and times kept."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([program("cp"), "-a", str(prefix), str(target)], check=True)
    return target


def essence(prefix: Path) -> dict[str, tuple[str, str]]:
    """Return what an install must bring about again: path -> mode, and digest or link.

    Left out: caches, the log and the audit log; in the receipt the time, inodes and times of files; uv's note on when
    it unpacked a wheel, with its line in RECORD. The prefix's own path counts as the same everywhere.
    """
    found = {}
    for path in prefix.rglob("*"):
        name = path.relative_to(prefix).as_posix()
        if name.startswith(("var/cache/", "var/logs/", "var/audit.")) or path.name == "uv_cache.json":
            continue
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            content = _comparable(path).replace(str(prefix).encode(), b"PREFIX")
            found[name] = (f"{path.stat().st_mode:o}", hashlib.sha256(content).hexdigest())
    return found


def _comparable(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "receipt.json":
        receipt = json.loads(data)
        receipt |= {"installed": "", "stats": sorted(receipt["stats"])}
        return json.dumps(receipt).encode()
    if path.name == "RECORD":
        return b"\n".join(line for line in data.split(b"\n") if b"uv_cache.json" not in line)
    return data


def stored_paths(bundle: ClosedBundle, prefix: Path) -> set[str]:
    """Return the paths of the bundle whose content lies whole in the store."""
    root = prefix / "store" / "sha256"
    return {e.path for e in bundle.manifest.files if (root / e.store_key[:2] / e.store_key).exists()}
