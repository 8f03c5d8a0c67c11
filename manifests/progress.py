"""A progress bar for whoever waits longer than two seconds; it writes only to the stream that it was given."""

import os
import threading
import time
from types import TracebackType
from typing import Final, Self, TextIO

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_PATIENCE: Final = 2.0  # seconds before anything is shown
_INTERVAL: Final = 0.2


def format_size(count: float) -> str:
    """Return a size in bytes as people write it, decimal units: ``191.8 MB``."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def format_duration(seconds: float) -> str:
    """Return a duration: ``0.4 s``, ``2 min 05 s``."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


class ProgressBar:
    """Bytes done of ``total``, with rate and time left; a bar on a terminal, one line a quarter elsewhere."""

    def __init__(self, label: str, total: int, stream: TextIO) -> None:
        self._label, self._total, self._stream = label, max(total, 1), stream
        self._terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()
        self._done = 0
        self._start = self._shown = time.monotonic()
        self._quarters = 0
        self._visible = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._visible and self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes, and show it now and then."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._start < _PATIENCE or now - self._shown < _INTERVAL:
                return
            self._shown = now
            self._show(now - self._start)

    def _show(self, elapsed: float) -> None:
        share = min(self._done / self._total, 1.0)
        rate = self._done / elapsed
        left = format_duration(max(self._total - self._done, 0) / rate) if rate else "?"
        text = f"{self._label} {share:4.0%} of {format_size(self._total)}, {format_size(rate)}/s, {left} left"
        if self._terminal:
            filled = int(share * 24)
            self._stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (24 - filled)}] {text}")
        elif int(share * 4) > self._quarters or not self._visible:
            self._quarters = int(share * 4)
            self._stream.write(f"{text}\n")
        self._visible = True
        self._stream.flush()


class Activity:
    """What is going on, for work whose end nobody can foresee: after two seconds, the step and the time it has taken.

    On a terminal one line that is rewritten; elsewhere a line for each new step that takes longer than two seconds.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._text, self._start, self._shown = "", time.monotonic(), ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="activity", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.clear()

    def step(self, text: str) -> None:
        """Say what has begun."""
        with self._lock:
            self._text, self._start = text, time.monotonic()

    def clear(self) -> None:
        """Take the line away, so that something else can be written."""
        with self._lock:
            if self._terminal and self._shown:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
            self._shown = ""

    def _run(self) -> None:
        while not self._done.wait(_INTERVAL):
            with self._lock:
                elapsed = time.monotonic() - self._start
                if self._text and elapsed >= _PATIENCE:
                    self._show(f"{self._text} ({format_duration(elapsed)})" if self._terminal else self._text)

    def _show(self, text: str) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[K  ... {text}"[:110])
        elif text != self._shown:
            self._stream.write(f"  ... {text}\n")
        self._shown = text
        self._stream.flush()
