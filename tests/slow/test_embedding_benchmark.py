"""The embedding rows run from end to end on a tiny shape; what they measure there is not looked at."""

import os
from pathlib import Path

import pytest

from benchmarks.embeddings import environments, make_model, measure, rows_of
from benchmarks.measure import Bench
from tests.factories_langchain import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.models]


def test_every_side_gives_the_same_vectors_and_a_row(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    bench = Bench(folder=tmp_path, environment=environment, report=lambda _: None)
    folder = tmp_path / "model"
    pythons = environments()
    make_model(bench, folder, "tiny", pythons)
    found = measure(bench, folder, pythons, threads=1, rounds=1)
    assert {side: list(one.seconds) for side, one in found.items()} == {side: [1, 24, 500] for side in found}
    rows = list(rows_of(found, 1))
    assert [row.name for row in rows] == [
        "embed-1-1t",
        "embed-24-1t",
        "embed-500-1t",
        "embed-1-onnx-1t",
        "embed-24-onnx-1t",
        "embed-500-onnx-1t",
        "embed-24-st-1t",
        "embed-24-int8-1t",
        "embed-500-cached-1t",
    ]
    assert all(row.value is not None and row.value > 0 for row in rows)
