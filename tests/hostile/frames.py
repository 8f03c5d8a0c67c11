"""Attacks on the tar around a well signed manifest: headers, padding, members, the end."""

import gzip
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME
from manifests.tarlayout import BLOCK, SIGNATURE_SLOT, TRAILER, member_header
from tests.hostile.lab import KOREAN, WHEEL, Attack, Lab, Stage, padding

_PLACES: Final = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "devmajor": (329, 8),
    "prefix": (345, 155),
    "rest": (500, 12),
}
_CHANGED: Final = "header or padding changed at byte "
_LONGER: Final = " bytes after its end, expected "
_FOREIGN: Final = "is not a Sealift bundle: it does not begin with manifest.json"
_HEAD: Final = "a header or padding around manifest.json was changed"


def altered(header: bytes, /, **fields: bytes) -> bytes:
    """Return a header with other fields, and the right checksum unless that is given too."""
    block = bytearray(header)
    for name, value in fields.items():
        start, length = _PLACES[name]
        assert len(value) <= length, name
        block[start : start + length] = value.ljust(length, b"\0")
    if "checksum" not in fields:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def block_of(name: bytes, content: bytes = b"", /, **fields: bytes) -> bytes:
    """Return a whole member: header, content, padding."""
    header = altered(member_header("x", len(content), 0o644), name=name, **fields)
    return header + content + padding(content)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """Return a pax header member with records such as ``path=x``."""
    lines = []
    for record in records:
        length = len(record) + 2
        while len(b"%d %s\n" % (length, record)) != length:
            length = len(b"%d %s\n" % (length, record))
        lines.append(b"%d %s\n" % (length, record))
    return block_of(b"PaxHeader", b"".join(lines), type=kind)


def _header(name: str, did: str, /, **fields: bytes) -> Attack:
    """Return an attack by the header of the wheel, all else left as it was."""

    def build(lab: Lab) -> Path:
        start = lab.member(WHEEL).header_offset
        return lab.spliced(start, start + BLOCK, altered(lab.good[start : start + BLOCK], **fields))

    return Attack(name=name, did=did, build=build, stage=Stage.LAYOUT, words=f"{_CHANGED}")


def _inserted(name: str, did: str, blocks: bytes, *, before: str = WHEEL) -> Attack:
    """Return an attack by more members before another one."""

    def build(lab: Lab) -> Path:
        start = lab.member(before).header_offset
        return lab.spliced(start, start, blocks)

    return Attack(name=name, did=did, build=build, stage=Stage.LAYOUT, words=f"{len(blocks)}{_LONGER}")


def _frame(name: str, did: str, words: str, build: Callable[[Lab], Path]) -> Attack:
    return Attack(name=name, did=did, build=build, stage=Stage.LAYOUT, words=words)


def _opened(name: str, did: str, words: str, build: Callable[[Lab], Path]) -> Attack:
    return Attack(name=name, did=did, build=build, stage=Stage.OPEN, words=words)


def _first_header(name: str, did: str, words: str, /, **fields: bytes) -> Attack:
    return _opened(name, did, words, lambda lab: lab.spliced(0, BLOCK, altered(lab.good[:BLOCK], **fields)))


def _whole_member(lab: Lab, path: str) -> tuple[int, int]:
    member = lab.member(path)
    return member.header_offset, member.end


def _swapped(lab: Lab) -> Path:
    one, two = _whole_member(lab, "models/tiny/one.bin"), _whole_member(lab, "models/tiny/two.bin")
    assert one[1] == two[0]
    return lab.spliced(one[0], two[1], lab.good[two[0] : two[1]] + lab.good[one[0] : one[1]])


def _huge(lab: Lab) -> Path:
    path = lab.write(member_header(MANIFEST_NAME, 1_000_000_000, 0o644))
    os.truncate(path, 1_000_001_024 + 2 * BLOCK + SIGNATURE_SLOT)
    return path


