"""Batches by token budget: sorted by length, so that little is padded and the working set stays in the caches.

This plans the batches of embedders. Batched decoding of generators is :mod:`runtime.adapters.engine`: its docstring
has the API (``engine.add``, ``engine.step``, ``handle.take``, ``handle.cancel``).
"""

from collections.abc import Iterator, Sequence


def plan_batches(
    lengths: Sequence[int], *, budget: int, rows: int | None = None, padded: bool = True
) -> Iterator[tuple[int, ...]]:
    """Yield the indices of each batch, longest inputs first, so that a batch that is too large fails early.

    Args:
        lengths: Tokens of each input.
        budget: Tokens a batch may hold; an input longer than that is a batch of its own.
        rows: Inputs a batch may hold; None for any number.
        padded: Whether each input takes as much of the budget as the longest of its batch.
    """
    batch: list[int] = []
    used = longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        share = max(1, longest if batch and padded else lengths[index])
        if batch and (used + share > budget or len(batch) == rows):
            yield tuple(batch)
            batch, used, share = [], 0, max(1, lengths[index])
        longest = longest if batch else share
        batch.append(index)
        used += share
    if batch:
        yield tuple(batch)
