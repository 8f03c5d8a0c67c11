"""Whether a wheel is what its RECORD says, checked when it is locked, since pip and uv don't.

The closed side recomputes what an environment must hold from the RECORDs inside the signed wheels, so a RECORD that is
incomplete would be a blind spot there. What is refused: a member's name twice, a name that leaves the wheel's folder or
means something else on another system, a link, a member without a line in RECORD and a line without a member, another
size or digest, another name or version in METADATA than in the file's name, an entry point that is no plain name.

Lenient on purpose, because real wheels are so and it is harmless: members for folders (NumPy, PyYAML), which installers
skip; signatures beside RECORD (``RECORD.jws``, ``RECORD.p7s``), which the wheel specification leaves out of it;
sha384 and sha512 in RECORD; names that differ only in case, which Linux keeps apart and the closed side checks; a
version that is spelled otherwise but equal (PEP 440). Unlike in a bundle, member names may have spaces or ``*``.
"""

import base64
import configparser
import csv
import hashlib
import io
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Final

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from bundler.store import Store
from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError
from manifests.fields import shown

_HASHES: Final = ("sha256", "sha384", "sha512")
_UNLISTED: Final = ("RECORD.jws", "RECORD.p7s")
_MAX_RECORD: Final = 64 * 1024 * 1024
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_COMMAND: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +-]*")
_TARGET: Final = re.compile(r"[\w.]+(?:\s*:\s*[\w.]+)?(?:\s*\[[\w\s,.-]*\])?")
_RECORD_KIND: Final = "wheel-check"
_RULES: Final = 1
"""Counted up when a check is added, so that wheels which passed before are checked again."""


def check_stored_wheel(store: Store, sha256: str, filename: str) -> None:
    """Check a wheel of the store once; that it passed is recorded, so that warm locks don't read it again.

    Raises:
        IntegrityError: Names the wheel and the member.
        SourceError: It isn't in the store.
    """
    key = f"{sha256} {filename}"
    if store.record(_RECORD_KIND, key) == _RULES:
        return
    store.open(sha256).close()
    check_wheel(store.path(sha256), filename)
    store.write_record(_RECORD_KIND, key, _RULES)


def check_wheel(path: Path, filename: str) -> None:
    """Check that a wheel's content, RECORD, METADATA and entry points agree.

    Args:
        path: Where it lies.
        filename: Its name in an index, such as ``six-1.17.0-py2.py3-none-any.whl``.

    Raises:
        IntegrityError: Names the wheel, the member, and expected against got.
    """
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        raise IntegrityError(f"{shown(filename)}: not the name of a wheel") from None
    try:
        with zipfile.ZipFile(path) as archive:
            problem = next(_problems(archive, str(name), version), None)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError) as error:
        problem = f"not a readable zip: {str(error)[:200]}"
    except OSError as error:
        raise IntegrityError(f"{filename}: can't be read: {error.strerror or error}") from error
    if problem is not None:
        hint = "ask the project for a wheel that is whole, or pin another version"
        raise IntegrityError(f"{filename}: {problem}", hint=hint)


def _problems(archive: zipfile.ZipFile, name: str, version: Version) -> Iterator[str]:
    """Yield what is wrong; lazily, since later checks need what earlier ones made sure of."""
    members = archive.infolist()
    yield from _member_problems(members)
    files = {member.filename: member for member in members if not member.is_dir()}
    infos = {path.split("/", 1)[0] for path in files if path.split("/", 1)[0].endswith(".dist-info")}
    if len(infos) != 1:
        yield f"has {len(infos)} .dist-info folders, expected 1"
    (info,) = infos
    for needed in (f"{info}/RECORD", f"{info}/METADATA", f"{info}/WHEEL"):
        if needed not in files:
            yield f"{needed}: missing"
        if files[needed].file_size > _MAX_RECORD:
            yield f"{needed}: {files[needed].file_size} bytes, at most {_MAX_RECORD} are allowed"
    yield from _record_problems(archive, files, info)
    yield from _metadata_problems(archive, info, name, version)
    if f"{info}/entry_points.txt" in files:
        yield from _entry_point_problems(archive.read(f"{info}/entry_points.txt"), f"{info}/entry_points.txt")


