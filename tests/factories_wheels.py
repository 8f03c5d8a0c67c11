"""Tiny real wheels, with a valid RECORD, for folders that serve as find-links."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
    files: Mapping[str, bytes] | None = None,
    entry_points: str = "",
    headers: Sequence[str] = (),
) -> Path:
    """Write a wheel that pip and uv install, and return its path; without ``files`` it holds one empty package.

    ``headers`` are more lines of METADATA, such as ``Requires-Python: >=3.11``.
    """
    module = name.replace("-", "_").lower()
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(f"{line}\n" for line in headers)
    members = dict(files) if files is not None else {f"{module}/__init__.py": b""}
    members[f"{info}/METADATA"] = (metadata + "".join(f"Requires-Dist: {item}\n" for item in requires)).encode()
    tags = "".join(f"Tag: {item}\n" for item in _expand(tag))
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n{tags}".encode()
    if entry_points:
        members[f"{info}/entry_points.txt"] = entry_points.encode()
    record = "".join(f"{path},sha256={_urlsafe(data)},{len(data)}\n" for path, data in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in members.items():
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), data)
    return wheel


def _expand(tag: str) -> list[str]:
    pythons, abis, platforms = tag.split("-")
    return [f"{a}-{b}-{c}" for a in pythons.split(".") for b in abis.split(".") for c in platforms.split(".")]


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
