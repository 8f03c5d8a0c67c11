"""One text's result as bytes: a header, then raw little-endian numbers. Nothing in it can be run, damage is noticed."""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np

from runtime.adapters.base import Vectors

Mode: TypeAlias = Literal["dense", "sparse", "colbert"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
_HEADER: Final = struct.Struct("<4sBBHIIII")
_MAGIC: Final = b"SLV1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What one text gave in one mode.

    Attributes:
        value: Dense: float32 of shape (dimension,). ColBERT: (tokens - 1, dimension). Sparse: token id -> weight.
        tokens: Tokens that went through the model.
        truncated: Whether the text was cut.
    """

    value: Vectors | Mapping[int, float]
    tokens: int
    truncated: bool


def encode(mode: Mode, stored: Stored) -> bytes:
    """Return magic, mode, flag, two zero bytes, tokens, rows, columns, CRC-32 of the rest; then the rest.

    The rest is float32, row by row; for sparse the ids as uint32 (one row of so many columns), then the weights.
    """
    if isinstance(stored.value, Mapping):
        ids = np.fromiter(stored.value.keys(), dtype="<u4", count=len(stored.value))
        weights = np.fromiter(stored.value.values(), dtype="<f4", count=len(stored.value))
        rows, columns, body = 1, len(ids), ids.tobytes() + weights.tobytes()
    else:
        shaped = stored.value.reshape(-1, stored.value.shape[-1])
        (rows, columns), body = shaped.shape, np.ascontiguousarray(shaped, dtype="<f4").tobytes()
    head = (MODES.index(mode), int(stored.truncated), 0, stored.tokens, rows, columns, zlib.crc32(body))
    return _HEADER.pack(_MAGIC, *head) + body


def decode(mode: Mode, data: bytes) -> Stored | None:
    """Return what :func:`encode` was given; None where the bytes are damaged or of another mode."""
    if len(data) < _HEADER.size:
        return None
    magic, number, flag, _, tokens, rows, columns, check = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    width = 8 if mode == "sparse" else 4
    if (magic, number, len(body)) != (_MAGIC, MODES.index(mode), rows * columns * width) or zlib.crc32(body) != check:
        return None
    return Stored(value=_value(mode, body, rows, columns), tokens=tokens, truncated=bool(flag))


def _value(mode: Mode, body: memoryview, rows: int, columns: int) -> Vectors | Mapping[int, float]:
    if mode == "sparse":
        ids = np.frombuffer(body, dtype="<u4", count=columns)
        weights = np.frombuffer(body, dtype="<f4", offset=4 * columns)
        return dict(zip(ids.tolist(), weights.tolist(), strict=True))
    values: Vectors = np.frombuffer(body, dtype="<f4").astype(np.float32).reshape(rows, columns)
    return values[0] if mode == "dense" else values
