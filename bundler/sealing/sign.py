"""Signing a finished bundle in place, and making signatures elsewhere possible."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.sealing.keys import Signer
from bundler.sealing.pack import replace_slot, signature_slot
from manifests.errors import TrustError
from manifests.files import write_atomic
from manifests.manifest import SIGNATURE_NAME, parse_manifest
from manifests.medium import Medium, open_medium
from manifests.sshsig import BUNDLE_NAMESPACE, PublicKey, SshSignature, parse_signatures
from manifests.tarlayout import head_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """How many signatures the slot holds now, the key of the one asked for, and where the bundle's kit should be."""

    count: int
    key: PublicKey
    kit: Path


_MADE_BY: Final = (
    f"bundler manifest BUNDLE > manifest.json; ssh-keygen -Y sign -f KEY -n {BUNDLE_NAMESPACE} manifest.json"
)


def sign_bundle(path: Path, signer: Signer) -> Signed:
    """Fill or co-sign the signature slot of a bundle in place; nothing else of it is touched.

    Signing again with the same key changes nothing.

    Raises:
        IntegrityError: Not a bundle, or the slot is full.
        TrustError: The slot holds something else, or a signature that does not fit the manifest.
        DiskError: The bundle can't be written.
    """
    return _add_block(path, signer.sign)


def attach_signature(path: Path, block: bytes) -> Signed:
    """Put a signature that was made elsewhere (``ssh-keygen -Y sign -n sealift-bundle-v1``) into the slot.

    Raises:
        TrustError: It isn't one signature over this bundle's manifest.
    """
    try:
        found = parse_signatures(block)
    except TrustError as error:
        raise TrustError(f"the file is not an SSH signature: {error.message}", hint=_MADE_BY) from None
    if len(found) != 1:
        raise TrustError("the file does not hold exactly one SSH signature", hint=_MADE_BY)
    return _add_block(path, lambda _: block)


def _add_block(path: Path, make: Callable[[bytes], bytes]) -> Signed:
    with open_medium(path) as medium:
        manifest = parse_manifest(medium.manifest_bytes)  # nothing else is ever signed in this namespace
        content = medium.signature_slot.strip(b"\n")
        existing = parse_signatures(medium.signature_slot)
        block = make(medium.manifest_bytes)
        (added,) = parse_signatures(block)
        for signature in (*existing, added):
            _require_fit(signature, medium)
        is_new = all(signature.key.blob != added.key.blob for signature in existing)
        if is_new:
            slot = signature_slot(*([content + b"\n"] if content else []), block)
            _write_slot(path, medium, slot)
    kit = path.absolute().parent / f"{manifest.stem}.kit"
    return Signed(count=len(existing) + is_new, key=added.key, kit=kit)


def _require_fit(signature: SshSignature, medium: Medium) -> None:
    if not signature.verifies(medium.manifest_bytes, BUNDLE_NAMESPACE):
        msg = f"{medium.label}: the signature by {signature.key.fingerprint} does not fit this manifest and namespace"
        raise TrustError(msg, hint=f"sign manifest.json itself: ssh-keygen -Y sign -n {BUNDLE_NAMESPACE} -f KEY")


def _write_slot(path: Path, medium: Medium, slot: bytes) -> None:
    if path.is_dir():
        write_atomic(path / SIGNATURE_NAME, slot)
    else:
        replace_slot(path, len(head_of(medium.manifest_bytes)), slot)
