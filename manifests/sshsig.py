"""SSH signatures (OpenSSH's PROTOCOL.sshsig), read strictly: what is accepted here, ssh-keygen accepts too.

A signature slot holds armored blocks, one after another, and newlines, nothing else. Keys are ``ssh-ed25519`` and
``sk-ssh-ed25519@openssh.com`` (a FIDO token, user presence required).
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from manifests import ed25519
from manifests.errors import TrustError

BUNDLE_NAMESPACE: Final = "sealift-bundle-v1"
REHEARSAL_NAMESPACE: Final = "sealift-rehearsal-v1"
ED25519: Final = "ssh-ed25519"
SK_ED25519: Final = "sk-ssh-ed25519@openssh.com"
_MAGIC: Final = b"SSHSIG"
_BEGIN: Final = b"-----BEGIN SSH SIGNATURE-----\n"
_END: Final = b"-----END SSH SIGNATURE-----\n"
_BLOCK: Final = re.compile(re.escape(_BEGIN) + rb"((?:[A-Za-z0-9+/=]{1,76}\n)+)" + re.escape(_END))
_USER_PRESENT: Final = 0x01
_HASHES: Final = {"sha512": hashlib.sha512, "sha256": hashlib.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """An SSH public key: its type, its wire form, the 32 bytes of the point, a token's application."""

    type: str
    blob: bytes
    point: bytes
    application: bytes = b""

    @property
    def fingerprint(self) -> str:
        """``SHA256:...``, as ``ssh-keygen -l`` prints it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).rstrip(b"=")
        return f"SHA256:{digest.decode('ascii')}"

    @property
    def line(self) -> str:
        """Type and base64, as in a ``.pub`` file."""
        return f"{self.type} {base64.b64encode(self.blob).decode('ascii')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSignature:
    """One parsed signature. ``flags`` and ``counter`` are a token's, 0 otherwise."""

    key: PublicKey
    namespace: str
    hash_algorithm: str
    signature: bytes
    flags: int = 0
    counter: int = 0

    def verifies(self, message: bytes, namespace: str) -> bool:
        """Return whether this is a good signature over ``message`` in ``namespace``."""
        if self.namespace != namespace:
            return False
        signed = signed_data(message, namespace, self.hash_algorithm)
        if self.key.type == SK_ED25519:
            if not self.flags & _USER_PRESENT:
                return False
            signed = (
                hashlib.sha256(self.key.application).digest()
                + bytes([self.flags])
                + self.counter.to_bytes(4, "big")
                + hashlib.sha256(signed).digest()
            )
        return ed25519.verify(self.key.point, signed, self.signature)


def signed_data(message: bytes, namespace: str, hash_algorithm: str = "sha512") -> bytes:
    """Return the bytes that an SSH signature over ``message`` really signs."""
    digest = _HASHES[hash_algorithm](message).digest()
    fields = (namespace.encode("ascii"), b"", hash_algorithm.encode("ascii"), digest)
    return _MAGIC + b"".join(map(_string, fields))


def armored_signature(key: PublicKey, signature: bytes, namespace: str, *, tail: bytes = b"") -> bytes:
    """Return the armored block for a raw Ed25519 ``signature`` (64 bytes) over :func:`signed_data`.

    ``tail`` is what a token adds: one byte of flags and a counter of four.
    """
    inner = _string(key.type.encode()) + _string(signature) + tail
    fields = (key.blob, namespace.encode("ascii"), b"", b"sha512", inner)
    text = base64.b64encode(_MAGIC + (1).to_bytes(4, "big") + b"".join(map(_string, fields)))
    lines = b"".join(text[start : start + 70] + b"\n" for start in range(0, len(text), 70))
    return _BEGIN + lines + _END


