"""From a request to a reply: every route of the mirror, without a socket."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import quote, urlencode

from manifests.digests import sha256_hex
from runtime.mirror.catalog import Catalog, Repository, ServedFile, Snapshot, normalised
from runtime.mirror.hub import PAGE_SIZE, model_info, refs, tree
from runtime.mirror.index import HTML_TYPE, JSON_TYPE, Form, Index
from runtime.mirror.requests import Request, accepted_type, base_url, is_known, parse_range

_BINARY: Final = "application/octet-stream"
_PLAIN: Final = "text/plain; charset=utf-8"
_REVALIDATE: Final = "no-cache"
"""Clients may keep everything, but ask again whether it is still the same: a release may be replaced by another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Status, headers, and either ``body`` or ``size`` bytes of ``file`` from ``start``."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: ServedFile | None = None
    start: int = 0
    size: int = 0

    @property
    def length(self) -> int:
        """How many bytes the body has."""
        return len(self.body) if self.file is None else self.size


class Site:
    """What is served, and at which ``address`` where a client doesn't say how it reaches us.

    ``page_size`` is the number of a tree's entries in one answer.
    """

    def __init__(self, catalog: Catalog, *, address: str = "127.0.0.1:8080", page_size: int = PAGE_SIZE) -> None:
        self.catalog = catalog
        self.index = Index(catalog)
        self.address = address
        self._page_size = page_size

    def reply(self, request: Request) -> Reply:
        """Return the reply to a GET or HEAD request, conditions and ranges applied.

        Raises:
            IntegrityError: A wheel whose page is asked for was changed since the install.
            DiskError: It can't be read.
        """
        first, rest = request.segments[0], request.segments[1:]
        if first == "simple":
            found = self._simple(rest, request)
        elif first == "wheels":
            found = self._wheel(rest)
        elif first == "api":
            found = self._api(rest, request)
        elif request.segments == ("health",):
            found = _text(200, "ok")
        else:
            found = self._front() if request.segments == ("",) else self._resolve(request.segments)
        return _conditional(found, request)

    def _front(self) -> Reply:
        models = ["", "models (HF_ENDPOINT is this address):", *self.catalog.repositories]
        lines = [f"index: /simple/ ({len(self.index.projects)} projects)", *models]
        return _text(200, "\n".join(lines))

    def _simple(self, rest: tuple[str, ...], request: Request) -> Reply:
        kind = accepted_type(request.headers.get("accept"))
        form = _form(kind)
        if not rest or len(rest) > 2 or (len(rest) == 2 and rest[1]):
            return _text(404, "not found") if rest else _moved("/simple/")
        if rest == ("",):
            return _page(self.index.listing(form), kind)
        name = normalised(rest[0])
        if name not in self.index.projects:
            return _text(404, f"no release has the project {name!r}")
        if rest != (name, ""):
            return _moved(f"/simple/{quote(name)}/")
        return _page(self.index.project(name, form), kind)

    def _wheel(self, rest: tuple[str, ...]) -> Reply:
        name = rest[0] if len(rest) == 1 else ""
        wheel = self.catalog.wheels.get(name.removesuffix(".metadata"))
        if wheel is None:
            return _text(404, "not found")
        if name == wheel.filename:
            return _file(wheel.file)
        metadata = self.index.metadata(wheel.filename)
        return _text(404, "not found") if metadata is None else _whole(metadata.content, _BINARY)

    def _api(self, rest: tuple[str, ...], request: Request) -> Reply:
        if rest[:1] != ("models",):
            return _text(404, "not found")
        if rest[1:] in {(), ("",)}:
            repositories = self.catalog.repositories.values()
            return _json([_without_files(model_info(each, each.main)) for each in repositories])
        found = self._repository(rest[1:])
        if found is None:
            return _missing("RepoNotFound", f"no release has the model {'/'.join(rest[1:3])!r}")
        return self._of_model(*found, request)

    def _of_model(self, repository: Repository, words: tuple[str, ...], request: Request) -> Reply:
        if words == ("refs",):
            return _json(refs(repository))
        if not words:
            return self._info(repository, repository.main, request)
        if len(words) < 2 or words[0] not in {"revision", "tree"}:
            return _text(404, "not found")
        snapshot = repository.find(words[1])
        if snapshot is None:
            return _no_revision(repository, words[1])
        if words[0] == "tree":
            return self._tree(snapshot, words[2:], request)
        return self._info(repository, snapshot, request) if len(words) == 2 else _text(404, "not found")

    def _info(self, repository: Repository, snapshot: Snapshot, request: Request) -> Reply:
        blobs = request.query.get("blobs", "").lower() == "true"
        return _json(model_info(repository, snapshot, blobs=blobs))

    def _tree(self, snapshot: Snapshot, folders: tuple[str, ...], request: Request) -> Reply:
        query = request.query
        start = int(query["cursor"]) if query.get("cursor", "").isdecimal() and len(query["cursor"]) < 10 else 0
        recursive = query.get("recursive", "").lower() in {"true", "1"}
        folder = "/".join(folders).strip("/")
        page = tree(snapshot, folder, recursive=recursive, start=start, limit=self._page_size)
        if page is None:
            return _missing("EntryNotFound", f"the model has no folder {folder!r}", snapshot)
        headers = {"X-Repo-Commit": snapshot.commit}
        if page.following is not None:
            path = "/".join(map(quote, request.segments))
            words = urlencode({**query, "cursor": str(page.following)})
            headers["Link"] = f'<{base_url(request.headers, self.address)}/{path}?{words}>; rel="next"'
        return _json(page.entries, headers)

    def _resolve(self, segments: tuple[str, ...]) -> Reply:
        """Return a file of a model: ``/NAME/resolve/REVISION/PATH``."""
        if "resolve" not in segments[1:3]:
            return _text(404, "not found")
        found = self._repository(segments)
        if found is None:
            return _missing("RepoNotFound", f"no release has the model {'/'.join(segments[:2])!r}")
        repository, words = found
        if len(words) < 3 or words[0] != "resolve":
            return _text(404, "not found")
        snapshot = repository.find(words[1])
        if snapshot is None:
            return _no_revision(repository, words[1])
        file = snapshot.files.get("/".join(words[2:]))
        if file is None:
            return _missing("EntryNotFound", f"the model has no file {'/'.join(words[2:])!r}", snapshot)
        return _file(file, {"X-Repo-Commit": snapshot.commit})

    def _repository(self, segments: tuple[str, ...]) -> tuple[Repository, tuple[str, ...]] | None:
        """Return the repository that the path begins with, and the rest of the path."""
        for count in (2, 1):
            found = self.catalog.repositories.get("/".join(segments[:count]))
            if found is not None:
                return found, segments[count:]
        return None


