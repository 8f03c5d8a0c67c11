"""Files of a folder that go into a bundle: links stay within, and every name can travel."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from manifests.errors import SpecError
from manifests.paths import find_collision, path_problem


def check_paths(names: Sequence[str], where: str) -> None:
    """Refuse file names that can't be in a bundle, all of them in one message.

    Raises:
        SpecError: With every offender.
    """
    problems = [f"{name!r} {problem}" for name in names if (problem := path_problem(name))]
    if not problems and (collision := find_collision(names)):
        problems = [f"{collision[0]!r} and {collision[1]!r} can't exist side by side on every file system"]
    if problems:
        raise SpecError(f"{where}: file names that can't travel: {'; '.join(problems)}", hint="rename or exclude them")


def walk_folder(folder: Path, where: str) -> Iterator[tuple[str, Path]]:
    """Yield relative name and real path of every file; a link may point within the folder, never out of it.

    Raises:
        SpecError: A link points out, or something is neither file nor folder.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*files, *(sub for sub in folders if (Path(parent) / sub).is_symlink())]):
            path = Path(parent) / name
            real = path.resolve()
            relative = path.relative_to(folder).as_posix()
            if not real.is_relative_to(root):
                hint = "copy the folder with its links resolved: cp -rL"
                raise SpecError(f"{where}: source: {relative} is a link out of the folder, to {real}", hint=hint)
            if real.is_file():
                yield relative, real
            elif not real.is_dir():
                raise SpecError(f"{where}: source: {relative} is not a regular file")
