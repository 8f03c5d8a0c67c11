"""One thread per model, with a bounded queue in front: models are never called from two threads at once."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np

from manifests.errors import AdapterError
from runtime.adapters.base import (
    Embedder,
    EmbeddingInput,
    Embeddings,
    Generator,
    MultiEmbedder,
    MultiEmbeddings,
    Piece,
    Prompt,
    RequestError,
)
from runtime.adapters.base import GenerationParams as Params
from runtime.server.metrics import Metrics

BATCH_INPUTS: Final = 256
"""So many inputs of waiting requests go through the model together at most."""

T = TypeVar("T")


class BusyError(AdapterError):
    """A model's queue is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingJob:
    """Texts that wait for dense vectors."""

    texts: Sequence[EmbeddingInput]
    result: Future[Embeddings] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiJob:
    """Texts that wait for what BGE-M3's heads give."""

    texts: Sequence[EmbeddingInput]
    dense: bool
    sparse: bool
    colbert: bool
    result: Future[MultiEmbeddings] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """A prompt that waits; ``send`` gets, on the worker's thread, each piece and then the error or None."""

    prompt: Prompt
    params: Params
    send: Callable[[Piece | Exception | None], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker(Generic[T]):
    """A thread that takes jobs from a bounded queue until it is stopped.

    Args:
        name: The model's name.
        depth: Jobs that may wait.
    """

    def __init__(self, name: str, *, depth: int) -> None:
        self.name = name
        self._queue: queue.Queue[T | None] = queue.Queue(maxsize=depth)
        self._thread = threading.Thread(target=self._loop, name=f"model-{name}", daemon=True)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self._queue.qsize()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, job: T) -> None:
        """Queue a job.

        Raises:
            BusyError: The queue is full.
        """
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            msg = f"model {self.name!r} has {self._queue.maxsize} requests waiting already"
            raise BusyError(msg, hint="try again in a second") from None

    def stop(self) -> None:
        """Finish what is queued, then end."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _loop(self) -> None:
        while (job := self._queue.get()) is not None:
            self._work(job)

    def _work(self, job: T) -> None:
        raise NotImplementedError

    def _take_more(self) -> T | None:
        """Return a job that waits already, or None; the stop mark is left in place."""
        try:
            job = self._queue.get_nowait()
        except queue.Empty:
            return None
        if job is None:
            self._queue.put(None)
        return job


class EmbeddingWorker(Worker[EmbeddingJob | MultiJob]):
    """Embeds; requests that wait go through the model together, and one that fails fails alone."""

    def __init__(self, name: str, embedder: Embedder, *, depth: int, metrics: Metrics) -> None:
        super().__init__(name, depth=depth)
        self._embedder = embedder
        self._metrics = metrics

    def _work(self, job: EmbeddingJob | MultiJob) -> None:
        dense: list[EmbeddingJob] = []
        others: list[MultiJob] = []
        current: EmbeddingJob | MultiJob | None = job
        taken = 0
        while current is not None:
            if isinstance(current, MultiJob):
                others.append(current)
            elif current.result.set_running_or_notify_cancel():
                dense.append(current)
            taken += len(current.texts)
            current = self._take_more() if taken < BATCH_INPUTS else None
        if dense:
            self._embed(dense)
        for other in others:
            if other.result.set_running_or_notify_cancel():
                self._settle(other.result, lambda chosen=other: self._multi(chosen))  # type: ignore[misc]

    def _embed(self, jobs: Sequence[EmbeddingJob]) -> None:
        self._metrics.add("sealift_batches_total", model=self.name)
        if len(jobs) == 1:
            self._settle(jobs[0].result, lambda: self._embedder.embed(jobs[0].texts))
            return
        try:
            whole = self._embedder.embed([text for job in jobs for text in job.texts])
        except Exception:  # noqa: BLE001 - whose fault it is shows when each goes alone
            for job in jobs:
                self._embed_alone(job)
            return
        start = 0
        for job in jobs:
            job.result.set_result(_slice(whole, start, start + len(job.texts)))
            start += len(job.texts)

    def _embed_alone(self, job: EmbeddingJob) -> None:
        self._settle(job.result, lambda: self._embedder.embed(job.texts))

    def _multi(self, job: MultiJob) -> MultiEmbeddings:
        if not isinstance(self._embedder, MultiEmbedder):
            raise RequestError(f"model {self.name!r} gives dense vectors only", param="model")
        return self._embedder.embed_multi(job.texts, dense=job.dense, sparse=job.sparse, colbert=job.colbert)

    @staticmethod
    def _settle(result: Future[T], compute: Callable[[], T]) -> None:
        try:
            result.set_result(compute())
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the result
            result.set_exception(error)


class GenerationWorker(Worker[GenerationJob]):
    """Generates, one answer at a time; a job whose client left is dropped or broken off."""

    def __init__(self, name: str, generator: Generator, *, depth: int) -> None:
        super().__init__(name, depth=depth)
        self._generator = generator

    def _work(self, job: GenerationJob) -> None:
        if job.cancelled.is_set():
            job.send(None)
            return
        try:
            with closing(self._generator.stream(job.prompt, job.params)) as pieces:
                for piece in pieces:
                    job.send(piece)
                    if job.cancelled.is_set():
                        break
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the pieces
            job.send(error)
        else:
            job.send(None)


def _slice(whole: Embeddings, start: int, stop: int) -> Embeddings:
    return Embeddings(
        vectors=np.ascontiguousarray(whole.vectors[start:stop]),
        token_counts=whole.token_counts[start:stop],
        truncated=whole.truncated[start:stop],
    )
