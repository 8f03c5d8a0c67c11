"""Sizes as people write them in a spec: ``32 GiB``, ``500 MB``, or bytes as an integer."""

import re
from typing import Final

from manifests.canonical import MAX_INTEGER

_FACTORS: Final = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
}
_SIZE: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?\s*([A-Za-z]{1,3})", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` such as ``1.5 GiB`` means, rounded down.

    Raises:
        ValueError: It isn't a number with a unit, or too large to be written in a manifest.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _FACTORS.get(match[3].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size such as '32 GiB' or '500 MB'")
    fraction = match[2] or ""
    size: int = int(match[1] + fraction) * factor // int(f"1{'0' * len(fraction)}")
    if size > MAX_INTEGER:
        raise ValueError(f"{text!r} is larger than any disk")
    return size
