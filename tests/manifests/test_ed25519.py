"""Ed25519 on RFC 8032's vectors, on hostile encodings, and against OpenSSL through ``cryptography``."""

import hashlib
import time
from typing import Final

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.ed25519 import L, P, is_valid_public_key, verify

# RFC 8032, section 7.1, tests 1 to 3: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]
ORDER_8: Final = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
LOW_ORDER = [  # every point of order 1, 2, 4 and 8 that has a canonical encoding
    (1).to_bytes(32, "little"),
    (P - 1).to_bytes(32, "little"),
    bytes(32),
    bytes(31) + b"\x80",
    bytes.fromhex(ORDER_8),
    bytes.fromhex(ORDER_8[:-2] + "85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
]
NOT_CANONICAL = [  # y >= P, and a sign bit on x = 0
    *((P + y).to_bytes(32, "little") for y in range(19)),
    *((P + y + (1 << 255)).to_bytes(32, "little") for y in range(19)),
    (1 + (1 << 255)).to_bytes(32, "little"),
    (P - 1 + (1 << 255)).to_bytes(32, "little"),
]


def openssl_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert private.sign(bytes.fromhex(message)).hex() == signature
    assert verify(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature))
    assert not verify(bytes.fromhex(public), bytes.fromhex(message) + b"\0", bytes.fromhex(signature))
    assert is_valid_public_key(bytes.fromhex(public))


# The classes of cases that Project Wycheproof has for Ed25519, derived here anew from keys of our own.
CASE_KEY: Final = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
CASE_PUBLIC: Final = CASE_KEY.public_key().public_bytes_raw()
SPECIAL_R: Final = [value.to_bytes(32, "little") for value in (0, 1, P - 1, P, P + 1, 2**255 - 1, 2**256 - 1)]
SPECIAL_S: Final = [value.to_bytes(32, "little") for value in (0, 1, L - 1, L, L + 1, P - 1, P, 2**255, 2**256 - 1)]


def malformed(signature: bytes) -> dict[str, bytes]:
    """Return what is made of a good signature by class: name -> signature."""
    commitment, scalar = signature[:32], signature[32:]
    number = int.from_bytes(scalar, "little")
    return {
        "empty": b"",
        "R alone": commitment,
        "S alone": scalar,
        **{f"cut to {size}": signature[:size] for size in (1, 31, 33, 63)},
        "zero appended": signature + b"\0",
        "zero prepended": b"\0" + signature,
        "zero between": commitment + b"\0" + scalar,
        "doubled": signature + signature,
        "R and S swapped": scalar + commitment,
        "R and S backwards": commitment[::-1] + scalar[::-1],
        "S negated": commitment + (L - number).to_bytes(32, "little"),
        "S without its lowest byte": commitment + bytes(1) + scalar[1:],
        "S in hex": commitment + scalar.hex().encode()[:32],
        **{f"S + {k} L": commitment + (number + k * L).to_bytes(32, "little") for k in (1, 2, 4, 8, 15)},
        **{f"S with bit {bit}": commitment + (number | 1 << bit).to_bytes(32, "little") for bit in (253, 254, 255)},
        **{f"R with bit {bit} changed": flipped(signature, bit) for bit in (0, 1, 7, 128, 254, 255)},
        **{f"S with bit {bit} changed": flipped(signature, 256 + bit) for bit in (0, 1, 7, 128, 251, 252)},
    }


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


@pytest.mark.parametrize("size", [0, 1, 2, 16, 31, 32, 63, 64, 111, 112, 127, 128, 129, 1000])
@pytest.mark.parametrize("byte", [b"\0", b"x", b"\xff"])
def test_good_signatures_of_every_length(size: int, byte: bytes) -> None:
    message = byte * size
    signature = CASE_KEY.sign(message)
    assert verify(CASE_PUBLIC, message, signature)
    assert not verify(CASE_PUBLIC, message + b"\0", signature)


