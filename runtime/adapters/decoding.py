"""From tokens to text: sampling one token, ending an answer, and turning tokens into pieces of text as they come."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch

KNOWN_STOP_TOKENS: Final = (
    "<|im_end|>",
    "<|endofturn|>",
    "<|stop|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "</s>",
)
"""Special tokens by which models end a turn; configs often forget to list them (HyperCLOVA X Think 14B does)."""


def collect_stop_ids(tokenizer: Any, *configs: Any) -> frozenset[int]:  # noqa: ANN401 - transformers is untyped
    """Return every id that ends an answer: the configs', the tokenizer's, and its added tokens that are known stops."""
    found: set[int] = set()
    for holder in (*configs, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    added = tokenizer.get_added_vocab()
    found.update(added[token] for token in KNOWN_STOP_TOKENS if token in added)
    return frozenset(int(token) for token in found)


class Sampler:
    """Chooses the next token: greedy at temperature 0, else by nucleus sampling with a random stream of its own.

    The repetition penalty is CTRL's (arXiv:1909.05858), over prompt and answer, as in transformers.
    """

    def __init__(self, *, temperature: float, top_p: float, repetition_penalty: float, seed: int | None) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._penalty = repetition_penalty
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    def choose(self, logits: torch.Tensor, seen: Sequence[int]) -> int:
        """Return a token id.

        Args:
            logits: Scores of the whole vocabulary, shape (vocabulary,).
            seen: Token ids of prompt and answer so far.

        Raises:
            ValueError: The logits hold NaN.
        """
        scores = logits.float()
        if bool(torch.isnan(scores).any()):
            raise ValueError("the model's scores are not numbers (NaN)")
        if self._penalty != 1.0:
            scores = self._penalized(scores, seen)
        if self._temperature == 0:
            return int(scores.argmax())
        return self._draw(torch.softmax(scores / self._temperature, dim=-1).cpu())

    def _penalized(self, scores: torch.Tensor, seen: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor(sorted(set(seen)), device=scores.device)
        chosen = scores[ids]
        return scores.index_copy(0, ids, torch.where(chosen < 0, chosen * self._penalty, chosen / self._penalty))

    def _draw(self, probabilities: torch.Tensor) -> int:
        if self._top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            inside = ordered.cumsum(0) - ordered < self._top_p  # the token that crosses the bound still counts
            probabilities = torch.zeros_like(probabilities).index_copy(0, order, ordered * inside)
        return int(torch.multinomial(probabilities, 1, generator=self._random))


class TextAssembler:
    """Turns tokens into text that is safe to send: whole characters only, and never a part of a stop string.

    Args:
        tokenizer: The model's own.
        stop: Strings that end the answer; they are no part of it.
    """

    def __init__(self, tokenizer: Any, stop: Iterable[str]) -> None:  # noqa: ANN401 - transformers is untyped
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = 0  # tokens before it are decoded for good
        self._known = 0  # tokens before it have given their text to _held
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; return what may be sent now, often nothing."""
        self._ids.append(token)
        self._held += self._fresh(final=False)
        return self._release()

    def finish(self) -> str:
        """Return what is left when no token follows."""
        if self.stopped:
            return ""
        self._held += self._fresh(final=True)
        text = self._release()
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _fresh(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._known])
        now = self._decode(self._ids[self._start :])
        if not final and (now.endswith("\ufffd") or len(now) <= len(before)):
            return ""  # a character whose bytes aren't all here yet
        self._start, self._known = self._known, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self) -> str:
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a beginning of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
