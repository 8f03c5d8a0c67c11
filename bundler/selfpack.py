"""What a bundle carries of Sealift itself, made from the installed files: ``runtime.pyz`` and the wheel for the venv.

Both are deterministic: sorted members, stored, time stamps of 1980. The wheel holds the closed side only, since the
bundler's own requirements don't belong on a closed network.
"""

import base64
import hashlib
import importlib.util
import io
import stat
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from manifests import __version__
from manifests.digests import sha256_hex

WHEEL_NAME: Final = f"sealift-{__version__}-py3-none-any.whl"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_MAIN: Final = b'''"""The entry of runtime.pyz; old Pythons must be able to parse it."""
import sys

if sys.version_info < (3, 11):
    sys.stderr.write(
        "error: runtime.pyz needs Python 3.11 or newer, this is Python %d.%d (%s)\\n"
        "hint: run it with another interpreter, such as python3.11 runtime.pyz ...\\n"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(6)

from runtime.cli import main

sys.exit(main())
'''
# A venv is verified both ways, so running it must not leave bytecode there that no wheel brought.
_NO_BYTECODE: Final = b"import sys; sys.dont_write_bytecode = sys.dont_write_bytecode or sys.pycache_prefix is None\n"


def package_files(package: str) -> dict[str, bytes]:
    """Return the source files of an installed top-level package: archive path -> content, sorted."""
    root = _package_root(package)
    found = {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    return dict(sorted(found.items()))


def template_root() -> Path:
    """Return the folder of the templates, which stands beside the packages in a checkout and in an installation."""
    return _package_root("bundler").parent / "templates"


@cache
def runtime_pyz() -> bytes:
    """Return the bytes of ``runtime.pyz``: the closed side's core, standard library only."""
    files = {name: data for name, data in _closed_side().items() if not _needs_venv(name)}
    return b"#!/usr/bin/env python3\n" + _zip({"__main__.py": _MAIN, **files})


@cache
def runtime_wheel() -> bytes:
    """Return the bytes of the wheel that goes into the release's venv: core, adapters and server."""
    info = f"sealift-{__version__}.dist-info"
    files = dict(_closed_side())
    files["sealift.pth"] = _NO_BYTECODE
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: sealift\nVersion: {__version__}\n"
        "Summary: The closed side of Sealift: verify, install, launch.\nLicense: Apache-2.0\n"
        "Requires-Python: >=3.11\n"
    ).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: sealift\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nruntime = runtime.cli:main\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    return _zip(files)


def self_digests() -> Mapping[str, str]:
    """Return the sha256 of everything that a bundle takes from this installation, as a lock pins it."""
    templates = b"".join(
        f"{path.relative_to(template_root()).as_posix()} {sha256_hex(path.read_bytes())}\n".encode()
        for path in sorted(template_root().rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    )
    return {
        "runtime.pyz": sha256_hex(runtime_pyz()),
        "templates": sha256_hex(templates),
        WHEEL_NAME: sha256_hex(runtime_wheel()),
    }


def _closed_side() -> dict[str, bytes]:
    files = {**package_files("manifests"), **package_files("runtime")}
    return {name: data for name, data in files.items() if not name.startswith("manifests/bundles/")}


def _needs_venv(name: str) -> bool:
    return name.startswith(("runtime/adapters/", "runtime/server/"))


def _package_root(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the package {package} of this Sealift is not importable")
    return Path(spec.origin).parent


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def _record(files: Mapping[str, bytes], record: str) -> bytes:
    return "".join(_record_lines(files, record)).encode()


def _record_lines(files: Mapping[str, bytes], record: str) -> Iterator[str]:
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        yield f"{name},sha256={digest},{len(data)}\n"
    yield f"{record},,\n"
