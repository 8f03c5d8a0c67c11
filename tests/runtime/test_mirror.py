"""The mirror at the level of HTTP: pages, files, ranges, the hub's answers, the export, and requests that mean harm."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from huggingface_hub import HfApi

from manifests.errors import DiskError, IntegrityError, TrustError, UsageError
from manifests.manifest import ModelEntry
from manifests.pieces import Silent
from manifests.trust import parse_allowed_signers
from runtime.layout import Prefix
from runtime.mirror.catalog import Catalog, Snapshot, load_catalog, repository_names
from runtime.mirror.export import export
from runtime.mirror.hub import tree
from runtime.mirror.nginx import render_nginx
from runtime.mirror.replies import Site
from runtime.mirror.requests import BadTargetError, accepted_type, base_url, is_known, parse_range, parse_request
from runtime.mirror.server import MirrorServer
from runtime.mirror.sources import open_releases, require_digests
from runtime.verify import VerifyOptions
from tests.factories import NOW, Key
from tests.factories_cli import ROOT
from tests.factories_closed import closed_files, make_closed_bundle, make_host, wheel_named
from tests.factories_wheels import make_wheel

OLD: Final = "a" * 40
NEW: Final = "b" * 40
WEIGHTS: Final = bytes(range(256)) * 40
JSON_TYPE: Final = "application/vnd.pypi.simple.v1+json"


def model(name: str, origin: str) -> ModelEntry:
    return ModelEntry(name=name, adapter="bge-m3", path=f"models/{name}", format="safetensors", origin=origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A prefix with two releases, 2.0.0 live, and whom it trusts."""

    prefix: Prefix
    options: VerifyOptions
    trust: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, closed_key: Key) -> Installed:
    """1.0.0 with six, clash and a model of the Hub; 2.0.0 with another clash, another commit, a model of ours."""
    folder = tmp_path_factory.mktemp("mirror")
    host = make_host(folder / "home")
    for version, commit in (("1.0.0", OLD), ("2.0.0", NEW)):
        headers = ["Requires-Python: >=3.8,<4"]
        clash = make_wheel(folder / version, "clash", "1.0", files={"clash.py": version.encode()}, headers=headers)
        models: tuple[ModelEntry, ...] = (model("tiny", f"pkg:huggingface/Org/Tiny@{commit}"),)
        files: dict[str, bytes | int] = {
            f"wheels/{clash.name}": clash.read_bytes(),
            "models/tiny/config.json": b"{}\n",
            "models/tiny/model.safetensors": WEIGHTS + version.encode(),
            "models/tiny/1_Pooling/config.json": b'{"a": 1}\n',
        }
        if version == "2.0.0":
            models = (model("own", ""), *models)
            files |= {"models/own/config.json": b"[]\n", "models/own/\ubb38\uc11c.txt": b"hangul\n"}
        payload = closed_files("six", extra=files, models=models, version=version)
        sequence = 1767323045 + len(models)
        more: dict[str, Any] = {"models": models, "version": version, "sequence": sequence}
        bundle = make_closed_bundle(folder / version, closed_key, files=payload, **more)
        words = ("install", bundle.tar, "--prefix", folder / "prefix", "--trust", bundle.trust, "--no-smoke")
        done = host.runtime(bundle.pyz, *words)
        assert done.returncode == 0, done.stderr
    trust = parse_allowed_signers(bundle.trust.read_text(), where="trust")
    options = VerifyOptions(trust=trust, trust_source="test", now=NOW, depth="quick", models=False)
    return Installed(prefix=Prefix(path=folder / "prefix"), options=options, trust=bundle.trust)


