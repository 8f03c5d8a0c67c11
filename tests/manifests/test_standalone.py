"""Archives of interpreters: what is read, and what is refused before anything is written."""

import gzip
import io
import tarfile
from collections.abc import Iterable

import pytest

from manifests.errors import IntegrityError
from manifests.standalone import ArchiveMember, archive_path, archive_version, find_archive, program_path, read_archive
from tests.factories import make_manifest
from tests.factories_python import member, tar_gz

LABEL = "cpython.tar.gz"


def read(data: bytes) -> list[tuple[ArchiveMember, bytes | None]]:
    found = read_archive(io.BytesIO(data), LABEL)
    return [(item, content.read() if content else None) for item, content in found]


def archive(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    return tar_gz((info, data if info.isreg() else b"") for info in members)


def test_members_come_in_order_with_the_folders_above_them() -> None:
    data = archive(
        member("python/bin/python3.11", mode=0o775),
        member("python/bin/python3", link="python3.11"),
        member("python/lib", kind=tarfile.DIRTYPE),
        member("python/lib/a/b.py"),
        member("python/lib/c", link="python/lib/a/b.py", kind=tarfile.LNKTYPE),
        member("python/lib/d", link="../lib/a"),
        data=b"x",
    )
    time = 1_700_000_000
    assert read(data) == [
        (ArchiveMember(path="bin", kind="folder"), None),
        (ArchiveMember(path="bin/python3.11", kind="file", executable=True, size=1, mtime=time), b"x"),
        (ArchiveMember(path="bin/python3", kind="link", target="python3.11"), None),
        (ArchiveMember(path="lib", kind="folder"), None),
        (ArchiveMember(path="lib/a", kind="folder"), None),
        (ArchiveMember(path="lib/a/b.py", kind="file", size=1, mtime=time), b"x"),
        (ArchiveMember(path="lib/c", kind="copy", mtime=time, target="lib/a/b.py"), None),
        (ArchiveMember(path="lib/d", kind="link", target="../lib/a"), None),
    ]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([member("evil")], "'evil' does not lie in python/, where an interpreter's archive has all"),
        ([member("/python/a")], "'/python/a' does not lie in python/"),
        ([member("python/../a")], "'python/../a' does not lie in python/"),
        ([member("python/./a")], "'python/./a' does not lie in python/"),
        ([member("python//a")], "'python//a' does not lie in python/"),
        ([member("python/a\nb")], "'python/a\\nb' does not lie in python/"),
        ([member("python/a"), member("python/a")], "'python/a' comes twice"),
        ([member("python/a"), member("python/a", kind=tarfile.DIRTYPE)], "'python/a' comes twice"),
        ([member("python/a"), member("python/a/b")], "python/a/b lies below python/a, which is no folder"),
        ([member("python/a", link="b"), member("python/a/c")], "python/a/c lies below python/a, which is no folder"),
        ([member("python/a", link="/etc")], "'python/a' is a link out of python/, to '/etc'"),
        ([member("python/a", link="../b")], "'python/a' is a link out of python/, to '../b'"),
        ([member("python/a/b", link="../../c")], "'python/a/b' is a link out of python/, to '../../c'"),
        ([member("python/a/b", link="c/../../..")], "'python/a/b' is a link out of python/, to 'c/../../..'"),
        ([member("python/a/b", link="..")], "'python/a/b' is a link out of python/, to '..'"),
        (
            [member("python/a", link="../etc/passwd", kind=tarfile.LNKTYPE)],
            "'../etc/passwd' does not lie in python/",
        ),
        (
            [member("python/a", link="python/b", kind=tarfile.LNKTYPE)],
            "'python/a' is a link to 'python/b', which is no file so far",
        ),
        ([member("python/a", kind=tarfile.FIFOTYPE)], "'python/a' is neither a file, a folder nor a link"),
        ([member("python/a", kind=tarfile.CHRTYPE)], "'python/a' is neither a file, a folder nor a link"),
        ([member("python", link="x")], "'python' comes twice"),
        ([member("python/a", mode=0o4755)], "'python/a' has mode 4755"),
    ],
    ids=lambda value: None if isinstance(value, str) else value[-1].name,
)
def test_what_is_refused(members: Iterable[tarfile.TarInfo], problem: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(archive(*members))
    assert caught.value.message.startswith(f"{LABEL}: {problem}")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk" * 999,
        gzip.compress(b"junk" * 999),
        archive(member("python/a"), data=bytes(99_999))[:60],
        gzip.compress(gzip.decompress(archive(member("python/a"), data=bytes(99_999)))[:5000]),
    ],
    ids=["empty", "junk", "gzipped junk", "cut short", "cut inside"],
)
def test_damage(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^cpython\.tar\.gz: not a readable \.tar\.gz: "):
        read(data)


def test_more_than_an_interpreter_needs() -> None:
    info = member("python/a")
    info.size = 5 << 30
    with pytest.raises(IntegrityError, match=r"more than an interpreter needs: 1 members, 5368709120 bytes"):
        read(gzip.compress(info.tobuf()))


def test_the_archive_of_a_bundle() -> None:
    path = archive_path("3.11.9", "x86_64-manylinux_2_28")
    assert path == "bootstrap/cpython-3.11.9-x86_64-manylinux_2_28.tar.gz"
    carried = find_archive(make_manifest({path: b"x", "bootstrap/cpython.tar.gz": b"y"}))
    assert carried is not None
    assert (carried.path, archive_version(carried)) == (path, "3.11.9")
    assert find_archive(make_manifest({"bootstrap/runtime.pyz": b"x", f"app/{path}": b"x"})) is None


def test_where_the_program_lies() -> None:
    assert program_path("3.12", "aarch64-apple-darwin") == "bin/python3.12"
    assert program_path("3.12", "x86_64-pc-windows-msvc") == "python.exe"
