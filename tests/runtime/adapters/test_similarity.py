"""Scores of BGE-M3's three kinds of vectors, against sums done by hand."""

import numpy as np
import pytest

from runtime.adapters.base import RequestError
from runtime.adapters.bge_m3 import BgeM3Adapter
from runtime.adapters.similarity import Dense, Lexical, PerToken, similarity

pytestmark = pytest.mark.models


def test_dense_is_the_cosine() -> None:
    assert similarity([3.0, 4.0], [[3.0, 4.0], [-3.0, -4.0], [4.0, -3.0], [1.0, 0.0]]) == pytest.approx([1, -1, 0, 0.6])
    array = np.asarray([[2.0, 0.0], [0.0, 5.0]], dtype=np.float32)
    assert similarity(array[0], list(array)) == pytest.approx([1, 0])
    assert similarity([1.0, 0.0], []) == []


def test_lexical_is_the_sum_over_shared_tokens() -> None:
    assert similarity({"1": 0.5, "2": 2.0}, [{"2": 3.0, "9": 8.0}, {}, {"1": 1.0, "2": 1.0}]) == [6.0, 0.0, 2.5]
    assert similarity({5: 0.5}, [{5: 0.5}]) == [0.25]
    assert similarity({}, [{"1": 1.0}]) == [0.0]


def test_colbert_is_the_mean_of_the_best() -> None:
    query = [[1.0, 0.0], [0.0, 1.0]]
    assert similarity(query, [[[1.0, 0.0]], [[0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]]]) == pytest.approx([0.5, 0.8])


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        ([1.0, 0.0], [[1.0, 0.0], [1.0, 0.0, 0.0]], "document 1 has shape (3,), the query (2,)"),
        ([0.0, 0.0], [[1.0, 0.0]], "document 0 or the query is a zero vector: no direction"),
        ([1.0, float("nan")], [[1.0, 0.0]], "the query holds numbers that aren't finite"),
        ([1.0, 0.0], [{"1": 1.0}], "document 0 is lexical, the others are not"),
        ({"1": 1.0}, [[1.0, 0.0]], "the query is lexical, document 0 is not"),
        ({"1": 1.0}, [{1: 1.0}], "document 0: tokens of another type than the query's"),
        ([[1.0, 0.0]], [[[1.0, 0.0, 0.0]]], "document 0 has shape (1, 3), the query (1, 2)"),
        ([[1.0, 0.0]], [[1.0, 0.0]], "document 0 has shape (2,), the query (1, 2)"),
        ([[1.0, 0.0], [1.0]], [[[1.0, 0.0]]], "the query isn't a vector, nor rows of one length"),
        ([[[1.0]]], [], "a query of shape (1, 1, 1): neither dense, lexical nor ColBERT"),
    ],
)
def test_what_does_not_fit_is_refused(
    query: Dense | Lexical | PerToken, documents: list[Dense | Lexical | PerToken], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        similarity(query, documents)
    assert caught.value.message == f"compute_similarity: {message}"


def test_a_text_is_most_like_itself_in_every_kind(m3: BgeM3Adapter) -> None:
    texts = ["the cat sleeps", "a ship carries sealed goods", "대한민국의 수도는 서울이다"]
    found = m3.embed_multi(texts, sparse=True, colbert=True)
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    for index in range(3):
        for kind in (found.dense, found.colbert):
            scores = m3.compute_similarity(kind[index], list(kind))
            assert max(range(3), key=scores.__getitem__) == index
        shared = m3.compute_similarity(found.sparse[index], found.sparse)
        assert shared[index] == pytest.approx(sum(weight**2 for weight in found.sparse[index].values()))
