"""Keys that are no longer trusted: OpenSSH's plain-text list, one public key a line (``ssh-keygen -Y verify -r``).

ssh-keygen treats a list that it can't read to the end as a reason to refuse, and so do we: a damaged line never hides
the keys below it. Binary KRLs (``ssh-keygen -k``) and certificates are refused by name.
"""

import base64
import binascii
import re
from typing import Final

from manifests.errors import TrustError
from manifests.sshsig import ED25519, SK_ED25519, Wire

_KRL_MAGIC: Final = b"SSHKRL\n\0"
_OTHER_TYPES: Final = re.compile(r"ssh-rsa|ssh-dss|(?:sk-)?ecdsa-sha2-nistp(?:256|384|521)(?:@openssh\.com)?")
_SHAPE: Final = "expected KEYTYPE BASE64 [COMMENT], as in a .pub file"


def parse_revoked_keys(data: bytes, *, where: str) -> frozenset[bytes]:
    """Parse a revocation list.

    Returns:
        The revoked keys in wire form, for ``TrustRoot.revoked``. Keys of other types count too, but sign no bundle.

    Raises:
        TrustError: A binary KRL, a certificate, or a line that ssh-keygen would stop at.
    """
    if data.startswith(_KRL_MAGIC):
        msg = f"{where}: is a binary KRL, which isn't supported"
        raise TrustError(msg, hint="list the revoked keys themselves, one .pub line each")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise TrustError(f"{where}: not a list of revoked keys: it isn't text") from None
    revoked = set()
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip(" \t\r")
        if stripped and not stripped.startswith("#"):
            try:
                revoked.add(_parse_line(stripped))
            except TrustError as error:
                raise TrustError(f"{where}: line {number}: {error.message}", hint=error.hint) from None
    return frozenset(revoked)


def _parse_line(line: str) -> bytes:
    fields = re.split(r"[ \t]+", line, maxsplit=2)
    kind = fields[0]
    if kind.endswith("-cert-v01@openssh.com"):
        raise TrustError("certificates aren't supported", hint="list the key itself")
    if len(fields) < 2 or (kind not in {ED25519, SK_ED25519} and not _OTHER_TYPES.fullmatch(kind)):
        raise TrustError(_SHAPE, hint="one line of a .pub file for each revoked key; no principals, no options")
    blob = _decode(fields[1])
    wire = Wire(blob)
    if wire.text() != kind:
        raise TrustError(f"the line says {kind} but its key is of another type")
    if kind in {ED25519, SK_ED25519}:
        point = wire.string()
        if kind == SK_ED25519:
            wire.string()
        wire.finish()
        if len(point) != 32:
            raise TrustError(f"the key has {len(point)} bytes, expected 32")
    return blob


def _decode(text: str) -> bytes:
    try:
        blob = base64.b64decode(text.encode("ascii", "replace"), validate=True)
    except binascii.Error as error:
        raise TrustError(f"the key is not base64: {error}") from None
    if base64.b64encode(blob).decode("ascii") != text:
        raise TrustError("the key is not canonical base64")
    return blob
