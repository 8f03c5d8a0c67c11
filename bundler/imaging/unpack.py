"""Unpacking the layers of a base image into a folder, as a container engine would; nothing leaves the folder.

Owners and device nodes are left out: what is installed inside is packed with owners of its own, and the namespace that
it is installed in brings its own ``/dev``.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from bundler.imaging.layout import GZIP_LAYER_TYPE, LAYER_TYPE, Descriptor
from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError, UsageError

_HIDDEN: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_MOST_LINKS: Final = 40  # as the kernel follows


def check_layer_type(layer: Descriptor, label: str) -> None:
    """Require a layer that can be unpacked here.

    Raises:
        UsageError: It is compressed in another way than by gzip.
    """
    if layer.media_type not in {LAYER_TYPE, GZIP_LAYER_TYPE}:
        msg = f"{label}: has a layer of {layer.media_type}, expected a plain tar or one with gzip"
        raise UsageError(msg, hint="skopeo copy --dest-compress-format gzip oci:LAYOUT oci:FOLDER")


def unpack_layer(blob: Path, layer: Descriptor, diff_id: str, root: Path) -> None:
    """Unpack one layer over what lies below ``root``.

    Args:
        blob: The layer's file, whose digest was checked.
        layer: Says how it is compressed.
        diff_id: The digest that its tar must have.
        root: A folder of our own, in which nobody else works.

    Raises:
        IntegrityError: It isn't that tar, it can't be read, or a member leads out of ``root``.
        DiskError: It can't be written.
    """
    with blob.open("rb") as raw:
        packed = layer.media_type == GZIP_LAYER_TYPE
        stream = _Hashed(gzip.GzipFile(fileobj=raw) if packed else raw)
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload] # read is all it needs
                for member in archive:
                    _apply(archive, member, root)
            while stream.read(BUFFER_SIZE):
                pass
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
            raise IntegrityError(f"layer {layer.digest}: can't be unpacked: {error}") from None
    if stream.diff_id != diff_id:
        raise IntegrityError(f"layer {layer.digest}: its tar: expected {diff_id}, got {stream.diff_id}")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Hashed:
    """A stream that knows the digest of what was read."""

    def __init__(self, stream: _Readable) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data


def _apply(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    parts = _parts(member.name)
    if not parts:
        return
    parent = resolve_inside(root, parts[:-1], create=True)
    path = parent / parts[-1]
    if path.name == _OPAQUE:
        for item in list(parent.iterdir()):
            _remove(item)
    elif path.name.startswith(_HIDDEN):
        _remove(parent / _plain(path.name.removeprefix(_HIDDEN), member.name))
    elif member.isdir():
        if path.is_symlink() or not path.is_dir():
            _remove(path)
            path.mkdir()
        path.chmod((member.mode & 0o777) | 0o700)
    elif member.isreg() or member.islnk() or member.issym():
        _remove(path)
        _write(archive, member, path, root)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, root: Path) -> None:
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        parts = _parts(member.linkname)
        source = resolve_inside(root, parts[:-1]) / parts[-1] if parts else root
        if not source.is_symlink() and not source.is_file():
            raise IntegrityError(f"{member.name!r} is a link to {member.linkname!r}, which is no file so far")
        os.link(source, path, follow_symlinks=False)
    else:
        stream = archive.extractfile(member)
        if stream is None:
            raise AssertionError("a regular file has a content")
        with stream, path.open("xb") as sink:
            shutil.copyfileobj(stream, sink, BUFFER_SIZE)
        path.chmod((member.mode & 0o777) | 0o400)


def _parts(name: str) -> list[str]:
    return [_plain(part, name) for part in name.split("/") if part not in {"", "."}]


def _plain(part: str, name: str) -> str:
    if part in {"", ".", ".."} or "\0" in part:
        raise IntegrityError(f"{name!r}: a member of a layer leads out of the image")
    return part


def resolve_inside(root: Path, parts: Sequence[str], *, create: bool = False) -> Path:
    """Return the folder that a path inside of an image means, its links followed as within a chroot.

    Args:
        root: The image's files.
        parts: The names on the way.
        create: Make folders that are missing.

    Raises:
        IntegrityError: It is no folder, or links lead in a circle.
    """
    pending, current, links = list(reversed(parts)), root, 0
    while pending:
        name = pending.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            current = current if current == root else current.parent
            continue
        path = current / name
        if path.is_symlink():
            links += 1
            if links > _MOST_LINKS:
                raise IntegrityError(f"{'/'.join(parts)!r}: links in the image lead in a circle")
            target = str(path.readlink())
            current = root if target.startswith("/") else current
            pending += reversed(target.split("/"))
            continue
        if create and not path.exists():
            path.mkdir(mode=0o755)
        if not path.is_dir():
            raise IntegrityError(f"{'/'.join(parts)!r}: goes through {name!r} in the image, which is no folder")
        current = path
    return current


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
