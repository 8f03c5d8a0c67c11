"""Whether a content is a pickle, by its bytes: what a policy decides on, on both sides of the gap.

Names prove nothing: a pickle called ``model.safetensors`` is still run by whoever loads it with ``torch.load``. Found
are bare pickles of every protocol (so torch's old format), zip archives with a pickle in them (torch's format), tar
archives with one (its oldest), numpy arrays of objects, and bare ones compressed as joblib does it.
"""

import importlib
import os
import pickletools
import tarfile
import zipfile
import zlib
from typing import BinaryIO, Final, Protocol, cast

_HEAD: Final = 64 * 1024
_SAFETENSORS_HEADER: Final = 100_000_000  # the format's own limit
_ACTING: Final = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"}


class _Inflater(Protocol):
    """What bz2's and lzma's decompressors have in common."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return at most ``max_length`` bytes."""


def holds_pickle(stream: BinaryIO) -> bool:
    """Whether a content is a pickle, or an archive with one in it.

    Args:
        stream: Seekable; its position is changed.

    Raises:
        OSError: It can't be read.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(_HEAD)
    if _is_safetensors(head, size):
        return _holds_pickled_member(stream, if_broken=False)  # an archive may follow: its directory is at the end
    if any(_starts_pickle(part) for part in (head, _inflated(head)) if part):
        return True
    return _holds_pickled_member(stream, if_broken=True) or _is_torch_tar(stream)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= min(size - 8, _SAFETENSORS_HEADER)


def _starts_pickle(head: bytes) -> bool:
    if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return True
    if head.startswith(b"\x93NUMPY"):
        return b"O" in head[10:256].partition(b"'descr':")[2].partition(b",")[0]
    return _is_old_pickle(head)


def _is_old_pickle(head: bytes) -> bool:
    """Whether it reads as protocol 0 or 1, which has no magic number: only opcodes, and one that calls something."""
    names = set()
    try:
        for opcode, _, _ in pickletools.genops(head):
            names.add(opcode.name)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        if len(head) < _HEAD or "unknown" in str(error):
            return False
    return bool(names & _ACTING)


def _inflated(head: bytes) -> bytes:
    """Return the beginning of what is compressed, empty if nothing is."""
    try:
        if head.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(head, _HEAD)
        if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:
            return zlib.decompressobj().decompress(head, _HEAD)
        if head.startswith(b"BZh"):
            return _inflater("bz2", "BZ2Decompressor").decompress(head, _HEAD)
        if head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
            return _inflater("lzma", "LZMADecompressor").decompress(head, _HEAD)
    except (ImportError, OSError, EOFError, ValueError, zlib.error):
        return b""
    except Exception as error:
        if type(error).__name__ != "LZMAError":  # of a module that may be missing
            raise
    return b""


def _inflater(module: str, name: str) -> _Inflater:
    # A host's smallest Python may lack them; it can't unpickle what they compress either.
    return cast("_Inflater", getattr(importlib.import_module(module), name)())


def _holds_pickled_member(stream: BinaryIO, *, if_broken: bool) -> bool:
    if not zipfile.is_zipfile(stream):
        return False
    try:
        with zipfile.ZipFile(stream) as archive:
            return any(name.lower().endswith((".pkl", ".pickle")) for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError):
        return if_broken  # a lenient reader may open it; but random weights may just end like one


def _is_torch_tar(stream: BinaryIO) -> bool:
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            return any(member.name == "pickle" or member.name.endswith(".pkl") for member in archive)
    except (tarfile.TarError, OSError, ValueError):
        return False
