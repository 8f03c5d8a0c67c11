"""The folder that is written: shards, the plan and the journal of an unfinished run, and the summary of a finished one.

::

    OUTPUT/
      shard-00000.npy         float32, shape (rows, dimension)
      shard-00000.ids.jsonl   a line for each row: line, id if asked for, tokens, truncated
      skipped.jsonl           bad lines, with --skip-bad where there are any
      plan.json, journal.jsonl    while it isn't finished
      summary.json            last of all
"""

import contextlib
import fcntl
import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from manifests.digests import sha256_hex
from manifests.errors import DiskError, UsageError
from manifests.files import disk_error, write_atomic
from runtime.adapters.base import Embeddings
from runtime.server.bulk.rows import Row
from runtime.server.bulk.sources import Bad, Shard

SUMMARY_NAME: Final = "summary.json"
_PLAN: Final = "plan.json"
_JOURNAL: Final = "journal.jsonl"
_SKIPPED: Final = "skipped.jsonl"
_WAIT: Final = 10.0  # seconds: processes of a run that was killed see within them that it is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A shard whose two files lie there: sizes in bytes, digests, and what it counts."""

    number: int
    rows: int
    tokens: int
    truncated: int
    vectors_size: int
    vectors_sha256: str
    ids_size: int
    ids_sha256: str


def vectors_name(number: int) -> str:
    """Return the file name of a shard's vectors."""
    return f"shard-{number:05}.npy"


def ids_name(number: int) -> str:
    """Return the name of the file that says which text each of them is of."""
    return f"shard-{number:05}.ids.jsonl"


def write_shard(folder: Path, shard: Shard, rows: Sequence[Row], embedded: Embeddings, *, with_ids: bool) -> Done:
    """Write both files of a shard, each whole or not at all, and wait until the disk has them.

    Raises:
        DiskError: No space, no permission.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(embedded.vectors, dtype="<f4"), allow_pickle=False)
    vectors = buffer.getvalue()
    pairs = zip(rows, embedded.token_counts, embedded.truncated, strict=True)
    ids = b"".join(
        _line({"line": row.line, **({"id": row.id} if with_ids else {}), "tokens": tokens, "truncated": bool(cut)})
        for row, tokens, cut in pairs
    )
    write_atomic(folder / vectors_name(shard.number), vectors)
    write_atomic(folder / ids_name(shard.number), ids)
    return Done(
        number=shard.number,
        rows=len(rows),
        tokens=sum(embedded.token_counts),
        truncated=embedded.truncated_count,
        vectors_size=len(vectors),
        vectors_sha256=sha256_hex(vectors),
        ids_size=len(ids),
        ids_sha256=sha256_hex(ids),
    )


class Output:
    """The folder, held by one run at a time; ``descriptor`` is the lock, for the processes that work for the run."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self.descriptor = descriptor

    def read(self, name: str) -> Mapping[str, Any] | None:
        """Return a document of the folder, None where there is none.

        Raises:
            UsageError: It isn't one of ours.
        """
        try:
            document = json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or "request" not in document:
            raise UsageError(f"{self.folder / name}: not written by runtime embed", hint="choose another --output")
        return document

    @property
    def plan(self) -> Mapping[str, Any] | None:
        """What an unfinished run writes, or None."""
        return self.read(_PLAN)

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """What a finished run wrote, or None."""
        return self.read(SUMMARY_NAME)

    def require_ours(self) -> None:
        """Refuse a folder with files that no run of ours began.

        Raises:
            UsageError: Names one.
        """
        known = self.plan is not None or self.summary is not None
        strange = sorted(path.name for path in self.folder.iterdir() if not path.name.endswith(".partial"))
        if strange and not known:
            msg = f"{self.folder}: not empty and not begun by runtime embed: {strange[0]}"
            raise UsageError(msg, hint="choose an empty folder for --output")

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Write the plan, and remove what a killed run left half-written."""
        for path in self.folder.glob(".*.partial"):
            path.unlink(missing_ok=True)
        write_atomic(self.folder / _PLAN, encode(plan))

    def add(self, done: Done) -> None:
        """Note a shard as done; what is noted is on the disk."""
        descriptor = os.open(self.folder / _JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, _line(asdict(done)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def finished(self, shards: Sequence[Shard]) -> dict[int, Done]:
        """Return the shards that the journal has and whose files are there; a torn last line is cut off."""
        path = self.folder / _JOURNAL
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_atomic(path, whole)
        found = (Done(**json.loads(line)) for line in whole.splitlines())
        rows = {shard.number: shard.rows for shard in shards}
        return {done.number: done for done in found if rows.get(done.number) == done.rows and self._has(done)}

    def finish(self, summary: Mapping[str, Any], skipped: Sequence[Bad]) -> None:
        """Write the summary; from then on the folder is finished, and what only a running one needs is removed."""
        if skipped:
            write_atomic(self.folder / _SKIPPED, b"".join(_line(asdict(bad)) for bad in skipped))
        write_atomic(self.folder / SUMMARY_NAME, encode(summary))
        self.tidy()

    def tidy(self) -> None:
        """Remove what a finished folder doesn't need."""
        for path in (self.folder / _JOURNAL, self.folder / _PLAN, *self.folder.glob(".*.partial")):
            path.unlink(missing_ok=True)

    def _has(self, done: Done) -> bool:
        sizes = {vectors_name(done.number): done.vectors_size, ids_name(done.number): done.ids_size}
        paths = ((self.folder / name, size) for name, size in sizes.items())
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


@contextlib.contextmanager
def open_output(folder: Path) -> Iterator[Output]:
    """Hold the folder, which is made if need be.

    Raises:
        DiskError: It can't be made, or another run works there.
        UsageError: Something else lies in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise disk_error(error, f"create {folder}") from error
    try:
        _lock(descriptor, folder)
        output = Output(folder, descriptor)
        output.require_ours()
        yield output
    finally:
        os.close(descriptor)


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a document as it is written: keys sorted, so that the same content is the same bytes."""
    return json.dumps(document, indent=2, sort_keys=True).encode("ascii") + b"\n"


def _lock(descriptor: int, folder: Path) -> None:
    end = time.monotonic() + _WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                msg = f"{folder}: another runtime embed works there"
                raise DiskError(msg, hint="wait for it, or choose another --output") from None
            time.sleep(0.05)
        else:
            return


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode("ascii") + b"\n"
