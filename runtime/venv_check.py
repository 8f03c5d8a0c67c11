"""What a release's virtual environment must hold, recomputed from the signed wheels, and what it holds.

The expectation comes from the RECORD inside each wheel, whose digest the manifest signs, never from the RECORD that was
installed: a module that was edited together with its installed RECORD line is found.
"""

import base64
import configparser
import csv
import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import IntegrityError
from manifests.manifest import Manifest
from manifests.pieces import run_all, thread_count
from runtime.layout import Release

_VENV_OWN: Final = frozenset(
    {
        "pyvenv.cfg",
        ".gitignore",
        ".lock",
        "CACHEDIR.TAG",
        "lib64",
    }
)
_INSTALLER_OWN: Final = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json"})
_VENV_MODULES: Final = frozenset({"_virtualenv.py", "_virtualenv.pth"})
_BIN_OWN: Final = frozenset({"python", "python3", "activate", "pydoc.bat", "deactivate.bat"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFile:
    """A file of the venv: its path there, and the sha256 (raw bytes) of its content where a wheel says it."""

    path: str
    sha256: bytes | None


def check_venv(release: Release, manifest: Manifest) -> list[str]:
    """Return every difference between the venv and the signed wheels; an empty list is good news.

    Raises:
        IntegrityError: A wheel of the release can't be read.
    """
    site = f"lib/python{manifest.target.python}/site-packages"
    expected: dict[str, ExpectedFile] = {}
    for entry in manifest.of_kind("wheel"):
        for item in expected_files(release.path / entry.path, site):
            expected[item.path] = item
    found = set(_walk(release.venv))
    problems = [f"venv/{path}: missing" for path in sorted(expected.keys() - found)]
    problems += [
        f"venv/{path}: no wheel brought it"
        for path in sorted(found - expected.keys())
        if not _is_generated(path, site, manifest.target.python)
    ]
    return problems + _changed(release.venv, [item for item in expected.values() if item.path in found])


def expected_files(wheel: Path, site: str) -> Iterator[ExpectedFile]:
    """Yield what installing ``wheel`` must put into a venv, by the wheel's own RECORD.

    Args:
        wheel: A wheel whose whole-file digest was checked.
        site: The venv's ``site-packages``, relative to the venv.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            record_name = next(name for name in names if name.endswith(".dist-info/RECORD") and name.count("/") == 1)
            info = record_name.removesuffix("/RECORD")
            digests = dict(_read_record(archive.read(record_name).decode("utf-8")))
            for name in names:
                path = _installed_path(name, info, site)
                scripted = ".data/scripts/" in name and _has_placeholder(archive, name)
                digest = None if name == record_name or scripted else digests.get(name)
                yield ExpectedFile(path=path, sha256=digest)
            if f"{info}/entry_points.txt" in names:
                text = archive.read(f"{info}/entry_points.txt").decode("utf-8")
                yield from (ExpectedFile(path=f"bin/{script}", sha256=None) for script in _scripts(text))
    except (zipfile.BadZipFile, StopIteration, KeyError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{wheel}: not a readable wheel: {error}") from error


def _has_placeholder(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether an installer rewrites the script's first line (binary distribution format, section on scripts)."""
    with archive.open(name) as stream:
        return stream.read(8) == b"#!python"


def _read_record(text: str) -> Iterator[tuple[str, bytes | None]]:
    for row in csv.reader(io.StringIO(text)):
        if len(row) == 3:
            kind, _, value = row[1].partition("=")
            yield row[0], base64.urlsafe_b64decode(f"{value}==") if kind == "sha256" else None


def _installed_path(name: str, info: str, site: str) -> str:
    data = f"{info.removesuffix('.dist-info')}.data/"
    if not name.startswith(data):
        return f"{site}/{name}"
    scheme, _, rest = name.removeprefix(data).partition("/")
    project = info.split("-", 1)[0]
    python = site.split("/")[1]
    folders = {"purelib": site, "platlib": site, "scripts": "bin", "headers": f"include/site/{python}/{project}"}
    return f"{folders[scheme]}/{rest}" if scheme in folders else rest


def _scripts(text: str) -> list[str]:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # the documented way to keep the case
    parser.read_string(text)
    groups = ("console_scripts", "gui_scripts")
    return [name for group in groups if parser.has_section(group) for name in parser[group]]


def _walk(venv: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(venv):
        for name in files:
            yield (Path(folder) / name).relative_to(venv).as_posix()
        for name in folders:
            path = Path(folder) / name
            if path.is_symlink():
                yield path.relative_to(venv).as_posix()


def _is_generated(path: str, site: str, python: str) -> bool:
    """Whether a file is one that uv writes into every venv, rather than out of a wheel."""
    parts = path.split("/")
    if path in _VENV_OWN:
        return True
    if parts[0] == "bin" and len(parts) == 2:
        return parts[1] in _BIN_OWN or parts[1] == f"python{python}" or parts[1].startswith("activate")
    inside = path.removeprefix(f"{site}/")
    if inside in _VENV_MODULES:
        return True
    folder, _, name = inside.partition("/")
    return folder.endswith(".dist-info") and name in _INSTALLER_OWN


def _changed(venv: Path, items: list[ExpectedFile]) -> list[str]:
    problems: list[str] = []

    def check(item: ExpectedFile) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            path = venv / item.path
            if path.is_symlink() or not path.is_file():
                problems.append(f"venv/{item.path}: not a regular file")
            elif item.sha256 is not None and _digest(path, buffer) != item.sha256:
                problems.append(f"venv/{item.path}: content changed")

        return task

    run_all(map(check, items), threads=thread_count(), stop=threading.Event())
    return sorted(problems)


def _digest(path: Path, buffer: memoryview) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.digest()
