"""Writing layers: tars that are a pure function of a tree, hashed while they are written."""

import hashlib
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bundler.imaging.layout import LAYER_TYPE, Descriptor
from manifests.digests import BUFFER_SIZE, ContentDigest, ContentHasher
from manifests.errors import IntegrityError
from manifests.files import READ_ONLY, READ_ONLY_EXECUTABLE, open_regular
from manifests.manifest import FileEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer to be written. ``paths`` are files, links and folders relative to the image's root, sorted.

    ``open_folders`` are those that whoever runs the image may write to; ``mtime`` is in seconds since 1970; ``signed``
    are the paths whose content a manifest names.
    """

    paths: Sequence[str]
    mtime: int
    signed: Mapping[str, FileEntry]
    open_folders: frozenset[str] = frozenset()


def tree_paths(root: Path, start: str, *, skip: Sequence[str] = ()) -> Iterator[str]:
    """Yield a folder and all below it as paths relative to ``root``; links aren't followed, ``skip`` is left out."""
    if start in skip:
        return
    yield start
    path = root / start
    if path.is_dir() and not path.is_symlink():
        for item in sorted(entry.name for entry in path.iterdir()):
            yield from tree_paths(root, f"{start}/{item}", skip=skip)


def write_layer(folder: Path, root: Path, plan: LayerPlan) -> Descriptor:
    """Write a layer as a plain tar into the layout ``folder``, whose blobs' folder is there.

    Returns:
        Its descriptor; of a plain tar the digest is the diff_id, too.

    Raises:
        IntegrityError: A signed file's content is another one, or something is no file, folder or link.
        OSError: It can't be written.
    """
    blobs = folder / "blobs" / "sha256"
    partial = blobs / ".layer.partial"
    with partial.open("wb") as stream:
        sink = _HashedSink(stream)
        with _open_tar(sink) as archive:
            for path in plan.paths:
                _add(archive, root, path, plan)
    partial.replace(blobs / sink.hex)
    return Descriptor(media_type=LAYER_TYPE, digest=f"sha256:{sink.hex}", size=sink.size)


class _HashedSink:
    """Takes bytes for a file and knows their digest and count."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._digest, self.size = stream, hashlib.sha256(), 0

    @property
    def hex(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size += len(data)
        return self._stream.write(data)


class _Reader:
    """A file that is hashed while it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.hasher = stream, ContentHasher()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.hasher.update(data)
        return data


def _open_tar(sink: _HashedSink) -> tarfile.TarFile:
    options = {"format": tarfile.PAX_FORMAT, "encoding": "utf-8", "bufsize": BUFFER_SIZE, "copybufsize": BUFFER_SIZE}
    return tarfile.open(fileobj=sink, mode="w|", **options)  # type: ignore[call-overload,no-any-return] # it only writes


def _add(archive: tarfile.TarFile, root: Path, path: str, plan: LayerPlan) -> None:
    """Add one member: owner 0, one time for all, modes that only say whether it is executable; no other attributes."""
    source = root / path
    status = source.lstat()
    info = tarfile.TarInfo(path)
    info.mtime = plan.mtime
    if stat.S_ISLNK(status.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(source.readlink()), 0o777
        archive.addfile(info)
    elif stat.S_ISDIR(status.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if path in plan.open_folders else 0o755
        archive.addfile(info)
    else:
        info.size, info.mode = status.st_size, READ_ONLY_EXECUTABLE if status.st_mode & 0o100 else READ_ONLY
        with open_regular(source) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            reader = _Reader(stream)
            archive.addfile(info, reader)  # type: ignore[arg-type] # read is all it needs
        if (entry := plan.signed.get(path)) is not None:
            _require_signed(entry, reader.hasher.digest())


def _require_signed(entry: FileEntry, found: ContentDigest) -> None:
    if (found.size, found.chunks, found.chunks or found.sha256) != (
        entry.size,
        entry.chunks,
        entry.chunks or entry.sha256,
    ):
        msg = f"{entry.path}: expected sha256 {entry.sha256}, got {found.sha256} after the install in the base image"
        raise IntegrityError(msg, hint="what the base image ran changed it: take a base image that you trust")
