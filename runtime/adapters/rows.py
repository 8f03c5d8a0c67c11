"""Rows of a key-value cache: one forward pass for several answers, rows that join, rows that leave."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

R = TypeVar("R")


class CachedNetwork:
    """A causal language model of transformers, called with its key-value cache.

    Args:
        network: The model, on its device.
        device: Where the token ids must lie.
        joinable: Whether rows may share a forward pass; False where one row's numbers depend on its neighbours.
    """

    def __init__(self, network: Any, device: torch.device, *, joinable: bool = True) -> None:  # noqa: ANN401 - untyped
        parameters = inspect.signature(network.forward).parameters
        self._network, self._device = network, device
        self._trims_logits = "logits_to_keep" in parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5.24
        self.joinable = joinable and {"attention_mask", "position_ids"} <= set(parameters)

    def start_group(self, row: R) -> "RowGroup[R]":
        """Return a group of one row that has nothing cached yet."""
        return RowGroup(self, [row])

    @torch.inference_mode()
    def forward(self, ids: Sequence[Sequence[int]], cache: object, lengths: Sequence[int]) -> tuple[torch.Tensor, Any]:
        """Return the scores after the last id of each row, shape (rows, vocabulary), and the cache, now longer.

        Args:
            ids: New token ids, as many for each row.
            cache: What the last call gave; None at first.
            lengths: Cached tokens of each row; rows that have less than the longest are padded on the left.

        Raises:
            ValueError: The model keeps no cache.
        """
        options: dict[str, object] = {"logits_to_keep": 1} if self._trims_logits else {}
        inputs = torch.tensor(ids, dtype=torch.int64, device=self._device)
        if len(set(lengths)) > 1:
            options |= self._padding(lengths, inputs.shape[1])
        output = self._network(input_ids=inputs, use_cache=True, **{self._cache_name: cache}, **options)
        kept = getattr(output, self._cache_name, None)
        if kept is None:
            raise ValueError(f"{type(self._network).__name__} keeps no key-value cache, which this adapter needs")
        return output.logits[:, -1], kept

    def _padding(self, lengths: Sequence[int], fresh: int) -> Mapping[str, torch.Tensor]:
        width, past = max(lengths), torch.tensor(lengths, device=self._device).unsqueeze(1)
        columns = torch.arange(width + fresh, device=self._device).unsqueeze(0)
        positions = past + torch.arange(fresh, device=self._device).unsqueeze(0)
        return {"attention_mask": (columns >= width - past).long(), "position_ids": positions}


class RowGroup(Generic[R]):
    """Rows that go through the network together, with their cache.

    Attributes:
        rows: Whatever the owner keeps for each row, in the cache's order.
        lengths: Cached tokens of each row; shorter ones are padded on the left.
        cache: What the network gave; None before the first pass.
    """

    def __init__(self, network: CachedNetwork, rows: list[R]) -> None:
        self.rows = rows
        self._network = network
        self.lengths = [0] * len(rows)
        self.cache: Any = None

    @property
    def joinable(self) -> bool:
        """Whether its cache is plain keys and values of every token, which can be padded and cut."""
        return (
            self._network.joinable
            and type(self.cache) is DynamicCache
            and all(type(layer) is DynamicLayer and layer.is_initialized for layer in self.cache.layers)
        )

    def prefill(self, ids: Sequence[int]) -> torch.Tensor:
        """Feed the next part of the only row's prompt; return the scores after it, shape (1, vocabulary)."""
        scores, self.cache = self._network.forward([ids], self.cache, self.lengths)
        self.lengths = [self.lengths[0] + len(ids)]
        return scores

    def decode(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed one token per row; return the scores, shape (rows, vocabulary). A failure leaves the cache as it was."""
        try:
            scores, self.cache = self._network.forward([[token] for token in tokens], self.cache, self.lengths)
        except Exception:
            self._restore()
            raise
        self.lengths = [length + 1 for length in self.lengths]
        return scores

    def absorb(self, other: "RowGroup[R]") -> None:
        """Take over another group's rows; both must be joinable. A failure leaves both as they were."""
        width = max(*self.lengths, *other.lengths)
        pairs = list(zip(self.cache.layers, other.cache.layers, strict=True))
        keys = [torch.cat([_widen(mine.keys, width), _widen(theirs.keys, width)]) for mine, theirs in pairs]
        values = [torch.cat([_widen(mine.values, width), _widen(theirs.values, width)]) for mine, theirs in pairs]
        for (mine, _), new_keys, new_values in zip(pairs, keys, values, strict=True):
            mine.keys, mine.values = new_keys, new_values
        self.rows += other.rows
        self.lengths += other.lengths

    def keep(self, indices: Sequence[int]) -> None:
        """Drop every other row, and the padding that none of the kept ones needs."""
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in indices]
        width = max(self.lengths)
        self.lengths = [self.lengths[index] for index in indices]
        if not self.rows:
            self.cache = None
            return
        spare = width - max(self.lengths)
        chosen = torch.tensor(list(indices), device=self.cache.layers[0].keys.device)
        for layer in self.cache.layers:
            layer.keys = layer.keys[:, :, spare:].index_select(0, chosen)
            layer.values = layer.values[:, :, spare:].index_select(0, chosen)

    def split(self) -> Iterator["RowGroup[R]"]:
        """Yield each row as a group of its own."""
        width = max(self.lengths)
        for index, (row, length) in enumerate(zip(self.rows, self.lengths, strict=True)):
            single = RowGroup(self._network, [row])
            single.lengths = [length]
            single.cache = DynamicCache()
            for number, layer in enumerate(self.cache.layers):
                part = (slice(index, index + 1), slice(None), slice(width - length, None))
                single.cache.update(layer.keys[part], layer.values[part], number)
            yield single

    def _restore(self) -> None:
        """Cut what a broken-off pass has added to some layers."""
        if self.joinable:
            for layer in self.cache.layers:
                layer.keys = layer.keys[:, :, : max(self.lengths)]
                layer.values = layer.values[:, :, : max(self.lengths)]


def _widen(states: torch.Tensor, width: int) -> torch.Tensor:
    """Pad on the left to ``width`` tokens; shape (rows, heads, tokens, head width)."""
    return pad(states, (0, 0, width - states.shape[2], 0))