def _form(kind: str) -> Form:
    return "json" if kind == JSON_TYPE else "html"


def _page(body: bytes, kind: str) -> Reply:
    return _whole(body, kind if kind in {JSON_TYPE, HTML_TYPE} else "text/html; charset=utf-8", {"Vary": "Accept"})


def _whole(body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> Reply:
    own = {"Content-Type": kind, "ETag": f'"{sha256_hex(body)}"', "Cache-Control": _REVALIDATE}
    return Reply(status=200, headers={**own, **(headers or {})}, body=body)


def _json(document: object, headers: Mapping[str, str] | None = None) -> Reply:
    return _whole(json.dumps(document).encode(), "application/json", headers)


def _without_files(document: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in document.items() if key != "siblings"}


def _file(file: ServedFile, headers: Mapping[str, str] | None = None) -> Reply:
    own = {
        "Content-Type": _BINARY,
        "ETag": f'"{file.entry.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": _REVALIDATE,
    }
    return Reply(status=200, headers={**own, **(headers or {})}, file=file, size=file.entry.size)


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status=status, headers={"Content-Type": _PLAIN, **(headers or {})}, body=f"{text}\n".encode())


def _moved(location: str) -> Reply:
    return _text(301, f"see {location}", {"Location": location})


def _missing(code: str, text: str, snapshot: Snapshot | None = None) -> Reply:
    commit = {"X-Repo-Commit": snapshot.commit} if snapshot else {}
    message = text.encode("ascii", "backslashreplace").decode()
    return _text(404, text, {"X-Error-Code": code, "X-Error-Message": message, **commit})


def _no_revision(repository: Repository, revision: str) -> Reply:
    known = ", ".join(("main", *repository.revisions))
    return _missing("RevisionNotFound", f"{repository.name} has no revision {revision!r}, but {known}")


def _conditional(reply: Reply, request: Request) -> Reply:
    """Apply If-None-Match, and Range to files."""
    etag = reply.headers.get("ETag", "")
    if reply.status != 200 or not etag:
        return reply
    if is_known(etag, request.headers.get("if-none-match")):
        kept = {key: value for key, value in reply.headers.items() if key != "Content-Type"}
        return Reply(status=304, headers=kept)
    if reply.file is None:
        return reply
    try:
        part = parse_range(reply.size, etag, request.headers)
    except ValueError:
        return _text(416, "there are no such bytes", {"Content-Range": f"bytes */{reply.size}"})
    if part is None:
        return reply
    span = f"bytes {part.start}-{part.start + part.size - 1}/{reply.size}"
    headers = {**reply.headers, "Content-Range": span}
    return replace(reply, status=206, headers=headers, start=part.start, size=part.size)
