"""Rehearsal: the bundle is installed and its models are asked, without network, by the verifier that it carries."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundler.quickstart import ClosedSideError, Scene, play_closed_side
from bundler.rehearsal.evidence import AS_ROOT, Rehearsal, nameless, not_rehearsed, rehearsal_problem
from bundler.rehearsal.hostwheels import lay_out, missing_libraries, physical_memory, why_unasked
from bundler.rehearsal.sandbox import Isolation, find_isolation
from bundler.sealing.pack import Source
from bundler.spec import host_target
from manifests.bundle import verify_trust
from manifests.digests import BUFFER_SIZE, sha256_hex
from manifests.errors import IntegrityError, UsageError
from manifests.files import READ_ONLY, READ_ONLY_EXECUTABLE, free_space
from manifests.manifest import FileEntry, Manifest, Target, manifest_digest, parse_manifest
from manifests.medium import Medium, open_medium
from manifests.pieces import ReadAt
from manifests.sources import Supply
from manifests.trust import parse_allowed_signers

_VERIFIER = "bootstrap/runtime.pyz"


def rehearse_bundle(
    path: Path,
    trust: str,
    report: Callable[[str], None],
    *,
    volumes: tuple[Path, ...] = (),
    base: Source | None = None,
) -> Rehearsal:
    """Install a bundle into a throw-away prefix beside it, verify it there, import what it declares, ask its models.

    Where this host can't run the target, the bundle is verified all the same, its models are asked on this host's own
    wheels where it has those, and ``report`` is told what is not rehearsed.

    Args:
        path: A bundle that was signed by someone in ``trust``.
        trust: The text of an ``allowed_signers`` file.
        report: Told what is rehearsed and how.
        volumes: More folders with volumes.
        base: Opens the files that a delta leaves out; they are put into the throw-away prefix's store, where the
            runtime checks them, as a base that is installed would have left them.

    Returns:
        What was rehearsed and what was not.

    Raises:
        ClosedSideError: A step failed, with the runtime's own words and exit code.
        InstallError: A module that the spec lists doesn't import.
        AdapterError: A model doesn't load, or doesn't give the recorded answers.
        PolicyError: Something tried to reach the network, and the spec doesn't say that it may.
        UsageError: It is a delta, and ``base`` is None.
        TrustError: Nobody in ``trust`` signed it.
        IntegrityError: It is damaged.
    """
    subject = _examine(path, trust, volumes, base)
    manifest, reason, isolation = subject.manifest, subject.reason, find_isolation()
    report(f"verify in a {isolation.name}; {reason}" if reason else f"rehearse in a {isolation.name}")
    # The name is known before the folder is there, so that an interrupt at any instant leaves nothing.
    folder = _workplace(path, manifest) / f".rehearsal-{os.getpid()}"
    try:
        scene = Scene(folder=folder, bundle=path, kit=_lay_kit(folder, subject.verifier, trust), volumes=volumes)
        if base is not None and subject.left_out and not reason:
            report(f"put the {len(subject.left_out)} files of the base into its store")
            _fill_store(scene.prefix / "store", subject.left_out, base)
        unpacked = _lay_models(scene, subject, base, report)
        done = _play(scene, subject, isolation, unpacked)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for words in not_rehearsed(manifest, done):
        if words != AS_ROOT:  # nothing that is lacking in the bundle
            report(f"NOT rehearsed: {words}")
    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is rehearsed. ``reason`` is why it can't run here, empty where it can; ``left_out`` is a delta's.

    ``unasked`` says of each model why it can't be asked on this host's own wheels either.
    """

    manifest: Manifest
    digest: str
    reason: str
    verifier: bytes
    left_out: tuple[FileEntry, ...]
    unasked: Mapping[str, str]


