"""A package index on the loopback (PEP 503 and 691), and torch-shaped stand-ins: wheels that hold only metadata."""

import base64
import contextlib
import hashlib
import json
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from packaging.utils import canonicalize_name

from tests.factories_wheels import make_wheel

JSON_TYPE: Final = "application/vnd.pypi.simple.v1+json"
TORCH_VERSION: Final = "2.13.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleIndex:
    """A running index.

    ``url`` is what pip and uv are given (``http://127.0.0.1:PORT/simple``), without the login; ``requests`` grows with
    every request, as ``STATUS PATH``; ``pages`` holds the projects whose pages were asked for with success.
    """

    url: str
    auth: tuple[str, str] | None = None
    requests: list[str] = field(default_factory=list)

    @property
    def url_with_login(self) -> str:
        """The url with ``user:password@``, as people write it into pip's configuration."""
        if self.auth is None:
            return self.url
        user, password = (quote(part, safe="") for part in self.auth)
        return self.url.replace("://", f"://{user}:{password}@", 1)

    @property
    def pages(self) -> set[str]:
        """Names of the projects whose page was given out."""
        found = (re.fullmatch(r"200 /simple/([^/]+)/", line) for line in list(self.requests))
        return {match[1] for match in found if match}

    @property
    def downloads(self) -> set[str]:
        """Names of the files that were given out whole or in part, metadata not counted."""
        found = (re.fullmatch(r"20[06] /files/(.+)", line) for line in list(self.requests))
        return {match[1] for match in found if match and not match[1].endswith(".metadata")}


