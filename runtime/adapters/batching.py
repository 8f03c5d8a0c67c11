"""Batches by token budget: sorted by length, so that little is padded and the working set stays in the caches.

This plans the batches of embedders. Batched decoding of generators is :mod:`runtime.adapters.engine`: its docstring
has the API (``engine.add``, ``engine.step``, ``handle.take``, ``handle.cancel``).
"""

from collections.abc import Iterator, Sequence


def plan_batches(lengths: Sequence[int], *, budget: int, rows: int | None = None) -> Iterator[tuple[int, ...]]:
    """Yield the indices of each batch, longest inputs first, so that a batch that is too large fails early.

    Args:
        lengths: Tokens of each input.
        budget: Tokens a batch may hold, padding included; an input longer than that is a batch of its own.
        rows: Inputs a batch may hold; None for any number.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        room = max(1, budget // max(1, lengths[order[start]]))
        size = min(room, rows) if rows else room
        yield tuple(order[start : start + size])
        start += size
