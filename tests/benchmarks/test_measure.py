"""Measuring: turns, failures, memory and disk."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from benchmarks.measure import Bench, BenchmarkError, DiskWatch, Sample, Side, disk_usage, memory_of, seconds_of
from benchmarks.table import Row, render_table
from benchmarks.workload import model_shapes

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def bench(tmp_path: Path, told: list[str]) -> Bench:
    return Bench(folder=tmp_path, environment=os.environ, report=told.append)


def side(label: str, *, once: bool = False) -> Side:
    return Side(label=label, commands=((sys.executable, "-c", "pass"),), once=once)


def test_sides_take_turns_and_slow_ones_run_once(bench: Bench, told: list[str]) -> None:
    found = bench.compare([side("a"), side("b"), side("slow", once=True)], 3)
    assert [line.partition(":")[0] for line in told] == ["a", "b", "slow", "b", "a", "a", "b"]
    assert {label: len(samples) for label, samples in found.items()} == {"a": 3, "b": 3, "slow": 1}


def test_a_failing_command_is_an_error_with_its_words(bench: Bench) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('no such thing')")
    with pytest.raises(BenchmarkError, match=r"exit status 1\nno such thing$"):
        bench.run(command)


def test_a_missing_program_is_named(bench: Bench) -> None:
    with pytest.raises(BenchmarkError, match=r"^no-such-program-here can't be run: No such file or directory$"):
        bench.run(("no-such-program-here",))


MEASURES: Final = """
import os, sys, pathlib
from benchmarks.measure import Bench
bench = Bench(folder=pathlib.Path(sys.argv[1]), environment=os.environ, report=lambda _: None)
for code in ("pass", "data = b'x' * 300_000_000"):
    print(bench.run((sys.executable, "-c", code)).memory)
"""


def test_memory_is_the_child_s_peak(tmp_path: Path) -> None:
    # In a process of its own: the kernel counts what a child shared with its parent before exec, and pytest is large.
    command = [sys.executable, "-c", MEASURES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    small, large = map(int, done.stdout.split())
    assert small < 300_000_000 <= large < 400_000_000


def test_median_time_and_highest_memory() -> None:
    samples = [Sample(seconds=seconds, memory=memory) for seconds, memory in ((9.0, 5), (1.0, 7), (2.0, 6))]
    assert seconds_of(samples) == 2.0
    assert memory_of(samples) == 7


def test_disk_usage_counts_a_hard_link_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 1_000_000)
    before = disk_usage(tmp_path)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert 1_000_000 <= disk_usage(tmp_path) == before


def test_the_peak_of_what_a_folder_takes_stays(tmp_path: Path) -> None:
    with DiskWatch(tmp_path) as watch:
        (tmp_path / "temporary").write_bytes(b"x" * 2_000_000)
        while watch.peak < 2_000_000:
            assert watch.is_alive()
        (tmp_path / "temporary").unlink()
    assert watch.peak >= 2_000_000 > disk_usage(tmp_path)


def row(value: float | None, *, goal: float = 2.0, note: str = "") -> Row:
    return Row(
        name="verify",
        ours="1 s",
        against="peer",
        peer="3 s",
        value=value,
        unit="x",
        sense="at least",
        goal=goal,
        note=note,
    )


def test_the_table_says_where_we_stand() -> None:
    text = render_table([row(3.0), row(1.999), row(None, note="no room")])
    assert text.splitlines() == [
        "row     ours  against  peer  measured  goal   stand",
        "------  ----  -------  ----  --------  -----  -------",
        "verify  1 s   peer     3 s   3.00x     >= 2x  met",
        "verify  1 s   peer     3 s   2.00x     >= 2x  NOT met",
        "verify  1 s   peer     3 s   -         >= 2x  skipped",
        "",
        "verify: no room",
    ]


def test_the_model_has_the_shape_of_bge_m3() -> None:
    sizes = [shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in model_shapes().values()]
    assert sum(sizes) == 567_754_752  # XLM-RoBERTa large with 8,194 positions