def _examine(path: Path, trust: str, volumes: tuple[Path, ...], base: Source | None) -> _Subject:
    """Return what there is to rehearse, once its signature was verified."""
    with open_medium(path, Supply(folders=volumes)) as medium:
        parsed = parse_allowed_signers(trust, where="the rehearsal's allowed_signers")
        bundle = verify_trust(medium, parsed, now=datetime.now(UTC))
        manifest, reason = bundle.manifest, unrehearsable(bundle.manifest.target)
        medium.check_layout(manifest)
        left_out = tuple(entry for entry in manifest.files if not medium.carries(entry))
        if medium.delta is not None and left_out and base is None and reason is None:
            msg = f"{path}: is a delta to {medium.delta.base_label}, which a rehearsal needs, too"
            raise UsageError(msg, hint=f"bundler rehearse {path} --base BUNDLE --trust FILE")
        missing, memory = missing_libraries(), physical_memory()
        return _Subject(
            manifest=manifest,
            digest=bundle.digest,
            reason=reason or "",
            verifier=_read_verifier(medium, manifest),
            left_out=left_out,
            unasked=why_unasked(medium, manifest, base, missing=missing, memory=memory) if reason else {},
        )


def _lay_models(scene: Scene, subject: _Subject, base: Source | None, report: Callable[[str], None]) -> Path | None:
    """Lay out the models of a bundle that can't run here, None where there is nothing to be asked."""
    if not subject.reason or len(subject.unasked) == len(subject.manifest.models):
        return None
    report("ask its models on this host's own wheels, not the target's")
    with open_medium(scene.bundle, Supply(folders=scene.volumes)) as medium:
        medium.check_layout(subject.manifest)
        return lay_out(medium, subject.manifest, scene.prefix / "releases", base, subject.unasked)


def _play(scene: Scene, subject: _Subject, isolation: Isolation, unpacked: Path | None) -> Rehearsal:
    """Rehearse, and raise what keeps the bundle from being signed."""
    steps, kernel, facts = dict[str, str](), dict[str, int](), dict[str, Any]()

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] == "done":
            steps[event["step"]] = event["seconds"]
        elif event["event"] == "kernel":
            kernel[event["step"]] = event["count"]
        elif event["event"] in {"user", "evidence", "host wheels", "unasked"}:
            facts[event["event"]] = event.get("document", event.get("name", event.get("text")))

    failed: ClosedSideError | None = None
    asked = {"unpacked": str(unpacked)} if unpacked is not None else {}
    try:
        play_closed_side(scene, {}, tell, isolation, rehearsal={"runs_here": not subject.reason, **asked})
    except ClosedSideError as error:
        failed = error
    crashed = dict.fromkeys((model.name for model in subject.manifest.models), facts.get("unasked", ""))
    done = Rehearsal(
        reason=subject.reason,
        isolation=isolation.name,
        is_closed=isolation.is_namespace,
        user=facts.get("user", ""),
        steps=steps,
        kernel=kernel,
        found=facts.get("evidence", {}),
        host_wheels=nameless(facts.get("host wheels", {}), scene.folder),
        unasked={**(nameless(crashed, scene.folder) if "unasked" in facts else {}), **subject.unasked},
        digest=subject.digest,
        manifest=subject.manifest,
    )
    problem = rehearsal_problem(done, subject.manifest)
    if problem is not None and (failed is None or "evidence" in facts):
        raise problem
    if failed is not None:
        raise failed
    return done


def _lay_kit(folder: Path, verifier: bytes, trust: str) -> Path:
    """Write the verifier and the trust file so that an ordinary user can read them, whatever the umask is."""
    kit = folder / "kit"
    kit.mkdir(parents=True)
    (kit / "runtime.pyz").write_bytes(verifier)
    (kit / "allowed_signers").write_text(trust, encoding="utf-8")
    for path in (folder, kit):
        path.chmod(0o755)
    for path in kit.iterdir():
        path.chmod(0o644)
    return kit


