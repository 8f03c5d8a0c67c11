"""Prompts of retrieval-augmented answers, and contexts cut to a token budget: from the end, never the question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.adapters.base import Message

RAG_INSTRUCTION: Final = "다음 참고자료를 바탕으로 질문에 대한 정확하고 유용한 답변을 제공해주세요."
_ROLES: Final = {"system": "시스템", "user": "사용자", "assistant": "답변"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedContexts:
    """Contexts that fit a budget: ``texts`` in order, the last maybe shortened; ``dropped`` counts those left out."""

    texts: tuple[str, ...]
    shortened: bool
    dropped: int

    def report(self) -> str:
        """Return one sentence about what was cut."""
        total = len(self.texts) + self.dropped
        return f"of {total} contexts {self.dropped} were dropped and {int(self.shortened)} shortened to fit"


def rag_question(question: str, contexts: Sequence[str]) -> str:
    """Return the Korean RAG instruction, the numbered contexts and the question, as one user turn."""
    numbered = "\n".join(f"참고자료 {number}: {text}" for number, text in enumerate(contexts, start=1))
    return f"{RAG_INSTRUCTION}\n\n참고자료:\n{numbered}\n\n질문: {question}"


def plain_prompt(messages: Sequence[Message]) -> str:
    """Return a conversation as text for a model without a chat template; it ends where the answer begins."""
    if [message.role for message in messages] == ["user"]:
        return f"{messages[0].content}\n\n답변: "
    turns = "\n\n".join(f"{_ROLES.get(message.role, message.role)}: {message.content}" for message in messages)
    return f"{turns}\n\n답변: "


def fit_contexts(
    contexts: Sequence[str], *, budget: int, measure: Callable[[Sequence[str]], int], cut: Callable[[str, int], str]
) -> FittedContexts:
    """Return as many contexts as fit, whole and in order, and of the next one the beginning that still fits.

    Args:
        contexts: Best first.
        budget: Tokens that the whole prompt may have.
        measure: Tokens of the whole prompt with the contexts given, question and template included.
        cut: Returns the first so many tokens of a text, as text.
    """
    kept = _largest(len(contexts), lambda count: measure(contexts[:count]) <= budget)
    whole = tuple(contexts[:kept])
    if kept == len(contexts):
        return FittedContexts(texts=whole, shortened=False, dropped=0)
    following = contexts[kept]
    size = _largest(budget, lambda tokens: measure([*whole, cut(following, tokens)]) <= budget)
    part = cut(following, size).strip() if size else ""
    texts = (*whole, part) if part else whole
    return FittedContexts(texts=texts, shortened=bool(part), dropped=len(contexts) - len(texts))


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to ``limit`` that fits, by bisection; 0 is taken to fit."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
