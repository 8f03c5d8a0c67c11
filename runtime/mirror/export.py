"""The mirror as static files, for a web server that the site has already.

::

    DIR/nginx.conf
    DIR/www/simple/...                       pages as HTML and JSON
    DIR/www/wheels/FILE, FILE.metadata
    DIR/www/api/models/NAME/...              the hub's documents
    DIR/www/NAME/resolve/COMMIT/PATH         the models' files; ``main`` is a link to the commit
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.digests import BUFFER_SIZE, ContentHasher
from manifests.errors import IntegrityError, UsageError
from manifests.files import READ_ONLY, create_exclusive, disk_error, make_link, read_into, set_mode, write_all
from manifests.pieces import Progress
from runtime.layout import make_folder
from runtime.mirror.catalog import MAIN, Catalog, Repository, ServedFile, Snapshot
from runtime.mirror.hub import model_info, refs, tree
from runtime.mirror.index import Index
from runtime.mirror.nginx import render_nginx

_CANT_LINK: Final = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Where an export lies, and how many files are hard links to the prefix's or copies."""

    folder: Path
    linked: int
    copied: int


def export(catalog: Catalog, folder: Path, *, listen: str, progress: Progress, copy: bool = False) -> Exported:
    """Write a catalog as static files; the folder appears when everything is in it.

    Args:
        catalog: What there is.
        folder: Absolute; must not exist, or be empty.
        listen: Address and port for nginx.conf.
        progress: Told of the bytes of wheels and models.
        copy: Copy even where a hard link can be made.

    Raises:
        UsageError: The folder has something in it, or a name that nginx can't take.
        IntegrityError: A file is not the one that was installed.
        DiskError: No space, no permission.
    """
    conf = render_nginx(catalog, folder / "www", listen)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: is there and not empty", hint="export to a new folder, then move a link")
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial / "www")
        writer = _Writer(partial / "www", progress, copy=copy)
        writer.write_index(catalog)
        for repository in catalog.repositories.values():
            writer.write_repository(repository)
        writer.write_json("api/models", [model_info(each, each.main) for each in catalog.repositories.values()])
        (partial / "nginx.conf").write_text(conf, encoding="utf-8")
        partial.replace(folder)
    except OSError as error:
        raise disk_error(error, f"write {error.filename or partial}") from error
    return Exported(folder=folder, linked=writer.linked, copied=writer.copied)


class _Writer:
    """Writes below ``root`` and counts."""

    def __init__(self, root: Path, progress: Progress, *, copy: bool) -> None:
        self.linked, self.copied = 0, 0
        self._root, self._progress, self._copy = root, progress, copy

    def write_index(self, catalog: Catalog) -> None:
        index = Index(catalog)
        self._write("simple/index.html", index.listing("html"))
        self._write("simple/index.json", index.listing("json"))
        for project in index.projects:
            self._write(f"simple/{project}/index.html", index.project(project, "html"))
            self._write(f"simple/{project}/index.json", index.project(project, "json"))
        for wheel in catalog.wheels.values():
            self._place(wheel.file, f"wheels/{wheel.filename}")
            if (metadata := index.metadata(wheel.filename)) is not None:
                self._write(f"wheels/{wheel.filename}.metadata", metadata.content)

    def write_repository(self, repository: Repository) -> None:
        api = f"api/models/{repository.name}"
        self.write_json(api, model_info(repository, repository.main, blobs=True))
        self.write_json(f"{api}/refs", refs(repository))
        for commit, snapshot in repository.revisions.items():
            self._write_snapshot(repository, api, commit, snapshot)
        main = self._root / repository.name / "resolve" / MAIN
        make_link(main, repository.main.commit)
        for kind in ("revision", "tree"):
            make_link(self._root / api / kind / MAIN, repository.main.commit)

    def write_json(self, path: str, document: object) -> None:
        self._write(f"{path}/index.json", json.dumps(document).encode())

    def _write_snapshot(self, repository: Repository, api: str, commit: str, snapshot: Snapshot) -> None:
        self.write_json(f"{api}/revision/{commit}", model_info(repository, snapshot, blobs=True))
        for folder in _folders(snapshot):
            page = tree(snapshot, folder, recursive=True, limit=len(snapshot.files) * 2 + len(_folders(snapshot)))
            self.write_json(f"{api}/tree/{commit}/{folder}".rstrip("/"), page.entries if page else [])
        for path, file in snapshot.files.items():
            self._place(file, f"{repository.name}/resolve/{commit}/{path}")

    def _write(self, path: str, data: bytes) -> None:
        target = self._root / path
        make_folder(target.parent)
        target.write_bytes(data)

    def _place(self, file: ServedFile, path: str) -> None:
        target = self._root / path
        make_folder(target.parent)
        descriptor = file.open()
        try:
            if self._copy or not _linked(file, target):
                _copy(descriptor, file, target, self._progress.advance)
                self.copied += 1
            else:
                self.linked += 1
                self._progress.advance(file.entry.size)
        finally:
            os.close(descriptor)


def _folders(snapshot: Snapshot) -> tuple[str, ...]:
    """Return every folder of a model, the root as an empty text."""
    parents = (path.split("/")[:-1] for path in snapshot.files)
    found = {"/".join(each[:depth]) for each in parents for depth in range(len(each) + 1)}
    return tuple(sorted(found | {""}))


def _linked(file: ServedFile, target: Path) -> bool:
    """Whether ``target`` could be made a hard link to the file that was installed."""
    source = file.release.path / file.entry.path
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in _CANT_LINK:
            return False
        raise
    if target.lstat().st_ino != file.expected[2]:
        raise IntegrityError(f"{source}: was replaced while it was exported", hint="export again")
    return True


def _copy(descriptor: int, file: ServedFile, target: Path, advance: Callable[[int], None]) -> None:
    """Copy a file, its digest compared on the way."""
    hasher, buffer, done = ContentHasher(), memoryview(bytearray(BUFFER_SIZE)), 0
    sink = create_exclusive(target)
    try:
        while count := read_into(descriptor, buffer, done):
            hasher.update(buffer[:count])
            write_all(sink, buffer[:count], done)
            advance(count)
            done += count
        set_mode(sink, READ_ONLY)
    finally:
        os.close(sink)
    got = hasher.digest().sha256
    if got != file.entry.sha256:
        where = file.release.path / file.entry.path
        raise IntegrityError(f"{where}: expected sha256 {file.entry.sha256}, got {got}", hint="runtime repair")