@contextlib.contextmanager
def open_base(path: Path, delta_to: Path) -> Iterator[Source]:
    """Open the bundle that a delta was made to, and give its files by their content.

    Raises:
        IntegrityError: It is damaged, or not the base of the delta.
    """
    with open_medium(delta_to) as medium:
        wanted = medium.delta
    with open_medium(path) as medium:
        digest = manifest_digest(medium.manifest_bytes)
        if wanted is not None and wanted.base != digest:
            msg = f"{path}: has the manifest digest {digest}, the delta is to {wanted.base_label}"
            raise IntegrityError(msg, hint="give the bundle that it was made to")
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        known = {entry.store_key: entry for entry in manifest.files}
        opened = medium

        def source(entry: FileEntry) -> contextlib.AbstractContextManager[ReadAt]:
            found = known.get(entry.store_key)
            if found is None:
                raise IntegrityError(f"{path}: has no file with the content of {entry.path}")
            return opened.reader(found)

        yield source


def _fill_store(root: Path, files: tuple[FileEntry, ...], source: Source) -> None:
    """Lay files down as a prefix's store has them (section 6 of the design); the runtime checks every one of them."""
    buffer = memoryview(bytearray(BUFFER_SIZE))
    for entry in {entry.store_key: entry for entry in files}.values():
        path = root / "sha256" / entry.store_key[:2] / entry.store_key
        path.parent.mkdir(parents=True, exist_ok=True)
        with source(entry) as read, path.open("xb") as stream:
            done = 0
            while done < entry.size and (count := read(buffer[: entry.size - done], done)):
                stream.write(buffer[:count])
                done += count
        path.chmod(READ_ONLY_EXECUTABLE if entry.executable else READ_ONLY)


def _workplace(path: Path, manifest: Manifest) -> Path:
    """Return a folder for the rehearsal: beside the bundle, unless that disk is full or knows no hard links (FAT)."""
    unpacked = manifest.launch.get("unpacked-size", 0)
    needed = manifest.payload_size + (unpacked if isinstance(unpacked, int) else 0)
    other = Path(tempfile.gettempdir())
    return path.parent if _has_links(path.parent) and free_space(path.parent) >= needed else other


def _has_links(folder: Path) -> bool:
    probe = folder / f".rehearsal-{os.getpid()}.probe"
    twin = probe.with_suffix(".twin")
    try:
        probe.touch()
        os.link(probe, twin)
    except OSError:
        return False
    finally:
        for name in (probe, twin):
            name.unlink(missing_ok=True)
    return True


def unrehearsable(target: Target) -> str | None:
    """Return why this host can't rehearse bundles for a target, or None if it can."""
    ours = host_target()
    if target.python != ours.python:
        return f"the bundle is for Python {target.python}, this host runs {ours.python}"
    wanted, here = target.platform.partition("-")[::2], ours.platform.partition("-")[::2]
    same_system = wanted[1].split("_")[0] == here[1].split("_")[0]
    if wanted[0] != here[0] or not same_system:
        return f"the bundle is for {target.platform}, this host is {ours.platform}"
    if target.accelerator != ours.accelerator:
        return f"the bundle is for {target.accelerator}, this host is rehearsed on {ours.accelerator} only"
    return None


def _read_verifier(medium: Medium, manifest: Manifest) -> bytes:
    entry = next((entry for entry in manifest.files if entry.path == _VERIFIER), None)
    if entry is None:
        raise IntegrityError(f"{medium.label}: carries no {_VERIFIER}")
    content = _read_all(medium, entry)
    if sha256_hex(content) != entry.sha256:
        raise IntegrityError(f"{_VERIFIER}: expected sha256 {entry.sha256}, got {sha256_hex(content)}")
    return content


def _read_all(medium: Medium, entry: FileEntry) -> bytes:
    buffer, content = memoryview(bytearray(BUFFER_SIZE)), bytearray()
    with medium.reader(entry) as read:
        while len(content) < entry.size and (count := read(buffer[: entry.size - len(content)], len(content))):
            content += buffer[:count]
    return bytes(content)
