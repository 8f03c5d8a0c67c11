"""The interpreter that a bundle carries, unpacked below ``PREFIX/python/`` for every release whose bundle carries it.

::

    PREFIX/python/<first 12 hex of the archive's sha256>/    bin/python3.11 lib/ ...

The signed archive says what must lie there, so every file is compared with it, both ways. Folders with modules hold an
empty file ``__pycache__``: where Python can't make that folder it writes no bytecode, not even for root, and the tree
stays what was signed.
"""

import contextlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from manifests.errors import HostError, IntegrityError
from manifests.files import READ_ONLY, READ_ONLY_EXECUTABLE, disk_error, make_link, open_regular, set_mode
from manifests.manifest import FileEntry, Manifest
from manifests.standalone import ArchiveMember, Readable, archive_version, find_archive, program_path, read_archive
from runtime.interpreter import Interpreter, describe, find_interpreter
from runtime.layout import Prefix, Release, make_folder, walk_files
from runtime.store import blob_is_good

_FOLDER_MODE: Final = 0o755
_BLOCK: Final = 1024 * 1024
_NAMED_BY: Final = 12
_OURS: Final = re.compile(r"[0-9a-f]{12}|\.[0-9a-f]{12}\.partial|\.bootstrap\.\w+")
_BLOCKER: Final = "__pycache__"


def interpreters_folder(prefix: Prefix) -> Path:
    """Return where the carried interpreters of a prefix lie."""
    return prefix.path / "python"


def carried_folder(prefix: Prefix, entry: FileEntry) -> Path:
    """Return where the interpreter of the archive ``entry`` lies or would lie."""
    return interpreters_folder(prefix) / entry.sha256[:_NAMED_BY]


def release_interpreter(prefix: Prefix, release: Release, manifest: Manifest, explicit: Path | None) -> Interpreter:
    """Return the Python that a release's environment is made from.

    That is the one the operator named, else the one the bundle carries, which is unpacked or healed here if need be, so
    that every host gets the same; else one of the host.

    Args:
        prefix: Where.
        release: Whose files are in place and verified.
        manifest: Its manifest.
        explicit: ``--python``.

    Raises:
        HostError: There is none, or the carried one does not run here.
        IntegrityError: The archive isn't what the manifest lists.
        DiskError: No space, no permission.
    """
    entry = find_archive(manifest)
    if entry is None or explicit is not None:
        return find_interpreter(manifest.target.python, explicit)
    folder = carried_folder(prefix, entry)
    heal_carried(folder, release.path / entry.path, entry)
    found = describe(folder / program_path(manifest.target.python, manifest.target.platform))
    if found is None or found.version != manifest.target.python:
        got = f"is Python {found.version}" if found else "does not run on this host"
        msg = f"the interpreter that the bundle carries (CPython {archive_version(entry)}) {got}"
        raise HostError(msg, hint=f"name another one: --python /path/to/python{manifest.target.python}")
    return found


def check_carried(folder: Path, archive: Path, entry: FileEntry) -> list[str]:
    """Return every difference between an unpacked interpreter and its signed archive; an empty list is good news.

    Raises:
        IntegrityError: The archive isn't what the manifest lists.
    """
    return list(_differences(folder, archive, entry).values())


def heal_carried(folder: Path, archive: Path, entry: FileEntry) -> tuple[str, ...]:
    """Make ``folder`` what the archive says and return what was wrong; where there is none, it appears in one step.

    Only what differs is written, each file beside its place and then moved there, so programs that run go on.

    Raises:
        IntegrityError: The archive isn't what the manifest lists.
        DiskError: No space, no permission.
    """
    try:
        if not folder.is_dir() or folder.is_symlink():
            _unpack(folder, archive, entry)
            return ()
        wrong = _differences(folder, archive, entry)
        if wrong:
            _write_members(folder, archive, entry, wrong)
    except OSError as error:
        raise disk_error(error, f"unpack the carried interpreter to {folder}") from error
    return tuple(wrong.values())


