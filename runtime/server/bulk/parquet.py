"""Parquet as input, where the release carries pyarrow."""

import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from manifests.errors import UsageError
from runtime.server.bulk.rows import Row, RowFields
from runtime.server.bulk.sources import Bad, Scan, Shard, ShardCounter, reading, row_or_bad

_BATCH: Final = 8192


class ParquetSource:
    """Columns of a Parquet file; a row's "line" is its number, from 1 on.

    Raises:
        UsageError: pyarrow isn't here, the file isn't Parquet, or it lacks a column.
    """

    def __init__(self, path: Path, fields: RowFields) -> None:
        self._path = path
        self._fields = fields
        try:
            arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        except ImportError:
            hint = (
                'add "pyarrow" to [packages] requirements of the spec and build again, or convert the input to .jsonl'
            )
            raise UsageError(f"{path}: this release has no pyarrow, which reads Parquet", hint=hint) from None
        try:
            with reading(path):
                self._file: Any = parquet.ParquetFile(path)
        except arrow.ArrowInvalid as error:
            raise UsageError(f"{path}: not a Parquet file: {error}") from None
        names: list[str] = self._file.schema_arrow.names
        for name in self._columns:
            if name not in names:
                raise UsageError(f"{path}: no column {name!r} (columns there: {', '.join(names)})")

    @property
    def _columns(self) -> list[str]:
        return [self._fields.text, *([self._fields.id] if self._fields.id else [])]

    def scan(self, shard_rows: int) -> Scan:
        """Read the columns once, as :meth:`Source.scan` says; the digest is the file's."""
        counter = ShardCounter(shard_rows=shard_rows)
        bad: list[Bad] = []
        for found in self._read(0, self._file.metadata.num_rows):
            if isinstance(found, Bad):
                bad.append(found)
            counter.add(1, b"", rows=int(isinstance(found, Row)), line=found.line)
        with reading(self._path), self._path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Scan(sha256=digest, size=self._path.stat().st_size, shards=counter.finish(), bad=tuple(bad))

    def rows(self, shard: Shard) -> list[Row]:
        """Return the texts of one part, as :meth:`Source.rows` says."""
        return [found for found in self._read(shard.start, shard.size) if isinstance(found, Row)]

    def _read(self, start: int, count: int) -> Iterator[Row | Bad]:
        """Yield rows from ``start`` on; only row groups that hold some of them are read."""
        groups, first = self._groups(start, start + count)
        number = first
        for batch in self._file.iter_batches(batch_size=_BATCH, row_groups=groups, columns=self._columns):
            texts = batch.column(self._fields.text).to_pylist()
            ids = batch.column(self._fields.id).to_pylist() if self._fields.id else [None] * len(texts)
            for text, own in zip(texts, ids, strict=True):
                if start <= number < start + count:
                    yield row_or_bad(number + 1, text, own, self._fields)
                number += 1

    def _groups(self, start: int, stop: int) -> tuple[list[int], int]:
        """Return the row groups that overlap with these rows, and the number of the first row in them."""
        chosen: list[int] = []
        first, begin = start, 0
        for group in range(self._file.metadata.num_row_groups):
            end = begin + self._file.metadata.row_group(group).num_rows
            if begin < stop and end > start:
                first = first if chosen else begin
                chosen.append(group)
            begin = end
        return chosen, first