@pytest.fixture(scope="module")
def catalog(two: Installed) -> Iterator[Catalog]:
    with open_releases(two.prefix, two.options, pytest.fail) as releases:
        yield load_catalog(releases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: status, headers with names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 # JSON, as json.loads gives it
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A mirror that answers, and the lines of its log."""

    server: MirrorServer
    log: list[str]

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(status=found.status, headers=names, body=found.read())

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; return everything until the server closes."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as connection:
            connection.sendall(data)
            found = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    found += part
            return found


@contextlib.contextmanager
def serving(catalog: Catalog, **options: float) -> Iterator[Running]:
    log: list[str] = []
    with MirrorServer(("127.0.0.1", 0), catalog, log.append, **options) as server:  # type: ignore[arg-type] # numbers all
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Running(server=server, log=log)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def mirror(catalog: Catalog) -> Iterator[Running]:
    with serving(catalog) as running:
        yield running


class TestIndex:
    """Pages, wheels and their metadata."""

    def test_the_list_of_projects(self, mirror: Running) -> None:
        found = mirror.ask("/simple/", Accept=JSON_TYPE)
        assert found.headers["content-type"] == JSON_TYPE
        assert found.headers["vary"] == "Accept"
        assert found.json == {
            "meta": {"api-version": "1.1"},
            "projects": [{"name": name} for name in ("clash", "sealift", "six", "uv")],
        }
        page = mirror.ask("/simple/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert b'<a href="six/">six</a><br>' in page.body

    def test_a_project_names_url_hash_metadata_and_python(self, mirror: Running, two: Installed) -> None:
        found = mirror.ask("/simple/clash/", Accept=JSON_TYPE).json
        wheel = two.prefix.require_live().path / "wheels/clash-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel) as archive:
            metadata = hashlib.sha256(archive.read("clash-1.0.dist-info/METADATA")).hexdigest()
        assert found["versions"] == ["1.0"]
        assert found["files"] == [
            {
                "filename": wheel.name,
                "url": f"../../wheels/{wheel.name}",
                "hashes": {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()},
                "size": wheel.stat().st_size,
                "requires-python": ">=3.8,<4",
                "core-metadata": {"sha256": metadata},
                "dist-info-metadata": {"sha256": metadata},
            }
        ]
        html = mirror.ask("/simple/clash/").body.decode()
        assert 'data-requires-python="&gt;=3.8,&lt;4"' in html
        assert f'data-core-metadata="sha256={metadata}" data-dist-info-metadata="sha256={metadata}"' in html
        assert f'href="../../wheels/{wheel.name}#sha256={found["files"][0]["hashes"]["sha256"]}"' in html

    def test_a_wheel_and_its_metadata_are_the_bytes(self, mirror: Running) -> None:
        name, data = wheel_named("six")
        found = mirror.ask(f"/wheels/{name}")
        assert (found.status, found.body) == (200, data)
        assert found.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
        assert found.headers["accept-ranges"] == "bytes"
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert mirror.ask(f"/wheels/{name}.metadata").body == archive.read("six-1.17.0.dist-info/METADATA")

    def test_the_live_release_wins_and_the_other_is_named(self, catalog: Catalog, mirror: Running) -> None:
        data = mirror.ask("/wheels/clash-1.0-py3-none-any.whl").body
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.read("clash.py") == b"2.0.0"
        (note,) = catalog.notes
        assert re.fullmatch(r"1\.0\.0-\w{12}: wheels/clash-\S+ is left out: 2\.0\.0-\w{12} has another .*", note)

    @pytest.mark.parametrize(
        ("path", "location"),
        [("/simple", "/simple/"), ("/simple/six", "/simple/six/"), ("/simple/SIX/", "/simple/six/")],
    )
    def test_other_spellings_are_sent_on(self, mirror: Running, path: str, location: str) -> None:
        found = mirror.ask(path)
        assert (found.status, found.headers["location"]) == (301, location)

    @pytest.mark.parametrize(
        "path", ["/simple/torch/", "/simple/six/x", "/wheels/", "/wheels/six", "/nothing", "/api/x"]
    )
    def test_what_is_not_there(self, mirror: Running, path: str) -> None:
        assert mirror.ask(path).status == 404

    def test_the_front_page_and_health(self, mirror: Running) -> None:
        assert mirror.ask("/health").body == b"ok\n"
        assert mirror.ask("/").body.decode().splitlines() == [
            "index: /simple/ (4 projects)",
            "",
            "models (HF_ENDPOINT is this address):",
            *("Org/Tiny", "own", "tiny"),
        ]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "text/html"),
        ("*/*", "text/html"),
        ("text/html", "text/html"),
        (JSON_TYPE, JSON_TYPE),
        ("application/vnd.pypi.simple.latest+json", JSON_TYPE),
        (f"{JSON_TYPE}, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01", JSON_TYPE),
        (f"{JSON_TYPE};q=0.1, application/vnd.pypi.simple.v1+html", "application/vnd.pypi.simple.v1+html"),
        (f"{JSON_TYPE};q=0", "text/html"),
    ],
)
def test_the_type_of_a_page(accept: str | None, expected: str) -> None:
    assert accepted_type(accept) == expected


class TestHub:
    """What the hub's clients ask for."""

    def test_model_info(self, mirror: Running) -> None:
        found = mirror.ask("/api/models/Org/Tiny?blobs=true").json
        assert (found["id"], found["sha"]) == ("Org/Tiny", NEW)
        (weights,) = [item for item in found["siblings"] if item["rfilename"] == "model.safetensors"]
        data = WEIGHTS + b"2.0.0"
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        blob = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()
        lfs = {"sha256": sha256, "size": len(data), "pointerSize": len(pointer)}
        assert weights == {"rfilename": "model.safetensors", "size": len(data), "blobId": blob, "lfs": lfs}
        plain = mirror.ask("/api/models/Org/Tiny").json["siblings"]
        assert plain == [{"rfilename": item["rfilename"]} for item in found["siblings"]]

    @pytest.mark.parametrize(("revision", "version"), [("main", "2.0.0"), (NEW, "2.0.0"), (OLD, "1.0.0")])
    @pytest.mark.parametrize("name", ["Org/Tiny", "tiny"])
    def test_a_file_of_a_revision(self, mirror: Running, name: str, revision: str, version: str) -> None:
        found = mirror.ask(f"/{name}/resolve/{revision}/model.safetensors")
        assert found.body == WEIGHTS + version.encode()
        assert found.headers["x-repo-commit"] == (OLD if version == "1.0.0" else NEW)
        assert found.headers["etag"] == f'"{hashlib.sha256(found.body).hexdigest()}"'
        info = mirror.ask(f"/api/models/{name}/revision/{revision}").json
        assert info["sha"] == found.headers["x-repo-commit"]

    def test_a_model_without_a_commit_gets_one_from_its_bytes(self, mirror: Running) -> None:
        sha = mirror.ask("/api/models/own").json["sha"]
        assert re.fullmatch("[0-9a-f]{40}", sha)
        path = "/own/resolve/main/%EB%AC%B8%EC%84%9C.txt"
        found = mirror.ask(path)
        assert (found.body, found.headers["x-repo-commit"]) == (b"hangul\n", sha)

    def test_the_tree(self, mirror: Running) -> None:
        found = mirror.ask(f"/api/models/tiny/tree/{NEW}?recursive=true&expand=false")
        assert [(item["type"], item["path"]) for item in found.json] == [
            ("directory", "1_Pooling"),
            ("file", "1_Pooling/config.json"),
            ("file", "config.json"),
            ("file", "model.safetensors"),
        ]
        assert found.json[2]["lfs"]["oid"] == hashlib.sha256(b"{}\n").hexdigest()
        assert {len(item["oid"]) for item in found.json} == {40}
        flat = mirror.ask("/api/models/tiny/tree/main").json
        assert [item["path"] for item in flat] == ["1_Pooling", "config.json", "model.safetensors"]
        inner = mirror.ask("/api/models/tiny/tree/main/1_Pooling").json
        assert [item["path"] for item in inner] == ["1_Pooling/config.json"]

    def test_the_tree_comes_in_pages(self, catalog: Catalog) -> None:
        site, target, paths = Site(catalog, page_size=3), "/api/models/tiny/tree/main?recursive=true", []
        while target:
            reply = site.reply(parse_request(target, {"host": "mirror:8080"}))
            paths.append([item["path"] for item in json.loads(reply.body)])
            link = re.fullmatch(r'<http://mirror:8080(/.*)>; rel="next"', reply.headers.get("Link", ""))
            target = link[1] if link else ""
        assert paths == [["1_Pooling", "1_Pooling/config.json", "config.json"], ["model.safetensors"]]

    def test_the_hub_s_own_client_follows_the_pages(self, catalog: Catalog) -> None:
        with serving(catalog) as running:
            running.server.site = Site(catalog, page_size=2)
            api = HfApi(endpoint=f"http://127.0.0.1:{running.server.port}", token=False)
            found = [item.path for item in api.list_repo_tree("Org/Tiny", recursive=True)]
        assert found == ["1_Pooling", "1_Pooling/config.json", "config.json", "model.safetensors"]
        assert len([line for line in running.log if "/tree/" in line]) == 2

    def test_refs_and_the_list(self, mirror: Running) -> None:
        refs = mirror.ask("/api/models/tiny/refs").json
        assert refs["branches"] == [{"name": "main", "ref": "refs/heads/main", "targetCommit": NEW}]
        assert [item["id"] for item in mirror.ask("/api/models").json] == ["Org/Tiny", "own", "tiny"]

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("/api/models/Org/Other", "RepoNotFound"),
            ("/Org/Other/resolve/main/config.json", "RepoNotFound"),
            ("/api/models/tiny/revision/v2", "RevisionNotFound"),
            ("/tiny/resolve/refs%2fpr%2f1/config.json", ""),
            ("/tiny/resolve/v2/config.json", "RevisionNotFound"),
            ("/tiny/resolve/main/adapter_config.json", "EntryNotFound"),
            ("/api/models/tiny/tree/main/additional_chat_templates", "EntryNotFound"),
        ],
    )
    def test_what_is_not_there_has_a_code(self, mirror: Running, path: str, code: str) -> None:
        found = mirror.ask(path)
        assert found.status == (404 if code else 400)
        assert found.headers.get("x-error-code", "") == code
        assert ("x-repo-commit" in found.headers) == (code == "EntryNotFound")

    def test_names(self) -> None:
        commit = "0" * 40
        assert repository_names(model("m3", f"pkg:huggingface/BAAI/bge-m3@{commit}")) == ("BAAI/bge-m3", "m3")
        assert repository_names(model("gpt2", f"pkg:huggingface/gpt2@{commit}")) == ("gpt2",)
        assert repository_names(model("m3", "pkg:pypi/some-model@1.0")) == ("m3",)
        assert repository_names(model("m3", f"pkg:huggingface/%2e%2e/etc@{commit}")) == ("m3",)

    def test_an_empty_tree_has_no_root(self) -> None:
        assert tree(Snapshot(commit=OLD, created="", files={}), "", recursive=True) is None


