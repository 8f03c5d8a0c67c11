"""The carried interpreter on the builder's side: where it comes from, what is refused, how it gets into a bundle."""

import functools
import hashlib
import http.server
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.lock import LockedPython, load_lock
from bundler.packages.interpreter import lock_python, uv_request
from bundler.packages.interpreter_check import check_archive, unpacked_size
from bundler.spec import PythonSpec, Spec
from bundler.store import Store
from manifests.errors import IntegrityError, SourceError, SpecError
from manifests.manifest import Target, parse_manifest
from manifests.medium import open_medium
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_closed import HOST_TARGET
from tests.factories_python import ARCHIVE_PATH, OWN_TARGET, VERSION, member, python_archive, tar_gz

TARGET = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
LABEL = "a.tar.gz"

SYSCONFIG = b"# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"


def elf(machine: int = 62, words: bytes = b"GLIBC_2.17\0") -> bytes:
    """Return the beginning of a program for Linux that asks for symbols of these versions."""
    return b"\x7fELF\x02\x01\x01" + bytes(11) + struct.pack("<H", machine) + words


def mach_o(machine: int = 0x0100000C) -> bytes:
    return b"\xcf\xfa\xed\xfe" + struct.pack("<I", machine) + bytes(99)


def pe(machine: int = 0x8664) -> bytes:
    return b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80) + bytes(0x40) + b"PE\0\0" + struct.pack("<H", machine)


def archive(
    program: bytes = b"",
    *,
    version: str = "3.11.9",
    name: str = "bin/python3.11",
    library: bytes = b"",
    mode: int = 0o755,
) -> bytes:
    """Return a small archive of the layout."""
    members = [
        (member(f"python/{name}", mode=mode), program or elf()),
        (member("python/include/python3.11/patchlevel.h"), f'/* */\n#define PY_VERSION      "{version}"\n'.encode()),
        # uv adapts this file in its own copy, and wants it to be there.
        (member("python/lib/python3.11/_sysconfigdata__linux_x86_64-linux-gnu.py"), SYSCONFIG),
    ]
    if library:
        members.append((member("python/lib/libpython3.11.so.1.0"), library))
    return tar_gz(iter(members))


def check(folder: Path, data: bytes, **target: str) -> str:
    (folder / LABEL).write_bytes(data)
    return check_archive(folder / LABEL, replace(TARGET, **target), LABEL)


@pytest.mark.parametrize(
    ("data", "target"),
    [
        (archive(), {}),
        (archive(elf(183)), {"platform": "aarch64-manylinux_2_17"}),
        (archive(mach_o()), {"platform": "aarch64-apple-darwin"}),
        (archive(pe(), name="python.exe", mode=0o644), {"platform": "x86_64-pc-windows-msvc"}),
        (archive(elf(words=bytes(1 << 20) + b"GLIBC_2.28\0")), {}),
    ],
)
def test_archives_that_fit(tmp_path: Path, data: bytes, target: dict[str, str]) -> None:
    assert check(tmp_path, data, **target) == "3.11.9"


PROGRAM = f"{LABEL}: python/bin/python3.11"