def _zip(manifest: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(MANIFEST_NAME, manifest)
    return buffer.getvalue()


def _fifo(lab: Lab) -> Path:
    path = lab.folder / "demo.bundle.tar"
    os.mkfifo(path)
    return path


HEADERS: Final = (
    _header("tar-symlink", "made a file a link to /etc/passwd", type=b"2", linkname=b"/etc/passwd"),
    _header("tar-hardlink", "made a file a hard link to another", type=b"1", linkname=b"bootstrap/install.sh"),
    _header("tar-character-device", "made a file a device", type=b"3", devmajor=b"0000001\0"),
    _header("tar-block-device", "made a file a disk", type=b"4", devmajor=b"0000010\0"),
    _header("tar-folder", "made a file a folder", type=b"5"),
    _header("tar-fifo", "made a file a FIFO, for readers to hang on", type=b"6"),
    _header("tar-contiguous", "used a type that tools treat differently", type=b"7"),
    _header("tar-old-type", "used the old type of a file", type=b"\0"),
    _header("tar-gnu-sparse", "made a file sparse, GNU's old way", type=b"S"),
    _header("tar-gnu-longname-type", "made a file's content the next one's name", type=b"L"),
    _header("tar-gnu-volume", "called a file a volume label", type=b"V"),
    _header("tar-gnu-continued", "called a file a continued one", type=b"M"),
    _header("tar-pax-global-type", "made a file's content defaults of all that follow", type=b"g"),
    _header("tar-setuid", "set the set-user-ID bit", mode=b"0004755\0"),
    _header("tar-world-writable", "let everybody write", mode=b"0000777\0"),
    _header("tar-size-short", "wrote a shorter size", size=b"00000001000\0"),
    _header("tar-size-long", "wrote a longer size", size=b"00000777777\0"),
    _header("tar-size-largest", "wrote the largest octal size", size=b"77777777777\0"),
    _header("tar-size-base256", "wrote the right size in base-256", size=b"\x80" + (1200).to_bytes(11, "big")),
    _header("tar-size-negative", "wrote a size of -1 in base-256", size=b"\xff" * 12),
    _header("tar-size-2-to-63", "wrote a size that wraps", size=b"\x80" + (2**63).to_bytes(11, "big")),
    _header("tar-size-spaces", "filled the size with spaces", size=b"       2260 "),
    _header("tar-checksum-wrong", "left a wrong checksum", checksum=b"000000\0 "),
    _header("tar-checksum-style", "ended the checksum another way", checksum=b"0015021\0"),
    _header("tar-owner", "gave a file to another user", uid=b"0001750\0"),
    _header("tar-owner-name", "gave a file to a user by name", uname=b"www-data"),
    _header("tar-time", "made a file newer than its source", mtime=b"14000000000\0"),
    _header("tar-prefix", "moved a file by the prefix field", prefix=b"../../../etc"),
    _header("tar-name-traversal", "renamed a file in the header alone", name=b"../../etc/passwd"),
    _header("tar-name-absolute", "made its name absolute in the header alone", name=b"/etc/passwd"),
    _header("tar-name-dot", "put ./ in front of its name", name=b"./" + WHEEL.encode()),
    _header("tar-name-hidden-tail", "hid bytes behind a name's NUL", name=WHEEL.encode() + b"\0evil"),
    _header("tar-magic-gnu", "called the header GNU's", magic=b"ustar  \0"),
    _header("tar-magic-none", "called the header pre-POSIX", magic=b""),
    _header("tar-rest", "hid bytes at the header's end", rest=b"evil"),
)

MEMBERS: Final = (
    _inserted("tar-pax-path", "renamed a file by a pax header", pax(b"path=../../etc/passwd")),
    _inserted("tar-pax-size", "resized a file by a pax header", pax(b"size=1")),
    _inserted("tar-pax-linkpath", "made a link by a pax header", pax(b"linkpath=/etc/passwd")),
    _inserted("tar-pax-sparse", "made a file sparse by pax headers", pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0")),
    _inserted("tar-pax-global", "set defaults for all that follows", pax(b"path=evil", kind=b"g")),
    _inserted("tar-pax-twice", "put a second pax header before a Korean name", pax(b"path=evil"), before=KOREAN),
    _inserted("tar-gnu-longname", "renamed a file GNU's way", block_of(b"././@LongLink", b"../evil\0", type=b"L")),
    _inserted("tar-gnu-longlink", "made a long link GNU's way", block_of(b"././@LongLink", b"/etc\0", type=b"K")),
    _inserted("tar-folder-member", "added a folder with mode 0777", block_of(b"wheels/", type=b"5", mode=b"0000777\0")),
    _inserted(
        "tar-link-member", "added a link for later members to follow", block_of(b"docs", type=b"2", linkname=b"/")
    ),
    _inserted(
        "tar-extra-member", "added a file that nobody signed", block_of(b"wheels/sitecustomize.py", b"import os")
    ),
    _frame(
        "tar-pax-length-lies",
        "made a pax record claim another length",
        _CHANGED,
        lambda lab: lab.spliced(
            lab.member(KOREAN).header_offset + BLOCK, lab.member(KOREAN).header_offset + BLOCK + 2, b"99"
        ),
    ),
    _frame(
        "tar-duplicate-member",
        "added a file again: the last one counts for tar",
        _LONGER,
        lambda lab: lab.spliced(
            lab.layout.trailer_offset, lab.layout.trailer_offset, member_header(WHEEL, 4, 0o644) + b"evil" + bytes(508)
        ),
    ),
    _frame("tar-swapped-members", "swapped two members of one size", _CHANGED, _swapped),
    _frame(
        "tar-missing-member", "left a file out", "truncated: ", lambda lab: lab.spliced(*_whole_member(lab, WHEEL), b"")
    ),
    _frame(
        "tar-padding",
        "hid bytes in the padding",
        _CHANGED,
        lambda lab: lab.spliced(lab.member(WHEEL).end - 4, lab.member(WHEEL).end, b"evil"),
    ),
    _frame(
        "tar-trailer",
        "hid bytes in the zeros at the end",
        _CHANGED,
        lambda lab: lab.spliced(-4 + len(lab.good), len(lab.good), b"evil"),
    ),
    _frame("tar-longer", "added a byte after the end", f"1{_LONGER}", lambda lab: lab.write(lab.good + b"\0")),
    _frame("tar-second-archive", "added a second archive", _LONGER, lambda lab: lab.write(lab.good * 2)),
    _frame("tar-one-zero-block", "took one zero block away", "truncated: ", lambda lab: lab.write(lab.good[:-BLOCK])),
    _frame(
        "tar-cut",
        "cut it in the middle of a file",
        "truncated: ",
        lambda lab: lab.write(lab.good[: lab.member(WHEEL).end]),
    ),
    _frame(
        "tar-empty-payload",
        "kept manifest and signature alone",
        "truncated: ",
        lambda lab: lab.write(lab.good[: lab.layout.signature_offset + SIGNATURE_SLOT] + TRAILER),
    ),
)

HEADS: Final = (
    _first_header("head-link", "made manifest.json a link", _FOREIGN, type=b"2", linkname=b"/etc/passwd"),
    _first_header("head-executable", "made manifest.json a program", _FOREIGN, mode=b"0000755\0"),
    _first_header("head-dot-name", "called it ./manifest.json", _FOREIGN, name=b"./manifest.json"),
    _first_header("head-negative-size", "gave it a size of -1", _FOREIGN, size=b"\xff" * 12),
    _first_header("head-base256-size", "gave it a size in base-256", _FOREIGN, size=b"\x80" + bytes(10) + b"\x09"),
    _first_header("head-checksum", "left a wrong checksum", _FOREIGN, checksum=b"000000\0 "),
    _first_header(
        "head-size-long", "claimed a longer manifest", "truncated within manifest.json", size=b"00074000000\0"
    ),
    _first_header("head-size-zero", "claimed an empty manifest", _HEAD, size=b"00000000000\0"),
    _first_header(
        "head-size-16-mb",
        "claimed a manifest just too large",
        "16000000 bytes, at most 15999999",
        size=b"%011o\0" % 16_000_000,
    ),
    _opened(
        "head-size-short",
        "cut a byte off the manifest",
        _HEAD,
        lambda lab: lab.spliced(0, BLOCK, member_header(MANIFEST_NAME, len(lab.manifest.encode()) - 1, 0o644)),
    ),
    _opened(
        "head-1-gb",
        "sent a manifest of 1 GB",
        "manifest.json has 1000000000 bytes, at most 15999999",
        _huge,
    ),
    _opened(
        "head-pax-first",
        "put a pax header before the manifest",
        _FOREIGN,
        lambda lab: lab.write(pax(b"path=a") + lab.good),
    ),
    _opened(
        "head-extra-first",
        "put another file before the manifest",
        _FOREIGN,
        lambda lab: lab.write(block_of(b"README", b"hello") + lab.good),
    ),
    _opened(
        "head-padding",
        "hid bytes behind the manifest",
        _HEAD,
        lambda lab: lab.spliced(lab.layout.signature_offset - BLOCK - 4, lab.layout.signature_offset - BLOCK, b"evil"),
    ),
    _opened(
        "head-slot-size",
        "claimed a smaller signature slot",
        _HEAD,
        lambda lab: lab.spliced(
            lab.layout.signature_offset - BLOCK, lab.layout.signature_offset, member_header(SIGNATURE_NAME, 4096, 0o644)
        ),
    ),
    _opened(
        "head-slot-link",
        "made the signature a link",
        _HEAD,
        lambda lab: lab.spliced(
            lab.layout.signature_offset - BLOCK,
            lab.layout.signature_offset,
            altered(member_header(SIGNATURE_NAME, SIGNATURE_SLOT, 0o644), type=b"2", linkname=b"/tmp/x"),
        ),
    ),
    _opened(
        "head-slot-missing",
        "left the signature slot out",
        _HEAD,
        lambda lab: lab.spliced(lab.layout.signature_offset - BLOCK, lab.layout.signature_offset + SIGNATURE_SLOT, b""),
    ),
    _opened(
        "head-slot-cut",
        "cut it within the slot",
        "truncated within manifest.json.sig",
        lambda lab: lab.write(lab.good[: lab.layout.signature_offset + 100]),
    ),
    _opened(
        "head-manifest-cut",
        "cut it within the manifest",
        "truncated within manifest.json",
        lambda lab: lab.write(lab.good[:700]),
    ),
    _opened("head-block-cut", "cut it within the first block", _FOREIGN, lambda lab: lab.write(lab.good[:300])),
    _opened("head-empty", "sent an empty file", _FOREIGN, lambda lab: lab.write(b"")),
    _opened("head-zeros", "sent zeros", _FOREIGN, lambda lab: lab.write(bytes(1 << 20))),
    _opened("head-gzip", "compressed it", _FOREIGN, lambda lab: lab.write(gzip.compress(lab.good))),
    _opened("head-zip", "sent a zip", _FOREIGN, lambda lab: lab.write(_zip(lab.manifest.encode()))),
    _opened("head-fifo", "sent a FIFO, for the reader to hang on", "is not a regular file", _fifo),
)


FRAME_ATTACKS: Final[tuple[Attack, ...]] = (*HEADERS, *MEMBERS, *HEADS)
