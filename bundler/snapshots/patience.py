"""How long to go on with a server that fails: attempts, delays, and what it asks for by ``Retry-After``."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

from manifests.digests import CHUNK_SIZE
from manifests.errors import SourceError

PASSING_STATUSES: Final = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be another one a moment later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient and how greedy: sizes in bytes, times in seconds.

    ``attempts`` in a row may fail without ``progress`` bytes between them; a read that gives nothing for ``timeout``,
    or a connection that gives less than ``slowest`` bytes a second for as long, counts as failed.
    """

    connections: int = 8
    segment: int = CHUNK_SIZE
    attempts: int = 6
    progress: int = 1024 * 1024
    first_delay: float = 1.0
    longest_delay: float = 30.0
    longest_retry_after: float = 600.0
    timeout: float = 30.0
    slowest: int = 1024


class Clock(Protocol):
    """The time, and waiting for it."""

    def monotonic(self) -> float:
        """Return seconds from any start."""

    def time(self) -> float:
        """Return seconds since 1970."""

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Return after ``seconds``, or as soon as ``stop`` is set."""


class SystemClock:
    """The real time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        stop.wait(seconds)


class TransientError(Exception):
    """An attempt failed for a reason that may pass; ``wait`` is how many seconds the server asks for, None for any."""

    def __init__(self, reason: str, *, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


@dataclass(slots=True, kw_only=True)
class Patience:
    """Counts the failures of one piece of work in a row, and waits between them."""

    name: str
    limits: Limits
    clock: Clock
    report: Callable[[str], None]
    stop: threading.Event
    hint: str = "run the same command again: what is there stays"
    failures: int = 0

    def failed(self, error: TransientError, host: str, *, has_moved: bool = False) -> None:
        """Wait until the next attempt; ``has_moved`` says that this one got somewhere before it failed.

        Raises:
            SourceError: It failed too often, or the server asks for too long a wait.
        """
        self.failures = 1 if has_moved else self.failures + 1
        if self.failures >= self.limits.attempts:
            msg = f"{self.name}: can't be fetched from {host}: {error.reason}; {self.failures} attempts"
            raise SourceError(msg, hint=self.hint)
        delay = min(self.limits.first_delay * 2 ** (self.failures - 1), self.limits.longest_delay)
        if error.wait is not None:
            delay = error.wait
            if delay > self.limits.longest_retry_after:
                msg = f"{self.name}: {host} asks to wait {delay:.0f} s: {error.reason}"
                raise SourceError(msg, hint="run the same command again after that: what is there stays")
        if delay:
            self.report(f"{self.name}: {host}: {error.reason}; trying again in {delay:.0f} s")
            self.clock.wait(delay, self.stop)


def retry_after(value: str, clock: Clock) -> float | None:
    """Return the seconds that a ``Retry-After`` header (RFC 9110, 10.2.3) asks for; None if it says nothing usable."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - clock.time())
    return None
