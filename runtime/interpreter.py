"""Finding the Python that a release's virtual environment is made from, and asking it what it can run."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import HostError

_QUESTION: Final = """
import json, platform, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "implementation": platform.python_implementation(),
    "machine": platform.machine(),
    "system": platform.system(),
    "libc": list(platform.libc_ver()),
    "release": platform.release() if platform.system() != "Darwin" else platform.mac_ver()[0],
    "executable": getattr(sys, "_base_executable", sys.executable) or sys.executable,
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python on this host, as it describes itself. ``libc`` is name and version, such as ``("glibc", "2.36")``."""

    executable: Path
    version: str
    implementation: str
    system: str
    machine: str
    libc: tuple[str, str]
    release: str


def find_interpreter(version: str, explicit: Path | None = None) -> Interpreter:
    """Return a CPython of ``version`` (``3.N``): the given one, the running one, or one on PATH.

    Raises:
        HostError: There is none; the message says what was looked at.
    """
    seen: list[str] = []
    for candidate in _candidates(version, explicit):
        found = describe(candidate)
        if found is not None and found.version == version and found.implementation == "CPython":
            return found
        seen.append(f"{candidate} is {found.implementation} {found.version}" if found else f"{candidate} does not run")
    looked = "; ".join(seen) or f"no python{version} on PATH"
    raise HostError(
        f"the bundle is for Python {version}, this host has none: {looked}",
        hint=f"install python{version} (with its venv parts), or name it: --python /path/to/python{version}",
    )


def this_interpreter() -> Interpreter:
    """Return the Python that runs this.

    Raises:
        HostError: It can't be asked.
    """
    found = describe(Path(sys.executable)) if sys.executable else None
    if found is None:
        raise HostError(f"the Python that runs this, {sys.executable or 'of no known path'}, does not start again")
    return found


def describe(executable: Path) -> Interpreter | None:
    """Ask an interpreter about itself; None where it can't answer."""
    try:
        done = subprocess.run(
            [str(executable), "-I", "-S", "-B", "-c", _QUESTION],
            capture_output=True,
            check=True,
            timeout=60,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(
        executable=Path(answer["executable"]),
        version=answer["version"],
        implementation=answer["implementation"],
        system=answer["system"],
        machine=answer["machine"],
        libc=(answer["libc"][0], answer["libc"][1]),
        release=answer["release"],
    )


def _candidates(version: str, explicit: Path | None) -> list[Path]:
    if explicit is not None:
        return [explicit]
    found = [Path(sys.executable)] if sys.executable else []
    found += [Path(path) for name in (f"python{version}", "python3") if (path := shutil.which(name))]
    return list(dict.fromkeys(found))
