"""Ed25519 verification (RFC 8032, section 5.1.7), standard library only, stricter than OpenSSH.

Refused on top of a wrong signature: S >= L, encodings of points that aren't canonical, public keys or R of low order.
What is accepted here, OpenSSH and OpenSSL accept too. Verification handles public data only, so nothing here needs
constant time. One verification takes a few milliseconds.
"""

import hashlib
from typing import Final, TypeAlias

P: Final = 2**255 - 19
L: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, P) % P
_SQRT_M1: Final = pow(2, (P - 1) // 4, P)

_Point: TypeAlias = tuple[int, int, int, int]  # extended coordinates (X : Y : Z : T), T = X*Y/Z
_IDENTITY: Final[_Point] = (0, 1, 1, 0)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` (64 bytes) over ``message`` was made with the key of ``public_key`` (32 bytes)."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    key, commitment = _decompress(public_key), _decompress(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or scalar >= L or _is_low_order(key) or _is_low_order(commitment):
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge = int.from_bytes(digest, "little") % L
    negated = (-key[0] % P, key[1], key[2], -key[3] % P)
    return _equal(_double_multiply(scalar, _BASE, challenge, negated), commitment)


def is_valid_public_key(public_key: bytes) -> bool:
    """Return whether 32 bytes are a canonical point of large order."""
    point = _decompress(public_key) if len(public_key) == 32 else None
    return point is not None and not _is_low_order(point)


def _decompress(data: bytes) -> _Point | None:
    """Return the point of RFC 8032 section 5.1.3, None where there is none or the encoding isn't canonical."""
    value = int.from_bytes(data, "little")
    sign, y = value >> 255, value & ((1 << 255) - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (_D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if (v * x * x + u) % P == 0:
        x = x * _SQRT_M1 % P
    if (v * x * x - u) % P != 0 or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def _add(left: _Point, right: _Point) -> _Point:
    a = (left[1] - left[0]) * (right[1] - right[0]) % P
    b = (left[1] + left[0]) * (right[1] + right[0]) % P
    c = 2 * left[3] * right[3] * _D % P
    d = 2 * left[2] * right[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _double(point: _Point) -> _Point:
    a, b, c = point[0] * point[0] % P, point[1] * point[1] % P, 2 * point[2] * point[2] % P
    h = a + b
    e, g = h - (point[0] + point[1]) ** 2 % P, a - b
    f = c + g
    return e * f % P, g * h % P, f * g % P, e * h % P


def _double_multiply(left: int, left_point: _Point, right: int, right_point: _Point) -> _Point:
    """Return ``left * left_point + right * right_point``, one doubling a bit for both (Straus)."""
    both = _add(left_point, right_point)
    table = (None, left_point, right_point, both)
    result = _IDENTITY
    for bit in range(max(left.bit_length(), right.bit_length()) - 1, -1, -1):
        result = _double(result)
        addend = table[(left >> bit & 1) | (right >> bit & 1) << 1]
        if addend is not None:
            result = _add(result, addend)
    return result


def _equal(left: _Point, right: _Point) -> bool:
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


def _is_low_order(point: _Point) -> bool:
    return _equal(_double(_double(_double(point))), _IDENTITY)


def _base_point() -> _Point:
    point = _decompress((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    if point is None:
        raise AssertionError("the base point of RFC 8032 must decompress")
    return point


_BASE: Final = _base_point()