def _member_problems(members: list[zipfile.ZipInfo]) -> Iterator[str]:
    seen: set[str] = set()
    for member in members:
        path = member.filename.rstrip("/") if member.is_dir() else member.filename
        if path in seen:
            yield f"{shown(path)}: is in the zip twice"
        seen.add(path)
        if problem := _path_problem(member.orig_filename.rstrip("/") if member.is_dir() else member.orig_filename):
            yield f"{shown(member.orig_filename)}: {problem}"
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in {0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG}:
            yield f"{shown(path)}: is a link or a device, not a file"
        if member.flag_bits & 0x1:
            yield f"{shown(path)}: is encrypted"
    yield from _clashes({member.filename for member in members if not member.is_dir()})


def _clashes(files: set[str]) -> Iterator[str]:
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if (parent := "/".join(parts[:depth])) in files:
                yield f"{shown(parent)}: is a file and a folder"


def _path_problem(path: str) -> str | None:
    if not path.isprintable():
        return "has a control or invisible character"
    if "\\" in path or ":" in path:
        return "has a backslash or a colon"
    components = path.split("/")
    if any(component in {"", ".", ".."} for component in components):
        return "leaves the wheel's folder, or isn't a plain relative path"
    if any(_DEVICE.fullmatch(component) for component in components):
        return "has a Windows device name"
    return None


def _record_problems(archive: zipfile.ZipFile, files: Mapping[str, zipfile.ZipInfo], info: str) -> Iterator[str]:
    own = f"{info}/RECORD"
    try:
        rows = [row for row in csv.reader(io.StringIO(archive.read(own).decode("utf-8")), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        yield f"{own}: not readable: {error}"
        return
    if bad := next((row for row in rows if len(row) != 3), None):
        yield f"{own}: {shown(','.join(bad))}: expected PATH,HASH,SIZE"
    listed = {path: (digest, size) for path, digest, size in rows}
    if len(listed) != len(rows):
        yield f"{own}: lists a file twice"
    exempt = {own, *(f"{info}/{name}" for name in _UNLISTED)}
    for path in sorted(files.keys() - listed.keys() - exempt):
        yield f"{shown(path)}: is not in RECORD"
    for path in sorted(listed.keys() - files.keys()):
        yield f"{shown(path)}: is in RECORD, but not in the wheel"
    for path in sorted(listed.keys() - exempt):
        yield from _content_problems(archive, files[path], *listed[path])


def _content_problems(archive: zipfile.ZipFile, member: zipfile.ZipInfo, digest: str, size: str) -> Iterator[str]:
    path, (algorithm, _, expected) = shown(member.filename), digest.partition("=")
    if algorithm not in _HASHES:
        yield f"{path}: RECORD has {shown(digest)!r}, expected a sha256"
    if size != str(member.file_size):
        yield f"{path}: {member.file_size} bytes, RECORD says {shown(size)}"
    hasher = hashlib.new(algorithm)
    with archive.open(member) as stream:
        while data := stream.read(BUFFER_SIZE):
            hasher.update(data)
    got = base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode("ascii")
    if got != expected.rstrip("="):
        yield f"{path}: expected {algorithm} {shown(expected)}, got {got}"


def _metadata_problems(archive: zipfile.ZipFile, info: str, name: str, version: Version) -> Iterator[str]:
    metadata = BytesHeaderParser().parsebytes(archive.read(f"{info}/METADATA"))
    for where, got_name, got_version in (
        (f"{info}/METADATA", metadata.get("Name", ""), metadata.get("Version", "")),
        (info, *info.removesuffix(".dist-info").partition("-")[::2]),
    ):
        if canonicalize_name(got_name) != name:
            yield f"{where}: is for {shown(got_name)!r}, the file's name says {name!r}"
        if not _same_version(got_version, version):
            yield f"{where}: is version {shown(got_version)!r}, the file's name says {str(version)!r}"


def _same_version(text: str, version: Version) -> bool:
    try:
        return Version(text.replace("_", "+") if "+" not in text else text) == version
    except InvalidVersion:
        return False


def _entry_point_problems(data: bytes, where: str) -> Iterator[str]:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign] # as the entry points specification asks for
    try:
        parser.read_string(data.decode("utf-8"))
    except (UnicodeDecodeError, configparser.Error) as error:
        yield f"{where}: not readable: {' '.join(str(error).split())[:200]}"
        return
    for group in {"console_scripts", "gui_scripts"}.intersection(parser.sections()):
        for command, target in parser[group].items():
            if not _COMMAND.fullmatch(command) or _DEVICE.fullmatch(command):
                yield f"{where}: {shown(command)!r} is not the name of a command"
            if not _TARGET.fullmatch(target):
                yield f"{where}: {shown(command)} points at {target[:200]!r}, expected MODULE:NAME"
