"""The cache in front of a model: texts that it has seen before don't go through it again."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, cast

import numpy as np

from manifests.errors import AdapterError
from manifests.modelsettings import EmbedderSettings
from runtime.adapters.base import EmbeddingInput, MultiEmbeddings, Vectors
from runtime.adapters.cache import CacheStatistics, VectorCache
from runtime.adapters.stored import Mode, Stored, decode, encode

_LOG: Final = logging.getLogger(__name__)
_ON: Final = frozenset({"1", "true", "yes", "on"})
_OFF: Final = frozenset({"", "0", "false", "no", "off"})

Compute: TypeAlias = Callable[[Sequence[EmbeddingInput]], MultiEmbeddings]
_Row: TypeAlias = Mapping[Mode, Stored]


class TextCache:
    """Results of one model with one way of computing them.

    Args:
        cache: Where they are kept.
        identity: Whatever changes the numbers: the model's fingerprint, its limit, normalisation, dtype, and so on.
    """

    def __init__(self, cache: VectorCache, identity: Mapping[str, object]) -> None:
        self._cache = cache
        self._salt = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()

    def embed(self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], compute: Compute) -> MultiEmbeddings:
        """Return what ``compute`` gives for ``inputs``, asking it only for texts that aren't there.

        The same text twice is computed once. Token lists are never kept.
        """
        texts = [item for item in inputs if isinstance(item, str)]
        if len(texts) < len(inputs) or not texts:
            return compute(inputs)
        unique = list(dict.fromkeys(texts))
        rows = self._look_up(unique, modes)
        missing = [text for text in unique if text not in rows]
        if missing:
            fresh = dict(zip(missing, _split(compute(missing), modes), strict=True))
            self._keep(fresh)
            rows |= fresh
        return _join([rows[text] for text in texts], modes)

    def statistics(self) -> CacheStatistics:
        """Return the counters; a text counts once for each kind of vector."""
        return self._cache.statistics()

    def close(self) -> None:
        """Let the file go."""
        self._cache.close()

    def _key(self, mode: Mode, text: str) -> bytes:
        return hashlib.sha256(self._salt + mode.encode() + b"\0" + text.encode()).digest()

    def _look_up(self, texts: Sequence[str], modes: Sequence[Mode]) -> dict[str, _Row]:
        """Return those texts for which every mode is there."""
        found = self._cache.get_many([self._key(mode, text) for text in texts for mode in modes])
        rows: dict[str, _Row] = {}
        for text in texts:
            row = {mode: decode(mode, found.get(self._key(mode, text), b"")) for mode in modes}
            if all(row.values()):
                rows[text] = cast("_Row", row)
        return rows

    def _keep(self, rows: Mapping[str, _Row]) -> None:
        values = {
            self._key(mode, text): encode(mode, stored) for text, row in rows.items() for mode, stored in row.items()
        }
        self._cache.set_many(values)


def open_cache(
    settings: EmbedderSettings, identity: Callable[[], Mapping[str, object]], *, model: str
) -> tuple[TextCache | None, str]:
    """Return the cache that the settings or the environment ask for, if any, and a sentence on it.

    ``identity`` is asked only if there is a cache, since reading a model's files takes a while.

    Raises:
        AdapterError: ENABLE_MODEL_CACHE says neither yes nor no, or the model's files can't be read.
    """
    if not _is_wanted(settings, model):
        return None, "cache off: enable_cache or ENABLE_MODEL_CACHE turns it on"
    path = _folder(settings) / "embeddings.sqlite3"
    try:
        cache = VectorCache(path, limit=settings.cache_bytes, entries=settings.cache_size)
    except OSError as error:
        note = f"cache off: {path.parent} can't be used: {error.strerror or error}"
        _LOG.warning("model %s: %s", model, note)
        return None, note
    return TextCache(cache, identity()), f"cache {path}, at most {settings.cache_bytes / (1 << 20):.0f} MiB"


def _is_wanted(settings: EmbedderSettings, model: str) -> bool:
    if settings.enable_cache is not None:
        return settings.enable_cache
    written = os.environ.get("ENABLE_MODEL_CACHE", "").strip().lower()
    if written not in _ON | _OFF:
        raise AdapterError(f"model {model!r}: ENABLE_MODEL_CACHE: expected true or false, got {written!r}")
    return written in _ON


def _folder(settings: EmbedderSettings) -> Path:
    """Return the cache's folder; CACHE_DIR is the guide's, shared with others, so ours is below it."""
    if settings.cache_dir is not None:
        return Path(settings.cache_dir).expanduser().absolute()
    below = os.environ.get("CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(below).absolute() / "sealift"


def _split(result: MultiEmbeddings, modes: Sequence[Mode]) -> list[_Row]:
    columns = {mode: _column(result, mode) for mode in modes}
    return [
        {mode: Stored(value=column[index], tokens=tokens, truncated=truncated) for mode, column in columns.items()}
        for index, (tokens, truncated) in enumerate(zip(result.token_counts, result.truncated, strict=True))
    ]


def _column(result: MultiEmbeddings, mode: Mode) -> Sequence[Vectors | Mapping[int, float]]:
    column = {"dense": result.dense, "sparse": result.sparse, "colbert": result.colbert}[mode]
    if column is None:
        raise AssertionError(f"{mode} was asked for")
    return cast("Sequence[Vectors | Mapping[int, float]]", column)


def _join(rows: Sequence[_Row], modes: Sequence[Mode]) -> MultiEmbeddings:
    columns = {mode: [row[mode].value for row in rows] for mode in modes}
    heads = [row[modes[0]] for row in rows]
    return MultiEmbeddings(
        dense=np.stack(cast("list[Vectors]", columns["dense"])) if "dense" in columns else None,
        sparse=tuple(cast("list[Mapping[int, float]]", columns["sparse"])) if "sparse" in columns else None,
        colbert=tuple(cast("list[Vectors]", columns["colbert"])) if "colbert" in columns else None,
        token_counts=tuple(head.tokens for head in heads),
        truncated=tuple(head.truncated for head in heads),
    )
