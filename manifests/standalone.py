"""The archive of a carried interpreter, read as strictly as a bundle: headers are parsed, nothing is ever extracted.

The layout is that of python-build-standalone's ``install_only`` archives: a gzipped tar of one folder, ``python/``,
with ``bin/python3.N`` (``python.exe`` on Windows) and ``lib/python3.N`` in it.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final, Protocol

from manifests.errors import IntegrityError
from manifests.manifest import FileEntry, Manifest

TOP: Final = "python"
_NAME: Final = re.compile(r"bootstrap/cpython-(3\.\d{1,2}\.\d{1,3})-[A-Za-z0-9_-]+\.tar\.gz")
_LINK: Final = re.compile(r"(?:\.\./)*(?!\.\.?(?:/|$))[^/]+(?:/(?!\.\.?(?:/|$))[^/]+)*")
_MOST_MEMBERS: Final = 100_000
_MOST_BYTES: Final = 4 << 30
_DAMAGED: Final = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError)


class Readable(Protocol):
    """Content to be read once, in order."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes, all where it is negative, none at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveMember:
    """One thing in the archive; ``path`` is relative to ``python/``.

    ``kind`` is ``folder``, ``file``, ``link`` (``target`` as written, relative, stays inside) or ``copy`` (``target``
    is the path of an earlier file with the same content). ``size`` is in bytes, ``mtime`` in seconds.
    """

    path: str
    kind: str
    executable: bool = False
    size: int = 0
    mtime: int = 0
    target: str = ""


def archive_path(version: str, platform: str) -> str:
    """Return where the archive of CPython ``version`` (``3.N.M``) lies in a bundle for ``platform``."""
    return f"bootstrap/cpython-{version}-{platform}.tar.gz"


def find_archive(manifest: Manifest) -> FileEntry | None:
    """Return the entry of the interpreter that a bundle carries, None where it carries none."""
    found = (entry for entry in manifest.of_kind("bootstrap") if _NAME.fullmatch(entry.path))
    return next(found, None)


def archive_version(entry: FileEntry) -> str:
    """Return the version, ``3.N.M``, of the interpreter in the archive ``entry``."""
    return entry.path.removeprefix("bootstrap/cpython-").partition("-")[0]


def program_path(python: str, platform: str) -> str:
    """Return where the program of Python ``3.N`` lies below ``python/`` for ``platform`` (uv's names)."""
    return "python.exe" if "windows" in platform else f"bin/python{python}"


def read_archive(stream: IO[bytes], label: str) -> Iterator[tuple[ArchiveMember, Readable | None]]:
    """Yield every member in order, with its content where it is a file; a folder always comes before what is in it.

    Args:
        stream: The compressed bytes, from their start. Check their digest beforehand: what follows the archive's end
            isn't read.
        label: What to call the archive in messages.

    Raises:
        IntegrityError: It is damaged, a name or a link leads out of ``python/``, one name comes twice, or something is
            neither file, folder nor link.
    """
    seen = {"": "folder"}
    total = count = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for info in archive:
                count, total = count + 1, total + max(info.size, 512)
                if count > _MOST_MEMBERS or total > _MOST_BYTES:
                    raise IntegrityError(f"{label}: more than an interpreter needs: {count} members, {total} bytes")
                member = _member(info, seen, label)
                for folder in _missing_folders(member, seen, label):
                    yield ArchiveMember(path=folder, kind="folder"), None
                if member.path not in seen:  # else a folder that is there already
                    seen[member.path] = member.kind
                    content = archive.extractfile(info) if member.kind == "file" else None
                    yield member, _Content(content, label) if content else None
    except _DAMAGED as error:
        raise IntegrityError(f"{label}: not a readable .tar.gz: {error}") from error


class _Content:
    """What a member holds; damage that shows only while it is read is an IntegrityError too."""

    def __init__(self, stream: IO[bytes], label: str) -> None:
        self._stream, self._label = stream, label

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._stream.read(size)
        except _DAMAGED as error:
            raise IntegrityError(f"{self._label}: not a readable .tar.gz: {error}") from error


def _member(info: tarfile.TarInfo, seen: dict[str, str], label: str) -> ArchiveMember:
    path = _inside(info.name, label)
    mode, mtime = info.mode, int(info.mtime)
    if mode & 0o6000:
        raise IntegrityError(f"{label}: {info.name!r} has mode {mode:04o}")
    if path in seen and not (info.isdir() and seen[path] == "folder"):
        raise IntegrityError(f"{label}: {info.name!r} comes twice")
    if info.isdir():
        return ArchiveMember(path=path, kind="folder")
    if info.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and path:
        return ArchiveMember(path=path, kind="file", executable=bool(mode & 0o111), size=info.size, mtime=mtime)
    if info.issym() and path:
        inside = _LINK.fullmatch(info.linkname) and info.linkname.isprintable()
        if not inside or info.linkname.count("../") > path.count("/"):
            raise IntegrityError(f"{label}: {info.name!r} is a link out of {TOP}/, to {info.linkname[:200]!r}")
        return ArchiveMember(path=path, kind="link", target=info.linkname)
    if info.islnk() and path:
        target = _inside(info.linkname, label)
        if seen.get(target) not in {"file", "copy"}:
            raise IntegrityError(
                f"{label}: {info.name!r} is a link to {info.linkname[:200]!r}, which is no file so far"
            )
        return ArchiveMember(path=path, kind="copy", executable=bool(mode & 0o111), mtime=mtime, target=target)
    raise IntegrityError(f"{label}: {info.name[:200]!r} is neither a file, a folder nor a link")


def _inside(name: str, label: str) -> str:
    """Return ``name`` relative to the archive's one folder."""
    top, _, path = name.partition("/")
    parts = path.split("/") if path else []
    odd = {"", ".", ".."}.intersection(parts) or not name.isprintable() or "\\" in name or len(name) > 1000
    if top != TOP or odd or name == f"{TOP}/":
        raise IntegrityError(f"{label}: {name[:200]!r} does not lie in {TOP}/, where an interpreter's archive has all")
    return path


def _missing_folders(member: ArchiveMember, seen: dict[str, str], label: str) -> list[str]:
    """Return the folders above ``member`` that the archive has no member of its own for, outermost first."""
    parts = member.path.split("/")[:-1]
    above = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    for folder in above:
        if seen.get(folder, "folder") != "folder":
            raise IntegrityError(f"{label}: {TOP}/{member.path} lies below {TOP}/{folder}, which is no folder")
    missing = [folder for folder in above if folder not in seen]
    seen.update(dict.fromkeys(missing, "folder"))
    return missing