class TestTransfer:
    """Ranges, conditions, HEAD, connections, the log."""

    PATH: Final = "/tiny/resolve/main/model.safetensors"
    DATA: Final = WEIGHTS + b"2.0.0"

    @pytest.mark.parametrize(
        ("asked", "start", "end"),
        [("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=10000-", 10000, None), ("bytes=-5", -5, None)],
    )
    def test_a_range(self, mirror: Running, asked: str, start: int, end: int | None) -> None:
        found = mirror.ask(self.PATH, Range=asked)
        assert (found.status, found.body) == (206, self.DATA[start:end])
        first = start % len(self.DATA)
        assert found.headers["content-range"] == f"bytes {first}-{first + len(found.body) - 1}/{len(self.DATA)}"
        assert found.headers["content-length"] == str(len(found.body))

    @pytest.mark.parametrize("asked", ["bytes=999999-", "bytes=-0"])
    def test_a_range_that_is_not_there(self, mirror: Running, asked: str) -> None:
        found = mirror.ask(self.PATH, Range=asked)
        assert (found.status, found.headers["content-range"]) == (416, f"bytes */{len(self.DATA)}")

    @pytest.mark.parametrize(
        "asked",
        [
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=0-1,3-4",
            "lines=0-1",
            f"bytes={'9' * 30}-",
            "bytes=--1",
        ],
    )
    def test_a_range_that_is_none_is_ignored(self, mirror: Running, asked: str) -> None:
        found = mirror.ask(self.PATH, Range=asked)
        assert (found.status, found.body) == (200, self.DATA)

    def test_if_range_of_other_bytes_gives_all(self, mirror: Running) -> None:
        etag = mirror.ask(self.PATH, "HEAD").headers["etag"]
        assert mirror.ask(self.PATH, Range="bytes=0-1", If_Range=etag).status == 206
        assert mirror.ask(self.PATH, Range="bytes=0-1", If_Range='"other"').status == 200

    def test_head_says_what_get_would(self, mirror: Running) -> None:
        for path in (self.PATH, "/simple/six/", "/wheels/none.whl"):
            head, got = mirror.ask(path, "HEAD"), mirror.ask(path)
            assert (head.status, head.body) == (got.status, b"")
            assert {**head.headers, "date": ""} == {**got.headers, "date": ""}

    def test_what_the_client_has_is_not_sent_again(self, mirror: Running) -> None:
        for path in (self.PATH, "/simple/six/"):
            etag = mirror.ask(path).headers["etag"]
            found = mirror.ask(path, If_None_Match=f'"x", W/{etag}')
            assert (found.status, found.body) == (304, b"")
            assert "content-length" not in found.headers
            assert mirror.ask(path, If_None_Match='"x"').status == 200

    def test_many_requests_on_one_connection(self, mirror: Running) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", mirror.server.port, timeout=20)
        with contextlib.closing(connection):
            for path in ("/health", self.PATH, "/nothing", "/health"):
                connection.request("GET", path)
                connection.getresponse().read()
                sock = connection.sock
                assert sock is not None, f"{path} ended the connection"

    def test_the_log_has_a_line_for_each(self, catalog: Catalog) -> None:
        with serving(catalog) as running:
            running.ask(self.PATH, Range="bytes=0-9")
        (line,) = running.log
        pattern = rf'127\.0\.0\.1 - - \[[^]]+\] "GET {self.PATH} HTTP/1\.1" 206 10 \d\.\d{{3}}'
        assert re.fullmatch(pattern, line)


