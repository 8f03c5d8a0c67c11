"""The files of a git commit, read out of the object database: never the work tree, no filters, no attributes."""

import contextlib
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.packages.pipconfig import redact
from bundler.process import run_program
from manifests.errors import SourceError, SpecError

_LFS: Final = b"version https://git-lfs.github.com/spec/"
_LFS_SIZE: Final = 1024  # a pointer is smaller, says its specification
_ENV: Final = {
    **dict.fromkeys(("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"), ""),
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
_LINKS: Final = 8  # of links that lead to links


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One file of a commit. ``name`` is its path, ``mode`` git's, such as ``100755``, ``id`` the object's."""

    name: str
    mode: str
    id: str

    @property
    def executable(self) -> bool:
        """Whether it may be run."""
        return self.mode == "100755"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A repository of this machine and one commit of it; ``where`` is what messages begin with."""

    folder: Path
    commit: str
    where: str

    def blobs(self) -> list[Blob]:
        """Return every entry of the commit's tree, links and submodules too, by path.

        Raises:
            SourceError: The repository has no such commit.
            SpecError: A name isn't UTF-8.
        """
        done = self._git("ls-tree", "-r", "-z", "--full-tree", self.commit)
        if "\ufffd" in done:
            raise SpecError(f"{self.where}: a file name of commit {self.commit} is not UTF-8", hint="rename it")
        lines = (line.partition("\t") for line in done.split("\0") if line)
        parts = ((meta.split(), name) for meta, _, name in lines)
        return [Blob(name=name, mode=meta[0], id=meta[2]) for meta, name in parts]

    def read(self, blob: Blob) -> bytes:
        """Return a blob's bytes as they were committed.

        Raises:
            SourceError: The repository lacks the object.
        """
        done = subprocess.run(  # bytes, which run_program has none of
            ["git", "-C", str(self.folder), "cat-file", "blob", blob.id],  # noqa: S607 # the user's own git
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            reason = redact(done.stderr.decode("utf-8", "replace")).strip()
            raise SourceError(f"{self.where}: {blob.name}: git can't read it: {reason[:300]}")
        return done.stdout

    def resolve_links(self, blobs: list[Blob], chosen: list[Blob]) -> list[Blob]:
        """Return the chosen files, a link replaced by the file of the same commit that it points at.

        Raises:
            SpecError: Names every submodule, and every link that leads to no file of the commit.
        """
        by_name = {blob.name: blob for blob in blobs}
        modules = [blob.name for blob in chosen if blob.mode == "160000"]
        if modules:
            hint = "name each as an [[app]] of its own, or exclude it"
            raise SpecError(f"{self.where}: submodules don't travel: {', '.join(modules)}", hint=hint)
        return [self._followed(blob, by_name) for blob in chosen]

    def _followed(self, blob: Blob, by_name: dict[str, Blob]) -> Blob:
        found: Blob | None = blob
        for _ in range(_LINKS):
            if found is None or found.mode != "120000":
                break
            target = self.read(found).decode("utf-8", "replace")
            found = by_name.get(posixpath.normpath(posixpath.join(posixpath.dirname(found.name), target)))
        if found is None or found.mode not in {"100644", "100755"}:
            msg = f"{self.where}: {blob.name} is a link to something that is no file of the commit"
            raise SpecError(msg, hint="exclude it, or replace the link by a copy")
        return Blob(name=blob.name, mode=found.mode, id=found.id)

    def _git(self, *arguments: str) -> str:
        done = run_program(["git", "-C", str(self.folder), *arguments], env=_ENV)
        if done.status != 0:
            hint = f"git -C {self.folder} fetch --all, or name another commit"
            reason = redact(done.errors).strip().removeprefix("fatal: ")[:300]
            raise SourceError(f"{self.where}: no commit {self.commit} in {self.folder}: {reason}", hint=hint)
        return done.output


def is_pointer(data: bytes) -> bool:
    """Whether a file's content is a Git LFS pointer instead of what it stands for."""
    return len(data) < _LFS_SIZE and data.startswith(_LFS)


def is_remote(location: str) -> bool:
    """Whether a repository's location is a url, or ``host:path``, rather than a folder."""
    return "://" in location or re.match(r"[\w.@-]+:", location) is not None


@contextlib.contextmanager
def open_checkout(location: str, folder: Path, commit: str, where: str) -> Iterator[Checkout]:
    """Give access to a commit; a repository elsewhere is fetched into a temporary folder.

    Args:
        location: As in the spec.
        folder: The location as a folder, for one that is.
        commit: The whole commit id.
        where: What messages begin with.

    Raises:
        SourceError: There is no git, no repository, or it can't be fetched.
        SpecError: The url holds a password.
    """
    if shutil.which("git") is None:
        raise SourceError(f"{where}: source 'git:' needs the program git", hint="install git, or use 'dir:FOLDER'")
    if not is_remote(location):
        if not folder.is_dir():
            raise SpecError(f"{where}: source: {folder} is not a folder", hint="paths start at the spec's folder")
        yield Checkout(folder=folder, commit=commit, where=where)
        return
    if re.match(r"https?://[^/]*@", location):
        hint = "keep them where git looks for them: git credential, ~/.netrc"
        raise SpecError(f"{where}: source: credentials don't belong in a spec", hint=hint)
    with tempfile.TemporaryDirectory(prefix="sealift-") as name:
        _fetch(location, commit, Path(name), where)
        yield Checkout(folder=Path(name), commit=commit, where=where)


def _fetch(location: str, commit: str, folder: Path, where: str) -> None:
    run_program(["git", "init", "--quiet", "--bare", folder], env=_ENV)
    base = ["git", "-C", str(folder), "fetch", "--quiet", "--no-tags"]
    # Not every server gives out a commit by its id; all branches then have it.
    for arguments in (["--depth", "1", location, commit], [location, "+refs/heads/*:refs/heads/*"]):
        done = run_program([*base, *arguments], env=_ENV)
        if done.status == 0:
            return
    reason = redact(done.errors).strip().removeprefix("fatal: ")[:300]
    raise SourceError(f"{where}: {redact(location)} can't be fetched: {reason}", hint="try: git ls-remote URL")
