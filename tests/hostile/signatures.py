"""Attacks on the signature slot; the tar around it is whole."""

import base64
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from manifests.ed25519 import L
from manifests.sshsig import BUNDLE_NAMESPACE, REHEARSAL_NAMESPACE, armored_signature, signed_data
from manifests.tarlayout import SIGNATURE_SLOT
from tests.factories import Key
from tests.hostile.lab import MANIFEST, Attack, Lab, Outcome, Stage

MESSAGE: Final = MANIFEST.encode()
_BEGIN: Final = b"-----BEGIN SSH SIGNATURE-----\n"
_END: Final = b"-----END SSH SIGNATURE-----\n"
FITS: Final = "fits the manifest"
MISFITS: Final = "does NOT fit the manifest"
UNFIT: Final = "one of the two was changed"
SIGN_UNFIT: Final = Outcome(code=4, words="does not fit this manifest and namespace")


def text(data: bytes | str) -> bytes:
    """Return an SSH string: its length, then it."""
    raw = data.encode() if isinstance(data, str) else data
    return len(raw).to_bytes(4, "big") + raw


def armor(blob: bytes, *, width: int = 70) -> bytes:
    """Return a blob in armor."""
    encoded = base64.b64encode(blob)
    lines = (encoded[start : start + width] + b"\n" for start in range(0, len(encoded), width))
    return _BEGIN + b"".join(lines) + _END


def block(key: Key, *, message: bytes = MESSAGE, namespace: str = BUNDLE_NAMESPACE) -> bytes:
    """Return a good armored signature."""
    return armored_signature(key.public, key.private.sign(signed_data(message, namespace)), namespace)


def raw_signature(key: Key) -> bytes:
    """Return the 64 bytes of a good signature."""
    return key.private.sign(signed_data(MESSAGE, BUNDLE_NAMESPACE))


def blob(signer: Key, /, **parts: bytes) -> bytes:
    """Return an SSHSIG blob; ``parts`` replaces magic, version, key, namespace, reserved, hash, inner or tail."""
    values = {
        "magic": b"SSHSIG",
        "version": (1).to_bytes(4, "big"),
        "key": text(signer.public.blob),
        "namespace": text(BUNDLE_NAMESPACE),
        "reserved": text(b""),
        "hash": text("sha512"),
        "inner": text(text("ssh-ed25519") + text(raw_signature(signer))),
        "tail": b"",
    }
    assert parts.keys() <= values.keys()
    return b"".join((values | parts).values())


def _slot(
    name: str, did: str, words: str, make: Callable[[Lab], bytes], *, inspect: str, sign: Outcome | None = None
) -> Attack:
    """Return an attack by another content of the slot; ``sign`` refuses with the same words unless told otherwise."""
    others = {"inspect": Outcome(code=0, words=inspect), "sign": sign or Outcome(code=4, words=words)}
    return Attack(
        name=name,
        did=did,
        build=lambda lab: lab.slotted(make(lab)),
        stage=Stage.SIGNATURE,
        code=4,
        words=words,
        others=others,
    )


def _malformed(name: str, did: str, words: str, make: Callable[[Lab], bytes]) -> Attack:
    """Return an attack that no reader of the slot gets through; ``inspect`` tells why and trusts nothing."""
    return _slot(name, did, words, make, inspect=words)


def _unfit(name: str, did: str, make: Callable[[Lab], bytes]) -> Attack:
    """Return an attack by a signature of the trusted key that does not fit."""
    return _slot(name, did, UNFIT, make, inspect=MISFITS, sign=SIGN_UNFIT)


def _blob(name: str, did: str, words: str, **parts: bytes) -> Attack:
    return _malformed(name, did, words, lambda lab: armor(blob(lab.key, **parts)))


def _flipped(signature: bytes, position: int) -> bytes:
    return signature[:position] + bytes([signature[position] ^ 1]) + signature[position + 1 :]


def _with(lab: Lab, signature: bytes) -> bytes:
    return armored_signature(lab.key.public, signature, BUNDLE_NAMESPACE)


def _malleated(lab: Lab) -> bytes:
    signature = raw_signature(lab.key)
    scalar = int.from_bytes(signature[32:], "little") + L
    return _with(lab, signature[:32] + scalar.to_bytes(32, "little"))


