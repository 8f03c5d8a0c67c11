"""An archive in the layout of python-build-standalone's ``install_only``, made of the Python that runs the tests."""

import functools
import gzip
import io
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from manifests.digests import sha256_hex
from manifests.manifest import Target
from manifests.standalone import archive_path
from tests.factories import Content
from tests.factories_closed import HOST_TARGET, PYTHON, cache_folder
from tests.factories_closed import program as find_program

VERSION: Final = ".".join(map(str, sys.version_info[:3]))
LIBC: Final = os.confstr("CS_GNU_LIBC_VERSION") or "glibc 2.36"
# The Python of the tests is compiled for this system's own glibc, not for an old one as the real archives are.
OWN_TARGET: Final = Target(
    platform=HOST_TARGET.platform.replace("2_28", LIBC.split()[1].replace(".", "_")), python=PYTHON, accelerator="cpu"
)
ARCHIVE_PATH: Final = archive_path(VERSION, OWN_TARGET.platform)
_LEFT_OUT: Final = ("__pycache__", "site-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter")


def tar_gz(members: Iterator[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Return a gzipped tar, the same bytes for the same members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)


def member(path: str, *, link: str = "", kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> tarfile.TarInfo:
    """Return the header of one member."""
    info = tarfile.TarInfo(path)
    info.mode, info.mtime, info.linkname = mode, 1_700_000_000, link
    info.type = tarfile.SYMTYPE if link and kind == tarfile.REGTYPE else kind
    return info


@functools.cache
def python_archive() -> bytes:
    """Return the archive; made once for all runs with this very Python."""
    base = Path(sys.base_prefix)
    made = cache_folder() / f"cpython-{VERSION}-{sha256_hex(str(base).encode())[:8]}.tar.gz"
    if not made.exists():
        partial = made.with_name(f"{made.name}.{os.getpid()}.partial")
        partial.write_bytes(tar_gz(_members(base)))
        partial.replace(made)
    return made.read_bytes()


def with_python(files: dict[str, Content], archive: bytes | None = None) -> dict[str, Content]:
    """Return the payload ``files`` with the interpreter's archive beside it."""
    return {**files, ARCHIVE_PATH: python_archive() if archive is None else archive}


def _members(base: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    program = base / f"bin/python{PYTHON}"
    yield member(f"python/bin/python{PYTHON}", mode=0o755), _movable(program.read_bytes(), base)
    yield member("python/bin/python3", link=f"python{PYTHON}"), b""
    yield member(f"python/include/python{PYTHON}/patchlevel.h"), f'#define PY_VERSION "{VERSION}"\n'.encode()
    for path in _libraries(program, base):
        yield member(f"python/lib/{path.name}", mode=0o755), _movable(path.read_bytes(), base)
    standard = Path(sysconfig.get_path("stdlib"))
    for path in sorted(standard.rglob("*")):
        inside = path.relative_to(standard)
        if path.is_file() and not any(part in _LEFT_OUT or part.startswith("config-") for part in inside.parts):
            yield member(f"python/lib/python{PYTHON}/{inside}"), path.read_bytes()
    # As the real ones have: two names of one file.
    yield member("python/lib/first"), b"terminal\n"
    yield member("python/lib/second", link="python/lib/first", kind=tarfile.LNKTYPE), b""


def _libraries(program: Path, base: Path) -> Iterator[Path]:
    """Yield the shared libraries below ``base`` that the program needs."""
    done = subprocess.run([find_program("ldd"), str(program)], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) > 2 and words[2].startswith(f"{base}/"):
            yield Path(words[2])


def _movable(data: bytes, base: Path) -> bytes:
    """Return an ELF file that looks for its libraries beside itself rather than at the place it was built for."""
    old = f"{base}/lib".encode() + b"\0"
    return data.replace(b"\0" + old, b"\0" + b"$ORIGIN/../lib".ljust(len(old), b"\0"), 1)
