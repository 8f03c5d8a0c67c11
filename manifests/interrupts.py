"""Telling threads that somebody stops the program."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


def interrupted() -> threading.Event:
    """Return an event that is set as soon as somebody stops us, so that no thread waits on; for the main thread."""
    event = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, _setting(event, before))
    return event


def _setting(
    event: threading.Event, before: Callable[[int, FrameType | None], object]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        before(number, frame)

    return handle
