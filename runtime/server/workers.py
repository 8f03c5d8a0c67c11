"""One thread per model, with a bounded queue in front: models are never called from two threads at once.

What computes is a thread that ends when nothing has waited for a moment. GNU OpenMP gives every thread that computes
helpers of its own, as long as it lives, and once all helpers of a process are more than its cores, it has them sleep
between any two products, not spin: an idle model would slow its neighbour down, by a sixth for one short text.
"""

import queue
import threading
from typing import Final, Generic, TypeVar

from manifests.errors import AdapterError

T = TypeVar("T")
_LINGER_SECONDS: Final = 0.05


class BusyError(AdapterError):
    """A model's queue is full."""


class ClosedError(AdapterError):
    """The worker takes nothing any more: its model is being replaced, unloaded, or the server stops."""


class Worker(Generic[T]):
    """A thread that takes requests from a bounded queue until it is stopped, and has another one work on them.

    Args:
        name: The model's name.
        depth: Requests that may wait.
    """

    def __init__(self, name: str, *, depth: int) -> None:
        self.name = name
        self._queue: queue.Queue[T | None] = queue.Queue(maxsize=depth)
        self._thread = threading.Thread(target=self._wait, name=f"queue-{name}", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._first: T | None = None
        self._draining = False
        self._broken = False

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._queue.qsize()

    @property
    def active(self) -> int:
        """How many are being worked on."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, request: T) -> None:
        """Queue a request.

        Raises:
            BusyError: The queue is full.
            ClosedError: :meth:`stop` was called.
        """
        with self._lock:
            if self._closed:
                raise ClosedError(f"model {self.name!r} is being unloaded", hint="try again in a second")
            try:
                self._queue.put_nowait(request)
            except queue.Full:
                msg = f"model {self.name!r} has {self._queue.maxsize} requests waiting already"
                raise BusyError(msg, hint="try again in a second") from None

    def stop(self) -> None:
        """Take nothing more, finish what was taken, then end."""
        with self._lock:
            first, self._closed = not self._closed, True
        if self._thread.is_alive():
            if first:
                self._queue.put(None)
            self._thread.join()

    def _wait(self) -> None:
        while not (self._draining or self._broken):
            self._first = self._queue.get()
            self._draining = self._first is None
            if self._first is not None:
                thread = threading.Thread(target=self._work, name=f"model-{self.name}", daemon=True)
                thread.start()
                thread.join()

    def _work(self) -> None:
        self._broken = True
        self._loop()
        self._broken = False

    def _loop(self) -> None:
        """Work until nothing is left."""
        raise NotImplementedError

    def _take(self, *, wait: bool) -> T | None:
        """Return the next request; None where none waits, or none comes in a moment, or the worker is stopped."""
        first, self._first = self._first, None
        if first is not None:
            return first
        if self._draining:
            return None
        try:
            request = self._queue.get(block=wait, timeout=_LINGER_SECONDS)
        except queue.Empty:
            return None
        self._draining = request is None
        return request
