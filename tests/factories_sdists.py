"""Source distributions and projects with a build backend of their own, so that nothing has to be fetched to build."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

from tests.factories_wheels import make_wheel

BACKEND: Final = '''"""A build backend of one file: a wheel of the package beside it, and an sdist's metadata."""
import base64, hashlib, json, os, pathlib, sys, zipfile

WHEEL = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\n"
CONFIG = json.loads(pathlib.Path("build.json").read_text())

def get_requires_for_build_wheel(config_settings=None):
    return CONFIG["asks"]

def _metadata():
    head = f"Metadata-Version: 2.1\\nName: {CONFIG['name']}\\nVersion: {CONFIG['version']}\\n"
    extras = "".join(f"Provides-Extra: {extra}\\n" for extra in CONFIG["extras"])
    return head + extras + "".join(f"Requires-Dist: {item}\\n" for item in CONFIG["requires"])

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = f"{CONFIG['module']}-{CONFIG['version']}.dist-info"
    path = pathlib.Path(directory, info)
    path.mkdir()
    (path / "METADATA").write_text(_metadata())
    (path / "WHEEL").write_text(f"{WHEEL}Tag: {CONFIG['tag']}\\n")
    return info

def build_wheel(directory, config_settings=None, metadata_directory=None):
    exec(CONFIG["code"])
    module, version, tag = CONFIG["module"], CONFIG["version"], CONFIG["tag"]
    info = f"{module}-{version}.dist-info"
    members = {path.as_posix(): path.read_bytes() for path in sorted(pathlib.Path(module).rglob("*.*"))}
    members[f"{module}/epoch.txt"] = os.environ["SOURCE_DATE_EPOCH"].encode()
    members[f"{info}/METADATA"] = _metadata().encode()
    members[f"{info}/WHEEL"] = f"{WHEEL}Tag: {tag}\\n".encode()
    lines = []
    for path, data in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\\n")
    members[f"{info}/RECORD"] = ("".join(lines) + f"{info}/RECORD,,\\n").encode()
    name = f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        for path, data in members.items():
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), data)
    return name
'''


def make_project(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    build_requires: Sequence[str] = (),
    asks: Sequence[str] = (),
    tag: str = "py3-none-any",
    code: str = "",
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a project into a folder, and return it.

    Args:
        folder: The project's root; made if needed.
        name: Of the distribution.
        version: Of the distribution.
        requires: ``Requires-Dist`` of its wheel.
        extras: ``Provides-Extra`` of its wheel.
        build_requires: ``build-system.requires``.
        asks: What its backend asks for on top.
        tag: Of its wheel.
        code: Run while it is built.
        files: More files of its package, by path from the root.
    """
    module = name.replace("-", "_").lower()
    config = {"name": name, "module": module, "version": version, "tag": tag, "code": code}
    lists = {"requires": list(requires), "extras": list(extras), "asks": list(asks)}
    system = f'[build-system]\nrequires = {json.dumps(list(build_requires))}\nbuild-backend = "own_backend"\n'
    contents = {
        "pyproject.toml": f'{system}backend-path = ["."]\n'.encode(),
        "own_backend.py": BACKEND.encode(),
        "build.json": json.dumps({**config, **lists}).encode(),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{module}/__init__.py": b"",
        **(files or {}),
    }
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def make_sdist(links: Path, project: Path, name: str, version: str) -> Path:
    """Pack a project into ``NAME-VERSION.tar.gz`` below ``links``, and return the archive."""
    links.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_').lower()}-{version}"
    archive = links / f"{stem}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(project.rglob("*.*")):
            info = tarfile.TarInfo(f"{stem}/{path.relative_to(project).as_posix()}")
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    return archive


def make_uv_wheel(links: Path) -> Path:
    """Write a stand-in for uv's own wheel, which every lock asks for."""
    return make_wheel(links, "uv", installed_version("uv"), tag="py3-none-manylinux_2_17_x86_64")
