"""What all embedders share: one way in for threads, the cache in front, LangChain, and the plain methods."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, TypeAlias

from manifests.errors import AdapterError
from manifests.modelsettings import EmbedderSettings
from runtime.adapters.base import AdapterInfo, EmbeddingInput, Embeddings, MultiEmbeddings
from runtime.adapters.cache import CacheStatistics
from runtime.adapters.encoder import check_text
from runtime.adapters.stored import Mode
from runtime.adapters.textcache import TextCache

if TYPE_CHECKING:
    from runtime.adapters.langchain_embeddings import LocalEmbeddings

_LOG: Final = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[int, int], None]
"""Told after each batch how many texts are done, and of how many."""


class LocalEmbedder(ABC):
    """An embedder in this process. Threads that call it at once wait for one another."""

    _info: AdapterInfo
    _settings: EmbedderSettings
    _cache: TextCache | None
    _lock: threading.RLock

    @property
    def info(self) -> AdapterInfo:
        """What was loaded."""
        return self._info

    @property
    @abstractmethod
    def dimension(self) -> int:
        """The length of a dense vector."""

    def embed(self, texts: Sequence[EmbeddingInput]) -> Embeddings:
        """Return one dense float32 vector per input, in order.

        Raises:
            RequestError: An input isn't valid Unicode, is no token of this model, or is an empty token list.
            AdapterError: Out of memory on a single input.
        """
        return self._dense(texts, prefix=None, progress=None)

    def embed_documents(self, texts: Sequence[str], *, progress: Progress | None = None) -> list[list[float]]:
        """Return one dense vector per text, as LangChain's ``Embeddings`` asks.

        Texts that were cut to the model's limit are reported as a warning of this module's logger.

        Raises:
            AdapterError: As :meth:`embed`.
        """
        return self._plain(texts, self._document_prefix, progress)

    def embed_query(self, text: str) -> list[float]:
        """Return the dense vector of one query.

        Raises:
            AdapterError: As :meth:`embed`.
        """
        return self._plain([text], self._query_prefix, None)[0]

    def as_langchain(self) -> "LocalEmbeddings":
        """Return this model as LangChain's ``Embeddings``, sync and async.

        Raises:
            AdapterError: langchain-core isn't installed.
        """
        try:
            from runtime.adapters.langchain_embeddings import LocalEmbeddings  # noqa: PLC0415 - langchain is optional
        except ImportError as error:
            msg = f"model {self._info.name!r}: LangChain needs {error.name or error}, which isn't installed here"
            raise AdapterError(msg, hint="add langchain-core to the bundle's requirements") from error
        return LocalEmbeddings(self)

    def get_embedding_dimension(self) -> int:
        """Return the length of a dense vector."""
        return self.dimension

    def get_model_info(self) -> dict[str, object]:
        """Return what was loaded as a plain dict."""
        own = {
            "model_name": self._info.name,
            "model_path": self._info.directory,
            "embedding_dimension": self.dimension,
            "max_length": self._info.limit,
        }
        settings = self._settings
        return {**asdict(self._info), **own, "batch_size": settings.batch_size, "use_fp16": settings.use_fp16}

    @contextmanager
    def without_cache(self) -> Iterator[None]:
        """Have the model itself answer within the block: a kept answer proves nothing. For whoever has it alone."""
        kept, self._cache = self._cache, None
        try:
            yield
        finally:
            self._cache = kept

    def cache_statistics(self) -> CacheStatistics | None:
        """Return what the cache did in this process; None where there is none."""
        return self._cache.statistics() if self._cache else None

    @property
    def _query_prefix(self) -> str | None:
        """What is put before a query; None for what is put before any text."""
        return None

    @property
    def _document_prefix(self) -> str | None:
        """What is put before a document; None for what is put before any text."""
        return None

    def _prepare(self, text: EmbeddingInput, prefix: str | None) -> EmbeddingInput:
        """Return what the tokenizer gets for a text."""
        return prefix + text if prefix and isinstance(text, str) else text

    @abstractmethod
    def _compute(
        self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], progress: Progress | None
    ) -> MultiEmbeddings:
        """Have the model do its work on prepared inputs; called by one thread at a time."""

    def _run(
        self,
        texts: Sequence[EmbeddingInput],
        modes: Sequence[Mode],
        *,
        prefix: str | None = None,
        progress: Progress | None = None,
    ) -> MultiEmbeddings:
        for index, text in enumerate(texts):
            if isinstance(text, str):
                check_text(text, index)
        inputs = [self._prepare(text, prefix) for text in texts]
        with self._lock:
            if self._cache is None:
                return self._compute(inputs, modes, progress)
            return self._cache.embed(inputs, modes, lambda missing: self._compute(missing, modes, progress))

    def _dense(self, texts: Sequence[EmbeddingInput], *, prefix: str | None, progress: Progress | None) -> Embeddings:
        result = self._run(texts, ("dense",), prefix=prefix, progress=progress)
        if result.dense is None:
            raise AssertionError("dense was asked for")
        return Embeddings(vectors=result.dense, token_counts=result.token_counts, truncated=result.truncated)

    def _plain(self, texts: Sequence[str], prefix: str | None, progress: Progress | None) -> list[list[float]]:
        if isinstance(texts, str):
            raise TypeError("embed_documents: expected a list of texts, got one text; embed_query takes one")
        result = self._dense(texts, prefix=prefix, progress=progress)
        warn_of_truncation(self._info, result.truncated_count, len(texts))
        vectors: list[list[float]] = result.vectors.tolist()
        return vectors


def warn_of_truncation(info: AdapterInfo, cut: int, total: int) -> None:
    """Say how many texts were cut, where the answer itself can't carry it."""
    if cut:
        _LOG.warning("model %s: %d of %d texts were cut to %d tokens", info.name, cut, total, info.limit)