def _rsa(_: Lab) -> bytes:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    signature = private.sign(signed_data(MESSAGE, BUNDLE_NAMESPACE), padding.PKCS1v15(), hashes.SHA512())
    return _foreign(private.public_key(), text("rsa-sha2-512") + text(signature))


def _ecdsa(_: Lab) -> bytes:
    private = ec.generate_private_key(ec.SECP256R1())
    signature = private.sign(signed_data(MESSAGE, BUNDLE_NAMESPACE), ec.ECDSA(hashes.SHA256()))
    return _foreign(private.public_key(), text("ecdsa-sha2-nistp256") + text(signature))


def _foreign(public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, inner: bytes) -> bytes:
    wire = base64.b64decode(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    return armor(
        b"".join(
            (b"SSHSIG", bytes([0, 0, 0, 1]), text(wire), text(BUNDLE_NAMESPACE), text(b""), text("sha512"), text(inner))
        )
    )


_JUNK: Final = "holds something other than SSH signatures and newlines"

SLOTS: Final = (
    _slot(
        "sig-stripped",
        "took the signature away",
        "the bundle is not signed",
        lambda _: b"",
        inspect="not signed",
        sign=Outcome(code=0, words="has 1 signatures"),
    ),
    _malformed("sig-zeros", "overwrote the slot with zeros", _JUNK, lambda _: bytes(SIGNATURE_SLOT)),
    _malformed("sig-garbage", "filled the slot with noise", _JUNK, lambda _: b"\xa5" * SIGNATURE_SLOT),
    _malformed("sig-full-of-armor", "filled the slot with begins", _JUNK, lambda _: (_BEGIN * 600)[:SIGNATURE_SLOT]),
    _slot(
        "sig-stranger",
        "signed it himself",
        "is not among the allowed signers",
        lambda lab: block(lab.stranger),
        inspect=FITS,
        sign=Outcome(code=0, words="has 2 signatures"),
    ),
    _unfit("sig-other-bytes", "took the signature of another bundle", lambda lab: block(lab.key, message=b"{}\n")),
    _unfit("sig-bit-flip-r", "flipped a bit of R", lambda lab: _with(lab, _flipped(raw_signature(lab.key), 3))),
    _unfit("sig-bit-flip-s", "flipped a bit of S", lambda lab: _with(lab, _flipped(raw_signature(lab.key), 40))),
    _unfit("sig-zero", "signed with zeros", lambda lab: _with(lab, bytes(64))),
    _unfit("sig-malleable", "added L to S: OpenSSH 9.2 takes it", _malleated),
    _unfit("sig-low-order-r", "chose R of low order", lambda lab: _with(lab, b"\1" + bytes(63))),
    _unfit(
        "sig-non-canonical-r",
        "encoded R another way",
        lambda lab: _with(lab, b"\xee" + b"\xff" * 30 + b"\x7f" + bytes(32)),
    ),
    _unfit(
        "sig-hidden-behind-good",
        "put a good signature before a bad one",
        lambda lab: block(lab.key) + block(lab.key, message=b"x"),
    ),
    _slot(
        "sig-namespace-git",
        "took a signature of a git commit",
        "signed for namespace 'git', expected 'sealift-bundle-v1'",
        lambda lab: block(lab.key, namespace="git"),
        inspect=MISFITS,
        sign=SIGN_UNFIT,
    ),
    _slot(
        "sig-namespace-rehearsal",
        "took the signature of a rehearsal",
        f"signed for namespace '{REHEARSAL_NAMESPACE}'",
        lambda lab: block(lab.key, namespace=REHEARSAL_NAMESPACE),
        inspect=MISFITS,
        sign=SIGN_UNFIT,
    ),
    _unfit(
        "sig-namespace-relabelled",
        "wrote our namespace on a git signature",
        lambda lab: _with(lab, lab.key.private.sign(signed_data(MESSAGE, "git"))),
    ),
    _blob("sig-namespace-empty", "left the namespace empty", "has namespace ''", namespace=text(b"")),
    _blob("sig-magic", "changed the magic", "is not SSHSIG version 1", magic=b"SSHSIX"),
    _blob("sig-version", "claimed version 2", "is not SSHSIG version 1", version=bytes([0, 0, 0, 2])),
    _blob("sig-reserved", "used the reserved field", "which isn't supported", reserved=text("x")),
    _blob("sig-hash-md5", "asked for MD5", "hash 'md5', which isn't supported", hash=text("md5")),
    _blob("sig-hash-none", "asked for no hash", "hash '', which isn't supported", hash=text("")),
    _blob("sig-left-over", "added bytes to the blob", "has bytes left over", tail=b"\0"),
    _blob(
        "sig-inner-left-over",
        "added bytes to the inner signature",
        "has bytes left over",
        inner=text(text("ssh-ed25519") + text(bytes(64)) + b"x"),
    ),
    _blob(
        "sig-inner-type",
        "signed as another type",
        "is of another type than its key",
        inner=text(text("ssh-rsa") + text(bytes(64))),
    ),
    _blob(
        "sig-inner-short",
        "shortened the signature",
        "63 signature bytes, expected 64",
        inner=text(text("ssh-ed25519") + text(bytes(63))),
    ),
    _blob("sig-length-lies", "claimed a string of 4 GiB", "ends too early", key=b"\xff\xff\xff\xff"),
    _blob(
        "sig-key-low-order",
        "listed a key that verifies anything",
        "not a canonical point of large order",
        key=text(text("ssh-ed25519") + text(b"\1" + bytes(31))),
    ),
    _blob(
        "sig-key-non-canonical",
        "encoded a key another way",
        "not a canonical point of large order",
        key=text(text("ssh-ed25519") + text(b"\xff" * 31 + b"\x7f")),
    ),
    _blob(
        "sig-certificate",
        "used a certificate",
        "key type 'ssh-ed25519-cert-v01@openssh.com' isn't supported",
        key=text(text("ssh-ed25519-cert-v01@openssh.com") + text(bytes(32))),
    ),
    _malformed("sig-rsa", "signed with RSA", "key type 'ssh-rsa' isn't supported", _rsa),
    _malformed("sig-ecdsa", "signed with ECDSA", "key type 'ecdsa-sha2-nistp256' isn't supported", _ecdsa),
    _malformed("sig-truncated", "cut the blob", "ends too early", lambda lab: armor(blob(lab.key)[:-70])),
    _malformed("sig-empty-blob", "left nearly nothing in the armor", "ends too early", lambda _: armor(b"SSH")),
    _malformed(
        "sig-junk-between",
        "hid a script between two blocks",
        _JUNK,
        lambda lab: block(lab.key) + b"#!/bin/sh\n" + block(lab.stranger),
    ),
    _malformed("sig-junk-after", "hid a script after the block", _JUNK, lambda lab: block(lab.key) + b"#!/bin/sh\n"),
    _malformed("sig-junk-before", "put a comment before the block", _JUNK, lambda lab: b"Hello\n" + block(lab.key)),
    _malformed("sig-spaces", "padded with spaces", _JUNK, lambda lab: block(lab.key).ljust(SIGNATURE_SLOT)),
    _malformed(
        "sig-newline-first", "began with a newline", "begins with a newline", lambda lab: b"\n" + block(lab.key)
    ),
    _malformed("sig-crlf", "used Windows line ends", _JUNK, lambda lab: block(lab.key).replace(b"\n", b"\r\n")),
    _malformed("sig-long-lines", "wrote one long line", _JUNK, lambda lab: armor(blob(lab.key), width=1000)),
    _malformed(
        "sig-base64-bits",
        "set bits that base64 ignores",
        "not canonical base64",
        lambda lab: _stray_bits(block(lab.key)),
    ),
    _malformed(
        "sig-base64-padding",
        "put padding in the middle",
        "not ",
        lambda lab: block(lab.key).replace(b"\nU1NI", b"\nU1N=", 1),
    ),
    _malformed("sig-pgp", "signed with PGP's armor", _JUNK, lambda lab: block(lab.key).replace(b"SSH", b"PGP")),
    _malformed("sig-unfinished", "left the end of the armor out", _JUNK, lambda lab: block(lab.key).replace(_END, b"")),
)


def _stray_bits(armored: bytes) -> bytes:
    body = armored.removeprefix(_BEGIN).removesuffix(_END).rstrip(b"\n")
    assert body.endswith(b"="), "only padded base64 has bits to spare"
    position = len(body.rstrip(b"=")) - 1
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    stray = alphabet[alphabet.index(body[position]) ^ 1]
    return _BEGIN + body[:position] + bytes([stray]) + body[position + 1 :] + b"\n" + _END