@pytest.mark.parametrize(
    ("data", "target", "problem"),
    [
        (
            archive(name="bin/python3.12"),
            {},
            f"{PROGRAM}: there is no such program, so this is no CPython 3.11",
        ),
        (archive(mode=0o644), {}, f"{PROGRAM}: there is no such program, so this is no CPython 3.11"),
        (archive(version="3.12.1"), {}, f"{LABEL}: is CPython 3.12.1, the target is Python 3.11"),
        (archive(elf(183)), {}, f"{PROGRAM}: is for aarch64 Linux, the target is x86_64 Linux"),
        (archive(mach_o()), {}, f"{PROGRAM}: is for aarch64 macOS, the target is x86_64 Linux"),
        (archive(elf(40)), {}, f"{PROGRAM}: is for an unknown machine Linux, the target is x86_64 Linux"),
        (archive(b"#!/bin/sh\n"), {}, f"{PROGRAM}: is for no system that is known, the target is x86_64 Linux"),
        (
            archive(),
            {"platform": "aarch64-apple-darwin"},
            f"{PROGRAM}: is for x86_64 Linux, the target is aarch64 macOS",
        ),
        (
            archive(pe(0xAA64), name="python.exe"),
            {"platform": "x86_64-pc-windows-msvc"},
            f"{LABEL}: python/python.exe: is for aarch64 Windows, the target is x86_64 Windows",
        ),
        (
            archive(elf(words=b"GLIBC_2.17\0GLIBC_2.34\0")),
            {},
            f"{PROGRAM}: needs glibc 2.34, a host of x86_64-manylinux_2_28 may have 2.28",
        ),
        (
            archive(elf(words=bytes((1 << 20) - 25) + b"GLIBC_2.34\0")),
            {},
            f"{PROGRAM}: needs glibc 2.34, a host of x86_64-manylinux_2_28 may have 2.28",
        ),
        (
            archive(library=elf(words=b"GLIBC_2.38\0")),
            {},
            f"{PROGRAM}: needs glibc 2.38, a host of x86_64-manylinux_2_28 may have 2.28",
        ),
        (
            archive(elf(words=b"/lib/ld-musl-x86_64.so.1\0")),
            {},
            f"{PROGRAM}: is made for musl, the target's wheels for glibc",
        ),
    ],
)
def test_archives_that_do_not_fit(tmp_path: Path, data: bytes, target: dict[str, str], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(tmp_path, data, **target)
    assert caught.value.message == problem


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"junk" * 99, f"{LABEL}: not a readable .tar.gz: "),
        (
            tar_gz(iter([(member("python/bin/x", link="/etc/passwd"), b"")])),
            f"{LABEL}: 'python/bin/x' is a link out of",
        ),
        (
            tar_gz(iter([(member("python/bin/python3.11", mode=0o755), elf())])),
            f"{LABEL}: nothing in it says its version: no patchlevel.h with PY_VERSION",
        ),
    ],
)
def test_what_is_no_archive(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        check(tmp_path, data)
    assert caught.value.message.startswith(problem)


def test_the_archive_of_this_python_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / LABEL).write_bytes(python_archive())
    assert check_archive(tmp_path / LABEL, OWN_TARGET, LABEL) == VERSION
    assert 30_000_000 < unpacked_size(tmp_path / LABEL) < 300_000_000
    with pytest.raises(IntegrityError, match="the interpreter's archive is not in the store: No such file"):
        unpacked_size(tmp_path / "none")


# Where it comes from.


