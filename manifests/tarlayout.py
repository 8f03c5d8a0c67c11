"""The tar of a bundle as a pure function of its manifest, and of its delta.json where it is a delta.

A reader never interprets a header. It computes the offset of every member and the bytes of every header and of every
padding, and requires exactly those, so links, duplicates, sparse files and path overrides can't be expressed.
The format is POSIX.1-1988 ustar, with one pax header (POSIX.1-2001) before a path that isn't ASCII or is longer than
100 bytes; ``docs/reference/bundle-format.md`` has one golden header of each form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from manifests.delta import DELTA_NAME
from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry

BLOCK: Final = 512
SIGNATURE_SLOT: Final = 16 * 1024
TRAILER: Final = bytes(2 * BLOCK)
_OCTAL_LIMIT: Final = 8**11


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member's place: where its header begins, where its data begins (bytes), and its entry."""

    entry: FileEntry
    header_offset: int
    offset: int

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + padded(self.entry.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TarLayout:
    """All places in a bundle: the signature slot, the members, the trailer, and the size of it all, in bytes.

    ``list_member`` is all of ``delta.json`` with header and padding, right behind the slot; a full bundle has none.
    """

    head: bytes
    signature_offset: int
    list_member: bytes
    members: tuple[Member, ...]
    trailer_offset: int

    @property
    def list_offset(self) -> int:
        """Where the signature slot ends."""
        return self.signature_offset + SIGNATURE_SLOT

    @property
    def size(self) -> int:
        """The exact size of the tar in bytes."""
        return self.trailer_offset + len(TRAILER)


def padded(size: int) -> int:
    """Return ``size`` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def needs_pax(path: str) -> bool:
    """Whether ``path`` needs a pax header: it isn't ASCII, or has more than 100 bytes."""
    return not path.isascii() or len(path) > 100


def member_header(path: str, size: int, mode: int) -> bytes:
    """Return everything that precedes a member's data: one block, or three and more with a pax header."""
    if not needs_pax(path):
        return _block(path.encode("ascii"), size=size, mode=mode, typeflag=b"0")
    record = _pax_record(path)
    padding = bytes(padded(len(record)) - len(record))
    return (
        _block(b"PaxHeader", size=len(record), mode=0o644, typeflag=b"x")
        + record
        + padding
        + _block(_fallback_name(path), size=size, mode=mode, typeflag=b"0")
    )


def header_size(path: str) -> int:
    """Return ``len(member_header(path, ...))`` without making it."""
    return 2 * BLOCK + padded(len(_pax_record(path))) if needs_pax(path) else BLOCK


def head_of(manifest: bytes) -> bytes:
    """Return the bundle's first bytes, up to and without the content of the signature slot."""
    return _whole_member(MANIFEST_NAME, manifest) + member_header(SIGNATURE_NAME, SIGNATURE_SLOT, 0o644)


def tar_layout(manifest: bytes, files: tuple[FileEntry, ...], delta: bytes | None = None) -> TarLayout:
    """Compute the layout of the bundle with these manifest bytes that carries these files.

    ``delta`` holds the bytes of delta.json, None for a full bundle.
    """
    head = head_of(manifest)
    listed = b"" if delta is None else _whole_member(DELTA_NAME, delta)
    start = len(head) + SIGNATURE_SLOT + len(listed)
    members = tuple(_members(files, start))
    end = members[-1].end if members else start
    return TarLayout(head=head, signature_offset=len(head), list_member=listed, members=members, trailer_offset=end)


def _whole_member(name: str, content: bytes) -> bytes:
    return member_header(name, len(content), 0o644) + content + bytes(padded(len(content)) - len(content))


def _members(files: tuple[FileEntry, ...], position: int) -> Iterator[Member]:
    for entry in files:
        offset = position + header_size(entry.path)
        member = Member(entry=entry, header_offset=position, offset=offset)
        yield member
        position = member.end


def _pax_record(path: str) -> bytes:
    body = b" path=" + path.encode("utf-8") + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode("ascii") + body


def _fallback_name(path: str) -> bytes:
    # What a tar without pax support would use: never a folder, so no slash at the end.
    name = bytes(byte if byte < 0x80 else ord("_") for byte in path.encode("utf-8")[:100])
    return name[:-1] + b"_" if name.endswith(b"/") else name


def _block(name: bytes, *, size: int, mode: int, typeflag: bytes) -> bytes:
    fields = (
        name.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"0000000\0",  # uid
        b"0000000\0",  # gid
        b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big"),
        b"00000000000\0",  # mtime
        b" " * 8,  # the checksum counts as spaces
        typeflag,
        bytes(100),  # link name
        b"ustar\0" + b"00",
        bytes(32),  # user name
        bytes(32),  # group name
        b"0000000\0",  # device major
        b"0000000\0",  # device minor
        bytes(155),  # prefix
        bytes(12),
    )
    block = b"".join(fields)
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]
