"""The serving rows run from end to end on tiny shapes; what they measure there is not looked at."""

import os
from pathlib import Path

import pytest

from benchmarks.measure import Bench
from benchmarks.serving import TINY, rows_of
from tests.factories_langchain import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.models]


def test_every_row_is_there(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    bench = Bench(folder=tmp_path, environment=environment, report=lambda _: None)
    rows = list(rows_of(bench, tmp_path, TINY, rounds=1))
    rates = [f"serve-{kind}" for kind in ("rps-1", "rps-8", "rps-32", "tps-1", "tps-4", "tps-8")]
    assert [row.name for row in rows] == [*rates, "serve-ready", "serve-memory-4"]
    assert all(row.value is not None and row.value > 0 for row in rows)
    assert rows[-1].value is not None
    assert rows[-1].value < 4