class TestHostile:
    """Requests that no client of ours sends."""

    @pytest.mark.parametrize(
        "path",
        [
            "/../../../../etc/passwd",
            "/wheels/../receipt.json",
            "/wheels/..%2freceipt.json",
            "/wheels/%2e%2e/receipt.json",
            "/wheels/..\\receipt.json",
            "/tiny/resolve/main/../../../../etc/passwd",
            "/tiny/resolve/main/%2e%2e/%2e%2e/receipt.json",
            "/tiny/resolve/main/%2fetc%2fpasswd",
            "/tiny/resolve/main/1_Pooling%2fconfig.json",
            "/tiny/resolve/main//config.json",
            "/tiny/resolve/main/config.json%00.txt",
            "/tiny/resolve/main/%0d%0aSet-Cookie:%20a",
            "/tiny/resolve/main/%ff%fe",
            f"/{'a' * 9000}",
            f"/simple/?{'&'.join(f'a{number}=' for number in range(60))}",
            "simple/",
            "*",
        ],
    )
    def test_a_target_that_means_harm(self, mirror: Running, path: str) -> None:
        found = mirror.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
        head = found.partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"Set-Cookie" not in head
        assert b"root:" not in found

    @pytest.mark.parametrize("path", ["/receipt.json", "/manifest.json", "/venv/bin/python", "/etc/passwd", "/tiny"])
    def test_what_no_manifest_lists_as_wheel_or_model(self, mirror: Running, path: str) -> None:
        assert mirror.ask(path).status == 404

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    def test_a_method_that_would_change_something(self, mirror: Running, method: str) -> None:
        found = mirror.ask("/simple/", method)
        assert (found.status, found.headers["allow"], found.headers["connection"]) == (405, "GET, HEAD", "close")

    def test_an_unknown_method_and_an_unknown_protocol(self, mirror: Running) -> None:
        assert mirror.raw(b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 501 ")
        assert b"505 Invalid HTTP version" in mirror.raw(b"GET / HTTP/3.0\r\n\r\n")
        assert b"400 Bad request" in mirror.raw(b"\x16\x03\x01\x00\xa5\x01\x00\x00\n\n")

    def test_a_body_does_not_become_the_next_request(self, mirror: Running) -> None:
        hidden = b"GET /simple/ HTTP/1.1\r\nHost: x\r\n\r\n"
        data = b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden
        assert mirror.raw(data).count(b"HTTP/1.1 200") == 1
        chunked = b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden
        assert mirror.raw(chunked).count(b"HTTP/1.1 200") == 1

    def test_headers_beyond_measure(self, mirror: Running) -> None:
        line = b"X: " + b"a" * 70_000 + b"\r\n"
        assert mirror.raw(b"GET / HTTP/1.1\r\n" + line + b"\r\n").startswith(b"HTTP/1.1 431 ")
        many = b"".join(b"X%d: a\r\n" % number for number in range(150))
        assert mirror.raw(b"GET / HTTP/1.1\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 431 ")
        assert mirror.raw(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 414 ")
        assert mirror.ask("/health").status == 200

    def test_a_silent_client_is_let_go(self, catalog: Catalog) -> None:
        with serving(catalog, idle=0.2) as running:
            assert running.raw(b"GET / HTT") == b""
        assert running.log == []

    def test_more_clients_than_there_is_room_for(self, catalog: Catalog) -> None:
        with serving(catalog, connections=1) as running:
            address = ("127.0.0.1", running.server.port)
            with socket.create_connection(address, timeout=20) as first:
                first.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert first.recv(100).startswith(b"HTTP/1.1 200")
                assert running.raw(b"").startswith(b"HTTP/1.1 503 ")
        assert any("too many connections" in line for line in running.log)

    def test_a_line_of_the_log_stays_one_line(self, catalog: Catalog) -> None:
        with serving(catalog) as running:
            running.raw(b'GET /a"\x1b[2J\xff HTTP/1.1\r\nConnection: close\r\n\r\n')
        (line,) = running.log
        assert line.isascii()
        assert line.isprintable()
        assert '"GET /a\\"\\x1b[2J\\xff HTTP/1.1"' in line

    def test_a_host_that_is_none_is_not_repeated(self) -> None:
        assert base_url({"host": "index.site:80", "x-forwarded-proto": "https"}, "own:1") == "https://index.site:80"
        assert base_url({"host": "[::1]:80"}, "own:1") == "http://[::1]:80"
        for host in ("a b", 'x"><script>', "evil/path", "a\r\nb", ""):
            assert base_url({"host": host, "x-forwarded-proto": "gopher"}, "own:1") == "http://own:1"

    def test_the_parsers_refuse_by_themselves(self) -> None:
        with pytest.raises(BadTargetError, match="a segment of dots"):
            parse_request("/a/../b", {})
        with pytest.raises(ValueError, match="behind the end"):
            parse_range(0, '"e"', {"range": "bytes=0-"})
        assert parse_request("http://x/simple/?a=1&a=2", {}).query == {"a": "2"}
        assert parse_request("/a/%E3%80%80.txt", {}).segments == ("a", "\u3000.txt")
        assert is_known('"e"', "*")


def one_of(two: Installed, path: str) -> Path:
    return two.prefix.require_live().path / path


class TestChanged:
    """Files that are not those that were installed."""

    @pytest.mark.parametrize(
        ("path", "url"),
        [
            ("models/tiny/model.safetensors", "/tiny/resolve/main/model.safetensors"),
            ("wheels/clash-1.0-py3-none-any.whl", "/simple/clash/"),
        ],
    )
    def test_a_file_that_changed_is_not_served(self, two: Installed, catalog: Catalog, path: str, url: str) -> None:
        file = one_of(two, path)
        before = file.stat()
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        try:
            with serving(catalog) as running:
                for method in ("GET", "HEAD"):
                    assert running.ask(url, method).status == 500
                assert running.ask("/own/resolve/main/config.json").body == b"[]\n"
        finally:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        hint = f"hint: runtime verify --prefix {two.prefix.path}"
        assert f"error: {file}: size, time or inode changed since the install; {hint}" in running.log

    def test_it_does_not_start_from_a_changed_release(self, two: Installed) -> None:
        file = one_of(two, "models/tiny/config.json")
        before = file.stat()
        os.utime(file, ns=(before.st_atime_ns, 1))
        try:
            with (
                pytest.raises(IntegrityError, match=r"models/tiny/config\.json: size, time or inode changed"),
                open_releases(two.prefix, two.options, pytest.fail),
            ):
                pytest.fail("it opened")
        finally:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def test_another_release_that_changed_is_left_out(self, two: Installed) -> None:
        told: list[str] = []
        (other,) = [each for each in two.prefix.all_releases() if each.name.startswith("1.0.0")]
        (other.path / "docs").chmod(0o777)
        try:
            with open_releases(two.prefix, two.options, told.append) as releases:
                assert [release.name[:5] for release in releases] == ["2.0.0"]
        finally:
            (other.path / "docs").chmod(0o755)
        assert told[0].startswith(f"{other.name} is left out: {other.name}: 1 problem:")

    def test_nobody_who_is_trusted(self, two: Installed, other_key: Key) -> None:
        trust = parse_allowed_signers(other_key.allowed_signers.read_text(), where="x")
        options = VerifyOptions(trust=trust, trust_source="x", now=NOW, depth="quick", models=False)
        with pytest.raises(TrustError), open_releases(two.prefix, options, pytest.fail):
            pytest.fail("it opened")

    def test_digests_before_anything_is_served(self, two: Installed, catalog: Catalog) -> None:
        require_digests(catalog.files, Silent())
        file = one_of(two, "models/tiny/model.safetensors")
        before = file.stat()
        file.chmod(0o644)
        with file.open("r+b") as stream:
            stream.write(b"\xff")
        try:
            with pytest.raises(IntegrityError, match=r"models/tiny/model\.safetensors: expected sha256"):
                require_digests(catalog.files, Silent())
        finally:
            with file.open("r+b") as stream:
                stream.write(WEIGHTS[:1])
            file.chmod(0o444)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


class TestExport:
    """The static files."""

    def test_the_files_are_links_and_the_pages_are_the_mirror_s(
        self, two: Installed, catalog: Catalog, mirror: Running, tmp_path: Path
    ) -> None:
        folder = tmp_path / "site"
        done = export(catalog, folder, listen="127.0.0.1:8080", progress=Silent())
        www = folder / "www"
        served = len(catalog.wheels) + 2 * len(catalog.repositories["tiny"].revisions) * 3 + 2
        assert done.linked + done.copied == served
        weights = www / "Org/Tiny/resolve/main/model.safetensors"
        assert weights.read_bytes() == WEIGHTS + b"2.0.0"
        if done.linked:
            assert weights.stat().st_ino == one_of(two, "models/tiny/model.safetensors").stat().st_ino
        for url, file in {
            "/simple/clash/": "simple/clash/index.html",
            "/wheels/clash-1.0-py3-none-any.whl.metadata": "wheels/clash-1.0-py3-none-any.whl.metadata",
            "/api/models/tiny?blobs=true": "api/models/tiny/index.json",
            "/api/models/tiny/tree/main?recursive=true": "api/models/tiny/tree/main/index.json",
            "/api/models/tiny/tree/main/1_Pooling": "api/models/tiny/tree/main/1_Pooling/index.json",
        }.items():
            assert (www / file).read_bytes() == mirror.ask(url).body, url
        json_page = mirror.ask("/simple/clash/", Accept=JSON_TYPE).body
        assert (www / "simple/clash/index.json").read_bytes() == json_page
        assert sorted(path.name for path in folder.iterdir()) == ["nginx.conf", "www"]

    def test_copies_are_checked_on_the_way(self, two: Installed, catalog: Catalog, tmp_path: Path) -> None:
        done = export(catalog, tmp_path / "site", listen="127.0.0.1:1", progress=Silent(), copy=True)
        assert done.linked == 0
        copied = tmp_path / "site/www/own/resolve/main/config.json"
        assert (copied.read_bytes(), copied.stat().st_mode & 0o777, copied.stat().st_nlink) == (b"[]\n", 0o444, 1)
        file = one_of(two, "models/own/config.json")
        before = file.stat()
        file.chmod(0o644)
        file.write_bytes(b"[1]")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        try:
            with pytest.raises(IntegrityError, match=r"models/own/config\.json: expected sha256 \w{64}, got \w{64}"):
                export(catalog, tmp_path / "other", listen="127.0.0.1:1", progress=Silent(), copy=True)
        finally:
            file.write_bytes(b"[]\n")
            file.chmod(0o444)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert not (tmp_path / "other").exists()

    def test_a_folder_with_something_in_it_is_left_alone(self, catalog: Catalog, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("x")
        with pytest.raises(UsageError, match=f"{tmp_path}: is there and not empty"):
            export(catalog, tmp_path, listen="127.0.0.1:1", progress=Silent())
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_a_folder_that_nginx_would_misread(self, catalog: Catalog) -> None:
        with pytest.raises(UsageError, match=r"/srv/\$x: '\$' in a path means something to nginx"):
            render_nginx(catalog, Path("/srv/$x"), "127.0.0.1:1")


class TestCommand:
    """The command line, locks and addresses."""

    def test_it_serves_until_it_is_told_to_stop(self, two: Installed) -> None:
        words = ["mirror", "--prefix", str(two.prefix.path), "--port", "0", "--json", "--check-digests"]
        command = [sys.executable, "-m", "runtime", *words]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=ROOT, **streams) as process:
            try:
                document, errors = self._ask_and_stop(process)
            finally:
                process.kill()
        assert process.returncode == 0, errors
        assert errors.endswith("stopped\n")
        assert (document["wheels"], document["models"]["tiny"]) == (4, [NEW, OLD])

    @staticmethod
    def _ask_and_stop(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
        """Return what the command printed, and what it said after it was told to stop."""
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        document: dict[str, Any] = json.loads("".join(lines))
        host, _, port = document["address"].removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b"ok\n"
        while '"GET /health HTTP/1.1" 200 3 ' not in (line := process.stderr.readline()):
            assert line, "the log ended without the request"
        process.send_signal(signal.SIGTERM)
        return document, process.communicate(timeout=30)[1]

    def test_the_prefix_is_only_read(self, two: Installed) -> None:
        before = {path: path.lstat().st_mtime_ns for path in two.prefix.path.rglob("*")}
        with (
            open_releases(two.prefix, two.options, pytest.fail) as releases,
            serving(load_catalog(releases)) as running,
        ):
            assert running.ask("/simple/six/").status == 200
            assert running.ask("/tiny/resolve/main/config.json").body == b"{}\n"
        assert {path: path.lstat().st_mtime_ns for path in two.prefix.path.rglob("*")} == before

    def test_a_release_that_is_served_is_not_collected(self, two: Installed) -> None:
        with open_releases(two.prefix, two.options, pytest.fail) as releases:
            assert [release.hold(exclusive=True) for release in releases] == [None, None]

    def test_a_port_that_is_taken(self, catalog: Catalog, mirror: Running) -> None:
        port = mirror.server.port
        with pytest.raises(DiskError, match=f"can't listen on 127.0.0.1:{port}: the port is taken"):
            MirrorServer(("127.0.0.1", port), catalog, print)
        with pytest.raises(UsageError, match=r"can't listen on 192\.0\.2\.1:0"):
            MirrorServer(("192.0.2.1", 0), catalog, print)

    def test_export_from_the_command_line(self, two: Installed, tmp_path: Path) -> None:
        words = [
            "mirror",
            "--prefix",
            str(two.prefix.path),
            "--export",
            str(tmp_path / "out"),
            "--trust",
            str(two.trust),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "runtime", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"nginx: include {tmp_path}/out/nginx.conf inside http {{ }}" in done.stdout
        assert "listen 127.0.0.1:8080;" in (tmp_path / "out/nginx.conf").read_text()

    def test_nothing_is_installed(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "runtime", "mirror", "--prefix", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"error: {tmp_path}: nothing is installed here" in done.stderr
