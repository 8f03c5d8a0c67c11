"""Batches by token budget, and contexts by token budget: pure functions."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runtime.adapters.base import Message
from runtime.adapters.batching import plan_batches
from runtime.adapters.prompts import fit_contexts, plain_prompt, rag_question


def test_longest_first_and_budget_counts_padding() -> None:
    assert list(plan_batches([3, 10, 4, 9], budget=20)) == [(1, 3), (2, 0)]
    assert list(plan_batches([3, 10, 4, 9], budget=20, rows=1)) == [(1,), (3,), (2,), (0,)]
    assert list(plan_batches([50], budget=20)) == [(0,)]
    assert list(plan_batches([], budget=20)) == []


def test_without_padding_the_budget_counts_what_is_there() -> None:
    assert list(plan_batches([3, 10, 4, 9], budget=20, padded=False)) == [(1, 3), (2, 0)]
    assert list(plan_batches([3, 10, 4, 2, 0], budget=20, padded=False)) == [(1, 2, 0, 3, 4)]
    assert list(plan_batches([3, 10, 4, 2], budget=20, rows=3, padded=False)) == [(1, 2, 0), (3,)]


@given(
    lengths=st.lists(st.integers(1, 60)),
    budget=st.integers(1, 100),
    rows=st.none() | st.integers(1, 5),
    padded=st.booleans(),
)
def test_every_input_is_in_one_batch_and_batches_fit(
    lengths: list[int],
    budget: int,
    rows: int | None,
    padded: bool,
) -> None:
    batches = list(plan_batches(lengths, budget=budget, rows=rows, padded=padded))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert len(batch) == 1 or (len(batch) * max(sizes) if padded else sum(sizes)) <= budget
        assert rows is None or len(batch) <= rows
    for batch, after in pairwise(batches):  # no batch ends before it must
        size = max(map(lengths.__getitem__, batch)) * (len(batch) + 1)
        size = size if padded else sum(map(lengths.__getitem__, (*batch, after[0])))
        assert size > budget or len(batch) == rows


@given(words=st.lists(st.integers(1, 9), max_size=6), budget=st.integers(0, 40))
def test_contexts_are_cut_from_the_end(words: list[int], budget: int) -> None:
    contexts = [" ".join(f"w{index}" for _ in range(count)) for index, count in enumerate(words)]
    fitted = fit_contexts(
        contexts,
        budget=budget,
        measure=lambda texts: sum(len(text.split()) for text in texts),
        cut=lambda text, count: " ".join(text.split()[:count]),
    )
    kept = [word for text in fitted.texts for word in text.split()]
    everything = [word for text in contexts for word in text.split()]
    assert kept == everything[: min(budget, len(everything))]
    assert fitted.dropped == len(contexts) - len(fitted.texts)
    assert fitted.shortened == bool(fitted.texts and fitted.texts[-1] != contexts[len(fitted.texts) - 1])


def test_korean_prompts() -> None:
    asked = rag_question("수도는?", ["서울이다", "부산이다"])
    assert asked == (
        "다음 참고자료를 바탕으로 질문에 대한 정확하고 유용한 답변을 제공해주세요.\n\n"
        "참고자료:\n참고자료 1: 서울이다\n참고자료 2: 부산이다\n\n질문: 수도는?"
    )
    assert plain_prompt([Message(role="user", content="가")]) == "가\n\n답변: "
    two = [Message(role="system", content="가"), Message(role="user", content="나")]
    assert plain_prompt(two) == "시스템: 가\n\n사용자: 나\n\n답변: "