class Site(http.server.SimpleHTTPRequestHandler):
    """A loopback site: ``/short`` ends too early, ``/gone`` is missing."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path != "/short":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 400)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Yield address, folder and the paths asked for of a site on this host."""
    folder, asked = tmp_path / "site", list[str]()
    folder.mkdir()
    handler = functools.partial(type("Asked", (Site,), {"asked": asked}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder, asked
        server.shutdown()
        thread.join()


def spec_of(folder: Path, python: PythonSpec | None, target: Target = TARGET) -> Spec:
    return Spec(path=folder / "demo.toml", name="demo", version="1.0.0", target=target, python=python)


def lock(
    folder: Path, python: PythonSpec, previous: LockedPython | None = None, target: Target = TARGET
) -> LockedPython:
    locked = lock_python(spec_of(folder, python, target), Store(folder / "cache"), previous)
    assert locked is not None
    return locked


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_nothing_is_carried_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert lock_python(spec_of(tmp_path, None), Store(tmp_path / "cache")) is None


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "my.tar.gz").write_bytes(archive())
    locked = lock(tmp_path, PythonSpec(source="my.tar.gz", sha256=sha256(archive())))
    assert (locked.version, locked.file.path) == ("3.11.9", "bootstrap/cpython-3.11.9-x86_64-manylinux_2_28.tar.gz")
    assert (locked.file.origin, locked.file.source) == ("pkg:generic/cpython@3.11.9", "local my.tar.gz")
    assert (locked.file.size, locked.file.sha256) == (len(archive()), sha256(archive()))
    assert Store(tmp_path / "cache").path(sha256(archive())).read_bytes() == archive()


def test_another_file_than_promised(tmp_path: Path) -> None:
    (tmp_path / "my.tar.gz").write_bytes(archive())
    with pytest.raises(IntegrityError) as caught:
        lock(tmp_path, PythonSpec(source="my.tar.gz", sha256="0" * 64))
    expected = f"{tmp_path}/my.tar.gz: expected sha256 {'0' * 64}, got {sha256(archive())}"
    assert caught.value.message == expected
    with pytest.raises(SourceError, match=r"none\.tar\.gz: No such file"):
        lock(tmp_path, PythonSpec(source="none.tar.gz", sha256="0" * 64))


def test_from_a_url_once(tmp_path: Path, site: tuple[str, Path, list[str]]) -> None:
    address, folder, asked = site
    (folder / "a.tar.gz").write_bytes(archive())
    python = PythonSpec(source=f"{address.replace('//', '//me:secret@')}/a.tar.gz?key=1", sha256=sha256(archive()))
    locked = lock(tmp_path, python)
    assert (locked.version, locked.file.source) == ("3.11.9", f"index {address}/a.tar.gz")
    assert lock(tmp_path, python) == locked
    assert asked == ["/a.tar.gz?key=1"]


@pytest.mark.parametrize(
    ("path", "error", "problem"),
    [
        ("/gone", SourceError, "HOST answers 404 for http://HOST/gone"),
        ("/short", SourceError, "can't fetch http://HOST/short: it ends 600 bytes too early"),
        ("/other", IntegrityError, "http://HOST/other: expected sha256 " + "0" * 64),
    ],
)
def test_a_url_that_fails(
    *, tmp_path: Path, site: tuple[str, Path, list[str]], path: str, error: type[SourceError], problem: str
) -> None:
    address, folder, _ = site
    (folder / "other").write_bytes(b"other")
    with pytest.raises(error) as caught:
        lock(tmp_path, PythonSpec(source=address + path, sha256="0" * 64))
    assert caught.value.message.startswith(problem.replace("HOST", address.removeprefix("http://")))
    assert "0" * 64 not in Store(tmp_path / "cache")


def test_a_url_that_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        lock(tmp_path, PythonSpec(source="http://127.0.0.1:9/a.tar.gz", sha256="0" * 64))
    assert caught.value.message == "can't fetch http://127.0.0.1:9/a.tar.gz: connection refused"
    assert caught.value.hint is not None
    assert 'then write: [python] file = "...", sha256 = "..."' in caught.value.hint


@pytest.fixture
def downloads(tmp_path: Path, site: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let uv know of 3.11.8 and 3.11.9 on the loopback site; return its list."""
    address, folder, _ = site
    (folder / "a.tar.gz").write_bytes(archive())
    entry = {
        "name": "cpython",
        "arch": {"family": "x86_64", "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": 3,
        "minor": 11,
        "prerelease": "",
        "variant": None,
        "build": "20240814",
        "url": f"{address}/a.tar.gz",
        "sha256": sha256(archive()),
    }
    known = {f"cpython-3.11.{patch}-linux-x86_64-gnu": {**entry, "patch": patch} for patch in (8, 9)}
    listed = tmp_path / "downloads.json"
    listed.write_text(json.dumps(known))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", listed.as_uri())
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    return listed


@pytest.mark.parametrize("version", ["3.11", "3.11.9"])
def test_by_version_through_uv(tmp_path: Path, downloads: Path, version: str) -> None:
    assert downloads.exists()
    locked = lock(tmp_path, PythonSpec(version=version))
    assert (locked.version, locked.file.sha256) == ("3.11.9", sha256(archive()))
    assert locked.file.source == f"uv cpython-{version}-linux-x86_64-gnu"


def test_the_version_of_the_last_lock_is_kept(tmp_path: Path, downloads: Path) -> None:
    first = lock(tmp_path, PythonSpec(version="3.11"))
    downloads.write_text("{}")
    assert lock(tmp_path, PythonSpec(version="3.11"), first) == first
    with pytest.raises(SourceError):
        lock(tmp_path, PythonSpec(version="3.11.8"), first)
    Store(tmp_path / "cache").drop(first.file.sha256)
    with pytest.raises(SourceError):
        lock(tmp_path, PythonSpec(version="3.11"), first)


def test_uv_checks_what_it_downloads(tmp_path: Path, downloads: Path, site: tuple[str, Path, list[str]]) -> None:
    assert downloads.exists()
    (site[1] / "a.tar.gz").write_bytes(archive(version="3.11.7"))
    with pytest.raises(SourceError, match=r"uv can't download cpython-3\.11\.9-linux-x86_64-gnu: .*Hash mismatch"):
        lock(tmp_path, PythonSpec(version="3.11.9"))


def test_a_download_that_fails_tells_how_to_go_on(tmp_path: Path, downloads: Path) -> None:
    downloads.write_text(downloads.read_text().replace("a.tar.gz", "gone.tar.gz"))
    with pytest.raises(SourceError) as caught:
        lock(tmp_path, PythonSpec(version="3.11.9"))
    assert caught.value.message.startswith("uv can't download cpython-3.11.9-linux-x86_64-gnu: Failed to install")
    assert "gone.tar.gz" in caught.value.message
    assert caught.value.hint == (
        "download the `install_only` archive elsewhere (python-build-standalone's releases list them with their "
        'sha256), then write: [python] file = "...", sha256 = "..."'
    )


def test_another_version_than_the_target_s(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        lock(tmp_path, PythonSpec(version="3.12"))
    assert caught.value.message == f"{tmp_path}/demo.toml: python.version: 3.12 is not the target's Python, 3.11"
    assert caught.value.hint == 'version = "3.11" takes the newest of it'
    with pytest.raises(SpecError):
        lock(tmp_path, PythonSpec(version="3.1"))


def test_what_uv_is_asked_for() -> None:
    def request(platform: str) -> str:
        return uv_request("3.12", replace(TARGET, platform=platform))

    assert request("aarch64-manylinux_2_28") == "cpython-3.12-linux-aarch64-gnu"
    assert request("aarch64-apple-darwin") == "cpython-3.12-macos-aarch64-none"
    assert request("x86_64-pc-windows-msvc") == "cpython-3.12-windows-x86_64-none"


def test_a_bundle_carries_it(tmp_path: Path) -> None:
    (tmp_path / "python.tar.gz").write_bytes(python_archive())
    more = f'[python]\nfile = "python.tar.gz"\nsha256 = "{sha256(python_archive())}"\n'
    spec = write_spec(tmp_path / "demo.toml", "six", more=more)
    spec.write_text(spec.read_text().replace(HOST_TARGET.platform, OWN_TARGET.platform))
    builder = Builder(folder=tmp_path, links=(wheel_links(),))
    built = builder.json("build", "demo.toml", "--output", "out", "--no-rehearsal", "--unsigned")
    locked = load_lock(tmp_path / "demo.lock").python
    assert locked is not None
    assert (locked.version, locked.file.path) == (VERSION, ARCHIVE_PATH)
    with open_medium(tmp_path / built["bundle"]) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
    (entry,) = [entry for entry in manifest.files if entry.path == ARCHIVE_PATH]
    assert (entry.kind, entry.mode, entry.sha256) == ("bootstrap", 0o644, locked.file.sha256)
    assert entry.origin == f"pkg:generic/cpython@{VERSION}"
    unpacked = manifest.launch["unpacked-size"]
    assert isinstance(unpacked, int)
    assert unpacked > 30_000_000
    sums = next((tmp_path / "out").glob("*.kit/SHA256SUMS")).read_text()
    assert f"{entry.sha256}  {Path(ARCHIVE_PATH).name}\n" in sums
    before = (tmp_path / "demo.lock").read_bytes()
    assert builder.run("lock", "demo.toml").returncode == 0
    assert (tmp_path / "demo.lock").read_bytes() == before
