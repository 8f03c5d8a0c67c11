"""Wheels that contradict themselves are refused when they are locked, each by the name of its member."""

import base64
import hashlib
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bundler.packages.fetch import fetch_pins
from bundler.packages.pipconfig import PipConfig
from bundler.packages.resolver import UvResolver
from bundler.packages.wheelcheck import check_stored_wheel, check_wheel
from bundler.store import Store
from manifests.errors import IntegrityError
from tests.factories import TARGET
from tests.factories_closed import fetch_wheels
from tests.factories_wheels import make_wheel

NAME = "lib-1.0-py3-none-any.whl"
INFO = "lib-1.0.dist-info"
METADATA = b"Metadata-Version: 2.1\nName: lib\nVersion: 1.0\n"
WHEEL = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
Members = dict[str, bytes]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm}={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def members(more: Mapping[str, bytes] = {}) -> Members:  # read only
    return {"lib/__init__.py": b"x = 1\n", f"{INFO}/METADATA": METADATA, f"{INFO}/WHEEL": WHEEL, **more}


def record(files: Mapping[str, bytes], *extra: str, without: str = "") -> bytes:
    lines = [f'"{path}",{digest_of(data)},{len(data)}' for path, data in files.items() if path != without]
    return "".join(f"{line}\n" for line in (*lines, f"{INFO}/RECORD,,", *extra)).encode()


def write(folder: Path, files: Mapping[str, bytes], listed: bytes | None = None, *also: tuple[str, bytes, int]) -> Path:
    """Write a wheel; ``also`` are more members: name, content, and mode with kind."""
    path = folder / NAME
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
        for name, data, mode in also:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
        archive.writestr(zipfile.ZipInfo(f"{INFO}/RECORD"), record(files) if listed is None else listed)
    return path


def refusal(path: Path, name: str = NAME) -> str:
    with pytest.raises(IntegrityError) as caught:
        check_wheel(path, name)
    assert caught.value.exit_code == 5
    return caught.value.message


@pytest.mark.parametrize("name", sorted(fetch_wheels()))
def test_real_wheels_pass(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(fetch_wheels()[name])
    check_wheel(tmp_path / name, name)


def test_what_real_wheels_have_and_is_harmless(tmp_path: Path) -> None:
    files = members({"lib/a b,c*.txt": b"", "lib/A.py": b"", "lib/a.py": b"", f"{INFO}/entry_points.txt": SCRIPTS})
    listed = record(files, without="lib/a.py") + f"lib/a.py,{digest_of(b'', 'sha512')},0\n".encode()
    folder = ("lib/", b"", stat.S_IFDIR | 0o755)
    signature = (f"{INFO}/RECORD.jws", b"{}", stat.S_IFREG | 0o644)
    check_wheel(write(tmp_path, files, listed, folder, signature), NAME)
    check_wheel(tmp_path / NAME, "Lib-1.0.0-py3-none-any.whl")


SCRIPTS = b"[console_scripts]\nlib = lib.cli:main\nlib-2.5 = lib : main [extra]\n\n[lib.plugins]\na/b = lib:x\n"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../evil.py", "../evil.py: leaves the wheel's folder, or isn't a plain relative path"),
        ("lib/../../evil.py", "leaves the wheel's folder"),
        ("/etc/passwd", "/etc/passwd: leaves the wheel's folder"),
        ("lib//a.py", "lib//a.py: leaves the wheel's folder, or isn't a plain relative path"),
        ("lib\\..\\evil.py", "lib\\..\\evil.py: has a backslash or a colon"),
        ("C:/evil.py", "C:/evil.py: has a backslash or a colon"),
        ("lib/aux.py", "lib/aux.py: has a Windows device name"),
        ("lib/NUL", "lib/NUL: has a Windows device name"),
        ("lib/a\nb.py", r"'lib/a\nb.py': has a control or invisible character"),
        ("lib/\u202eyp.py", r"'lib/\u202eyp.py': has a control or invisible character"),
        ("lib/a.py\0.txt", "has a control or invisible character"),
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, path: str, words: str) -> None:
    files = members()
    made = write(tmp_path, files, None, ("lib/PLACE", b"", stat.S_IFREG | 0o644))
    raw = path.encode()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
        place = zipfile.ZipInfo("p" * len(raw))
        archive.writestr(place, b"")
    # zipfile cuts and normalises names when it writes, so the name is put into the bytes.
    data = made.read_bytes().replace(b"p" * len(raw), raw)
    made.write_bytes(data if path.isascii() else set_utf8_flags(data, raw))
    assert words in refusal(made)


def set_utf8_flags(data: bytes, name: bytes) -> bytes:
    """Set bit 11 of the flags in the local and the central header of ``name``."""
    changed, position = bytearray(data), -1
    while (position := data.find(name, position + 1)) >= 0:
        local = data[position - 30 : position - 26] == b"PK\3\4"
        changed[position - (30 - 7 if local else 46 - 9)] |= 0x08
    return bytes(changed)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(stat.S_IFLNK, "is a link or a device"), (stat.S_IFIFO, "is a link"), (stat.S_IFCHR, "is a link")],
)
def test_links_and_devices(tmp_path: Path, kind: int, words: str) -> None:
    files = members({"lib/link": b"/etc/passwd"})
    made = write(tmp_path, members(), record(files), ("lib/link", b"/etc/passwd", kind | 0o777))
    assert refusal(made) == f"{NAME}: lib/link: is a link or a device, not a file"
    assert words in refusal(made)


def test_a_member_twice(tmp_path: Path) -> None:
    made = write(tmp_path, members(), None, ("lib/__init__.py", b"evil", stat.S_IFREG | 0o644))
    assert refusal(made) == f"{NAME}: lib/__init__.py: is in the zip twice"


