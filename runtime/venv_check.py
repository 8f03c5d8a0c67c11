"""What a release's virtual environment must hold, recomputed from the signed wheels, and what it holds.

The expectation comes from the RECORD inside each wheel, whose digest the manifest signs, never from the RECORD that was
installed: a module that was edited together with its installed RECORD line is found.
"""

import base64
import configparser
import csv
import errno
import hashlib
import io
import os
import re
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import IntegrityError
from manifests.files import open_no_link, write_atomic
from manifests.manifest import Manifest
from manifests.pieces import Progress, Silent, Stopped, run_all, thread_count
from runtime.layout import Release, walk_files

_INSTALLER_OWN: Final = ("INSTALLER", "REQUESTED", "RECORD", "uv_cache.json")
_CONFIG_KEYS: Final = frozenset(
    {"home", "implementation", "uv", "version_info", "include-system-site-packages", "relocatable"}
)
_CONFIG: Final = "pyvenv.cfg"
_BATCH: Final = 64
_MALFORMED: Final = (
    *(zipfile.BadZipFile, StopIteration, KeyError, ValueError, csv.Error, configparser.Error),
    *(NotImplementedError, RuntimeError, EOFError, zlib.error),
)
"""What reading a wheel raises that is damaged, encrypted, or contradicts itself."""
_NEVER: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWOTH
_ENTRY_POINT: Final = re.compile(r"([\w.-]+)\s*:\s*([\w.-]+)\s*(?:\[[^]]*\]\s*)?")
_SHEBANG: Final = """#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/'python' "$0" "$@"
' '''
"""
_SCRIPT: Final = """# -*- coding: utf-8 -*-
import sys
from {module} import {name}
if __name__ == "__main__":
    if sys.argv[0].endswith("-script.pyw"):
        sys.argv[0] = sys.argv[0][:-11]
    elif sys.argv[0].endswith(".exe"):
        sys.argv[0] = sys.argv[0][:-4]
    sys.exit({function}())
"""
"""What uv writes for an entry point with ``--relocatable``; :func:`write_scripts` makes it so whatever uv wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFile:
    """A file of the venv: its path there, and the sha256 (raw bytes) of its content where a wheel says it."""

    path: str
    sha256: bytes | None


def check_venv(
    release: Release,
    manifest: Manifest,
    progress: Progress | None = None,
    *,
    python: str | None = None,
    stop: threading.Event | None = None,
) -> list[str]:
    """Return every difference between the venv and the signed wheels; an empty list is good news.

    Args:
        release: Whose venv.
        manifest: Its manifest, whose wheels were checked.
        progress: Told of every byte that is read.
        python: The interpreter that the environment is made from; the one in the receipt by default.
        stop: Ends the work when somebody sets it.

    Raises:
        IntegrityError: A wheel of the release can't be read.
        Stopped: ``stop`` was set.
    """
    if release.venv.is_symlink():
        return ["venv: a link, expected a folder"]
    python = release.receipt().python if python is None else python
    site = f"lib/python{manifest.target.python}/site-packages"
    expected: dict[str, ExpectedFile] = {}
    for entry in manifest.of_kind("wheel"):
        for item in expected_files(release.path / entry.path, site):
            expected[item.path] = item
    found = set(walk_files(release.venv))
    links = _expected_links(python, manifest)
    generated = _generated(expected, site) | links.keys() | {_CONFIG}
    missing = (expected.keys() | links.keys() | {_CONFIG}) - found
    problems = [f"venv/{path}: missing" for path in sorted(missing)]
    problems += [f"venv/{path}: no wheel brought it" for path in sorted(found - expected.keys() - generated)]
    problems += _link_problems(release, links, found)
    problems += _config_problems(release, python) if _CONFIG in found else []
    problems += _mode_problems(release.venv, found & expected.keys())
    present = [item for item in expected.values() if item.path in found]
    return problems + _changed(release.venv, present, progress or Silent(), stop or threading.Event())


def write_scripts(release: Release, manifest: Manifest) -> None:
    """Write the programs below ``bin/`` that installers generate, so that they are what :func:`check_venv` expects.

    Raises:
        IntegrityError: A wheel can't be read, or names a program that would lie elsewhere.
    """
    for entry in manifest.of_kind("wheel"):
        wheel = release.path / entry.path
        try:
            with zipfile.ZipFile(wheel) as archive:
                scripts = _generated_scripts(archive)
        except _MALFORMED as error:
            raise IntegrityError(f"{wheel}: not a readable wheel: {error}") from error
        for path, content in scripts.items():
            write_atomic(release.venv / path, content, mode=0o755, durable=False)


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
                digest = None if name == record_name else digests.get(name)
                yield ExpectedFile(path=_installed_path(name, info, site), sha256=digest)
            for path, content in _generated_scripts(archive).items():
                yield ExpectedFile(path=path, sha256=hashlib.sha256(content).digest())
    except _MALFORMED as error:
        raise IntegrityError(f"{wheel}: not a readable wheel: {error}") from error


def _generated_scripts(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Return what an installer writes into ``bin/`` rather than copies: path in the venv -> content.

    Entry points (packaging's entry points specification), and scripts whose first line is the placeholder ``#!python``
    (binary distribution format, section on scripts).
    """
    scripts: dict[str, bytes] = {}
    for name in archive.namelist():
        folder, _, script = name.partition(".data/scripts/")
        if script and "/" not in folder + script:
            with archive.open(name) as stream:
                if stream.read(8) == b"#!python":
                    rest = archive.read(name).partition(b"\n")[2]
                    scripts[f"bin/{script}"] = _SHEBANG.encode() + rest
        elif name.endswith(".dist-info/entry_points.txt") and name.count("/") == 1:
            scripts |= {f"bin/{script}": text for script, text in _scripts(archive.read(name).decode("utf-8"))}
    return scripts


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


