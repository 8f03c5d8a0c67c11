"""Making a damaged environment anew, in place, from the release's own verified wheels.

An environment can't be renamed, so the old one has to go before the new one comes. While that lasts the receipt is set
aside: the release is none, `status` and `verify` say so after an interruption, and the next repair begins it again.
"""

import os
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from manifests.bundle import TrustedBundle
from manifests.errors import DiskError, HostError, InstallError, IntegrityError
from manifests.files import sync_folder, write_atomic
from manifests.pieces import Progress
from runtime.carried import carried_problems, made_of_carried
from runtime.environment import Environment, drop_uv_cache
from runtime.install import new_receipt
from runtime.interpreter import find_interpreter
from runtime.layout import ASIDE_NAME, RECEIPT_NAME, Prefix, Receipt, Release
from runtime.smoke import bytecode_folder
from runtime.state import record
from runtime.steps import Checkpoint, go_on
from runtime.venv_check import check_venv


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A release whose environment isn't what its wheels say, and why."""

    release: Release
    bundle: TrustedBundle
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildOptions:
    """Whether to ask the new environment for its imports, and who is told of :data:`runtime.steps.REPAIR_STEPS`."""

    smoke: bool = True
    checkpoint: Checkpoint = go_on


def find_broken(
    releases: Sequence[tuple[Release, TrustedBundle]], bad: Collection[str], progress: Progress
) -> tuple[list[Broken], list[str]]:
    """Compare every environment with the signed wheels.

    Args:
        releases: Whose payload was checked.
        bad: Store keys of files that are damaged still.
        progress: Told of every byte that is read.

    Returns:
        The releases whose environment is damaged, and a sentence for each that can't be compared, its wheels being bad.
    """
    broken: list[Broken] = []
    blocked: list[str] = []
    for release, bundle in releases:
        sources = bundle.manifest.of_kind("bootstrap") + bundle.manifest.of_kind("wheel")
        if any(entry.store_key in bad for entry in sources):
            blocked.append(f"{release.name}: its environment needs wheels that are damaged themselves")
        elif problems := _problems(release, bundle, progress):
            broken.append(Broken(release=release, bundle=bundle, problems=tuple(problems)))
    return broken, blocked


def _problems(release: Release, bundle: TrustedBundle, progress: Progress) -> list[str]:
    if release.in_repair:
        return ["venv: an earlier repair of it was stopped"]
    try:
        problems = [*check_venv(release, bundle.manifest, progress), *_open_folders(release)]
        return [*problems, *carried_problems(release, bundle.manifest)]
    except IntegrityError as error:  # the receipt, which names the interpreter
        return [error.message]


def _open_folders(release: Release) -> Iterator[str]:
    for folder, _, _ in os.walk(release.venv):
        mode = stat.S_IMODE(os.lstat(folder).st_mode)
        if mode & stat.S_IWOTH:
            yield f"{os.path.relpath(folder, release.path)}/: mode {mode:04o}, everyone may write there"


def rebuild_all(prefix: Prefix, broken: Sequence[Broken], options: RebuildOptions) -> tuple[list[str], list[str]]:
    """Make every damaged environment anew.

    Returns:
        The names of releases that are whole again, and a sentence for each that is in use.

    Raises:
        InstallError: The new environment is refused; the release stays out of use until a repair succeeds.
        HostError: There is no interpreter for it; nothing was changed.
        DiskError: No space, no permission.
    """
    done: list[str] = []
    blocked: list[str] = []
    for one in broken:
        with _held(one.release) as got:
            if got:
                _rebuild(prefix, one, options, fresh=not done)
                done.append(one.release.name)
            else:
                words = "its environment is damaged and in use: stop the server that runs from it, then repair again"
                blocked.append(f"{one.release.name}: {words}")
    return done, blocked


@contextmanager
def _held(release: Release) -> Iterator[bool]:
    descriptor = release.hold(exclusive=True)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _rebuild(prefix: Prefix, one: Broken, options: RebuildOptions, *, fresh: bool) -> None:
    """Set the receipt aside, make the environment, put the receipt back; ``fresh`` drops uv's cache first."""
    release, manifest, checkpoint = one.release, one.bundle.manifest, options.checkpoint
    before = _receipt(release)
    is_carried = made_of_carried(release, manifest, before.python if before else None)
    python = None if is_carried else _interpreter(manifest.target.python, before)
    record(prefix, f"repair {release.name}: environment, {len(one.problems)} problems")
    _set_aside(release)
    checkpoint("receipt aside")
    if fresh:  # its files are those of the environments, by hard links: a change in one is a change in both
        drop_uv_cache(prefix)
    checkpoint("cache dropped")
    environment = Environment(
        prefix=prefix, release=release, manifest=manifest, python=python, smoke=options.smoke, checkpoint=checkpoint
    )
    try:
        interpreter = environment.make()
    except (InstallError, HostError) as error:
        hint = f"{release.name} is out of use until `runtime repair` succeeds; the release before: runtime rollback"
        raise type(error)(error.message, hint=hint) from error
    os.sync()
    checkpoint("synced")
    receipt = new_receipt(one.bundle, release, interpreter)
    if before is not None:
        receipt = replace(receipt, installed=before.installed, signers=before.signers)
    write_atomic(release.path / ASIDE_NAME, receipt.encode(), mode=0o444)
    checkpoint("receipt rewritten")
    (release.path / ASIDE_NAME).replace(release.path / RECEIPT_NAME)
    sync_folder(release.path)
    checkpoint("receipt back")


def _receipt(release: Release) -> Receipt | None:
    with suppress(IntegrityError):
        return release.receipt()
    return None


def _interpreter(version: str, before: Receipt | None) -> Path | None:
    """Return the interpreter that the release was made with, or None where the host has another one now.

    Raises:
        HostError: There is none at all; better found out before anything is touched.
    """
    if before is not None:
        with suppress(HostError):
            find_interpreter(version, Path(before.python))
            return Path(before.python)
    find_interpreter(version)
    return None


def _set_aside(release: Release) -> None:
    if release.in_repair:
        return
    (release.path / RECEIPT_NAME).replace(release.path / ASIDE_NAME)
    sync_folder(release.path)


def drop_bytecode(prefix: Prefix, release: Release) -> None:
    """Remove the cached bytecode of a release, which nothing can verify; Python makes it again."""
    folder = Path(bytecode_folder(prefix, release))
    if not folder.exists():
        return
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.dropped")  # a server may be writing into it
    try:
        folder.replace(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise DiskError(f"can't remove {folder}: {error.strerror}") from error