def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    made = write(tmp_path, members({"lib": b""}))
    assert refusal(made) == f"{NAME}: lib: is a file and a folder"


def relisted(change: Callable[[str], str]) -> bytes:
    return change(record(members()).decode()).encode()


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (record(members(), without="lib/__init__.py"), "lib/__init__.py: is not in RECORD"),
        (record(members(), "lib/gone.py,sha256=x,1"), "lib/gone.py: is in RECORD, but not in the wheel"),
        (record(members(), "lib/__init__.py,,"), f"{INFO}/RECORD: lists a file twice"),
        (record(members(), "lib/x.py,sha256=x"), f"{INFO}/RECORD: lib/x.py,sha256=x: expected PATH,HASH,SIZE"),
        (
            record(members({"lib/__init__.py": b"x = 2\n"})),
            f"lib/__init__.py: expected {digest_of(b'x = 2' + bytes([10]))}"[:60].replace("sha256=", "sha256 "),
        ),
        (relisted(lambda text: text.replace(",6\n", ",7\n")), "lib/__init__.py: 6 bytes, RECORD says 7"),
        (relisted(lambda text: text.replace(",6\n", ",\n")), "lib/__init__.py: 6 bytes, RECORD says "),
        (relisted(lambda text: text.replace("sha256=", "md5=", 1)), "lib/__init__.py: RECORD has 'md5="),
        (
            relisted(lambda text: text.replace(digest_of(b"x = 1\n"), "")),
            "lib/__init__.py: RECORD has '', expected a sha256",
        ),
        (b"\xff\xfe", f"{INFO}/RECORD: not readable: "),
        (b'"open', f"{INFO}/RECORD: not readable: "),
    ],
)
def test_a_record_that_is_wrong(tmp_path: Path, listed: bytes, words: str) -> None:
    assert refusal(write(tmp_path, members(), listed)).startswith(f"{NAME}: {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[console_scripts]\n../evil = lib:main\n", "'../evil' is not the name of a command"),
        (b"[console_scripts]\n/bin/sh = lib:main\n", "'/bin/sh' is not the name of a command"),
        (b"[gui_scripts]\na\\b = lib:main\n", r"'a\\b' is not the name of a command"),
        (b"[console_scripts]\nnul = lib:main\n", "'nul' is not the name of a command"),
        (
            b"[console_scripts]\nlib = lib:main; import os\n",
            "lib points at 'lib:main; import os', expected MODULE:NAME",
        ),
        (b"[console_scripts]\nlib = a:b\nlib = c:d\n", "not readable: "),
        (b"lib = a:b\n", "not readable: "),
        (b"\xff", "not readable: "),
    ],
)
def test_entry_points_that_are_no_names(tmp_path: Path, text: bytes, words: str) -> None:
    message = refusal(write(tmp_path, members({f"{INFO}/entry_points.txt": text})))
    assert message.startswith(f"{NAME}: {INFO}/entry_points.txt: "), message
    assert words.replace("\\\\", "\\") in message.replace("\\\\", "\\")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (b"Name: other\nVersion: 1.0\n", f"{INFO}/METADATA: is for 'other', the file's name says 'lib'"),
        (b"Name: lib\nVersion: 1.1\n", f"{INFO}/METADATA: is version '1.1', the file's name says '1.0'"),
        (b"Name: lib\n", f"{INFO}/METADATA: is version '', the file's name says '1.0'"),
    ],
)
def test_metadata_of_something_else(tmp_path: Path, metadata: bytes, words: str) -> None:
    assert refusal(write(tmp_path, members({f"{INFO}/METADATA": metadata}))) == f"{NAME}: {words}"


def test_names_of_the_file_itself(tmp_path: Path) -> None:
    made = write(tmp_path, members())
    assert refusal(made, "lib.whl") == "lib.whl: not the name of a wheel"
    assert refusal(made, "lib-2.0-py3-none-any.whl").endswith("METADATA: is version '1.0', the file's name says '2.0'")


@pytest.mark.parametrize(
    ("without", "words"), [("METADATA", f"{INFO}/METADATA: missing"), ("WHEEL", f"{INFO}/WHEEL: missing")]
)
def test_parts_that_are_missing(tmp_path: Path, without: str, words: str) -> None:
    files = {name: data for name, data in members().items() if not name.endswith(without)}
    assert refusal(write(tmp_path, files)) == f"{NAME}: {words}"


def test_what_is_no_wheel(tmp_path: Path) -> None:
    made = tmp_path / NAME
    made.write_bytes(b"PK not a zip")
    assert refusal(made) == f"{NAME}: not a readable zip: File is not a zip file"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("lib.py", b"")
    assert refusal(made) == f"{NAME}: has 0 .dist-info folders, expected 1"


def test_lock_refuses_once_and_records_what_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links, store = tmp_path / "links", Store(tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    good = make_wheel(links, "good", "1.0", entry_points="[console_scripts]\ngood = good:main\n")
    resolver = UvResolver(config=PipConfig(no_index=True, find_links=(str(links),)))
    (locked,) = fetch_pins(resolver.resolve(["good"], TARGET, {}).pins, store, TARGET)
    store.path(locked.sha256).chmod(0o644)
    store.path(locked.sha256).write_bytes(b"x" * good.stat().st_size)
    check_stored_wheel(store, locked.sha256, good.name)  # it passed before, so it isn't read again
    make_wheel(links, "bad", "1.0", entry_points="[console_scripts]\n../bad = bad:main\n")
    pins = resolver.resolve(["bad"], TARGET, {}).pins
    for _ in range(2):
        with pytest.raises(
            IntegrityError, match=r"^bad-1.0-py3-none-any.whl: .*'../bad' is not the name of a command$"
        ):
            fetch_pins(pins, store, TARGET)
