"""The builder's command line as a person uses it: a home, a cache and an index of their own, real subprocesses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.factories import is_root
from tests.factories_closed import HOST_TARGET, cache_folder, fetch_wheels, program

ROOT: Final = Path(__file__).parent.parent
LOCK_TIME: Final = "1767323045"  # 2026-01-02T03:04:05Z


def wheel_links() -> Path:
    """Return a folder with the real wheels of six, click and uv; fetched once per machine, outside of the clone."""
    fetch_wheels()
    return cache_folder() / "wheels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Whoever types ``bundler``.

    ``folder`` is home and working folder; ``links`` are the only places where packages come from; ``umask`` is for
    the process; ``variables`` are added to the environment, or taken out of it where they are empty.
    """

    folder: Path
    links: tuple[Path, ...] = ()
    umask: int = 0o022
    wrap: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """Where the store is."""
        return Path(self.variables.get("XDG_CACHE_HOME") or self.folder / "cache")

    @property
    def environment(self) -> dict[str, str]:
        """All that a process gets; nothing of the tester's but the search path and what measures coverage."""
        values = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "SOURCE_DATE_EPOCH": LOCK_TIME,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": " ".join(map(str, self.links)),
        }
        values |= {key: value for key, value in os.environ.items() if key.startswith("COV")}
        return {key: value for key, value in (values | dict(self.variables)).items() if value}

    def command(self, *words: str | Path) -> list[str]:
        """Return the command line of a ``bundler`` command."""
        return [*self.wrap, sys.executable, "-m", "bundler.cli", *map(str, words)]

    def run(self, *words: str | Path, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            cwd=self.folder,
            umask=self.umask,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def json(self, *words: str | Path) -> Any:  # noqa: ANN401 # the parsed document; each test knows its shape
        """Run a command that has to succeed and return its JSON document."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *words: str | Path) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            self.command(*words),
            env=self.environment,
            cwd=self.folder,
            umask=self.umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def refused(self, *words: str | Path) -> tuple[int, str]:
        """Run a command that has to fail and return its exit code and its messages, without the lines of progress."""
        done = self.run(*words)
        assert done.returncode != 0, done.stdout
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        lines = done.stderr.splitlines(keepends=True)
        return done.returncode, "".join(line for line in lines if not line.startswith("... "))


def without_privileges() -> tuple[str, ...]:
    """Return what to put before a command so that permissions hold for root too."""
    return (program("setpriv"), "--bounding-set=-all", "--inh-caps=-all", "--") if is_root() else ()


def write_spec(path: Path, *requirements: str, more: str = "", name: str = "demo", version: str = "1.0.0") -> Path:
    """Write a spec for this host; ``more`` is TOML that follows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'[bundle]\nname = "{name}"\nversion = "{version}"\n'
        f'[target]\nplatform = "{HOST_TARGET.platform}"\npython = "{HOST_TARGET.python}"\naccelerator = "cpu"\n'
        f"[packages]\nrequirements = {json.dumps(list(requirements))}\n{more}",
        encoding="utf-8",
    )
    return path


def wait_until_gone(group: int, seconds: float = 5) -> None:
    """Require that what a test started with :meth:`Builder.start` has ended with everything below it."""
    deadline = time.monotonic() + seconds
    while left := processes_of(group):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def processes_of(group: int) -> list[int]:
    """Return the living processes of a session that a test started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def interrupt(process: "subprocess.Popen[str]", number: int) -> str:
    """Send a signal as it comes in life, Ctrl-C to the whole group and SIGTERM to the one process; return its words."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, words = process.communicate(timeout=120)
    return words
