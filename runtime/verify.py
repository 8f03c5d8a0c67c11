"""Verifying an installed release before go-live: signature, files, venv against wheels, host, the models' answers.

Nothing stops at the first problem: every section runs, and the report lists all findings.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from manifests.bundle import find_damage, verify_trust, whole_file_problems
from manifests.errors import AdapterError, HostError, IntegrityError, SealiftError, TrustError
from manifests.manifest import Manifest
from manifests.medium import FolderMedium
from manifests.pieces import Progress
from manifests.standalone import archive_version, find_archive
from manifests.trust import TrustRoot
from runtime.carried import carried_problems, made_of_carried
from runtime.hostchecks import HostQuestions, check_host
from runtime.hostfacts import Host
from runtime.interpreter import find_interpreter
from runtime.layout import RECEIPT_NAME, Prefix, Release, walk_files
from runtime.preflight import Check, platform_problem
from runtime.probe import Asked, ask_models, describe_asked
from runtime.venv_check import check_venv

_SEVERITY: Final = (4, 5, 7, 6, 8, 9, 10, 3, 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the report: what was checked, how many things, the findings, seconds taken."""

    name: str
    checked: str
    problems: tuple[str, ...]
    exit_code: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReport:
    """What ``runtime verify --prefix`` found.

    ``checks`` is the host's table and ``asked`` what each model did, both empty where nobody asked for them.
    """

    release: Release
    digest: str
    trust_source: str
    sections: tuple[Section, ...]
    checks: tuple[Check, ...] = ()
    asked: Asked | None = None

    @property
    def exit_code(self) -> int:
        """0, or the code of the gravest finding."""
        codes = {section.exit_code for section in self.sections if section.problems}
        return next((code for code in _SEVERITY if code in codes), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """``depth`` is ``quick`` (sizes, times and inodes), ``normal`` or ``deep`` (whole-file digests too).

    ``questions`` asks for the host's whole table and for the network's evidence: what goes into a go-live report.
    """

    trust: TrustRoot
    trust_source: str
    now: datetime
    threshold: int = 1
    depth: str = "normal"
    models: bool = True
    questions: HostQuestions | None = None


def verify_release(
    prefix: Prefix, release: Release, options: VerifyOptions, progress: Progress, report: Callable[[str], None]
) -> ReleaseReport:
    """Check an installed release.

    Returns:
        Every section, in order. Problems are in the report, not raised.
    """
    with release.used():
        return _verify_held(prefix, release, options, progress, report)


def checked_size(release: Release, depth: str) -> int:
    """Return how many bytes :func:`verify_release` reads of payload and venv, 0 where it only looks at them."""
    if depth == "quick":
        return 0
    venv = sum((release.venv / name).lstat().st_size for name in walk_files(release.venv))
    return release.manifest().payload_size + venv


def _verify_held(
    prefix: Prefix, release: Release, options: VerifyOptions, progress: Progress, report: Callable[[str], None]
) -> ReleaseReport:
    digest = release.receipt().digest
    manifest = release.manifest()
    collected = _Collected()
    sections: list[Section] = []
    for name, error, check in _checks(prefix, release, manifest, options, progress=progress, collected=collected):
        report(name)
        changed = any(section.name == "interpreter" and section.problems for section in sections)
        if changed and name in {"host", "models"}:  # both would execute it
            check = _not_asked  # noqa: PLW2901 # what it would have found is worth nothing
        sections.append(_run_section(name, error, check))
    return ReleaseReport(
        release=release,
        digest=digest,
        trust_source=options.trust_source,
        sections=tuple(sections),
        checks=collected.checks,
        asked=collected.asked,
    )


@dataclass(slots=True, kw_only=True)
class _Collected:
    """What the sections found besides problems, filled in while they run."""

    checks: tuple[Check, ...] = ()
    asked: Asked | None = None


_Planned: TypeAlias = tuple[str, type[SealiftError], Callable[[], tuple[str, list[str]]]]


def _checks(
    prefix: Prefix,
    release: Release,
    manifest: Manifest,
    options: VerifyOptions,
    *,
    progress: Progress,
    collected: _Collected,
) -> Iterator[_Planned]:
    yield "signature", TrustError, lambda: _check_signature(release, options)
    yield "files", IntegrityError, lambda: _check_files(release, manifest, options.depth, progress)
    if options.depth != "quick":
        if find_archive(manifest) is not None:
            yield "interpreter", IntegrityError, lambda: _check_interpreter(release, manifest)
        yield "venv", IntegrityError, lambda: _check_venv(release, manifest, progress)
    yield "host", HostError, lambda: _check_host(release, manifest)
    if (questions := options.questions) is not None:
        yield "preflight", HostError, lambda: _check_table(prefix, manifest, questions, collected)
    if options.models and manifest.models:
        yield "models", AdapterError, lambda: _check_models(prefix, release, manifest, collected)
    if options.questions is not None:
        yield "network", AdapterError, lambda: _check_network(Host(), collected.asked)


def _run_section(name: str, error: type[SealiftError], check: Callable[[], tuple[str, list[str]]]) -> Section:
    start = time.monotonic()
    code = error.exit_code
    try:
        checked, problems = check()
    except SealiftError as raised:
        checked, problems, code = "not finished", [raised.message], raised.exit_code
    return Section(
        name=name, checked=checked, problems=tuple(problems), exit_code=code, seconds=time.monotonic() - start
    )


def _check_signature(release: Release, options: VerifyOptions) -> tuple[str, list[str]]:
    medium = FolderMedium(release.path)
    trusted = verify_trust(medium, options.trust, threshold=options.threshold, now=options.now)
    return ", ".join(f"{signer.principals} {signer.fingerprint}" for signer in trusted.signers), []


def _check_files(release: Release, manifest: Manifest, depth: str, progress: Progress) -> tuple[str, list[str]]:
    what = f"{len(manifest.files)} files, {'by size, time and inode' if depth == 'quick' else 'by digest'}"
    problems = list(_listing_problems(release, manifest))
    if depth == "quick":
        return what, problems + list(_stat_problems(release, manifest))
    medium = FolderMedium(release.path)
    present = tuple(entry for entry in manifest.files if (release.path / entry.path).is_file())
    problems += [str(damage) for damage in find_damage(medium, present, progress)]
    if depth == "deep":
        problems += list(whole_file_problems(medium, present))
    return what, problems


def _listing_problems(release: Release, manifest: Manifest) -> Iterator[str]:
    expected = {entry.path: entry for entry in manifest.files}
    own = {"manifest.json", "manifest.json.sig", RECEIPT_NAME}
    found = {
        path.relative_to(release.path).as_posix()
        for path in release.path.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and release.venv not in path.parents
    }
    for path in sorted(expected.keys() - found):
        yield f"{path}: missing"
    for path in sorted(found - expected.keys() - own):
        yield f"{path}: not in the manifest"
    for folder, _, _ in os.walk(release.path):
        mode = stat.S_IMODE(os.lstat(folder).st_mode)
        if mode & stat.S_IWOTH:
            yield f"{os.path.relpath(folder, release.path)}/: mode {mode:04o}, everyone may write there"
    for path in sorted(expected.keys() & found):
        status = (release.path / path).lstat()
        if status.st_size > expected[path].size:  # a shorter one fails by its digest
            yield f"{path}: {status.st_size} bytes, expected {expected[path].size}"
        mode = status.st_mode & 0o777
        wanted = 0o555 if expected[path].executable else 0o444
        if mode != wanted:
            yield f"{path}: mode {mode:04o}, expected {wanted:04o}"


def _stat_problems(release: Release, manifest: Manifest) -> Iterator[str]:
    stats = release.receipt().stats
    payload = {entry.path for entry in manifest.files}
    venv = {f"venv/{path}" for path in walk_files(release.venv)}
    yield from (f"{path}: not there after the install" for path in sorted(venv - stats.keys()))
    for path, expected in stats.items():
        try:
            status = (release.path / path).lstat()
        except FileNotFoundError:
            if path not in payload:  # the listing names those
                yield f"{path}: missing"
            continue
        if (status.st_size, status.st_mtime_ns, status.st_ino) != expected:
            yield f"{path}: size, time or inode changed since the install"


def _check_interpreter(release: Release, manifest: Manifest) -> tuple[str, list[str]]:
    entry, python = find_archive(manifest), release.receipt().python
    if entry is None or not made_of_carried(release, manifest, python):
        return f"the operator's choice, {python}, whose files nothing here can vouch for", []
    return f"every file of the carried CPython {archive_version(entry)}", carried_problems(release, manifest)


def _not_asked() -> tuple[str, list[str]]:
    return "not asked", ["nothing was executed: the interpreter is not what was signed"]


def _check_venv(release: Release, manifest: Manifest, progress: Progress) -> tuple[str, list[str]]:
    return "every file of every wheel", check_venv(release, manifest, progress)


def _check_host(release: Release, manifest: Manifest) -> tuple[str, list[str]]:
    interpreter = find_interpreter(manifest.target.python, release.python)
    problem = platform_problem(manifest.target.platform, interpreter)
    libc = " ".join(interpreter.libc)
    found = f"CPython {interpreter.version} ({interpreter.executable}) on {interpreter.machine}, {libc}"
    return found, [f"the bundle is for {manifest.target.platform}, found {problem}"] if problem else []


def _check_table(
    prefix: Prefix, manifest: Manifest, questions: HostQuestions, collected: _Collected
) -> tuple[str, list[str]]:
    collected.checks = check_host(manifest, prefix, questions)
    missed = [row for row in collected.checks if row.verdict == "failed"]
    warned = sum(row.verdict == "warning" for row in collected.checks)
    words = f"{len(collected.checks)} facts of this host, {warned} warnings"
    return words, [f"{row.name}: found {row.found}, needed {row.needed}" for row in missed]


def _check_models(prefix: Prefix, release: Release, manifest: Manifest, collected: _Collected) -> tuple[str, list[str]]:
    collected.asked = ask_models(prefix, release, manifest)
    return describe_asked(collected.asked, manifest)


def _check_network(host: Host, asked: Asked | None) -> tuple[str, list[str]]:
    """Say what shows that the network is closed; the guard's attempts are findings of the models' section already."""
    routes = host.default_routes()
    words = [f"a default route by {', '.join(routes)}" if routes else "no default route"]
    if asked is None:
        words.append("no model was asked, so nobody could try to reach it")
    else:
        words.append(f"{len(asked.attempts)} attempts refused by the guard while the models were asked")
        if asked.unroutable is not None:
            words.append(f"{asked.unroutable} packets refused by the kernel for want of a route, of all processes here")
    return "; ".join(words), []
