"""Which releases a mirror serves: the live one first, all verified and held while the mirror runs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from manifests.bundle import find_damage
from manifests.errors import (
    DiskError,
    HostError,
    IntegrityError,
    SealiftError,
    TrustError,
    list_problems,
)
from manifests.medium import FolderMedium
from manifests.pieces import Progress, Silent
from runtime.layout import Prefix, Release
from runtime.mirror.catalog import ServedFile
from runtime.verify import VerifyOptions, verify_release

_ERRORS: Final[dict[int, type[SealiftError]]] = {
    error.exit_code: error for error in (TrustError, IntegrityError, HostError, DiskError)
}


@contextlib.contextmanager
def open_releases(
    prefix: Prefix, options: VerifyOptions, report: Callable[[str], None]
) -> Iterator[tuple[Release, ...]]:
    """Yield the releases to serve, the live one first, kept from gc, repair and uninstall until the block ends.

    ``report`` is told of every other release that is left out because it isn't good.

    Raises:
        UsageError: Nothing is installed.
        DiskError: The live release is being removed or repaired.
        TrustError: The live release isn't signed by anyone who is trusted.
        IntegrityError: Its files are not those that were installed.
        HostError: It is not for this host.
    """
    live = prefix.require_live()
    with contextlib.ExitStack() as stack:
        stack.enter_context(live.used())
        _require_good(prefix, live, options)
        releases = [live]
        for release in prefix.all_releases():
            if release.name == live.name or not release.is_complete:
                continue
            try:
                stack.enter_context(release.used())
                _require_good(prefix, release, options)
            except (SealiftError, FileNotFoundError) as error:
                report(f"{release.name} is left out: {error}")
            else:
                releases.append(release)
        yield tuple(releases)


def require_digests(files: Sequence[ServedFile], progress: Progress) -> None:
    """Read every file once and compare its digests.

    Raises:
        IntegrityError: Names every damaged piece.
    """
    problems: list[str] = []
    for path in {file.release.path: None for file in files}:
        entries = tuple(file.entry for file in files if file.release.path == path)
        problems += [str(damage) for damage in find_damage(FolderMedium(path), entries, progress)]
    if problems:
        raise IntegrityError(list_problems("files to be served", problems), hint="runtime repair --prefix DIR --list")


def _require_good(prefix: Prefix, release: Release, options: VerifyOptions) -> None:
    found = verify_release(prefix, release, options, Silent(), lambda _: None)
    if found.exit_code:
        problems = [f"{section.name}: {problem}" for section in found.sections for problem in section.problems]
        error = _ERRORS.get(found.exit_code, IntegrityError)
        raise error(list_problems(release.name, problems), hint=f"runtime verify --prefix {prefix.path}")
