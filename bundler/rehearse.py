"""Rehearsal: the bundle is installed and its models are asked, without network, by the verifier that it carries."""

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bundler.quickstart import Scene, play_closed_side
from bundler.sandbox import find_isolation
from bundler.spec import host_target
from manifests.bundle import verify_trust
from manifests.digests import BUFFER_SIZE, sha256_hex
from manifests.errors import IntegrityError
from manifests.manifest import FileEntry, Manifest
from manifests.medium import Medium, open_medium
from manifests.trust import parse_allowed_signers

_VERIFIER = "bootstrap/runtime.pyz"


def rehearse_bundle(path: Path, trust: str, report: Callable[[str], None]) -> bool:
    """Install a bundle into a throw-away prefix beside it, verify it there and ask its models.

    Args:
        path: A bundle that was signed by someone in ``trust``.
        trust: The text of an ``allowed_signers`` file.
        report: Told what is rehearsed and how.

    Returns:
        False where this host can't run the target; ``report`` was told why.

    Raises:
        ClosedSideError: A step failed, with the runtime's own words and exit code.
        TrustError: Nobody in ``trust`` signed it.
        IntegrityError: It is damaged.
    """
    with open_medium(path) as medium:
        parsed = parse_allowed_signers(trust, where="the rehearsal's allowed_signers")
        bundle = verify_trust(medium, parsed, now=datetime.now(UTC))
        reason = unrehearsable(bundle.manifest)
        if reason is not None:
            report(f"NOT rehearsed: {reason}")
            return False
        medium.check_layout(bundle.manifest)
        verifier = _read_verifier(medium, bundle.manifest)
    isolation = find_isolation()
    report(f"rehearse in a {isolation.name}")
    # The name is known before the folder is there, so that an interrupt at any instant leaves nothing.
    folder = path.with_name(f".rehearsal-{os.getpid()}")
    try:
        kit = folder / "kit"
        kit.mkdir(parents=True)
        (kit / "runtime.pyz").write_bytes(verifier)
        (kit / "allowed_signers").write_text(trust, encoding="utf-8")
        play_closed_side(Scene(folder=folder, bundle=path, kit=kit), {}, lambda _: None, isolation)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def unrehearsable(manifest: Manifest) -> str | None:
    """Return why this host can't rehearse a bundle, or None if it can."""
    ours = host_target()
    if manifest.target.python != ours.python:
        return f"the bundle is for Python {manifest.target.python}, this host runs {ours.python}"
    wanted, here = manifest.target.platform.partition("-")[::2], ours.platform.partition("-")[::2]
    same_system = wanted[1].split("_")[0] == here[1].split("_")[0]
    if wanted[0] != here[0] or not same_system:
        return f"the bundle is for {manifest.target.platform}, this host is {ours.platform}"
    if manifest.target.accelerator != ours.accelerator:
        return f"the bundle is for {manifest.target.accelerator}, this host is rehearsed on {ours.accelerator} only"
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