@contextlib.contextmanager
def simple_index(
    projects: Mapping[str, Iterable[Path]],
    *,
    auth: tuple[str, str] | None = None,
    sizes: bool = True,
    metadata: bool = True,
) -> Iterator[SimpleIndex]:
    """Serve wheels and sdists as a package index on the loopback until the block ends.

    Args:
        projects: Name -> files; more can be added to a file's folder only before.
        auth: User and password without which everything answers 401; None for an open index.
        sizes: Whether pages say how big a file is.
        metadata: Whether wheels' METADATA can be had by itself (PEP 658).
    """
    files: dict[str, list[Path]] = {
        canonicalize_name(name): [Path(path) for path in paths] for name, paths in projects.items()
    }
    content = _Content(files=files, sizes=sizes, metadata=metadata)
    server = _Server(content, auth)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield SimpleIndex(url=f"http://127.0.0.1:{server.server_port}/simple", auth=auth, requests=server.requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    files: Mapping[str, list[Path]]
    sizes: bool
    metadata: bool

    def answer(self, path: str, *, as_json: bool) -> tuple[str, bytes] | None:
        """Return content type and body for a path, or None."""
        if path == "/simple/":
            return self._root(as_json=as_json)
        if match := re.fullmatch(r"/simple/([^/]+)/", path):
            return self._page(match[1], as_json=as_json)
        if match := re.fullmatch(r"/files/([^/]+)", path):
            return self._file(match[1])
        return None

    def _root(self, *, as_json: bool) -> tuple[str, bytes]:
        if as_json:
            document = {"meta": {"api-version": "1.1"}, "projects": [{"name": name} for name in sorted(self.files)]}
            return JSON_TYPE, json.dumps(document).encode()
        links = "".join(f'<a href="/simple/{name}/">{name}</a>\n' for name in sorted(self.files))
        return "text/html", f"<!DOCTYPE html><html><body>\n{links}</body></html>".encode()

    def _page(self, name: str, *, as_json: bool) -> tuple[str, bytes] | None:
        if name not in self.files:
            return None
        entries = [self._entry(path) for path in self.files[name]]
        if as_json:
            document = {"meta": {"api-version": "1.1"}, "name": name, "versions": [], "files": entries}
            return JSON_TYPE, json.dumps(document).encode()
        links = "".join(map(_link, entries))
        return "text/html", f"<!DOCTYPE html><html><body>\n{links}</body></html>".encode()

    def _entry(self, path: Path) -> dict[str, object]:
        data = path.read_bytes()
        entry: dict[str, object] = {
            "filename": path.name,
            "url": f"/files/{quote(path.name)}",
            "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
            "upload-time": "2026-01-02T03:04:05.000000Z",
        }
        if self.sizes:
            entry["size"] = len(data)
        if path.suffix == ".whl":
            metadata = read_metadata(path)
            requires = BytesHeaderParser().parsebytes(metadata).get("Requires-Python")
            entry |= {"requires-python": requires} if requires else {}
            if self.metadata:
                entry["core-metadata"] = {"sha256": hashlib.sha256(metadata).hexdigest()}
        return entry

    def _file(self, name: str) -> tuple[str, bytes] | None:
        wanted = name.removesuffix(".metadata") if self.metadata else name
        found = next((path for paths in self.files.values() for path in paths if path.name == wanted), None)
        if found is None or not found.exists():
            return None
        return "application/octet-stream", read_metadata(found) if name != wanted else found.read_bytes()


def _link(entry: Mapping[str, object]) -> str:
    hashes = entry["hashes"]
    assert isinstance(hashes, dict)
    attributes = (
        f' data-requires-python="{escape(str(entry["requires-python"]))}"' if "requires-python" in entry else ""
    )
    if "core-metadata" in entry:
        attributes += ' data-dist-info-metadata="true" data-core-metadata="true"'
    return f'<a href="{entry["url"]}#sha256={hashes["sha256"]}"{attributes}>{entry["filename"]}</a><br>\n'


class _Handler(BaseHTTPRequestHandler):
    """One connection to the index."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Say nothing; requests are noted instead."""

    def _serve(self) -> None:
        path, as_json = unquote(urlsplit(self.path).path), JSON_TYPE in self.headers.get("Accept", "")
        expected = self.server.expected
        if expected is not None and self.headers.get("Authorization") != expected:
            self._send(401, "text/plain", b"login, please", {"WWW-Authenticate": 'Basic realm="index"'})
        elif (found := self.server.content.answer(path, as_json=as_json)) is None:
            self._send(404, "text/plain", b"no such page", {})
        else:
            self._send_range(*found)

    def _send_range(self, kind: str, body: bytes) -> None:
        match = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", self.headers.get("Range", ""))
        if match is None or not (match[1] or match[2]):
            self._send(200, kind, body, {"Accept-Ranges": "bytes"})
            return
        start = int(match[1]) if match[1] else max(len(body) - int(match[2]), 0)
        end = min(int(match[2]) + 1, len(body)) if match[1] and match[2] else len(body)
        self._send(206, kind, body[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"})

    def _send(self, status: int, kind: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.server.requests.append(f"{status} {unquote(urlsplit(self.path).path)}")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content: _Content, auth: tuple[str, str] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.expected = f"Basic {base64.b64encode(':'.join(auth).encode()).decode()}" if auth else None
        self.requests: list[str] = []


def read_metadata(wheel: Path) -> bytes:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name)


def by_project(folder: Path) -> dict[str, list[Path]]:
    """Return the wheels and sdists of a folder by project, as :func:`simple_index` takes them."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")]):
        stem = path.name.split("-", 1)[0] if path.suffix == ".whl" else path.name.rpartition("-")[0]
        found.setdefault(canonicalize_name(stem), []).append(path)
    return found


PYTHONS: Final = ("311", "312", "313")
NVIDIA: Final = ("cublas", "cuda-nvrtc", "cuda-runtime", "cudnn", "nccl", "nvtx")


def make_torch_stand_ins(folder: Path) -> Path:
    """Write torch-shaped stand-ins: metadata-only wheels with the names, tags, versions and requirements of PyTorch's.

    ``folder/public`` is like the public index: a plain version, which is CUDA 13 on Linux, CPU on Windows and Metal on
    a Mac; libraries of CUDA 12 and 13; and ``tinylib`` and ``winlib`` (on Windows only), which every torch here needs.
    ``folder/cpu``, ``folder/cu126`` and ``folder/cu130`` are like PyTorch's own, with torch alone.
    """
    everywhere = ["manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "macosx_14_0_arm64", "win_amd64"]
    _torch(folder / "public", "", everywhere, _nvidia("13", "platform_system == 'Linux'"))
    _torch(folder / "cpu", "+cpu", ["manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "win_amd64"], [])
    _torch(folder / "cpu", "", ["macosx_14_0_arm64"], [])
    for label, major in (("cu126", "12"), ("cu130", "13")):
        machine = "platform_system == 'Linux' and platform_machine == 'x86_64'"
        _torch(folder / label, f"+{label}", ["manylinux_2_28_x86_64", "win_amd64"], _nvidia(major, machine))
    for machine in ("x86_64", "aarch64"):
        for name in (f"nvidia-{name}-cu{major}" for name in NVIDIA for major in ("12", "13")):
            make_wheel(folder / "public", name, f"{name[-2:]}.1", tag=f"py3-none-manylinux_2_27_{machine}")
        for python in PYTHONS:
            make_wheel(folder / "public", "triton", "3.6.0", tag=f"cp{python}-cp{python}-manylinux_2_27_{machine}")
    make_wheel(folder / "public", "tinylib", "1.0")
    make_wheel(folder / "public", "winlib", "1.0")
    return folder


def _torch(folder: Path, local: str, platforms: Iterable[str], nvidia: list[str]) -> None:
    requires = ["tinylib>=1", 'winlib>=1; sys_platform == "win32"', *nvidia]
    for tag in (f"cp{python}-cp{python}-{platform}" for python in PYTHONS for platform in platforms):
        headers = ["Requires-Python: >=3.10"]
        make_wheel(folder, "torch", f"{TORCH_VERSION}{local}", requires=requires, tag=tag, headers=headers)


def _nvidia(major: str, marker: str) -> list[str]:
    names = [f"nvidia-{name}-cu{major}=={major}.1" for name in NVIDIA]
    return [f"{item}; {marker}" for item in (*names, "triton==3.6.0")]
