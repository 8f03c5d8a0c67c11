"""Parts of embeddings: cut out of a batch for each request in it, and put together for a request of many batches."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from runtime.adapters.base import Embeddings, MultiEmbeddings

Vectors: TypeAlias = Embeddings | MultiEmbeddings


def cut(whole: Vectors, start: int, stop: int) -> Vectors:
    """Return the rows from ``start`` to before ``stop``; their memory doesn't hold the whole batch's."""
    counts, truncated = whole.token_counts[start:stop], whole.truncated[start:stop]
    if isinstance(whole, Embeddings):
        return Embeddings(vectors=whole.vectors[start:stop].copy(), token_counts=counts, truncated=truncated)
    return MultiEmbeddings(
        dense=None if whole.dense is None else whole.dense[start:stop].copy(),
        sparse=None if whole.sparse is None else whole.sparse[start:stop],
        colbert=None if whole.colbert is None else whole.colbert[start:stop],
        token_counts=counts,
        truncated=truncated,
    )


def join(parts: Sequence[Vectors]) -> Vectors:
    """Return parts, at least one and all with the same kinds of vectors, as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    counts = tuple(count for part in parts for count in part.token_counts)
    truncated = tuple(flag for part in parts for flag in part.truncated)
    if isinstance(first, Embeddings):
        vectors = np.concatenate([part.vectors for part in parts if isinstance(part, Embeddings)])
        return Embeddings(vectors=vectors, token_counts=counts, truncated=truncated)
    multi = [part for part in parts if isinstance(part, MultiEmbeddings)]
    dense = [part.dense for part in multi if part.dense is not None]
    return MultiEmbeddings(
        dense=np.concatenate(dense) if dense else None,
        sparse=None if first.sparse is None else tuple(row for part in multi for row in part.sparse or ()),
        colbert=None if first.colbert is None else tuple(row for part in multi for row in part.colbert or ()),
        token_counts=counts,
        truncated=truncated,
    )
