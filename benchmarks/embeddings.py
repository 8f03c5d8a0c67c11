"""Embedding on a CPU: BGE-M3's real shape with random weights, against FlagEmbedding and sentence-transformers."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from benchmarks.measure import Bench, BenchmarkError, Command
from benchmarks.sections import Section, Sections
from benchmarks.table import Row, duration

_SIDES: Final = ("ours", "flagembedding", "sentence-transformers", "int8", "cached")
_COUNTS: Final = (1, 24, 500)
_MOST_DIFFERENCE: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one side did: number of texts -> seconds of each call, and vectors of shape (24, dimension)."""

    seconds: Mapping[int, Sequence[float]]
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]]

    def typical(self, count: int) -> float:
        """Return the median of the calls with so many texts."""
        return median(self.seconds[count])


def embeddings(sections: Sections) -> Iterator[Row]:
    """One query, 24 and 500 texts of mixed lengths, with one thread and with all; nothing for a tiny payload."""
    if not sections.work.size.model:
        return
    # An environment with FlagEmbedding is what the tests of the adapters have, too.
    from tests.factories_langchain import flagembedding_venv  # noqa: PLC0415

    sections.bench.report("write a model of BGE-M3's shape, 2.27 GB")
    folder = sections.work.folder / "bge-m3"
    python = flagembedding_venv().python
    sections.bench.run((sys.executable, "-m", "benchmarks.embedding_worker", "make", folder, "real"))
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        yield from rows_of(measure(sections.bench, folder, python, threads, sections.rounds), threads)


def measure(bench: Bench, folder: Path, python: Path, threads: int, rounds: int) -> Mapping[str, Measured]:
    """Have every side embed the same texts, each in a process of its own, ``rounds`` times (500 texts: once)."""
    found: dict[str, Measured] = {}
    report = bench.folder / "embeddings.json"
    for side in _SIDES:
        words: Command = (python, "-m", "benchmarks.embedding_worker", "run", side, folder, str(threads), str(rounds))
        bench.report(f"embeddings, {side}, {threads} thread(s)")
        bench.run((*words, report))
        document = json.loads(report.read_bytes())
        seconds = {int(count): values for count, values in document["seconds"].items()}
        found[side] = Measured(seconds=seconds, vectors=np.asarray(document["vectors"]))
    _check(found)
    return found


def rows_of(found: Mapping[str, Measured], threads: int) -> Iterator[Row]:
    """Compare the sides."""
    for count in _COUNTS:
        goal = 1.3 if count == 500 else 2.0
        difference = _difference(found, "flagembedding")
        note = f"largest difference of a number {difference:.1e}; {threads} thread(s)"
        yield _row(f"embed-{count}-{threads}t", found, count, peer="flagembedding", goal=goal, note=note)
    yield _row(f"embed-24-st-{threads}t", found, 24, peer="sentence-transformers", goal=1.0)
    cosine = float((found["ours"].vectors * found["int8"].vectors).sum(axis=1).min())
    note = f"smallest cosine against float32 {cosine:.5f}, with random weights"
    yield _row(f"embed-24-int8-{threads}t", found, 24, ours="int8", peer="ours", goal=2.0, note=note)
    yield _row(f"embed-500-cached-{threads}t", found, 500, ours="cached", peer="ours", goal=20.0)


def _row(
    name: str, found: Mapping[str, Measured], count: int, *, peer: str, goal: float, ours: str = "ours", note: str = ""
) -> Row:
    mine, theirs = found[ours].typical(count), found[peer].typical(count)
    return Row(
        name=name,
        ours=duration(mine),
        against=f"{'float32, no cache' if peer == 'ours' else peer} encode, {count} text(s)",
        peer=duration(theirs),
        value=theirs / mine,
        unit="x",
        sense="at least",
        goal=goal,
        note=note,
    )


def _check(found: Mapping[str, Measured]) -> None:
    """Fast and wrong would be no result."""
    for peer in ("flagembedding", "sentence-transformers", "cached"):
        if (difference := _difference(found, peer)) > _MOST_DIFFERENCE:
            raise BenchmarkError(f"embeddings: the numbers of {peer} differ by {difference:.1e}, expected <= 1e-5")


def _difference(found: Mapping[str, Measured], peer: str) -> float:
    return float(np.abs(found["ours"].vectors - found[peer].vectors).max())


EMBEDDINGS: Final[Mapping[str, Section]] = {"embeddings": embeddings}
"""Name -> section."""
