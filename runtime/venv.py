"""The release's virtual environment: made at its final path, by the bundle's own uv, from verified wheels alone."""

import errno
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from manifests.errors import HostError, InstallError
from manifests.files import disk_error, replace_link
from manifests.manifest import FileEntry, Manifest
from runtime.interpreter import Interpreter
from runtime.layout import Prefix, Release, make_folder
from runtime.programs import run_program
from runtime.venv_check import write_scripts

_WHEEL_NAME: Final = re.compile(r"wheels/([A-Za-z0-9._]+)-([A-Za-z0-9._!+]+)(?:-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_NOT_LETTERS: Final = re.compile(r"[-_.]+")
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
_DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def requirements_text(manifest: Manifest) -> str:
    """Return the requirements of the venv: every wheel of the manifest, pinned by version and digest."""
    lines = []
    for entry in manifest.of_kind("wheel"):
        name, version = parse_wheel_path(entry.path)
        lines.append(f"{name}=={version} --hash=sha256:{entry.sha256}\n")
    return "".join(lines)


def parse_wheel_path(path: str) -> tuple[str, str]:
    """Return normalized name and version from ``wheels/NAME-VERSION-...whl``.

    Raises:
        InstallError: It isn't a wheel's file name.
    """
    match = _WHEEL_NAME.fullmatch(path)
    if match is None:
        raise InstallError(f"{path}: not the file name of a wheel")
    return _NOT_LETTERS.sub("-", match[1]).lower(), match[2]


def build_venv(
    prefix: Prefix,
    release: Release,
    manifest: Manifest,
    interpreter: Interpreter,
    stop: threading.Event | None = None,
) -> None:
    """Create ``release.venv`` and install every wheel into it. What an earlier attempt left there is removed.

    Raises:
        InstallError: uv refuses; its own words are in the message.
        DiskError: uv says that the disk is full or fails.
        HostError: The bundle carries no uv, or it does not run here.
        Stopped: ``stop`` was set.
    """
    stop = stop or threading.Event()
    if release.venv.is_symlink() or release.venv.is_file():
        release.venv.unlink()
    elif release.venv.exists():
        shutil.rmtree(release.venv)
    uv = unpack_uv(prefix, release, manifest)
    requirements = prefix.var / "run" / f"requirements-{os.getpid()}.txt"
    requirements.write_text(requirements_text(manifest), encoding="utf-8")
    common = ["--cache-dir", str(prefix.var / "cache" / "uv"), "--offline", "--no-config", "--no-progress", "--quiet"]
    python = ["--python", str(interpreter.executable), "--no-python-downloads"]
    try:
        _run(prefix, stop, [str(uv), "venv", *common, *python, "--relocatable", "--no-project", str(release.venv)])
        _remove_activation(release)
        if manifest.of_kind("wheel"):
            options = [*common, *_install_options(prefix, release), "-r", str(requirements)]
            _run(prefix, stop, [str(uv), "pip", "install", *options])
    finally:
        requirements.unlink(missing_ok=True)
        uv.unlink(missing_ok=True)
        (prefix.var / "run" / "wheels").unlink(missing_ok=True)
    for name in (".gitignore", ".lock", "CACHEDIR.TAG"):
        (release.venv / name).unlink(missing_ok=True)
    write_scripts(release, manifest)


def _remove_activation(release: Release) -> None:
    """Remove the shell scripts that uv puts into ``bin``, before wheels bring their own.

    No wheel vouches for them, so a change there could not be found; without them every file of a venv can be checked.
    """
    for path in release.python.parent.iterdir():
        if not path.is_symlink():
            path.unlink()


def _install_options(prefix: Prefix, release: Release) -> list[str]:
    # The same path for every release: uv's cache goes by it, so releases share the unpacked files of equal wheels.
    wheels = prefix.var / "run" / "wheels"
    replace_link(wheels, str(release.path / "wheels"))
    return [
        *("--python", str(release.python)),
        *("--no-index", "--find-links", str(wheels)),
        *("--no-deps", "--require-hashes", "--no-build", "--link-mode", "hardlink"),
    ]


def unpack_uv(prefix: Prefix, release: Release, manifest: Manifest) -> Path:
    """Return the uv program of the bundle, unpacked from its (verified) wheel below ``PREFIX/var``.

    Raises:
        HostError: The bundle carries none.
    """
    entry = uv_wheel(manifest)
    # Always anew: what an earlier run left there was checked by nobody, and may have been cut short with the power.
    program = prefix.var / "run" / f"uv-{entry.sha256[:16]}"
    make_folder(program.parent)
    partial = program.with_name(f"{program.name}.{os.getpid()}.partial")
    with zipfile.ZipFile(release.path / entry.path) as archive:
        member = next((name for name in archive.namelist() if re.fullmatch(r"uv-[^/]+\.data/scripts/uv", name)), None)
        if member is None:
            raise HostError(f"{entry.path}: holds no uv program for this system")
        with archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1024 * 1024)
    partial.chmod(0o755)
    partial.replace(program)
    return program


def uv_wheel(manifest: Manifest) -> FileEntry:
    """Return the entry of the uv wheel below ``bootstrap/``.

    Raises:
        HostError: There is none.
    """
    for entry in manifest.of_kind("bootstrap"):
        if re.fullmatch(r"bootstrap/uv-[^/]+\.whl", entry.path):
            return entry
    raise HostError("the bundle carries no uv, so nothing can be installed from it")


def _run(prefix: Prefix, stop: threading.Event, command: Sequence[str]) -> None:
    try:
        done = run_program(prefix, command, stop=stop)
    except OSError as error:
        raise HostError(f"{command[0]} does not run on this host: {error.strerror}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip() or f"no message, status {done.returncode}"
        numbers = [int(number) for number in _OS_ERROR.findall(words)]
        if failed := [number for number in numbers if number in _DISK_ERRORS]:
            raise disk_error(OSError(failed[0], os.strerror(failed[0])), "make the virtual environment")
        step = f"uv {'venv' if command[1] == 'venv' else 'pip install'}"
        raise InstallError(f"{step} failed:\n{words}", hint="the release was not made; what was live stays live")
