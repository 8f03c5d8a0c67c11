"""A hub on the loopback: the API that huggingface_hub asks, files with ranges, LFS on another port, and faults."""

import functools
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

LFS_SUFFIXES: Final = (".safetensors", ".bin", ".gguf", ".pt", ".onnx")
SECRET_QUERY: Final = "signature=content-secret"  # noqa: S105 - a loopback's


def blob_id_of(data: bytes) -> str:
    """Return git's name of a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@functools.cache
def sha256_of(data: bytes) -> str:
    """Return the sha256 of a content, without reading it twice."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request: which of the two servers it reached, what for, and how many bytes of a body were sent."""

    server: str
    path: str
    range: str
    if_range: str
    authorization: str
    status: int
    sent: int


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with a file's body for the next ``times`` requests; ``at`` is ``hub`` for the request before."""

    times: int = 1
    at: str = "body"
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int = -1
    stall_after: int = -1
    body: bytes | None = None
    length: int = -1
    no_ranges: bool = False
    content_range: str = ""
    etag: str = ""


class LoopbackHub:
    """Two servers: ``hub`` answers the API and small files, ``content`` what is in LFS. All state may be changed."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.tags: dict[str, list[str]] = {}
        self.tokens: dict[str, str] = {}
        self.gated: set[str] = set()
        self.faults: dict[str, list[Fault]] = {}
        self.noted: list[Asked] = []
        self.active = 0
        self.page = 1000
        self.lock = threading.Condition()
        self.release = threading.Event()
        self.reached = threading.Event()  # set when a body stalls
        self.endpoint = self.content = ""

    def add(self, repo: str, files: Mapping[str, bytes], *, commit: str = "a" * 40, refs: tuple[str, ...] = ()) -> str:
        """Add a commit and let branches or tags point to it."""
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.refs.setdefault(repo, {}).update(dict.fromkeys(("main", *refs), commit))
        return commit

    @property
    def asked(self) -> list[Asked]:
        """All requests, in the order in which they ended; those that still run are waited for."""
        with self.lock:
            assert self.lock.wait_for(lambda: self.active == 0, 60), "a request doesn't end"
            return self.noted

    def bodies(self, path: str = "") -> list[Asked]:
        """Return the requests for a file's bytes, in the order in which they ended; of LFS files those to content."""
        return [
            item for item in self.asked if item.status in {200, 206} and path in item.path and "/api/" not in item.path
        ]

    def sent(self) -> int:
        """Return how many bytes of files were sent."""
        return sum(item.sent for item in self.bodies())

    def fault(self, path: str, at: str) -> Fault | None:
        """Take the next fault of a file at a stage."""
        with self.lock:
            for fault in self.faults.get(path, []):
                if fault.times > 0 and fault.at == at:
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.hub, self.name = hub, name

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients cut connections on purpose here."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Nothing on stderr."""

    def end_headers(self) -> None:
        """One request for each connection, so that cutting one cuts nothing else."""
        self.send_header("Connection", "close")  # the base class closes it then
        super().end_headers()

    def do_GET(self) -> None:
        hub = self.server.hub
        with hub.lock:
            hub.active += 1
        try:
            self.answer()
        finally:
            with hub.lock:
                hub.active -= 1
                hub.lock.notify_all()

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        query = dict(parse_qsl(parts.query))
        if self.server.name == "content":
            self.send_content(path)
        elif path.startswith("/api/models/"):
            self.send_api(path.removeprefix("/api/models/"), query)
        else:
            self.send_resolved(path.lstrip("/"))

    def send_content(self, path: str) -> None:
        _, repo_a, repo_b, commit, name = path.split("/", 4)
        data = self.server.hub.repos[f"{repo_a}/{repo_b}"][commit][name]
        self.send_file(name, data, sha256_of(data))

    def send_api(self, rest: str, query: Mapping[str, str]) -> None:
        org, name, *more = rest.split("/", 3)
        repo, hub = f"{org}/{name}", self.server.hub
        if fault := hub.fault("api", "hub"):
            self.reply(fault.status, fault.body or b"", fault.headers)
            return
        revision = more[1] if len(more) > 1 else "main"
        commit = self.commit_of(repo, revision, needs_gate=False)
        if commit is None:
            return
        if more[:1] == ["tree"]:
            self.send_tree(repo, commit, query)
        else:
            tags = hub.tags.get(repo, [])
            self.reply(200, json.dumps({"id": repo, "sha": commit, "tags": tags, "siblings": []}).encode())

    def commit_of(self, repo: str, revision: str, *, needs_gate: bool) -> str | None:
        """Return the commit, or answer why not, with the codes and statuses of the real one."""
        hub, secret = self.server.hub, self.headers.get("Authorization", "")
        token = hub.tokens.get(repo)
        if secret.endswith("invalid"):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo not in hub.repos or (token and repo not in hub.gated and secret != f"Bearer {token}"):
            self.refuse(404 if secret else 401, "RepoNotFound", "Repository not found")
        elif needs_gate and repo in hub.gated and secret != f"Bearer {token}":
            self.refuse(403 if secret else 401, "GatedRepo", "Access to model is restricted")
        else:
            commit = hub.refs[repo].get(revision, revision)
            if commit in hub.repos[repo]:
                return commit
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def send_tree(self, repo: str, commit: str, query: Mapping[str, str]) -> None:
        hub = self.server.hub
        entries: list[dict[str, object]] = [{"type": "directory", "path": "folder", "oid": "0" * 40}]
        for path, data in hub.repos[repo][commit].items():
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": blob_id_of(data)}
            if path.endswith(LFS_SUFFIXES):
                sha256 = sha256_of(data)
                pointer = {"oid": sha256, "size": len(data), "pointerSize": 130}
                entry |= {"oid": blob_id_of(sha256.encode()), "lfs": pointer}
            entries.append(entry)
        start = int(query.get("cursor", 0))
        headers = {}
        if start + hub.page < len(entries):
            following = urlencode({**query, "cursor": start + hub.page})
            headers["Link"] = f'<{hub.endpoint}{urlsplit(self.path).path}?{following}>; rel="next"'
        self.reply(200, json.dumps(entries[start : start + hub.page]).encode(), headers)

    def send_resolved(self, rest: str) -> None:
        hub = self.server.hub
        org, name, _, commit, path = rest.split("/", 4)
        repo = f"{org}/{name}"
        if self.commit_of(repo, commit, needs_gate=True) is None:
            return
        if fault := hub.fault(path, "hub"):
            self.reply(fault.status, b"", fault.headers)
            return
        data = hub.repos[repo][commit][path]
        if path.endswith(LFS_SUFFIXES):
            location = f"{hub.content}/{repo}/{commit}/{path}?{SECRET_QUERY}"
            linked = {"X-Linked-Etag": f'"{sha256_of(data)}"', "X-Linked-Size": str(len(data))}
            self.reply(302, b"", {"Location": location, "X-Repo-Commit": commit, **linked})
        else:
            self.send_file(path, data, blob_id_of(data), {"X-Repo-Commit": commit})

    def send_file(self, path: str, data: bytes, etag: str, more: Mapping[str, str] | None = None) -> None:
        hub = self.server.hub
        fault = hub.fault(path, "body") or Fault()
        if fault.status:
            self.reply(fault.status, b"", fault.headers)
            return
        data, etag = data if fault.body is None else fault.body, f'"{fault.etag or etag}"'
        start, end, status = 0, len(data), 200
        wanted, if_range = self.headers.get("Range", ""), self.headers.get("If-Range", etag)
        headers = {"ETag": etag, **(more or {})}
        if wanted and not fault.no_ranges and if_range == etag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last) + 1, len(data)), 206
            headers["Content-Range"] = fault.content_range or f"bytes {start}-{end - 1}/{len(data)}"
        headers["Content-Length"] = str(fault.length if fault.length >= 0 else end - start)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.note(status, 0 if self.command == "HEAD" else self.send_body(data[start:end], fault))

    def send_body(self, data: bytes, fault: Fault) -> int:
        hub = self.server.hub
        with suppress(OSError):
            if fault.stall_after >= 0:
                self.wfile.write(data[: fault.stall_after])
                self.wfile.flush()
                hub.reached.set()
                hub.release.wait(30)
                return min(fault.stall_after, len(data))
            data = data[: fault.cut_after] if fault.cut_after >= 0 else data
            self.wfile.write(data)
        return len(data)

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply(status, json.dumps({"error": message}).encode(), headers)

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.note(status, 0)

    def note(self, status: int, sent: int) -> None:
        hub, header = self.server.hub, self.headers.get
        asked = Asked(
            server=self.server.name,
            path=self.path,
            range=header("Range", ""),
            if_range=header("If-Range", ""),
            authorization=header("Authorization", ""),
            status=status,
            sent=sent,
        )
        with hub.lock:
            hub.noted.append(asked)


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Yield a hub that answers, with no repository yet."""
    hub = LoopbackHub()
    servers = [_Server(hub, name) for name in ("hub", "content")]
    hub.endpoint, hub.content = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
