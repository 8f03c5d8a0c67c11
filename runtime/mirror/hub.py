"""The hub's API as far as clients read it: what a model has, its tree in pages, its refs.

Every file is listed as one in large-file storage, since that form carries the sha256 that the manifest signs; the git
objects named beside it are those of the pointer files that would stand in git.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from manifests.manifest import FileEntry
from runtime.mirror.catalog import MAIN, Repository, Snapshot

PAGE_SIZE: Final = 1000
"""Entries of a tree in one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePage:
    """A part of a tree, and where the next begins; None at the end."""

    entries: list[dict[str, object]]
    following: int | None


def model_info(repository: Repository, snapshot: Snapshot, *, blobs: bool = False) -> dict[str, object]:
    """Return the document of ``/api/models/NAME``; ``blobs`` adds sizes and digests."""
    moment = snapshot.created.replace("Z", ".000Z")
    siblings = [_sibling(path, file.entry, blobs=blobs) for path, file in snapshot.files.items()]
    return {
        "_id": snapshot.commit[:24],
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.partition("/")[0] if "/" in repository.name else None,
        "sha": snapshot.commit,
        "createdAt": moment,
        "lastModified": moment,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
    }


def refs(repository: Repository) -> dict[str, object]:
    """Return the document of ``/api/models/NAME/refs``: there is one branch."""
    main = {"name": MAIN, "ref": f"refs/heads/{MAIN}", "targetCommit": repository.main.commit}
    return {"branches": [main], "converts": [], "tags": []}


def tree(
    snapshot: Snapshot, folder: str, *, recursive: bool, start: int = 0, limit: int = PAGE_SIZE
) -> TreePage | None:
    """Return a page of ``/api/models/NAME/tree/REVISION/FOLDER``, None where there is no such folder.

    Args:
        snapshot: Whose files.
        folder: Empty for the root.
        recursive: With everything below, not only what lies in ``folder``.
        start: The number of the first entry.
        limit: How many entries at most.
    """
    inside = f"{folder}/" if folder else ""
    entries = list(_entries(snapshot, inside, recursive=recursive))
    if not entries:
        return None
    end = start + limit
    return TreePage(entries=entries[start:end], following=end if end < len(entries) else None)


def _entries(snapshot: Snapshot, inside: str, *, recursive: bool) -> Iterator[dict[str, object]]:
    seen: set[str] = set()
    for path, file in snapshot.files.items():
        if not path.startswith(inside):
            continue
        parents = path.removeprefix(inside).split("/")[:-1]
        folders = [inside + "/".join(parents[: depth + 1]) for depth in range(len(parents))]
        for folder in folders if recursive else folders[:1]:
            if folder not in seen:
                seen.add(folder)
                yield {"type": "directory", "oid": _git_oid("tree", folder.encode()), "size": 0, "path": folder}
        if recursive or not parents:
            yield {"type": "file", "path": path, "size": file.entry.size, **_blob(file.entry, "oid")}


def _sibling(path: str, entry: FileEntry, *, blobs: bool) -> dict[str, object]:
    found: dict[str, object] = {"rfilename": path}
    if blobs:
        found |= {"size": entry.size, "blobId": _git_oid("blob", _pointer(entry)), "lfs": _lfs(entry, "sha256")}
    return found


def _blob(entry: FileEntry, digest_key: str) -> dict[str, object]:
    return {"oid": _git_oid("blob", _pointer(entry)), "lfs": _lfs(entry, digest_key)}


def _lfs(entry: FileEntry, digest_key: str) -> dict[str, object]:
    return {digest_key: entry.sha256, "size": entry.size, "pointerSize": len(_pointer(entry))}


def _pointer(entry: FileEntry) -> bytes:
    """Return the pointer file that stands in git for a large file (git-lfs specification, version 1)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.sha256}\nsize {entry.size}\n".encode()


def _git_oid(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