def parse_signatures(slot: bytes) -> tuple[SshSignature, ...]:
    """Parse a signature slot or a ``.sig`` file.

    Returns:
        The signatures in order; none for a slot of newlines alone.

    Raises:
        TrustError: Anything but armored blocks and newlines, or a block that isn't a strict SSHSIG.
    """
    if slot.startswith(b"\n") and slot.strip(b"\n"):
        raise TrustError("the signature slot begins with a newline: ssh-keygen would not read it")
    signatures, rest = [], slot
    while rest := rest.lstrip(b"\n"):
        match = _BLOCK.match(rest)
        if match is None:
            raise TrustError("the signature slot holds something other than SSH signatures and newlines")
        signatures.append(_parse_block(match[1]))
        rest = rest[match.end() :]
    return tuple(signatures)


def parse_public_key(type_name: str, text: str) -> PublicKey:
    """Parse the two fields of a ``.pub`` line.

    Raises:
        TrustError: Not base64, a type that isn't supported, or fields that contradict each other.
    """
    key = parse_key_blob(_decode(text.encode("ascii", "replace")))
    if key.type != type_name:
        raise TrustError(f"a key line says {type_name} but its key is {key.type}")
    return key


def parse_key_blob(blob: bytes) -> PublicKey:
    """Parse a public key's wire form.

    Raises:
        TrustError: A type that isn't supported, a point that isn't canonical, or bytes left over.
    """
    wire = Wire(blob)
    kind = wire.text()
    if kind not in {ED25519, SK_ED25519}:
        raise TrustError(f"key type {kind[:60]!r} isn't supported", hint=f"use {ED25519} or {SK_ED25519}")
    point = wire.string()
    application = wire.string() if kind == SK_ED25519 else b""
    wire.finish()
    if not ed25519.is_valid_public_key(point):
        raise TrustError(f"an {kind} key is not a canonical point of large order")
    return PublicKey(type=kind, blob=blob, point=point, application=application)


def _parse_block(body: bytes) -> SshSignature:
    wire = Wire(_decode(body.replace(b"\n", b"")))
    if wire.take(6) != _MAGIC or wire.integer() != 1:
        raise TrustError("a signature block is not SSHSIG version 1")
    key = parse_key_blob(wire.string())
    namespace, reserved, algorithm = wire.text(), wire.string(), wire.text()
    inner = Wire(wire.string())
    wire.finish()
    if reserved or not namespace or algorithm not in _HASHES:
        raise TrustError(f"a signature block has namespace {namespace!r} and hash {algorithm!r}, which isn't supported")
    if inner.text() != key.type:
        raise TrustError("a signature block's signature is of another type than its key")
    signature = inner.string()
    flags, counter = (inner.take(1)[0], inner.integer()) if key.type == SK_ED25519 else (0, 0)
    inner.finish()
    if len(signature) != 64:
        raise TrustError(f"a signature block has {len(signature)} signature bytes, expected 64")
    return SshSignature(
        key=key, namespace=namespace, hash_algorithm=algorithm, signature=signature, flags=flags, counter=counter
    )


def _decode(text: bytes) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise TrustError(f"a key or signature is not base64: {error}") from None
    if base64.b64encode(data) != text:
        raise TrustError("a key or signature is not canonical base64")
    return data


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


class Wire:
    """Reads the SSH wire format (RFC 4251, section 5); what is short or left over is a :class:`TrustError`."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        end = self._position + count
        if end > len(self._data):
            raise TrustError("a key or signature ends too early")
        taken, self._position = self._data[self._position : end], end
        return taken

    def integer(self) -> int:
        """Return the next uint32."""
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        """Return the next string, which its length precedes."""
        return self.take(self.integer())

    def text(self) -> str:
        """Return the next string, which has to be ASCII."""
        try:
            return self.string().decode("ascii")
        except UnicodeDecodeError:
            raise TrustError("a key or signature has a name that isn't ASCII") from None

    def finish(self) -> None:
        """Require that nothing is left."""
        if self._position != len(self._data):
            raise TrustError("a key or signature has bytes left over")
