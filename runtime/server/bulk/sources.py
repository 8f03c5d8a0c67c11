"""The input: read once to count, check and divide it, then shard by shard where the work is done."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from manifests.errors import IntegrityError, UsageError, list_problems
from manifests.files import disk_error
from runtime.server.bulk.rows import BadRow, RawLine, Row, RowFields, make_row, parse_line, read_lines

_LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of the input.

    Attributes:
        number: From 0 on, in the input's order.
        rows: Texts in it.
        line: Its first line, from 1 on.
        start: Where it begins: the byte of a JSONL file, the row of a Parquet file.
        size: How long it is, in the same unit.
        sha256: Of its bytes in a JSONL file; empty for Parquet.
    """

    number: int
    rows: int
    line: int
    start: int
    size: int
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for a worker."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Shard":
        """Return what :meth:`to_json` wrote."""
        return cls(**document)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A line without a usable text, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What the input holds: its digest and size in bytes, its parts, and the lines that can't be used."""

    sha256: str
    size: int
    shards: tuple[Shard, ...]
    bad: tuple[Bad, ...]

    @property
    def rows(self) -> int:
        """How many texts there are."""
        return sum(shard.rows for shard in self.shards)


class Source(Protocol):
    """A file of texts."""

    def scan(self, shard_rows: int) -> Scan:
        """Read everything once; ``shard_rows`` texts make a part, the last one may have fewer."""

    def rows(self, shard: Shard) -> list[Row]:
        """Return the texts of one part.

        Raises:
            IntegrityError: The file isn't what was scanned any more.
        """


def open_source(path: Path, fields: RowFields) -> Source:
    """Return the input for its name: ``.jsonl`` or ``.ndjson``, or ``.parquet`` where this release has pyarrow.

    Raises:
        UsageError: No such file, another kind of file, or Parquet without pyarrow.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="give a .jsonl file: one JSON object a line")
    if path.suffix in {".jsonl", ".ndjson"}:
        return JsonlSource(path, fields)
    if path.suffix != ".parquet":
        raise UsageError(f"{path}: expected .jsonl, .ndjson or .parquet, got {path.suffix or 'no ending'!r}")
    from runtime.server.bulk.parquet import ParquetSource  # noqa: PLC0415 - a circle otherwise

    return ParquetSource(path, fields)


def require_usable(scan: Scan, path: Path, *, skip_bad: bool) -> None:
    """Refuse an input without texts, and one with bad lines unless they are to be left out.

    Raises:
        UsageError: Names the lines.
    """
    if scan.bad and not skip_bad:
        problems = [f"line {bad.line}: {bad.reason}" for bad in scan.bad]
        hint = "correct them, or leave them out with --skip-bad: they are listed in skipped.jsonl"
        raise UsageError(list_problems(f"{path}", problems, limit=_LISTED), hint=hint)
    if not scan.rows:
        raise UsageError(f"{path}: there are no texts in it")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system says into an error of ours.

    Raises:
        DiskError: ``path`` can't be read.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, f"read {path}") from error


@dataclass(slots=True, kw_only=True)
class ShardCounter:
    """Counts rows into shards while an input is read."""

    shard_rows: int
    shards: list[Shard] = field(default_factory=list)
    _rows: int = 0
    _line: int = 1
    _start: int = 0
    _end: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, size: int, data: bytes, *, rows: int, line: int) -> None:
        """Take a piece of ``size`` units that belongs to ``line`` and holds so many rows: one or none."""
        self._hash.update(data)
        self._end += size
        self._rows += rows
        if self._rows == self.shard_rows:
            self._close(line + 1)

    def finish(self) -> tuple[Shard, ...]:
        """Return all shards; pieces without a row at the end belong to none."""
        if self._rows:
            self._close(0)
        return tuple(self.shards)

    def _close(self, next_line: int) -> None:
        self.shards.append(
            Shard(
                number=len(self.shards),
                rows=self._rows,
                line=self._line,
                start=self._start,
                size=self._end - self._start,
                sha256=self._hash.hexdigest(),
            )
        )
        self._rows, self._line, self._start, self._hash = 0, next_line, self._end, hashlib.sha256()


class JsonlSource:
    """One JSON object a line, UTF-8; empty lines don't count as texts."""

    def __init__(self, path: Path, fields: RowFields) -> None:
        self._path = path
        self._fields = fields

    def scan(self, shard_rows: int) -> Scan:
        """Read the file once, as :meth:`Source.scan` says."""
        whole, size = hashlib.sha256(), 0
        bad: list[Bad] = []
        counter = ShardCounter(shard_rows=shard_rows)
        with reading(self._path), self._path.open("rb") as stream:
            for raw in read_lines(stream):
                whole.update(raw.data)
                size += len(raw.data)
                rows = 0
                try:
                    rows = int(parse_line(raw, self._fields) is not None)
                except BadRow as error:
                    if not bad or bad[-1].line != raw.line:
                        bad.append(Bad(line=raw.line, reason=str(error)))
                counter.add(len(raw.data), raw.data, rows=rows, line=raw.line)
        return Scan(sha256=whole.hexdigest(), size=size, shards=counter.finish(), bad=tuple(bad))

    def rows(self, shard: Shard) -> list[Row]:
        """Return the texts of one part, as :meth:`Source.rows` says."""
        with reading(self._path), self._path.open("rb") as stream:
            stream.seek(shard.start)
            data = stream.read(shard.size)
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            hint = "keep it unchanged until the end; with another input, another --output"
            raise IntegrityError(f"{self._path}: changed since it was counted, at line {shard.line}", hint=hint)
        lines = read_lines(io.BytesIO(data))
        return list(
            self._usable(RawLine(line=shard.line + raw.line - 1, data=raw.data, too_long=raw.too_long) for raw in lines)
        )

    def _usable(self, lines: Iterator[RawLine]) -> Iterator[Row]:
        for raw in lines:
            try:
                row = parse_line(raw, self._fields)
            except BadRow:
                continue  # named by the scan
            if row is not None:
                yield row


def row_or_bad(line: int, text: object, own: object, fields: RowFields) -> Row | Bad:
    """Return a row of values, or what is wrong with them."""
    try:
        return make_row(line, text, own, fields)
    except BadRow as error:
        return Bad(line=line, reason=str(error))
