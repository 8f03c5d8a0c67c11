"""Canonical JSON: one value, one spelling.

Keys sorted by code point, no white space, integers only (within 53 bits), everything outside ASCII escaped, one
trailing newline. :func:`parse_canonical` accepts exactly the bytes that :func:`encode_canonical` would write, so a
parser differential between two implementations can't hide anything in a signed document.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

from manifests.errors import IntegrityError

Json: TypeAlias = "bool | int | str | Sequence[Json] | Mapping[str, Json] | None"

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 16


def encode_canonical(value: Json) -> bytes:
    """Return the canonical bytes of ``value``; floats are a ``TypeError``, a bug of the caller's."""
    _refuse_floats(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def parse_canonical(data: bytes, *, what: str, max_size: int) -> Json:
    """Parse bytes that must be canonical JSON.

    Args:
        data: The whole document.
        what: Its name for messages, such as ``manifest.json``.
        max_size: Larger documents are refused before they are parsed, in bytes.

    Raises:
        IntegrityError: Anything but canonical JSON: too large, not ASCII, duplicate keys, floats, too deep.
    """
    if len(data) > max_size:
        msg = f"{what}: {len(data)} bytes, at most {max_size} are allowed"
        raise IntegrityError(msg)
    try:
        value: Json = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_unique_object,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
            parse_int=_parse_integer,
        )
        _check_tree(value, MAX_DEPTH)
    except RecursionError:
        raise IntegrityError(f"{what}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise IntegrityError(f"{what}: not canonical JSON: {error}") from None
    if encode_canonical(value) != data:
        msg = f"{what}: not canonical JSON: its bytes differ from the canonical spelling of its content"
        raise IntegrityError(msg)
    return value


def _unique_object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value] # the set.add idiom
        raise ValueError(f"duplicate key {duplicate[:80]!r}")
    return result


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not an integer")


def _parse_integer(text: str) -> int:
    # The length is checked first: int() of a million digits takes quadratic time.
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"integer {text[:20]} is outside 53 bits")
    return int(text)


def _check_tree(value: Json, depth: int) -> None:
    if depth == 0:
        raise RecursionError
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    elif isinstance(value, Mapping):
        for key, item in value.items():
            key.encode("utf-8")
            _check_tree(item, depth - 1)
    elif isinstance(value, Sequence):
        for item in value:
            _check_tree(item, depth - 1)


def _refuse_floats(value: object) -> None:
    if isinstance(value, float):
        raise TypeError(f"{value!r}: canonical JSON holds no floats; write a decimal string")
    if isinstance(value, Mapping):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)
