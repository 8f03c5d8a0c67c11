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
