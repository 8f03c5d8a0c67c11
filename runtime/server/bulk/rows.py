"""One line of the input: a JSON object with a text in it, or the reason why it isn't."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeAlias

MAX_LINE: Final = 16 << 20
"""Bytes of the longest line that is read; a longer one is a bad line."""

Id: TypeAlias = str | int | None


class BadRow(ValueError):  # noqa: N818 - what is wrong with the input, not with the program
    """A line has no usable text; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFields:
    """Which fields of an object are read: the text, and the id where one is asked for."""

    text: str
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A text, where it stands (lines and rows count from 1), and its id."""

    line: int
    text: str
    id: Id = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLine:
    """The bytes of a line, its end included; of one that is too long only the number is kept with ``too_long``."""

    line: int
    data: bytes
    too_long: bool = False


def read_lines(stream: BinaryIO) -> Iterator[RawLine]:
    """Yield every line, counted from 1. Parts of a line that is too long come one after the other, marked."""
    number, inside = 0, False
    while data := stream.readline(MAX_LINE):
        number += not inside
        was_inside, inside = inside, not data.endswith(b"\n") and len(data) == MAX_LINE
        yield RawLine(line=number, data=data, too_long=inside or was_inside)


def parse_line(raw: RawLine, fields: RowFields) -> Row | None:
    """Return the row of a line; None for an empty line.

    Raises:
        BadRow: Not an object of JSON, or its text or its id isn't there or isn't what it must be.
    """
    if raw.too_long:
        raise BadRow(f"longer than {MAX_LINE >> 20} MiB")
    if not raw.data.strip():
        return None
    try:
        document = json.loads(raw.data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRow(f"expected an object, got {_kind(document)}")
    text, own = _get(document, fields.text), None if fields.id is None else _get(document, fields.id)
    return make_row(raw.line, text, own, fields)


def make_row(line: int, text: object, own: object, fields: RowFields) -> Row:
    """Return a row of values whose types aren't known yet.

    Raises:
        BadRow: The text isn't one, or the id is neither a text nor a whole number.
    """
    if not isinstance(text, str):
        raise BadRow(f"field {fields.text!r}: expected text, got {_kind(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"field {fields.text!r}: a lone surrogate at character {error.start}") from None
    if fields.id is None:
        return Row(line=line, text=text)
    if isinstance(own, bool) or not isinstance(own, str | int):
        raise BadRow(f"field {fields.id!r}: expected text or a whole number, got {_kind(own)}")
    return Row(line=line, text=text, id=own)


def _get(document: dict[str, object], name: str) -> object:
    if name not in document:
        found = ", ".join(sorted(document)[:5]) or "none"
        raise BadRow(f"no field {name!r} (fields there: {found})")
    return document[name]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
