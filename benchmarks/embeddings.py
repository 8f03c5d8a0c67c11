"""Embedding on a CPU: BGE-M3's real shape with random weights, against FlagEmbedding and others."""

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

_SIDES: Final = ("ours", "flagembedding", "sentence-transformers", "onnxruntime", "int8", "cached")
_COUNTS: Final = (1, 24, 500)
_MOST_DIFFERENCE: Final[Mapping[str, float]] = {
    "flagembedding": 1e-5,
    "sentence-transformers": 1e-5,
    "onnxruntime": 1e-4,  # kernels of its own, not torch's
    "cached": 1e-5,
}


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
    folder = sections.work.folder / "bge-m3"
    pythons = environments()
    make_model(sections.bench, folder, "real", pythons)
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        yield from rows_of(measure(sections.bench, folder, pythons, threads, sections.rounds), threads)


def environments() -> Mapping[str, Path]:
    """Return, for each side, a Python that has its library; environments of that kind outlive the benchmark."""
    # The tests of the adapters have the same ones.
    from tests.factories_langchain import flagembedding_venv, onnxruntime_venv  # noqa: PLC0415

    return {**dict.fromkeys(_SIDES, flagembedding_venv().python), "onnxruntime": onnxruntime_venv().python}


def make_model(bench: Bench, folder: Path, shape: str, pythons: Mapping[str, Path]) -> None:
    """Write a model of that shape with random weights, and the same as ONNX."""
    bench.report(f"write a model of BGE-M3's {shape} shape, and export it to ONNX")
    worker = ("-m", "benchmarks.embedding_worker")
    bench.run((sys.executable, *worker, "make", folder, shape))
    bench.run((pythons["onnxruntime"], *worker, "export", folder))


def measure(
    bench: Bench, folder: Path, pythons: Mapping[str, Path], threads: int, rounds: int
) -> Mapping[str, Measured]:
    """Have every side embed the same texts, each in a process of its own, ``rounds`` times (500 texts: once)."""
    found: dict[str, Measured] = {}
    report = bench.folder / "embeddings.json"
    for side in _SIDES:
        words: Command = (pythons[side], "-m", "benchmarks.embedding_worker", "run", side, folder)
        bench.report(f"embeddings, {side}, {threads} thread(s)")
        bench.run((*words, str(threads), str(rounds), report))
        document = json.loads(report.read_bytes())
        seconds = {int(count): values for count, values in document["seconds"].items()}
        found[side] = Measured(seconds=seconds, vectors=np.asarray(document["vectors"]))
    _check(found)
    return found


def rows_of(found: Mapping[str, Measured], threads: int) -> Iterator[Row]:
    """Compare the sides."""
    for count in _COUNTS:
        goal, note = 1.3 if count == 500 else 2.0, _note(found, "flagembedding", threads)
        yield _row(f"embed-{count}-{threads}t", found, count, peer="flagembedding", goal=goal, note=note)
    for count in _COUNTS:
        note = _note(found, "onnxruntime", threads)
        yield _row(f"embed-{count}-onnx-{threads}t", found, count, peer="onnxruntime", goal=1.0, note=note)
    yield _row(f"embed-24-st-{threads}t", found, 24, peer="sentence-transformers", goal=1.0)
    cosine = float((found["ours"].vectors * found["int8"].vectors).sum(axis=1).min())
    note = f"smallest cosine against float32 {cosine:.5f}, with random weights"
    yield _row(f"embed-24-int8-{threads}t", found, 24, ours="int8", peer="ours", goal=2.0, note=note)
    yield _row(f"embed-500-cached-{threads}t", found, 500, ours="cached", peer="ours", goal=20.0)


_LABELS: Final = {"ours": "float32, no cache, encode", "onnxruntime": "onnxruntime, float32, sorted batches of 16"}


def _note(found: Mapping[str, Measured], peer: str, threads: int) -> str:
    return f"largest difference of a number {_difference(found, peer):.1e}; {threads} thread(s)"


def _row(
    name: str, found: Mapping[str, Measured], count: int, *, peer: str, goal: float, ours: str = "ours", note: str = ""
) -> Row:
    mine, theirs = found[ours].typical(count), found[peer].typical(count)
    return Row(
        name=name,
        ours=duration(mine),
        against=f"{_LABELS.get(peer, f'{peer} encode')}, {count} text(s)",
        peer=duration(theirs),
        value=theirs / mine,
        unit="x",
        sense="at least",
        goal=goal,
        note=note,
    )


def _check(found: Mapping[str, Measured]) -> None:
    """Fast and wrong would be no result."""
    for peer, most in _MOST_DIFFERENCE.items():
        if (difference := _difference(found, peer)) > most:
            raise BenchmarkError(f"embeddings: the numbers of {peer} differ by {difference:.1e}, expected <= {most:g}")


def _difference(found: Mapping[str, Measured], peer: str) -> float:
    return float(np.abs(found["ours"].vectors - found[peer].vectors).max())


EMBEDDINGS: Final[Mapping[str, Section]] = {"embeddings": embeddings}
"""Name -> section."""
