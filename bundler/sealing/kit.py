"""The kit: the verifier and the trusted signers, for the way that the bundle does not take."""

import shutil
from pathlib import Path
from typing import Final

from bundler.contents.fleet import FLEET_NAMES
from bundler.contents.render import Subject, render_verify_text
from manifests.digests import sha256_hex
from manifests.errors import IntegrityError
from manifests.files import disk_error, write_atomic
from manifests.manifest import Manifest

SUMS_NAME: Final = "SHA256SUMS"
CARRIED: Final = ("Dockerfile.offline", "install.sh", "runtime.pyz", *FLEET_NAMES)
"""The files of ``bootstrap/`` that whoever installs executes; they travel in the kit too."""


def trust_in_kit(folder: Path, line: str) -> str:
    """Add a line of ``allowed_signers`` to the kit of a bundle that was signed after it was built.

    Args:
        folder: The kit.
        line: As :func:`bundler.sealing.keys.allowed_signers_line` makes it; a key that is trusted already isn't added.

    Returns:
        The kit's digest, which is another one than before as soon as something was added.

    Raises:
        IntegrityError: The kit isn't what its SHA256SUMS says.
        DiskError: It can't be read or written.
    """
    signers, sums = folder / "allowed_signers", folder / SUMS_NAME
    try:
        before, listed = signers.read_bytes(), sums.read_bytes()
    except OSError as error:
        raise disk_error(error, f"read {folder}") from error
    entry = f"{sha256_hex(before)}  allowed_signers\n".encode()
    if entry not in listed.splitlines(keepends=True):
        hint = "build the bundle again, or move the kit away"
        raise IntegrityError(f"{signers}: is not what {sums} lists", hint=hint)
    if line.rsplit(maxsplit=1)[-1].encode() not in before.split():
        after = before + line.encode("utf-8")
        listed = listed.replace(entry, f"{sha256_hex(after)}  allowed_signers\n".encode())
        write_atomic(signers, after)
        write_atomic(sums, listed)
    return sha256_hex(listed)


def write_kit(folder: Path, manifest: Manifest, bootstrap: dict[str, bytes], allowed_signers: str) -> str:
    """Write ``NAME-VERSION-TARGET.kit/``, replacing an older one.

    Args:
        folder: Where to write it.
        manifest: The bundle's manifest; its ``bootstrap/`` entries are listed in SHA256SUMS.
        bootstrap: The contents of :data:`CARRIED` by file name, as far as the bundle has them.
        allowed_signers: The text of the trust file, empty for an unsigned bundle.

    Returns:
        The kit's one digest: the sha256 of its SHA256SUMS, which lists everything else.

    Raises:
        DiskError: It can't be written.
    """
    subject = Subject(name=manifest.name, version=manifest.version, target=manifest.target, models=manifest.models)
    own = {"VERIFY.txt": render_verify_text(subject), "allowed_signers": allowed_signers.encode("utf-8")}
    digests = {name: sha256_hex(data) for name, data in own.items()}
    digests |= {entry.path.removeprefix("bootstrap/"): entry.sha256 for entry in manifest.of_kind("bootstrap")}
    sums = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(digests.items())).encode("utf-8")
    carried: dict[str, bytes] = {name: bootstrap[name] for name in CARRIED if name in bootstrap}
    files = own | carried | {SUMS_NAME: sums}
    try:
        if folder.exists():
            shutil.rmtree(folder)
        for parent in {(folder / name).parent for name in files}:
            parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, f"write {folder}") from error
    for name, data in files.items():
        write_atomic(folder / name, data, mode=0o755 if name.endswith(".sh") else 0o644)
    return sha256_hex(sums)