@pytest.mark.parametrize("name", malformed(bytes(64)))
def test_malformed_signatures(name: str) -> None:
    signature = malformed(CASE_KEY.sign(b"m"))[name]
    assert not verify(CASE_PUBLIC, b"m", signature)
    assert not openssl_verifies(CASE_PUBLIC, b"m", signature)


@pytest.mark.parametrize("scalar", SPECIAL_S)
@pytest.mark.parametrize("commitment", SPECIAL_R)
def test_special_values_of_r_and_s(commitment: bytes, scalar: bytes) -> None:
    assert not verify(CASE_PUBLIC, b"m", commitment + scalar)
    assert not openssl_verifies(CASE_PUBLIC, b"m", commitment + scalar)


@settings(max_examples=40, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200), data=st.data())
def test_agrees_with_openssl(seed: bytes, message: bytes, data: st.DataObject) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = private.public_key().public_bytes_raw(), private.sign(message)
    assert verify(public, message, signature)
    mutable = bytearray(public + signature)
    position = data.draw(st.integers(0, len(mutable) - 1))
    mutable[position] ^= 1 << data.draw(st.integers(0, 7))
    changed_public, changed_signature = bytes(mutable[:32]), bytes(mutable[32:])
    assert not verify(changed_public, message, changed_signature)
    assert not openssl_verifies(changed_public, message, changed_signature)


@pytest.mark.parametrize("add", [L, 2 * L, 7 * L])
def test_s_beyond_l_is_refused(add: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    signature = private.sign(b"m")
    scalar = int.from_bytes(signature[32:], "little") + add
    malleable = signature[:32] + scalar.to_bytes(32, "little")
    assert verify(private.public_key().public_bytes_raw(), b"m", signature)
    assert not verify(private.public_key().public_bytes_raw(), b"m", malleable)


@pytest.mark.parametrize("point", LOW_ORDER + NOT_CANONICAL)
def test_bad_points_are_refused_as_key_and_as_commitment(point: bytes) -> None:
    assert not is_valid_public_key(point)
    assert not any(verify(point, bytes([n]), point + bytes(32)) for n in range(8))
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key().public_bytes_raw()
    assert not verify(key, b"m", point + bytes(32))


def test_a_low_order_key_would_sign_anything_for_openssl() -> None:
    """Why low order is refused: with A = R = identity and S = 0 the equation holds for every message."""
    identity = LOW_ORDER[0]
    assert openssl_verifies(identity, b"any message", identity + bytes(32))
    assert not verify(identity, b"any message", identity + bytes(32))


def test_a_low_order_commitment_by_the_owner_of_the_key_is_refused() -> None:
    """The owner can make a signature with R of low order that satisfies the equation; it is refused all the same."""
    seed = b"o" * 32
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    wide = bytearray(hashlib.sha512(seed).digest()[:32])
    wide[0] &= 248
    wide[31] = wide[31] & 127 | 64
    challenge = int.from_bytes(hashlib.sha512(LOW_ORDER[0] + public + b"m").digest(), "little") % L
    scalar = challenge * int.from_bytes(wide, "little") % L
    signature = LOW_ORDER[0] + scalar.to_bytes(32, "little")
    assert openssl_verifies(public, b"m", signature)
    assert not verify(public, b"m", signature)


@pytest.mark.parametrize(("public", "signature"), [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_other_lengths_are_refused(public: int, signature: int) -> None:
    assert not verify(bytes(public), b"", bytes(signature))
    assert is_valid_public_key(bytes(public)) is False


def test_a_value_that_is_no_point_is_refused() -> None:
    assert not is_valid_public_key((2).to_bytes(32, "little"))


def test_one_verification_is_quick() -> None:
    private = Ed25519PrivateKey.from_private_bytes(b"q" * 32)
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"m")
    best = min(_timed(public, signature) for _ in range(5))
    assert best < 0.1, "goal: about 5 ms"


def _timed(public: bytes, signature: bytes) -> float:
    start = time.perf_counter()
    assert verify(public, b"m", signature)
    return time.perf_counter() - start
