"""What a client asks, parsed: path segments, query, accepted types, conditions, ranges."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from unicodedata import category
from urllib.parse import parse_qs, unquote

from runtime.mirror.index import HTML_TYPE, JSON_TYPE

MAX_TARGET: Final = 8192
_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class BadTargetError(ValueError):
    """A request target that no client of ours sends; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. ``segments`` are decoded; a last one that is empty means that the path ended in a slash.

    ``headers`` have names in lower case.
    """

    segments: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The decoded path without its first slash."""
        return "/".join(self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A part of a file: ``start`` and ``size`` in bytes."""

    start: int
    size: int


def parse_request(target: str, headers: Mapping[str, str]) -> Request:
    """Parse the target of a request line, in origin or absolute form.

    Raises:
        BadTargetError: Too long, not a path, not UTF-8, a control character or an encoded slash in a segment, or a
            segment of dots: nothing that is served has such a name.
    """
    if len(target) > MAX_TARGET:
        raise BadTargetError(f"the target is longer than {MAX_TARGET} characters")
    path, _, query = re.sub(r"^https?://[^/?#]*", "", target, flags=re.IGNORECASE).partition("?")
    if not path.startswith("/"):
        raise BadTargetError("the target is not a path")
    segments = tuple(map(_segment, path[1:].split("/")))
    if "" in segments[:-1]:
        raise BadTargetError("an empty segment")
    try:
        values = parse_qs(query, keep_blank_values=True, max_num_fields=50, errors="strict")
    except ValueError as error:
        raise BadTargetError(f"the query can't be read: {error}") from None
    return Request(segments=segments, query={key: found[-1] for key, found in values.items()}, headers=headers)


def _segment(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadTargetError("a segment that isn't UTF-8") from None
    if "/" in decoded or "\\" in decoded:
        raise BadTargetError("an encoded slash in a segment")
    if decoded in {".", ".."}:
        raise BadTargetError("a segment of dots")
    if any(category(letter) == "Cc" for letter in decoded):
        raise BadTargetError("a control character in a segment")
    return decoded


def accepted_type(accept: str | None) -> str:
    """Return the type that an index page is given as: the one with the highest weight, JSON first among equals.

    Content negotiation of PEP 691; a client that names none of the three gets ``text/html``.
    """
    weights: dict[str, float] = {}
    for item in (accept or "").split(","):
        name, *parameters = (part.strip() for part in item.lower().split(";"))
        weights.setdefault(name.replace("simple.latest+", "simple.v1+"), _weight(parameters))
    found = [(weights.get(name, 0.0), name) for name in (JSON_TYPE, HTML_TYPE, "text/html")]
    weight, name = max(found, key=lambda each: each[0])
    return name if weight > 0 else "text/html"


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if match := re.fullmatch(r"q\s*=\s*([01](?:\.[0-9]{0,3})?)", parameter):
            return float(match[1])
    return 1.0


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Whether the client has what ``etag`` names (RFC 9110, section 13.1.2; weak comparison)."""
    if if_none_match is None:
        return False
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return if_none_match.strip() == "*" or etag in tags


def parse_range(size: int, etag: str, headers: Mapping[str, str]) -> ByteRange | None:
    """Return the part that is asked for, None for all of it.

    What isn't one well-formed range of bytes is ignored, as RFC 9110, section 14.2, allows, and so is one under an
    ``If-Range`` of other bytes.

    Raises:
        ValueError: It begins behind the end.
    """
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or match.groups() == ("", "") or headers.get("if-range", etag).strip() != etag:
        return None
    first, last = match.groups()
    if not first:
        count = min(int(last), size)
        if count == 0:
            raise ValueError("an empty range")
        return ByteRange(start=size - count, size=count)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise ValueError("behind the end")
    return ByteRange(start=start, size=min(int(last) + 1 if last else size, size) - start)


def base_url(headers: Mapping[str, str], address: str) -> str:
    """Return how the client reaches this server, for links: what it says itself if that is a host, else ``address``."""
    host = headers.get("host", "")
    scheme = "https" if headers.get("x-forwarded-proto") == "https" else "http"
    return f"{scheme}://{host if _HOST.fullmatch(host) else address}"
