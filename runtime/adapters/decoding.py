"""From scores to tokens: which one comes next, and which ones end an answer."""

from collections.abc import Sequence
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
