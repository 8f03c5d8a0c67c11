"""Thousands of mutated inputs: what we accept, ``cryptography`` and ``ssh-keygen`` accept too.

Seeds are fixed, so a failure comes back; its input is in the assertion's message.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from manifests.ed25519 import L, P, verify
from manifests.errors import TrustError
from manifests.revocation import parse_revoked_keys
from manifests.sshsig import BUNDLE_NAMESPACE, parse_signatures, signed_data
from manifests.trust import parse_allowed_signers, verify_signatures
from tests.factories import NOW, Key, sign_slot
from tests.manifests.test_sshsig import MESSAGE, Token, armor, keygen, wire_of

Verifies = Callable[[bytes, bytes, bytes], bool]
WORDS: Final = (b"", b"\0", b"\xff", b"\n", b" ", b"\t", b"=", b"A", b"ssh-ed25519", b"\0\0\0\x40", b"\r\n", b",", b'"')


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 # mutations that can be repeated, no secrets


def mutated(data: bytes, source: random.Random, other: bytes) -> bytes:
    """Return ``data`` with one to three changes; ``other`` is where foreign pieces come from."""
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        at, size = source.randrange(len(data) + 1), source.choice((1, 1, 2, 4, 8, 32))
        start = source.randrange(max(1, len(other) - size))
        data = source.choice(
            (
                data[:at] + bytes([(data[at : at + 1] or b"\0")[0] ^ 1 << source.randrange(8)]) + data[at + 1 :],
                data[:at] + source.randbytes(1) + data[at + 1 :],
                data[:at] + data[at + size :],
                data[:at] + source.choice(WORDS) + data[at:],
                data[:at] + other[start : start + size] + data[at + size :],
                data[:at] + data[at : at + size] + data[at:],
                data[:at] if source.random() < 0.2 else data,
            )
        )
    return data


def openssl_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def lax_verifies(wire: bytes) -> bool:
    """Read an SSHSIG blob with struct, ask ``cryptography``, and check nothing else; ours is only the hashing."""

    def string(data: bytes) -> tuple[bytes, bytes]:
        (size,) = struct.unpack_from(">I", data)
        return data[4 : 4 + size], data[4 + size :]

    try:
        blob, rest = string(wire[10:])
        namespace, rest = string(rest)
        _, rest = string(rest)
        algorithm, rest = string(rest)
        inner, _ = string(rest)
        _, point = string(blob)
        _, signature = string(inner)
        signed = signed_data(MESSAGE, namespace.decode("ascii"), algorithm.decode("ascii"))
        return openssl_verifies(string(point)[0], signed, string(signature)[0])
    except (struct.error, KeyError, UnicodeDecodeError):
        return False


def we_accept(slot: bytes) -> bool:
    try:
        found = parse_signatures(slot)
    except TrustError:
        return False
    return bool(found) and all(signature.verifies(MESSAGE, BUNDLE_NAMESPACE) for signature in found)


def test_mutated_signature_blobs(key: Key, second_key: Key) -> None:
    source, good, other = seeded(1), wire_of(key), wire_of(second_key)
    ours = both = parsed = 0
    for _ in range(4000):
        wire = mutated(good, source, other)
        accepted, reference = we_accept(armor(wire)), lax_verifies(wire)
        assert reference or not accepted, wire.hex()
        assert not accepted or wire in {good, other}, wire.hex()
        ours, both, parsed = ours + accepted, both + reference, parsed + (wire != good and _parses(wire))
    assert ours > 50, "some changes change nothing"
    assert both > ours, "the lax reader takes what we refuse: the cases are not all trivial"
    assert parsed > 300, "many reach the mathematics"


def _parses(wire: bytes) -> bool:
    try:
        return bool(parse_signatures(armor(wire)))
    except TrustError:
        return False


def special_scalars(source: random.Random) -> list[int]:
    return [0, 1, L - 1, L, L + 1, 2**252, 2**255 - 1, 2**256 - 1, source.randrange(L), source.randrange(2**256)]


def special_points(source: random.Random) -> list[bytes]:
    values = [0, 1, 2, P - 1, P, P + 1, 2**255 - 1, 2**256 - 1, 1 << 255, (1 << 255) + 1, source.randrange(2**256)]
    return [value.to_bytes(32, "little") for value in values]


def test_special_and_mutated_ed25519_inputs(key: Key) -> None:
    """Points and scalars at every edge, whole and by the bit; accepted only where OpenSSL accepts."""
    source = seeded(2)
    public = key.private.public_key().public_bytes_raw()
    accepted = refused = 0
    for _ in range(3000):
        message = source.randbytes(source.randrange(40))
        good = key.private.sign(message)
        scalar = int.from_bytes(good[32:], "little")
        choice = source.randrange(8)
        signature, point = good, public
        if choice == 0:
            signature = good[:32] + source.choice(special_scalars(source)).to_bytes(32, "little")
        elif choice == 1:
            signature = good[:32] + (scalar + L).to_bytes(32, "little")
        elif choice == 2:
            signature = source.choice(special_points(source)) + good[32:]
        elif choice == 3:
            point = source.choice(special_points(source))
        elif choice == 4:
            point, signature = source.choice(special_points(source)), source.choice(special_points(source)) + bytes(32)
        elif choice < 7:
            signature = mutated(good, source, public)
        ours, reference = verify(point, message, signature), openssl_verifies(point, message, signature)
        assert reference or not ours, (point.hex(), message.hex(), signature.hex())
        if ours is not reference:
            assert choice in {2, 3, 4}, "we refuse more only where a point is of low order or not canonical"
        accepted, refused = accepted + ours, refused + (not ours)
    assert accepted > 300
    assert refused > 1500


def stock_accepts(key: Key, slot: bytes, trust: bytes, folder: Path, *words: str | Path) -> bool:
    (folder / "sig").write_bytes(slot)
    (folder / "allowed").write_bytes(trust)
    asked = ("-f", folder / "allowed", "-I", key.identity, "-n", BUNDLE_NAMESPACE, "-s", folder / "sig", *words)
    return keygen("-Y", "verify", *asked, stdin=MESSAGE).returncode == 0


def trusted(slot: bytes, trust: bytes, identity: str, revoked: bytes = b"") -> bool:
    """Whether we accept, for the one principal that ssh-keygen is asked about."""
    try:
        root = parse_allowed_signers(trust.decode("utf-8"), where="trust")
        mine = tuple(signer for signer in root.signers if signer.principals == identity)
        keys = parse_revoked_keys(revoked, where="revoked")
        verify_signatures(MESSAGE, slot, replace(root, signers=mine, revoked=keys), now=NOW)
    except (TrustError, UnicodeDecodeError):
        return False
    return True


@pytest.mark.slow
def test_mutated_slots_against_ssh_keygen(key: Key, second_key: Key, tmp_path: Path) -> None:
    source, trust = seeded(3), key.allowed_signers.read_bytes()
    good, other = sign_slot(MESSAGE, key).rstrip(b"\n") + b"\n", sign_slot(MESSAGE, second_key)
    ours = stock = 0
    for number in range(600):
        slot = armor(mutated(wire_of(key), source, wire_of(second_key))) if number % 2 else mutated(good, source, other)
        accepted, reference = trusted(slot, trust, key.identity), stock_accepts(key, slot, trust, tmp_path)
        assert reference or not accepted, slot
        ours, stock = ours + accepted, stock + reference
    assert stock >= ours > 20


@pytest.mark.slow
def test_mutated_tokens_against_ssh_keygen(tmp_path: Path, key: Key) -> None:
    source, token = seeded(4), Token()
    good, trust = token.sign(MESSAGE), f"{key.identity} {token.line}\n".encode()
    ours = 0
    for _ in range(300):
        slot = mutated(good, source, good)
        accepted = trusted(slot, trust, key.identity)
        assert stock_accepts(key, slot, trust, tmp_path) or not accepted, slot
        ours += accepted
    assert ours > 5


@pytest.mark.slow
def test_mutated_allowed_signers_against_ssh_keygen(key: Key, second_key: Key, tmp_path: Path) -> None:
    source, slot = seeded(5), sign_slot(MESSAGE, key)
    options = b'namespaces="sealift-*,git",valid-after="20200101Z",valid-before="20990101Z"'
    good = f"# us\n{key.identity} ".encode() + options + f" {key.public.line} comment\n".encode()
    other = second_key.allowed_signers.read_bytes() + b'"quoted" cert-authority,no-touch-required\r\n'
    ours = stock = 0
    for _ in range(800):
        trust = mutated(good, source, other)
        accepted, reference = trusted(slot, trust, key.identity), stock_accepts(key, slot, trust, tmp_path)
        assert reference or not accepted, trust
        ours, stock = ours + accepted, stock + reference
    assert stock >= ours > 50


@pytest.mark.slow
def test_mutated_revocation_lists_against_ssh_keygen(key: Key, second_key: Key, tmp_path: Path) -> None:
    source, slot, trust = seeded(6), sign_slot(MESSAGE, key), key.allowed_signers.read_bytes()
    good = f"# lost\n{second_key.public.line} comment\n{Token().line}\n".encode()
    ours = 0
    for _ in range(400):
        revoked = mutated(good, source, key.public.line.encode())
        (tmp_path / "revoked").write_bytes(revoked)
        accepted = trusted(slot, trust, key.identity, revoked)
        assert stock_accepts(key, slot, trust, tmp_path, "-r", tmp_path / "revoked") or not accepted, revoked
        ours += accepted
    assert ours > 20
