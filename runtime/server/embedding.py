"""Embedding for many clients: requests that wait go through the model together, and one that fails fails alone.

A batch holds so many tokens at most, so a request of thousands of texts is cut into slices and small requests don't
wait for its end; each running request gets an equal share of a batch.
"""

import re
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from runtime.adapters.base import (
    Embedder,
    EmbeddingInput,
    Embeddings,
    MultiEmbedder,
    MultiEmbeddings,
    RequestError,
)
from runtime.server.metrics import Metrics
from runtime.server.slices import cut, join
from runtime.server.workers import Worker

BATCH_TOKENS: Final = 16384
"""Tokens of waiting requests that go through the model together at most, estimated; the adapter cuts further."""

_INPUT: Final = re.compile(r"input (\d+)\b")


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


Job: TypeAlias = EmbeddingJob | MultiJob


@dataclass(slots=True, kw_only=True)
class _Running:
    """A job and how far it is: ``parts`` hold the texts before ``start``."""

    job: Job
    start: int = 0
    parts: list[Any] = field(default_factory=list)  # of one kind; which one, the job says
    ended: bool = False

    @property
    def kind(self) -> tuple[bool, ...] | None:
        """Return what is asked for; jobs of the same kind may share a batch."""
        job = self.job
        return (job.dense, job.sparse, job.colbert) if isinstance(job, MultiJob) else None

    def next_slice(self, tokens: int, limit: int) -> Sequence[EmbeddingInput]:
        """Return the next texts, at least one, of about so many tokens."""
        texts, stop, used = self.job.texts, self.start, 0
        while stop < len(texts) and (stop == self.start or used < tokens):
            used += estimate_tokens(texts[stop], limit)
            stop += 1
        return texts[self.start : stop]

    def add(self, part: Embeddings | MultiEmbeddings) -> None:
        """Take the vectors of the slice that was asked for last, and answer where it was the last one."""
        self.parts.append(part)
        self.start += len(part.token_counts)
        if self.start == len(self.job.texts):
            self.ended = True
            with suppress(InvalidStateError):  # its client has left meanwhile
                result: Any = join(self.parts)  # of the kind that the job asked for
                self.job.result.set_result(result)

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        self.ended = True
        with suppress(InvalidStateError):
            self.job.result.set_exception(_renumbered(error, self.start))


class EmbeddingWorker(Worker[Job]):
    """The threads of one embedder."""

    def __init__(
        self, name: str, embedder: Embedder, *, depth: int, metrics: Metrics, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        super().__init__(name, depth=depth)
        self._embedder = embedder
        self._metrics = metrics
        self._batch_tokens = batch_tokens
        self._running: list[_Running] = []

    @property
    def active(self) -> int:
        """How many requests are in the model."""
        return len(self._running)

    def _loop(self) -> None:
        while self._gather():
            self._running = [one for one in self._running if not one.job.result.cancelled()]
            if self._running:
                self._round()
            self._running = [one for one in self._running if not one.ended]

    def _gather(self) -> bool:
        """Take what waits while each gets a text into the next batch; whether there is anything to do."""
        tokens = sum(self._least(one) for one in self._running)
        while tokens < self._batch_tokens and (job := self._take(wait=not self._running)) is not None:
            self._running.append(_Running(job=job))
            tokens += self._least(self._running[-1])
        return bool(self._running)

    def _least(self, running: _Running) -> int:
        """Return the tokens of the one text that a job puts into a batch at least."""
        return estimate_tokens(running.job.texts[running.start], self._embedder.info.limit)

    def _round(self) -> None:
        """Put a batch through the model: of every running job that asks for the same as the first one."""
        group = [one for one in self._running if one.kind == self._running[0].kind]
        share = max(1, self._batch_tokens // len(group))
        slices = [(one, one.next_slice(share, self._embedder.info.limit)) for one in group]
        self._metrics.add("sealift_batches_total", model=self.name)
        try:
            whole = self._embed(group[0].job, [text for _, texts in slices for text in texts])
        except Exception as error:  # noqa: BLE001 - whose fault it is shows when each goes alone
            self._each_alone(slices, error)
        else:
            start = 0
            for one, texts in slices:
                one.add(cut(whole, start, start + len(texts)))
                start += len(texts)
        self._running = [one for one in self._running if one not in group] + group  # the other kind is next

    def _each_alone(self, slices: Sequence[tuple[_Running, Sequence[EmbeddingInput]]], error: Exception) -> None:
        for one, texts in slices:
            if len(slices) == 1:
                one.fail(error)
                return
            try:
                one.add(self._embed(one.job, texts))
            except Exception as own:  # noqa: BLE001 - it belongs to whoever waits for the result
                one.fail(own)

    def _embed(self, job: Job, texts: Sequence[EmbeddingInput]) -> Embeddings | MultiEmbeddings:
        if isinstance(job, EmbeddingJob):
            return self._embedder.embed(texts)
        if not isinstance(self._embedder, MultiEmbedder):
            raise RequestError(f"model {self.name!r} gives dense vectors only", param="model")
        return self._embedder.embed_multi(texts, dense=job.dense, sparse=job.sparse, colbert=job.colbert)


def estimate_tokens(text: EmbeddingInput, limit: int) -> int:
    """Return about how many tokens a text has, without the tokenizer: half of its characters, at most ``limit``."""
    return min(limit, (len(text) // 2 if isinstance(text, str) else len(text)) + 2)


def _renumbered(error: Exception, start: int) -> Exception:
    """Return an error about one input, numbered as in the request and not as in its slice."""
    if not start or not isinstance(error, RequestError):
        return error
    message = _INPUT.sub(lambda match: f"input {int(match[1]) + start}", error.message, count=1)
    return RequestError(message, param=error.param, hint=error.hint)
