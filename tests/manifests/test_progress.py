"""What a person who waits sees, on a terminal and in a log."""

import io

import pytest

from manifests.progress import ProgressBar, format_duration, format_size


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (191_800_000, "191.8 MB"),
        (2_270_000_000, "2.3 GB"),
        (10**12, "1.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_format_size(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (0.44, "0.4 s"), (99.9, "99.9 s"), (125, "2 min 05 s"), (3600, "60 min 00 s")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def waited(bar: ProgressBar, seconds: float) -> None:
    """Let ``seconds`` have passed since the bar's start and its last line."""
    bar._start -= seconds
    bar._shown -= seconds


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_short_work_shows_nothing(stream: io.StringIO) -> None:
    with ProgressBar("verifying", 100, stream) as bar:
        bar.advance(50)
        bar.advance(50)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ProgressBar("verifying", 4000, stream) as bar:
        waited(bar, 10)
        bar.advance(1000)
        bar.advance(1)  # within the interval: not shown
        waited(bar, 10)
        bar.advance(999)
    first, second, wiped = stream.getvalue().split("\r\x1b[K")[1:]
    assert first == f"[{'#' * 6}{'.' * 18}] verifying  25% of 4.0 kB, 100 B/s, 30.0 s left"
    assert second == f"[{'#' * 12}{'.' * 12}] verifying  50% of 4.0 kB, 100 B/s, 20.0 s left"
    assert wiped == ""


def test_a_log_gets_a_line_a_quarter() -> None:
    stream = io.StringIO()
    with ProgressBar("copying", 1000, stream) as bar:
        for _ in range(10):
            waited(bar, 1)
            bar.advance(100)
    lines = stream.getvalue().splitlines()
    assert [line.split(" of ")[0] for line in lines] == [
        "copying  20%",
        "copying  30%",
        "copying  50%",
        "copying  80%",
        "copying 100%",
    ]
    assert lines[-1] == "copying 100% of 1.0 kB, 100 B/s, 0.0 s left"
    assert "\r" not in stream.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with ProgressBar("copying", 1000, stream) as bar:
        waited(bar, 5)
        bar.advance(500)
    assert stream.getvalue() == "copying  50% of 1.0 kB, 100 B/s, 5.0 s left\n"


def test_more_than_the_total_and_nothing_at_all() -> None:
    stream = io.StringIO()
    with ProgressBar("copying", 0, stream) as bar:
        waited(bar, 10)
        bar.advance(0)
        waited(bar, 10)
        bar.advance(2000)
    assert stream.getvalue().splitlines() == [
        "copying   0% of 1 B, 0 B/s, ? left",
        "copying 100% of 1 B, 100 B/s, 0.0 s left",
    ]
