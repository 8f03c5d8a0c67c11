"""Installing a trusted bundle as a transaction.

Preflight, then one pass into the store, wheels first: from them the venv is made and checked at its final path while
the models are still copied. Hard links under the real names, receipt, and last of all ``current``. Killed at any
instant, what was live stays live: a release counts only once its receipt is there, and the receipt is written only
after everything before it is durable.
"""

import contextlib
import os
import shutil
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from manifests.bundle import TrustedBundle
from manifests.delta import base_error
from manifests.errors import IntegrityError, UsageError
from manifests.files import disk_error, free_space, replace_link, write_atomic
from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest
from manifests.medium import Medium
from manifests.pieces import Progress
from manifests.progress import format_size
from runtime.beside import beside
from runtime.environment import Environment, drop_uv_cache
from runtime.interpreter import Interpreter
from runtime.layout import RECEIPT_NAME, Prefix, Receipt, Release, exclusive
from runtime.policy import check_contents, check_names
from runtime.preflight import disk_needed, preflight, require
from runtime.state import State, advance_state, check_may_install, downgrade_note, load_state, record
from runtime.steps import Checkpoint, go_on
from runtime.store import Store
from runtime.trust import copy_trust


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """What the operator chose.

    ``trust_text`` is kept in ``etc/`` for later checks of the installed release; ``notes`` go into the log beforehand.
    ``checkpoint`` is called after each of :data:`runtime.steps.INSTALL_STEPS`.
    """

    trust_text: str
    notes: tuple[str, ...] = ()
    allow_downgrade: bool = False
    python: Path | None = None
    smoke: bool = True
    checkpoint: Checkpoint = go_on


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
        PolicyError: Older than what was ever installed here, or its own signed policy refuses a file.
        HostError: The host does not fit.
        DiskError: No space, no permission, or another installer is at work.
        IntegrityError: The bundle's content is not what was signed.
        InstallError: uv or the smoke test refuses.
    """
    check_may_install(load_state(prefix), bundle.manifest, allow_downgrade=options.allow_downgrade)
    check_names(bundle.manifest)
    release = prefix.release_for(bundle.manifest, bundle.digest)
    if not release.is_complete:
        needed, free = disk_needed(bundle.manifest, prefix), free_space(prefix.path)
        report(f"preflight: writes {format_size(needed)}, {format_size(free)} are free")
        require(preflight(bundle.manifest, prefix, python=options.python))
        bundle.medium.check_layout(bundle.manifest)
        if (lacking := base_problem(bundle.medium, bundle.manifest, prefix)) is not None:
            raise lacking
    with exclusive(prefix, "install"):
        options.checkpoint("locked")
        state = load_state(prefix)
        check_may_install(state, bundle.manifest, allow_downgrade=options.allow_downgrade)
        for note in options.notes:
            record(prefix, f"install {release.name}: {note}")
        made = not release.is_complete
        if made:
            sweep(prefix)
            release.remove()  # where a repair of it was stopped
            options.checkpoint("swept")
            _make_release(bundle, prefix, release, options, progress=progress, report=report)
        flipped = _go_live(prefix, release, bundle.manifest, state, options.checkpoint)
        return Installed(release=release, changed=made or flipped)


def _make_release(
    bundle: TrustedBundle,
    prefix: Prefix,
    release: Release,
    options: InstallOptions,
    *,
    progress: Progress,
    report: Callable[[str], None],
) -> None:
    manifest, checkpoint = bundle.manifest, options.checkpoint
    report("copy and verify")
    store = Store(root=prefix.store, checkpoint=checkpoint)
    vouched = vouched_keys(prefix)
    wheels = manifest.of_kind("bootstrap") + manifest.of_kind("wheel")
    rest = tuple(entry for entry in manifest.files if entry.kind not in {"bootstrap", "wheel"})
    environment = Environment(
        prefix=prefix,
        release=release,
        manifest=manifest,
        python=options.python,
        smoke=options.smoke,
        checkpoint=checkpoint,
        report=report,
    )
    store.ingest(bundle.medium, wheels, vouched, progress)
    checkpoint("wheels stored")
    try:
        _link_files(store, release, wheels)
        checkpoint("wheels linked")
        report("virtual environment")
        # uv works while the models are copied: all that it gets to see was verified.
        with beside(environment.make) as made:
            known = vouched.union(entry.store_key for entry in wheels)
            store.ingest(bundle.medium, rest, known, progress)
            bundle.medium.check_end(ask=False)
            checkpoint("store filled")
            report("link")
            _link_files(store, release, rest)
            checkpoint("files linked")
            check_contents(manifest, release.path)
            write_atomic(release.path / MANIFEST_NAME, bundle.medium.manifest_bytes, mode=0o444)
            checkpoint("manifest written")
            write_atomic(release.path / SIGNATURE_NAME, bundle.medium.signature_slot, mode=0o444)
            checkpoint("signature written")
            interpreter = made.result()
        _write_settings(prefix, release, manifest, options)
        checkpoint("settings written")
        report("receipt")
        os.sync()
        checkpoint("synced")
        write_atomic(release.path / RECEIPT_NAME, new_receipt(bundle, release, interpreter).encode(), mode=0o444)
        checkpoint("receipt written")
    except BaseException:
        # Not the store: its verified files make the next attempt fast.
        with contextlib.suppress(OSError):
            release.remove()
        raise


def base_problem(medium: Medium, manifest: Manifest, prefix: Prefix) -> IntegrityError | None:
    """Return (not raise) what is wrong with the base of a delta, None if all that it leaves out is there.

    Sizes are compared here; contents are checked while it is installed. The error names the base.
    """
    problems = Store(root=prefix.store).lacking(medium, manifest.files)
    return base_error(medium.label, medium.delta, problems) if medium.delta is not None and problems else None


def sweep(prefix: Prefix) -> None:
    """Remove what interrupted installs left: folders without a receipt are not releases, unless a repair is to end.

    uv's cache goes with them: after a power cut nobody knows which of its files are whole.
    """
    stopped = [release for release in prefix.all_releases() if not release.is_complete]
    for release in stopped:
        if not release.in_repair:
            shutil.rmtree(release.path)
    if stopped:
        drop_uv_cache(prefix)
    for leftover in (*prefix.path.glob(".*.partial"), *(prefix.var / "run").iterdir()):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()


def vouched_keys(prefix: Prefix) -> frozenset[str]:
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
            store.checkpoint("file linked")
    except OSError as error:
        raise disk_error(error, f"link files below {release.path}") from error


def _write_settings(prefix: Prefix, release: Release, manifest: Manifest, options: InstallOptions) -> None:
    """Expand ``${PREFIX}`` in the settings below ``etc/``; a file that the operator changed is left alone."""
    before = prefix.live()
    copy_trust(prefix, options.trust_text)
    for path, destination in _settings(prefix, manifest):
        known = _expanded(prefix, before, path) if before else None
        if not destination.exists() or destination.read_bytes() == known:
            write_atomic(destination, _expanded(prefix, release, path) or b"")


def written_settings(prefix: Prefix) -> dict[Path, set[bytes]]:
    """Return every settings file that installs may have written below ``etc/``, with the contents it may have."""
    found: dict[Path, set[bytes]] = {}
    for release in prefix.all_releases():
        with contextlib.suppress(IntegrityError):
            for path, destination in _settings(prefix, release.manifest()):
                found.setdefault(destination, set()).add(_expanded(prefix, release, path) or b"")
    return found


def _settings(prefix: Prefix, manifest: Manifest) -> Iterator[tuple[str, Path]]:
    for entry in manifest.of_kind("config"):
        if entry.path.endswith((".env", ".service", ".timer", ".sh")):
            yield entry.path, prefix.etc / Path(entry.path).name


def _expanded(prefix: Prefix, release: Release, path: str) -> bytes | None:
    """Return a settings file of ``release`` with its placeholders filled in, None where there is no such file."""
    try:
        text = (release.path / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    values = {"PREFIX": str(prefix.path), "RELEASE": str(release.path)}
    return string.Template(text).safe_substitute(values).encode()


def new_receipt(bundle: TrustedBundle, release: Release, interpreter: Interpreter) -> Receipt:
    """Return the receipt of a release as it lies there now."""
    return Receipt(
        digest=bundle.digest,
        installed=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        signers=tuple(f"{signer.principals} {signer.fingerprint}" for signer in bundle.signers),
        python=str(interpreter.executable),
        stats=release.stats(bundle.manifest),
    )


def _go_live(prefix: Prefix, release: Release, manifest: Manifest, state: State | None, checkpoint: Checkpoint) -> bool:
    before = prefix.live() or prefix.stopped_repair()
    if before is not None and before.name == release.name:
        return False
    record(prefix, f"install {release.name}{downgrade_note(state, manifest)}")
    checkpoint("logged")
    previous = before.name if before else ""
    advance_state(prefix, state, manifest, previous=previous, earlier=state.before(previous) if state else "")
    checkpoint("state written")
    replace_link(prefix.current, f"releases/{release.name}")
    checkpoint("live")
    return True


def rollback(prefix: Prefix) -> Release:
    """Make the release live again that was live before.

    Raises:
        UsageError: There is none, or it was removed.
    """
    live = prefix.stopped_repair() or prefix.require_live()
    with exclusive(prefix, "rollback"):
        state = load_state(prefix)
        names = {release.name: release for release in prefix.all_releases() if release.is_complete}
        previous = names.get(state.before(live.name)) if state else None
        if state is None or previous is None or previous.name == live.name:
            hint = f"runtime status --prefix {prefix.path}"
            raise UsageError(f"{prefix.path}: there is no earlier release to go back to", hint=hint)
        write_atomic(prefix.state, replace(state, previous=live.name, earlier=previous.name).encode())
        record(prefix, f"rollback {previous.name}")
        replace_link(prefix.current, f"releases/{previous.name}")
        return previous
