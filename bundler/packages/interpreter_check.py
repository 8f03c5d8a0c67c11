"""Whether an interpreter's archive is what a target needs: its layout, version, machine, and the libc it asks for."""

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from manifests.errors import IntegrityError, SpecError
from manifests.manifest import Target
from manifests.standalone import TOP, ArchiveMember, Readable, program_path, read_archive

_VERSION: Final = re.compile(rb'^#define\s+PY_VERSION\s+"([0-9.]+)[^"]*"', re.MULTILINE)
_GLIBC: Final = re.compile(rb"GLIBC_2\.(\d{1,3})\0")
_LIBRARY: Final = re.compile(r"lib/libpython3[^/]*\.so[^/]*")
_BLOCK: Final = 1024 * 1024
_OVERLAP: Final = 16  # longer than any version that the pattern finds
_ELF: Final = {62: "x86_64", 183: "aarch64"}  # e_machine, elf(5)
_MACH_O: Final = {0x01000007: "x86_64", 0x0100000C: "aarch64"}  # cputype, mach/machine.h
_PE: Final = {0x8664: "x86_64", 0xAA64: "aarch64"}  # Machine, Microsoft's PE format


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What was found in an archive; ``glibc`` is the highest minor version that is asked for."""

    program: str
    is_program: bool = False
    kind: str = ""
    version: str = ""
    glibc: int = 0
    has_musl: bool = False
    folders: set[str] = field(default_factory=set)


def check_archive(path: Path, target: Target, label: str) -> str:
    """Return the version, ``3.N.M``, of the CPython in an archive that fits ``target``.

    Args:
        path: The archive.
        target: What the bundle is for.
        label: What to call the archive in messages.

    Raises:
        IntegrityError: It isn't an archive of the ``install_only`` layout, or something in it leads out of it.
        SpecError: It is for another Python, machine or system, or needs a newer glibc than the target has.
    """
    seen = _read(path, target, label)
    where = f"{label}: {TOP}/{seen.program}"
    if not seen.is_program:
        hint = "the archive has to be one of python-build-standalone's, `install_only`, for the target's Python"
        raise SpecError(f"{where}: there is no such program, so this is no CPython {target.python}", hint=hint)
    if not seen.version:
        raise IntegrityError(f"{label}: nothing in it says its version: no patchlevel.h with PY_VERSION")
    if seen.version.rpartition(".")[0] != target.python:
        raise SpecError(f"{label}: is CPython {seen.version}, the target is Python {target.python}")
    _check_kind(seen, target, where)
    return seen.version


def unpacked_size(path: Path) -> int:
    """Return about how many bytes a checked archive needs once unpacked: what ends a gzip file (RFC 1952), and a tenth.

    Raises:
        IntegrityError: There is no such archive.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(-4, os.SEEK_END)
            return int.from_bytes(stream.read(4), "little") * 11 // 10
    except OSError as error:
        msg = f"the interpreter's archive is not in the store: {error.strerror}"
        raise IntegrityError(msg, hint="bundler lock SPEC fetches it again") from None


def _read(path: Path, target: Target, label: str) -> _Seen:
    seen = _Seen(program=program_path(target.python, target.platform))
    with path.open("rb") as stream:
        for member, content in read_archive(stream, label):
            if content is None:
                continue
            if member.path == seen.program:
                seen.is_program = member.executable or "windows" in target.platform
                seen.kind = _scan(content, seen)
            elif _LIBRARY.fullmatch(member.path):
                _scan(content, seen)
            elif _is_patchlevel(member) and (match := _VERSION.search(content.read(_BLOCK))):
                seen.version = match[1].decode("ascii")
    return seen


def _is_patchlevel(member: ArchiveMember) -> bool:
    return member.path.startswith("include/") and member.path.endswith("/patchlevel.h")


def _scan(content: Readable, seen: _Seen) -> str:
    """Read a program or library to its end, note what it asks of the C library, and return what it runs on."""
    head = tail = content.read(_BLOCK)
    while tail:
        versions = [int(number) for number in _GLIBC.findall(tail)]
        seen.glibc = max([seen.glibc, *versions])
        seen.has_musl = seen.has_musl or b"/ld-musl-" in tail
        block = content.read(_BLOCK)
        tail = tail[-_OVERLAP:] + block if block else b""
    return _kind(head)


def _kind(head: bytes) -> str:
    """Return machine and system of a program by its first bytes, empty when it is neither of those known here."""
    try:
        if head[:6] == b"\x7fELF\x02\x01":
            return f"{_ELF.get(struct.unpack_from('<H', head, 18)[0], 'an unknown machine')} Linux"
        if head[:4] == b"\xcf\xfa\xed\xfe":
            return f"{_MACH_O.get(struct.unpack_from('<I', head, 4)[0], 'an unknown machine')} macOS"
        if head[:2] == b"MZ":
            (start,) = struct.unpack_from("<I", head, 0x3C)
            if head[start : start + 4] == b"PE\0\0":
                return f"{_PE.get(struct.unpack_from('<H', head, start + 4)[0], 'an unknown machine')} Windows"
    except struct.error:
        pass
    return ""


def _check_kind(seen: _Seen, target: Target, where: str) -> None:
    machine, _, system = target.platform.partition("-")
    name = "macOS" if system == "apple-darwin" else "Windows" if "windows" in system else "Linux"
    if seen.kind != f"{machine} {name}":
        raise SpecError(f"{where}: is for {seen.kind or 'no system that is known'}, the target is {machine} {name}")
    if name != "Linux":
        return
    if seen.has_musl:
        raise SpecError(f"{where}: is made for musl, the target's wheels for glibc", hint="take the archive named gnu")
    level = int(match[1]) if (match := re.fullmatch(r"manylinux_2_(\d+)", system)) else 17
    if seen.glibc > level:
        raise SpecError(f"{where}: needs glibc 2.{seen.glibc}, a host of {target.platform} may have 2.{level}")
