"""Installing a trusted bundle as a transaction.

Preflight, then one pass into the store, hard links under the real names, the venv at its final path, smoke test,
receipt, and last of all ``current``. Killed at any instant, what was live stays live: a release counts only once its
receipt is there, and the receipt is written only after everything before it is durable.
"""

import contextlib
import os
import shutil
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from manifests.bundle import TrustedBundle
from manifests.errors import DiskError, IntegrityError, UsageError
from manifests.files import disk_error, free_space, locked, replace_link, write_atomic
from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest
from manifests.pieces import Progress
from manifests.progress import format_size
from runtime.interpreter import find_interpreter
from runtime.layout import RECEIPT_NAME, Prefix, Receipt, Release, make_folder
from runtime.preflight import disk_needed, preflight, require
from runtime.smoke import smoke_test
from runtime.state import State, advance_state, check_may_install, load_state
from runtime.store import Store
from runtime.venv import build_venv

TRUST_COPY = "allowed_signers"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """What the operator chose. ``trust_text`` is kept in ``etc/`` for later checks of the installed release."""

    trust_text: str
    allow_downgrade: bool = False
    python: Path | None = None
    smoke: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an install did. ``changed`` is False when the release was there and live already."""

    release: Release
    changed: bool


def install(
    bundle: TrustedBundle,
    prefix: Prefix,
    options: InstallOptions,
    progress: Progress,
    report: Callable[[str], None],
) -> Installed:
    """Make the bundle the live release of ``prefix``.

    Args:
        bundle: Its signature was checked.
        prefix: Where to install.
        options: The operator's choices.
        progress: Told of every payload byte.
        report: Told of every step, in a few words.

    Raises:
        PolicyError: Older than what was ever installed here.
        HostError: The host does not fit.
        DiskError: No space, no permission, or another installer is at work.
        IntegrityError: The bundle's content is not what was signed.
        InstallError: uv or the smoke test refuses.
    """
    check_may_install(load_state(prefix), bundle.manifest, allow_downgrade=options.allow_downgrade)
    release = prefix.release_for(bundle.manifest, bundle.digest)
    if not release.is_complete:
        needed, free = disk_needed(bundle.manifest, prefix), free_space(prefix.path)
        report(f"preflight: writes {format_size(needed)}, {format_size(free)} are free")
        require(preflight(bundle.manifest, prefix, python=options.python))
        bundle.medium.check_layout(bundle.manifest)
    with _exclusive(prefix, "install"):
        state = load_state(prefix)
        check_may_install(state, bundle.manifest, allow_downgrade=options.allow_downgrade)
        if release.is_complete:
            return Installed(release=release, changed=_go_live(prefix, release, bundle.manifest, state))
        _sweep(prefix)
        _make_release(bundle, prefix, release, options, progress=progress, report=report)
        return Installed(release=release, changed=_go_live(prefix, release, bundle.manifest, state))


def _make_release(
    bundle: TrustedBundle,
    prefix: Prefix,
    release: Release,
    options: InstallOptions,
    *,
    progress: Progress,
    report: Callable[[str], None],
) -> None:
    manifest = bundle.manifest
    report("copy and verify")
    store = Store(root=prefix.store)
    store.ingest(bundle.medium, manifest.files, _vouched_keys(prefix), progress)
    try:
        report("link")
        _link_files(store, release, manifest.files)
        write_atomic(release.path / MANIFEST_NAME, bundle.medium.manifest_bytes, mode=0o444)
        write_atomic(release.path / SIGNATURE_NAME, bundle.medium.signature_slot, mode=0o444)
        report("virtual environment")
        interpreter = find_interpreter(manifest.target.python, options.python)
        build_venv(prefix, release, manifest, interpreter)
        if options.smoke:
            report("smoke test")
            smoke_test(prefix, release, manifest)
        _write_settings(prefix, release, manifest, options)
        report("receipt")
        os.sync()
        _write_receipt(bundle, release, str(interpreter.executable))
    except BaseException:
        # Not the store: its verified files make the next attempt fast.
        shutil.rmtree(release.path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _exclusive(prefix: Prefix, command: str) -> Iterator[None]:
    for folder in (prefix.var / "run", prefix.var / "cache", prefix.var / "logs", prefix.releases, prefix.etc):
        make_folder(folder)
    holder = prefix.var / "install.holder"
    with locked(prefix.install_lock, blocking=False) as got:
        if not got:
            with contextlib.suppress(OSError):
                who = holder.read_text(encoding="utf-8").strip()
                raise DiskError(f"{prefix.path}: in use by another runtime ({who})", hint="wait for it, then try again")
            raise DiskError(f"{prefix.path}: in use by another runtime", hint="wait for it, then try again")
        holder.write_text(f"runtime {command}, process {os.getpid()}\n", encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _sweep(prefix: Prefix) -> None:
    """Remove what interrupted installs left: folders without a receipt are not releases.

    uv's cache goes with them: after a power cut nobody knows which of its files are whole, and uv doesn't check them.
    """
    unfinished = [release.path for release in prefix.all_releases() if not release.is_complete]
    for folder in [*unfinished, prefix.var / "cache" / "uv"] if unfinished else []:
        if folder.exists():
            shutil.rmtree(folder)
    for leftover in (*prefix.path.glob(".*.partial"), *(prefix.var / "run").iterdir()):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()


def _vouched_keys(prefix: Prefix) -> frozenset[str]:
    """Return the store keys that complete releases hold; one whose manifest was changed vouches for nothing."""
    keys: set[str] = set()
    for release in prefix.all_releases():
        if release.is_complete:
            with contextlib.suppress(IntegrityError):
                keys.update(entry.store_key for entry in release.manifest().files)
    return frozenset(keys)


def _link_files(store: Store, release: Release, files: tuple[FileEntry, ...]) -> None:
    made: set[Path] = set()
    try:
        for entry in files:
            path = release.path / entry.path
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            os.link(store.path(entry.store_key), path, follow_symlinks=False)
    except OSError as error:
        raise disk_error(error, f"link files below {release.path}") from error


def _write_settings(prefix: Prefix, release: Release, manifest: Manifest, options: InstallOptions) -> None:
    """Expand ``${PREFIX}`` in the settings below ``etc/``; a file that the operator changed is left alone."""
    before = prefix.live()
    write_atomic(prefix.etc / TRUST_COPY, options.trust_text.encode())
    for entry in manifest.of_kind("config"):
        if entry.path.endswith((".env", ".service", ".sh")):
            destination = prefix.etc / Path(entry.path).name
            known = _expanded(prefix, before, entry.path) if before else None
            if not destination.exists() or destination.read_bytes() == known:
                write_atomic(destination, _expanded(prefix, release, entry.path) or b"")


def _expanded(prefix: Prefix, release: Release, path: str) -> bytes | None:
    """Return a settings file of ``release`` with its placeholders filled in, None where there is no such file."""
    try:
        text = (release.path / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    values = {"PREFIX": str(prefix.path), "RELEASE": str(release.path)}
    return string.Template(text).safe_substitute(values).encode()


def _write_receipt(bundle: TrustedBundle, release: Release, python: str) -> None:
    stats = {}
    for entry in bundle.manifest.files:
        status = (release.path / entry.path).lstat()
        stats[entry.path] = (status.st_size, status.st_mtime_ns, status.st_ino)
    receipt = Receipt(
        digest=bundle.digest,
        installed=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        signers=tuple(f"{signer.principals} {signer.fingerprint}" for signer in bundle.signers),
        python=python,
        stats=stats,
    )
    write_atomic(release.path / RECEIPT_NAME, receipt.encode(), mode=0o444)


def _go_live(prefix: Prefix, release: Release, manifest: Manifest, state: State | None) -> bool:
    before = prefix.live()
    if before is not None and before.name == release.name:
        return False
    downgrade = state is not None and manifest.sequence < state.sequence
    _log(prefix, f"install {release.name}{', an allowed downgrade' if downgrade else ''}")
    advance_state(prefix, state, manifest, previous=before.name if before else "")
    replace_link(prefix.current, f"releases/{release.name}")
    return True


def _log(prefix: Prefix, what: str) -> None:
    """Add a line to ``var/logs/releases.log``: who goes live, and when."""
    try:
        with (prefix.var / "logs" / "releases.log").open("a", encoding="utf-8") as stream:
            stream.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {what}\n")
    except OSError as error:
        raise disk_error(error, "write releases.log") from error


def rollback(prefix: Prefix) -> Release:
    """Make the release live again that was live before.

    Raises:
        UsageError: There is none, or it was removed.
    """
    live = prefix.require_live()
    with _exclusive(prefix, "rollback"):
        state = load_state(prefix)
        names = {release.name: release for release in prefix.all_releases() if release.is_complete}
        previous = names.get(state.previous) if state else None
        if state is None or previous is None or previous.name == live.name:
            raise UsageError(f"{prefix.path}: there is no earlier release to go back to", hint="runtime status")
        write_atomic(
            prefix.state,
            State(name=state.name, sequence=state.sequence, created=state.created, previous=live.name).encode(),
        )
        _log(prefix, f"rollback {previous.name}")
        replace_link(prefix.current, f"releases/{previous.name}")
        return previous
