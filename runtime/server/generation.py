"""Generating for many clients: their answers are decoded together, and a client that leaves frees its row at once."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from manifests.errors import AdapterError
from runtime.adapters.base import GenerationError, Piece, Prompt
from runtime.adapters.base import GenerationParams as Params
from runtime.adapters.engine import DecodeEngine, DecodeHandle
from runtime.server.workers import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """A prompt that waits; ``send`` gets, on the worker's thread, each piece and then the error or None."""

    prompt: Prompt
    params: Params
    send: Callable[[Piece | Exception | None], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


Jobs: TypeAlias = Sequence[GenerationJob]
"""One request: a job for each of its choices."""


class GenerationWorker(Worker[Jobs]):
    """The threads of one generator: it drives the engine that decodes all rows together.

    No more rows than the engine decodes at once are given to it, so whoever waits waits in the bounded queue.
    """

    def __init__(self, name: str, engine: DecodeEngine, *, depth: int) -> None:
        super().__init__(name, depth=depth)
        self._engine = engine
        self._next: deque[GenerationJob] = deque()
        self._rows: dict[DecodeHandle, GenerationJob] = {}

    @property
    def active(self) -> int:
        """How many answers are in the making, those included that wait for another answer to the same request."""
        return len(self._rows) + len(self._next)

    def _loop(self) -> None:
        while self._admit():
            for handle, job in self._rows.items():
                if job.cancelled.is_set():
                    handle.cancel()
            try:
                self._engine.step()
            except Exception as error:  # noqa: BLE001 - the thread must go on, whatever it was
                self._fail_all(error)
                continue
            # Not only what this step reports: another thread's step, a probe's, may have brought news of these rows.
            for handle in [handle for handle in self._rows if handle.has_news]:
                self._deliver(handle)

    def _admit(self) -> bool:
        """Fill free rows; whether there is anything to do."""
        while len(self._rows) < self._engine.max_rows:
            if not self._next:
                self._next.extend(self._take(wait=not self._rows) or ())
            if not self._next:
                break
            self._begin(self._next.popleft())
        return bool(self._rows or self._next)

    def _begin(self, job: GenerationJob) -> None:
        if job.cancelled.is_set():
            job.send(None)
            return
        try:
            self._rows[self._engine.add(job.prompt, job.params)] = job
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the pieces
            job.send(error)

    def _deliver(self, handle: DecodeHandle) -> None:
        job = self._rows[handle]
        ended = handle.done  # before the pieces are taken, since the last may come in between
        for piece in handle.take():
            job.send(piece)
        if ended:
            del self._rows[handle]
            job.send(handle.error)

    def _fail_all(self, error: Exception) -> None:
        told = error if isinstance(error, AdapterError) else GenerationError(f"model {self.name!r}: {error}")
        for handle, job in self._rows.items():
            handle.cancel()
            job.send(told)
        self._rows.clear()
