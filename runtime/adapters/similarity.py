"""How alike two texts are, by each of BGE-M3's three kinds of vectors (arXiv:2402.03216, section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.adapters.base import RequestError

Dense: TypeAlias = Sequence[float] | NDArray[np.float32]
Lexical: TypeAlias = Mapping[str, float] | Mapping[int, float]
PerToken: TypeAlias = Sequence[Sequence[float]] | NDArray[np.float32]


def similarity(query: Dense | Lexical | PerToken, documents: Sequence[Dense | Lexical | PerToken]) -> list[float]:
    """Return one score per document: dense, lexical or ColBERT, by the form of ``query``.

    Raises:
        RequestError: Documents of another form or width, numbers that aren't finite, a zero vector.
    """
    if isinstance(query, Mapping):
        return lexical_scores(query, cast("Sequence[Lexical]", documents))
    asked = _array(query, "the query")
    if asked.ndim == 1:
        return dense_scores(asked, cast("Sequence[Dense]", documents))
    if asked.ndim == 2:
        return colbert_scores(asked, cast("Sequence[PerToken]", documents))
    raise RequestError(f"compute_similarity: a query of shape {asked.shape}: neither dense, lexical nor ColBERT")


def dense_scores(query: ArrayLike, documents: Sequence[ArrayLike]) -> list[float]:
    """Return the cosine of a vector with each of the documents', all of shape (dimension,).

    Raises:
        RequestError: Shapes differ, numbers aren't finite, or a vector is zero, which has no direction.
    """
    asked = _array(query, "the query")
    found = [_array(document, f"document {index}") for index, document in enumerate(documents)]
    for index, document in enumerate(found):
        _same_shape(asked.shape, document.shape, index)
    scores: list[float] = []
    for index, document in enumerate(found):
        norms = float(np.linalg.norm(asked) * np.linalg.norm(document))
        if norms == 0:
            raise RequestError(f"compute_similarity: document {index} or the query is a zero vector: no direction")
        scores.append(float(asked @ document) / norms)
    return scores


def lexical_scores(query: Lexical, documents: Sequence[Lexical]) -> list[float]:
    """Return, per document, the sum over the shared tokens of the product of their weights.

    Raises:
        RequestError: A document isn't a mapping of tokens, or its tokens are of another type than the query's.
    """
    scores: list[float] = []
    kinds = {type(token) for token in query}
    for index, document in enumerate(documents):
        if not isinstance(document, Mapping):
            raise RequestError(f"compute_similarity: the query is lexical, document {index} is not")
        others = {type(token) for token in document}
        if kinds and others and kinds != others:
            msg = f"compute_similarity: document {index}: tokens of another type than the query's"
            raise RequestError(msg, hint="ids as numbers, ids as text and token strings can't be mixed")
        weights = cast("Mapping[object, float]", document)
        scores.append(float(sum(weight * weights.get(token, 0.0) for token, weight in query.items())))
    return scores


def colbert_scores(query: ArrayLike, documents: Sequence[ArrayLike]) -> list[float]:
    """Return, per document, the mean over the query's tokens of the largest product with any token of the document.

    Args:
        query: Shape (tokens, dimension).
        documents: Each of shape (tokens, dimension), any number of tokens but none.

    Raises:
        RequestError: Shapes don't fit, or numbers aren't finite.
    """
    asked = _array(query, "the query")
    scores: list[float] = []
    for index, item in enumerate(documents):
        document = _array(item, f"document {index}")
        if document.ndim != 2 or not len(document) or not len(asked) or document.shape[1] != asked.shape[1]:
            msg = f"compute_similarity: document {index} has shape {document.shape}, the query {asked.shape}"
            raise RequestError(msg, hint="ColBERT vectors have shape (tokens, dimension)")
        scores.append(float((asked @ document.T).max(axis=1).mean()))
    return scores


def _array(values: ArrayLike | Lexical, what: str) -> NDArray[np.float64]:
    if isinstance(values, Mapping):
        raise RequestError(f"compute_similarity: {what} is lexical, the others are not")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise RequestError(f"compute_similarity: {what} isn't a vector, nor rows of one length") from None
    if not np.isfinite(array).all():
        raise RequestError(f"compute_similarity: {what} holds numbers that aren't finite")
    return array


def _same_shape(query: tuple[int, ...], document: tuple[int, ...], index: int) -> None:
    if query != document:
        raise RequestError(f"compute_similarity: document {index} has shape {document}, the query {query}")