def _scripts(text: str) -> Iterator[tuple[str, bytes]]:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # the documented way to keep the case
    parser.read_string(text)
    for group in ("console_scripts", "gui_scripts"):
        for name, value in parser[group].items() if parser.has_section(group) else ():
            if match := _ENTRY_POINT.fullmatch(value):
                function = match[2]
                if name in {".", ".."} or not name.isprintable() or "/" in name:
                    raise ValueError(f"an entry point can't be named {name!r}")
                body = _SCRIPT.format(module=match[1], name=function.split(".", 1)[0], function=function)
                yield name, (_SHEBANG + body).encode("utf-8")


def _generated(expected: Collection[str], site: str) -> set[str]:
    """Return what uv may write beside a wheel's files: its notes in the wheel's own dist-info folder."""
    folders = {path.rsplit("/", 1)[0] for path in expected if path.endswith(".dist-info/METADATA")}
    return {f"{folder}/{name}" for folder in folders if folder.startswith(f"{site}/") for name in _INSTALLER_OWN}


def _expected_links(python: str, manifest: Manifest) -> dict[str, str]:
    """Return the links of the venv and where they point."""
    links = {"bin/python": python, "lib64": "lib"}
    return links | {f"bin/{name}": "python" for name in ("python3", f"python{manifest.target.python}")}


def _link_problems(release: Release, links: Mapping[str, str], found: Collection[str]) -> Iterator[str]:
    for name, target in sorted(links.items()):
        path = release.venv / name
        if name in found and not path.is_symlink():
            yield f"venv/{name}: not a link"
        elif name in found and (path.parent / path.readlink()).resolve() != (path.parent / target).resolve():
            yield f"venv/{name}: a link to {path.readlink()}, expected {target}"


def _mode_problems(venv: Path, found: Collection[str]) -> Iterator[str]:
    """Yield files with modes that no umask of an installer gives, and programs that can't be run."""
    for name in sorted(found):
        status = os.lstat(f"{venv}/{name}")
        if stat.S_ISREG(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            if mode & _NEVER:
                yield f"venv/{name}: mode {mode:04o}, expected {mode & ~_NEVER:04o}"
            elif name.startswith("bin/") and not mode & stat.S_IXUSR:
                yield f"venv/{name}: mode {mode:04o}, expected a program"


def _config_problems(release: Release, python: str) -> Iterator[str]:
    """Yield what would make the interpreter look for modules elsewhere (``site``, and PEP 405)."""
    try:
        lines = (release.venv / _CONFIG).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield f"venv/{_CONFIG}: can't be read: {error}"
        return
    settings = [(key.strip().lower(), value.strip()) for key, _, value in (line.partition("=") for line in lines)]
    wanted = {"include-system-site-packages": "false", "home": str(Path(python).parent)}
    yield from (f"venv/{_CONFIG}: unknown key {key!r}" for key, _ in settings if key not in _CONFIG_KEYS)
    for key, value in wanted.items():
        values = [found for name, found in settings if name == key]
        if values != [value]:
            yield f"venv/{_CONFIG}: {key} is {', '.join(values) or 'missing'}, expected {value}"


def _changed(venv: Path, items: list[ExpectedFile], progress: Progress, stop: threading.Event) -> list[str]:
    """Return what is wrong with the contents; many small files make one task, which would cost more than they do."""
    problems: list[str] = []

    def check(batch: list[ExpectedFile]) -> Callable[[memoryview], None]:
        def task(buffer: memoryview) -> None:
            for item in batch:
                if stop.is_set():
                    raise Stopped
                problem, size = _content_problem(f"{venv}/{item.path}", item.sha256, buffer)
                progress.advance(size)
                if problem:
                    problems.append(f"venv/{item.path}: {problem}")

        return task

    batches = (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))
    run_all(map(check, batches), threads=thread_count(), stop=stop)
    return sorted(problems)


def _content_problem(path: str, sha256: bytes | None, buffer: memoryview) -> tuple[str, int]:
    """Return what is wrong with a file, nothing if it is what was signed, and its size in bytes."""
    try:
        descriptor = open_no_link(path)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENXIO}:
            return "not a regular file", 0
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file", 0
        if sha256 is None:
            return "", status.st_size
        digest = hashlib.sha256()
        while count := os.readv(descriptor, [buffer]):
            digest.update(buffer[:count])
        return "" if digest.digest() == sha256 else "content changed", status.st_size
    finally:
        os.close(descriptor)