def made_of_carried(release: Release, manifest: Manifest, python: str | None) -> bool:
    """Return whether a release's environment is made from the carried interpreter.

    Args:
        release: The release.
        manifest: Its manifest.
        python: The interpreter of its receipt, None where that is lost: then it is taken to be the carried one.
    """
    entry = find_archive(manifest)
    if entry is None or python is None:
        return entry is not None
    # By name, not by where links lead: a program that became a link is still the carried one, and a changed one.
    inside = Path("python", entry.sha256[:_NAMED_BY], program_path(manifest.target.python, manifest.target.platform))
    path, depth = Path(python), len(inside.parts)
    is_inside = path.parts[-depth:] == inside.parts
    return is_inside and path.parents[depth - 1].resolve() == release.path.parent.parent.resolve()


def carried_problems(release: Release, manifest: Manifest) -> list[str]:
    """Return what is wrong with the carried interpreter that a release's environment is made from, if it is.

    Raises:
        IntegrityError: The receipt or the archive is damaged.
    """
    entry = find_archive(manifest)
    if entry is None or not made_of_carried(release, manifest, release.receipt().python):
        return []
    return check_carried(_folder_of(release, entry), release.path / entry.path, entry)


def unpacked_paths(prefix: Prefix) -> tuple[Path, ...]:
    """Return every folder below ``PREFIX/python`` that an install made, finished or not."""
    top = interpreters_folder(prefix)
    found = sorted(top.iterdir()) if top.is_dir() else []
    return tuple(path for path in found if _OURS.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def used_folders(prefix: Prefix) -> frozenset[Path] | None:
    """Return the folders of the interpreters that complete releases are made with, None where one can't tell."""
    used: set[Path] = set()
    for release in prefix.all_releases():
        if release.is_complete or release.in_repair:
            try:
                entry = find_archive(release.manifest())
            except IntegrityError:
                return None
            used.update({carried_folder(prefix, entry)} if entry else ())
    return frozenset(used)


def unused_paths(prefix: Prefix) -> tuple[Path, ...]:
    """Return what lies below ``PREFIX/python`` and may go: no release needs it, and this process isn't run by it."""
    used, mine = used_folders(prefix), Path(sys.executable).resolve()
    if used is None:
        return ()
    return tuple(path for path in unpacked_paths(prefix) if path not in used and path.resolve() not in mine.parents)


def _folder_of(release: Release, entry: FileEntry) -> Path:
    return carried_folder(Prefix(path=release.path.parent.parent), entry)


def _unpack(folder: Path, archive: Path, entry: FileEntry) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    make_folder(folder.parent)
    _remove(partial)
    _remove(folder)
    try:
        partial.mkdir()
        _write_members(partial, archive, entry, None)
        partial.rename(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(partial)
        raise


def _each_member(archive: Path, entry: FileEntry, visit: Callable[[ArchiveMember, Readable | None], None]) -> None:
    """Call ``visit`` with every member of the archive, whose digest is checked first, and then with the blockers."""
    if not blob_is_good(archive, entry) or archive.stat().st_size != entry.size:
        raise IntegrityError(f"{archive}: is not what the manifest lists", hint="runtime repair heals it")
    folders, modules = set(), set()
    with open_regular(archive) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
        for member, content in read_archive(stream, entry.path):
            parent, _, name = member.path.rpartition("/")
            if name.endswith(".py"):
                modules.add(parent)
            if member.kind == "folder":
                folders.add(member.path)
            visit(member, content)
    for folder in sorted(modules):
        if (blocker := f"{folder}/{_BLOCKER}" if folder else _BLOCKER) not in folders:
            visit(ArchiveMember(path=blocker, kind="file"), None)


def _differences(folder: Path, archive: Path, entry: FileEntry) -> dict[str, str]:
    """Return what is wrong by path, in the order in which it can be healed: extras, then folders before their files."""
    wrong: dict[str, str] = {}
    expected: set[str] = set()
    replaced: list[str] = []  # with all that is below
    unreachable: set[str] = set()  # by folders alone: what lies there through a link counts as missing

    def visit(member: ArchiveMember, content: Readable | None) -> None:
        path = folder / member.path
        expected.add(member.path)
        if member.path.rpartition("/")[0] in unreachable:
            problem: str | None = "missing"
        elif member.kind == "copy" and member.target in wrong:
            problem = f"can't be compared with {member.target}"
        else:
            problem = _problem(folder, member, content)
        if problem is None:
            return
        wrong[member.path] = f"{path}: {problem}"
        if member.kind != "folder":
            replaced.append(member.path)
        elif problem == "missing" or path.is_symlink() or not path.is_dir():
            unreachable.add(member.path)

    _each_member(archive, entry, visit)
    for name in sorted(_everything(folder) - expected):
        if not any(name.startswith(f"{above}/") for above in replaced):
            replaced.append(name)
            wrong[name] = f"{folder / name}: not in the interpreter's archive"
    return wrong


def _everything(folder: Path) -> set[str]:
    """Return the paths of all that lies below ``folder``, empty folders too."""
    found = set(walk_files(folder))
    for parent, folders, _ in os.walk(folder):
        found.update(os.path.normpath(f"{os.path.relpath(parent, folder)}/{name}") for name in folders)
    return found


def _problem(folder: Path, member: ArchiveMember, content: Readable | None) -> str | None:
    path = folder / member.path
    try:
        status = path.lstat()
    except FileNotFoundError:
        return "missing"
    if member.kind == "folder":
        return _mode_problem(status, _FOLDER_MODE) if stat.S_ISDIR(status.st_mode) else "not a folder"
    if member.kind == "link":
        if not stat.S_ISLNK(status.st_mode):
            return "not a link"
        found = str(path.readlink())
        return None if found == member.target else f"a link to {found}, expected {member.target}"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if member.kind == "copy":
        with open_regular(folder / member.target) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
            same = _same_content(path, stream)
    else:
        same = status.st_size == member.size and _same_content(path, content)
    return _mode_problem(status, _file_mode(member)) if same else "content changed"


def _mode_problem(status: os.stat_result, expected: int) -> str | None:
    mode = stat.S_IMODE(status.st_mode)
    return None if mode == expected else f"mode {mode:04o}, expected {expected:04o}"


def _file_mode(member: ArchiveMember) -> int:
    return READ_ONLY_EXECUTABLE if member.executable else READ_ONLY


def _same_content(path: Path, content: Readable | None) -> bool:
    with open_regular(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
        while True:
            wanted = content.read(_BLOCK) if content is not None else b""
            if stream.read(_BLOCK) != wanted:
                return False
            if not wanted:
                return True


def _write_members(folder: Path, archive: Path, entry: FileEntry, names: Collection[str] | None) -> None:
    """Write the members ``names`` (None: all), and remove what bears such a name and isn't in the archive."""
    left = set(names or ())

    def visit(member: ArchiveMember, content: Readable | None) -> None:
        if names is None or member.path in names:
            left.discard(member.path)
            _write(folder, member, content)

    _each_member(archive, entry, visit)
    for name in left:
        _remove(folder / name)


def _write(folder: Path, member: ArchiveMember, content: Readable | None) -> None:
    path = folder / member.path
    if member.kind == "folder":
        if path.is_symlink() or not path.is_dir():
            _remove(path)
            path.mkdir()
        path.chmod(_FOLDER_MODE)
        return
    if path.is_dir() and not path.is_symlink():
        _remove(path)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    if member.kind == "link":
        make_link(partial, member.target)
    else:
        _write_file(folder, partial, member, content)
    partial.replace(path)


def _write_file(folder: Path, path: Path, member: ArchiveMember, content: Readable | None) -> None:
    with contextlib.ExitStack() as stack:
        if member.kind == "copy":
            descriptor = stack.enter_context(open_regular(folder / member.target))
            content = stack.enter_context(os.fdopen(os.dup(descriptor), "rb"))
        with path.open("xb") as sink:
            if content is not None:
                shutil.copyfileobj(content, sink, _BLOCK)
            set_mode(sink.fileno(), _file_mode(member))
    # Bytecode that the archive brings is good only for a source of this very time.
    os.utime(path, (member.mtime, member.mtime))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
